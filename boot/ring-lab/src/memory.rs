//! The memory that driver and device share: that of the page, or of the test.

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Pages of the heap; an address is the same for both sides.
pub struct Pages;

fn layout(pages: usize) -> Option<Layout> {
    Layout::from_size_align(pages.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok()
}

// SAFETY: `dma_alloc` hands out zeroed, aligned pages that nobody else has. There are no
// registers, and nothing is shared but by it.
unsafe impl Hal for Pages {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let nothing = (0, NonNull::dangling());
        let Some(layout) = layout(pages).filter(|layout| layout.size() > 0) else {
            return nothing;
        };
        // SAFETY: its size is not zero.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) });
        memory.map_or(nothing, |memory| {
            (memory.as_ptr().expose_provenance() as PhysAddr, memory)
        })
    }

    unsafe fn dma_dealloc(_physical: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        let Some(layout) = layout(pages) else {
            return -1;
        };
        // SAFETY: `dma_alloc` has allocated it with this layout, says the caller.
        unsafe { dealloc(memory.as_ptr(), layout) };
        0
    }

    unsafe fn mmio_phys_to_virt(_physical: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::dangling()
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>().expose_provenance() as PhysAddr
    }

    unsafe fn unshare(_physical: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}
