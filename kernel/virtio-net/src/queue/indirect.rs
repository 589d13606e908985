//! Tables of indirect descriptors (specification 2.7.5.3 and 2.8.7): a chain
//! of several buffers takes one descriptor of the ring, which points to a
//! table of its own.
//!
//! Each slot has its table from the start, so that nothing is allocated when
//! a chain is added.

use core::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use super::dma::DmaRegion;

/// Bytes that a descriptor takes, in either layout.
pub(super) const DESCRIPTOR_SIZE: usize = 16;

/// One table a slot.
pub(super) struct IndirectTables<H: Hal> {
    memory: DmaRegion<H>,
    /// Bytes a table, a multiple of 16: where the tables must begin
    /// (specification 2.7 and 2.8.4).
    stride: usize,
}

impl<H: Hal> IndirectTables<H> {
    /// Bytes that `tables` tables of `length` descriptors take.
    pub(super) fn bytes(tables: u16, length: u16) -> usize {
        usize::from(tables) * usize::from(length) * DESCRIPTOR_SIZE
    }

    /// Allocates `tables` tables of `length` descriptors. `None` when there
    /// is no memory.
    pub(super) fn new(tables: u16, length: u16) -> Option<Self> {
        let memory = DmaRegion::new(Self::bytes(tables, length), BufferDirection::DriverToDevice)?;
        Some(Self {
            memory,
            stride: usize::from(length) * DESCRIPTOR_SIZE,
        })
    }

    /// Address of a slot's table as the device sees it.
    #[inline]
    pub(super) fn physical(&self, slot: u16) -> PhysAddr {
        self.memory.physical() + (usize::from(slot) * self.stride) as PhysAddr
    }

    /// Descriptor `index` of a slot's table.
    #[inline]
    pub(super) fn descriptor(&self, slot: u16, index: u16) -> NonNull<u8> {
        let index = usize::from(index) * DESCRIPTOR_SIZE;
        let offset = usize::from(slot) * self.stride + index;
        debug_assert!(index < self.stride && offset < self.memory.size());
        // SAFETY: rings with tables have slots of one descriptor, as many as
        // there are tables, and chains no longer than a table.
        unsafe { self.memory.pointer().add(offset) }
    }
}
