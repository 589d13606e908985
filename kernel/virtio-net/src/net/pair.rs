//! A receive and a transmit queue that belong together (specification
//! 5.1.2): what one CPU works with.

extern crate alloc;

use alloc::boxed::Box;
use core::ops::{Deref, DerefMut};

use virtio_drivers::Hal;

use super::lease::Lease;
use super::rx::RxQueue;
use super::tx::TxQueue;
use super::watchdog::{Verdict, Watchdog};
use super::{NetError, VirtioNet};
use crate::interrupt::StateRef;
use crate::queue::{BrokenReason, QueueError, QueueRing};
use crate::transport::ConfigOps;

/// receiveqN and transmitqN. See the module.
pub struct QueuePair<H: Hal> {
    pub(super) rx: Box<RxQueue<H>>,
    pub(super) tx: Box<TxQueue<H>>,
    pub(super) watchdog: Watchdog,
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
        self.rx.begin_poll()?;
        self.tx.begin_poll()
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
                if !tx.kick() {
                    tx.queue.notify();
                }
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

/// A queue pair that a CPU has for itself; see [`VirtioNet::take_pair`].
///
/// It goes back by [`VirtioNet::give_back`]. When it is dropped instead while the
/// device is open, its memory is never used again: the device may still write there.
pub struct TakenPair<H: Hal> {
    pair: QueuePair<H>,
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
pub struct Half<Q> {
    queue: Box<Q>,
    watchdog: Box<Watchdog>,
    from: Origin,
}

/// The receiving half of a pair; see [`TakenPair::halves`].
pub type RxHalf<H> = Half<RxQueue<H>>;
/// The sending half of a pair; see [`TakenPair::halves`].
pub type TxHalf<H> = Half<TxQueue<H>>;

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

impl<H: Hal> TakenPair<H> {
    /// Its number, from 0: receiveqN+1 and transmitqN+1.
    pub fn number(&self) -> usize {
        self.from.number
    }

    /// Its two queues. It is given back when they are [joined](Self::join) again.
    pub fn halves(self) -> (RxHalf<H>, TxHalf<H>) {
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
    pub fn join(rx: RxHalf<H>, tx: TxHalf<H>) -> Result<Self, (RxHalf<H>, TxHalf<H>)> {
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
    pub fn take_pair(&mut self, number: usize) -> Result<TakenPair<H>, NetError> {
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
    pub fn give_back(&mut self, taken: TakenPair<H>) {
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
