//! The split virtqueue (specification 2.7), with no hardware in it.
//!
//! ```text
//!            written by    read by
//! desc[]     driver        device    address, length, flags, next
//! avail      driver        device    flags | idx | ring[size] | used_event
//!   (padding to the next multiple of 4096)
//! used       device        driver    flags | idx | ring[size] | avail_event
//! ```
//!
//! The device can write any of that memory at any time. So the driver keeps
//! all its state in private, in `Slots`: which descriptors are free, whose a
//! chain is, how much of it may be written, both of its indices. From the
//! shared memory it reads only what the device has to say: the used ring, its
//! index, its flags and the event; and it believes none of it unchecked.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use kickpath_trace::{Event, tracepoint};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use super::barrier;
use super::chain::{Buffer, Head, Used};
use super::dma::DmaRegion;
use super::error::{BrokenReason, QueueError};
use super::event::{EventMode, need_event};
use super::indirect::IndirectTables;
use super::ring::{RingFormat, UsedEntry};
use super::slots::{ChainState, Slots};

/// The used ring starts at a multiple of this many bytes; the legacy
/// interface fixes it (specification 2.7.2).
pub const USED_ALIGN: usize = 4096;

/// Largest size of a split virtqueue in descriptors (specification 2.7).
pub const MAX_SIZE: u16 = 1 << 15;

/// The chain goes on with the descriptor named by `next`.
const DESC_F_NEXT: u16 = 1;
/// The device writes this buffer (else it reads it).
const DESC_F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
const DESC_F_INDIRECT: u16 = 4;
/// In `avail.flags`: no interrupts, please.
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// In `used.flags`: no notifications, please.
const USED_F_NO_NOTIFY: u16 = 1;

/// `struct virtq_desc` (specification 2.7.5), little endian.
#[repr(C, align(16))]
struct Descriptor {
    address: u64,
    length: u32,
    /// `flags`, then `next` in the upper half: one store instead of two.
    flags_and_next: u32,
}

/// Where a ring's parts lie within its memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Offset of the available ring.
    pub avail: usize,
    /// Offset of the used ring, a multiple of [`USED_ALIGN`].
    pub used: usize,
    /// Size of the whole.
    pub total: usize,
}

impl Layout {
    /// The layout for `size` descriptors, in the form that the legacy
    /// interface requires (specification 2.7.2 `virtq_size`, Linux
    /// `vring_init`). The modern interface takes it as well.
    #[doc(alias = "vring_size")]
    pub const fn new(size: u16) -> Self {
        let size = size as usize;
        let avail = size_of::<Descriptor>() * size;
        // flags, idx, ring[size], used_event
        let used = (avail + 2 * (3 + size)).next_multiple_of(USED_ALIGN);
        // flags, idx, ring[size] of (id, len), avail_event
        let total = used + 2 * 3 + 8 * size;
        Self { avail, used, total }
    }
}

/// A split virtqueue's memory, and how far each side has said that it is.
pub(super) struct SplitRing<H: Hal> {
    memory: DmaRegion<H>,
    layout: Layout,
    /// Start of the available ring within `memory`.
    avail: NonNull<u8>,
    /// Start of the used ring within `memory`.
    used: NonNull<u8>,
    /// `size - 1`: what a free-running index is masked with.
    mask: u32,
    /// Buffers that the longest chain has.
    most: u16,
    mode: EventMode,
    /// The `used_event` or the flag that was last written.
    interrupts_disabled: bool,
    used_event: u16,
    /// Where chains of several buffers go, with `VIRTIO_F_INDIRECT_DESC`.
    tables: Option<IndirectTables<H>>,
}

// SAFETY: `avail` and `used` point into `memory`, which this value owns.
unsafe impl<H: Hal> Send for SplitRing<H> {}

impl<H: Hal> SplitRing<H> {
    /// Allocates a ring for the slots. `most` is the number of buffers in the
    /// longest chain; the size is a power of two.
    pub(super) fn new(
        slots: &Slots,
        most: u16,
        mode: EventMode,
        tables: Option<IndirectTables<H>>,
    ) -> Result<Self, QueueError> {
        let layout = Layout::new(slots.size());
        let memory =
            DmaRegion::new(layout.total, BufferDirection::Both).ok_or(QueueError::NoMemory {
                queue: slots.queue,
                pages: layout.total.div_ceil(virtio_drivers::PAGE_SIZE),
            })?;
        // SAFETY: both offsets lie within the layout, whose total was allocated.
        let (avail, used) = unsafe {
            (
                memory.pointer().add(layout.avail),
                memory.pointer().add(layout.used),
            )
        };
        Ok(Self {
            memory,
            layout,
            avail,
            used,
            mask: u32::from(slots.size() - 1),
            most,
            mode,
            interrupts_disabled: false,
            used_event: 0,
            tables,
        })
    }

