//! A device that lies on a packed ring: nothing panics, no token comes back
//! that is not outstanding, and a ring that was lied to says why, once and for
//! ever.

use std::collections::VecDeque;

use proptest::prelude::*;
use virtio_net::queue::packed::Layout;
use virtio_net::queue::{BrokenReason, EventMode, QueueError, RingShape, Used};
use vm_memory::{Bytes, GuestAddress};

use crate::support::book::Book;
use crate::support::memory;
use crate::support::packed::{AVAIL, USED};
use crate::support::ring::{Ends, readable, writable};

/// A ring with chains of these lengths at the device; the n-th has token
/// 100 + n.
fn ends_with(chains: &[u16]) -> (Ends, Vec<u16>) {
    let mut ends = Ends::shaped(32, RingShape::packed(4, EventMode::Flags));
    ends.add_chains(chains);
    let ids = std::iter::from_fn(|| Some(ends.take()?.0)).collect();
    (ends, ids)
}

/// The ring is broken for this reason, and stays so whatever happens.
fn assert_broken(ends: &mut Ends, reason: BrokenReason) {
    let broken = QueueError::Broken { queue: 7, reason };
    assert_eq!(ends.driver.pop_used(), Err(broken));
    let (start, length) = (ends.driver.descriptor_area(), Layout::new(32).total);
    for pattern in [0, 0xff, 0x80] {
        ends.memory
            .write_slice(&vec![pattern; length], GuestAddress(start))
            .unwrap();
        assert_eq!(ends.driver.pop_used(), Err(broken));
        assert_eq!(ends.driver.discard_used(), Err(broken));
        assert_eq!(ends.driver.broken(), Some(reason));
        assert_eq!(ends.add(&[readable(0, 1)], 1), Err(broken));
        ends.driver.disable_interrupts();
        ends.driver.enable_interrupts_after(0);
        ends.driver.enable_interrupts_after(3);
        ends.driver.publish();
        ends.driver.used_idx();
        ends.driver.has_used();
    }
}

#[test]
fn an_id_out_of_range() {
    for id in [32, 33, 0x7fff, 0x8000, 0xffff] {
        let (mut ends, _) = ends_with(&[1, 1]);
        ends.packed().write_used(id, 0);
        let id = u32::from(id);
        assert_broken(&mut ends, BrokenReason::IdOutOfRange { id, size: 32 });
    }
}

#[test]
fn an_id_that_is_not_outstanding() {
    for id in 0..32 {
        let (mut ends, ids) = ends_with(&[1, 3]);
        if !ids.contains(&id) {
            ends.packed().write_used(id, 0);
            assert_broken(&mut ends, BrokenReason::IdNotOutstanding { id });
        }
    }
}

#[test]
fn an_id_that_was_used_already() {
    let (mut ends, ids) = ends_with(&[2, 1]);
    ends.give_back(ids[0], 4);
    ends.packed().write_used(ids[0], 4);
    let first = Used {
        token: 100,
        length: 4,
    };
    assert_eq!(ends.driver.used_idx(), 2, "nobody looked closer yet");
    assert_eq!(ends.driver.pop_used(), Ok(Some(first)));
    assert_broken(&mut ends, BrokenReason::IdNotOutstanding { id: ids[0] });
}

#[test]
fn a_length_beyond_the_buffers() {
    for length in [31, 32, 0x1_0000, u32::MAX] {
        let (mut ends, ids) = ends_with(&[3]);
        let id = ids[0];
        ends.give_back(id, length);
        assert_broken(
            &mut ends,
            BrokenReason::LengthTooLong {
                id,
                length,
                writable: 30,
            },
        );
    }
    let (mut ends, ids) = ends_with(&[3]);
    ends.give_back(ids[0], 30);
    assert!(ends.driver.pop_used().unwrap().is_some());
}

/// A device cannot have used what it was not shown. Without this a driver
/// that posts every buffer again as it comes back could be kept busy for ever,
/// within one poll.
#[test]
fn only_what_was_published_can_have_been_used() {
    let (mut ends, ids) = ends_with(&[1]);
    let next = ends.driver.next_head().unwrap().descriptor();
    ends.add(&[writable(0x5000, 10)], 101).unwrap();
    ends.give_back(ids[0], 0);
    ends.packed().write_used(next, 0);
    assert!(ends.driver.pop_used().unwrap().is_some());
    assert_eq!(ends.driver.pop_used(), Ok(None));
    assert_eq!(ends.driver.discard_used(), Ok(()));
    assert!(!ends.driver.has_used());
    assert_eq!(ends.driver.outstanding(), 1);
}

/// Every descriptor says that it was used, in both laps: a driver that asks
/// how far the device is gets an answer within the ring.
#[test]
fn a_ring_that_is_used_all_over_is_counted_to_its_end() {
    for flags in [0, AVAIL | USED] {
        let (mut ends, ids) = ends_with(&[4, 4, 4, 4, 4, 4, 4, 4]);
        assert_eq!(ends.driver.free(), 0);
        for index in 0..32u64 {
            let at = GuestAddress(ends.driver.descriptor_area() + 16 * index + 12);
            ends.memory.write_obj([ids[7].to_le(), flags], at).unwrap();
        }
        assert!(ends.driver.used_idx() <= 8);
        ends.driver.enable_interrupts_after(7);
        if ends.driver.has_used() {
            assert!(ends.driver.pop_used().unwrap().is_some());
            assert_broken(&mut ends, BrokenReason::IdNotOutstanding { id: ids[7] });
        }
    }
}

