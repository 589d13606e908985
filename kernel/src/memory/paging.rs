//! The kernel's page tables: built once, on top of the loader's, and extended
//! for device registers afterwards.

use core::arch::asm;
use core::ops::Range;
use core::ptr::{self, NonNull};

use spin::Mutex;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3, Efer, EferFlags};
use x86_64::structures::paging::mapper::MapToError;
use x86_64::structures::paging::page_table::PageTableEntry;
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageSize, PageTable, PageTableFlags, PhysFrame,
    Size1GiB, Size2MiB, Size4KiB, Translate,
};
use x86_64::{PhysAddr, VirtAddr};

use super::layout::{
    self, MEMORY_BASE, MEMORY_LIMIT, MMIO_BASE, MMIO_LIMIT, PAGE, Stack, WINDOW, WINDOWS_BASE,
};
use super::{FreeMemory, heap};
use crate::arch::cpu;
use crate::entry::{MemoryMap, Region, RegionKind};

const READ_ONLY: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::NO_EXECUTE);
const READ_WRITE: PageTableFlags = READ_ONLY.union(PageTableFlags::WRITABLE);
/// With the page attribute table as it is after reset, these two bits select
/// "uncacheable" whatever the memory type range registers say (Intel SDM
/// volume 3, table 12-7).
const UNCACHED: PageTableFlags = READ_WRITE
    .union(PageTableFlags::NO_CACHE)
    .union(PageTableFlags::WRITE_THROUGH);

/// The registers of one device are kilobytes; more would cost page tables for
/// a BAR that no virtio device has.
const MAX_MMIO: u64 = 64 << 20;
/// A reserved region at the end of memory holds firmware tables if it is at
/// most this long, in bytes.
const MAX_FIRMWARE_TABLES: u64 = 64 << 20;
/// Below here is what 32-bit addresses reach: memory, then device registers.
const FOUR_GIB: u64 = 1 << 32;

/// Why something could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The range is empty, wraps, ends above what the CPU can address, or lies in
    /// one more window than there are.
    #[error("{1} bytes of device registers at {0:#x} are out of reach")]
    OutOfRange(PhysAddr, u64),
    #[error("{1} bytes of device registers at {0:#x} are more than any device has")]
    TooLarge(PhysAddr, u64),
    #[error("device registers at {0:#x} are where the memory is")]
    IsMemory(PhysAddr),
    #[error("the loader left out the kernel's page at {0:#x}")]
    NotLoaded(VirtAddr),
    #[error("no memory for page tables")]
    NoFrames,
    #[error("{0:#x} is mapped already")]
    Conflict(VirtAddr),
}

/// Builds the kernel's page tables in `free` memory.
///
/// # Safety
///
/// The loader's page tables must map the kernel's image, and all memory in
/// `free` at `loader_offset`.
pub unsafe fn build(
    map: &MemoryMap,
    free: &mut FreeMemory,
    loader_offset: u64,
) -> Result<PhysFrame, MapError> {
    let offset = VirtAddr::new_truncate(loader_offset);
    let root = free.allocate_frame().ok_or(MapError::NoFrames)?;
    let table: *mut PageTable = (offset + root.start_address().as_u64()).as_mut_ptr();
    // SAFETY: the frame is free memory, mapped at this address as the caller
    // promises, and nobody else has it.
    let table = unsafe {
        ptr::write_bytes(table, 0, 1);
        &mut *table
    };
    // SAFETY: as above for the frames of both tables.
    let (mut tables, loader_tables) = unsafe {
        (
            OffsetPageTable::new(table, offset),
            OffsetPageTable::new(active_root(offset), offset),
        )
    };

    for (range, flags) in [
        (layout::text(), PageTableFlags::PRESENT),
        (layout::rodata(), READ_ONLY),
        (layout::data(), READ_WRITE),
    ] {
        map_image(&mut tables, &loader_tables, range, flags, free)?;
    }
    for range in memory_extents(map) {
        map_memory(&mut tables, range, free)?;
    }
    for address in (layout::text().start..layout::rodata().end).step_by(PAGE as usize) {
        let frame = loaded_frame(&loader_tables, VirtAddr::new_truncate(address))?;
        hide_frame(&mut tables, frame, free)?;
    }
    Ok(root)
}

/// The frame where the loader put a page of the image.
fn loaded_frame(
    loader_tables: &OffsetPageTable<'_>,
    address: VirtAddr,
) -> Result<PhysFrame, MapError> {
    loader_tables
        .translate_addr(address)
        .map(PhysFrame::containing_address)
        .ok_or(MapError::NotLoaded(address))
}

