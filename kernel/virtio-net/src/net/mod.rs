//! The network device (specification 5.1; Linux `virtio_net.c`).

extern crate alloc;

pub mod buffers;
mod error;
pub mod features;
pub mod header;
pub mod rx;
pub mod tx;

pub use error::NetError;
pub use features::Features;

use alloc::vec::Vec;
use kickpath_trace::{Event, NO_QUEUE, tracepoint_if};
use virtio_drivers::Hal;
use virtio_drivers::transport::{DeviceStatus, DeviceType};

use crate::doorbell::Doorbell;
use crate::interrupt::InterruptState;
use crate::queue::Virtqueue;
use crate::queue::split::EventMode;
use crate::transport::{ConfigOps, TransportError};
use crate::vectors::{self, Attempt, InterruptController, RingShape, Rung};
use header::LEGACY_HEADER_LENGTH;
use rx::RxQueue;
use tx::TxQueue;

/// Index of the first receive queue (specification 5.1.2).
const RECEIVE_QUEUE: u16 = 0;
/// Queues used: receiveq1 and transmitq1.
const QUEUES: u16 = 2;

/// Offsets in the device's configuration (specification 5.1.4), in bytes.
mod config {
    pub const MAC: usize = 0;
    pub const STATUS: usize = 6;
    pub const MTU: usize = 10;
}

/// In the configuration's status: the link is up.
const S_LINK_UP: u16 = 1;

/// Largest IP packet when the device does not say, in bytes.
const DEFAULT_MTU: u16 = 1500;
/// Smallest MTU that IPv4 allows, in bytes (Linux `ETH_MIN_MTU`).
const MIN_MTU: u16 = 68;

/// What was learnt of the device at probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What the device offers.
    pub offered: Features,
    /// What driver and device agreed on.
    pub negotiated: Features,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes, 68 to 1500.
    pub mtu: u16,
    /// Whether the link is up; `true` when the device cannot tell.
    pub link_up: bool,
}

/// What has been counted since probe (Linux `ndo_get_stats64`, and what a
/// packet costs). Counters never go back, not even over `stop` and `open`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes of those frames, Ethernet header included.
    pub rx_bytes: u64,
    /// Buffers that came back without a frame.
    pub rx_dropped: u64,
    /// Times that the receive queue broke.
    pub rx_errors: u64,
    /// Frames put into the transmit queue.
    pub tx_packets: u64,
    /// Bytes of those frames, Ethernet header included.
    pub tx_bytes: u64,
    /// Times that a sender had to wait for a free buffer.
    pub tx_waited: u64,
    /// Times that the transmit queue broke.
    pub tx_errors: u64,
    /// Doorbell writes, each a VM exit.
    pub kicks: u64,
    /// Kicks that the device did not want.
    pub kicks_suppressed: u64,
    /// Interrupts that were the device's.
    pub interrupts: u64,
    /// Interrupts that were not, or found nothing to do.
    pub interrupts_spurious: u64,
    /// Accesses to device registers, doorbells included.
    pub register_accesses: u64,
}

/// What one queue looks like now.
#[derive(Clone, Copy, Debug)]
pub struct QueueSnapshot {
    /// Index at the device.
    pub index: u16,
    /// Number of descriptors.
    pub size: u16,
    /// The driver's index of the available ring.
    pub avail_idx: u16,
    /// The device's index of the used ring.
    pub used_idx: u16,
    /// How far the driver has consumed the used ring.
    pub last_used_idx: u16,
    /// Chains that can be added.
    pub free: u16,
    /// The notify hook.
    pub doorbell: Doorbell,
}

/// The queues of an open device.
struct Open<H: Hal> {
    rx: RxQueue<H>,
    tx: TxQueue<H>,
    rung: Rung,
}

/// A virtio network device.
pub struct VirtioNet<H: Hal, T: ConfigOps> {
    transport: T,
    /// See [`Self::drop`] for how it goes.
    open: Option<Open<H>>,
    refused: Features,
    info: DeviceInfo,
    interrupts: &'static InterruptState,
    attempts: Vec<Attempt>,
    /// What queues that are gone have counted.
    past: Stats,
}