/// Of a descriptor nothing but what the device has to say is read: what it
/// does to those that it did not use yet changes nothing.
#[test]
fn scribbling_over_what_waits_changes_nothing() {
    let (mut ends, _) = ends_with(&[]);
    let mut ids = VecDeque::new();
    let mut tokens = VecDeque::new();
    // Where the next used descriptor is.
    let mut position = 0;
    for round in 0..200u16 {
        let length = 1 + round % 4;
        ids.push_back(ends.driver.next_head().unwrap().descriptor());
        tokens.push_back((round, length));
        ends.add(&vec![writable(0x9000, 10); length.into()], round)
            .unwrap();
        ends.driver.publish();
        assert!(ends.take().is_some());
        if ids.len() < 5 {
            continue;
        }
        let (token, descriptors) = tokens.pop_front().unwrap();
        let length = 10 * u32::from(descriptors);
        ends.packed().give_back(ids.pop_front().unwrap(), length);
        // Address, length and id of every descriptor but the used one.
        for index in (0..32).filter(|&index| index != position) {
            let at = ends.driver.descriptor_area() + 16 * u64::from(index);
            ends.memory
                .write_slice(&[round as u8; 14], GuestAddress(at))
                .unwrap();
        }
        let used = Used { token, length };
        assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
        position = (position + descriptors) % 32;
    }
}

#[test]
fn a_broken_ring_gives_its_memory_back() {
    let shape = RingShape {
        indirect: true,
        ..RingShape::packed(4, EventMode::Flags)
    };
    let mut ends = Ends::shaped(32, shape);
    ends.add(&[readable(1, 1)], 1).unwrap();
    ends.driver.publish();
    ends.packed().write_used(77, 0);
    assert!(ends.driver.pop_used().is_err());
    assert_ne!(memory::pages_in_use(), 0);
    drop(ends);
    assert_eq!(memory::pages_in_use(), 0);
}

/// What happens between two scribbles.
#[derive(Clone, Debug)]
enum Step {
    Add(u16),
    Publish,
    Pop,
    Discard,
    Mask,
    Arm(u16),
    /// The device writes a used descriptor where the driver looks, with this
    /// id and length and the marks of this lap or another.
    Use {
        id: u16,
        length: u32,
        this_lap: bool,
    },
    /// The device writes random bytes anywhere in the ring's memory.
    Scribble(prop::sample::Index, Vec<u8>),
    /// The device writes its event structure.
    Wish(u16, u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..=3u16).prop_map(Step::Add),
        3 => Just(Step::Publish),
        6 => Just(Step::Pop),
        1 => Just(Step::Discard),
        1 => Just(Step::Mask),
        1 => (0..70u16).prop_map(Step::Arm),
        6 => (0..12u16, 0..40u32, prop::bool::weighted(0.9))
            .prop_map(|(id, length, this_lap)| Step::Use { id, length, this_lap }),
        1 => (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..64))
            .prop_map(|(at, bytes)| Step::Scribble(at, bytes)),
        1 => (any::<u16>(), 0..5u16).prop_map(|(word, flags)| Step::Wish(word, flags)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn random_bytes_never_give_a_wrong_token(
        size in 1..=12u16,
        event_idx: bool,
        indirect: bool,
        in_order: bool,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mode = if event_idx { EventMode::EventIdx } else { EventMode::Flags };
        let chain = size.min(2);
        let shape = RingShape { indirect, in_order, ..RingShape::packed(chain, mode) };
        let mut ends = Ends::shaped(size, shape);
        let layout = Layout::new(size);
        let mut book = Book::default();
        // Where the driver looks: position and lap.
        let mut next = 0u64;
        for step in steps {
            match step {
                Step::Add(buffers) => book.add(&mut ends, buffers)?,
                Step::Publish => {
                    ends.driver.publish();
                }
                Step::Pop => {
                    if let Some(buffers) = book.pop(&mut ends)? {
                        next += if indirect { 1 } else { u64::from(buffers) };
                    }
                }
                Step::Discard => {
                    if book.discard(&mut ends)? {
                        break;
                    }
                }
                Step::Mask => ends.driver.disable_interrupts(),
                Step::Arm(more) => {
                    ends.driver.enable_interrupts_after(more);
                }
                Step::Use { id, length, this_lap } => {
                    let size = u64::from(size);
                    let wrap = (next / size).is_multiple_of(2) == this_lap;
                    let marks = if wrap { AVAIL | USED } else { 0 };
                    let at = GuestAddress(ends.driver.descriptor_area() + 16 * (next % size) + 8);
                    let words = [length as u16, (length >> 16) as u16, id, marks];
                    ends.memory.write_obj(words.map(u16::to_le), at).unwrap();
                }
                Step::Scribble(at, bytes) => {
                    let at = at.index(layout.total);
                    let length = bytes.len().min(layout.total - at);
                    let start = GuestAddress(ends.driver.descriptor_area() + at as u64);
                    ends.memory.write_slice(&bytes[..length], start).unwrap();
                }
                Step::Wish(word, flags) => ends.packed().set_device_event(word, flags),
            }
            let count = ends.driver.used_idx().wrapping_sub(ends.driver.last_used_idx());
            prop_assert!(count <= ends.driver.outstanding());
            book.check(&ends)?;
        }
    }
}
