//! The heap: all free memory, at its place in the mapping of all memory. So a
//! heap allocation is contiguous physical memory as well, fit for DMA.

use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use talc::TalcLock;
use talc::source::Manual;

use super::layout::{MEMORY_BASE, PAGE};

/// The allocator, and what it has been asked for.
///
/// Interrupt handlers must not allocate: the lock may be held by what they
/// interrupted.
struct CountingHeap {
    talc: TalcLock<spin::Mutex<()>, Manual>,
    allocations: AtomicU64,
    used: AtomicU64,
    size: AtomicU64,
}

#[global_allocator]
static HEAP: CountingHeap = CountingHeap {
    talc: TalcLock::new(Manual),
    allocations: AtomicU64::new(0),
    used: AtomicU64::new(0),
    size: AtomicU64::new(0),
};

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

// Not inlined: where memory is given back is in hundreds of places.
// SAFETY: passes everything on to `talc`, which is a correct allocator.
unsafe impl GlobalAlloc for CountingHeap {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are `talc`'s requirements.
        let memory = unsafe { self.talc.alloc(layout) };
        if !memory.is_null() {
            add(&self.allocations, 1);
            add(&self.used, layout.size() as u64);
        }
        memory
    }

    #[inline(never)]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        add(&self.used, (layout.size() as u64).wrapping_neg());
        // SAFETY: the caller's promises are `talc`'s requirements.
        unsafe { self.talc.dealloc(memory, layout) }
    }

    #[inline(never)]
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are `talc`'s requirements.
        let moved = unsafe { self.talc.realloc(memory, layout, new_size) };
        if !moved.is_null() {
            add(&self.allocations, 1);
            let growth = (new_size as u64).wrapping_sub(layout.size() as u64);
            add(&self.used, growth);
        }
        moved
    }
}

/// Gives the heap a piece of free physical memory. A piece too small to be of
/// use is ignored.
///
/// # Safety
///
/// The memory must be mapped at [`MEMORY_BASE`], and nobody else may use it.
pub unsafe fn claim(piece: &Range<u64>) {
    let Ok(size) = usize::try_from(piece.end.saturating_sub(piece.start)) else {
        return;
    };
    let base = core::ptr::with_exposed_provenance_mut((MEMORY_BASE + piece.start) as usize);
    // SAFETY: the caller's promises are `talc`'s requirements.
    if unsafe { HEAP.talc.lock().claim(base, size) }.is_some() {
        add(&HEAP.size, size as u64);
    }
}

/// Runs `work` while nobody can allocate, `work` included: it would wait for
/// ever.
pub fn while_locked<T>(work: impl FnOnce() -> T) -> T {
    let _guard = HEAP.talc.lock();
    work()
}

/// Takes all memory that is free, in pieces of a page or more. It comes back
/// when this is dropped.
pub fn take_all() -> Vec<Vec<u8>> {
    /// More than the pieces of any heap that is not cut to shreds.
    const PIECES: usize = 4096;
    let mut pieces = Vec::new();
    if pieces.try_reserve_exact(PIECES).is_err() {
        return pieces;
    }
    let sizes = (PAGE.trailing_zeros()..usize::BITS - 1).rev();
    for size in sizes.map(|bits| 1_usize << bits) {
        let mut piece = Vec::new();
        while pieces.len() < PIECES && piece.try_reserve_exact(size).is_ok() {
            pieces.push(core::mem::take(&mut piece));
        }
    }
    pieces
}

/// What the heap has been used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapStats {
    /// Allocations and reallocations since boot.
    pub allocations: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes in all.
    pub size: u64,
}

impl HeapStats {
    /// Bytes that are left for each of so many cores.
    pub fn share(&self, cores: u16) -> usize {
        let left = self.size.saturating_sub(self.used) / u64::from(cores.max(1));
        usize::try_from(left).unwrap_or(usize::MAX)
    }
}

pub fn stats() -> HeapStats {
    HeapStats {
        allocations: HEAP.allocations.load(Ordering::Relaxed),
        used: HEAP.used.load(Ordering::Relaxed),
        size: HEAP.size.load(Ordering::Relaxed),
    }
}

fn pages_layout(pages: usize) -> Option<Layout> {
    let size = pages.checked_mul(PAGE as usize).filter(|&size| size != 0)?;
    Layout::from_size_align(size, PAGE as usize).ok()
}

/// Allocates zeroed, physically contiguous pages; `None` when there are not
/// so many, or none were asked for.
pub fn allocate_pages(pages: usize) -> Option<NonNull<u8>> {
    let layout = pages_layout(pages)?;
    // SAFETY: the layout is not empty.
    NonNull::new(unsafe { alloc::alloc::alloc_zeroed(layout) })
}

/// Gives pages back.
///
/// # Safety
///
/// They must come from [`allocate_pages`] with the same number of pages.
#[inline(never)]
pub unsafe fn free_pages(memory: NonNull<u8>, pages: usize) {
    if let Some(layout) = pages_layout(pages) {
        // SAFETY: allocated with this very layout.
        unsafe { alloc::alloc::dealloc(memory.as_ptr(), layout) }
    }
}
