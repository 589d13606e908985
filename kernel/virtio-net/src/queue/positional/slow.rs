//! What a positional ring does where a comparison is not enough: everything is
//! checked, and recorded.

use virtio_drivers::Hal;

use super::{Batch, PositionalRing, UsedSlot};
use crate::queue::error::{BrokenReason, QueueError};
use crate::queue::memory::Memory;
use crate::queue::packed::Position;
use crate::queue::ring::QueueRing;

impl<H: Hal> PositionalRing<H> {
    /// Reads how far the device is, and returns whether there is news.
    pub(crate) fn look_for_used(&mut self) -> Result<bool, QueueError> {
        if self.broken.is_some() {
            return Err(self.refusal());
        }
        let outstanding = self.published.wrapping_sub(self.last_used);
        let news = match &self.memory {
            Memory::Split(memory) => {
                let used_idx = memory.used_idx();
                let news = used_idx.wrapping_sub(self.last_used as u16);
                if u32::from(news) > outstanding {
                    return Err(self.break_down(BrokenReason::UsedIndex {
                        used_idx,
                        last_used_idx: self.last_used as u16,
                        outstanding: outstanding as u16,
                    }));
                }
                self.seen = self.last_used.wrapping_add(news.into());
                news != 0
            }
            // There each descriptor says it for itself.
            Memory::Packed(memory) => {
                self.seen = self.published;
                let next = Position::of_count(self.last_used, self.size);
                outstanding != 0 && (self.batch.is_some() || memory.is_used(next))
            }
        };
        let is_plain = self.early_count == 0 && self.batch.is_none() && self.shift == 0;
        self.quick = if is_plain && !crate::trace::is_enabled() {
            self.seen
        } else {
            self.last_used
        };
        Ok(news)
    }

    /// As [`Self::pop_used`], with every check made.
    #[cold]
    #[inline(never)]
    pub(super) fn pop_slowly(&mut self) -> Result<Option<UsedSlot>, QueueError> {
        if self.broken.is_some() {
            return Err(self.refusal());
        }
        if let Memory::Packed(_) = self.memory {
            // It may have been shown more since it was looked at.
            self.seen = self.published;
        }
        if self.last_used == self.seen {
            return Ok(None);
        }
        let (slot, length) = match self.batch {
            Some(batch) => {
                let last = batch.end.wrapping_sub(1) == self.last_used;
                let length = if last {
                    batch.length
                } else {
                    self.buffers.length()
                };
                ((self.last_used & self.mask) as u16, length)
            }
            None => match self.read_used()? {
                Some(used) => used,
                None => return Ok(None),
            },
        };
        if self.buffers.writable && length > self.buffers.length() {
            return Err(self.break_down(BrokenReason::LengthTooLong {
                id: slot << self.shift,
                length,
                writable: self.buffers.length(),
            }));
        }
        self.last_used = self.last_used.wrapping_add(1);
        if self.batch.is_some_and(|batch| batch.end == self.last_used) {
            self.batch = None;
        }
        self.release(slot);
        // Until `look_for_used` says so again.
        self.quick = self.last_used;
        Ok(Some(UsedSlot { slot, length }))
    }

