//! When the watchdog looks at a core's queue pair, and what the core can tell it.

use smoltcp::time::Instant;
use virtio_net::net::watchdog::LOOK_US;

use super::report::Pair;

#[derive(Default)]
pub struct Watch {
    /// When it is due, in microseconds since boot; the core must be awake then.
    pub at: u64,
    /// Interrupts for the core's pair when it went to the sleep that it comes from.
    asleep_since: Option<u64>,
}

impl Watch {
    /// The core has slept until an interrupt of its pair came, or for some other
    /// reason; there were so many `interrupts` before.
    pub fn slept(&mut self, interrupts: u64) {
        self.asleep_since = Some(interrupts);
    }

    /// Looks, if it is time to, and returns whether it was. While the link is down,
    /// frames need not move.
    #[inline]
    pub fn look(
        &mut self,
        time: Instant,
        pair: Option<&mut Pair>,
        interrupts: impl FnOnce() -> u64,
        link_up: bool,
    ) -> bool {
        let asleep_since = self.asleep_since.take();
        let now = time.total_micros().unsigned_abs();
        if now < self.at {
            return false;
        }
        self.at = now + LOOK_US;
        if let (true, Some(pair)) = (link_up, pair) {
            pair.watch(asleep_since, interrupts());
        }
        true
    }
}