impl<H: Hal, T: ConfigOps> VirtioNet<H, T> {
    /// Resets the device, negotiates and reads its configuration (Linux
    /// `virtnet_probe`). Of the features that the driver implements, those in
    /// `refused` are not taken.
    ///
    /// # Errors
    ///
    /// [`NetError::NotNetwork`], [`NetError::Transport`],
    /// [`NetError::Config`].
    #[doc(alias = "virtnet_probe")]
    pub fn probe(
        mut transport: T,
        refused: Features,
        interrupts: &'static InterruptState,
    ) -> Result<Self, NetError> {
        let device_type = transport.device_type();
        if device_type != DeviceType::Network {
            return Err(NetError::NotNetwork { device_type });
        }
        let (offered, negotiated) = negotiate(&mut transport, refused)?;
        let info = DeviceInfo {
            offered,
            negotiated,
            mac: [0; 6],
            mtu: DEFAULT_MTU,
            link_up: true,
        };
        let mut net = Self {
            transport,
            open: None,
            refused,
            info,
            interrupts,
            attempts: Vec::with_capacity(Rung::LADDER.len()),
            past: Stats::default(),
        };
        net.info.mac = net.read_mac()?;
        net.info.mtu = net.read_mtu()?;
        net.info.link_up = net.read_link()?;
        Ok(net)
    }

    /// Finds the queues, beginning at rung `top` of the interrupt ladder,
    /// gives the device its receive buffers and lets it go (Linux
    /// `virtnet_open`). An open device is stopped first.
    ///
    /// # Errors
    ///
    /// [`NetError::FindVqs`] when no rung works, [`NetError::NoBuffers`],
    /// [`NetError::Queue`]. The device is stopped then.
    #[doc(alias = "ndo_open")]
    pub fn open<I: InterruptController>(
        &mut self,
        controller: &mut I,
        top: Rung,
    ) -> Result<(), NetError> {
        self.stop(controller);
        let refused = self.refused;
        let info = &mut self.info;
        let vqs = vectors::find_vqs::<H, T, I>(
            &mut self.transport,
            controller,
            QUEUES,
            top,
            |transport| {
                (info.offered, info.negotiated) = negotiate(transport, refused)?;
                Ok(ring_shape(info.negotiated))
            },
            &mut self.attempts,
        )?;
        let rung = vqs.rung;
        match self.attach(vqs.queues) {
            Ok((rx, tx)) => {
                self.open = Some(Open { rx, tx, rung });
                self.transport.set_status(
                    DeviceStatus::ACKNOWLEDGE
                        | DeviceStatus::DRIVER
                        | DeviceStatus::FEATURES_OK
                        | DeviceStatus::DRIVER_OK,
                );
                // Only a live device may be kicked (specification 3.1.1).
                self.kick();
                Ok(())
            }
            Err(error) => {
                vectors::del_vqs::<H, T, I>(&mut self.transport, controller, Vec::new());
                Err(error)
            }
        }
    }

