//! Memory that driver and device share.

use core::marker::PhantomData;
use core::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Physically contiguous pages shared with the device, given back when
/// dropped.
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
