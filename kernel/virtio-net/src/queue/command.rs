//! The ring of a queue that has one chain at a time, of buffers that change: a
//! command that is waited for.
//!
//! A chain takes the descriptors behind those of the chain before, round and round:
//! one a buffer or, with `VIRTIO_F_INDIRECT_DESC`, one that points to a table of its
//! own. That is the order that `VIRTIO_F_IN_ORDER` asks for (specification 2.7.9).
//! The number of a chain's first descriptor is its id in either layout.

use core::slice;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use super::chain::{Buffer, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};
use super::error::{BrokenReason, QueueError};
use super::memory::Memory;
use super::packed::{DESCRIPTOR_SIZE, Position};
use super::ring::QueueRing;
use super::shape::{MAX_SIZE, RingLayout, RingShape};
use super::split::SplitMemory;
use crate::hal::DmaRegion;
use crate::trace::tracepoint;

/// See the module.
pub struct CommandRing<H: Hal> {
    memory: Memory<H>,
    /// Where a chain of several buffers goes, with `VIRTIO_F_INDIRECT_DESC`.
    table: Option<DmaRegion<H>>,
    queue: u16,
    size: u16,
    /// Buffers that the longest chain has.
    most: u16,
    notification_data: bool,
    /// Chains added, shown to the device, and taken back; the first is at most one
    /// ahead of the last.
    added: u16,
    published: u16,
    taken: u16,
    /// Where the outstanding chain begins, and where the next one will: the same
    /// when nothing is outstanding.
    first: Position,
    next: Position,
    /// In the packed layout, what makes the chain available.
    word: u32,
    /// Bytes of the chain that the device may write.
    writable: u32,
    broken: Option<BrokenReason>,
}

impl<H: Hal> CommandRing<H> {
    /// Offers a chain of buffers to the device (Linux `virtqueue_add_split` and
    /// `virtqueue_add_packed`), which sees it after [`QueueRing::publish`].
    ///
    /// Buffers that the device reads must come before those it writes
    /// (specification 2.7.4.2 and 2.8.17).
    ///
    /// # Safety
    ///
    /// Until the chain comes back from [`Self::pop_used`], or the device or this
    /// queue has been reset, each buffer must be memory that the device may access
    /// at that address; a writable one may be accessed by nobody else, a readable
    /// one may be written by nobody.
    ///
    /// # Errors
    ///
    /// [`QueueError::Full`] when a chain is outstanding, [`QueueError::ChainLength`]
    /// for no buffers or too many, [`QueueError::Broken`]. Nothing has changed then.
    #[doc(alias = "virtqueue_add_outbuf")]
    #[doc(alias = "virtqueue_add_inbuf")]
    pub unsafe fn add(&mut self, buffers: &[Buffer]) -> Result<(), QueueError> {
        if self.broken.is_some() || self.added != self.taken {
            return Err(self.refusal());
        }
        let (queue, length, most) = (self.queue, buffers.len(), usize::from(self.most));
        let Some((last, rest)) = buffers.split_last().filter(|_| length <= most) else {
            return Err(QueueError::ChainLength {
                queue,
                length,
                most,
            });
        };
        self.writable = last.writable_length();
        let table = self.table.as_ref().filter(|_| !rest.is_empty());
        for (count, buffer) in (0..).zip(rest) {
            self.writable = self.writable.saturating_add(buffer.writable_length());
            let number = match table {
                Some(_) => count,
                None => self.first.after(count, self.size).index,
            };
            let a = u64::from(number) | u64::from(buffer.length) << 32;
            tracepoint!(Event::Descriptor, queue, a, buffer.trace_address());
        }
        if let Some(table) = table {
            let table = self.write_table(table, buffers);
            self.write(slice::from_ref(&table), DESC_F_INDIRECT);
        } else {
            self.write(buffers, 0);
        }
        let head = self.first.index;
        let entry = match &self.memory {
            // Step 2 (specification 2.7.13): the head of the chain goes into the
            // next entry of the available ring.
            Memory::Split(memory) => {
                let entry = memory.entry(self.added.into());
                memory.write_available(entry, head);
                entry as u16
            }
            Memory::Packed(_) => self.next.before(1, self.size).index,
        };
        let a = u64::from(head) | u64::from(entry) << 16 | u64::from(last.length) << 32;
        tracepoint!(Event::Add, queue, a, last.trace_address());
        self.added = self.added.wrapping_add(1);
        Ok(())
    }