    /// The next used entry: its place in the used ring, the head of its chain
    /// and what is known of it.
    // Always: out of line, its three results go by memory.
    #[inline(always)]
    fn peek_used(&self, slots: &mut Slots) -> Result<Option<(usize, u16, ChainState)>, QueueError> {
        if slots.last_used_idx == slots.seen_used_idx && !self.look_for_used(slots)? {
            return Ok(None);
        }
        let entry = (u32::from(slots.last_used_idx) & self.mask) as usize;
        // Read after the index: `look_for_used` loaded it with Acquire.
        let id = u32::from_le(self.used_element(entry, 0).load(Ordering::Relaxed));
        let (head, state) = match slots.outstanding_chain(id) {
            Ok(chain) => chain,
            Err(reason) => return Err(slots.break_down(reason)),
        };
        self.trace_pop(slots.queue, slots.seen_used_idx, entry, head);
        Ok(Some((entry, head, state)))
    }

    #[inline(always)]
    fn trace_pop(&self, queue: u16, seen: u16, entry: usize, head: u16) {
        tracepoint!(
            Event::PopUsed,
            queue,
            u64::from(head)
                | (entry as u64) << 16
                | u64::from(u32::from_le(
                    self.used_element(entry, 1).load(Ordering::Relaxed)
                )) << 32,
            u64::from(seen)
        );
    }

    /// Takes the next chain of those that were seen to be used, if it is as it
    /// should be and tracing is off; else `None`, and nothing has changed.
    #[inline(always)]
    pub(super) fn pop_seen(&self, slots: &mut Slots) -> Option<Used> {
        if slots.last_used_idx == slots.seen_used_idx || kickpath_trace::is_enabled() {
            return None;
        }
        let entry = (u32::from(slots.last_used_idx) & self.mask) as usize;
        // Read after the index, as in `peek_used`.
        let [id, length] =
            [0, 1].map(|part| u32::from_le(self.used_element(entry, part).load(Ordering::Relaxed)));
        let (head, state) = slots.outstanding_chain(id).ok()?;
        if length > state.writable() {
            return None;
        }
        slots.release(head);
        Some(Used {
            token: state.token(),
            length,
        })
    }

    /// Reads the device's index and returns whether there is news.
    #[inline]
    fn look_for_used(&self, slots: &mut Slots) -> Result<bool, QueueError> {
        if slots.broken().is_some() {
            return Err(slots.refusal());
        }
        let used_idx = self.read_used_idx();
        let news = used_idx.wrapping_sub(slots.last_used_idx);
        let outstanding = slots.published();
        if news > outstanding {
            return Err(slots.break_down(BrokenReason::UsedIndex {
                used_idx,
                last_used_idx: slots.last_used_idx,
                outstanding,
            }));
        }
        slots.seen_used_idx = used_idx;
        Ok(news != 0)
    }

    /// The device's index of the used ring.
    #[inline]
    fn read_used_idx(&self) -> u16 {
        // Acquire: what the index announces is read after it.
        u16::from_le(self.used_word(1).load(Ordering::Acquire))
    }

    /// Adds a chain of a single buffer, which any slot holds, without a
    /// tracepoint.
    ///
    /// # Safety
    ///
    /// As for [`RingFormat::add_at`].
    #[inline(always)]
    pub(super) unsafe fn add_untraced(
        &self,
        slots: &mut Slots,
        head: Head,
        buffer: Buffer,
        token: u16,
    ) {
        // Step 1 (specification 2.7.13): the buffer goes into the descriptor
        // table.
        self.write_descriptor(self.descriptor(head.0), &buffer, 0, 0);
        self.offer(
            slots,
            head,
            ChainState::single(token, buffer.writable_length()),
        );
    }

    /// See [`Ring::prepare`](super::Ring::prepare).
    pub(super) fn prepare(&self, slots: &Slots, buffer: impl Fn(Head) -> Buffer) {
        for id in (0..slots.size()).step_by(slots.slot_length().into()) {
            let head = Head(id.into());
            self.write_descriptor(self.descriptor(head.0), &buffer(head), 0, 0);
        }
    }

