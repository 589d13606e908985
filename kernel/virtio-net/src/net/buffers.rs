//! Frame buffers: memory that the device reads and writes directly, and that
//! the network stack reads and writes in place.

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use super::error::NetError;
use super::features::Features;
use super::header::{Header, header_length};
use crate::queue::{DmaRegion, SlotBuffers};

/// Bytes that a small buffer takes; two fill a page and none crosses one.
const SMALL: usize = 2048;

/// Where the frame starts in its buffer, as a multiple: the header lies directly before
/// it, so that both are one piece of memory whatever the header's length.
const FRAME_ALIGN: usize = 16;

/// Largest frame that fits a small buffer behind a header of up to 16 bytes,
/// Ethernet header included, frame check sequence not.
pub const MAX_FRAME: usize = SMALL - FRAME_ALIGN;

/// Ethernet header and one VLAN tag (IEEE 802.1Q), in bytes.
const ETHERNET: usize = 14 + 4;

/// Largest frame that a device segments or has put together, in bytes: an IPv6
/// packet with 65535 bytes of payload (specification 5.1.6.3), and a VLAN tag.
pub const MAX_LARGE_FRAME: usize = ETHERNET + 40 + 65_535;

/// Memory for the receive buffers of one queue, where fewer would do: what
/// must hold large frames each takes 64 KiB and more.
const RECEIVE_BUDGET: usize = 2 << 20;

/// Where header and frame lie in each buffer of a queue, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Offset of the header.
    header_offset: usize,
    /// Length of the header.
    header_length: usize,
    /// Largest frame.
    pub(crate) capacity: usize,
    /// From one buffer to the next.
    pub(crate) stride: usize,
}

impl Layout {
    /// Buffers for frames of up to `frame` bytes; the small ones, where they do.
    const fn new(header_length: usize, frame: usize) -> Self {
        let offset = header_length.next_multiple_of(FRAME_ALIGN);
        let stride = if offset + frame <= SMALL {
            SMALL
        } else {
            (offset + frame).next_multiple_of(64)
        };
        Self {
            header_offset: offset - header_length,
            header_length,
            capacity: stride - offset,
            stride,
        }
    }

    /// For frames that the driver sends and the device does not segment
    /// (specification 5.1.6.2); `mtu` is the largest IP packet in bytes.
    pub fn transmit(negotiated: Features, mtu: u16) -> Self {
        Self::new(header_length(negotiated), ETHERNET + usize::from(mtu))
    }

    /// For frames that the device segments (specification 5.1.6.2,
    /// `VIRTIO_NET_F_HOST_TSO4` and `_TSO6`).
    pub fn segmented(negotiated: Features) -> Self {
        Self::new(header_length(negotiated), MAX_LARGE_FRAME)
    }

    /// For received frames (specification 5.1.6.3.1); `mtu` is the largest IP
    /// packet in bytes.
    ///
    /// With `VIRTIO_NET_F_MRG_RXBUF` a frame goes on in the next buffer, so
    /// they are small. Each begins with the header, at a multiple of 64 bytes.
    pub fn receive(negotiated: Features, mtu: u16) -> Self {
        let header_length = header_length(negotiated);
        let most = header_length + largest_received(negotiated, mtu);
        let stride = if negotiated.contains(Features::MRG_RXBUF) || most <= SMALL {
            SMALL
        } else {
            most.next_multiple_of(64)
        };
        Self {
            header_offset: 0,
            header_length,
            capacity: stride - header_length,
            stride,
        }
    }

    /// How many of these a receive queue with so many slots gets, a power of two
    /// up to `slots`, which is one: as many as Linux's `try_fill_recv` gives it,
    /// or what a bounded amount of memory holds.
    pub fn receive_count(&self, slots: u16) -> u16 {
        if self.stride == SMALL {
            return slots;
        }
        let affordable = (RECEIVE_BUDGET / self.stride).max(1).ilog2();
        slots.min(1 << affordable.min(15))
    }
}

/// Largest frame that the device may deliver, in bytes, Ethernet header
/// included (specification 5.1.6.3.1).
pub fn largest_received(negotiated: Features, mtu: u16) -> usize {
    if negotiated.intersects(Features::GUEST_TSO4 | Features::GUEST_TSO6) {
        MAX_LARGE_FRAME
    } else {
        ETHERNET + usize::from(mtu)
    }
}

/// Bytes of one piece of buffers, but for buffers that are larger.
const PIECE: usize = 32 << 10;

/// Equal buffers, which go by their number. They lie in pieces of memory: where
/// a machine has run for a while, there may be no large one in a row.
pub(super) struct FrameBuffers<H: Hal> {
    pieces: Vec<DmaRegion<H>>,
    /// What the driver begins with in each, as it sees it: the header of one that is
    /// received, the frame of one that is sent.
    starts: Box<[NonNull<u8>]>,
    /// Buffers a piece, as a power of 2.
    shift: u32,
    layout: Layout,
}

// SAFETY: `starts` points into `pieces`, which this value owns.
unsafe impl<H: Hal> Send for FrameBuffers<H> {}

