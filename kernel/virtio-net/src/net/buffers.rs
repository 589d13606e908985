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

/// A fixed number of equal buffers.
pub struct FrameBuffers<H: Hal> {
    memory: DmaRegion<H>,
    count: u16,
    header_length: u16,
}

impl<H: Hal> FrameBuffers<H> {
    /// Allocates `count` zeroed buffers for frames behind headers of
    /// `header_length` bytes, at most 16. `None` when there is no memory.
    pub fn new(count: u16, header_length: usize, direction: BufferDirection) -> Option<Self> {
        if header_length > FRAME_OFFSET {
            return None;
        }
        let memory = DmaRegion::new(usize::from(count) * STRIDE, direction)?;
        Some(Self {
            memory,
            count,
            header_length: header_length as u16,
        })
    }

    /// Number of buffers.
    #[inline]
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Length of the header in bytes.
    #[inline]
    pub fn header_length(&self) -> usize {
        usize::from(self.header_length)
    }

    /// Address of the header as the device sees it; the frame follows.
    #[inline]
    pub fn physical(&self, index: u16) -> PhysAddr {
        self.memory.physical()
            + (usize::from(index) * STRIDE + FRAME_OFFSET - usize::from(self.header_length))
                as PhysAddr
    }

    /// Address of the frame as the driver sees it; [`MAX_FRAME`] bytes.
    #[inline]
    pub fn frame(&self, index: u16) -> NonNull<u8> {
        debug_assert!(index < self.count);
        // SAFETY: `index` is below `count` (checked by the callers in this
        // crate, which only pass numbers that they drew from `0..count`), and
        // the memory holds `count` strides.
        unsafe {
            self.memory
                .pointer()
                .add(usize::from(index) * STRIDE + FRAME_OFFSET)
        }
    }
}
