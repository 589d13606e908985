//! The loop of a core, which drives its queue pair and its network stack.

use kickpath_abi::status::Status;
use kickpath_services::Stack;
use smoltcp::time::Instant;
use virtio_net::interrupt::InterruptState;
use virtio_net::moderation::{HOLD_US, Moderation};
use virtio_net::vectors::Rung;

use super::device::NetDevice;
use super::idle::{self, now};
use super::report::Pair;
use super::watch::Watch;
use crate::arch::time;

/// A core's part of the device, and what the core does beside serving it.
pub trait Part {
    /// Begins a turn: looks after the device. Returns whether the core still has
    /// its part; if not, the loop ends.
    fn begin(&mut self, stack: &mut Stack) -> bool;

    /// The part, for the network stack.
    fn device(&mut self) -> NetDevice<'_>;

    /// The pair; `None` while the device is stopped.
    fn pair(&mut self) -> Option<&mut Pair>;

    /// What the handlers of its interrupts tell.
    fn interrupts(&self) -> &'static InterruptState;

    /// Looks, now and then, whether the device is still there; one core does.
    fn look_for_device(&mut self) {}

    /// Whether the link is up, as far as the core knew at [`Self::begin`].
    fn is_link_up(&self) -> bool;

    /// Tells other cores what this one has learnt, and hears them. That is before
    /// the answers leave: the next packet may come to another core, which must
    /// know by then whom it is from.
    fn talk(&mut self, time: Instant, stack: &mut Stack);

    /// Sends what the stack has written.
    #[inline]
    fn kick(&mut self) {
        if let Some(pair) = self.pair() {
            pair.kick();
        }
    }

    /// The report as of now, without the network stack's part.
    fn status(&mut self) -> Status;

    /// Whether the device has something for the core.
    #[inline]
    fn has_work(&mut self) -> bool {
        self.pair().is_some_and(|pair| pair.has_work())
    }

    #[inline]
    fn received(&mut self) -> u64 {
        self.pair().map_or(0, |pair| pair.received())
    }

    /// How the core hears of the device; `None` while that is stopped.
    fn rung(&self) -> Option<Rung>;

    /// When the core has something to do beside the stack's work, in microseconds
    /// since boot, at the latest; `u64::MAX` for never.
    fn deadline(&self) -> u64 {
        u64::MAX
    }

    /// Tells what the core has counted, before it sleeps.
    fn publish(&self);

    /// Whether the core must not sleep; else the device will interrupt, after so
    /// many frames as may lie (see `QueuePair::enable_interrupts_after`).
    fn is_called(&mut self, frames_to_leave: u16) -> bool;
}

/// Serves the network while the core has its part.
pub fn serve<P: Part>(part: &mut P, stack: &mut Stack) {
    let mut moderation = Moderation::default();
    let mut watch = Watch::default();
    let mut last_work = time::now();
    while part.begin(stack) {
        let time = now();
        let (link_up, interrupts) = (part.is_link_up(), part.interrupts());
        if watch.look(time, part.pair(), || interrupts.interrupts(), link_up) {
            part.look_for_device();
        }
        if !part.is_link_up() && !part.has_work() {
            // Nothing can go out and nothing comes. The clocks of the sockets
            // stand still, so that none gives up.
            part.kick();
            part.talk(time, stack);
            sleep(part, (&mut moderation, &mut watch), None, last_work);
            continue;
        }
        let busy = stack.poll(time, &mut part.device());
        if stack.wants_status() {
            stack.set_status(part.status());
        }
        part.talk(time, stack);
        part.kick();
        if busy || moderation.has_received(part.received()) {
            last_work = time::now();
        }
        if !busy {
            let deadline = idle::deadline(stack);
            sleep(part, (&mut moderation, &mut watch), deadline, last_work);
        }
    }
}

/// Sleeps until there may be something to do: an interrupt, or `deadline` in
/// microseconds since boot.
fn sleep<P: Part>(
    part: &mut P,
    (moderation, watch): (&mut Moderation, &mut Watch),
    deadline: Option<u64>,
    last_work: u64,
) {
    let now = time::now();
    let leave = moderation.frames_to_leave(now, part.received());
    let mut deadline = part.deadline().min(deadline.unwrap_or(u64::MAX));
    match part.rung() {
        Some(Rung::Polling) => match idle::poll_sleep_until(now, last_work) {
            Some(until) => deadline = deadline.min(until),
            None => {
                core::hint::spin_loop();
                return;
            }
        },
        Some(_) if leave > 0 => deadline = deadline.min(now + HOLD_US),
        _ => deadline = deadline.min(watch.at),
    }
    part.publish();
    let interrupts = part.interrupts().interrupts();
    let slept = idle::sleep(moderation, now, deadline, leave, || part.is_called(leave));
    if slept && leave == 0 && part.rung() != Some(Rung::Polling) {
        watch.slept(interrupts);
    }
}
