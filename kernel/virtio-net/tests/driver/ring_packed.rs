//! What is particular to a packed ring, and a device that lies on one: nothing
//! panics, no token comes back that is not outstanding, and a ring that was
//! lied to says why, once and for ever.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use virtio_net::queue::packed::Layout;
use virtio_net::queue::{BrokenReason, EventMode, QueueError, RingShape, Used};
use vm_memory::{Bytes, GuestAddress};

use crate::support::memory;
use crate::support::ring::{Ends, readable, writable};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

const DISABLE: u16 = 1;
const DESC: u16 = 2;

/// In an event structure: the wrap counter.
const WRAP: u16 = 1 << 15;

#[test]
fn the_parts_do_not_overlap() {
    for size in [1, 2, 3, 255, 256, 32767, 32768] {
        let Layout {
            driver,
            device,
            total,
        } = Layout::new(size);
        assert!(driver >= 16 * usize::from(size) && driver % 4 == 0);
        assert!(device >= driver + 4 && device % 4 == 0);
        assert_eq!(total, device + 4);
        let ends = Ends::shaped(size, RingShape::packed(1, EventMode::Flags));
        let start = ends.driver.descriptor_area();
        assert_eq!(ends.driver.driver_area(), start + driver as u64);
        assert_eq!(ends.driver.device_area(), start + device as u64);
    }
}

/// Specification 2.8.1 and 2.8.6: the marks of the first lap and the second,
/// and of a chain that goes over the end of the ring.
#[test]
fn descriptors_are_marked_with_the_laps_wrap_counter() {
    let mut ends = Ends::shaped(8, RingShape::packed(2, EventMode::Flags));
    let chain = [readable(0x1000, 10), writable(0x2000, 20)];
    let marks = |wrap: bool| if wrap { AVAIL } else { USED };
    let mut position = 0u16;
    let mut wrap = true;
    // Chains of 2, 1, 2, 2, 1, ..: some begin at the last descriptor.
    for length in [2, 1, 2, 2, 2, 1, 2, 2, 2, 2, 1, 1, 2, 2] {
        let buffers = &chain[2 - length..];
        ends.add(buffers, 5).unwrap();
        ends.driver.publish();
        for (index, buffer) in buffers.iter().enumerate() {
            let raw = ends.packed().raw(position);
            assert_eq!((raw.address, raw.length), (buffer.address, buffer.length));
            let mut flags = marks(wrap);
            if index + 1 < length {
                flags |= NEXT;
            }
            if buffer.writable {
                flags |= WRITE;
            }
            assert_eq!(raw.flags, flags, "descriptor {position}, wrap {wrap}");
            position += 1;
            if position == 8 {
                (position, wrap) = (0, !wrap);
            }
        }
        let (id, _) = ends.take().unwrap();
        ends.give_back(id, 20);
        let used = Used {
            token: 5,
            length: 20,
        };
        assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
        let expected = u32::from(position | if wrap { WRAP } else { 0 }) << 16 | 7;
        assert_eq!(ends.driver.notification_data(), expected);
        assert_eq!(ends.packed().next_avail(), (expected >> 16) as u16);
    }
}

/// However many chains are added, the device sees none of them before they
/// are published, though all but the first descriptor are marked already.
#[test]
fn the_first_descriptors_mark_is_written_last() {
    let mut ends = Ends::shaped(8, RingShape::packed(2, EventMode::Flags));
    for _ in 0..20 {
        let first = (ends.driver.notification_data() >> 16) as u16 & !WRAP;
        let before = ends.packed().raw(first).flags;
        for token in 0..3 {
            ends.add(&[readable(1, 1), readable(2, 2)], token).unwrap();
        }
        assert_eq!(ends.packed().raw(first).flags, before);
        assert!(!ends.packed().has_available());
        let second = ends.packed().raw((first + 1) % 8).flags;
        assert_ne!(second & AVAIL != 0, second & USED != 0);
        ends.driver.publish();
        for token in 0..3 {
            let (id, pieces) = ends.take().unwrap();
            assert_eq!(pieces.len(), 2);
            ends.give_back(id, 0);
            assert_eq!(ends.driver.pop_used(), Ok(Some(Used { token, length: 0 })));
        }
    }
}

