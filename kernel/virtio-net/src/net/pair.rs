//! A receive and a transmit queue that belong together (specification
//! 5.1.2): what one CPU works with.

extern crate alloc;

use alloc::boxed::Box;

use virtio_drivers::Hal;

use super::rx::RxQueue;
use super::tx::TxQueue;
use super::watchdog::{Verdict, Watchdog};
use crate::doorbell::{Doorbell, Notify};
use crate::queue::{BrokenReason, QueueError, QueueRing};

/// receiveqN and transmitqN. See the module.
pub struct QueuePair<H: Hal, N = Doorbell> {
    pub(super) rx: Box<RxQueue<H, N>>,
    pub(super) tx: Box<TxQueue<H, N>>,
    pub(super) watchdog: Watchdog,
}

impl<H: Hal, N: Notify> QueuePair<H, N> {
    /// Both queues, to receive and to send. They are apart so that a reply
    /// can be written while the request is still being read.
    #[inline]
    pub fn queues(&mut self) -> (&mut RxQueue<H, N>, &mut TxQueue<H, N>) {
        (&mut self.rx, &mut self.tx)
    }

    /// Tells the device of everything added to either queue, if it wants to
    /// know: the end of a poll.
    #[inline]
    pub fn kick(&mut self) {
        self.tx.kick();
        self.rx.kick();
    }

    /// Begins a poll (Linux `virtnet_poll`): interrupts are masked.
    ///
    /// # Errors
    ///
    /// [`QueueError::Broken`], when one of the two was found so.
    #[doc(alias = "virtnet_poll")]
    #[inline]
    pub fn begin_poll(&mut self) -> Result<(), QueueError> {
        self.rx.begin_poll()?;
        self.tx.begin_poll()
    }

    /// Ends a poll before the caller sleeps (Linux `virtqueue_napi_complete`):
    /// the device gets all free receive buffers, interrupts are asked for again, and
    /// the queues looked at once more.
    /// Returns whether the caller must poll again instead.
    #[doc(alias = "virtqueue_napi_complete")]
    #[must_use = "the caller must poll again, if so"]
    #[inline]
    pub fn enable_interrupts(&mut self) -> bool {
        self.enable_interrupts_after(0)
    }

    /// As [`Self::enable_interrupts`], but the device may leave that many
    /// received frames waiting before it interrupts. One without EVENT_IDX does
    /// not. The caller bounds the time that they wait: while fewer come, no
    /// interrupt does.
    #[must_use = "the caller must poll again, if so"]
    #[inline]
    pub fn enable_interrupts_after(&mut self, frames: u16) -> bool {
        let received = self.rx.enable_interrupts_after(frames);
        let room = self.tx.enable_interrupts();
        received || room
    }

    /// Looks whether the pair's work moves (Linux `dev_watchdog`), which is to be
    /// done every [`LOOK_US`], before a poll and while the link is up. `interrupts`
    /// is how many there were for this pair, and `asleep_since` how many when
    /// [`Self::enable_interrupts`] said that nothing was to be done, `None` where
    /// the caller has not slept since.
    ///
    /// Frames that do not move are notified again; a queue that does not move for
    /// ten looks breaks, as it does when four interrupts in a row did not come.
    ///
    /// [`LOOK_US`]: super::watchdog::LOOK_US
    #[cold]
    #[doc(alias = "dev_watchdog")]
    pub fn watch(&mut self, asleep_since: Option<u64>, interrupts: u64) {
        let Self { rx, tx, watchdog } = self;
        let before = tx.outstanding();
        tx.reclaim();
        let outstanding = tx.outstanding();
        let returned = tx.packets.wrapping_sub(outstanding.into());
        match watchdog.transmit(outstanding, returned) {
            Verdict::Fine => (),
            Verdict::Prod => {
                let queue = tx.queue.ring().queue();
                log::warn!("queue {queue}: {outstanding} frames do not move; notified again");
                tx.notify_again();
            }
            Verdict::Stuck(looks) => {
                let reason = BrokenReason::Stuck { outstanding, looks };
                tx.error = Some(tx.queue.ring_mut().break_down(reason));
            }
        }
        let has_used = rx.queue.ring().has_used() || (tx.waiting && outstanding < before);
        if let Some(looks) = watchdog.interrupts(has_used, asleep_since, interrupts) {
            rx.error = Some(
                rx.queue
                    .ring_mut()
                    .break_down(BrokenReason::NoInterrupt { looks }),
            );
        }
    }

    /// Tells the device of what is to be sent, even if it wants no notification. To be
    /// called when the link comes up: QEMU 7.2 drops what a packed ring holds while
    /// it is down, and leaves notifications off (its `virtqueue_packed_drop_all`).
    #[cold]
    pub fn notify_again(&mut self) {
        self.tx.notify_again();
    }

    /// Frames received since the queue was made.
    #[inline]
    pub fn received(&self) -> u64 {
        self.rx.packets
    }

    /// Whether there is something to poll for, with no access to the device's
    /// registers: for an embedder that has no interrupts.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.rx.has_work() || self.tx.has_work()
    }
}
