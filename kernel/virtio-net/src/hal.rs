//! All that is asked of the embedder's [`Hal`]: memory that driver and device share,
//! and registers. Who goes to another version of that trait has this file to change.

extern crate alloc;

use alloc::boxed::Box;
use core::marker::PhantomData;
use core::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Physically contiguous pages shared with the device, given back when dropped.
///
/// Whoever owns one must have reset the device, or the queue that uses the
/// pages, before it is dropped.
pub struct DmaRegion<H: Hal> {
    physical: PhysAddr,
    pointer: NonNull<u8>,
    pages: usize,
    hal: PhantomData<H>,
}

// SAFETY: the pages are owned by this value alone and `Hal`'s functions have
// no thread affinity; all access goes through `&mut` owners or raw pointers.
unsafe impl<H: Hal> Send for DmaRegion<H> {}

impl<H: Hal> DmaRegion<H> {
    /// Allocates at least `bytes` zeroed bytes, page aligned. `None` when
    /// `bytes` is 0 or the `Hal` has no such memory (it says so by a physical
    /// address of 0).
    pub fn new(bytes: usize, direction: BufferDirection) -> Option<Self> {
        let pages = bytes.div_ceil(PAGE_SIZE);
        if pages == 0 {
            return None;
        }
        let (physical, pointer) = H::dma_alloc(pages, direction);
        // Lazily: a value of what was not allocated must not come to be, for
        // it would be given back when dropped.
        (physical != 0).then(|| Self {
            physical,
            pointer,
            pages,
            hal: PhantomData,
        })
    }

    /// Address of the first byte as the device sees it.
    #[inline]
    pub fn physical(&self) -> PhysAddr {
        self.physical
    }

    /// Address of the first byte as the driver sees it.
    #[inline]
    pub fn pointer(&self) -> NonNull<u8> {
        self.pointer
    }

    /// Size in bytes, a multiple of 4096.
    #[inline]
    pub fn size(&self) -> usize {
        self.pages * PAGE_SIZE
    }
}

impl<H: Hal> Drop for DmaRegion<H> {
    fn drop(&mut self) {
        // SAFETY: these are the values that `dma_alloc` returned, and they
        // are given back once.
        let status = unsafe { H::dma_dealloc(self.physical, self.pointer, self.pages) };
        if status != 0 {
            log::error!(
                "the Hal did not take back {} pages at {:#x}: {status}",
                self.pages,
                self.physical
            );
        }
    }
}

/// The caller's memory, while the device reads it.
pub(crate) struct Shared<H: Hal> {
    memory: Box<[u8]>,
    address: PhysAddr,
    hal: PhantomData<H>,
}

impl<H: Hal> Shared<H> {
    /// Lets the device read memory, which is not empty.
    pub(crate) fn new(mut memory: Box<[u8]>) -> Self {
        let whole = NonNull::from(&mut *memory);
        // SAFETY: it is valid and not empty, and nobody else has it.
        let address = unsafe { H::share(whole, BufferDirection::DriverToDevice) };
        Self {
            memory,
            address,
            hal: PhantomData,
        }
    }

    /// Address of the first byte as the device sees it.
    pub(crate) fn physical(&self) -> PhysAddr {
        self.address
    }
}

impl<H: Hal> Drop for Shared<H> {
    fn drop(&mut self) {
        let memory = NonNull::from(&mut *self.memory);
        // SAFETY: it was shared under this address, and the device is done with
        // it: its slot came back, or the device was reset.
        unsafe { H::unshare(self.address, memory, BufferDirection::DriverToDevice) };
    }
}

/// Makes `size` bytes of registers accessible. `None` where that cannot be:
/// `Hal::mmio_phys_to_virt` has no error, and returns [`NonNull::dangling`] then.
///
/// # Safety
///
/// As there: they are registers of a device, and no memory.
pub(crate) unsafe fn map_registers<H: Hal>(physical: PhysAddr, size: usize) -> Option<NonNull<u8>> {
    // SAFETY: the caller's promise.
    let base = unsafe { H::mmio_phys_to_virt(physical, size) };
    (base != NonNull::dangling()).then_some(base)
}