    /// Makes the receive and transmit queue of two virtqueues and fills the
    /// first.
    fn attach(&mut self, queues: Vec<Virtqueue<H>>) -> Result<(RxQueue<H>, TxQueue<H>), NetError> {
        let any_layout = self.info.negotiated.contains(Features::ANY_LAYOUT);
        let header_length = LEGACY_HEADER_LENGTH;
        let mut queues = queues.into_iter();
        let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
            return Err(NetError::NotOpen);
        };
        let made = RxQueue::new(receive, header_length, any_layout)
            .and_then(|rx| Ok((rx, TxQueue::new(transmit, header_length, any_layout)?)))
            .and_then(|(mut rx, tx)| {
                rx.fill()?;
                Ok((rx, tx))
            });
        // On an error the rings are gone by now. The device was not told
        // DRIVER_OK, before which it may not look at them (specification
        // 3.1.2); the caller resets it all the same.
        made
    }

    /// Resets the device and takes back every queue, buffer and interrupt
    /// (Linux `virtnet_close` and `remove_vq_common`). Frames that were not
    /// sent yet are lost. Stopping twice does nothing.
    #[doc(alias = "ndo_stop")]
    pub fn stop<I: InterruptController>(&mut self, controller: &mut I) {
        let Some(open) = self.open.take() else {
            return;
        };
        self.past = self.stats_with(Some(&open));
        // The buffers of both queues stay until the reset in `del_vqs`.
        let Open { rx, tx, .. } = open;
        let (receive, rx_buffers) = rx.into_parts();
        let (transmit, tx_buffers) = tx.into_parts();
        let queues = Vec::from([receive, transmit]);
        if !vectors::del_vqs(&mut self.transport, controller, queues) {
            // The device may still write there.
            core::mem::forget((rx_buffers, tx_buffers));
        }
    }

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

    /// Both queues, to receive and to send. They are apart so that a reply
    /// can be written while the request is still being read.
    ///
    /// # Errors
    ///
    /// [`NetError::NotOpen`].
    #[inline]
    pub fn queues(&mut self) -> Result<(&mut RxQueue<H>, &mut TxQueue<H>), NetError> {
        match &mut self.open {
            Some(open) => Ok((&mut open.rx, &mut open.tx)),
            None => Err(NetError::NotOpen),
        }
    }

    /// Tells the device of everything added to either queue, if it wants to
    /// know: the end of a poll.
    #[inline]
    pub fn kick(&mut self) {
        if let Some(open) = &mut self.open {
            open.tx.queue.kick();
            open.rx.queue.kick();
        }
    }

    /// Begins a poll (Linux `virtnet_poll`): interrupts are masked, and
    /// whatever else the device wants is looked at. Returns whether the link
    /// went up or down.
    ///
    /// # Errors
    ///
    /// [`NetError::Queue`] when a queue was found broken and
    /// [`NetError::NeedsReset`] when the device says so: then it must be
    /// opened again. [`NetError::NotOpen`].
    #[doc(alias = "ndo_poll_controller")]
    #[inline]
    pub fn poll(&mut self) -> Result<bool, NetError> {
        let Some(open) = &mut self.open else {
            return Err(NetError::NotOpen);
        };
        if let Some(error) = open.rx.error.or(open.tx.error) {
            return Err(error.into());
        }
        tracepoint_if!(open.rx.queue.ring().has_used(), Event::Poll, NO_QUEUE);
        open.rx.queue.disable_interrupts();
        open.tx.queue.disable_interrupts();
        if self.interrupts.take_config_changed() {
            return self.look_at_config();
        }
        Ok(false)
    }

    /// Looks at what the device says of itself (Linux
    /// `virtnet_config_changed_work`). [`Self::poll`] does after an interrupt;
    /// an embedder without interrupts calls this now and then. Returns whether
    /// the link went up or down.
    ///
    /// # Errors
    ///
    /// [`NetError::NeedsReset`], [`NetError::Config`].
    #[cold]
    #[doc(alias = "virtnet_config_changed_work")]
    pub fn look_at_config(&mut self) -> Result<bool, NetError> {
        if self
            .transport
            .get_status()
            .contains(DeviceStatus::DEVICE_NEEDS_RESET)
        {
            return Err(NetError::NeedsReset);
        }
        let link_up = self.read_link()?;
        let changed = link_up != self.info.link_up;
        self.info.link_up = link_up;
        Ok(changed)
    }

    /// Ends a poll before the caller sleeps (Linux `virtqueue_napi_complete`):
    /// interrupts are asked for again, and the queues looked at once more.
    /// Returns whether the caller must poll again instead.
    #[doc(alias = "virtqueue_napi_complete")]
    #[inline]
    pub fn enable_interrupts(&mut self) -> bool {
        let Some(open) = &mut self.open else {
            return false;
        };
        if open.rx.error.is_some() || open.tx.error.is_some() {
            return true;
        }
        let received = open.rx.queue.enable_interrupts();
        // There is time now to take sent buffers back. No interrupt is asked
        // for because of them, unless a sender waits.
        open.tx.reclaim();
        let room = open.tx.waiting && open.tx.queue.enable_interrupts_delayed();
        received || room
    }

    /// Whether there is something to poll for, with no access to the device's
    /// registers: for an embedder that has no interrupts.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.open.as_ref().is_some_and(|open| {
            open.rx.queue.ring().has_used() || (open.tx.waiting && open.tx.queue.ring().has_used())
        })
    }

    /// What has been counted (Linux `ndo_get_stats64`).
    #[doc(alias = "ndo_get_stats64")]
    pub fn stats(&self) -> Stats {
        let mut stats = self.stats_with(self.open.as_ref());
        stats.interrupts = self.interrupts.interrupts();
        stats.interrupts_spurious = self.interrupts.not_ours();
        stats.register_accesses =
            self.transport.register_accesses() + self.interrupts.isr_reads() + stats.kicks;
        stats
    }

    fn stats_with(&self, open: Option<&Open<H>>) -> Stats {
        let mut stats = self.past;
        if let Some(Open { rx, tx, .. }) = open {
            let (receive, transmit) = (rx.queue.stats(), tx.queue.stats());
            stats.rx_packets += rx.packets;
            stats.rx_bytes += rx.bytes;
            stats.rx_dropped += rx.dropped;
            stats.rx_errors += u64::from(rx.error.is_some());
            stats.tx_packets += tx.queue.ring().added();
            stats.tx_bytes += tx.bytes;
            stats.tx_waited += tx.waited;
            stats.tx_errors += u64::from(tx.error.is_some());
            stats.kicks += receive.kicks + transmit.kicks;
            stats.kicks_suppressed += receive.kicks_suppressed + transmit.kicks_suppressed;
        }
        stats
    }

    /// What the receive and the transmit queue look like now, `None` while
    /// stopped.
    pub fn snapshots(&self) -> Option<[QueueSnapshot; 2]> {
        let open = self.open.as_ref()?;
        Some([&open.rx.queue, &open.tx.queue].map(|queue| {
            let ring = queue.ring();
            QueueSnapshot {
                index: ring.queue(),
                size: ring.size(),
                avail_idx: ring.avail_idx(),
                used_idx: ring.used_idx(),
                last_used_idx: ring.last_used_idx(),
                free: ring.free(),
                doorbell: queue.doorbell(),
            }
        }))
    }

    fn read_mac(&self) -> Result<[u8; 6], NetError> {
        if self.info.negotiated.contains(Features::MAC) {
            let mac: [u8; 6] = self.read(config::MAC)?;
            // A multicast or zero address cannot be a station's (Linux
            // `is_valid_ether_addr`).
            if mac[0] & 1 == 0 && mac != [0; 6] {
                return Ok(mac);
            }
            log::warn!("the device's hardware address {mac:02x?} cannot be one; using our own");
        }
        // Locally administered (IEEE 802), fixed: there is no randomness
        // here, and two such devices on a wire are not this project's case.
        Ok([0x02, 0x00, 0x00, 0x6b, 0x69, 0x63])
    }

    fn read_mtu(&self) -> Result<u16, NetError> {
        if !self.info.negotiated.contains(Features::MTU) {
            return Ok(DEFAULT_MTU);
        }
        let mtu: u16 = self.read(config::MTU)?;
        let usable = mtu.clamp(MIN_MTU, DEFAULT_MTU);
        if usable != mtu {
            log::warn!("the device's MTU is {mtu}; using {usable}");
        }
        Ok(usable)
    }

    fn read_link(&self) -> Result<bool, NetError> {
        if !self.info.negotiated.contains(Features::STATUS) {
            return Ok(true);
        }
        let status: u16 = self.read(config::STATUS)?;
        Ok(status & S_LINK_UP != 0)
    }

    fn read<V: zerocopy::FromBytes + zerocopy::IntoBytes>(
        &self,
        offset: usize,
    ) -> Result<V, NetError> {
        self.transport
            .read_config_space(offset)
            .map_err(|_| NetError::Config { offset })
    }
}