/// The root of the page tables in force.
///
/// # Safety
///
/// They must be mapped at `offset`, and not be referenced elsewhere.
unsafe fn active_root(offset: VirtAddr) -> &'static mut PageTable {
    let (frame, _) = Cr3::read();
    let table: *mut PageTable = (offset + frame.start_address().as_u64()).as_mut_ptr();
    // SAFETY: CR3 holds the address of a page table; the caller answers for
    // the rest.
    unsafe { &mut *table }
}

/// Maps pages of the image to the frames where the loader put them. Guard
/// pages are left out.
fn map_image(
    tables: &mut OffsetPageTable<'_>,
    loader_tables: &OffsetPageTable<'_>,
    range: Range<u64>,
    flags: PageTableFlags,
    free: &mut FreeMemory,
) -> Result<(), MapError> {
    for address in range.step_by(PAGE as usize) {
        if layout::guarded_stack(address).is_some() {
            continue;
        }
        let address = VirtAddr::new_truncate(address);
        let frame = loaded_frame(loader_tables, address)?;
        let page: Page = Page::containing_address(address);
        // SAFETY: the page is part of this kernel's image and gets the frame
        // that it already has.
        unsafe { tables.map_to(page, frame, flags, free) }
            .map_err(map_error)?
            .ignore();
    }
    Ok(())
}

/// The end of what is mapped as memory below 4 GiB: the end of the last region
/// there that holds something.
pub fn mapped_low(map: &MemoryMap) -> u64 {
    let is_low = |region: &&Region| is_memory(region) && region.range.end <= FOUR_GIB;
    let ends = map.regions().iter().filter(is_low);
    let end = ends.map(|region| region.range.end).max();
    let end = end.unwrap_or_default();
    // SeaBIOS keeps ACPI's tables in a reserved region at the end of memory.
    let tables = map.regions().iter().find(|region| {
        region.range.start == end && region.range.end - region.range.start <= MAX_FIRMWARE_TABLES
    });
    tables.map_or(end, |region| region.range.end)
}

fn is_memory(region: &Region) -> bool {
    region.kind != RegionKind::Reserved
}

/// What to map as memory: below 4 GiB all from 0 to [`mapped_low`], so that
/// firmware tables are there too; above, the memory itself.
fn memory_extents(map: &MemoryMap) -> impl Iterator<Item = Range<u64>> + '_ {
    let is_high = |region: &&Region| is_memory(region) && region.range.end > FOUR_GIB;
    let high = map.regions().iter().filter(is_high);
    core::iter::once(0..mapped_low(map)).chain(high.map(|region| region.range.clone()))
}

