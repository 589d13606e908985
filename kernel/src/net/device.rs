//! The driver as smoltcp's physical device, with no copy in between: a
//! `TxToken` writes into the memory that the device reads, an `RxToken` reads
//! where the device wrote.

use alloc::vec::Vec;
use core::num::{NonZeroU16, NonZeroUsize};

use kickpath_abi::status::Status;
use kickpath_services::StatusSource;
use kickpath_trace::{Event, NO_QUEUE, tracepoint};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::time::Instant;
use virtio_net::net::rx::{RxFrame, RxQueue};
use virtio_net::net::tx::{TxPlace, TxQueue, TxSlot};
use virtio_net::net::{DeviceInfo, Features, QueuePair, Rest, VirtioNet};

use super::cores::{Cores, Own};
use super::report::{self, Fixed};
use crate::memory::KernelHal;
use crate::virtio::KernelTransport;

/// Whichever transport the device was taken by.
pub type NicTransport = KernelTransport;

/// The network device of this kernel.
pub type Nic = VirtioNet<KernelHal, NicTransport>;

/// Length in bytes of an Ethernet header, which smoltcp counts as part of the
/// transmission unit.
const ETHERNET_HEADER: usize = 14;

/// Largest frame that smoltcp may hand over to be segmented: the largest IPv4
/// packet.
const MAX_SEGMENTED: usize = ETHERNET_HEADER + u16::MAX as usize;

/// The network stack's handle of a core's part of the device, for the length
/// of a poll. One type for all cores: with a copy of the network stack for
/// each, the compiler makes the first core's path longer.
pub struct PhyDevice<'c> {
    /// The core's pair; `None` while the device is stopped.
    pair: Option<&'c mut QueuePair<KernelHal>>,
    info: &'c DeviceInfo,
    reporter: Reporter<'c>,
}

/// Who makes the status report.
enum Reporter<'c> {
    /// The first core, which has the device.
    First {
        rest: Rest<'c, KernelHal, NicTransport>,
        fixed: &'c Fixed,
        /// The other cores, if there are any.
        cores: Option<&'c Cores>,
    },
    /// Another core.
    Own(Own<'c>),
}

impl<'c> PhyDevice<'c> {
    /// The first core's part: the device itself, and its first pair.
    #[inline]
    pub fn first(nic: &'c mut Nic, fixed: &'c Fixed, cores: Option<&'c Cores>) -> Self {
        let (pair, rest) = nic.split();
        Self {
            pair,
            info: rest.info(),
            reporter: Reporter::First { rest, fixed, cores },
        }
    }

    /// Another core's part: its pair.
    #[inline]
    pub fn own(pair: &'c mut QueuePair<KernelHal>, info: &'c DeviceInfo, own: Own<'c>) -> Self {
        Self {
            pair: Some(pair),
            info,
            reporter: Reporter::Own(own),
        }
    }

    /// The queues of the core's pair; `None` while the device is stopped.
    #[inline]
    pub fn queues(&mut self) -> Option<(&mut RxQueue<KernelHal>, &mut TxQueue<KernelHal>)> {
        Some(self.pair.as_mut()?.queues())
    }
}

impl StatusSource for PhyDevice<'_> {
    fn status(&self) -> Status {
        let pair = self.pair.as_deref();
        match &self.reporter {
            Reporter::First { rest, fixed, cores } => {
                let mut status = report::status(fixed, pair, rest);
                if let Some(cores) = cores {
                    cores.complete(&mut status, pair, rest);
                }
                status
            }
            Reporter::Own(own) => own.status(pair),
        }
    }
}

