//! What the device sees of what the driver adds, and the way back.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;
use virtio_net::queue::split::Layout;
use virtio_net::queue::{
    Buffer, DmaRegion, EventMode, QueueError, Ring, RingLayout, RingShape, Used,
};

use crate::support::faults;
use crate::support::memory::{self, GuestHal};
use crate::support::ring::{Ends, chain_shapes, readable, shapes, writable};

/// Every size that a split queue can have.
fn sizes() -> impl Iterator<Item = u16> {
    (0..=15).map(|shift| 1 << shift)
}

/// Sizes that a queue of this layout can have: in the packed layout others
/// than powers of two as well.
fn sizes_of(layout: RingLayout) -> impl Iterator<Item = u16> {
    let more: &[u16] = match layout {
        RingLayout::Split => &[],
        RingLayout::Packed => &[3, 5, 6, 7, 9, 100, 255, 1000, 32767],
    };
    sizes().chain(more.iter().copied())
}

/// `length` buffers, the last `writable` of them for the device to write, all
/// different.
fn buffers(length: u16, writable_count: u16, salt: u64) -> Vec<Buffer> {
    (0..length)
        .map(|index| Buffer {
            address: 0x1_0000_0000 + (salt << 32) + 0x1001 * u64::from(index),
            length: 1 + u32::from(index) + salt as u32,
            writable: index >= length - writable_count,
        })
        .collect()
}

/// Takes one chain at the device and compares it with what was added.
fn expect_chain(ends: &mut Ends, expected: &[Buffer]) -> u16 {
    let (head, descriptors) = ends.take().expect("the device sees no chain");
    let seen: Vec<_> = descriptors
        .iter()
        .map(|piece| Buffer::new(piece.address, piece.length, piece.writable))
        .collect();
    assert_eq!(seen, expected);
    head
}

fn writable_bytes(buffers: &[Buffer]) -> u32 {
    buffers
        .iter()
        .filter(|buffer| buffer.writable)
        .map(|buffer| buffer.length)
        .sum()
}

#[test]
fn the_layout_is_the_specifications() {
    // Specification 2.7.2: ALIGN(16 n + 2 (3 + n)) + 2 * 3 + 8 n.
    for size in sizes() {
        let n = usize::from(size);
        let layout = Layout::new(size);
        assert_eq!(layout.avail, 16 * n);
        assert_eq!(layout.used, (16 * n + 2 * (3 + n)).div_ceil(4096) * 4096);
        assert_eq!(layout.total, layout.used + 6 + 8 * n);
    }
    assert_eq!(
        Layout::new(256),
        Layout {
            avail: 4096,
            used: 8192,
            total: 8192 + 6 + 2048
        }
    );
}

#[test]
fn sizes_that_no_split_queue_has_are_refused() {
    let shape = |chain| RingShape::split(chain, EventMode::Flags);
    let new = |size, chain| Ring::<GuestHal>::new(3, size, shape(chain)).err();
    let layout = RingLayout::Split;
    let bad_size = |size| {
        Some(QueueError::BadSize {
            queue: 3,
            size,
            layout,
        })
    };
    for size in [0, 3, 5, 255, 32767, 32769, 65535, 65536, 1 << 20, u32::MAX] {
        assert_eq!(new(size, 1), bad_size(size));
    }
    // It must hold a chain.
    for (size, chain) in [(1, 2), (4, 5), (4, 8), (0x8000, 0x8001), (2, u16::MAX)] {
        assert_eq!(new(size, chain), bad_size(size));
    }
    assert_eq!(memory::pages_in_use(), 0);
}

