//! What goes into a virtqueue.

use virtio_drivers::PhysAddr;

/// In a descriptor's flags, in either layout (specification 2.7.5 and 2.8.6): the
/// chain goes on with another.
pub(super) const DESC_F_NEXT: u16 = 1;
/// The device writes the buffer (else it reads it).
pub(super) const DESC_F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(super) const DESC_F_INDIRECT: u16 = 4;

/// One physically contiguous piece of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Address as the device sees it.
    pub address: PhysAddr,
    /// Length in bytes, 1 to 2^32 - 1 (specification 2.7.5 and 2.8.4).
    pub length: u32,
    /// Whether the device writes it; else it reads it.
    pub writable: bool,
}

impl Buffer {
    /// A piece of `length` bytes at `address`.
    #[inline]
    pub const fn new(address: PhysAddr, length: u32, writable: bool) -> Self {
        Self {
            address,
            length,
            writable,
        }
    }

    /// The address as trace records have it.
    #[inline]
    pub(super) fn trace_address(&self) -> u64 {
        self.address | u64::from(self.writable) << 63
    }

    /// Bytes that the device may write.
    #[inline]
    pub(super) fn writable_length(&self) -> u32 {
        if self.writable { self.length } else { 0 }
    }
}
