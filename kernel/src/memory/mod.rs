//! Physical and virtual memory: from the loader's memory map to page tables,
//! a heap and the [`KernelHal`] that drivers use for DMA.

mod copy;
mod frames;
mod hal;
pub mod heap;
pub mod layout;
pub mod paging;

use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

use crate::arch::cpu;
use crate::entry::{Platform, Protocol, RegionKind};
use frames::FreeMemory;
pub use hal::{KernelHal, dma_pages, set_iommu};
pub use paging::{MapError, map_mmio};

/// Free memory below which the kernel does not start, in bytes: two queues of 256
/// buffers are 1 MiB, sockets and page tables 300 KiB.
const MINIMUM: u64 = 1344 << 10;

/// What is left for the heap when the page tables are built.
static FREE: Mutex<Option<FreeMemory>> = Mutex::new(None);
/// Highest physical address that is mapped as memory below 4 GiB.
static MAPPED_LOW: AtomicU64 = AtomicU64::new(0);

/// Replaces the loader's page tables and stack by the kernel's own and
/// continues with `next`.
///
/// # Panics
///
/// When the CPU or the memory does not suffice.
pub fn take_over(platform: &'static Platform, next: extern "C" fn() -> !) -> ! {
    assert!(
        cpu::has_no_execute(),
        "this CPU cannot protect data from being executed (no NX)"
    );
    assert!(
        platform.memory_map.usable_bytes() != 0,
        "the loader ({}) told of no memory; QEMU's loader gives up on a command line of 4096 bytes",
        platform.protocol
    );
    let image = layout::image();
    // PVH and the Linux boot protocol put the image at its linked physical address;
    // the `bootloader` crate marks the memory that holds it as occupied.
    let taken = match platform.protocol {
        Protocol::Pvh | Protocol::Linux => {
            image.start - layout::IMAGE_OFFSET..image.end - layout::IMAGE_OFFSET
        }
        Protocol::Bios | Protocol::Uefi => 0..0,
    };
    let mut free = FreeMemory::new(&platform.memory_map, taken);
    let sizes = free.pieces().iter().map(|piece| piece.end - piece.start);
    let bytes: u64 = sizes.sum();
    assert!(
        bytes >= MINIMUM,
        "too little memory: {} KiB are free besides the kernel, it needs {} KiB (QEMU: -m 16M)",
        bytes >> 10,
        MINIMUM >> 10,
    );
    // SAFETY: the entry's stub maps the first GiB at address 0, where the lowest
    // memory is; the `bootloader` crate maps all memory at its offset.
    let root = unsafe {
        paging::build(
            &platform.memory_map,
            &mut free,
            platform.physical_memory_offset,
        )
    };
    let root = root.unwrap_or_else(|error| panic!("cannot build page tables: {error}"));
    MAPPED_LOW.store(paging::mapped_low(&platform.memory_map), Ordering::Relaxed);
    *FREE.lock() = Some(free);
    // SAFETY: the tables are complete, and nothing on the stack is needed.
    unsafe { paging::enter(root, next) }
}

/// Makes all free memory the heap.
pub fn init_heap() {
    if let Some(free) = FREE.lock().take() {
        for piece in free.pieces() {
            // SAFETY: the page tables map all memory, and what is in `free`
            // was given to nobody.
            unsafe { heap::claim(piece) };
        }
    }
}

/// Bytes of memory that firmware filled, such as ACPI tables; `None` unless
/// all of them are mapped as memory and none is the heap's.
#[inline(never)]
pub fn firmware_bytes(address: u64, length: usize) -> Option<&'static [u8]> {
    let end = address.checked_add(length as u64)?;
    let map = &crate::platform().memory_map;
    let free = map.touching(address..end).any(|region| {
        region.kind == RegionKind::Usable && region.range.start.max(frames::FIRST_USED) < end
    });
    let mapped = end <= MAPPED_LOW.load(Ordering::Relaxed)
        || map.regions().iter().any(|region| {
            region.kind == RegionKind::Occupied
                && region.range.start <= address
                && end <= region.range.end.min(layout::MEMORY_LIMIT)
        });
    if address == 0 || free || !mapped {
        return None;
    }
    let start = core::ptr::with_exposed_provenance((layout::MEMORY_BASE + address) as usize);
    // SAFETY: all of the range is mapped; firmware's memory is not free memory,
    // so nobody writes to it.
    Some(unsafe { core::slice::from_raw_parts(start, length) })
}
