//! A device that lies on the ring of frames, in either layout: nothing panics, no slot
//! comes back that is not outstanding, and a ring that was lied to says why, once and
//! for ever.

use proptest::prelude::*;
use virtio_net::queue::{
    BrokenReason, EventMode, QueueError, QueueRing, RingLayout, RingShape, UsedSlot, packed, split,
};
use vm_memory::{Bytes, GuestAddress};

use crate::ring_positional::{CAPACITY, Ends, LENGTH, QUEUE, in_order_shapes};
use crate::support::memory::guest_memory;
use crate::support::packed::{AVAIL, USED};
use crate::support::ring::shapes;

/// What a device may not say, and what the driver says of it; ever after nothing
/// can be added or taken.
#[test]
fn lies_break_the_ring() {
    let out_of_range = [8, 9, 0x7fff, 0x8000, 0xffff, 0x1_0000, 0x1_0001, u32::MAX];
    let out_of_range = out_of_range.map(|id| (id, BrokenReason::IdOutOfRange { id, size: 8 }));
    // Never added, and used already.
    let not_outstanding = [4, 5, 6, 7, 0].map(|id| {
        let reason = BrokenReason::IdNotOutstanding { id };
        (id.into(), reason)
    });
    for shape in shapes().into_iter().chain(in_order_shapes()) {
        for (id, reason) in out_of_range.into_iter().chain(not_outstanding) {
            if shape.layout == RingLayout::Packed && id > 0xffff {
                continue;
            }
            // As it is read, and as it is reclaimed.
            for writable in [true, false] {
                let mut ends = Ends::new(8, 8, shape, writable);
                (0..4).for_each(|_| ends.add(100));
                ends.driver.publish();
                ends.expect(0, 100);
                ends.give_back(0, 1);
                ends.write_used(1, id, 1);
                ends.write_used_idx(2);
                if writable {
                    let used = UsedSlot { slot: 0, length: 1 };
                    assert_eq!(ends.pop_run(8, 1), [used]);
                    assert_eq!(ends.pop_run(8, 0), []);
                    assert_eq!(ends.driver.pop_used(), broken(reason));
                } else {
                    assert_eq!(ends.driver.reclaim(), broken(reason));
                }
                assert_eq!(ends.driver.broken(), Some(reason));
                assert_eq!(ends.driver.last_used_idx(), 1, "the first was in order");
                assert_stays_broken(&mut ends, reason);
            }
        }
        for length in [LENGTH + 1, 0x1_0000, u32::MAX] {
            let mut ends = Ends::new(8, 8, shape, true);
            ends.driver.refill();
            ends.driver.publish();
            ends.expect(0, LENGTH);
            ends.give_back(0, length);
            let reason = BrokenReason::LengthTooLong {
                id: 0,
                length,
                writable: LENGTH,
            };
            for shortest in [0, 1, LENGTH, LENGTH + 1, u32::MAX] {
                assert_eq!(ends.pop_run(8, shortest), []);
            }
            assert_eq!(ends.driver.pop_used(), broken(reason));
            assert_stays_broken(&mut ends, reason);
        }
    }
}

/// What every operation says of a ring that is broken for this reason.
fn broken<T>(reason: BrokenReason) -> Result<T, QueueError> {
    let queue = QUEUE;
    Err(QueueError::Broken { queue, reason })
}

fn assert_stays_broken(ends: &mut Ends, reason: BrokenReason) {
    assert_eq!(ends.driver.pop_used(), broken(reason));
    assert_eq!(ends.driver.reclaim(), broken(reason));
    assert_eq!(ends.driver.next_slot(), None);
    assert_eq!(ends.driver.free(), 0);
    ends.driver.refill();
    assert_eq!(ends.driver.next_slot(), None);
    // Whatever the device writes then.
    for pattern in [0, 1, 0xff, 0x80] {
        let start = GuestAddress(ends.driver.areas()[0]);
        let bytes = vec![pattern; total(ends)];
        guest_memory().write_slice(&bytes, start).unwrap();
        assert_eq!(ends.driver.pop_used(), broken(reason));
        assert_eq!(ends.driver.reclaim(), broken(reason));
        ends.driver.disable_interrupts();
        ends.driver.enable_interrupts_after(0);
        ends.driver.enable_interrupts_after(3);
        ends.driver.used_idx();
        ends.driver.has_used();
    }
}

