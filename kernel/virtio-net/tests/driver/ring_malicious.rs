//! A device that lies on a split ring: nothing panics, no token comes back that is not
//! outstanding, and a ring that was lied to says why, once and for ever.

use std::collections::VecDeque;

use proptest::prelude::*;
use virtio_net::queue::split::Layout;
use virtio_net::queue::{BrokenReason, EventMode, QueueError, Used};
use vm_memory::{Bytes, GuestAddress};

use crate::support::book::Book;
use crate::support::memory;
use crate::support::ring::{DeviceEnd, Ends, readable, writable};

/// Offset of the index in the used ring.
const USED_IDX: u64 = 2;

/// A ring of eight slots of four descriptors, with chains of these lengths at
/// the device. The n-th chain has token 100 + n and head 4 n.
fn ends_with(chains: &[u16]) -> Ends {
    let mut ends = Ends::with_chains(32, 4, EventMode::Flags);
    ends.add_chains(chains);
    while ends.take().is_some() {}
    ends
}

/// The ring is broken for this reason, and stays so whatever happens.
fn assert_broken(ends: &mut Ends, reason: BrokenReason) {
    let broken = QueueError::Broken { queue: 7, reason };
    assert_eq!(ends.driver.pop_used(), Err(broken));
    for used_idx in [0, 1, ends.driver.last_used_idx(), 0xffff] {
        ends.scribble_used_u16(USED_IDX, used_idx);
        assert_eq!(ends.driver.pop_used(), Err(broken));
        assert_eq!(ends.driver.broken(), Some(reason));
        assert_eq!(ends.add(&[readable(0, 1)], 1), Err(broken));
        ends.driver.disable_interrupts();
        ends.driver.enable_interrupts_after(0);
        ends.driver.publish();
    }
}

#[test]
fn an_id_out_of_range() {
    for id in [32, 33, 0x7fff, 0xffff, 0x1_0000, 0x1_0001, u32::MAX] {
        let mut ends = ends_with(&[1, 1]);
        ends.scribble_used_element(0, id, 0);
        ends.scribble_used_u16(USED_IDX, 1);
        assert_broken(&mut ends, BrokenReason::IdOutOfRange { id, size: 32 });
    }
}

#[test]
fn an_id_that_is_not_outstanding() {
    // The slots 0 and 1 are taken.
    for id in 8..32 {
        let mut ends = ends_with(&[1, 1]);
        ends.scribble_used_element(0, id, 0);
        ends.scribble_used_u16(USED_IDX, 1);
        assert_broken(&mut ends, BrokenReason::IdNotOutstanding { id: id as u16 });
    }
}

#[test]
fn an_id_that_was_used_already() {
    let mut ends = ends_with(&[1, 1]);
    ends.give_back(0, 4);
    ends.give_back(0, 4);
    let first = Used {
        token: 100,
        length: 4,
    };
    assert_eq!(ends.driver.pop_used(), Ok(Some(first)));
    assert_broken(&mut ends, BrokenReason::IdNotOutstanding { id: 0 });
}

#[test]
fn an_id_inside_a_chain() {
    for id in [1, 2, 3, 5, 6, 7, 9, 11] {
        let mut ends = ends_with(&[3, 4, 1]);
        ends.give_back(id, 0);
        assert_broken(&mut ends, BrokenReason::IdNotOutstanding { id });
    }
}

#[test]
fn a_length_beyond_the_buffers() {
    for length in [31, 32, 0x1_0000, u32::MAX] {
        let mut ends = ends_with(&[3]);
        ends.give_back(0, length);
        assert_broken(
            &mut ends,
            BrokenReason::LengthTooLong {
                id: 0,
                length,
                writable: 30,
            },
        );
    }
    let mut ends = ends_with(&[3]);
    ends.give_back(0, 30);
    assert!(ends.driver.pop_used().unwrap().is_some());
}

#[test]
fn an_index_that_jumps() {
    for used_idx in [3, 4, 8, 9, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        let mut ends = ends_with(&[1, 1]);
        ends.scribble_used_u16(USED_IDX, used_idx);
        assert_broken(
            &mut ends,
            BrokenReason::UsedIndex {
                used_idx,
                last_used_idx: 0,
                outstanding: 2,
            },
        );
    }
}

#[test]
fn an_index_that_goes_back() {
    let mut ends = ends_with(&[1, 1, 1]);
    ends.give_back(4, 0);
    ends.give_back(0, 0);
    for token in [101, 100] {
        let used = Used { token, length: 0 };
        assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
    }
    ends.scribble_used_u16(USED_IDX, 1);
    assert_broken(
        &mut ends,
        BrokenReason::UsedIndex {
            used_idx: 1,
            last_used_idx: 2,
            outstanding: 1,
        },
    );
}

/// A device cannot have used what it was not shown. Without this a driver
/// that posts every buffer again as it comes back could be kept busy for
/// ever, within one poll.
#[test]
fn an_index_past_what_was_published() {
    let mut ends = ends_with(&[1]);
    ends.add(&[writable(0x5000, 10)], 101).unwrap();
    ends.give_back(0, 0);
    ends.scribble_used_u16(USED_IDX, 2);
    assert_broken(
        &mut ends,
        BrokenReason::UsedIndex {
            used_idx: 2,
            last_used_idx: 0,
            outstanding: 1,
        },
    );
}

