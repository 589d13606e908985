//! What is particular to a packed ring: its marks, laps and event structures.

use virtio_net::queue::packed::Layout;
use virtio_net::queue::{CommandRing, EventMode, PositionalRing, QueueRing, RingShape};

use crate::support::memory::{self, GuestHal};
use crate::support::packed::{AVAIL, DESC, DISABLE, INDIRECT, NEXT, USED, WRITE};
use crate::support::ring::{Areas, Carrier, Ends, readable, writable};

type Commands = CommandRing<GuestHal>;
type Frames = PositionalRing<GuestHal>;

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
        let ends = Ends::<Commands>::shaped(size, RingShape::packed(1, EventMode::Flags));
        let start = ends.driver.descriptor_area();
        assert_eq!(ends.driver.driver_area(), start + driver as u64);
        assert_eq!(ends.driver.device_area(), start + device as u64);
    }
}

/// Specification 2.8.1 and 2.8.6: the marks of the first lap and the second,
/// and of a chain that goes over the end of the ring.
#[test]
fn descriptors_are_marked_with_the_laps_wrap_counter() {
    let mut ends = Ends::<Commands>::shaped(8, RingShape::packed(2, EventMode::Flags));
    let chain = [readable(0x1000, 10), writable(0x2000, 20)];
    let marks = |wrap: bool| if wrap { AVAIL } else { USED };
    let mut position = 0u16;
    let mut wrap = true;
    // Chains of 2, 1, 2, 2, 1, ..: some begin at the last descriptor.
    for length in [2, 1, 2, 2, 2, 1, 2, 2, 2, 2, 1, 1, 2, 2] {
        let buffers = &chain[2 - length..];
        ends.add(buffers).unwrap();
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
        assert_eq!(ends.driver.pop_used(), Ok(Some(20)));
        let expected = u32::from(position | if wrap { WRAP } else { 0 }) << 16 | 7;
        assert_eq!(ends.driver.notification_data(), expected);
        assert_eq!(ends.packed().next_avail(), (expected >> 16) as u16);
    }
}

/// However many descriptors are added, the device sees none of them before they
/// are published, though all but the first are marked already.
#[test]
fn the_first_descriptors_mark_is_written_last() {
    fn run<R: Carrier>(mut ends: Ends<R>, chains: u16, add: impl Fn(&mut Ends<R>)) {
        for _ in 0..20 {
            let first = ends.driver.next_avail() & !WRAP;
            let before = ends.packed().raw(first).flags;
            add(&mut ends);
            assert_eq!(ends.packed().raw(first).flags, before);
            assert!(!ends.packed().has_available());
            let second = ends.packed().raw((first + 1) % 8).flags;
            assert_ne!(second & AVAIL != 0, second & USED != 0);
            ends.driver.publish();
            for _ in 0..chains {
                let (id, pieces) = ends.take().unwrap();
                assert_eq!(pieces.len(), 3 / usize::from(chains));
                ends.give_back(id, 0);
                assert_eq!(ends.driver.pop_one(), Ok(Some(0)));
            }
            assert!(!ends.packed().has_available());
        }
    }
    let shape = RingShape::packed(3, EventMode::Flags);
    run::<Commands>(Ends::shaped(8, shape), 1, |ends| {
        ends.add(&[readable(1, 1), readable(2, 2), readable(3, 3)])
            .unwrap();
    });
    let shape = RingShape::packed(1, EventMode::Flags);
    run::<Frames>(Ends::shaped(8, shape), 3, |ends| {
        (0..3).for_each(|_| ends.driver.add_one().unwrap());
    });
}

/// Specification 2.8.19: a table has the INDIRECT flag alone, and only WRITE
/// counts within it.
#[test]
fn a_chain_of_several_buffers_goes_into_a_table() {
    let shape = RingShape {
        indirect: true,
        ..RingShape::packed(4, EventMode::Flags)
    };
    let mut ends = Ends::<Commands>::shaped(5, shape);
    let table = memory::pages_in_use();
    for round in 0..12u64 {
        let chain = [
            readable(0x1000 * round, 1),
            readable(0x2000, 2),
            writable(0x3000, 30),
        ];
        for (count, length) in [(3, 30), (1, 0)] {
            let position = ends.driver.next_avail() & !WRAP;
            ends.add(&chain[..count]).unwrap();
            ends.driver.publish();
            let raw = ends.packed().raw(position);
            let flags = raw.flags & (NEXT | WRITE | INDIRECT);
            if count > 1 {
                assert_eq!((flags, raw.length), (INDIRECT, 3 * 16));
                assert!(memory::is_allocated(raw.address, 64));
            } else {
                assert_eq!(flags, 0);
            }
            let (id, pieces) = ends.take().unwrap();
            assert_eq!(pieces.len(), count);
            ends.give_back(id, 30);
            assert_eq!(ends.driver.pop_used(), Ok(Some(length)));
        }
    }
    assert_eq!(memory::pages_in_use(), table, "allocated once");
}

/// The driver's wishes, as the structure has them (specification 2.8.10).
#[test]
fn the_driver_event_structure_follows() {
    for mode in [EventMode::Flags, EventMode::EventIdx] {
        let mut ends = Ends::<Commands>::shaped(3, RingShape::packed(1, mode));
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
            ends.publish(1);
            ends.use_all();
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
        // A chain's descriptors are shown at once.
        let mut ends = Ends::<Commands>::shaped(size, RingShape::packed(size, mode));
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
            ends.add(&vec![readable(1, 1); count.into()]).unwrap();
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
            ends.use_all();
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
        let shape = RingShape::packed(1, EventMode::EventIdx);
        let mut ends = Ends::<Frames>::shaped(16, shape);
        for round in 0..100 {
            ends.packed().enable_notification();
            assert!(ends.publish(1), "asked for and wanted");
            assert!(!ends.publish(1), "the device knows");
            for _ in 0..2 {
                let (id, _) = ends.take().unwrap();
                ends.give_back(id, 0);
                if taken_back {
                    assert_eq!(ends.driver.pop_one(), Ok(Some(0)));
                }
            }
            assert!(ends.publish(1 + round % 5), "round {round}: it sleeps");
            // Awake, it says that it wants no kicks.
            ends.packed().disable_notification();
            assert!(!ends.publish(1));
            ends.use_all();
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
                let shape = RingShape::packed(1, EventMode::EventIdx);
                let mut ends = Ends::<Frames>::shaped(SIZE, shape);
                for _ in 0..start {
                    ends.publish(1);
                    ends.use_all();
                }
                ends.packed().enable_notification();
                assert!(ends.publish(used), "asked for and wanted");
                ends.use_all();
                assert!(
                    ends.publish(added),
                    "at {start} it used {used} and was given {added}: it sleeps"
                );
            }
        }
    }
}

/// The same of commands: it went on by one or many, and sleeps.
#[test]
fn a_device_that_left_its_wish_behind_a_command_is_kicked() {
    for size in [5, 16] {
        for behind in 1..=2 * size {
            let shape = RingShape::packed(size, EventMode::EventIdx);
            let mut ends = Ends::<Commands>::shaped(size, shape);
            ends.packed().enable_notification();
            for _ in 0..behind.div_ceil(size) {
                let length = usize::from(behind.min(size));
                ends.add(&vec![readable(1, 1); length]).unwrap();
                ends.driver.publish();
                ends.use_all();
            }
            ends.add(&[readable(1, 1)]).unwrap();
            assert!(ends.driver.publish(), "{behind} behind in {size}");
        }
    }
}