    /// As [`Self::add_untraced`], for the first `length` bytes of what the slot
    /// was prepared for, which are not written.
    ///
    /// # Safety
    ///
    /// As for [`Ring::add_prepared`](super::Ring::add_prepared).
    #[inline(always)]
    pub(super) unsafe fn add_prepared(
        &self,
        slots: &mut Slots,
        head: Head,
        length: u32,
        token: u16,
    ) {
        let descriptor = self.descriptor(head.0).as_ptr();
        // SAFETY: it is a descriptor of the ring. Volatile, because the device
        // reads it.
        unsafe { (&raw mut (*descriptor).length).write_volatile(length.to_le()) };
        self.offer(slots, head, ChainState::single(token, 0));
    }

    /// Step 2 (specification 2.7.13): the head of the chain goes into the next
    /// entry of the available ring.
    #[inline(always)]
    fn offer(&self, slots: &mut Slots, head: Head, state: ChainState) {
        let entry = (u32::from(slots.avail_idx) & self.mask) as usize;
        // Relaxed: the index that announces the entry is stored with Release.
        self.avail_word(2 + entry)
            .store(head.descriptor().to_le(), Ordering::Relaxed);
        slots.take(head, state);
    }

    /// Writes the chain's descriptors: neighbours in the ring, or a table of
    /// their own. Returns the bytes that the device may write.
    fn write_chain(&self, slots: &Slots, head: u16, rest: &[Buffer], last: &Buffer) -> u32 {
        let mut writable = last.writable_length();
        let mut id = if self.tables.is_some() { 0 } else { head };
        for buffer in rest {
            tracepoint!(
                Event::Descriptor,
                slots.queue,
                u64::from(id) | u64::from(buffer.length) << 32,
                buffer.trace_address()
            );
            self.write_descriptor(self.chain_descriptor(head, id), buffer, DESC_F_NEXT, id + 1);
            writable = writable.saturating_add(buffer.writable_length());
            id += 1;
        }
        self.write_descriptor(self.chain_descriptor(head, id), last, 0, 0);
        if let Some(tables) = &self.tables {
            let table = Buffer::new(
                tables.physical(head),
                // At most 2^15 descriptors.
                (u32::from(id) + 1) * size_of::<Descriptor>() as u32,
                false,
            );
            self.write_descriptor(self.descriptor(head.into()), &table, DESC_F_INDIRECT, 0);
        }
        writable
    }

    /// Descriptor `id` of the ring, or of the table of slot `head` where
    /// there are tables.
    fn chain_descriptor(&self, head: u16, id: u16) -> NonNull<Descriptor> {
        match &self.tables {
            Some(tables) => tables.descriptor(head, id).cast(),
            None => self.descriptor(id.into()),
        }
    }

    /// Descriptor `id` of the ring.
    #[inline]
    fn descriptor(&self, id: usize) -> NonNull<Descriptor> {
        debug_assert!(id <= self.mask as usize);
        // SAFETY: `id` lies in a slot of the ring and so is below its size;
        // the table of `size` descriptors starts the memory.
        unsafe { self.memory.pointer().cast().add(id) }
    }

    #[inline]
    fn write_descriptor(
        &self,
        descriptor: NonNull<Descriptor>,
        buffer: &Buffer,
        flags: u16,
        next: u16,
    ) {
        let flags = flags | if buffer.writable { DESC_F_WRITE } else { 0 };
        let descriptor = descriptor.as_ptr();
        // SAFETY: it is a descriptor of the ring or of a table.
        // Volatile, because the device reads it; field by field, because a
        // volatile copy of the whole is built on the stack first.
        unsafe {
            (&raw mut (*descriptor).address).write_volatile(buffer.address.to_le());
            (&raw mut (*descriptor).length).write_volatile(buffer.length.to_le());
            (&raw mut (*descriptor).flags_and_next)
                .write_volatile((u32::from(next) << 16 | u32::from(flags)).to_le());
        }
    }

    /// Word `index` of the available ring: 0 flags, 1 idx, 2.. the slots,
    /// `2 + size` used_event.
    #[inline]
    fn avail_word(&self, index: usize) -> &AtomicU16 {
        debug_assert!(index <= 3 + self.mask as usize);
        // SAFETY: `avail` is followed by 3 + size words within the memory,
        // 2-byte aligned; every access to them is atomic.
        unsafe { self.avail.add(2 * index).cast().as_ref() }
    }

    #[inline]
    fn used_event_word(&self) -> &AtomicU16 {
        self.avail_word(3 + self.mask as usize)
    }

