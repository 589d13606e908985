//! Frame buffers: memory that the device reads and writes directly, and that
//! the network stack reads and writes in place.

use core::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use super::features::Features;
use super::header::header_length;
use crate::queue::DmaRegion;

/// Bytes that a small buffer takes; two fill a page and none crosses one.
const SMALL: usize = 2048;

/// Where the frame starts in its buffer, as a multiple: the header lies
/// directly before it, so that both are one piece of memory whatever the
/// header's length.
const FRAME_ALIGN: usize = 16;

/// Largest frame that fits a small buffer behind a header of up to 16 bytes,
/// Ethernet header included, frame check sequence not.
pub const MAX_FRAME: usize = SMALL - FRAME_ALIGN;

/// Ethernet header and one VLAN tag (IEEE 802.1Q), in bytes.
const ETHERNET: usize = 14 + 4;

/// Largest frame that a device segments or has put together, in bytes: an
/// IPv6 packet with 65535 bytes of payload (specification 5.1.6.3), and a
/// VLAN tag.
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
    capacity: usize,
    /// From one buffer to the next.
    stride: usize,
}

impl Layout {
    /// Buffers for frames of up to `frame` bytes; the small ones, where they
    /// do.
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
    /// they are small and lie without a gap: a frame over several neighbours is
    /// one piece of memory.
    pub fn receive(negotiated: Features, mtu: u16) -> Self {
        let header_length = header_length(negotiated);
        if negotiated.contains(Features::MRG_RXBUF) {
            Self {
                header_offset: 0,
                header_length,
                capacity: SMALL - header_length,
                stride: SMALL,
            }
        } else {
            Self::new(header_length, largest_received(negotiated, mtu))
        }
    }

    /// How many of these a receive queue with so many slots gets, 1 to `slots`:
    /// as many as Linux's `try_fill_recv` gives it, or what a bounded amount of
    /// memory holds.
    pub fn receive_count(&self, slots: u16) -> u16 {
        if self.stride == SMALL {
            return slots;
        }
        let affordable = (RECEIVE_BUDGET / self.stride).max(1);
        u16::try_from(affordable).map_or(slots, |count| count.min(slots))
    }

    /// Largest frame, in bytes.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// From one buffer to the next, in bytes.
    pub const fn stride(&self) -> usize {
        self.stride
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

/// Equal buffers in one piece of memory, which go by their number.
pub(super) struct FrameBuffers<H: Hal> {
    memory: DmaRegion<H>,
    /// Address of the first buffer's header as the device sees it.
    first_header: PhysAddr,
    /// Address of the first buffer's frame as the driver sees it.
    first_frame: NonNull<u8>,
    /// Bytes of memory a number.
    step: u32,
    header_length: u32,
    capacity: u32,
}

// SAFETY: `first_frame` points into `memory`, which this value owns.
unsafe impl<H: Hal> Send for FrameBuffers<H> {}

impl<H: Hal> FrameBuffers<H> {
    /// Allocates zeroed buffers. Their numbers are the multiples of
    /// `numbers_each`, a power of two, below `numbers`; `tail` bytes follow the
    /// last one, which the device never sees. `None` when there is no memory.
    ///
    /// A transmit queue numbers its buffers by the first descriptor of their
    /// slot, so that no division is needed to find one.
    pub fn new(
        layout: Layout,
        numbers: u16,
        numbers_each: u16,
        tail: usize,
        direction: BufferDirection,
    ) -> Option<Self> {
        let step = layout.stride.checked_div(usize::from(numbers_each))?;
        let bytes = (usize::from(numbers) * step).checked_add(tail)?;
        // Offsets are computed in 32 bits.
        u32::try_from(bytes).ok()?;
        let memory = DmaRegion::new(bytes, direction)?;
        let frame_offset = layout.header_offset + layout.header_length;
        if frame_offset > memory.size() {
            return None;
        }
        // SAFETY: it lies within the memory.
        let first_frame = unsafe { memory.pointer().add(frame_offset) };
        Some(Self {
            first_header: memory.physical() + layout.header_offset as PhysAddr,
            first_frame,
            // All fit: they are parts of `bytes`.
            step: step as u32,
            header_length: layout.header_length as u32,
            capacity: layout.capacity as u32,
            memory,
        })
    }

    /// Length of the header in bytes.
    #[inline]
    pub fn header_length(&self) -> u32 {
        self.header_length
    }

    /// Largest frame in bytes.
    #[inline]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// From one buffer to the next in bytes, where each has a number of its
    /// own.
    #[inline]
    pub fn stride(&self) -> u32 {
        self.step
    }

    /// Address of a buffer's header as the device sees it; the frame follows.
    #[inline]
    pub fn header(&self, number: u16) -> PhysAddr {
        self.first_header + PhysAddr::from(u32::from(number) * self.step)
    }

    /// Address of a buffer's frame as the driver sees it; its header ends
    /// there.
    #[inline]
    pub fn frame(&self, number: u16) -> NonNull<u8> {
        let offset = u32::from(number) * self.step;
        debug_assert!((offset as usize) < self.memory.size());
        // SAFETY: a buffer of that number, or the tail, begins at `offset`
        // from the first; the callers, all in this module's parent, have the
        // number from the ring or from a count of buffers.
        unsafe { self.first_frame.add(offset as usize) }
    }

    /// The first `length` bytes of a buffer's frame, or all, if there are fewer.
    /// They hold what an earlier frame left there.
    ///
    /// # Safety
    ///
    /// The number is that of a buffer, which the device does not have.
    #[inline]
    pub unsafe fn frame_mut(&mut self, number: u16, length: usize) -> &mut [u8] {
        let length = length.min(self.capacity as usize);
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
    pub unsafe fn copy_frame(&mut self, from: u16, to: u16, length: usize) {
        let length = length.min(self.capacity as usize);
        // SAFETY: both buffers have so many bytes; the rest is the caller's
        // promise. They may be the same.
        unsafe { self.frame(to).copy_from(self.frame(from), length) }
    }

    /// Address of a buffer's header as the driver sees it.
    #[inline]
    pub fn header_pointer(&self, number: u16) -> NonNull<u8> {
        // SAFETY: the header lies directly before the frame.
        unsafe { self.frame(number).sub(self.header_length as usize) }
    }
}