    /// Writes buffers into the ring from [`Self::first`] on; the last of them has
    /// these flags beside its own.
    fn write(&mut self, buffers: &[Buffer], last: u16) {
        self.next = self.first;
        for (left, buffer) in (0..buffers.len()).rev().zip(buffers) {
            let position = self.next;
            self.next = position.after(1, self.size);
            let flags = if left == 0 { last } else { DESC_F_NEXT };
            match &self.memory {
                Memory::Split(memory) => {
                    let next = if left == 0 { 0 } else { self.next.index };
                    let descriptor = memory.descriptor(position.index.into());
                    // SAFETY: it is one of the ring, and the device has none: no
                    // chain is outstanding.
                    unsafe { SplitMemory::<H>::write_descriptor(descriptor, buffer, flags, next) };
                }
                Memory::Packed(memory) => {
                    let flags = u32::from(flags) << 16 | position.available(buffer.writable);
                    let descriptor = memory.descriptor(position.index);
                    descriptor.write_buffer(buffer.address, buffer.length);
                    let word = flags | u32::from(self.first.index);
                    // The device goes in order: the first is made available last.
                    if position == self.first {
                        self.word = word;
                    } else {
                        descriptor.write_available(word);
                    }
                }
            }
        }
    }

    /// Writes buffers into the table, and returns what goes into the ring for them
    /// (specification 2.7.5.3 and 2.8.7).
    fn write_table(&self, table: &DmaRegion<H>, buffers: &[Buffer]) -> Buffer {
        for (index, buffer) in (0..).zip(buffers) {
            let write = if buffer.writable { DESC_F_WRITE } else { 0 };
            let (low, high) = match &self.memory {
                // Flags, and the number of the next.
                Memory::Split(_) if index + 1 < buffers.len() => (write | DESC_F_NEXT, index + 1),
                Memory::Split(_) => (write, 0),
                // An id, which does not count there, and flags.
                Memory::Packed(_) => (0, usize::from(write)),
            };
            let rest = u64::from(buffer.length) | u64::from(low) << 32 | (high as u64) << 48;
            // SAFETY: the table has two words for each of `most` buffers, 8-byte
            // aligned, and these are not more. Volatile, because the device reads it.
            unsafe {
                let entry = table.pointer().cast::<u64>().add(2 * index);
                entry.write_volatile(buffer.address.to_le());
                entry.add(1).write_volatile(rest.to_le());
            }
        }
        // At most 2^15 descriptors.
        let bytes = (buffers.len() * DESCRIPTOR_SIZE) as u32;
        Buffer::new(table.physical(), bytes, false)
    }

    /// Takes the chain back, if the device has used it: returns how many bytes it
    /// wrote, at most those that it may (Linux `virtqueue_get_buf_ctx`).
    ///
    /// # Errors
    ///
    /// [`QueueError::Broken`] when the device's index, id or length is impossible,
    /// and ever after.
    #[doc(alias = "virtqueue_get_buf")]
    pub fn pop_used(&mut self) -> Result<Option<u32>, QueueError> {
        if self.broken.is_some() {
            return Err(self.refusal());
        }
        let used_idx = self.used_idx();
        let outstanding = self.published();
        match used_idx.wrapping_sub(self.taken) {
            0 => return Ok(None),
            news if news > outstanding => {
                return Err(self.break_down(BrokenReason::UsedIndex {
                    used_idx,
                    last_used_idx: self.taken,
                    outstanding,
                }));
            }
            _ => (),
        }
        let head = self.first.index;
        let (entry, id, length, next) = match &self.memory {
            Memory::Split(memory) => {
                let used = memory.used_element(self.taken.into());
                let entry = memory.entry(self.taken.into()) as u16;
                (entry, used.id(), used.length(), used_idx)
            }
            Memory::Packed(memory) => {
                let used = memory.descriptor(head);
                let (id, length) = (used.read_id(), used.read_length());
                (head, id, length, self.next.word())
            }
        };
        let size = self.size;
        if id >= u32::from(size) {
            return Err(self.break_down(BrokenReason::IdOutOfRange { id, size }));
        }
        if id != u32::from(head) {
            let id = id as u16;
            return Err(self.break_down(BrokenReason::IdNotOutstanding { id }));
        }
        let a = u64::from(head) | u64::from(entry) << 16 | u64::from(length) << 32;
        tracepoint!(Event::PopUsed, self.queue, a, u64::from(next));
        let writable = self.writable;
        // Devices have always been careless about the length of a chain they only
        // read (specification 2.7.8.1 and 2.8.4); nothing depends on that one.
        let length = if writable == 0 { 0 } else { length };
        if length > writable {
            return Err(self.break_down(BrokenReason::LengthTooLong {
                id: head,
                length,
                writable,
            }));
        }
        self.taken = self.taken.wrapping_add(1);
        self.first = self.next;
        Ok(Some(length))
    }

