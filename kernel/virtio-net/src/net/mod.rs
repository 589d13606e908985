//! The network device (specification 5.1; Linux `virtio_net.c`).
//!
//! - `lifecycle`: probe, open, stop.
//! - `config`: what the device says of itself; `info`: what was learnt of it.
//! - `private_copy`: where a received frame is looked at.
//! - [`rx`], [`tx`] with their `buffers` and `header`s; `large`: the
//!   buffers of frames that the device segments; [`offload`]: what the device
//!   is to do to a frame; `coalesce`: TCP segments as one.
//! - `pair`: both queues together; `taken`: one that another CPU has.
//! - `lease`: how long memory is the device's; `queue_reset`: one queue reset
//!   alone.
//! - [`control`]: the control queue; `filter`: what the device lets through
//!   by it, `rx_mode`: what it is to.
//! - `parts`: the first pair apart from the rest.
//! - [`flow`]: which pair a packet belongs to; [`rss`]: how the device is told;
//!   `steering`: when.
//! - `netpoll`: sending when nothing else works any more.
//! - `stats`: what was counted; [`watchdog`]: what does not move.

extern crate alloc;

pub(crate) mod buffers;
#[cfg(feature = "smoltcp")]
pub(crate) mod coalesce;
mod config;
pub mod control;
mod error;
pub mod features;
mod filter;
pub mod flow;
mod hashes;
mod header;
mod info;
pub(crate) mod large;
mod lease;
mod lifecycle;
mod netpoll;
pub mod offload;
mod pair;
mod parts;
mod private_copy;
mod queue_reset;
pub mod rss;
pub mod rx;
mod rx_mode;
mod stats;
mod steering;
mod taken;
pub mod tx;
pub mod watchdog;

pub use crate::patience::Clock;
pub use buffers::{MAX_FRAME, MAX_LARGE_FRAME};
pub use error::NetError;
pub use features::{Features, Options};
pub use info::{DeviceInfo, Duplex};
pub use netpoll::{LastWords, Netpoll};
pub use pair::QueuePair;
pub use parts::Rest;
pub use rx_mode::{RxFlags, RxMode};
pub use stats::{QueueRole, QueueSnapshot, Stats};
pub use taken::{Half, RxHalf, TakenPair, TxHalf};

use alloc::boxed::Box;
use alloc::vec::Vec;
use virtio_drivers::Hal;

use crate::doorbell::Notify;
use crate::interrupt::{InterruptState, StateRef};
use crate::patience::Patience;
use crate::transport::ConfigOps;
use crate::vectors::{Attempt, Rung};
use control::{Command, ControlError, ControlQueue};
use flow::KEY_LENGTH;
use lease::Lease;
use rx::RxQueue;
use rx_mode::Filter;
use tx::TxQueue;

bitflags::bitflags! {
    /// What [`VirtioNet::poll`] found to have changed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Changes: u8 {
        /// The link went up or down: [`DeviceInfo::link_up`].
        const LINK = 1 << 0;
        /// The device asks the driver to announce itself on the network
        /// (specification 5.1.6.5.4), and then to call
        /// [`VirtioNet::announced`].
        const ANNOUNCE = 1 << 1;
    }
}

/// The queues of an open device.
struct Open<H: Hal, N> {
    /// One at least; `None` where a pair has been taken.
    pairs: Vec<Option<QueuePair<H, N>>>,
    /// Pairs that the device uses: the first ones.
    active: u16,
    /// The MTU that the buffers were made for.
    mtu: u16,
    control: Option<Box<ControlQueue<H, N>>>,
    rung: Rung,
    lease: Lease,
}

impl<H: Hal, N: Notify> Open<H, N> {
    #[inline]
    fn first(&self) -> Option<&QueuePair<H, N>> {
        self.pairs.first()?.as_ref()
    }

    #[inline]
    fn first_mut(&mut self) -> Option<&mut QueuePair<H, N>> {
        self.pairs.first_mut()?.as_mut()
    }
}

/// To be dropped when the device was reset, and forgotten when it was not.
impl<H: Hal, N> Drop for Open<H, N> {
    fn drop(&mut self) {
        self.lease.end();
    }
}

/// A virtio network device.
pub struct VirtioNet<H: Hal, T: ConfigOps, S: StateRef = &'static InterruptState> {
    transport: T,
    /// See [`Self::drop`] for how it goes.
    open: Option<Box<Open<H, T::Notify>>>,
    refused: Features,
    /// Queue pairs that are wanted.
    queue_pairs: u16,
    /// Largest size of a data queue that is wanted.
    queue_size: u16,
    info: DeviceInfo,
    interrupts: S,
    attempts: Vec<Attempt>,
    /// What queues that are gone have counted.
    past: Stats,
    filter: Filter,
    /// For the control queue.
    patience: Patience,
    /// The key of hashes that is wanted.
    hash_key: [u8; KEY_LENGTH],
    /// Whether the device's hashes are verified.
    checks_hashes: bool,
}

impl<H: Hal, T: ConfigOps, S: StateRef> VirtioNet<H, T, S> {
    /// What was learnt of the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The transport, to look at.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The rung of the interrupt ladder, `None` while stopped.
    pub fn rung(&self) -> Option<Rung> {
        self.open.as_ref().map(|open| open.rung)
    }

    /// The rungs that the last [`Self::open`] tried.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// Number of queue pairs that the device uses, 1 to 32768 (specification
    /// 5.1.6.5.5); 0 while stopped.
    pub fn queue_pairs(&self) -> u16 {
        self.open.as_ref().map_or(0, |open| open.active)
    }

