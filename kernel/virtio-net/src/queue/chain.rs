//! What goes into a virtqueue and what comes back.

use virtio_drivers::PhysAddr;

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

/// A buffer chain that the device has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The token given to [`Ring::add`](super::Ring::add), any 16 bits. The
    /// device never sees it.
    pub token: u16,
    /// Bytes that the device wrote, at most the chain's writable bytes.
    pub length: u32,
}

/// The number of a free slot, which the next chain will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head(pub(super) usize);

impl Head {
    /// The number, 0 to size - 1, a multiple of the slot's length. A caller
    /// that keeps a buffer a slot knows by it which is free. In a split ring
    /// it is the slot's first descriptor, in a packed ring the buffer id.
    #[inline]
    pub fn descriptor(self) -> u16 {
        // Below the ring's size, at most 2^15, so it fits.
        self.0 as u16
    }
}
