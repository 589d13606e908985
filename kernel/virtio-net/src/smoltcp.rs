//! The driver as a `smoltcp::phy::Device` (feature `smoltcp`) that serves every
//! offload: checksums both ways, segments both ways.
//!
//! A `TxToken` writes into the memory that the device reads, a `RxToken` reads the
//! driver's copy of what came. A [`Phy`] is made for a poll; when it is dropped, all
//! is in the queues, and [`QueuePair::kick`] tells the device.
//!
//! ```no_run
//! # use smoltcp::iface::{Interface, SocketSet};
//! # use smoltcp::time::Instant;
//! use kickpath_virtio_net::net::VirtioNet;
//! use kickpath_virtio_net::smoltcp::Phy;
//! # use kickpath_virtio_net::transport::ConfigOps;
//! # fn poll<H: virtio_drivers::Hal, T: ConfigOps>(
//! #     net: &mut VirtioNet<H, T>, interface: &mut Interface, sockets: &mut SocketSet<'_>, now: Instant,
//! # ) {
//! interface.poll(now, &mut Phy::of(net), sockets); net.kick();
//! # }
//! ```
//!
//! The device must have been probed with [`SERVED`] among what its options allow.

mod offload;
mod segments;
mod verify;

extern crate alloc;

use alloc::vec::Vec;
use core::num::{NonZeroU16, NonZeroUsize};

use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::time::Instant;
use virtio_drivers::Hal;

use crate::doorbell::{Doorbell, Notify};
use crate::interrupt::StateRef;
use crate::net::coalesce::Segment;
use crate::net::rx::RxFrame;
use crate::net::tx::{LargeTxSlot, TxQueue, TxSlot};
use crate::net::{DeviceInfo, Features, QueuePair, VirtioNet};
use crate::trace::{NO_QUEUE, tracepoint};
use crate::transport::ConfigOps;

/// What may be negotiated because [`Phy`] serves it.
pub const SERVED: Features = Features::OPT_IN;

/// Length in bytes of an Ethernet header, which smoltcp counts as part of the
/// transmission unit.
const ETHERNET_HEADER: usize = 14;

/// Largest frame that smoltcp may hand over to be segmented: the largest IPv4
/// packet.
const MAX_SEGMENTED: usize = ETHERNET_HEADER + u16::MAX as usize;

/// A queue pair for the length of a poll.
pub struct Phy<'p, H: Hal, N: Notify = Doorbell> {
    pair: Option<&'p mut QueuePair<H, N>>,
    info: &'p DeviceInfo,
    /// Frames for which the device does not vouch are verified here.
    verifies: bool,
}

impl<'p, H: Hal, N: Notify> Phy<'p, H, N> {
    /// A pair of the device that `info` is of; `None` while it is stopped, when
    /// nothing is received and nothing can be sent.
    #[inline]
    pub fn new(pair: Option<&'p mut QueuePair<H, N>>, info: &'p DeviceInfo) -> Self {
        Self {
            pair,
            info,
            verifies: info.negotiated.contains(Features::GUEST_CSUM),
        }
    }

    /// Leaves it to the caller to verify the UDP and TCP checksums of frames that are
    /// not [`RxToken::is_verified`]; else those with a wrong one are dropped here. (In
    /// a fragment there is none that could be verified.)
    #[must_use]
    #[inline]
    pub fn unverified(mut self) -> Self {
        self.verifies = false;
        self
    }

    /// The first pair of a device.
    #[inline]
    pub fn of<T: ConfigOps<Notify = N>, S: StateRef>(net: &'p mut VirtioNet<H, T, S>) -> Self {
        let (pair, rest) = net.split();
        Self::new(pair, rest.info())
    }

    /// As smoltcp's `receive`, without the frames that `wanted` says no to, which
    /// may change them; checksums are left to the caller.
    ///
    /// smoltcp wants to be able to reply to whatever it receives. So nothing
    /// is received while the transmit queue is full; it waits at the device.
    #[inline]
    pub fn receive_if(
        &mut self,
        wanted: impl FnMut(&mut RxFrame<'_>) -> bool,
    ) -> Option<(RxToken<'_>, TxToken<'_, H, N>)> {
        let (rx, tx) = self.pair.as_deref_mut()?.queues();
        if !tx.has_room() {
            return None;
        }
        let frame = rx.receive_if(wanted)?;
        Some((RxToken(frame), TxToken::new(tx)))
    }
}

impl<H: Hal, N: Notify> Drop for Phy<'_, H, N> {
    /// Sends what grows still.
    #[inline]
    fn drop(&mut self) {
        if let Some(pair) = &mut self.pair {
            let (_, tx) = pair.queues();
            segments::flush(tx);
        }
    }
}

impl<H: Hal, N: Notify> phy::Device for Phy<'_, H, N> {
    type RxToken<'a>
        = RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = TxToken<'a, H, N>
    where
        Self: 'a;

    #[inline]
    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'_>, TxToken<'_, H, N>)> {
        let verifies = self.verifies;
        self.receive_if(|frame| !verifies || frame.is_checksum_valid() || verify::is_right(frame))
    }

    /// `None` while the transmit queue is full: the packet stays in its
    /// socket. That may be a large one, if the device cuts it into segments.
    #[inline]
    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_, H, N>> {
        let (_, tx) = self.pair.as_deref_mut()?.queues();
        tx.has_large_room().then_some(TxToken::new(tx))
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
        // Over IPv6 see `segments`.
        capabilities.segmentation.tcpv4 = info
            .negotiated
            .contains(Features::HOST_TSO4)
            .then_some(MAX_SEGMENTED)
            .and_then(NonZeroUsize::new);
        capabilities
    }
}