/// Too far, or back: after two of five, with a third used and two not published,
/// which the device cannot have used.
#[test]
fn an_index_that_jumps_breaks_the_ring() {
    for used_idx in [4, 5, 8, 0x7fff, 0x8000, 0xfffe, 0xffff, 0, 1] {
        let mut ends = Ends::new(8, 8, RingShape::split(1, EventMode::Flags), false);
        (0..3).for_each(|_| ends.add(100));
        ends.driver.publish();
        (0..2).for_each(|_| ends.add(100));
        for slot in 0..2 {
            ends.expect(slot, 100);
            ends.give_back(slot, 0);
            assert!(ends.driver.pop_used().unwrap().is_some());
        }
        ends.write_used_idx(used_idx);
        let reason = BrokenReason::UsedIndex {
            used_idx,
            last_used_idx: 2,
            outstanding: 1,
        };
        assert_eq!(ends.driver.reclaim(), broken(reason));
        assert_stays_broken(&mut ends, reason);
    }
}

/// A packed ring has no index that could run ahead: what was not published is not
/// looked at. Without this a driver that posts every buffer again as it comes back
/// could be kept busy for ever, within one poll.
#[test]
fn only_what_was_published_can_have_been_used() {
    for mode in [EventMode::Flags, EventMode::EventIdx] {
        let mut ends = Ends::new(8, 8, RingShape::packed(1, mode), true);
        ends.add(LENGTH);
        ends.driver.publish();
        ends.add(LENGTH);
        ends.expect(0, LENGTH);
        ends.give_back(0, 3);
        ends.write_used(1, 1, 3);
        assert_eq!(ends.driver.used_idx(), 1);
        let used = UsedSlot { slot: 0, length: 3 };
        assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
        assert_eq!(ends.driver.pop_used(), Ok(None));
        assert_eq!(ends.driver.reclaim(), Ok(()));
        assert!(!ends.driver.has_used());
        assert_eq!(ends.driver.outstanding(), 1);
    }
}

/// Every descriptor says that it was used, in both laps: a driver that asks how far
/// the device is gets an answer within the ring.
#[test]
fn a_ring_that_is_used_all_over_is_counted_to_its_end() {
    for flags in [0, AVAIL | USED] {
        let mut ends = Ends::new(8, 8, RingShape::packed(1, EventMode::EventIdx), true);
        ends.driver.refill();
        ends.driver.publish();
        for index in 0..8u64 {
            let at = GuestAddress(ends.driver.areas()[0] + 16 * index + 12);
            guest_memory().write_obj([7u16.to_le(), flags], at).unwrap();
        }
        assert!(ends.driver.used_idx() <= 8);
        ends.driver.enable_interrupts_after(7);
        if ends.driver.has_used() {
            assert!(ends.driver.pop_used().unwrap().is_some());
            let reason = BrokenReason::IdNotOutstanding { id: 7 };
            assert_eq!(ends.driver.pop_used(), broken(reason));
            assert_stays_broken(&mut ends, reason);
        }
    }
}

/// Descriptors and the available ring are the driver's: it never reads them, so what
/// the device writes there changes nothing of what comes back.
#[test]
fn scribbling_over_the_drivers_parts_changes_nothing() {
    for shape in shapes() {
        for pattern in [0x00, 0xff, 0x55] {
            let mut ends = Ends::new(8, 8, shape, true);
            for round in 0..100u16 {
                ends.driver.refill();
                ends.driver.publish();
                let start = ends.driver.areas()[0];
                let next = round % 8;
                if ends.is_packed() {
                    // Address, length and id of each.
                    for index in 0..8u64 {
                        let at = GuestAddress(start + 16 * index);
                        guest_memory().write_slice(&[pattern; 14], at).unwrap();
                    }
                } else {
                    let bytes = vec![pattern; split::Layout::new(8).used];
                    guest_memory()
                        .write_slice(&bytes, GuestAddress(start))
                        .unwrap();
                }
                lie(&mut ends, round, next.into(), 77);
                ends.write_used_idx(round + 1);
                let used = UsedSlot {
                    slot: next,
                    length: 77,
                };
                assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
            }
        }
    }
}

