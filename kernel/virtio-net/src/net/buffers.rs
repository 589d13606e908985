//! Frame buffers: memory that the device reads and writes directly, and that
//! the network stack reads and writes in place.

use core::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::queue::DmaRegion;

/// Bytes a buffer takes; two fill a page and none crosses one.
const STRIDE: usize = 2048;

/// Where the frame starts in its buffer. The header lies directly before it,
/// so that both are one piece of memory whatever the header's length.
const FRAME_OFFSET: usize = 16;

/// Largest frame that fits a buffer, in bytes, Ethernet header included,
/// frame check sequence not.
pub const MAX_FRAME: usize = STRIDE - FRAME_OFFSET;

/// A fixed number of equal buffers, one a slot of a ring. A buffer goes by the
/// number of its slot's first descriptor, so that no division is needed to
/// find it.
pub struct FrameBuffers<H: Hal> {
    memory: DmaRegion<H>,
    /// Address of the first buffer's header as the device sees it.
    first_header: PhysAddr,
    /// Address of the first buffer's frame as the driver sees it.
    first_frame: NonNull<u8>,
    /// Bytes of memory a descriptor: [`STRIDE`] by the slot's length.
    stride: u32,
    header_length: u32,
}

// SAFETY: `first_frame` points into `memory`, which this value owns.
unsafe impl<H: Hal> Send for FrameBuffers<H> {}

impl<H: Hal> FrameBuffers<H> {
    /// Allocates zeroed buffers for frames behind headers of `header_length`
    /// bytes, at most 16: one for each slot of a ring of `size` descriptors
    /// and `slot_length` descriptors a slot, both powers of two. `None` when
    /// there is no memory.
    pub fn new(
        size: u16,
        slot_length: u16,
        header_length: usize,
        direction: BufferDirection,
    ) -> Option<Self> {
        let stride = STRIDE.checked_div(usize::from(slot_length))?;
        if header_length > FRAME_OFFSET {
            return None;
        }
        let memory = DmaRegion::new(usize::from(size) * stride, direction)?;
        // SAFETY: the memory holds at least one stride.
        let first_frame = unsafe { memory.pointer().add(FRAME_OFFSET) };
        Some(Self {
            first_header: memory.physical() + (FRAME_OFFSET - header_length) as PhysAddr,
            first_frame,
            // At most STRIDE and FRAME_OFFSET.
            stride: stride as u32,
            header_length: header_length as u32,
            memory,
        })
    }

    /// Length of the header in bytes.
    #[inline]
    pub fn header_length(&self) -> u32 {
        self.header_length
    }

    /// Address of the header of the slot that begins with descriptor `head`,
    /// as the device sees it; the frame follows.
    #[inline]
    pub fn header(&self, head: u16) -> PhysAddr {
        self.first_header + PhysAddr::from(u32::from(head) * self.stride)
    }

    /// Address of the frame as the driver sees it; [`MAX_FRAME`] bytes.
    #[inline]
    pub fn frame(&self, head: u16) -> NonNull<u8> {
        let offset = u32::from(head) * self.stride;
        debug_assert!((offset as usize) < self.memory.size());
        // SAFETY: `head` is the first descriptor of a slot, so that a whole
        // stride of memory begins at `offset`; the callers in this crate have
        // it from the ring.
        unsafe { self.first_frame.add(offset as usize) }
    }
}
