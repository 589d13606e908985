//! Probe, open, stop: how the device comes and goes.

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;

use virtio_drivers::Hal;
use virtio_drivers::transport::{DeviceStatus, DeviceType};

use super::config::DEFAULT_MTU;
use super::control::{self, ControlQueue};
use super::flow;
use super::info::DeviceInfo;
use super::lease::Lease;
use super::pair::QueuePair;
use super::rx::RxQueue;
use super::rx_mode::Filter;
use super::stats::Stats;
use super::tx::TxQueue;
use super::watchdog::Watchdog;
use super::{Features, NetError, Open, Options, VirtioNet};
use crate::interrupt::StateRef;
use crate::patience::Patience;
use crate::queue::{EventMode, MAX_SIZE, PositionalRing, RingLayout, RingShape, Virtqueue};
use crate::transport::{ConfigOps, LIVE, TransportError, check_access_platform, is_gone};
use crate::vectors::{self, InterruptController, Rung, Vqs, WantedQueue, WantedQueues};

impl<H: Hal, T: ConfigOps, S: StateRef> VirtioNet<H, T, S> {
    /// Resets the device, negotiates and reads its configuration (Linux
    /// `virtnet_probe`): of the features that the driver implements, what
    /// `options` allow.
    ///
    /// # Errors
    ///
    /// [`NetError::NotNetwork`], [`NetError::Transport`],
    /// [`NetError::Config`]; [`NetError::FindVqs`] when a queue cannot be set up
    /// to try its reset with.
    #[doc(alias = "virtnet_probe")]
    pub fn probe(transport: T, options: Options, interrupts: S) -> Result<Self, NetError> {
        let device_type = transport.device_type();
        if device_type != DeviceType::Network {
            return Err(NetError::NotNetwork { device_type });
        }
        let mut net = Self {
            transport,
            open: None,
            refused: options.refused,
            queue_pairs: 1,
            queue_size: MAX_SIZE,
            info: DeviceInfo {
                offered: Features::empty(),
                negotiated: Features::empty(),
                mac: [0; 6],
                mtu: DEFAULT_MTU,
                max_mtu: u16::MAX,
                link_up: true,
                max_queue_pairs: 1,
                speed: None,
                duplex: None,
                hash_limits: None,
            },
            interrupts,
            attempts: Vec::with_capacity(Rung::LADDER.len()),
            past: Stats::default(),
            filter: Filter::default(),
            patience: Patience {
                micros: control::PATIENCE,
                clock: None,
            },
            hash_key: flow::DEFAULT_KEY,
            checks_hashes: false,
        };
        net.negotiate()?;
        if net.info.negotiated.contains(Features::RING_RESET)
            && net.transport.queue_reset_is_doubtful()
        {
            net.try_queue_reset()?;
        }
        net.read_info()?;
        Ok(net)
    }

    /// Negotiates for the first time, before it is known how many pairs are
    /// wanted: for one there is nothing that MQ and RSS would be good for; and
    /// what the device can hash is not known yet.
    pub(super) fn negotiate(&mut self) -> Result<(), NetError> {
        let refused = self.refused | Features::SEVERAL_PAIRS | Features::HASH_REPORT;
        (self.info.offered, self.info.negotiated) = negotiate(&mut self.transport, refused)?;
        Ok(())
    }

    /// Asks for this many queue pairs from the next [`Self::open`] on, 1 if
    /// not said. A device that has not as many, or neither `VIRTIO_NET_F_MQ`
    /// nor `_RSS` with a control queue, gives what it has: see
    /// [`Self::queue_pairs`].
    pub fn set_queue_pairs(&mut self, pairs: u16) {
        self.queue_pairs = pairs.max(1);
    }

    /// Asks for receive and transmit queues of at most this many descriptors
    /// from the next [`Self::open`] on, where the transport leaves a choice
    /// (the legacy interface does not); what the device offers if not said. A
    /// split queue takes the power of two below.
    pub fn set_queue_size(&mut self, largest: u16) {
        self.queue_size = largest.clamp(1, MAX_SIZE);
    }