#[test]
fn a_batch_that_goes_too_far_breaks_the_ring() {
    for shape in in_order_shapes() {
        let mut ends = Ends::new(8, 8, shape, true);
        (0..4).for_each(|_| ends.add(LENGTH));
        ends.driver.publish();
        let first = UsedSlot {
            slot: 0,
            length: LENGTH,
        };
        // In the split layout the index says how many are used.
        let (last, reason) = if ends.is_packed() {
            (4, BrokenReason::IdNotOutstanding { id: 4 })
        } else {
            (3, BrokenReason::NotInOrder { id: 3 })
        };
        ends.write_used(0, last, 7);
        ends.write_used_idx(2);
        assert_ne!(ends.driver.pop_used(), Ok(Some(first)));
        assert_stays_broken(&mut ends, reason);
    }
}

/// Bytes of a ring's memory.
fn total(ends: &Ends) -> usize {
    let size = ends.driver.size();
    match ends.shape.layout {
        RingLayout::Split => split::Layout::new(size).total,
        RingLayout::Packed => packed::Layout::new(size).total,
    }
}

/// Writes the used entry of this count, where the device is not asked where it is.
fn lie(ends: &mut Ends, count: u16, id: u32, length: u32) {
    if !ends.is_packed() {
        return ends.write_used(count, id, length);
    }
    let size = ends.driver.size();
    let marks = if (count / size).is_multiple_of(2) {
        AVAIL | USED
    } else {
        0
    };
    let at = ends.driver.areas()[0] + 16 * u64::from(count % size) + 8;
    let words = [length as u16, (length >> 16) as u16, id as u16, marks];
    guest_memory()
        .write_obj(words.map(u16::to_le), GuestAddress(at))
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a device writes, no slot comes back that is not outstanding, no
    /// length is longer than the buffer, and nothing panics.
    #[test]
    fn no_lie_gives_a_slot_back_twice(
        shape in prop::sample::select(
            shapes().into_iter().chain(in_order_shapes()).collect::<Vec<_>>()
        ),
        steps in prop::collection::vec((0..=5u16, 0..=4u8, 0..=10u32, 0..=2 * LENGTH, 0..=9u16), 1..100),
        scribbles in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..64)),
            1..10,
        ),
    ) {
        let mut scribbles = scribbles.iter().cycle();
        let mut ends = Ends::new(8, 8, shape, true);
        let mut outstanding = Vec::new();
        for (add, lies, id, length, index) in steps {
            for _ in 0..add {
                let Some(slot) = ends.driver.next_slot() else { break };
                prop_assert!(!outstanding.contains(&slot));
                ends.driver.add(CAPACITY);
                outstanding.push(slot);
            }
            if ends.driver.has_unpublished() {
                ends.driver.publish();
            }
            let last = ends.driver.last_used_idx();
            match lies {
                // As it should; the device of these tests would refuse to go on from
                // where this one is.
                0 => {
                    if let Some(&slot) = outstanding.get(usize::from(index)) {
                        lie(&mut ends, last, slot.into(), length.min(LENGTH));
                        ends.write_used_idx(last.wrapping_add(1));
                    }
                }
                1 => {
                    lie(&mut ends, last.wrapping_add(index), id, length);
                    ends.write_used_idx(last.wrapping_add(index));
                }
                // Random bytes anywhere in the ring's memory.
                2 => {
                    if let Some((at, bytes)) = scribbles.next() {
                        let at = at.index(total(&ends));
                        let bytes = &bytes[..bytes.len().min(total(&ends) - at)];
                        let at = GuestAddress(ends.driver.areas()[0] + at as u64);
                        guest_memory().write_slice(bytes, at).unwrap();
                    }
                }
                _ => (),
            }
            let _ = ends.driver.used_idx();
            let _ = ends.driver.all_used();
            ends.driver.disable_interrupts();
            let _ = ends.driver.enable_interrupts_after(0);
            while let Ok(Some(used)) = ends.driver.pop_used() {
                let place = outstanding.iter().position(|&slot| slot == used.slot);
                prop_assert!(place.is_some(), "{:?} is not outstanding", used);
                prop_assert!(used.length <= LENGTH);
                outstanding.remove(place.unwrap_or_default());
            }
            if ends.driver.broken().is_some() {
                prop_assert!(ends.driver.pop_used().is_err());
                prop_assert_eq!(ends.driver.next_slot(), None);
                break;
            }
        }
    }
}
