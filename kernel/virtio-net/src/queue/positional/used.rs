//! How slots come back while the device works in order.

use core::ops::Range;

use virtio_drivers::Hal;

use super::{PositionalRing, UsedSlot};
use crate::prefetch::{AHEAD, prefetch};
use crate::queue::error::QueueError;
use crate::queue::memory::Memory;
use crate::queue::packed::Position;

impl<H: Hal> PositionalRing<H> {
    /// Takes the next used slot, if there is one.
    ///
    /// # Errors
    ///
    /// [`QueueError::Broken`] when the device's index, id or length is
    /// impossible, and ever after.
    #[inline]
    pub fn pop_used(&mut self) -> Result<Option<UsedSlot>, QueueError> {
        if !self.has_quick() && !self.look_for_used()? {
            return Ok(None);
        }
        match self.pop_quickly() {
            None => self.pop_slowly(),
            used => Ok(used),
        }
    }

    /// Whether [`Self::pop_quickly`] may find a slot without another look.
    #[inline(always)]
    pub(crate) fn has_quick(&self) -> bool {
        self.last_used != self.quick
    }

    /// Takes the next used slot, if its entry was announced and is what comes next while
    /// the device works in order. What there is else, [`Self::pop_used`] says.
    #[inline(always)]
    pub(crate) fn pop_quickly(&mut self) -> Option<UsedSlot> {
        let count = self.last_used;
        let slot = count & self.mask;
        let length = match &self.memory {
            _ if !self.has_quick() => return None,
            // Read after the index, which `look_for_used` has.
            Memory::Split(memory) => {
                let used = memory.used_element(count);
                if used.id() != slot {
                    return None;
                }
                used.length()
            }
            Memory::Packed(memory) => {
                let position = Position::of_count(count, self.size);
                let used = memory.descriptor(position.index);
                if used.used_word() != position.used_word(slot) {
                    return None;
                }
                // To write, as in `quick_run`, while its buffer is copied.
                prefetch::<true, _>(used);
                used.read_length()
            }
        };
        if length > self.buffers.length() {
            return None;
        }
        self.last_used = count.wrapping_add(1);
        self.freed = self.last_used;
        // At most the mask.
        let slot = slot as u16;
        Some(UsedSlot { slot, length })
    }

    /// Hands up to `most` used slots to `take`, by number and length, as long as the
    /// device works in order, has written `shortest` bytes or more, and `take` says
    /// to go on, up to the end of the ring at most; returns how many. What is left is
    /// for [`Self::pop_used`], which says what is wrong, if anything is.
    #[inline(always)]
    pub fn pop_run(
        &mut self,
        most: u32,
        shortest: u32,
        take: impl FnMut(usize, u32) -> bool,
    ) -> u32 {
        let Some(span) = self.buffers.length().checked_sub(shortest) else {
            return 0;
        };
        if !self.has_quick() && !matches!(self.look_for_used(), Ok(true)) {
            return 0;
        }
        self.quick_run(most, Some((shortest, span)), take)
    }

    /// Takes every used slot and forgets it: for buffers that the device only reads.
    ///
    /// # Errors
    ///
    /// As for [`Self::pop_used`], but lengths are not looked at.
    #[inline]
    pub fn reclaim(&mut self) -> Result<(), QueueError> {
        while self.has_quick() || self.look_for_used()? {
            let taken = self.quick_run(u32::MAX, None, |_, _| true);
            if taken == 0 && self.pop_slowly()?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Hands up to `most` slots to `take`, as long as they are what comes next, their
    /// lengths are right, and `take` says to go on, up to the end of the ring at most.
    /// Returns how many. Lengths are read where they are to be so long at least, and so
    /// much more at most; else `take` gets 0.
    #[inline(always)]
    fn quick_run(
        &mut self,
        most: u32,
        lengths: Option<(u32, u32)>,
        mut take: impl FnMut(usize, u32) -> bool,
    ) -> u32 {
        let count = self.last_used;
        let announced = self.quick.wrapping_sub(count);
        let (slots, position) = self.lap(count, count.wrapping_add(announced.min(most)));
        let first = slots.start;
        // The entry of slot 0.
        let start = usize::from(position.index) - first;
        let entries = start..start + slots.end;
        let right = |length: &dyn Fn() -> u32| match lengths.map(|right| (right, length())) {
            None => Some(0),
            Some(((least, span), length)) => (length.wrapping_sub(least) <= span).then_some(length),
        };
        let next = match &self.memory {
            // Read after the index, which `look_for_used` has.
            Memory::Split(memory) => run(slots, memory.used(entries), &mut take, |slot, used| {
                if used.id() == slot as u32 {
                    right(&|| used.length())
                } else {
                    None
                }
            }),
            Memory::Packed(memory) => run(
                slots,
                memory.descriptors(entries),
                &mut take,
                |slot, used| {
                    // To write: it is read now, and written when its buffer is given back.
                    if lengths.is_some() {
                        prefetch::<true, _>(core::ptr::from_ref(used).wrapping_add(AHEAD));
                    }
                    if used.used_word() == position.used_word(slot as u32) {
                        right(&|| used.read_length())
                    } else {
                        None
                    }
                },
            ),
        };
        let taken = (next - first) as u32;
        if taken != 0 {
            self.last_used = count.wrapping_add(taken);
            self.freed = self.last_used;
        }
        taken
    }
}

/// Hands slots to `take`, with what `length` says of their entries, until one of both
/// stops it. Returns the slot that comes next.
#[inline(always)]
fn run<E>(
    slots: Range<usize>,
    entries: &[E],
    take: &mut impl FnMut(usize, u32) -> bool,
    length: impl Fn(usize, &E) -> Option<u32>,
) -> usize {
    let end = slots.end;
    for slot in slots {
        let Some(length) = entries.get(slot).and_then(|entry| length(slot, entry)) else {
            return slot;
        };
        if !take(slot, length) {
            return slot + 1;
        }
    }
    end
}