    /// Finds the queues, beginning at rung `top` of the interrupt ladder,
    /// gives the device its receive buffers and lets it go (Linux
    /// `virtnet_open`). An open device is stopped first.
    ///
    /// # Errors
    ///
    /// [`NetError::FindVqs`] when no rung works, [`NetError::NoBuffers`],
    /// [`NetError::OffloadsChanged`], [`NetError::Queue`]. The device is
    /// stopped then.
    #[doc(alias = "ndo_open")]
    pub fn open<I: InterruptController>(
        &mut self,
        controller: &mut I,
        top: Rung,
    ) -> Result<(), NetError> {
        self.stop(controller);
        if is_gone(self.transport.get_status()) {
            return Err(TransportError::Gone.into());
        }
        self.info.max_queue_pairs = self.read_max_queue_pairs()?;
        let wanted_pairs = self.queue_pairs.min(self.info.max_queue_pairs);
        let mut pairs = 1;
        // What it did not do at probe the network stack has not been told of.
        let agreed = self.info.negotiated;
        let refused = self.refused | self.useless(wanted_pairs) | (Features::OFFLOADS - agreed);
        let queue_size = self.queue_size;
        let info = &mut self.info;
        let vqs = vectors::find_vqs::<H, T, I>(
            &mut self.transport,
            controller,
            top,
            |transport| {
                (info.offered, info.negotiated) = negotiate(transport, refused)?;
                pairs = if info.negotiated.intersects(Features::SEVERAL_PAIRS) {
                    wanted_pairs
                } else {
                    1
                };
                Ok(wanted_queues(info, pairs, queue_size))
            },
            &mut self.attempts,
        );
        // What the network stack has been told still counts.
        let vqs = vqs.inspect_err(|_| self.info.negotiated = agreed)?;
        let changed = (agreed ^ self.info.negotiated) & Features::OFFLOADS;
        let attached = if changed.is_empty() {
            self.attach(vqs, pairs)
        } else {
            // The network stack has been told who does which checksums.
            self.info.negotiated = agreed;
            Err(NetError::OffloadsChanged { features: changed })
        };
        match attached {
            Ok(open) => {
                self.open = Some(open);
                self.transport.set_status(LIVE);
                self.activate(pairs);
                Ok(())
            }
            Err(error) => {
                vectors::del_vqs(&mut self.transport, controller, ());
                Err(error)
            }
        }
    }

    /// Makes the pairs and the control queue of virtqueues in the order of
    /// [`wanted_queues`], and fills the receive queues.
    #[inline(never)]
    fn attach(
        &self,
        vqs: Vqs<H, T::Notify>,
        pairs: u16,
    ) -> Result<Box<Open<H, T::Notify>>, NetError> {
        let mut queues = vqs.data.into_iter();
        // On an error they are gone by the end of this function, before
        // the caller resets the device. That finds nothing in them: the buffers
        // are published when it is live, and before DRIVER_OK it may use none
        // (specification 2.1.2).
        let mut open = Box::new(Open {
            active: 1,
            mtu: self.info.mtu,
            pairs: Vec::with_capacity(pairs.into()),
            control: None,
            rung: vqs.rung,
            lease: Lease::default(),
        });
        for _ in 0..pairs {
            let pair = self.attach_pair(&mut queues, &open.lease)?;
            open.pairs.push(Some(pair));
        }
        let control = vqs.control.map(|queue| ControlQueue::new(*queue));
        open.control = control.transpose()?;
        open.lease.begin();
        Ok(open)
    }

    #[inline(never)]
    fn attach_pair(
        &self,
        queues: &mut impl Iterator<Item = Box<Virtqueue<PositionalRing<H>, T::Notify>>>,
        lease: &Lease,
    ) -> Result<QueuePair<H, T::Notify>, NetError> {
        let DeviceInfo {
            negotiated, mtu, ..
        } = self.info;
        let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
            return Err(NetError::NotOpen);
        };
        Ok(QueuePair {
            rx: RxQueue::new(receive, negotiated, self.info.receive_mtu(mtu), lease)?,
            tx: TxQueue::new(transmit, negotiated, mtu, lease)?,
            watchdog: Watchdog::default(),
        })
    }

    /// The first steps of a live device; only such a one may be kicked
    /// (specification 3.1.1).
    #[inline(never)]
    fn activate(&mut self, pairs: u16) {
        if let Some(open) = &mut self.open {
            open.pairs.iter_mut().flatten().for_each(QueuePair::kick);
        }
        self.steer(pairs);
        self.restore();
        // Of what changed since it was reset the device has told nobody.
        self.interrupts.look_at_config();
    }

    /// Resets the device and takes back every queue, buffer and interrupt
    /// (Linux `virtnet_close` and `remove_vq_common`), but for pairs that were
    /// taken and not given back. Frames that were not sent yet are lost.
    /// Stopping twice does nothing.
    #[doc(alias = "ndo_stop")]
    #[inline(never)]
    pub fn stop<I: InterruptController>(&mut self, controller: &mut I) {
        self.past = {
            let (first, rest) = self.parts();
            rest.queue_stats(first)
        };
        let Some(open) = self.open.take() else {
            return;
        };
        // Rings and buffers stay until the reset in `del_vqs`, or for ever.
        vectors::del_vqs(&mut self.transport, controller, open);
    }
}

