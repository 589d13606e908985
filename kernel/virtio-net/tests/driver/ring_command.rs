//! The ring of commands: what the device sees of a chain, and the way back. One at a
//! time, so all of it is known: where it lies, and what comes back.

use proptest::prelude::*;
use virtio_net::queue::{
    Buffer, CommandRing, EventMode, QueueError, QueueRing, RingLayout, RingShape,
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
fn sizes_that_no_split_queue_has_are_refused() {
    let shape = |chain| RingShape::split(chain, EventMode::Flags);
    let new = |size, chain| CommandRing::<GuestHal>::new(3, size, shape(chain)).err();
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
    for (size, chain) in [(1, 2), (4, 5), (8, 9), (0x8000, 0x8001), (2, u16::MAX)] {
        assert_eq!(new(size, chain), bad_size(size));
    }
    assert_eq!(memory::pages_in_use(), 0);
}

#[test]
fn sizes_that_no_packed_queue_has_are_refused() {
    let layout = RingLayout::Packed;
    let shape = |chain| RingShape::packed(chain, EventMode::Flags);
    let new = |size, chain| CommandRing::<GuestHal>::new(3, size, shape(chain)).err();
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
    for (size, chain) in [(1, 2), (3, 4), (7, 8)] {
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
        CommandRing::<GuestHal>::new(3, size, shape)
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

/// [`chain_shapes`], and the same with `VIRTIO_F_IN_ORDER`.
fn all_shapes(chain: u16) -> impl Iterator<Item = RingShape> {
    chain_shapes(chain)
        .into_iter()
        .flat_map(|shape| [false, true].map(|in_order| RingShape { in_order, ..shape }))
}

#[test]
fn without_memory_there_is_no_ring() {
    let new = |shape| CommandRing::<GuestHal>::new(5, 256, shape).err();
    let split = RingShape::split(300, EventMode::EventIdx);
    let no_memory = |pages| Some(QueueError::NoMemory { queue: 5, pages });
    faults::plan(&[0]);
    let shape = RingShape { chain: 1, ..split };
    assert_eq!(new(shape), no_memory(3));
    // The table, and behind it the ring.
    let shape = RingShape {
        chain: 256,
        indirect: true,
        ..split
    };
    faults::plan(&[0]);
    assert_eq!(new(shape), no_memory(1));
    faults::plan(&[1]);
    assert_eq!(new(shape), no_memory(3));
    assert_eq!(faults::take_strikes().len(), 1);
    assert_eq!(memory::pages_in_use(), 0);
}

/// Takes a chain over the ring, round and round: it begins where the one before
/// ended, whatever was negotiated, as `VIRTIO_F_IN_ORDER` wants it.
struct Round {
    ends: Ends,
    shape: RingShape,
    /// Where the next chain begins.
    next: u32,
    chains: u16,
}

impl Round {
    fn new(size: u16, shape: RingShape) -> Self {
        Self {
            ends: Ends::shaped(size, shape),
            shape,
            next: 0,
            chains: 0,
        }
    }

    /// A chain goes there and comes back with `length` bytes written.
    fn carry(&mut self, chain: &[Buffer], length: u32) {
        let ends = &mut self.ends;
        let full = Err(QueueError::Full {
            queue: 7,
            capacity: 1,
        });
        assert_eq!((ends.driver.free(), ends.driver.published()), (1, 0));
        ends.add(chain).unwrap();
        assert_eq!((ends.driver.free(), ends.driver.published()), (0, 0));
        assert_eq!(ends.add(chain), full);
        assert!(ends.take().is_none(), "seen before it was published");
        assert_eq!(ends.driver.pop_used(), Ok(None));
        assert!(ends.driver.has_unpublished());
        ends.driver.publish();
        assert!(!ends.driver.has_unpublished());
        assert_eq!(ends.add(chain), full);
        assert_eq!(ends.driver.published(), 1);
        assert_eq!(u32::from(expect_chain(ends, chain)), self.next);
        assert!(ends.take().is_none());
        assert!(!ends.driver.has_used());
        assert_eq!(ends.driver.pop_used(), Ok(None));
        ends.give_back(self.next as u16, length);
        assert!(ends.driver.has_used());
        assert_eq!(ends.driver.pop_used(), Ok(Some(length)));
        assert!(!ends.driver.has_used());
        assert_eq!(ends.driver.pop_used(), Ok(None));
        let in_table = self.shape.indirect && chain.len() > 1 && self.shape.chain > 1;
        let taken = if in_table { 1 } else { chain.len() as u32 };
        self.next = (self.next + taken) % u32::from(ends.driver.size());
        self.chains += 1;
        for count in [
            ends.driver.avail_idx(),
            ends.driver.used_idx(),
            ends.driver.last_used_idx(),
        ] {
            assert_eq!(count, self.chains);
        }
    }
}

/// Over two laps, or more of a short ring.
#[test]
fn every_size_carries_single_buffers_around_its_ring() {
    for shape in shapes() {
        for size in sizes_of(shape.layout) {
            let mut round = Round::new(size, shape);
            let chains = if size < 10 {
                100
            } else {
                2 * u32::from(size) + 3
            };
            for chain in 0..chains.min(3000) {
                round.carry(&[writable(0x2000 * u64::from(chain), 100)], chain % 101);
            }
        }
    }
}

/// Chains of one to four buffers, which go over the end of a ring without a table.
#[test]
fn chains_follow_each_other_over_the_rings_end() {
    for shape in all_shapes(4) {
        for size in sizes_of(shape.layout).filter(|size| (4..=100).contains(size)) {
            let mut round = Round::new(size, shape);
            for count in 0..5 * size {
                let length = 1 + count * 7 % 4;
                let chain = buffers(length, count % (length + 1), count.into());
                let written = writable_bytes(&chain);
                round.carry(&chain, written - u32::from(written > 3 && count % 3 == 0));
            }
        }
    }
}

#[test]
fn a_chain_can_be_as_long_as_the_ring() {
    for layout in [RingLayout::Split, RingLayout::Packed] {
        for size in sizes_of(layout) {
            for shape in chain_shapes(size) {
                if shape.layout != layout {
                    continue;
                }
                let mut round = Round::new(size, shape);
                // In the middle, from the second on.
                for written in [0, 1, size / 2, size] {
                    let chain = buffers(size, written, written.into());
                    round.carry(&chain, writable_bytes(&chain));
                    round.carry(&[readable(1, 1)], 0);
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let sizes = [(1, 0), (1, 1), (2, 1), (2, 2), (8, 1), (8, 3), (8, 4)];
    for (size, chain) in sizes {
        for shape in chain_shapes(chain) {
            let mut round = Round::new(size, shape);
            let most = usize::from(chain.max(1));
            for token in 0..20 {
                for length in [0, most + 1, 0x1_0000, 0x1_0001] {
                    let error = QueueError::ChainLength {
                        queue: 7,
                        length,
                        most,
                    };
                    let chain = vec![readable(9, 9); length];
                    assert_eq!(round.ends.add(&chain), Err(error));
                }
                assert!(!round.ends.driver.has_unpublished());
                round.carry(&buffers(most as u16, 0, token), 0);
            }
        }
    }
}

/// Nothing was added, so nothing is shown, whatever is said to the device.
#[test]
fn an_empty_publish_shows_nothing() {
    for shape in all_shapes(2) {
        let mut round = Round::new(4, shape);
        for _ in 0..20 {
            assert!(!round.ends.driver.publish());
            assert!(round.ends.take().is_none());
            round.carry(&[readable(1, 1), writable(2, 2)], 2);
        }
    }
}

/// A chain of readable buffers has nothing that could be written, so what the
/// device says of its length is not believed (specification 2.7.8.1).
#[test]
fn the_length_of_a_readable_chain_is_not_believed() {
    for shape in all_shapes(2) {
        let mut ends = Ends::shaped(4, shape);
        for length in [0, 1, 10, u32::MAX] {
            ends.add(&[readable(0x1000, 10), readable(0x2000, 10)])
                .unwrap();
            ends.driver.publish();
            let (head, _) = ends.take().unwrap();
            ends.give_back(head, length);
            assert_eq!(ends.driver.pop_used(), Ok(Some(0)));
        }
    }
}

/// Specification 2.7.5.2 allows 2^32 bytes a chain; the sum saturates.
#[test]
fn the_writable_bytes_of_a_chain_do_not_overflow() {
    for shape in all_shapes(2) {
        let mut ends = Ends::shaped(4, shape);
        ends.add(&[writable(0, u32::MAX), writable(0, u32::MAX)])
            .unwrap();
        ends.driver.publish();
        ends.lie(0, u32::MAX);
        assert_eq!(ends.driver.pop_used(), Ok(Some(u32::MAX)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Chains of any length and direction, in a ring of any size.
    #[test]
    fn chains_come_back(
        size in 1..=128u16,
        most in 1..=8u16,
        shape in prop::sample::select(all_shapes(1).collect::<Vec<_>>()),
        chains in prop::collection::vec((1..=8u16, 0..=8u16, any::<prop::sample::Index>()), 1..200),
    ) {
        let size = match shape.layout {
            RingLayout::Split => size.next_power_of_two(),
            RingLayout::Packed => size,
        };
        let most = most.min(size);
        let mut round = Round::new(size, RingShape { chain: most, ..shape });
        for (number, (length, writable, written)) in (0..).zip(chains) {
            let length = length.min(most);
            let chain = buffers(length, writable.min(length), number);
            round.carry(&chain, written.index(writable_bytes(&chain) as usize + 1) as u32);
        }
    }
}