impl phy::Device for PhyDevice<'_> {
    type RxToken<'a>
        = RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = TxToken<'a>
    where
        Self: 'a;

    /// smoltcp wants to be able to reply to whatever it receives. So nothing
    /// is received while the transmit queue is full; it waits at the device.
    #[inline]
    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        let (rx, tx) = self.queues()?;
        if !tx.has_room() {
            return None;
        }
        let frame = if rx.verifies_checksums() {
            receive_verified(rx)?
        } else {
            // smoltcp has been told that nobody has verified it.
            rx.receive()?
        };
        let frame = Some(frame);
        Some((
            RxToken { rx, frame },
            TxToken {
                tx,
                segment_size: None,
            },
        ))
    }

    /// `None` while the transmit queue is full: the packet stays in its
    /// socket. That may be a large one, if the device cuts it into segments.
    #[inline]
    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        let (_, tx) = self.queues()?;
        tx.has_large_room().then_some(TxToken {
            tx,
            segment_size: None,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let info = self.info;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = ETHERNET_HEADER + usize::from(info.mtu);
        // The header of IPv4 is nobody's affair but ours.
        let checksum = match (
            info.negotiated.contains(Features::GUEST_CSUM),
            info.negotiated.contains(Features::CSUM),
        ) {
            (false, false) => Checksum::Both,
            (false, true) => Checksum::Rx,
            (true, false) => Checksum::Tx,
            (true, true) => Checksum::None,
        };
        capabilities.checksum.udp = checksum;
        capabilities.checksum.tcp = checksum;
        // smoltcp 0.14 drops an IPv6 packet that is larger than the MTU, even if
        // it is to be segmented. So over IPv6 it cuts its segments itself, and
        // `TxQueue::xmit_with` puts them together again.
        capabilities.segmentation.tcpv4 = info
            .negotiated
            .contains(Features::HOST_TSO4)
            .then_some(MAX_SEGMENTED)
            .and_then(NonZeroUsize::new);
        capabilities
    }
}

/// Receives a frame with right checksums: the device vouches for some, all
/// others are verified here.
fn receive_verified(rx: &mut RxQueue<KernelHal>) -> Option<RxFrame> {
    loop {
        let frame = rx.receive()?;
        if frame.is_checksum_valid() || kickpath_services::has_right_checksums(rx.frame(&frame)) {
            return Some(frame);
        }
        rx.recycle(frame);
    }
}

/// A received frame; its buffer goes back to the device when this is dropped.
pub struct RxToken<'a> {
    pub(super) rx: &'a mut RxQueue<KernelHal>,
    /// `Some` until dropped.
    pub(super) frame: Option<RxFrame>,
}

impl phy::RxToken for RxToken<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let bytes = match &self.frame {
            Some(frame) => self.rx.frame(frame),
            None => &[],
        };
        tracepoint!(Event::RxTokenConsume, NO_QUEUE, bytes.len() as u64);
        f(bytes)
    }
}

impl Drop for RxToken<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            self.rx.recycle(frame);
        }
    }
}

/// Room for one frame in the transmit queue. It takes the buffer only when it
/// is consumed; smoltcp drops most of those that come with received frames.
pub struct TxToken<'a> {
    pub(super) tx: &'a mut TxQueue<KernelHal>,
    /// Bytes of payload a segment, if the device is to cut the packet.
    pub(super) segment_size: Option<NonZeroU16>,
}

impl phy::TxToken for TxToken<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        tracepoint!(Event::TxTokenConsume, NO_QUEUE, length as u64);
        let Self { tx, segment_size } = self;
        let mut room = if tx.fills_checksums() {
            tx.place(length, segment_size).map(Room::Place)
        } else {
            tx.reserve().map(Room::Slot)
        };
        let mut nowhere = Vec::new();
        // One call for all of them: with several the compiler hands over by
        // memory what `f` needs, for every packet.
        let result = f(match &mut room {
            Some(Room::Slot(slot)) => slot.frame_mut(length),
            Some(Room::Place(place)) => place.frame_mut(),
            None => discarded(&mut nowhere, length),
        });
        match room {
            Some(Room::Slot(slot)) => slot.start_xmit(length),
            Some(Room::Place(place)) => place.xmit(),
            None => (),
        }
        result
    }

    #[inline]
    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment_size = meta.segmentation_offload_size;
    }
}

/// Where a frame is built.
enum Room<'a> {
    Slot(TxSlot<'a, KernelHal>),
    Place(TxPlace<'a, KernelHal>),
}

/// Memory for a frame that goes nowhere. A token exists only where there was
/// room, so this is reached only when the queue broke in between.
#[cold]
fn discarded(nowhere: &mut Vec<u8>, length: usize) -> &mut [u8] {
    nowhere.resize(length, 0);
    nowhere
}
