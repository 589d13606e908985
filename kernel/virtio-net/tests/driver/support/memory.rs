//! The guest's memory, and the `Hal` that hands it out.
//!
//! All of it belongs to the thread: `Hal` has no `self`, and each test has a
//! thread of its own. What its device may write another thread can write, too:
//! [`DeviceWritable`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

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
    /// Those of them that the device may write.
    writable: DeviceWritable,
    mmio: Vec<Mmio>,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::new(Memory {
        guest: GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), SIZE)]).unwrap(),
        allocated: BTreeMap::new(),
        writable: DeviceWritable::default(),
        mmio: Vec::new(),
    });
}

/// The memory that the driver holds now and lets the device write: rings, receive
/// buffers, the control queue's. Not what is only sent.
#[derive(Clone, Default)]
pub struct DeviceWritable(Arc<Mutex<BTreeMap<PhysAddr, Region>>>);

/// An allocation that the device may write.
#[allow(dead_code)] // The tests of `kernel/services` use it.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Its length in bytes.
    pub length: usize,
    /// The device writes it and reads nothing there: receive buffers.
    pub only_written: bool,
}

#[allow(dead_code)] // The tests of `kernel/services` use it.
impl DeviceWritable {
    /// That of this thread's driver.
    pub fn of_this_thread() -> Self {
        MEMORY.with_borrow(|memory| memory.writable.clone())
    }

    /// Calls `f` with the regions as they are; none comes or goes meanwhile.
    pub fn with<R>(&self, f: impl FnOnce(&BTreeMap<PhysAddr, Region>) -> R) -> R {
        f(&self.0.lock().unwrap())
    }

    /// Whether `length` bytes at `address` are memory that is for the device to
    /// write only.
    pub fn is_for_received(&self, address: PhysAddr, length: u64) -> bool {
        self.with(|regions| {
            regions
                .range(..=address)
                .next_back()
                .is_some_and(|(start, region)| {
                    let end = (address - start).saturating_add(length);
                    region.only_written && end <= region.length as u64
                })
        })
    }
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

/// Pages of the largest piece that the driver holds now.
pub fn largest_piece() -> usize {
    MEMORY.with_borrow(|memory| memory.allocated.values().copied().max().unwrap_or(0))
}

/// Pages that the driver holds now.
pub fn pages_in_use() -> usize {
    MEMORY.with_borrow(|memory| memory.allocated.values().sum())
}

/// Takes back what the driver has left to a device that did not finish its reset: that
/// device is gone now, and so must every driver be. Returns how many pages it was.
#[allow(dead_code)] // The fuzz targets use it.
pub fn take_back_leaked() -> usize {
    MEMORY.with_borrow_mut(|memory| {
        memory.writable.0.lock().unwrap().clear();
        std::mem::take(&mut memory.allocated).values().sum()
    })
}

/// Whether `length` bytes at `address` are memory that the driver holds, in
/// one allocation.
pub fn is_allocated(address: PhysAddr, length: u64) -> bool {
    MEMORY.with_borrow(|memory| {
        memory
            .allocated
            .range(..=address)
            .next_back()
            .is_some_and(|(&start, &pages)| {
                address.saturating_add(length) <= start + (pages * PAGE_SIZE) as u64
            })
    })
}

/// Fails if a part of a ring (specification 2.7, 2.8) is not memory that the driver holds:
/// there the device reads and writes without asking again.
pub fn check_ring(areas: [u64; 3], size: u16, is_packed: bool) {
    let size = u64::from(size);
    let lengths = match is_packed {
        true => [16 * size, 4, 4],
        false => [16 * size, 6 + 2 * size, 6 + 8 * size],
    };
    for (area, length) in areas.into_iter().zip(lengths) {
        assert!(
            is_allocated(area, length),
            "{area:#x}, {length} bytes of a ring, is not the driver's memory"
        );
    }
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
    fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
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
            if direction != BufferDirection::DriverToDevice {
                let region = Region {
                    length: bytes,
                    only_written: direction == BufferDirection::DeviceToDriver,
                };
                memory.writable.0.lock().unwrap().insert(address, region);
            }
            (address, NonNull::new(pointer).unwrap())
        })
    }

    unsafe fn dma_dealloc(physical: PhysAddr, pointer: NonNull<u8>, pages: usize) -> i32 {
        MEMORY.with_borrow_mut(|memory| {
            memory.writable.0.lock().unwrap().remove(&physical);
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

    /// What is shared goes through a copy, as where the device reaches a part of
    /// the memory only.
    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        assert_eq!(direction, BufferDirection::DriverToDevice);
        let (physical, copy) = Self::dma_alloc(buffer.len().div_ceil(PAGE_SIZE), direction);
        // SAFETY: the copy is as long, and apart from it.
        unsafe { copy.copy_from_nonoverlapping(buffer.cast(), buffer.len()) };
        physical
    }

    unsafe fn unshare(physical: PhysAddr, buffer: NonNull<[u8]>, _direction: BufferDirection) {
        // The device may be live, but it is done with the frame.
        MEMORY.with_borrow_mut(|memory| {
            let pages = memory.allocated.remove(&physical);
            assert_eq!(pages, Some(buffer.len().div_ceil(PAGE_SIZE)));
            let copy = memory.guest.get_host_address(GuestAddress(physical));
            // SAFETY: `share` has allocated it.
            unsafe { copy.unwrap().write_bytes(POISON, buffer.len()) };
        });
    }
}
