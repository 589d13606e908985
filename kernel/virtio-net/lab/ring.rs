//! What the experiments do with a positional ring in two steps.

use virtio_drivers::Hal;

use super::PositionalRing;
use crate::queue::memory::Memory;

impl<H: Hal> PositionalRing<H> {
    /// Adds the next slot with its entry as it was.
    pub(crate) fn add_as_it_is(&mut self) {
        self.next = self.next.wrapping_add(1);
    }

    /// Writes the entry of a slot, of one descriptor: a frame of `length` bytes.
    pub(crate) fn write_entry(&self, slot: u16, length: u32) {
        if let Memory::Split(memory) = &self.memory {
            memory.write_length(slot.into(), length + self.buffers.before_frame());
        }
    }
}