/// A received frame.
pub struct RxToken<'a>(RxFrame<'a>);

impl<'a> RxToken<'a> {
    /// For a device of one's own; [`Phy`] makes them.
    #[inline]
    pub fn new(frame: RxFrame<'a>) -> Self {
        Self(frame)
    }

    /// Whether the device vouches for the checksum of its UDP datagram or TCP
    /// segment. If not, [`Phy`] has verified it, unless it was told not to
    /// ([`Phy::unverified`]).
    #[inline]
    pub fn is_verified(&self) -> bool {
        self.0.is_checksum_valid()
    }
}

impl phy::RxToken for RxToken<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        tracepoint!(Event::RxTokenConsume, NO_QUEUE, self.0.len() as u64);
        f(&self.0)
    }
}

/// Room for one frame in the transmit queue. It takes the buffer only when it
/// is consumed; smoltcp drops most of those that come with received frames.
///
/// It fits two registers, and so does a token around it that has its parts and
/// little else.
pub struct TxToken<'a, H: Hal, N = Doorbell> {
    /// The queue, which has room.
    pub tx: &'a mut TxQueue<H, N>,
    /// Bytes of payload a segment, if the device is to cut the packet.
    pub segment_size: Option<NonZeroU16>,
}

impl<'a, H: Hal, N: Notify> TxToken<'a, H, N> {
    #[inline]
    fn new(tx: &'a mut TxQueue<H, N>) -> Self {
        Self {
            tx,
            segment_size: None,
        }
    }
}

impl<H: Hal, N: Notify> phy::TxToken for TxToken<'_, H, N> {
    #[inline]
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        tracepoint!(Event::TxTokenConsume, NO_QUEUE, length as u64);
        let Self { tx, segment_size } = self;
        let slot = (length <= tx.capacity()).then(|| tx.reserve()).flatten();
        let mut room = match slot {
            Some(slot) => Room::Slot(slot),
            None => Room::other(tx, length),
        };
        // One call for all of them: with several the compiler hands over by
        // memory what `f` needs, for every packet.
        let result = f(match &mut room {
            Room::Slot(slot) => slot.frame_mut(length),
            other => other.other_frame(length),
        });
        match room {
            Room::Slot(slot) => send(slot, length, segment_size),
            other => other.send_other(length, segment_size),
        }
        result
    }

    #[inline]
    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment_size = meta.segmentation_offload_size;
    }
}

/// Where a frame is built. What is not of every packet's way, or long, is apart, and so
/// compiled once for all who write one.
enum Room<'a, H: Hal, N> {
    Slot(TxSlot<'a, H, N>),
    Large(LargeTxSlot<'a, H, N>),
    /// A token exists only where there was room, so this is reached only when the queue
    /// broke in between, or for a frame that no buffer holds.
    Nowhere(Vec<u8>),
}

impl<'a, H: Hal, N: Notify> Room<'a, H, N> {
    #[inline(never)]
    fn other(tx: &'a mut TxQueue<H, N>, length: usize) -> Self {
        // It may be of a connection whose segments grow.
        segments::flush(tx);
        let fits = tx.large_capacity().is_some_and(|most| length <= most);
        let large = fits.then(|| tx.reserve_large()).flatten();
        large.map_or_else(|| Self::Nowhere(alloc::vec![0; length]), Self::Large)
    }

    #[inline(never)]
    fn other_frame(&mut self, length: usize) -> &mut [u8] {
        match self {
            Self::Slot(slot) => slot.frame_mut(length),
            Self::Large(slot) => slot.frame_mut(length),
            Self::Nowhere(bytes) => bytes,
        }
    }

    #[inline(never)]
    fn send_other(self, length: usize, segment_size: Option<NonZeroU16>) {
        if let Self::Large(mut slot) = self {
            let offload = offload::prepare(slot.frame_mut(length), segment_size);
            slot.start_xmit_offloaded(length, offload);
        }
    }
}

/// Sends the frame of `length` bytes in a slot, or has it grow.
#[inline(never)]
fn send<H: Hal, N: Notify>(
    mut slot: TxSlot<'_, H, N>,
    length: usize,
    segment_size: Option<NonZeroU16>,
) {
    if !slot.queue().fills_checksums() {
        return slot.start_xmit(length);
    }
    let cuts_ipv6 = slot.queue().segments.may_grow();
    let frame = slot.frame_mut(length);
    let mut offload = None;
    if let Some(found) = offload::find(frame) {
        if !found.is_ipv4
            && found.is_tcp
            && cuts_ipv6
            && segment_size.is_none()
            && let Some(segment) = Segment::behind(frame, found.start)
        {
            return segments::take_in(slot, length, &segment);
        }
        offload = found.prepare(frame, segment_size);
    }
    segments::keep_room(slot.xmit(length, offload));
}
