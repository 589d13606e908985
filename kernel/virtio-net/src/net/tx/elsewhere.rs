//! Memory of frames apart from the slots' own.

extern crate alloc;

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use virtio_drivers::Hal;

use crate::hal::{DmaRegion, Shared};
use crate::queue::PositionalRing;

/// Where the frame is in a [`TxBuffer`]: the longest header fits before it.
pub(super) const FRAME_OFFSET: usize = 64;

/// Buffers that are kept for the next [`TxQueue::take_buffer`](super::TxQueue::take_buffer).
const SPARE: usize = 64;

/// A buffer for one frame, which is nobody's but its owner's until it is sent.
#[must_use = "dropped, it sends nothing"]
pub struct TxBuffer<H: Hal> {
    pub(super) memory: DmaRegion<H>,
}

impl<H: Hal> TxBuffer<H> {
    /// The frame's first bytes, as many as there is room for: what an earlier
    /// frame left there.
    pub fn frame_mut(&mut self, length: usize) -> &mut [u8] {
        let length = length.min(self.memory.size() - FRAME_OFFSET);
        // SAFETY: so many bytes are behind the offset, zeroed when they were
        // allocated; the device has the buffer only while the queue owns it.
        unsafe {
            let frame = self.memory.pointer().add(FRAME_OFFSET);
            core::slice::from_raw_parts_mut(frame.as_ptr(), length)
        }
    }
}

/// What a slot has instead of its own buffer.
pub(super) enum Memory<H: Hal> {
    Buffer(TxBuffer<H>),
    Shared(#[expect(dead_code, reason = "it is dropped")] Shared<H>),
}

/// What a transmit queue has of these.
pub(super) struct Elsewhere<H: Hal> {
    /// At the device, in the order of their slots.
    pub(super) sent: VecDeque<(u16, Memory<H>)>,
    pub(super) spare: Vec<TxBuffer<H>>,
}

impl<H: Hal> Default for Elsewhere<H> {
    fn default() -> Self {
        Self {
            sent: VecDeque::new(),
            spare: Vec::new(),
        }
    }
}

impl<H: Hal> Elsewhere<H> {
    /// Takes back those whose slot is free again. To be called whenever slots
    /// were reclaimed.
    pub(super) fn reclaim(&mut self, ring: &mut PositionalRing<H>) {
        while let Some(&(slot, _)) = self.sent.front()
            && ring.is_free(slot)
        {
            ring.restore(slot);
            if let Some((_, Memory::Buffer(buffer))) = self.sent.pop_front()
                && self.spare.len() < SPARE
            {
                self.spare.push(buffer);
            }
        }
    }
}
