//! The ring of a receive or transmit queue: slot, descriptor, entry of the
//! available ring and buffer are one number.
//!
//! ```text
//! slot:        0 1 2 3 4 5 6 7 0 1 2 ...    counts run on; a slot is a count
//!              . . . . # # # # # . .        modulo the number of slots
//!                      ^         ^
//!            freed ----+         +---- next
//! ```
//!
//! Each slot has one buffer for ever. So descriptors and, in the split layout, the
//! available ring are written once, when the queue is made; to add a frame takes its
//! length, and to add receive buffers nothing but the index. A device that works in order
//! uses slot after slot: one comparison tells that an entry is the one that comes next,
//! and so that it is in range, outstanding and there for the first time.
//!
//! Any other entry goes a slow way, where all of that is checked one by one. A
//! device may use buffers in any order (specification 2.7.8): what comes back
//! early is remembered, and its slot is free when those before it are. With
//! `VIRTIO_F_IN_ORDER` one entry may stand for many.
//!
//! Chains of several buffers, and of buffers that change, are for
//! [`CommandRing`](super::CommandRing).

extern crate alloc;

#[cfg(feature = "faults")]
#[path = "../../lab/ring.rs"]
mod faulty;
mod slow;
mod used;

use alloc::boxed::Box;
use alloc::vec;
use core::ops::Range;

use crate::trace::tracepoint;
use virtio_drivers::{Hal, PhysAddr};

use super::chain::{Buffer, DESC_F_NEXT};
use super::error::{BrokenReason, QueueError};
use super::memory::Memory;
use super::packed::Position;
use super::ring::QueueRing;
use super::shape::{MAX_SIZE, RingLayout, RingShape};
use super::split::SplitMemory;

/// What the buffers of a ring's slots have in common. In each a header comes first,
/// and the frame behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotBuffers {
    /// Bytes of the header.
    pub header: u32,
    /// Bytes of the longest frame; with the header 1 to 2^32 - 1.
    pub capacity: u32,
    /// Whether the header has a descriptor of its own: a slot is two then.
    pub apart: bool,
    /// Whether the device writes them; else it reads them.
    pub writable: bool,
}

impl SlotBuffers {
    /// Bytes of each.
    #[inline]
    pub fn length(&self) -> u32 {
        self.header + self.capacity
    }

    /// Bytes before the frame in the descriptor that has it.
    #[inline(always)]
    fn before_frame(&self) -> u32 {
        if self.apart { 0 } else { self.header }
    }
}

/// A used slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedSlot {
    /// Its number.
    pub slot: u16,
    /// Bytes that the device says it wrote, at most the buffer's; for a buffer
    /// that it only reads, anything.
    pub length: u32,
}

/// With `VIRTIO_F_IN_ORDER`: what an entry said that stands for several slots.
#[derive(Clone, Copy)]
struct Batch {
    /// The count behind the last of them.
    end: u32,
    /// Bytes written into the last; the others are full.
    length: u32,
}

/// See the module.
pub struct PositionalRing<H: Hal> {
    memory: Memory<H>,
    /// Where the slots' buffers are, as the device sees them.
    addresses: Box<[PhysAddr]>,
    buffers: SlotBuffers,
    queue: u16,
    size: u16,
    /// Number of slots, a power of two, less one.
    mask: u32,
    /// A slot is two descriptors (1) or one (0).
    shift: u32,
    /// `VIRTIO_F_IN_ORDER`.
    in_order: bool,
    /// `VIRTIO_F_NOTIFICATION_DATA`.
    notification_data: bool,
    /// Counts, all free-running: slots added; slots shown to the device; entries
    /// that it used and the driver took; entries that it was seen to have used;
    /// slots that are free again, with all before them.
    next: u32,
    published: u32,
    last_used: u32,
    seen: u32,
    freed: u32,
    /// Up to here entries are taken the quick way: [`Self::seen`], unless there is
    /// something to report or to remember, or a slot is two descriptors.
    quick: u32,
    /// Slots that came back before one that was added earlier, one a bit; and how many.
    early: Box<[u64]>,
    early_count: u32,
    batch: Option<Batch>,
    broken: Option<BrokenReason>,
}

