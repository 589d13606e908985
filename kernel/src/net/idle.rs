//! How a loop sleeps that has nothing to do.

use core::ops::RangeInclusive;

use kickpath_services::Stack;
use kickpath_trace::{Event, NO_QUEUE, tracepoint_unless_repeated};
use smoltcp::time::Instant;
use virtio_net::moderation::Moderation;
use x86_64::instructions::interrupts as interrupts_at_cpu;

use crate::arch::{self, time};

/// Without interrupts, how long the loop looks for work before it sleeps, in
/// microseconds.
const POLL_SPIN_US: u64 = 200;
/// Without interrupts, how long it then sleeps, in microseconds: an eighth of
/// the time since there was work, within these bounds. Who talks waits for
/// little, and a guest that nobody talks to costs little.
const POLL_SLEEP_US: RangeInclusive<u64> = 1_000..=10_000;

/// The time as the network stacks count it.
pub fn now() -> Instant {
    Instant::from_micros(i64::try_from(time::now()).unwrap_or(i64::MAX))
}

/// Until when, in microseconds since boot, a loop without interrupts may sleep
/// if it last had work at `last_work`; `None` while it is better not to.
pub fn poll_sleep_until(now: u64, last_work: u64) -> Option<u64> {
    let idle = now.saturating_sub(last_work);
    let sleep = (idle / 8).clamp(*POLL_SLEEP_US.start(), *POLL_SLEEP_US.end());
    (idle >= POLL_SPIN_US).then(|| now.saturating_add(sleep))
}

/// When the network stack has something to do at the latest, in microseconds
/// since boot; `None` if it is for others to begin.
pub fn deadline(stack: &Stack) -> Option<u64> {
    let at = stack.poll_at()?;
    Some(u64::try_from(at.total_micros()).unwrap_or(0))
}

/// Sleeps until `deadline`, in microseconds since boot, or until `is_called`: it is
/// asked before each sleep, with interrupts off, and has the device interrupt.
/// If the device was to let frames lie (`frames_left`), an interrupt alone does
/// not end the sleep, else any does. Returns whether there was a sleep.
pub fn sleep(
    moderation: &mut Moderation,
    now: u64,
    deadline: u64,
    frames_left: u16,
    mut is_called: impl FnMut() -> bool,
) -> bool {
    interrupts_at_cpu::disable();
    let mut now = now;
    let mut has_slept = false;
    loop {
        // From here an interrupt waits until the CPU sleeps, and wakes it.
        if is_called() || deadline <= now {
            break;
        }
        tracepoint_unless_repeated!(Event::Idle, NO_QUEUE);
        moderation.sleep();
        arch::idle_until((deadline != u64::MAX).then_some(deadline));
        has_slept = true;
        if frames_left == 0 {
            break;
        }
        // The timer may have been set to an earlier time. What else there is to
        // do can wait until the deadline, which is near.
        now = time::now();
    }
    interrupts_at_cpu::enable();
    has_slept
}
