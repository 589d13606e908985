//! A receive and a transmit queue that belong together (specification
//! 5.1.2): what one CPU works with.

use kickpath_trace::{Event, NO_QUEUE, tracepoint_if};
use virtio_drivers::Hal;

use super::rx::RxQueue;
use super::tx::TxQueue;
use crate::queue::QueueError;

/// receiveqN and transmitqN. See the module.
pub struct QueuePair<H: Hal> {
    pub(super) rx: RxQueue<H>,
    pub(super) tx: TxQueue<H>,
}

impl<H: Hal> QueuePair<H> {
    /// Both queues, to receive and to send. They are apart so that a reply
    /// can be written while the request is still being read.
    #[inline]
    pub fn queues(&mut self) -> (&mut RxQueue<H>, &mut TxQueue<H>) {
        (&mut self.rx, &mut self.tx)
    }

    /// Tells the device of everything added to either queue, if it wants to
    /// know: the end of a poll.
    #[inline]
    pub fn kick(&mut self) {
        self.tx.queue.kick();
        self.rx.queue.kick();
    }

    /// Begins a poll (Linux `virtnet_poll`): interrupts are masked.
    ///
    /// # Errors
    ///
    /// [`QueueError::Broken`], when one of the two was found so.
    #[doc(alias = "virtnet_poll")]
    #[inline]
    pub fn begin_poll(&mut self) -> Result<(), QueueError> {
        if let Some(error) = self.rx.error.or(self.tx.error) {
            return Err(error);
        }
        tracepoint_if!(self.rx.queue.ring().has_used(), Event::Poll, NO_QUEUE);
        self.rx.queue.disable_interrupts();
        self.tx.queue.disable_interrupts();
        Ok(())
    }

    /// Ends a poll before the caller sleeps (Linux `virtqueue_napi_complete`):
    /// interrupts are asked for again, and the queues looked at once more.
    /// Returns whether the caller must poll again instead.
    #[doc(alias = "virtqueue_napi_complete")]
    #[inline]
    pub fn enable_interrupts(&mut self) -> bool {
        if self.rx.error.is_some() || self.tx.error.is_some() {
            return true;
        }
        let received = self.rx.queue.enable_interrupts();
        // There is time now to take sent buffers back. No interrupt is asked
        // for because of them, unless a sender waits.
        self.tx.reclaim();
        let room = self.tx.waiting && self.tx.queue.enable_interrupts_delayed();
        received || room
    }

    /// Whether there is something to poll for, with no access to the device's
    /// registers: for an embedder that has no interrupts.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.rx.queue.ring().has_used() || (self.tx.waiting && self.tx.queue.ring().has_used())
    }
}
