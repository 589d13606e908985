//! Frames of physical memory before there is a heap: handed out in address
//! order for page tables; what is left becomes the heap.

use core::ops::Range;

use heapless::Vec;
use x86_64::PhysAddr;
use x86_64::structures::paging::{FrameAllocator, PhysFrame, Size4KiB};

use super::layout::{MEMORY_LIMIT, PAGE};
use crate::entry::{MemoryMap, RegionKind};

/// Largest number of separate pieces of free memory.
const MAX_PIECES: usize = 64;
/// Memory below belongs to firmware and its calls, whatever the map says.
pub const FIRST_USED: u64 = 1 << 20;

/// Free memory in whole pages, in ascending order.
#[derive(Debug)]
pub struct FreeMemory {
    pieces: Vec<Range<u64>, MAX_PIECES>,
}

impl FreeMemory {
    /// The usable memory of `map`, without `taken` and without whatever another
    /// region of the map claims too.
    pub fn new(map: &MemoryMap, taken: Range<u64>) -> Self {
        let mut free = Self { pieces: Vec::new() };
        for region in map.regions() {
            if region.kind == RegionKind::Usable {
                // What begins beyond the limit must not wrap to the lowest memory.
                let start = region.range.start.clamp(FIRST_USED, MEMORY_LIMIT);
                let start = start.next_multiple_of(PAGE);
                let end = region.range.end.min(MEMORY_LIMIT) / PAGE * PAGE;
                free.push(start..end);
            }
        }
        for region in map.regions() {
            if region.kind != RegionKind::Usable {
                free.remove(&region.range);
            }
        }
        free.remove(&taken);
        // The stub's first page tables only reach the lowest memory.
        free.pieces.sort_unstable_by_key(|piece| piece.start);
        free
    }

    /// Pieces beyond [`MAX_PIECES`] stay unused.
    fn push(&mut self, piece: Range<u64>) {
        if !piece.is_empty() {
            let _ = self.pieces.push(piece);
        }
    }

    fn remove(&mut self, taken: &Range<u64>) {
        let taken = taken.start / PAGE * PAGE..taken.end.saturating_add(PAGE - 1) / PAGE * PAGE;
        for piece in core::mem::take(&mut self.pieces) {
            if piece.end <= taken.start || taken.end <= piece.start {
                self.push(piece);
            } else {
                self.push(piece.start..taken.start);
                self.push(taken.end..piece.end);
            }
        }
    }

    pub fn pieces(&self) -> &[Range<u64>] {
        &self.pieces
    }
}

// SAFETY: every frame is handed out once, because the piece shrinks by it, and
// pieces do not overlap in a well-formed memory map.
unsafe impl FrameAllocator<Size4KiB> for FreeMemory {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let piece = self.pieces.iter_mut().find(|piece| !piece.is_empty())?;
        let frame = PhysAddr::try_new(piece.start).ok()?;
        piece.start += PAGE;
        Some(PhysFrame::containing_address(frame))
    }
}