/// Specification 2.8.19: a table has the INDIRECT flag alone, and only WRITE
/// counts within it.
#[test]
fn a_chain_of_several_buffers_goes_into_a_table() {
    let shape = RingShape {
        indirect: true,
        ..RingShape::packed(4, EventMode::Flags)
    };
    let mut ends = Ends::shaped(5, shape);
    for round in 0..12u64 {
        let chain = [
            readable(0x1000 * round, 1),
            readable(0x2000, 2),
            writable(0x3000, 30),
        ];
        let position = (ends.driver.notification_data() >> 16) as u16 & !WRAP;
        ends.add(&chain, 3).unwrap();
        ends.add(&chain[..1], 4).unwrap();
        assert_eq!(ends.driver.free(), 3);
        ends.driver.publish();
        let raw = ends.packed().raw(position);
        assert_eq!(raw.flags & (NEXT | WRITE | INDIRECT), INDIRECT);
        assert_eq!(raw.length, 3 * 16);
        assert!(memory::is_allocated(raw.address, 64));
        let raw = ends.packed().raw((position + 1) % 5);
        assert_eq!(raw.flags & (NEXT | WRITE | INDIRECT), 0);
        for (token, count, length) in [(3, 3, 30), (4, 1, 0)] {
            let (id, pieces) = ends.take().unwrap();
            assert_eq!(pieces.len(), count);
            ends.give_back(id, 30);
            let used = Used { token, length };
            assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
        }
    }
}

/// The driver's wishes, as the structure has them (specification 2.8.10).
#[test]
fn the_driver_event_structure_follows() {
    for mode in [EventMode::Flags, EventMode::EventIdx] {
        let mut ends = Ends::shaped(3, RingShape::packed(1, mode));
        assert_eq!(ends.packed().driver_event().1, DISABLE, "a new ring");
        for round in 0..9u16 {
            assert!(!ends.driver.enable_interrupts_after(0));
            let (position, wrap) = (round % 3, round / 3 % 2 == 0);
            let expected = match mode {
                EventMode::Flags => (0, 0),
                EventMode::EventIdx => (position | if wrap { WRAP } else { 0 }, DESC),
            };
            assert_eq!(ends.packed().driver_event(), expected);
            ends.driver.disable_interrupts();
            assert_eq!(ends.packed().driver_event().1, DISABLE);
            ends.add(&[readable(1, 1)], 0).unwrap();
            ends.driver.publish();
            let (id, _) = ends.take().unwrap();
            ends.give_back(id, 0);
            ends.driver.discard_used().unwrap();
        }
    }
}

/// What a device may write as its event, in any lap, and what it may not.
#[test]
fn a_kick_is_decided_over_the_wrap_as_the_definition_says() {
    for (size, event_idx) in [(1u16, true), (2, true), (5, true), (8, true), (5, false)] {
        let mode = if event_idx {
            EventMode::EventIdx
        } else {
            EventMode::Flags
        };
        let mut ends = Ends::shaped(size, RingShape::packed(1, mode));
        let word = |position: u16| {
            let wrap = (position / size).is_multiple_of(2);
            (position % size) | if wrap { WRAP } else { 0 }
        };
        let mut position = 0u16;
        for round in 0..400u16 {
            let count = 1 + round % size;
            // Any position of these two laps, or a word that is none.
            let event = word(round.wrapping_mul(7) % (2 * size));
            let flags = round / 3 % 3;
            ends.packed().set_device_event(event, flags);
            for _ in 0..count {
                ends.add(&[readable(1, 1)], 0).unwrap();
            }
            let wanted = match flags {
                DISABLE => false,
                // Named, or none of the places that are left in the ring.
                DESC if event_idx => {
                    let first = position + size;
                    let last = position + 2 * size + count;
                    (first..last).any(|position| word(position) == event)
                }
                // Enabled; or by event, which was not agreed on.
                _ => true,
            };
            assert_eq!(ends.driver.publish(), wanted, "round {round} of {size}");
            position = (position + count) % (2 * size);
            for _ in 0..count {
                let (id, _) = ends.take().unwrap();
                ends.give_back(id, 0);
            }
            ends.driver.discard_used().unwrap();
        }
    }
}

/// QEMU's device as it is after `virtio_net_tx_complete`: it asked for a kick
/// where it stood, went on, and sleeps. It must be woken all the same, whether
/// what it used was taken back or not; while it has not moved, one kick is
/// enough.
#[test]
fn a_device_that_left_its_wish_behind_is_kicked() {
    for taken_back in [false, true] {
        let mut ends = Ends::shaped(16, RingShape::packed(1, EventMode::EventIdx));
        for round in 0..100 {
            ends.packed().enable_notification();
            ends.add(&[readable(1, 1)], 0).unwrap();
            assert!(ends.driver.publish(), "asked for and wanted");
            ends.add(&[readable(1, 1)], 0).unwrap();
            assert!(!ends.driver.publish(), "the device knows");
            for _ in 0..2 {
                let (id, _) = ends.take().unwrap();
                ends.give_back(id, 0);
            }
            if taken_back {
                ends.driver.discard_used().unwrap();
            }
            for _ in 0..1 + round % 5 {
                ends.add(&[readable(1, 1)], 0).unwrap();
            }
            assert!(ends.driver.publish(), "round {round}: it sleeps");
            // Awake, it says that it wants no kicks.
            ends.packed().disable_notification();
            ends.add(&[readable(1, 1)], 0).unwrap();
            assert!(!ends.driver.publish());
            while let Some((id, _)) = ends.take() {
                ends.give_back(id, 0);
            }
            ends.driver.discard_used().unwrap();
        }
    }
}