impl<H: Hal> PositionalRing<H> {
    /// Gives each of `slots` slots, a power of two and at most
    /// [`Self::slots`], its buffer.
    ///
    /// # Safety
    ///
    /// `address` names for each slot a buffer as `buffers` says, which the device
    /// may access until it, or the queue, has been reset. Nobody else accesses it
    /// but while [`Self::is_free`]; one that the device only reads may be read.
    /// Nothing was added yet, and no frame that is added is longer than the capacity.
    pub unsafe fn prepare(
        &mut self,
        slots: u16,
        buffers: SlotBuffers,
        address: impl Fn(u16) -> PhysAddr,
    ) {
        let slots = slots.clamp(1, self.slots());
        let slots = 1 << slots.ilog2();
        self.mask = u32::from(slots) - 1;
        self.buffers = buffers;
        self.addresses = (0..slots).map(address).collect();
        let Memory::Split(memory) = &self.memory else {
            return;
        };
        for (slot, &address) in (0..).zip(&self.addresses) {
            let first = slot << self.shift;
            let (header, rest) = self.pieces(address, buffers.capacity);
            let last = first + usize::from(header.is_some());
            // SAFETY: both are descriptors of the ring, and the device has none.
            unsafe {
                if let Some(header) = header {
                    // Below the size.
                    let next = last as u16;
                    let descriptor = memory.descriptor(first);
                    SplitMemory::<H>::write_descriptor(descriptor, &header, DESC_F_NEXT, next);
                }
                SplitMemory::<H>::write_descriptor(memory.descriptor(last), &rest, 0, 0);
            }
        }
        for entry in 0..u32::from(self.size) {
            // Less than the size.
            let head = ((entry & self.mask) << self.shift) as u16;
            memory.write_available(entry as usize, head);
        }
    }

    /// Number of slots.
    #[inline]
    pub fn slots(&self) -> u16 {
        // At most 2^15.
        (self.mask + 1) as u16
    }

    /// Slots that were added and are not free again, 0 to [`Self::slots`].
    #[inline]
    pub fn outstanding(&self) -> u16 {
        self.next.wrapping_sub(self.freed) as u16
    }

    /// Whether the device has used all that was added, as it is now; nothing is
    /// taken back.
    pub fn all_used(&self) -> bool {
        self.used_ahead() == self.next.wrapping_sub(self.last_used)
    }

    /// Whether the device does not have this slot's buffer.
    pub fn is_free(&self, slot: u16) -> bool {
        let behind = u32::from(slot).wrapping_sub(self.freed) & self.mask;
        behind >= self.next.wrapping_sub(self.freed)
    }

    /// The slot that is added next, if it is free and the ring is not broken.
    #[inline(always)]
    pub fn next_slot(&self) -> Option<u16> {
        let is_free = self.next.wrapping_sub(self.freed) <= self.mask;
        is_free.then_some((self.next & self.mask) as u16)
    }

    /// Adds [`Self::next_slot`], which there must be, with a frame of `length`
    /// bytes in its buffer. The device sees it after [`QueueRing::publish`]. No
    /// tracepoint: see `trace_add`.
    #[inline(always)]
    pub fn add(&mut self, length: u32) {
        self.put(self.address(self.next & self.mask), length);
    }