/// Maps memory at [`MEMORY_BASE`] in the largest pages that hold nothing else,
/// at least 2 MiB each.
fn map_memory(
    tables: &mut OffsetPageTable<'_>,
    range: Range<u64>,
    free: &mut FreeMemory,
) -> Result<(), MapError> {
    let mut address = range.start / Size2MiB::SIZE * Size2MiB::SIZE;
    let end = range.end.min(MEMORY_LIMIT).next_multiple_of(Size2MiB::SIZE);
    let has_1gib_pages = cpu::has_1gib_pages();
    while address < end {
        let whole_gib = address.is_multiple_of(Size1GiB::SIZE) && end - address >= Size1GiB::SIZE;
        let (mapped, size) = if whole_gib {
            let mut mapped = map_large::<Size1GiB>(tables, address, free);
            if mapped.is_ok() && !has_1gib_pages {
                // Many times faster than page by page.
                mapped = split_gib(tables, address, free);
            }
            (mapped, Size1GiB::SIZE)
        } else {
            let mapped = map_large::<Size2MiB>(tables, address, free);
            (mapped, Size2MiB::SIZE)
        };
        match mapped {
            // Two regions may share the large page at their border.
            Ok(()) | Err(MapError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
        address += size;
    }
    Ok(())
}

fn map_large<S: PageSize>(
    tables: &mut OffsetPageTable<'_>,
    address: u64,
    free: &mut FreeMemory,
) -> Result<(), MapError>
where
    for<'a> OffsetPageTable<'a>: Mapper<S>,
{
    let page = Page::<S>::containing_address(VirtAddr::new_truncate(MEMORY_BASE + address));
    let frame = PhysFrame::<S>::containing_address(PhysAddr::new_truncate(address));
    // SAFETY: the page lies where only memory is mapped, and the memory below
    // is only used through what the heap hands out.
    unsafe { tables.map_to(page, frame, READ_WRITE, free) }
        .map_err(map_error)?
        .ignore();
    Ok(())
}

/// Takes a frame of the kernel's code or constants out of the mapping of all
/// memory, where it could be written to. Larger pages around it are split.
fn hide_frame(
    tables: &mut OffsetPageTable<'_>,
    frame: PhysFrame,
    free: &mut FreeMemory,
) -> Result<(), MapError> {
    let offset = tables.phys_offset();
    let address = VirtAddr::new_truncate(MEMORY_BASE + frame.start_address().as_u64());
    let page: Page = Page::containing_address(address);
    let mut table = tables.level_4_table_mut();
    // Each level's index, and the size of a page one level below.
    for (index, size_below) in [
        (page.p4_index(), None),
        (page.p3_index(), Some(Size2MiB::SIZE)),
        (page.p2_index(), Some(Size4KiB::SIZE)),
    ] {
        let entry = &mut table[index];
        if entry.is_unused() {
            return Ok(());
        }
        if let Some(size) = size_below
            && entry.flags().contains(PageTableFlags::HUGE_PAGE)
        {
            let lower = free.allocate_frame().ok_or(MapError::NoFrames)?;
            split(entry, lower, size, offset);
        }
        // SAFETY: the entry leads to a table that this module made in free
        // memory; the only other way to it is `tables`, which is borrowed.
        table = unsafe { &mut *(offset + entry.addr().as_u64()).as_mut_ptr() };
    }
    table[page.p1_index()].set_unused();
    Ok(())
}

/// Splits the 1 GiB page that maps the memory at `address`.
fn split_gib(
    tables: &mut OffsetPageTable<'_>,
    address: u64,
    free: &mut FreeMemory,
) -> Result<(), MapError> {
    let offset = tables.phys_offset();
    let address = VirtAddr::new_truncate(MEMORY_BASE + address);
    let upper = &tables.level_4_table_mut()[address.p4_index()];
    let upper: *mut PageTable = (offset + upper.addr().as_u64()).as_mut_ptr();
    let lower = free.allocate_frame().ok_or(MapError::NoFrames)?;
    // SAFETY: the page is mapped, so this is its table; the only other way to
    // it is `tables`, which is borrowed.
    let entry = unsafe { &mut (&mut *upper)[address.p3_index()] };
    split(entry, lower, Size2MiB::SIZE, offset);
    Ok(())
}

/// Replaces a large page by a table of smaller ones in the frame `lower`.
fn split(entry: &mut PageTableEntry, lower: PhysFrame, size: u64, offset: VirtAddr) {
    let flags = if size == Size4KiB::SIZE {
        READ_WRITE
    } else {
        READ_WRITE | PageTableFlags::HUGE_PAGE
    };
    let table: *mut PageTable = (offset + lower.start_address().as_u64()).as_mut_ptr();
    // SAFETY: the frame is free memory, mapped at this address, and nobody
    // else has it. All bit patterns are entries; each is written.
    let table = unsafe { &mut *table };
    let mut address = entry.addr();
    for smaller in table.iter_mut() {
        smaller.set_addr(address, flags);
        address += size;
    }
    // Protection is the entries' matter, as it is in the tables of `map_to`.
    entry.set_frame(lower, PageTableFlags::PRESENT | PageTableFlags::WRITABLE);
}

fn map_error<S: PageSize>(error: MapToError<S>) -> MapError {
    match error {
        MapToError::FrameAllocationFailed => MapError::NoFrames,
        MapToError::ParentEntryHugePage => MapError::Conflict(VirtAddr::zero()),
        MapToError::PageAlreadyMapped(frame) => MapError::Conflict(VirtAddr::new_truncate(
            MEMORY_BASE + frame.start_address().as_u64(),
        )),
    }
}

/// Loads the page tables at `root` with write protection and no-execute in
/// force, and continues with `next` on the empty main stack.
///
/// # Safety
///
/// `root` must come from [`build`]. Everything on the stack is lost.
pub unsafe fn enter(root: PhysFrame, next: extern "C" fn() -> !) -> ! {
    // SAFETY: the new tables map the code and the data of this kernel where
    // they are. EFER.NXE goes first, because they use that bit; the caller
    // checked that the CPU has it.
    unsafe {
        Efer::update(|flags| flags.insert(EferFlags::NO_EXECUTE_ENABLE));
        Cr0::update(|flags| flags.insert(Cr0Flags::WRITE_PROTECT));
        asm!(
            "mov cr3, {root}",
            "mov rsp, {stack}",
            "xor ebp, ebp",
            "call {next}",
            "ud2",
            root = in(reg) root.start_address().as_u64(),
            stack = in(reg) Stack::Main.top().as_u64(),
            next = in(reg) next,
            options(noreturn),
        )
    }
}

/// Serialises changes of the page tables.
static LOCK: Mutex<()> = Mutex::new(());

/// The numbers of the windows in use: physical addresses divided by their length.
static WINDOWS: Mutex<heapless::Vec<u64, 32>> = Mutex::new(heapless::Vec::new());

/// Virtual minus physical address of the registers from `address` to `end`. `None`
/// when they need a window and there is none left, or more than one.
fn mmio_base(address: u64, end: u64) -> Option<u64> {
    if end <= MMIO_LIMIT {
        return Some(MMIO_BASE);
    }
    let number = address / WINDOW;
    if (end - 1) / WINDOW != number {
        return None;
    }
    let mut windows = WINDOWS.lock();
    let known = windows.iter().position(|window| *window == number);
    let index = known.or_else(|| {
        windows.push(number).ok()?;
        Some(windows.len() - 1)
    })?;
    let place = WINDOWS_BASE + index as u64 * WINDOW;
    Some(place.wrapping_sub(number * WINDOW))
}

/// Maps `size` bytes of device registers at physical address `address`,
/// uncached. Registers that are mapped already are found where they are.
#[inline(never)]
pub fn map_mmio(address: u64, size: u64) -> Result<NonNull<u8>, MapError> {
    let start = PhysAddr::new_truncate(address);
    let end = address
        .checked_add(size)
        .filter(|&end| size != 0 && end - 1 <= cpu::max_physical_address())
        .ok_or(MapError::OutOfRange(start, size))?;
    if size > MAX_MMIO {
        return Err(MapError::TooLarge(start, size));
    }
    let memory = &crate::platform().memory_map;
    if memory.touching(address..end).any(is_memory) {
        return Err(MapError::IsMemory(start));
    }

    let _lock = LOCK.lock();
    let base = mmio_base(address, end).ok_or(MapError::OutOfRange(start, size))?;
    let offset = VirtAddr::new_truncate(MEMORY_BASE);
    // SAFETY: all memory is mapped at `MEMORY_BASE`, and the lock makes this
    // the only reference to the tables.
    let mut tables = unsafe { OffsetPageTable::new(active_root(offset), offset) };
    for frame in (address / PAGE * PAGE..end).step_by(PAGE as usize) {
        let page: Page = Page::containing_address(VirtAddr::new_truncate(base.wrapping_add(frame)));
        let frame = PhysFrame::containing_address(PhysAddr::new_truncate(frame));
        // SAFETY: the page lies where only device registers are mapped, each
        // at its own address.
        match unsafe { tables.map_to(page, frame, UNCACHED, &mut HeapFrames) } {
            Ok(flush) => flush.flush(),
            Err(MapToError::PageAlreadyMapped(present)) if present == frame => {}
            Err(error) => return Err(map_error(error)),
        }
    }
    NonNull::new(VirtAddr::new_truncate(base.wrapping_add(address)).as_mut_ptr())
        .ok_or(MapError::OutOfRange(start, size))
}

/// Maps memory at `range`, whole pages where nothing is mapped: a stack. What was
/// mapped until an error stays.
pub fn map_stack(range: Range<u64>) -> Result<(), MapError> {
    let _lock = LOCK.lock();
    let offset = VirtAddr::new_truncate(MEMORY_BASE);
    // SAFETY: as in `map_mmio`.
    let mut tables = unsafe { OffsetPageTable::new(active_root(offset), offset) };
    for address in range.step_by(PAGE as usize) {
        let page: Page = Page::containing_address(VirtAddr::new_truncate(address));
        let frame = HeapFrames.allocate_frame().ok_or(MapError::NoFrames)?;
        // SAFETY: the frame is fresh memory that nobody else has.
        unsafe { tables.map_to(page, frame, READ_WRITE, &mut HeapFrames) }
            .map_err(map_error)?
            .flush();
    }
    Ok(())
}

/// The physical address behind a mapped virtual one.
pub fn virtual_to_physical(address: VirtAddr) -> Option<PhysAddr> {
    let value = address.as_u64();
    if (MEMORY_BASE..MEMORY_BASE + MEMORY_LIMIT).contains(&value) {
        return Some(PhysAddr::new_truncate(value - MEMORY_BASE));
    }
    let _lock = LOCK.lock();
    let offset = VirtAddr::new_truncate(MEMORY_BASE);
    // SAFETY: as in `map_mmio`.
    unsafe { OffsetPageTable::new(active_root(offset), offset) }.translate_addr(address)
}

/// Page tables come from the heap once there is one.
struct HeapFrames;

// SAFETY: every allocation is a page of its own, and is never given back.
unsafe impl FrameAllocator<Size4KiB> for HeapFrames {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let page = heap::allocate_pages(1)?;
        let address = page.as_ptr().addr() as u64 - MEMORY_BASE;
        Some(PhysFrame::containing_address(PhysAddr::new_truncate(
            address,
        )))
    }
}
