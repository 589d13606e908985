//! A receive and a transmit queue that belong together (specification
//! 5.1.2): what one CPU works with.

use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU64, Ordering};

use kickpath_trace::{Event, NO_QUEUE, tracepoint_if};
use virtio_drivers::Hal;

use super::rx::RxQueue;
use super::tx::TxQueue;
use super::{NetError, VirtioNet};
use crate::queue::QueueError;
use crate::transport::ConfigOps;

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
        self.enable_interrupts_after(0)
    }

    /// As [`Self::enable_interrupts`], but the device may leave that many
    /// received frames waiting before it interrupts. One without EVENT_IDX does
    /// not. The caller bounds the time that they wait: while fewer come, no
    /// interrupt does.
    #[inline]
    pub fn enable_interrupts_after(&mut self, frames: u16) -> bool {
        if self.rx.error.is_some() || self.tx.error.is_some() {
            return true;
        }
        let received = self.rx.queue.enable_interrupts_after(frames);
        let room = self.tx.enable_interrupts();
        received || room
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
        self.rx.queue.ring().has_used() || (self.tx.waiting && self.tx.queue.ring().has_used())
    }
}

/// A queue pair that a CPU has for itself; see [`VirtioNet::take_pair`].
///
/// It goes back by [`VirtioNet::give_back`]. When it is dropped instead, its
/// memory is never used again: the device may still write there.
pub struct TakenPair<H: Hal> {
    pair: ManuallyDrop<QueuePair<H>>,
    number: usize,
    /// [`VirtioNet::id`] and [`super::Open::epoch`] of where it belongs.
    device: u64,
    epoch: u64,
}

impl<H: Hal> TakenPair<H> {
    /// Its number, from 1: receiveqN+1 and transmitqN+1.
    pub fn number(&self) -> usize {
        self.number
    }
}

impl<H: Hal> Deref for TakenPair<H> {
    type Target = QueuePair<H>;
    #[inline]
    fn deref(&self) -> &QueuePair<H> {
        &self.pair
    }
}

impl<H: Hal> DerefMut for TakenPair<H> {
    #[inline]
    fn deref_mut(&mut self) -> &mut QueuePair<H> {
        &mut self.pair
    }
}

/// A number that no other device has.
pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl<H: Hal, T: ConfigOps> VirtioNet<H, T> {
    /// Takes pair `number`, 1 to [`Self::queue_pairs`] - 1, out of the device,
    /// so that another CPU works with it and shares nothing with this one: it
    /// can be sent there. The first pair, number 0, always stays.
    ///
    /// While it is away, [`Self::pairs`], [`Self::stats`] and
    /// [`Self::snapshots`] are without it ([`QueuePair::stats`] has its
    /// share). Before [`Self::stop`] and [`Self::open`] all pairs should be
    /// given back. One that is not becomes useless by it, which is no danger:
    /// it receives nothing more, and what it sends goes nowhere.
    ///
    /// # Errors
    ///
    /// [`NetError::NotOpen`]; [`NetError::NoSuchPair`], also when it was taken
    /// already.
    pub fn take_pair(&mut self, number: usize) -> Result<TakenPair<H>, NetError> {
        let open = self.open.as_mut().ok_or(NetError::NotOpen)?;
        let active = usize::from(open.active);
        let place = number.checked_sub(1).and_then(|at| open.others.get_mut(at));
        let pair = place
            .filter(|_| number < active)
            .and_then(Option::take)
            .ok_or(NetError::NoSuchPair { number })?;
        Ok(TakenPair {
            pair: ManuallyDrop::new(pair),
            number,
            device: self.id,
            epoch: open.epoch,
        })
    }

    /// Takes a pair back from [`Self::take_pair`]. If the device was stopped
    /// meanwhile, its memory is given back.
    pub fn give_back(&mut self, taken: TakenPair<H>) {
        let TakenPair {
            pair,
            number,
            device,
            epoch,
        } = taken;
        if device != self.id {
            log::error!("queue pair {number} was given back to another device; it is lost");
            return;
        }
        if let Some(open) = self.open.as_mut().filter(|open| open.epoch == epoch)
            && let Some(place) = number.checked_sub(1).and_then(|at| open.others.get_mut(at))
        {
            *place = Some(ManuallyDrop::into_inner(pair));
            return;
        }
        self.past.add(&pair.stats());
        // The device was reset since the pair was taken. If it did not finish
        // that, it may still write there.
        if !self.unreset {
            drop(ManuallyDrop::into_inner(pair));
        }
    }
}