    /// Both queues of the first pair, to receive and to send. They are apart
    /// so that a reply can be written while the request is still being read.
    ///
    /// # Errors
    ///
    /// [`NetError::NotOpen`]; [`NetError::NoSuchPair`] while it is taken.
    #[inline]
    pub fn queues(
        &mut self,
    ) -> Result<(&mut RxQueue<H, T::Notify>, &mut TxQueue<H, T::Notify>), NetError> {
        let open = self.open.as_mut().ok_or(NetError::NotOpen)?;
        let first = open.first_mut().ok_or(NetError::NoSuchPair { number: 0 })?;
        Ok(first.queues())
    }

    /// The first pair, to look at; `None` while stopped, or while it is taken.
    #[inline]
    pub fn first_pair(&self) -> Option<&QueuePair<H, T::Notify>> {
        self.open.as_ref()?.first()
    }

    #[inline]
    fn first_pair_mut(&mut self) -> Option<&mut QueuePair<H, T::Notify>> {
        self.open.as_mut()?.first_mut()
    }

    /// [`TxQueue::can_transmit`] of the first pair.
    #[inline]
    pub fn can_transmit(&self) -> bool {
        self.first_pair().is_some_and(|pair| pair.tx.can_transmit())
    }

    /// Every queue pair that the device uses and that has not been taken
    /// ([`Self::take_pair`]), the first one included.
    pub fn pairs(&mut self) -> impl Iterator<Item = &mut QueuePair<H, T::Notify>> {
        self.open.iter_mut().flat_map(|open| {
            let active = usize::from(open.active);
            open.pairs.iter_mut().take(active).flatten()
        })
    }

    /// The clock by which waits end. Without one, 100 looks at a queue count as
    /// a microsecond.
    pub fn set_clock(&mut self, clock: Clock) {
        self.patience.clock = Some(clock);
    }

    /// How long the device may take for the answer to a command before the
    /// control queue is given up, in microseconds; 5 seconds if not said.
    pub fn set_control_patience(&mut self, micros: u64) {
        self.patience.micros = micros;
    }

    /// Has the device carry out a command (Linux `virtnet_send_command`), and
    /// waits for the answer as long as [`Self::set_control_patience`] allows.
    ///
    /// # Errors
    ///
    /// [`NetError::NotOpen`], [`NetError::Control`].
    #[doc(alias = "virtnet_send_command")]
    pub fn command(&mut self, command: &Command<'_>) -> Result<(), NetError> {
        let feature = command.feature();
        let open = self.open.as_mut().ok_or(NetError::NotOpen)?;
        let is_broken = || config::check_status(&self.transport).is_err();
        match &mut open.control {
            Some(control) if self.info.negotiated.contains(feature) => control
                .execute(command, self.patience, is_broken)
                .map_err(NetError::Control),
            _ => Err(NetError::Control(ControlError::NotNegotiated {
                command: command.name(),
                feature,
            })),
        }
    }

    /// Tells the device that the driver has announced itself, as asked by
    /// [`Changes::ANNOUNCE`] (Linux `virtnet_ack_link_announce`).
    ///
    /// # Errors
    ///
    /// As for [`Self::command`].
    #[doc(alias = "virtnet_ack_link_announce")]
    pub fn announced(&mut self) -> Result<(), NetError> {
        self.command(&Command::AnnounceAck)
    }

    /// [`QueuePair::kick`] of the first pair.
    #[inline]
    pub fn kick(&mut self) {
        if let Some(first) = self.first_pair_mut() {
            first.kick();
        }
    }

    /// Begins a poll of the first pair (Linux `virtnet_poll`): its interrupts
    /// are masked, and whatever else the device wants is looked at. Returns
    /// what has changed.
    ///
    /// # Errors
    ///
    /// [`NetError::Queue`] when a queue was found broken and
    /// [`NetError::NeedsReset`] when the device says so: then it must be
    /// opened again. [`NetError::Config`] when its configuration could not be
    /// read. [`NetError::NotOpen`].
    #[doc(alias = "virtnet_poll")]
    #[inline]
    pub fn poll(&mut self) -> Result<Changes, NetError> {
        let Some(open) = &mut self.open else {
            return Err(NetError::NotOpen);
        };
        if let Some(first) = open.first_mut() {
            first.begin_poll()?;
        }
        if self.interrupts.take_config_changed() {
            return self.look_at_config();
        }
        Ok(Changes::empty())
    }

    /// [`QueuePair::enable_interrupts`] of the first pair. The caller must poll
    /// again, too, when the configuration changed since it did: the interrupt
    /// that told so will not wake it.
    #[doc(alias = "virtqueue_napi_complete")]
    #[must_use = "the caller must poll again, if so"]
    #[inline]
    pub fn enable_interrupts(&mut self) -> bool {
        self.enable_interrupts_after(0)
    }

    /// [`QueuePair::enable_interrupts_after`] of the first pair, and the
    /// configuration as in [`Self::enable_interrupts`].
    #[must_use = "the caller must poll again, if so"]
    #[inline]
    pub fn enable_interrupts_after(&mut self, frames: u16) -> bool {
        if self.open.is_none() {
            return false;
        }
        let first = self.first_pair_mut();
        first.is_some_and(|first| first.enable_interrupts_after(frames))
            || self.interrupts.config_has_changed()
    }

    /// [`QueuePair::has_work`] of the first pair.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.first_pair().is_some_and(QueuePair::has_work)
    }

    /// [`QueuePair::received`] of the first pair.
    #[inline]
    pub fn received(&self) -> u64 {
        self.first_pair().map_or(0, QueuePair::received)
    }
}