    /// Word 0 (flags) or 1 (idx) of the used ring.
    #[inline]
    fn used_word(&self, index: u16) -> &AtomicU16 {
        debug_assert!(index < 2);
        // SAFETY: the used ring starts with two words within the memory;
        // every access to them is atomic.
        unsafe { self.used.add(2 * usize::from(index)).cast().as_ref() }
    }

    /// The avail_event word, behind the used ring's elements.
    #[inline]
    fn avail_event_word(&self) -> &AtomicU16 {
        // SAFETY: it is the last word of the layout, 2-byte aligned; every
        // access to it is atomic.
        unsafe {
            self.used
                .add(4 + 8 * (1 + self.mask as usize))
                .cast()
                .as_ref()
        }
    }

    /// The id (`part` 0) or length (`part` 1) of a used element.
    #[inline]
    fn used_element(&self, entry: usize, part: usize) -> &AtomicU32 {
        debug_assert!(entry <= self.mask as usize && part < 2);
        // SAFETY: `size` elements of two 32-bit words follow the used ring's
        // first four bytes, 4-byte aligned; every access to them is atomic.
        unsafe { self.used.add(4 + 8 * entry + 4 * part).cast().as_ref() }
    }
}

impl<H: Hal> RingFormat for SplitRing<H> {
    fn areas(&self) -> [PhysAddr; 3] {
        let start = self.memory.physical();
        [
            start,
            start + self.layout.avail as u64,
            start + self.layout.used as u64,
        ]
    }

    unsafe fn add_at(
        &mut self,
        slots: &mut Slots,
        head: Head,
        buffers: &[Buffer],
        token: u16,
    ) -> Result<(), QueueError> {
        let (rest, last) = match buffers {
            // Any slot holds a single buffer.
            [last] => (&[][..], last),
            [rest @ .., last] if buffers.len() <= usize::from(self.most) => (rest, last),
            _ => {
                return Err(QueueError::ChainLength {
                    queue: slots.queue,
                    length: buffers.len(),
                    most: usize::from(self.most),
                });
            }
        };
        let entry = u32::from(slots.avail_idx) & self.mask;
        let writable = if rest.is_empty() {
            self.write_descriptor(self.descriptor(head.0), last, 0, 0);
            last.writable_length()
        } else {
            self.write_chain(slots, head.descriptor(), rest, last)
        };
        tracepoint!(
            Event::Add,
            slots.queue,
            u64::from(head.descriptor()) | u64::from(entry) << 16 | u64::from(last.length) << 32,
            last.trace_address()
        );
        self.offer(slots, head, ChainState::single(token, writable));
        Ok(())
    }

    #[inline]
    fn publish(&mut self, slots: &mut Slots) -> bool {
        let (old, new) = slots.publish();
        // Step 3 (specification 2.7.13): the entries are visible before the
        // index that announces them.
        self.avail_word(1).store(new.to_le(), Ordering::Release);
        tracepoint!(Event::Publish, slots.queue, u64::from(new), u64::from(old));
        // Step 4: the index is visible before the device's wish is read, or
        // the device could go to sleep between the two and be told nothing.
        barrier::store_load();
        let (wish, wanted) = match self.mode {
            EventMode::EventIdx => {
                // avail_event, the last word of the used ring.
                let event = u16::from_le(self.avail_event_word().load(Ordering::Relaxed));
                (event, need_event(event, new, old))
            }
            EventMode::Flags => {
                let flags = u16::from_le(self.used_word(0).load(Ordering::Relaxed));
                (flags, flags & USED_F_NO_NOTIFY == 0)
            }
        };
        tracepoint!(
            Event::KickPrepare,
            slots.queue,
            u64::from(new) | u64::from(old) << 16 | u64::from(wish) << 32 | self.mode.trace_bit(),
            u64::from(wanted)
        );
        wanted
    }

    fn next_avail(&self, slots: &Slots) -> u16 {
        slots.avail_idx
    }

    #[inline]
    fn used_idx(&self, _slots: &Slots, _pending: Option<u32>) -> u16 {
        self.read_used_idx()
    }

    #[inline]
    fn has_used(&self, slots: &Slots) -> bool {
        slots.last_used_idx != slots.seen_used_idx || slots.last_used_idx != self.read_used_idx()
    }