#[test]
fn sizes_that_no_packed_queue_has_are_refused() {
    let layout = RingLayout::Packed;
    let shape = |chain| RingShape::packed(chain, EventMode::Flags);
    let new = |size, chain| Ring::<GuestHal>::new(3, size, shape(chain)).err();
    // Specification 2.8.10.1: up to 2^15, of any value.
    for size in [0, 32769, 65535, 65536, u32::MAX] {
        let queue = 3;
        assert_eq!(
            new(size, 1),
            Some(QueueError::BadSize {
                queue,
                size,
                layout
            })
        );
    }
    for (size, chain) in [(1, 2), (3, 4), (7, 5)] {
        assert!(new(size, chain).is_some());
    }
    for size in [1, 3, 255, 32767, 32768] {
        assert_eq!(new(size, 1), None);
    }
    assert_eq!(memory::pages_in_use(), 0);
}

/// The message says what is wrong with a size.
#[test]
fn a_refused_size_is_told_with_the_reason() {
    let message = |size, shape| {
        Ring::<GuestHal>::new(3, size, shape)
            .err()
            .map(|e| e.to_string())
    };
    let split = RingShape::split(2, EventMode::Flags);
    let packed = RingShape::packed(2, EventMode::Flags);
    for (size, shape, expected) in [
        (0, split, "size 0 is not a power of two from 1 to 32768"),
        (100, split, "size 100 is not a power of two from 1 to 32768"),
        (
            65_536,
            split,
            "size 65536 is not a power of two from 1 to 32768",
        ),
        (0, packed, "size 0 is not from 1 to 32768"),
        (1, split, "size 1 does not hold a single chain"),
        (1, packed, "size 1 does not hold a single chain"),
    ] {
        assert_eq!(
            message(size, shape).unwrap(),
            format!("queue 3: {expected}")
        );
    }
    assert_eq!(message(100, packed), None);
}

#[test]
fn a_ring_holds_as_many_chains_as_fit() {
    for (size, chain, capacity) in [
        (8, 0, 8),
        (8, 1, 8),
        (8, 2, 4),
        (8, 3, 2),
        (8, 4, 2),
        (8, 8, 1),
        (0x8000, 1, 0x8000),
        (0x8000, 0x8000, 1),
    ] {
        let driver = Ends::with_chains(size, chain, EventMode::Flags).driver;
        assert_eq!(
            (driver.size(), driver.capacity(), driver.free()),
            (size, capacity, capacity)
        );
    }
}

#[test]
fn without_memory_there_is_no_ring() {
    faults::plan(&[0]);
    assert_eq!(
        Ring::<GuestHal>::new(5, 256, RingShape::split(1, EventMode::EventIdx)).err(),
        Some(QueueError::NoMemory { queue: 5, pages: 3 })
    );
    assert_eq!(faults::take_strikes().len(), 1);
    assert_eq!(memory::pages_in_use(), 0);
}

#[test]
fn a_region_is_page_aligned_zeroed_and_given_back() {
    use virtio_drivers::BufferDirection::Both;
    assert!(DmaRegion::<GuestHal>::new(0, Both).is_none());
    for bytes in [1, 4096, 4097] {
        let region = DmaRegion::<GuestHal>::new(bytes, Both).unwrap();
        assert_eq!(region.size(), bytes.div_ceil(4096) * 4096);
        assert_eq!(memory::pages_in_use(), bytes.div_ceil(4096));
        assert!(region.physical().is_multiple_of(4096));
        assert!(region.pointer().addr().get().is_multiple_of(4096));
    }
    assert_eq!(memory::pages_in_use(), 0);
}

#[test]
fn every_size_carries_single_buffers_around_its_ring() {
    for shape in shapes() {
        for size in sizes_of(shape.layout) {
            let mut ends = Ends::shaped(size, shape);
            assert_eq!(ends.driver.size(), size);
            // Full, half full and full again, beginning in the middle.
            for round in 0..3u64 {
                let count = if round == 1 { size.div_ceil(2) } else { size };
                for token in 0..count {
                    assert_eq!(ends.driver.free(), size - token);
                    let buffer = [writable(0x2000 * u64::from(token) + round, 100)];
                    ends.add(&buffer, token).unwrap();
                }
                assert_eq!(ends.driver.outstanding(), count);
                assert!(ends.take().is_none(), "seen before it was published");
                assert!(ends.driver.has_unpublished());
                ends.driver.publish();
                assert!(!ends.driver.has_unpublished());
                let mut heads = BTreeSet::new();
                for token in 0..count {
                    let buffer = [writable(0x2000 * u64::from(token) + round, 100)];
                    let head = expect_chain(&mut ends, &buffer);
                    assert!(heads.insert(head), "descriptor {head} is in two chains");
                    assert!(!ends.driver.has_used());
                    ends.give_back(head, 100);
                    assert!(ends.driver.has_used());
                    assert_eq!(
                        ends.driver.pop_used(),
                        Ok(Some(Used { token, length: 100 }))
                    );
                }
                assert!(ends.take().is_none());
                assert_eq!(ends.driver.pop_used(), Ok(None));
                assert_eq!((ends.driver.free(), ends.driver.outstanding()), (size, 0));
            }
        }
    }
}