    /// As [`Self::add`], for the next `slots` slots, which must be free: `length` is
    /// asked for each, and may write its buffer.
    #[inline(always)]
    pub fn add_batch(&mut self, slots: u16, mut length: impl FnMut(u16) -> u32) {
        // In variables, because the device's memory is written in between.
        let (mut count, mask, shift) = (self.next, self.mask, self.shift);
        let end = count.wrapping_add(slots.into());
        match &self.memory {
            Memory::Split(memory) if shift == 0 => {
                let before = self.buffers.before_frame();
                while count != end {
                    let slot = count & mask;
                    memory.write_length(slot as usize, length(slot as u16) + before);
                    count = count.wrapping_add(1);
                }
            }
            // The frame is in the second descriptor of two.
            Memory::Split(memory) => {
                while count != end {
                    let slot = count & mask;
                    memory.write_length(2 * slot as usize + 1, length(slot as u16));
                    count = count.wrapping_add(1);
                }
            }
            Memory::Packed(memory) => {
                let header = self.buffers.header;
                while count != end {
                    let (slots, position) = self.lap(count, end);
                    let place = usize::from(position.index);
                    let descriptors = memory.descriptors(place..place + slots.len());
                    let addresses = self.addresses.get(slots.start..).unwrap_or_default();
                    let flags = position.available(self.buffers.writable);
                    // But the first since the last publish: the device goes in order, so
                    // none of the others can be seen before.
                    let mut is_shown = count != self.published;
                    count = count.wrapping_add(slots.len() as u32);
                    for ((slot, descriptor), &address) in slots.zip(descriptors).zip(addresses) {
                        descriptor.write_buffer(address, length(slot as u16) + header);
                        if is_shown {
                            descriptor.write_available(flags + slot as u32);
                        }
                        is_shown = true;
                    }
                }
            }
        }
        self.next = end;
    }

    /// As [`Self::add`], with a buffer elsewhere: a header, and a frame of `length`
    /// bytes behind it. It is the slot's until [`Self::restore`].
    ///
    /// # Safety
    ///
    /// As for [`Self::prepare`], for this buffer and this slot.
    pub unsafe fn add_elsewhere(&mut self, address: PhysAddr, length: u32) {
        if let Memory::Split(memory) = &self.memory {
            self.write_addresses(memory, self.next & self.mask, address);
        }
        self.put(address, length);
    }

    /// Adds a slot, whose buffer is at `address`.
    #[inline(always)]
    fn put(&mut self, address: PhysAddr, length: u32) {
        let slot = self.next & self.mask;
        #[cfg(feature = "faults")]
        let length = crate::faults::descriptor(&self.buffers, length);
        match &self.memory {
            // The frame is in the second descriptor of two.
            Memory::Split(memory) => {
                let last = (slot << self.shift) + self.shift;
                memory.write_length(last as usize, length + self.buffers.before_frame());
            }
            Memory::Packed(memory) => {
                let position = Position::of_count(self.next, self.size);
                let descriptor = memory.descriptor(position.index);
                descriptor.write_buffer(address, length + self.buffers.header);
                // See `add_batch`.
                if self.next != self.published {
                    descriptor.write_available(position.available(self.buffers.writable) + slot);
                }
            }
        }
        self.next = self.next.wrapping_add(1);
    }

    /// Gives a free slot its own buffer back.
    pub fn restore(&mut self, slot: u16) {
        // In the packed layout it is written whenever the slot is added.
        if let Memory::Split(memory) = &self.memory {
            let slot = u32::from(slot) & self.mask;
            self.write_addresses(memory, slot, self.address(slot));
        }
    }

    fn write_addresses(&self, memory: &SplitMemory<H>, slot: u32, address: PhysAddr) {
        let first = (slot << self.shift) as usize;
        memory.write_address(first, address);
        if self.buffers.apart {
            memory.write_address(first + 1, address + u64::from(self.buffers.header));
        }
    }

    /// Adds every free slot, with all of its buffer.
    #[inline]
    pub fn refill(&mut self) {
        let end = self.freed.wrapping_add(self.mask + 1);
        if self.broken.is_some() || self.next == end {
            return;
        }
        let capacity = self.buffers.capacity;
        if crate::trace::is_enabled() {
            while self.next != end {
                self.add(capacity);
                self.trace_add(capacity);
            }
        } else if let Memory::Packed(_) = self.memory {
            let slots = end.wrapping_sub(self.next) as u16;
            self.add_batch(slots, |_| capacity);
        } else {
            // All is in the ring since it was prepared.
            self.next = end;
        }
    }

