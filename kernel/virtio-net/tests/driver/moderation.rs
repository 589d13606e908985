//! How many frames are slept for.

use virtio_net::moderation::Moderation;

/// A guest that sleeps `every` microseconds for the last time at the
/// returned one, when `frames` came before each.
fn leave(every: u64, frames: u64) -> u16 {
    let mut moderation = Moderation::default();
    let mut leave = 0;
    for turn in 1..100 {
        leave = moderation.frames_to_leave(turn * every, turn * frames);
        moderation.sleep();
        assert!(!moderation.has_received(turn * frames));
        assert!(moderation.has_received(turn * frames + 1));
    }
    leave
}

#[test]
fn a_lone_frame_is_never_left() {
    // One request at a time, the fastest with a round trip of 13 us.
    for every in [13, 50, 100, 1000, 1_000_000] {
        assert_eq!(leave(every, 1), 0, "{every} us");
    }
}

#[test]
fn a_stream_is() {
    // 16 frames every 100 us.
    assert!((16..32).contains(&leave(100, 16)));
    // Each handled before the next one came.
    assert!(leave(9, 1) > 0);
    // Each there when the one before was handled: without sleep.
    let mut moderation = Moderation::default();
    let leaves = (1..20).map(|turn| moderation.frames_to_leave(turn * 3, turn));
    assert!(leaves.max() > Some(8));
    // As fast as it gets.
    assert_eq!(leave(10, 1000), 32);
}

#[test]
fn no_more_than_come_in_time() {
    // 4 frames every 250 us: the timer would always end the sleep.
    assert!(leave(250, 4) < 4);
    // A burst after a long time.
    assert_eq!(leave(1_000_000, 32), 0);
}

#[test]
fn silence_ends_a_stream() {
    let mut moderation = Moderation::default();
    for turn in 1..100 {
        moderation.frames_to_leave(turn * 100, turn * 16);
        moderation.sleep();
    }
    assert_eq!(moderation.frames_to_leave(1_000_000, 99 * 16), 0);
    // Not even after a clock or a counter that went back.
    assert_eq!(moderation.frames_to_leave(0, 0), 0);
}