impl<H: Hal, T: ConfigOps> Drop for VirtioNet<H, T> {
    /// Resets an open device before its memory is given back. As in
    /// [`Self::stop`], which also disconnects the interrupts, the memory of a
    /// device that does not finish its reset is leaked.
    fn drop(&mut self) {
        let Some(open) = self.open.take() else {
            return;
        };
        if let Err(error) = self.transport.reset() {
            log::error!("{error}; the memory of its queues is not used again");
            core::mem::forget(open);
        }
    }
}

/// Brings the device from any state to agreed features (specification 3.1.1,
/// steps 1 to 6) and returns what it offers and what was agreed.
fn negotiate<T: ConfigOps>(
    transport: &mut T,
    refused: Features,
) -> Result<(Features, Features), TransportError> {
    // 1. Reset. 2. ACKNOWLEDGE: seen. 3. DRIVER: known how to drive.
    transport.reset()?;
    transport.set_status(DeviceStatus::ACKNOWLEDGE);
    transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    // 4. to 6. Features: of what is offered, what is implemented and wanted.
    let offered = Features::from_bits_retain(transport.read_device_features());
    let negotiated = offered & (Features::IMPLEMENTED - refused);
    transport.finalize_features(negotiated.bits())?;
    Ok((offered, negotiated))
}

/// The form of the rings that follows from the features.
fn ring_shape(negotiated: Features) -> RingShape {
    RingShape {
        mode: if negotiated.contains(Features::EVENT_IDX) {
            EventMode::EventIdx
        } else {
            EventMode::Flags
        },
        // Specification 2.6.4.3 and 5.1.6.1: without ANY_LAYOUT the header
        // has a descriptor of its own.
        chain: if negotiated.contains(Features::ANY_LAYOUT) {
            1
        } else {
            2
        },
    }
}

// Receive queue first, transmit queue second (specification 5.1.2); `attach`
// and `snapshots` rely on it.
const _: () = assert!(RECEIVE_QUEUE == 0 && QUEUES == 2);