    /// Header and frame of `length` bytes of a buffer at this address, as they go
    /// into descriptors: apart, or as one.
    fn pieces(&self, address: PhysAddr, length: u32) -> (Option<Buffer>, Buffer) {
        let buffers = &self.buffers;
        let piece = |address, length| Buffer::new(address, length, buffers.writable);
        if buffers.apart {
            let header = piece(address, buffers.header);
            let frame = piece(address + u64::from(buffers.header), length);
            (Some(header), frame)
        } else {
            (None, piece(address, buffers.header + length))
        }
    }

    /// Records that the slot was added which [`Self::add`] has added last.
    pub(crate) fn trace_add(&self, length: u32) {
        let slot = self.next.wrapping_sub(1) & self.mask;
        self.trace_add_elsewhere(self.address(slot), length);
    }

    /// As [`Self::trace_add`], for [`Self::add_elsewhere`].
    pub(crate) fn trace_add_elsewhere(&self, address: PhysAddr, length: u32) {
        let (queue, count) = (self.queue, self.next.wrapping_sub(1));
        let head = (count & self.mask) << self.shift;
        let entry = count & u32::from(self.size - 1);
        let (header, frame) = self.pieces(address, length);
        if let Some(header) = header {
            let a = u64::from(head) | u64::from(header.length) << 32;
            tracepoint!(Event::Descriptor, queue, a, header.trace_address());
        }
        let a = u64::from(head) | u64::from(entry) << 16 | u64::from(frame.length) << 32;
        tracepoint!(Event::Add, queue, a, frame.trace_address());
    }

    /// Records a used entry: the head that it names, its place and its length, and
    /// how far the device is.
    fn trace_pop(&self, head: u16, entry: u64, length: u32, next: u16) {
        let a = u64::from(head) | entry << 16 | u64::from(length) << 32;
        tracepoint!(Event::PopUsed, self.queue, a, u64::from(next));
    }

    /// The slots from `count` to `end`, as far as they and their places in the ring go
    /// up one by one, and where the first is.
    #[inline(always)]
    fn lap(&self, count: u32, end: u32) -> (Range<usize>, Position) {
        let slot = count & self.mask;
        let length = end.wrapping_sub(count).min(self.mask + 1 - slot);
        let slots = slot as usize..(slot + length) as usize;
        (slots, Position::of_count(count, self.size))
    }

    /// Why the ring is unusable, if the device broke the protocol.
    pub fn broken(&self) -> Option<BrokenReason> {
        self.broken
    }

    /// Where a slot's own buffer is.
    #[inline(always)]
    fn address(&self, slot: u32) -> PhysAddr {
        debug_assert!((slot as usize) < self.addresses.len());
        // SAFETY: `prepare` has made one for each slot, and `slot` is masked.
        unsafe { *self.addresses.get_unchecked(slot as usize) }
    }
}

impl<H: Hal> QueueRing for PositionalRing<H> {
    // Always: a copy of the ring more would be on the stack meanwhile.
    #[inline(always)]
    fn new(queue: u16, size: u32, shape: RingShape) -> Result<Self, QueueError> {
        let bad_size = QueueError::BadSize {
            queue,
            size,
            layout: shape.layout,
        };
        // A packed ring has one descriptor a slot: with `VIRTIO_F_VERSION_1`
        // every layout of buffers is allowed (specification 2.7.4.3).
        let shift = u32::from(shape.chain > 1);
        let size = match u16::try_from(size) {
            Ok(size)
                if size.is_power_of_two()
                    && size <= MAX_SIZE
                    && u32::from(size) >> shift != 0
                    && (shift == 0 || shape.layout == RingLayout::Split) =>
            {
                size
            }
            _ => return Err(bad_size),
        };
        let slots = size >> shift;
        Ok(Self {
            memory: Memory::new(queue, size, &shape)?,
            addresses: vec![0; slots.into()].into(),
            buffers: SlotBuffers::default(),
            queue,
            size,
            mask: u32::from(slots) - 1,
            shift,
            in_order: shape.in_order,
            notification_data: shape.notification_data,
            next: 0,
            published: 0,
            last_used: 0,
            seen: 0,
            freed: 0,
            quick: 0,
            early: vec![0; usize::from(slots).div_ceil(64)].into(),
            early_count: 0,
            batch: None,
            broken: None,
        })
    }

