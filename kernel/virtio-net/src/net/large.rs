//! Transmit buffers for frames that the device segments: few, and used in
//! turns, whatever slot of the ring a frame takes.

extern crate alloc;

use alloc::vec::Vec;

use virtio_drivers::{BufferDirection, Hal};

use super::buffers::{FrameBuffers, Layout};
use super::error::NetError;
use crate::queue::{QueueError, Ring, Virtqueue};

/// Large buffers a transmit queue. A connection's window is a frame or two, and
/// each takes 64 KiB.
const COUNT: u16 = 8;

/// In a chain's token: it lies in the large buffer of this number. Others have
/// the number of a descriptor, which is smaller (specification 2.6).
const LARGE: u16 = 1 << 15;

/// See the module.
pub(super) struct LargeBuffers<H: Hal> {
    buffers: FrameBuffers<H>,
    count: u16,
    /// The numbers of those that the device does not have; room for all.
    free: Vec<u16>,
}

impl<H: Hal> LargeBuffers<H> {
    /// Allocates them for the transmit queue with this ring.
    pub(super) fn new(ring: &Ring<H>, layout: Layout) -> Result<Self, NetError> {
        let count = COUNT.min(ring.capacity());
        let buffers = FrameBuffers::new(layout, count, 1, 0, BufferDirection::DriverToDevice)
            .ok_or(NetError::NoBuffers {
                queue: ring.queue(),
                count,
                size: layout.stride(),
            })?;
        Ok(Self {
            buffers,
            count,
            free: (0..count).collect(),
        })
    }

    /// Their memory.
    pub(super) fn buffers(&self) -> &FrameBuffers<H> {
        &self.buffers
    }

    /// As [`FrameBuffers::frame_mut`].
    ///
    /// # Safety
    ///
    /// The device does not have the buffer.
    pub(super) unsafe fn frame_mut(&mut self, number: u16, length: usize) -> &mut [u8] {
        // SAFETY: the caller's promise; numbers come from `free`.
        unsafe { self.buffers.frame_mut(number, length) }
    }

    /// Largest frame, in bytes.
    pub(super) fn capacity(&self) -> usize {
        self.buffers.capacity() as usize
    }

    /// Whether the device does not have all.
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether the device has any.
    pub(super) fn are_out(&self) -> bool {
        self.free.len() < self.count.into()
    }

    /// One that the device does not have.
    pub(super) fn next_free(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// Takes the one that [`Self::next_free`] has named, and returns the token
    /// for its chain.
    pub(super) fn take(&mut self, number: u16) -> u16 {
        let taken = self.free.pop();
        debug_assert_eq!(taken, Some(number));
        LARGE | number
    }

    /// Takes back every used chain, large or not.
    pub(super) fn reclaim(&mut self, queue: &mut Virtqueue<H>) -> Result<(), QueueError> {
        while let Some(used) = queue.pop_used()? {
            if used.token & LARGE != 0 {
                self.free.push(used.token & !LARGE);
            }
        }
        Ok(())
    }
}
