//! What a driver of the `virtio-drivers` family needs of the memory: the
//! [`Hal`].

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use virtio_drivers::{BufferDirection, Hal, PhysAddr};
use virtio_net::transport::AccessPlatform;
use x86_64::VirtAddr;

use super::layout::{MEMORY_BASE, PAGE};
use super::{heap, paging};

/// DMA on a machine without an IOMMU: devices use physical addresses.
#[derive(Clone, Copy, Debug)]
pub struct KernelHal;

impl KernelHal {
    /// The physical address of `buffer` if it is contiguous there.
    fn contiguous(buffer: NonNull<[u8]>) -> Option<PhysAddr> {
        let first = VirtAddr::from_ptr(buffer.as_ptr().cast::<u8>());
        let start = paging::virtual_to_physical(first)?.as_u64();
        if first.as_u64() < MEMORY_BASE + super::layout::MEMORY_LIMIT {
            return Some(start);
        }
        let end = first.as_u64().checked_add(buffer.len() as u64)?;
        let mut page = first.as_u64() / PAGE * PAGE + PAGE;
        while page < end {
            let frame = paging::virtual_to_physical(VirtAddr::new_truncate(page))?;
            if frame.as_u64() - start != page - first.as_u64() {
                return None;
            }
            page += PAGE;
        }
        Some(start)
    }
}

/// Pages of 4096 bytes that drivers have now.
static DMA_PAGES: AtomicUsize = AtomicUsize::new(0);

/// Pages of 4096 bytes that drivers share with their devices now.
pub fn dma_pages() -> usize {
    DMA_PAGES.load(Ordering::Relaxed)
}

/// Whether the machine has an IOMMU, which this kernel does not drive.
static IOMMU: AtomicBool = AtomicBool::new(false);

/// Takes note of whether there is an IOMMU. Before the first driver starts.
pub fn set_iommu(is_there: bool) {
    IOMMU.store(is_there, Ordering::Relaxed);
}

// SAFETY: without an IOMMU nothing is translated, and physical addresses, which
// this `Hal` gives, are right.
unsafe impl AccessPlatform for KernelHal {
    fn access_platform() -> bool {
        !IOMMU.load(Ordering::Relaxed)
    }
}

fn pages_of(size: usize) -> usize {
    size.div_ceil(PAGE as usize)
}

// SAFETY: `dma_alloc` hands out fresh zeroed pages of the heap, which no other
// allocation has, and `mmio_phys_to_virt` an address where nothing but device
// registers is ever mapped.
unsafe impl Hal for KernelHal {
    /// Returns physical address 0 when there is not enough memory, as
    /// [`virtio_drivers`] expects.
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        match heap::allocate_pages(pages) {
            Some(memory) => {
                DMA_PAGES.fetch_add(pages, Ordering::Relaxed);
                (memory.as_ptr().addr() as u64 - MEMORY_BASE, memory)
            }
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller got both from `dma_alloc`.
        unsafe { heap::free_pages(vaddr, pages) };
        DMA_PAGES.fetch_sub(pages, Ordering::Relaxed);
        0
    }

    /// Returns [`NonNull::dangling`] when the registers cannot be mapped, and
    /// says why in the log: the `virtio-net` driver takes that for an error.
    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        paging::map_mmio(paddr, size as u64).unwrap_or_else(|error| {
            log::warn!("{error}");
            NonNull::dangling()
        })
    }

    /// Heap memory is shared where it is. A buffer in the kernel's image, such
    /// as one on the stack, may be scattered and then goes through a copy.
    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        if let Some(address) = Self::contiguous(buffer) {
            return address;
        }
        let (address, copy) = Self::dma_alloc(pages_of(buffer.len()), direction);
        assert!(address != 0, "no memory for a copy of a scattered buffer");
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the copy is as long as the buffer and apart from it; the
            // buffer is valid and left alone meanwhile, says the caller.
            unsafe {
                ptr::copy_nonoverlapping(buffer.as_ptr().cast::<u8>(), copy.as_ptr(), buffer.len());
            }
        }
        address
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        if Self::contiguous(buffer).is_some() {
            return;
        }
        let Some(copy) = NonNull::new(ptr::with_exposed_provenance_mut::<u8>(
            (MEMORY_BASE + paddr) as usize,
        )) else {
            return;
        };
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: as in `share`, in the other direction.
            unsafe {
                ptr::copy_nonoverlapping(copy.as_ptr(), buffer.as_ptr().cast::<u8>(), buffer.len());
            }
        }
        // SAFETY: `share` allocated the copy for a buffer of this length.
        unsafe { heap::free_pages(copy, pages_of(buffer.len())) };
    }
}