    fn areas(&self) -> [PhysAddr; 3] {
        self.memory.areas()
    }

    #[inline]
    fn queue(&self) -> u16 {
        self.queue
    }

    #[inline]
    fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    fn free(&self) -> u16 {
        self.slots() - self.outstanding()
    }

    #[inline]
    fn published(&self) -> u16 {
        self.published.wrapping_sub(self.last_used) as u16
    }

    fn avail_idx(&self) -> u16 {
        self.next as u16
    }

    fn last_used_idx(&self) -> u16 {
        self.last_used as u16
    }

    fn used_idx(&self) -> u16 {
        match &self.memory {
            Memory::Split(memory) => memory.used_idx(),
            Memory::Packed(_) => self.last_used.wrapping_add(self.used_ahead()) as u16,
        }
    }

    #[inline]
    fn has_unpublished(&self) -> bool {
        self.next != self.published
    }

    #[inline]
    fn publish(&mut self) -> bool {
        // Without any the next descriptor would be shown as it is.
        if self.next == self.published {
            return false;
        }
        let old = core::mem::replace(&mut self.published, self.next);
        match &self.memory {
            Memory::Split(memory) => memory.publish(old as u16, self.next as u16),
            Memory::Packed(memory) => {
                let first = Position::of_count(old, self.size);
                memory
                    .descriptor(first.index)
                    .publish(first.available(self.buffers.writable) + (old & self.mask));
                let outstanding = self.next.wrapping_sub(self.last_used) as u16;
                let next = Position::of_count(self.next, self.size);
                memory.kick_prepare(next, self.next.wrapping_sub(old) as u16, outstanding)
            }
        }
    }

    #[inline]
    fn notifies_with_data(&self) -> bool {
        self.notification_data
    }

    fn next_avail(&self) -> u16 {
        match &self.memory {
            Memory::Split(_) => self.next as u16,
            Memory::Packed(_) => Position::of_count(self.next, self.size).word(),
        }
    }

    #[inline]
    fn has_used(&self) -> bool {
        if self.batch.is_some() {
            return true;
        }
        match &self.memory {
            Memory::Split(memory) => memory.used_idx() != self.last_used as u16,
            Memory::Packed(memory) => {
                let next = Position::of_count(self.last_used, self.size);
                self.published != self.last_used && memory.is_used(next)
            }
        }
    }

    #[inline]
    fn disable_interrupts(&mut self) {
        self.memory.disable_interrupts(self.last_used as u16);
    }

    #[inline]
    fn enable_interrupts_after(&mut self, more: u16) -> bool {
        // What an entry announced already comes without an interrupt.
        let announced = self.batch.is_some();
        match &mut self.memory {
            Memory::Split(memory) => {
                memory.enable_interrupts_after(self.last_used as u16, more) || announced
            }
            Memory::Packed(memory) => {
                let more = if memory.has_event_idx() {
                    u32::from(more)
                } else {
                    0
                };
                let event = Position::of_count(self.last_used.wrapping_add(more), self.size);
                let wish = memory.ask_for_interrupt(event);
                let enough = self.used_ahead() > more;
                if let Memory::Packed(memory) = &self.memory {
                    memory.trace_enabled(wish, enough);
                }
                enough || announced
            }
        }
    }
}