impl<H: Hal> FrameBuffers<H> {
    /// Allocates `count` zeroed buffers for a queue, if there is memory.
    pub fn new(
        queue: u16,
        layout: Layout,
        count: u16,
        direction: BufferDirection,
    ) -> Result<Self, NetError> {
        let none = NetError::NoBuffers {
            queue,
            count,
            size: layout.stride,
        };
        let shift = (PIECE / layout.stride).max(1).ilog2();
        let count = usize::from(count);
        let mut pieces = Vec::with_capacity(count.div_ceil(1 << shift));
        let mut starts = Vec::with_capacity(count);
        let offset = match direction {
            BufferDirection::DeviceToDriver => layout.header_offset,
            _ => layout.header_offset + layout.header_length,
        };
        while starts.len() < count {
            let here = (count - starts.len()).min(1 << shift);
            let piece = DmaRegion::new(here * layout.stride, direction).ok_or(none)?;
            // SAFETY: both begin within their buffer, and so within the piece.
            let start = |at| unsafe { piece.pointer().add(at * layout.stride + offset) };
            starts.extend((0..here).map(start));
            pieces.push(piece);
        }
        Ok(Self {
            pieces,
            starts: starts.into(),
            shift,
            layout,
        })
    }

    /// How the slots of a ring describe them.
    pub fn slots(&self, negotiated: Features, direction: BufferDirection) -> SlotBuffers {
        SlotBuffers {
            header: self.header_length(),
            capacity: self.capacity(),
            // Specification 2.7.4.3.
            apart: !negotiated.any_layout(),
            writable: matches!(direction, BufferDirection::DeviceToDriver),
        }
    }

    /// Length of the header in bytes.
    #[inline]
    pub fn header_length(&self) -> u32 {
        self.layout.header_length as u32
    }

    /// Largest frame in bytes.
    #[inline]
    pub fn capacity(&self) -> u32 {
        self.layout.capacity as u32
    }

    /// Address of a buffer's header as the device sees it; the frame follows.
    #[inline]
    pub fn header(&self, number: u16) -> PhysAddr {
        let (piece, at) = (number >> self.shift, number & !(!0 << self.shift));
        debug_assert!(usize::from(number) < self.starts.len());
        // SAFETY: as in `frame`; every buffer is in a piece.
        let piece = unsafe { self.pieces.get_unchecked(usize::from(piece)) };
        let offset = usize::from(at) * self.layout.stride + self.layout.header_offset;
        piece.physical() + offset as PhysAddr
    }

    /// What the driver begins with in each: see [`Self::starts`].
    #[inline]
    pub fn starts(&self) -> &[NonNull<u8>] {
        &self.starts
    }

    /// Address of the frame in a buffer for one to send; its header ends there.
    #[inline]
    fn frame(&self, number: u16) -> NonNull<u8> {
        debug_assert!(usize::from(number) < self.starts.len());
        // SAFETY: there is a buffer of that number: the callers, all in this
        // module's parent, have it from the ring or from a count of buffers.
        unsafe { *self.starts.get_unchecked(usize::from(number)) }
    }

    /// The first `length` bytes of a buffer's frame, or all, if there are fewer.
    /// They hold what an earlier frame left there.
    ///
    /// # Safety
    ///
    /// The number is that of a buffer, which the device does not have.
    #[inline]
    pub unsafe fn frame_mut(&mut self, number: u16, length: usize) -> &mut [u8] {
        let length = length.min(self.layout.capacity);
        // SAFETY: the buffer has so many bytes, which were zeroed when they were
        // allocated; the device does not have it, and no other reference
        // exists, because this value is borrowed.
        unsafe { core::slice::from_raw_parts_mut(self.frame(number).as_ptr(), length) }
    }

    /// Copies the first `length` bytes of a frame from one buffer to another;
    /// all, if there are fewer.
    ///
    /// # Safety
    ///
    /// Both numbers are those of buffers, which the device does not have.
    #[cfg(feature = "smoltcp")]
    pub unsafe fn copy_frame(&mut self, from: u16, to: u16, length: usize) {
        let length = length.min(self.layout.capacity);
        // SAFETY: both buffers have so many bytes; the rest is the caller's
        // promise. They may be the same.
        unsafe { self.frame(to).copy_from(self.frame(from), length) }
    }

    /// Writes a buffer's header; what is longer than this part of it stays zero.
    #[inline(always)]
    pub fn write_header(&mut self, number: u16, header: Header) {
        // SAFETY: it is one before which there is room for a header.
        unsafe { write_before(self.frame(number), self.layout.header_length, header) };
    }
}

/// Writes what every header has, of one of `length` bytes, directly before a frame.
///
/// # Safety
///
/// The frame is one to send, of a buffer with such a header. What the device reads
/// meanwhile, in a buffer that it has, is its affair.
#[inline(always)]
pub(super) unsafe fn write_before(frame: NonNull<u8>, length: usize, header: Header) {
    // SAFETY: every header is at least that long; the type needs no alignment.
    unsafe { frame.sub(length).cast::<Header>().write(header) };
}