/// The same, but it went a whole lap on, and is given as much of the next one
/// at once: the place where it asked lies nearly two laps back, which is just
/// ahead.
#[test]
fn a_device_that_left_its_wish_a_lap_behind_is_kicked() {
    const SIZE: u16 = 16;
    for used in 1..=SIZE {
        for added in 1..=SIZE {
            for start in 0..2 * SIZE {
                let mut ends = Ends::shaped(SIZE, RingShape::packed(1, EventMode::EventIdx));
                for _ in 0..start {
                    ends.add(&[readable(1, 1)], 0).unwrap();
                    ends.driver.publish();
                    let (id, _) = ends.take().unwrap();
                    ends.give_back(id, 0);
                    ends.driver.discard_used().unwrap();
                }
                ends.packed().enable_notification();
                for _ in 0..used {
                    ends.add(&[readable(1, 1)], 0).unwrap();
                }
                assert!(ends.driver.publish(), "asked for and wanted");
                while let Some((id, _)) = ends.take() {
                    ends.give_back(id, 0);
                }
                ends.driver.discard_used().unwrap();
                for _ in 0..added {
                    ends.add(&[readable(1, 1)], 0).unwrap();
                }
                assert!(
                    ends.driver.publish(),
                    "at {start} it used {used} and was given {added}: it sleeps"
                );
            }
        }
    }
}

/// A ring with chains of these lengths at the device; the n-th has token
/// 100 + n.
fn ends_with(chains: &[u16]) -> (Ends, Vec<u16>) {
    let mut ends = Ends::shaped(32, RingShape::packed(4, EventMode::Flags));
    for (token, &length) in (100..).zip(chains) {
        let buffers: Vec<_> = (0..length)
            .map(|index| writable(0x1000 * u64::from(index), 10))
            .collect();
        ends.add(&buffers, token).unwrap();
    }
    ends.driver.publish();
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
        // Writable bytes and ring descriptors of every outstanding token.
        let mut outstanding: BTreeMap<u16, (u32, u16)> = BTreeMap::new();
        let mut broken = None;
        let mut token = 0u16;
        // Where the driver looks: position and lap.
        let mut next = 0u64;
        for step in steps {
            match step {
                Step::Add(length) => {
                    token += 1;
                    let buffers = vec![writable(0x1000, 16); usize::from(length)];
                    match ends.add(&buffers, token) {
                        Ok(()) => {
                            prop_assert_eq!(broken, None);
                            let descriptors = if indirect { 1 } else { length };
                            outstanding.insert(token, (16 * u32::from(length), descriptors));
                        }
                        Err(QueueError::Full { .. } | QueueError::ChainLength { .. }) => prop_assert_eq!(broken, None),
                        Err(error) => prop_assert_eq!(Some(error), broken),
                    }
                }
                Step::Publish => {
                    ends.driver.publish();
                }
                Step::Pop => match ends.driver.pop_used() {
                    Ok(Some(used)) => {
                        prop_assert_eq!(broken, None);
                        let known = outstanding.remove(&used.token);
                        prop_assert!(known.is_some(), "token {} is not outstanding", used.token);
                        let (writable, descriptors) = known.unwrap();
                        prop_assert!(used.length <= writable);
                        next += u64::from(descriptors);
                    }
                    Ok(None) => prop_assert_eq!(broken, None),
                    Err(error) => {
                        prop_assert!(broken.is_none() || broken == Some(error));
                        broken = Some(error);
                    }
                },
                Step::Discard => {
                    let before = ends.driver.outstanding();
                    let result = ends.driver.discard_used();
                    prop_assert!(ends.driver.outstanding() <= before);
                    if let Err(error) = result {
                        prop_assert!(broken.is_none() || broken == Some(error));
                        broken = Some(error);
                    } else {
                        prop_assert_eq!(broken, None);
                    }
                    // Which ones went cannot be known but by their slots.
                    if ends.driver.outstanding() != before {
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
            if broken.is_none() {
                let free = usize::from(ends.driver.capacity()) - outstanding.len();
                prop_assert_eq!(usize::from(ends.driver.free()), free);
            }
            prop_assert_eq!(usize::from(ends.driver.outstanding()), outstanding.len());
            prop_assert_eq!(
                ends.driver.broken().map(|reason| QueueError::Broken { queue: 7, reason }),
                broken
            );
        }
    }
}