#[test]
fn a_chain_can_be_as_long_as_the_ring() {
    let layouts = [RingLayout::Split, RingLayout::Packed];
    for (size, shape) in layouts.into_iter().flat_map(|layout| {
        // A chain's longest is a power of two.
        sizes().flat_map(move |size| {
            let shapes = chain_shapes(size).into_iter();
            let shapes = shapes.filter(move |shape| shape.layout == layout);
            shapes.map(move |shape| (size, shape))
        })
    }) {
        // A table for each of 32768 slots would be 16 GiB.
        if shape.indirect && size > 512 {
            continue;
        }
        let mut ends = Ends::shaped(size, shape);
        let capacity = ends.driver.capacity();
        assert_eq!(capacity, if shape.indirect { size } else { 1 });
        for (round, written) in [0, 1, size / 2, size].into_iter().enumerate() {
            let chain = buffers(size, written, round as u64);
            ends.add(&chain, 0xbeef).unwrap();
            assert_eq!(ends.driver.free(), capacity - 1);
            ends.driver.publish();
            let head = expect_chain(&mut ends, &chain);
            let length = writable_bytes(&chain);
            ends.give_back(head, length);
            let used = Used {
                token: 0xbeef,
                length,
            };
            assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
            assert_eq!(ends.driver.free(), capacity);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let sizes = [(1, 1), (2, 1), (2, 2), (8, 1), (8, 4), (8, 3)];
    for (size, chain, shape) in sizes.into_iter().flat_map(|(size, chain)| {
        let shapes = chain_shapes(chain).into_iter();
        shapes.map(move |shape| (size, chain, shape))
    }) {
        let mut ends = Ends::shaped(size, shape);
        let most = usize::from(chain.next_power_of_two());
        let capacity = ends.driver.capacity();
        for token in 0..capacity {
            for length in [0, most + 1, 0x1_0000, 0x1_0001] {
                assert_eq!(
                    ends.add(&vec![readable(9, 9); length], 99),
                    Err(QueueError::ChainLength {
                        queue: 7,
                        length,
                        most
                    })
                );
            }
            ends.add(&buffers(most as u16, 0, token.into()), token)
                .unwrap();
        }
        assert_eq!(ends.driver.next_head(), None);
        for length in [0, 1, most, most + 1] {
            assert_eq!(
                ends.add(&vec![readable(9, 9); length], 99),
                Err(QueueError::Full { queue: 7, capacity })
            );
        }
        ends.driver.publish();
        for token in 0..capacity {
            expect_chain(&mut ends, &buffers(most as u16, 0, token.into()));
        }
        assert!(ends.take().is_none());
    }
}

/// A chain of `length` readable buffers has nothing that could be written, so
/// what the device says of its length is not believed (specification
/// 2.7.8.1).
#[test]
fn the_length_of_a_readable_chain_is_not_believed() {
    let mut ends = Ends::with_chains(4, 2, EventMode::Flags);
    for length in [0, 1, 10, u32::MAX] {
        ends.add(&[readable(0x1000, 10), readable(0x2000, 10)], 3)
            .unwrap();
        ends.driver.publish();
        let (head, _) = ends.take().unwrap();
        ends.give_back(head, length);
        let used = Used {
            token: 3,
            length: 0,
        };
        assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
    }
}

/// Specification 2.7.5.2 allows 2^32 bytes a chain; the sum saturates.
#[test]
fn the_writable_bytes_of_a_chain_do_not_overflow() {
    let mut ends = Ends::with_chains(4, 2, EventMode::Flags);
    ends.add(&[writable(0, u32::MAX), writable(0, u32::MAX)], 1)
        .unwrap();
    ends.driver.publish();
    let (head, _) = ends.take().unwrap();
    ends.give_back(head, u32::MAX);
    let used = Used {
        token: 1,
        length: u32::MAX,
    };
    assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
}

/// Chains that carry nothing back can be taken all at once.
#[test]
fn discarding_frees_every_used_slot() {
    let mut ends = Ends::with_chains(16, 2, EventMode::EventIdx);
    for used in [0, 1, 7, 8, 3] {
        assert_eq!(ends.driver.discard_used(), Ok(()));
        while ends.driver.free() > 0 {
            ends.add(&[readable(1, 2), readable(3, 4)], 0).unwrap();
        }
        ends.driver.publish();
        let mut heads: Vec<_> = std::iter::from_fn(|| Some(ends.take()?.0)).collect();
        heads.reverse();
        for &head in &heads[..used] {
            ends.give_back(head, 99);
        }
        assert_eq!(ends.driver.discard_used(), Ok(()));
        assert_eq!(usize::from(ends.driver.free()), used);
        for &head in &heads[used..] {
            ends.give_back(head, 0);
        }
    }
}

/// Slots that always hold the same buffer are taken and come back in any order,
/// each time with another length.
#[test]
fn a_prepared_slot_shows_its_own_buffer() {
    for shape in shapes() {
        let mut ends = Ends::shaped(8, shape);
        let buffer = |slot: u16, length| {
            let address = 0x10_0000 + 0x800 * u64::from(slot);
            Buffer::new(address, length, false)
        };
        let driver = &mut ends.driver;
        driver.prepare(|head| buffer(head.descriptor(), 0));
        assert_eq!(driver.free(), 8);
        assert!(!driver.has_unpublished());
        for round in 1..40 {
            let mut expected = Vec::new();
            while let Some(head) = ends.driver.next_head() {
                let slot = head.descriptor();
                let buffer = buffer(slot, 100 * round + u32::from(slot));
                // SAFETY: the device of this test does not look behind the
                // address, and the slot never holds another buffer.
                unsafe { ends.driver.add_prepared(head, buffer, slot) };
                expected.push(buffer);
            }
            ends.driver.publish();
            let mut heads: Vec<_> = expected
                .iter()
                .map(|buffer| expect_chain(&mut ends, &[*buffer]))
                .collect();
            heads.rotate_left(round as usize % 8);
            heads.swap(1, 6);
            for head in heads {
                ends.give_back(head, 0);
            }
            assert_eq!(ends.driver.discard_used(), Ok(()));
            assert_eq!(ends.driver.free(), 8);
        }
    }
}

#[test]
fn publish_shows_everything_that_was_added_and_only_that() {
    let mut ends = Ends::new(8, EventMode::EventIdx);
    for batch in [1u16, 3, 2, 8, 5] {
        for token in 0..batch {
            ends.add(&[readable(0x1000 + u64::from(token), 1)], token)
                .unwrap();
        }
        ends.driver.publish();
        for token in 0..batch {
            let head = expect_chain(&mut ends, &[readable(0x1000 + u64::from(token), 1)]);
            ends.give_back(head, 0);
        }
        assert!(ends.take().is_none());
        for token in 0..batch {
            let used = Used { token, length: 0 };
            assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
        }
    }
    assert_eq!(ends.driver.avail_idx(), 19);
    assert_eq!(ends.driver.last_used_idx(), 19);
    assert_eq!(ends.driver.used_idx(), 19);
}

/// One thing that a driver or a device does.
#[derive(Clone, Debug)]
enum Step {
    Add {
        length: u16,
        writable: u16,
    },
    Publish,
    /// The device uses one of the chains it has, any of them.
    Use {
        which: prop::sample::Index,
        length: prop::sample::Index,
    },
    Pop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..=5u16, 0..=5u16).prop_map(|(length, writable)| Step::Add {
            length,
            writable: writable.min(length),
        }),
        2 => Just(Step::Publish),
        4 => any::<(prop::sample::Index, prop::sample::Index)>()
            .prop_map(|(which, length)| Step::Use { which, length }),
        3 => Just(Step::Pop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Chains of any length and direction, used in any order, come back with
    /// their own token and length. The slot that the driver announces is the
    /// one that the device gets, and nobody else has it.
    #[test]
    fn chains_come_back_whatever_the_order(
        capacity in 1..=128u16,
        slot_shift in 0..4u32,
        shape in prop::sample::select(chain_shapes(1)),
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let capacity = match shape.layout {
            RingLayout::Split => capacity.next_power_of_two(),
            RingLayout::Packed => capacity,
        };
        let most = 1u16 << slot_shift;
        let shape = RingShape { chain: most, ..shape };
        let size = capacity * most;
        let mut ends = Ends::shaped(size, shape);
        // With a table of its own each chain takes one descriptor.
        let indirect = shape.indirect && most > 1;
        let (capacity, stride) = if indirect { (size, 1) } else { (capacity, most) };
        let mut unpublished: Vec<(u16, u16, Vec<Buffer>)> = Vec::new();
        let mut at_device: Vec<(u16, u16, u32)> = Vec::new();
        let mut used = VecDeque::new();
        let mut taken = BTreeSet::new();
        let mut token = 0u16;
        for step in steps {
            match step {
                Step::Add { length, writable } => {
                    token = token.wrapping_mul(3).wrapping_add(1);
                    let chain = buffers(length, writable, u64::from(token));
                    let head = ends.driver.next_head();
                    prop_assert_eq!(head.is_some(), taken.len() < usize::from(capacity));
                    let result = ends.add(&chain, token);
                    match head {
                        None => {
                            prop_assert_eq!(result, Err(QueueError::Full { queue: 7, capacity }));
                        }
                        Some(_) if length > most => {
                            let (length, most) = (length.into(), most.into());
                            let error = QueueError::ChainLength { queue: 7, length, most };
                            prop_assert_eq!(result, Err(error));
                        }
                        Some(head) => {
                            prop_assert_eq!(result, Ok(()));
                            let head = head.descriptor();
                            prop_assert!(head % stride == 0 && head / stride < capacity);
                            prop_assert!(taken.insert(head), "slot {} was taken", head);
                            unpublished.push((token, head, chain));
                        }
                    }
                }
                Step::Publish => {
                    ends.driver.publish();
                    for (token, head, chain) in unpublished.drain(..) {
                        prop_assert_eq!(expect_chain(&mut ends, &chain), head);
                        at_device.push((token, head, writable_bytes(&chain)));
                    }
                    prop_assert!(ends.take().is_none());
                }
                Step::Use { which, length } => {
                    if !at_device.is_empty() {
                        let index = which.index(at_device.len());
                        let (token, head, writable) = at_device.swap_remove(index);
                        let length = length.index(writable as usize + 1) as u32;
                        ends.give_back(head, length);
                        used.push_back((Used { token, length }, head));
                    }
                }
                Step::Pop => {
                    let popped = ends.driver.pop_used();
                    if let Some((expected, head)) = used.pop_front() {
                        prop_assert_eq!(popped, Ok(Some(expected)));
                        taken.remove(&head);
                    } else {
                        prop_assert_eq!(popped, Ok(None));
                    }
                }
            }
            let outstanding = taken.len() as u16;
            prop_assert_eq!(ends.driver.outstanding(), outstanding);
            prop_assert_eq!(ends.driver.free(), capacity - outstanding);
            prop_assert_eq!(ends.driver.has_used(), !used.is_empty());
        }
    }
}