    /// The device broke the protocol: nothing can be added any more, and nothing
    /// taken back.
    #[cold]
    fn break_down(&mut self, reason: BrokenReason) -> QueueError {
        self.broken = Some(reason);
        self.refusal()
    }

    /// Why nothing can be added.
    fn refusal(&self) -> QueueError {
        QueueError::refusal(self.queue, self.broken, 1)
    }
}

impl<H: Hal> QueueRing for CommandRing<H> {
    /// A chain has up to `shape.chain` buffers, and that many descriptors there must
    /// be, with indirect ones too (specification 2.7.5.3.1 and 2.8.7).
    #[inline(always)]
    fn new(queue: u16, size: u32, shape: RingShape) -> Result<Self, QueueError> {
        let most = shape.chain.max(1);
        let is_split = shape.layout == RingLayout::Split;
        let size = match u16::try_from(size) {
            Ok(n) if (most..=MAX_SIZE).contains(&n) && (!is_split || n.is_power_of_two()) => n,
            _ => {
                return Err(QueueError::BadSize {
                    queue,
                    size,
                    layout: shape.layout,
                });
            }
        };
        let table = if shape.indirect && most > 1 {
            let bytes = usize::from(most) * DESCRIPTOR_SIZE;
            let table = DmaRegion::new(bytes, BufferDirection::DriverToDevice);
            let pages = bytes.div_ceil(PAGE_SIZE);
            Some(table.ok_or(QueueError::NoMemory { queue, pages })?)
        } else {
            None
        };
        Ok(Self {
            memory: Memory::new(queue, size, &shape)?,
            table,
            queue,
            size,
            most,
            notification_data: shape.notification_data,
            added: 0,
            published: 0,
            taken: 0,
            first: Position::START,
            next: Position::START,
            word: 0,
            writable: 0,
            broken: None,
        })
    }

    fn areas(&self) -> [PhysAddr; 3] {
        self.memory.areas()
    }

    fn queue(&self) -> u16 {
        self.queue
    }

    fn size(&self) -> u16 {
        self.size
    }

    fn free(&self) -> u16 {
        u16::from(self.broken.is_none() && self.added == self.taken)
    }

    fn published(&self) -> u16 {
        self.published.wrapping_sub(self.taken)
    }

    fn avail_idx(&self) -> u16 {
        self.added
    }

    fn last_used_idx(&self) -> u16 {
        self.taken
    }

    fn used_idx(&self) -> u16 {
        match &self.memory {
            Memory::Split(memory) => memory.used_idx(),
            Memory::Packed(memory) => {
                let is_used = self.published() != 0 && memory.is_used(self.first);
                self.taken.wrapping_add(is_used.into())
            }
        }
    }

    fn has_unpublished(&self) -> bool {
        self.added != self.published
    }

    fn publish(&mut self) -> bool {
        if !self.has_unpublished() {
            return false;
        }
        let old = core::mem::replace(&mut self.published, self.added);
        match &self.memory {
            Memory::Split(memory) => memory.publish(old, self.added),
            Memory::Packed(memory) => {
                memory.descriptor(self.first.index).publish(self.word);
                let descriptors = self.next.distance_from(self.first, self.size);
                memory.kick_prepare(self.next, descriptors, descriptors)
            }
        }
    }

    fn notifies_with_data(&self) -> bool {
        self.notification_data
    }

    fn next_avail(&self) -> u16 {
        match &self.memory {
            Memory::Split(_) => self.added,
            Memory::Packed(_) => self.next.word(),
        }
    }

    fn has_used(&self) -> bool {
        self.used_idx() != self.taken
    }

    fn disable_interrupts(&mut self) {
        self.memory.disable_interrupts(self.taken);
    }

    /// Of one chain none is left to wait for behind the first: `more` is 0.
    fn enable_interrupts_after(&mut self, _more: u16) -> bool {
        match &mut self.memory {
            Memory::Split(memory) => memory.enable_interrupts_after(self.taken, 0),
            Memory::Packed(memory) => {
                let wish = memory.ask_for_interrupt(self.first);
                let enough = self.has_used();
                if let Memory::Packed(memory) = &self.memory {
                    memory.trace_enabled(wish, enough);
                }
                enough
            }
        }
    }
}