/// The descriptor table and the available ring are the driver's: it never
/// reads them, so what the device writes there changes nothing.
#[test]
fn scribbling_over_the_drivers_parts_changes_nothing() {
    for pattern in [0x00, 0xff, 0x55] {
        let mut ends = ends_with(&[2, 3, 1]);
        let used_ring = Layout::new(32).used;
        let mut heads = VecDeque::from([0, 4, 8]);
        for round in 0..20u16 {
            ends.memory
                .write_slice(
                    &vec![pattern; used_ring],
                    GuestAddress(ends.driver.descriptor_area()),
                )
                .unwrap();
            let (token, length) = [(100, 20), (101, 30), (102, 10)][usize::from(round % 3)];
            ends.give_back(heads.pop_front().unwrap(), length);
            let used = Used { token, length };
            assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
            let buffers = vec![writable(0x9000, 10); length as usize / 10];
            heads.push_back(ends.driver.next_head().unwrap().descriptor());
            ends.add(&buffers, token).unwrap();
            ends.driver.publish();
        }
        assert_eq!(ends.driver.free(), 5);
    }
}

/// After the ring is dropped its memory is given back, broken or not.
#[test]
fn a_broken_ring_gives_its_memory_back() {
    let mut ends = ends_with(&[1]);
    ends.scribble_used_u16(USED_IDX, 9);
    assert!(ends.driver.pop_used().is_err());
    assert_ne!(memory::pages_in_use(), 0);
    drop(ends);
    assert_eq!(memory::pages_in_use(), 0);
}

/// Used chains that nobody looks at are checked all the same, but for their
/// length.
#[test]
fn discarding_notices_lies_too() {
    for (id, reason) in [
        (32, BrokenReason::IdOutOfRange { id: 32, size: 32 }),
        (12, BrokenReason::IdNotOutstanding { id: 12 }),
        (0, BrokenReason::IdNotOutstanding { id: 0 }),
        (5, BrokenReason::IdNotOutstanding { id: 5 }),
    ] {
        let mut ends = ends_with(&[1, 2, 3]);
        ends.give_back(0, u32::MAX);
        ends.scribble_used_element(1, id, 0);
        ends.scribble_used_u16(USED_IDX, 2);
        let broken = QueueError::Broken { queue: 7, reason };
        assert_eq!(ends.driver.discard_used(), Err(broken));
        assert_eq!(ends.driver.discard_used(), Err(broken));
        assert_eq!(ends.driver.last_used_idx(), 1, "the first was in order");
        assert_broken(&mut ends, reason);
    }
    let mut ends = ends_with(&[1, 2, 3]);
    ends.scribble_used_u16(USED_IDX, 4);
    let reason = BrokenReason::UsedIndex {
        used_idx: 4,
        last_used_idx: 0,
        outstanding: 3,
    };
    let broken = QueueError::Broken { queue: 7, reason };
    assert_eq!(ends.driver.discard_used(), Err(broken));
    assert_broken(&mut ends, reason);
}

/// What happens between two scribbles.
#[derive(Clone, Debug)]
enum Step {
    Add(u16),
    Publish,
    Pop,
    Discard,
    /// The device uses a chain as it should.
    Use,
    Mask,
    Arm(u16),
    /// The device writes random bytes anywhere in the ring's memory.
    Scribble(prop::sample::Index, Vec<u8>),
    /// The device writes a small number where the driver looks: the index,
    /// an id, a length.
    Aim {
        word: u64,
        value: u32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..=3u16).prop_map(Step::Add),
        3 => Just(Step::Publish),
        6 => Just(Step::Pop),
        1 => Just(Step::Discard),
        4 => Just(Step::Use),
        1 => Just(Step::Mask),
        1 => (0..70u16).prop_map(Step::Arm),
        1 => (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..64))
            .prop_map(|(at, bytes)| Step::Scribble(at, bytes)),
        3 => (0..20u64, 0..40u32).prop_map(|(word, value)| Step::Aim { word, value }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn random_bytes_never_give_a_wrong_token(
        shift in 0..5u32,
        event_idx: bool,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let size = 1u16 << shift;
        let mode = if event_idx { EventMode::EventIdx } else { EventMode::Flags };
        let mut ends = Ends::with_chains(size, size.min(2), mode);
        let layout = Layout::new(size);
        let mut book = Book::default();
        for step in steps {
            match step {
                Step::Add(buffers) => book.add(&mut ends, buffers)?,
                Step::Publish => {
                    ends.driver.publish();
                }
                Step::Pop => {
                    book.pop(&mut ends)?;
                }
                Step::Discard => {
                    if book.discard(&mut ends)? {
                        break;
                    }
                }
                Step::Use => {
                    use virtio_queue::QueueT;
                    // The device may find its own ring spoilt; then it does
                    // nothing.
                    let DeviceEnd::Split { queue, memory } = &mut ends.device else {
                        unreachable!("the ring is split");
                    };
                    if let Some(chain) = queue.pop_descriptor_chain(&*memory) {
                        let head = chain.head_index();
                        let _ = queue.add_used(memory, head, 16);
                    }
                }
                Step::Mask => ends.driver.disable_interrupts(),
                Step::Arm(more) => {
                    ends.driver.enable_interrupts_after(more);
                }
                Step::Scribble(at, bytes) => {
                    let at = at.index(layout.total);
                    let length = bytes.len().min(layout.total - at);
                    ends.memory
                        .write_slice(
                            &bytes[..length],
                            GuestAddress(ends.driver.descriptor_area() + at as u64),
                        )
                        .unwrap();
                }
                Step::Aim { word, value } => {
                    let address = ends.driver.device_area() + 4 * word;
                    // Word 0 holds flags and index.
                    let value = if word == 0 {
                        u32::from(ends.driver.last_used_idx().wrapping_add(value as u16 % 4)) << 16
                    } else {
                        value
                    };
                    ends.memory
                        .write_obj(value.to_le(), GuestAddress(address))
                        .unwrap();
                }
            }
            book.check(&ends)?;
        }
    }
}