impl<H: Hal, T: ConfigOps, S: StateRef> Drop for VirtioNet<H, T, S> {
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
#[inline(never)]
fn negotiate<T: ConfigOps>(
    transport: &mut T,
    refused: Features,
) -> Result<(Features, Features), TransportError> {
    // 1. Reset. 2. ACKNOWLEDGE: seen. 3. DRIVER: known how to drive.
    transport.reset()?;
    transport.set_status(DeviceStatus::ACKNOWLEDGE);
    transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    // 4. to 6. Features: of what is offered, what is implemented and wanted.
    let low = transport.read_device_features();
    let high = transport.read_device_features_beyond();
    let offered = Features::from_bits_retain(u128::from(high) << 64 | u128::from(low));
    check_access_platform(transport, low)?;
    if (offered & refused).contains(Features::ACCESS_PLATFORM) {
        return Err(TransportError::AccessPlatform);
    }
    let refused = refused | Features::from_bits_retain(transport.unsupported_features().into());
    let negotiated = (offered & (Features::IMPLEMENTED - refused)).without_dangling();
    // What is implemented has 64 bits.
    transport.finalize_features(negotiated.bits() as u64)?;
    Ok((offered, negotiated))
}

/// The queues of `pairs` pairs, and the control queue if there is one
/// (specification 5.1.2): receiveqN is 2(N-1), transmitqN follows it, and
/// controlq follows all that the device has.
#[inline(never)]
fn wanted_queues(info: &DeviceInfo, pairs: u16, queue_size: u16) -> WantedQueues {
    let data = (0..2 * pairs).map(|index| WantedQueue {
        index,
        shape: data_queue_shape(info.negotiated, queue_size),
        interrupt: true,
    });
    // Without MQ or RSS the device has one pair, whatever it has else.
    let pairs_of_device = if info.negotiated.intersects(Features::SEVERAL_PAIRS) {
        info.max_queue_pairs
    } else {
        1
    };
    let control = info.negotiated.contains(Features::CTRL_VQ).then(|| {
        WantedQueue {
            // At most 65536, which no transport can name; the device answers
            // that there is no such queue.
            index: pairs_of_device.saturating_mul(2),
            shape: ring_shape(info.negotiated, control::CHAIN),
            // Its answers are waited for.
            interrupt: false,
        }
    });
    WantedQueues {
        data: data.collect(),
        control,
    }
}

/// The form of a receive or transmit queue's ring.
pub(super) fn data_queue_shape(negotiated: Features, largest: u16) -> RingShape {
    // Specification 2.7.4.3 and 5.1.6.6: without ANY_LAYOUT the header has a
    // descriptor of its own.
    let chain = if negotiated.any_layout() { 1 } else { 2 };
    RingShape {
        largest,
        ..ring_shape(negotiated, chain)
    }
}

/// The form that the features give a ring whose longest chain has `chain`
/// buffers.
fn ring_shape(negotiated: Features, chain: u16) -> RingShape {
    RingShape {
        layout: if negotiated.contains(Features::RING_PACKED) {
            RingLayout::Packed
        } else {
            RingLayout::Split
        },
        mode: if negotiated.contains(Features::EVENT_IDX) {
            EventMode::EventIdx
        } else {
            EventMode::Flags
        },
        chain,
        indirect: negotiated.contains(Features::INDIRECT_DESC),
        in_order: negotiated.contains(Features::IN_ORDER),
        notification_data: negotiated.contains(Features::NOTIFICATION_DATA),
        largest: MAX_SIZE,
    }
}
