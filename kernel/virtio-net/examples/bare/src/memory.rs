//! The heap, and what drivers of the `virtio-drivers` family need of the memory.

use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::ptr::{NonNull, with_exposed_provenance_mut};

use linked_list_allocator::LockedHeap;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

const HEAP_SIZE: usize = 16 << 20;

#[repr(align(4096))]
struct Memory(UnsafeCell<[u8; HEAP_SIZE]>);

// SAFETY: `init` alone uses it.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([0; HEAP_SIZE]));

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Gives the heap its memory.
///
/// # Safety
///
/// To be called once.
pub unsafe fn init() {
    // SAFETY: the memory has this size and belongs to the heap from now on.
    unsafe { HEAP.lock().init(MEMORY.0.get().cast(), HEAP_SIZE) };
}

/// Virtual addresses are physical ones here, and devices see the memory as the
/// CPU does.
pub struct BareHal;

fn layout(pages: usize) -> Option<Layout> {
    Layout::from_size_align(pages.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok()
}

// SAFETY: memory for devices comes from the heap, zeroed and by pages, and is
// nobody else's until it is given back. Registers are where they are.
unsafe impl Hal for BareHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let memory = layout(pages)
            .filter(|layout| layout.size() > 0)
            .and_then(|layout| {
                // SAFETY: the size is not 0.
                NonNull::new(unsafe { alloc_zeroed(layout) })
            });
        // Address 0 says that there is none.
        memory.map_or((0, NonNull::dangling()), |memory| {
            (memory.as_ptr().expose_provenance() as PhysAddr, memory)
        })
    }

    unsafe fn dma_dealloc(_: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        let Some(layout) = layout(pages) else {
            return -1;
        };
        // SAFETY: the caller got it by `dma_alloc`, with the same layout.
        unsafe { dealloc(memory.as_ptr(), layout) };
        0
    }

    unsafe fn mmio_phys_to_virt(physical: PhysAddr, _size: usize) -> NonNull<u8> {
        // A dangling pointer says that there is nothing.
        NonNull::new(with_exposed_provenance_mut(physical as usize)).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>().expose_provenance() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _direction: BufferDirection) {}
}
