//! A ring's memory, in the layout that was negotiated.

use virtio_drivers::{Hal, PhysAddr};

use super::error::QueueError;
use super::packed::PackedMemory;
use super::shape::{RingLayout, RingShape};
use super::split::SplitMemory;

/// What both sides see of a ring.
pub(super) enum Memory<H: Hal> {
    Split(SplitMemory<H>),
    Packed(PackedMemory<H>),
}

impl<H: Hal> Memory<H> {
    /// Allocates it for a queue of `size` descriptors; no interrupts are asked for.
    // Always: a copy more would be on the stack meanwhile.
    #[inline(always)]
    pub(super) fn new(queue: u16, size: u16, shape: &RingShape) -> Result<Self, QueueError> {
        match shape.layout {
            RingLayout::Split => SplitMemory::new(queue, size, shape.mode).map(Self::Split),
            RingLayout::Packed => PackedMemory::new(queue, size, shape.mode).map(Self::Packed),
        }
    }

    /// See [`QueueRing::areas`](super::QueueRing::areas).
    pub(super) fn areas(&self) -> [PhysAddr; 3] {
        match self {
            Self::Split(memory) => memory.areas(),
            Self::Packed(memory) => memory.areas(),
        }
    }

    /// See [`QueueRing::disable_interrupts`](super::QueueRing::disable_interrupts).
    #[inline]
    pub(super) fn disable_interrupts(&mut self, last_used_idx: u16) {
        match self {
            Self::Split(memory) => memory.disable_interrupts(last_used_idx),
            Self::Packed(memory) => memory.disable_interrupts(),
        }
    }
}