    #[inline]
    fn pop_used(&mut self, slots: &mut Slots) -> Result<Option<Used>, QueueError> {
        let Some((entry, head, state)) = self.peek_used(slots)? else {
            return Ok(None);
        };
        // Devices have always been careless about the length of a chain they
        // only read (specification 2.7.8.1); nothing depends on that one.
        let mut length = 0;
        if state.writable() != 0 {
            length = u32::from_le(self.used_element(entry, 1).load(Ordering::Relaxed));
            if length > state.writable() {
                return Err(slots.break_down(BrokenReason::LengthTooLong {
                    id: head,
                    length,
                    writable: state.writable(),
                }));
            }
        }
        slots.release(head);
        Ok(Some(Used {
            token: state.token(),
            length,
        }))
    }

    #[inline]
    fn discard_used(&mut self, slots: &mut Slots) -> Result<(), QueueError> {
        if kickpath_trace::is_enabled() {
            while let Some((_, head, _)) = self.peek_used(slots)? {
                slots.release(head);
            }
            return Ok(());
        }
        while slots.last_used_idx != slots.seen_used_idx || self.look_for_used(slots)? {
            let start = (u32::from(slots.last_used_idx) & self.mask) as usize;
            let news = slots.seen_used_idx.wrapping_sub(slots.last_used_idx);
            // What is at the ring's start again is for the next round.
            let end = (start + usize::from(news)).min(1 + self.mask as usize);
            slots.release_all(start..end, |entry| {
                // Read after the index: `look_for_used` loaded it with Acquire.
                u32::from_le(self.used_element(entry, 0).load(Ordering::Relaxed))
            })?;
        }
        Ok(())
    }

    fn read_used(&mut self, slots: &mut Slots) -> Result<Option<UsedEntry>, QueueError> {
        if slots.last_used_idx == slots.seen_used_idx && !self.look_for_used(slots)? {
            return Ok(None);
        }
        let entry = (u32::from(slots.last_used_idx) & self.mask) as usize;
        let [id, length] =
            [0, 1].map(|part| u32::from_le(self.used_element(entry, part).load(Ordering::Relaxed)));
        Ok(Some(UsedEntry {
            entry: entry as u16,
            id,
            length,
        }))
    }

    fn skip_used(&mut self, _state: ChainState) {}

    /// Asks the device not to interrupt. With EVENT_IDX there is no flag to
    /// ask by: the event is put where the device's index has just passed, so
    /// it will not get there within the next 65535 chains. Called at every
    /// poll, it moves the event on before that.
    #[inline]
    fn disable_interrupts(&mut self, slots: &Slots) {
        match self.mode {
            EventMode::Flags => {
                if !self.interrupts_disabled {
                    tracepoint!(
                        Event::DisableInterrupts,
                        slots.queue,
                        u64::from(AVAIL_F_NO_INTERRUPT)
                    );
                    self.avail_word(0)
                        .store(AVAIL_F_NO_INTERRUPT.to_le(), Ordering::Relaxed);
                }
            }
            EventMode::EventIdx => {
                let passed = slots.last_used_idx.wrapping_sub(1);
                let distance = passed.wrapping_sub(self.used_event);
                if !self.interrupts_disabled || distance >= MAX_SIZE {
                    tracepoint!(
                        Event::DisableInterrupts,
                        slots.queue,
                        u64::from(passed) | self.mode.trace_bit()
                    );
                    self.used_event = passed;
                    self.used_event_word()
                        .store(passed.to_le(), Ordering::Relaxed);
                }
            }
        }
        self.interrupts_disabled = true;
    }

    #[inline]
    fn enable_interrupts_after(&mut self, slots: &Slots, more: u16) -> bool {
        let event = slots.last_used_idx.wrapping_add(more);
        match self.mode {
            EventMode::Flags => {
                if self.interrupts_disabled {
                    self.avail_word(0).store(0, Ordering::Relaxed);
                }
            }
            EventMode::EventIdx => {
                self.used_event = event;
                self.used_event_word()
                    .store(event.to_le(), Ordering::Relaxed);
            }
        }
        self.interrupts_disabled = false;
        // The wish is visible before the index is read again, or a chain used
        // between the two would go unannounced.
        barrier::store_load();
        let used = self.read_used_idx().wrapping_sub(slots.last_used_idx);
        let (wish, enough) = match self.mode {
            EventMode::Flags => (0, used > 0),
            EventMode::EventIdx => (event, used > more),
        };
        tracepoint!(
            Event::EnableInterrupts,
            slots.queue,
            u64::from(wish) | self.mode.trace_bit(),
            u64::from(enough)
        );
        enough
    }
}
