//! The experiments of `kickpath lab`, where the feature `faults` has them: which one
//! runs, and what of the driver it replaces. No kernel in use has the feature.

mod experiments;

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use crate::queue::SlotBuffers;
pub(crate) use experiments::{STEPS, Step};

/// Number of experiments.
const COUNT: u8 = 11;

/// Looks at most in a window that is held open: a tenth of a second or so.
const LOOKS: u32 = 4_000_000;

static RUNNING: AtomicU8 = AtomicU8::new(0);
static WRONG: AtomicBool = AtomicBool::new(false);
/// Used entries of the transmit queue that were read.
static ENTRIES: AtomicU32 = AtomicU32::new(0);

/// Begins an experiment: its number, 1 to 11, and `,right` behind it for the same
/// without what is wrong. Returns whether that was understood.
pub fn start(words: &str) -> bool {
    let (number, wrong) = match words.strip_suffix(",right") {
        Some(number) => (number, false),
        None => (words, true),
    };
    let number = number.parse().unwrap_or(0);
    RUNNING.store(number, Ordering::Relaxed);
    WRONG.store(wrong, Ordering::Relaxed);
    (1..=COUNT).contains(&number)
}

fn runs(number: u8) -> bool {
    RUNNING.load(Ordering::Relaxed) == number
}

fn is_wrong(number: u8) -> bool {
    runs(number) && WRONG.load(Ordering::Relaxed)
}

/// `right`, or what the experiment does.
fn or<T>(number: u8, right: T, wrong: impl FnOnce(&T) -> T) -> T {
    match is_wrong(number) {
        true => wrong(&right),
        false => right,
    }
}

/// Waits until it is over, or for long.
pub(crate) fn hold_open(mut is_over: impl FnMut() -> bool) {
    for _ in 0..LOOKS {
        if is_over() {
            return;
        }
    }
}

pub(crate) fn rings(queue: u16, wanted: bool) -> bool {
    match queue % 2 {
        1 => or(1, wanted, |&wanted| experiments::rings(wanted)),
        _ => wanted,
    }
}

pub(crate) fn number_to_write(queue: u16) -> u16 {
    or(2, queue, |&queue| experiments::number_to_write(queue))
}

pub(crate) fn steps_are_wrong() -> bool {
    is_wrong(3)
}

/// To have the second of two frames added while the device is busy with the first.
pub(crate) fn kicks_each_frame() -> bool {
    runs(4)
}

/// Holds the window open between two accesses of which the order matters, until the
/// device goes to sleep: what it says then is in `event`. Returns what was read too
/// early, if it was.
pub(crate) fn read_too_early(event: impl Fn() -> u16) -> Option<u16> {
    if !runs(4) {
        return None;
    }
    let early = event();
    hold_open(|| event() != early);
    // It looks once more before it sleeps.
    let mut looks = 0..LOOKS / 8;
    hold_open(|| looks.next().is_none());
    let is_early = experiments::ORDER[0] == experiments::Access::ReadEvent;
    (is_wrong(4) && is_early).then_some(early)
}

pub(crate) fn wanted(event: u16, new: u16, old: u16, wanted: bool) -> bool {
    let wanted = or(5, wanted, |_| experiments::need_event(event, new, old));
    or(6, wanted, |&wanted| experiments::obeys(wanted))
}

/// Holds the window open in which a frame comes that no interrupt will tell of.
pub(crate) fn before_interrupts(has_used: impl Fn() -> bool) {
    if runs(7) {
        hold_open(has_used);
    }
}

pub(crate) fn polls_again(used: bool) -> bool {
    or(7, used, |&used| experiments::polls_again(used))
}

pub(crate) fn keeps_used() -> bool {
    is_wrong(8) && !experiments::takes_back(true)
}

/// What is to be added to the header's length to have the descriptor's.
pub(crate) fn descriptor(buffers: &SlotBuffers, frame: u32) -> u32 {
    let header = buffers.header;
    if buffers.writable {
        return frame;
    }
    let length = or(9, header + frame, |_| {
        experiments::descriptor_length(header, frame)
    });
    let length = or(10, length, |_| {
        experiments::header_before_frame(header) + frame
    });
    length.saturating_sub(header)
}

/// Bytes of the header that the device does not get.
pub(crate) fn skipped(header: u32) -> u64 {
    let before = or(10, header, |_| experiments::header_before_frame(header));
    header.saturating_sub(before).into()
}

/// What a device says that lies once: the fourth used entry of the transmit queue
/// names the buffer behind its own.
pub(crate) fn used_id(queue: u16, id: u32) -> u32 {
    let lies = runs(11) && queue % 2 == 1 && ENTRIES.fetch_add(1, Ordering::Relaxed) == 3;
    id + u32::from(lies)
}

pub(crate) fn is_outstanding(outstanding: bool) -> bool {
    or(11, outstanding, |&outstanding| {
        experiments::believes(outstanding)
    })
}
