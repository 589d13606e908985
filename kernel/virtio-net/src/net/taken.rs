//! A pair of queues apart from the device, for another CPU, and its halves.

extern crate alloc;

use alloc::boxed::Box;
use core::ops::{Deref, DerefMut};

use virtio_drivers::Hal;

use super::lease::Lease;
use super::pair::QueuePair;
use super::rx::RxQueue;
use super::tx::TxQueue;
use super::watchdog::Watchdog;
use super::{NetError, VirtioNet};
use crate::doorbell::Doorbell;
use crate::interrupt::StateRef;
use crate::transport::ConfigOps;

/// A queue pair that a CPU has for itself; see [`VirtioNet::take_pair`].
///
/// It goes back by [`VirtioNet::give_back`]. When it is dropped instead while the
/// device is open, its memory is never used again: the device may still write there.
#[must_use = "the device has lost it, unless it is given back"]
pub struct TakenPair<H: Hal, N = Doorbell> {
    pair: QueuePair<H, N>,
    from: Origin,
}

/// Where a pair belongs.
#[derive(Clone, PartialEq)]
struct Origin {
    number: usize,
    lease: Lease,
}

/// A queue of a [`TakenPair`], for a lock or a CPU of its own: the device itself,
/// with the control queue, is the third part. To drop it is as with the pair.
#[must_use = "the device has lost it, unless it is joined and given back"]
pub struct Half<Q> {
    queue: Box<Q>,
    watchdog: Box<Watchdog>,
    from: Origin,
}

/// The receiving half of a pair; see [`TakenPair::halves`].
pub type RxHalf<H, N = Doorbell> = Half<RxQueue<H, N>>;
/// The sending half of a pair; see [`TakenPair::halves`].
pub type TxHalf<H, N = Doorbell> = Half<TxQueue<H, N>>;

impl<Q> Deref for Half<Q> {
    type Target = Q;
    #[inline]
    fn deref(&self) -> &Q {
        &self.queue
    }
}

impl<Q> DerefMut for Half<Q> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Q {
        &mut self.queue
    }
}

impl<H: Hal, N> TakenPair<H, N> {
    /// Its number, from 0: receiveqN+1 and transmitqN+1.
    pub fn number(&self) -> usize {
        self.from.number
    }

    /// Its two queues. It is given back when they are [joined](Self::join) again.
    pub fn halves(self) -> (RxHalf<H, N>, TxHalf<H, N>) {
        let Self { pair, from } = self;
        let QueuePair { rx, tx, watchdog } = pair;
        let rx = Half {
            queue: rx,
            watchdog: Box::default(),
            from: from.clone(),
        };
        let tx = Half {
            queue: tx,
            watchdog: Box::new(watchdog),
            from,
        };
        (rx, tx)
    }

    /// The pair of its halves.
    ///
    /// # Errors
    ///
    /// Both as they were, when they are not of one pair.
    pub fn join(rx: RxHalf<H, N>, tx: TxHalf<H, N>) -> Result<Self, (RxHalf<H, N>, TxHalf<H, N>)> {
        if rx.from != tx.from {
            return Err((rx, tx));
        }
        let pair = QueuePair {
            rx: rx.queue,
            tx: tx.queue,
            watchdog: *tx.watchdog,
        };
        Ok(Self {
            pair,
            from: tx.from,
        })
    }
}

impl<H: Hal, N> Deref for TakenPair<H, N> {
    type Target = QueuePair<H, N>;
    #[inline]
    fn deref(&self) -> &QueuePair<H, N> {
        &self.pair
    }
}

impl<H: Hal, N> DerefMut for TakenPair<H, N> {
    #[inline]
    fn deref_mut(&mut self) -> &mut QueuePair<H, N> {
        &mut self.pair
    }
}

impl<H: Hal, T: ConfigOps, S: StateRef> VirtioNet<H, T, S> {
    /// Takes pair `number`, 0 to [`Self::queue_pairs`] - 1, out of the device,
    /// so that another CPU works with it, or two with its
    /// [halves](TakenPair::halves), and shares nothing with this one: it can be
    /// sent there. What is said here of the first pair does nothing while that is
    /// away; [`Self::poll`] still looks at the configuration.
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
    pub fn take_pair(&mut self, number: usize) -> Result<TakenPair<H, T::Notify>, NetError> {
        let open = self.open.as_mut().ok_or(NetError::NotOpen)?;
        let active = usize::from(open.active);
        let pair = open.pairs.iter_mut().take(active).nth(number);
        let pair = pair
            .and_then(Option::take)
            .ok_or(NetError::NoSuchPair { number })?;
        let from = Origin {
            number,
            lease: open.lease.clone(),
        };
        Ok(TakenPair { pair, from })
    }

    /// Takes a pair back from [`Self::take_pair`]. If the device was stopped
    /// meanwhile, its memory is given back.
    pub fn give_back(&mut self, taken: TakenPair<H, T::Notify>) {
        let TakenPair { pair, from } = taken;
        if let Some(open) = self.open.as_mut().filter(|open| open.lease == from.lease)
            && let Some(place) = open.pairs.get_mut(from.number)
        {
            *place = Some(pair);
        } else if from.lease.is_running() {
            let number = from.number;
            log::error!("queue pair {number} is of another device, or one not reset; it is lost");
        } else {
            self.past.add(&pair.stats());
        }
    }
}
