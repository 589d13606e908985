//! The guest's memory, and the `Hal` that hands it out.
//!
//! All of it belongs to the thread: `Hal` has no `self`, and each test has a
//! thread of its own.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use virtio_net::transport::AccessPlatform;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::faults;

/// First address of the guest's memory. Not 0, so that an address that was
/// never written is no memory.
const BASE: u64 = 0x10_0000;
/// Size of the guest's memory in bytes; pages that nobody touches cost
/// nothing.
const SIZE: usize = 192 << 20;
/// What memory is filled with when it is given back.
const POISON: u8 = 0xa5;

/// A device's memory BAR.
struct Mmio {
    base: u64,
    words: &'static mut [u32],
}

struct Memory {
    guest: GuestMemoryMmap<()>,
    /// Pages at each address that was handed out.
    allocated: BTreeMap<PhysAddr, usize>,
    mmio: Vec<Mmio>,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::new(Memory {
        guest: GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), SIZE)]).unwrap(),
        allocated: BTreeMap::new(),
        mmio: Vec::new(),
    });
}

/// The memory of this thread's guest, as a device sees it.
pub fn guest_memory() -> GuestMemoryMmap<()> {
    MEMORY.with_borrow(|memory| memory.guest.clone())
}

thread_local! {
    static ACCESS_PLATFORM: Cell<bool> = const { Cell::new(false) };
}

/// What [`GuestHal`] says of translated accesses.
pub fn set_access_platform(can: bool) {
    ACCESS_PLATFORM.set(can);
}

// SAFETY: the models of devices translate nothing.
unsafe impl AccessPlatform for GuestHal {
    fn access_platform() -> bool {
        ACCESS_PLATFORM.get()
    }
}

/// Pages that the driver holds now.
pub fn pages_in_use() -> usize {
    MEMORY.with_borrow(|memory| memory.allocated.values().sum())
}

/// Whether `length` bytes at `address` are memory that the driver holds, in
/// one allocation.
pub fn is_allocated(address: PhysAddr, length: u64) -> bool {
    MEMORY.with_borrow(|memory| {
        memory
            .allocated
            .range(..=address)
            .next_back()
            .is_some_and(|(&start, &pages)| address + length <= start + (pages * PAGE_SIZE) as u64)
    })
}

/// Puts a memory BAR of `length` zeroed 32-bit words at the physical address
/// `base`, in the place of what was there, and returns a pointer to them. It
/// stays until the program ends.
pub fn add_mmio(base: u64, length: usize) -> NonNull<u32> {
    let words = vec![0u32; length].leak();
    let pointer = NonNull::new(words.as_mut_ptr()).unwrap();
    MEMORY.with_borrow_mut(|memory| {
        memory.mmio.retain(|mmio| mmio.base != base);
        memory.mmio.push(Mmio { base, words });
    });
    pointer
}

/// Memory of the thread's guest.
pub struct GuestHal;

// SAFETY: every allocation is a range of the guest's mapping that no other
// allocation overlaps, page aligned and zeroed; the mapping stays as long as
// the thread, and longer than the driver's values, which the tests own.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        assert!(pages > 0, "an allocation of no pages");
        if faults::strikes(faults::Step::Memory) {
            return (0, NonNull::dangling());
        }
        MEMORY.with_borrow_mut(|memory| {
            // First fit. A page between two allocations is never handed out,
            // so that what runs over an end hits no other allocation.
            let mut address = BASE;
            for (&start, &taken) in &memory.allocated {
                if address + ((pages + 1) * PAGE_SIZE) as u64 <= start {
                    break;
                }
                address = start + ((taken + 1) * PAGE_SIZE) as u64;
            }
            let bytes = pages * PAGE_SIZE;
            if address + bytes as u64 > BASE + SIZE as u64 {
                return (0, NonNull::dangling());
            }
            let pointer = memory
                .guest
                .get_host_address(GuestAddress(address))
                .unwrap();
            // SAFETY: the range lies within the mapping and nobody else has
            // it.
            unsafe { pointer.write_bytes(0, bytes) };
            memory.allocated.insert(address, pages);
            (address, NonNull::new(pointer).unwrap())
        })
    }

    unsafe fn dma_dealloc(physical: PhysAddr, pointer: NonNull<u8>, pages: usize) -> i32 {
        MEMORY.with_borrow_mut(|memory| {
            assert_eq!(
                memory.allocated.remove(&physical),
                Some(pages),
                "{physical:#x} was not allocated, or with another size"
            );
            let expected = memory
                .guest
                .get_host_address(GuestAddress(physical))
                .unwrap();
            assert_eq!(pointer.as_ptr(), expected);
            // SAFETY: the range was handed out and is given back.
            unsafe { expected.write_bytes(POISON, pages * PAGE_SIZE) };
        });
        super::device::check_not_live(physical);
        0
    }

    unsafe fn mmio_phys_to_virt(physical: PhysAddr, size: usize) -> NonNull<u8> {
        MEMORY.with_borrow_mut(|memory| {
            let mmio = memory
                .mmio
                .iter_mut()
                .find(|mmio| {
                    mmio.base <= physical
                        && physical + size as u64 <= mmio.base + 4 * mmio.words.len() as u64
                })
                .unwrap_or_else(|| panic!("no BAR has {size} bytes at {physical:#x}"));
            let offset = usize::try_from(physical - mmio.base).unwrap();
            // SAFETY: the offset lies within the words.
            unsafe { NonNull::from(&mut *mmio.words).cast::<u8>().add(offset) }
        })
    }

    unsafe fn share(_buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        unreachable!("the driver has memory of its own to share")
    }

    unsafe fn unshare(_physical: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {
        unreachable!("the driver has memory of its own to share")
    }
}