    /// Reads the next used entry and checks what it says: the slot and the bytes
    /// that were written into it.
    fn read_used(&mut self) -> Result<Option<(u16, u32)>, QueueError> {
        let (entry, id, length) = match &self.memory {
            Memory::Split(memory) => {
                let used = memory.used_element(self.last_used);
                let entry = memory.entry(self.last_used) as u64;
                (entry, used.id(), used.length())
            }
            Memory::Packed(memory) => {
                let position = Position::of_count(self.last_used, self.size);
                if !memory.is_used(position) {
                    return Ok(None);
                }
                let used = memory.descriptor(position.index);
                (position.index.into(), used.read_id(), used.read_length())
            }
        };
        #[cfg(feature = "faults")]
        let id = crate::faults::used_id(self.queue, id);
        let slot = id >> self.shift;
        if slot > self.mask {
            let size = self.size;
            return Err(self.break_down(BrokenReason::IdOutOfRange { id, size }));
        }
        let place = slot.wrapping_sub(self.freed) & self.mask;
        let is_outstanding = slot << self.shift == id
            && place < self.published.wrapping_sub(self.freed)
            && !self.is_early(slot);
        #[cfg(feature = "faults")]
        let is_outstanding = crate::faults::is_outstanding(is_outstanding);
        // Below the size.
        let head = id as u16;
        if !is_outstanding {
            return Err(self.break_down(BrokenReason::IdNotOutstanding { id: head }));
        }
        let mut used = (slot as u16, length);
        if self.in_order {
            let more = slot.wrapping_sub(self.last_used) & self.mask;
            if more >= self.seen.wrapping_sub(self.last_used) {
                return Err(self.break_down(BrokenReason::NotInOrder { id: head }));
            }
            if more > 0 {
                self.batch = Some(Batch {
                    end: self.last_used.wrapping_add(more + 1),
                    length,
                });
                used = ((self.last_used & self.mask) as u16, self.buffers.length());
            }
        }
        let next = match &self.memory {
            Memory::Split(_) => self.seen as u16,
            Memory::Packed(_) => {
                Position::of_count(self.last_used.wrapping_add(1), self.size).word()
            }
        };
        self.trace_pop(head, entry, length, next);
        Ok(Some(used))
    }

    /// A slot came back: it is free, with those behind it that came back before,
    /// if all before it are.
    fn release(&mut self, slot: u16) {
        if u32::from(slot) != self.freed & self.mask {
            self.flip_early(slot.into());
            self.early_count += 1;
            return;
        }
        self.freed = self.freed.wrapping_add(1);
        while self.early_count != 0 && self.is_early(self.freed & self.mask) {
            self.flip_early(self.freed & self.mask);
            self.early_count -= 1;
            self.freed = self.freed.wrapping_add(1);
        }
    }

    fn is_early(&self, slot: u32) -> bool {
        let word = self.early.get(slot as usize / 64);
        word.is_some_and(|word| word >> (slot % 64) & 1 != 0)
    }

    fn flip_early(&mut self, slot: u32) {
        if let Some(word) = self.early.get_mut(slot as usize / 64) {
            *word ^= 1 << (slot % 64);
        }
    }

    /// Makes the ring unusable: the device broke the protocol, here or elsewhere.
    /// Nothing can be added any more, and nothing taken back. Returns the error of
    /// every further operation.
    #[cold]
    #[inline(never)]
    pub(crate) fn break_down(&mut self, reason: BrokenReason) -> QueueError {
        self.broken.get_or_insert(reason);
        // No slot is free, and every attempt to take one asks `broken` first.
        self.freed = self.next.wrapping_sub(self.mask + 1);
        self.seen = self.last_used;
        self.quick = self.last_used;
        self.refusal()
    }

    /// Why nothing can be added.
    #[cold]
    pub(super) fn refusal(&self) -> QueueError {
        QueueError::refusal(self.queue, self.broken, self.slots())
    }

    /// Entries that the device has used and the driver not taken, as they are now.
    pub(super) fn used_ahead(&self) -> u32 {
        let Memory::Packed(memory) = &self.memory else {
            return u32::from(self.used_idx().wrapping_sub(self.last_used as u16));
        };
        let most = self.published.wrapping_sub(self.last_used);
        let mut ahead = self
            .batch
            .map_or(0, |batch| batch.end.wrapping_sub(self.last_used));
        while ahead < most {
            let position = Position::of_count(self.last_used.wrapping_add(ahead), self.size);
            if !memory.is_used(position) {
                break;
            }
            ahead += 1;
            if self.in_order {
                let last = memory.descriptor(position.index).read_id();
                let more = last.wrapping_sub(self.last_used.wrapping_add(ahead - 1)) & self.mask;
                ahead += more;
            }
        }
        ahead.min(most)
    }
}
