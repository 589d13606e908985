//! The network device (specification 5.1; Linux `virtio_net.c`).
//!
//! - `lifecycle`: probe, open, stop.
//! - `config`: what the device says of itself.
//! - [`rx`], [`tx`] with their [`buffers`] and [`header`]s; `large`: the
//!   buffers of frames that the device segments; [`offload`]: what the device
//!   is to do to a frame; `pair`: both together.
//! - `queue_reset`: one queue reset alone.
//! - [`control`]: the control queue; `filter`: what the device lets through,
//!   by it.
//! - `parts`: the first pair apart from the rest.
//! - [`flow`]: which pair a packet belongs to; [`rss`]: how the device is told;
//!   `steering`: when.
//! - `netpoll`: sending when nothing else works any more.
//! - `stats`: what was counted.

extern crate alloc;

pub mod buffers;
mod coalesce;
mod config;
pub mod control;
mod error;
pub mod features;
mod filter;
pub mod flow;
mod hashes;
pub mod header;
mod large;
mod lifecycle;
mod netpoll;
pub mod offload;
mod pair;
mod parts;
mod queue_reset;
pub mod rss;
pub mod rx;
mod stats;
mod steering;
pub mod tx;

pub use config::{DeviceInfo, Duplex};
pub use error::NetError;
pub use features::Features;
pub use filter::{RxFlags, RxMode};
pub use netpoll::{LastWords, Netpoll};
pub use pair::{QueuePair, TakenPair};
pub use parts::Rest;
pub use stats::{QueueRole, QueueSnapshot, Stats};

use alloc::vec::Vec;
use virtio_drivers::Hal;

use crate::interrupt::InterruptState;
use crate::transport::ConfigOps;
use crate::vectors::{Attempt, Rung};
use control::{Command, ControlError, ControlQueue};
use filter::Filter;
use flow::KEY_LENGTH;
use rx::RxQueue;
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
struct Open<H: Hal> {
    /// Apart from the others, so that the way to it is short.
    first: QueuePair<H>,
    /// `None` where a pair has been taken.
    others: Vec<Option<QueuePair<H>>>,
    /// Pairs that the device uses: the first ones.
    active: u16,
    /// The MTU that the buffers were made for.
    mtu: u16,
    /// The number of this [`VirtioNet::open`].
    epoch: u64,
    control: Option<ControlQueue<H>>,
    rung: Rung,
}

/// A virtio network device.
pub struct VirtioNet<H: Hal, T: ConfigOps> {
    transport: T,
    /// See [`Self::drop`] for how it goes.
    open: Option<Open<H>>,
    refused: Features,
    /// Queue pairs that are wanted.
    queue_pairs: u16,
    /// Largest size of a data queue that is wanted.
    queue_size: u16,
    info: DeviceInfo,
    interrupts: &'static InterruptState,
    attempts: Vec<Attempt>,
    /// What queues that are gone have counted.
    past: Stats,
    /// Whether the device once did not finish a reset.
    unreset: bool,
    /// Tells this device from all others, for [`TakenPair`].
    id: u64,
    /// How often the device has been opened.
    epoch: u64,
    filter: Filter,
    patience: u64,
    /// The key of hashes that is wanted.
    hash_key: [u8; KEY_LENGTH],
    /// Whether the device's hashes are verified.
    checks_hashes: bool,
}

impl<H: Hal, T: ConfigOps> VirtioNet<H, T> {
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
    /// [`NetError::NotOpen`].
    #[inline]
    pub fn queues(&mut self) -> Result<(&mut RxQueue<H>, &mut TxQueue<H>), NetError> {
        match &mut self.open {
            Some(open) => Ok(open.first.queues()),
            None => Err(NetError::NotOpen),
        }
    }

    /// The first pair, to look at; `None` while stopped.
    pub fn first_pair(&self) -> Option<&QueuePair<H>> {
        self.open.as_ref().map(|open| &open.first)
    }

    /// Every queue pair that the device uses and that has not been taken
    /// ([`Self::take_pair`]), the first one included.
    pub fn pairs(&mut self) -> impl Iterator<Item = &mut QueuePair<H>> {
        self.open.iter_mut().flat_map(|open| {
            let others = open.others.iter_mut().take(usize::from(open.active) - 1);
            core::iter::once(&mut open.first).chain(others.flatten())
        })
    }

    /// How long the device may take for the answer to a command before the
    /// control queue is given up, in cycles of the CPU's time stamp counter.
    /// 10^10 if not said: 2 to 10 seconds. Where there is no such counter, it
    /// is the number of looks at the queue.
    pub fn set_control_patience(&mut self, cycles: u64) {
        self.patience = cycles;
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
        match &mut open.control {
            Some(control) if self.info.negotiated.contains(feature) => control
                .execute(command, self.patience)
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
        if let Some(open) = &mut self.open {
            open.first.kick();
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
        open.first.begin_poll()?;
        if self.interrupts.take_config_changed() {
            return self.look_at_config();
        }
        Ok(Changes::empty())
    }

    /// [`QueuePair::enable_interrupts`] of the first pair. The caller must poll
    /// again, too, when the configuration changed since it did: the interrupt
    /// that told so will not wake it.
    #[doc(alias = "virtqueue_napi_complete")]
    #[inline]
    pub fn enable_interrupts(&mut self) -> bool {
        self.enable_interrupts_after(0)
    }

    /// [`QueuePair::enable_interrupts_after`] of the first pair, and the
    /// configuration as in [`Self::enable_interrupts`].
    #[inline]
    pub fn enable_interrupts_after(&mut self, frames: u16) -> bool {
        let Some(open) = &mut self.open else {
            return false;
        };
        open.first.enable_interrupts_after(frames) || self.interrupts.config_has_changed()
    }

    /// [`QueuePair::has_work`] of the first pair.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.first.has_work())
    }

    /// [`QueuePair::received`] of the first pair.
    #[inline]
    pub fn received(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.first.received())
    }
}
