//! What a positional ring records in a trace.

use virtio_drivers::{Hal, PhysAddr};

use super::PositionalRing;
use crate::trace::tracepoint;

impl<H: Hal> PositionalRing<H> {
    /// Records that the slot was added which [`Self::add`] has added last.
    pub(crate) fn trace_add(&self, length: u32) {
        let slot = self.next.wrapping_sub(1) & self.mask;
        self.trace_add_elsewhere(self.address(slot), length);
    }

    /// As [`Self::trace_add`], for [`Self::add_elsewhere`].
    pub(crate) fn trace_add_elsewhere(&self, address: PhysAddr, length: u32) {
        let count = self.next.wrapping_sub(1);
        let head = (count & self.mask) << self.shift;
        let entry = count & u32::from(self.size - 1);
        let (header, frame) = self.pieces(address, length);
        if let Some(header) = header {
            tracepoint!(
                Event::Descriptor,
                self.queue,
                u64::from(head) | u64::from(header.length) << 32,
                header.trace_address()
            );
        }
        tracepoint!(
            Event::Add,
            self.queue,
            u64::from(head) | u64::from(entry) << 16 | u64::from(frame.length) << 32,
            frame.trace_address()
        );
    }

    /// Records a used entry: the head that it names, its place and its length, and
    /// how far the device is.
    pub(super) fn trace_pop(&self, head: u16, entry: u64, length: u32, next: u16) {
        tracepoint!(
            Event::PopUsed,
            self.queue,
            u64::from(head) | entry << 16 | u64::from(length) << 32,
            u64::from(next)
        );
    }
}
