//! Who must be told: the decision, against its definition.

use std::hint::black_box;

use kickpath_virtio_net::queue::need_event;

/// The definition: of the entries that were added, is one the event?
fn is_among(event: u16, new: u16, old: u16) -> bool {
    let mut entry = old;
    while entry != new {
        if entry == event {
            return true;
        }
        entry = entry.wrapping_add(1);
    }
    false
}

/// Indices where something could go wrong: the wraps of 16 bits, signed
/// and unsigned.
fn corners() -> impl Iterator<Item = u16> {
    [0u16, 0x4000, 0x7fff, 0x8000, 0xfffe]
        .into_iter()
        .flat_map(|corner| (0..4).map(move |offset| corner.wrapping_sub(1).wrapping_add(offset)))
}

/// Every window of up to 40 entries at every corner, every event near it.
#[test]
fn small_windows_agree_with_the_walk() {
    for old in corners() {
        for count in 0..40 {
            let new = old.wrapping_add(count);
            for near in 0..=count + 4 {
                let event = old.wrapping_sub(2).wrapping_add(near);
                assert_eq!(
                    need_event(event, new, old),
                    is_among(event, new, old),
                    "event {event:#x}, new {new:#x}, old {old:#x}"
                );
            }
        }
    }
}

/// Every event against windows of every order of magnitude, from every
/// corner; the walk marks the events that are in the window.
#[test]
fn every_event_agrees_with_the_walk() {
    for old in corners() {
        for count in [0, 1, 2, 255, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff] {
            let new = old.wrapping_add(count);
            let mut among = [false; 1 << 16];
            let mut entry = old;
            while entry != new {
                among[usize::from(entry)] = true;
                entry = entry.wrapping_add(1);
            }
            for event in 0..=u16::MAX {
                assert_eq!(
                    need_event(event, new, old),
                    among[usize::from(event)],
                    "event {event:#x}, new {new:#x}, old {old:#x}"
                );
            }
        }
    }
}

/// Only distances count: moving all three indices changes nothing, so
/// that the sweeps from one `old` below speak for every other.
#[test]
fn moving_all_three_changes_nothing() {
    for shift in 0..=u16::MAX {
        for (event, new) in [
            (0u16, 0u16),
            (0, 1),
            (1, 1),
            (5, 6),
            (6, 6),
            (9, 0x8000),
            (0xffff, 0xffff),
        ] {
            assert_eq!(
                need_event(event.wrapping_add(shift), new.wrapping_add(shift), shift),
                need_event(event, new, 0),
                "event {event:#x}, new {new:#x}, moved by {shift:#x}"
            );
        }
    }
}

/// From `old` = 0 no entry of the window wraps, so the walk meets just
/// the events below `new`. Here every `new` with the events around it and
/// every 251st other.
#[test]
fn every_new_agrees_from_zero() {
    for new in 0..=u16::MAX {
        let around = (0..8).map(|near| new.wrapping_sub(4).wrapping_add(near));
        for event in around.chain((0..=u16::MAX).step_by(251)) {
            assert!(
                need_event(event, new, 0) == (event < new),
                "event {event:#x}, new {new:#x}"
            );
        }
    }
}

/// The same for all 2^32 pairs: seconds, where it is optimised.
#[test]
#[cfg_attr(debug_assertions, ignore = "not optimised: see .ci/run")]
fn every_pair_agrees_from_zero() {
    for new in 0..=u16::MAX {
        for event in 0..=u16::MAX {
            assert!(
                need_event(black_box(event), new, 0) == (event < new),
                "event {event:#x}, new {new:#x}"
            );
        }
    }
}
