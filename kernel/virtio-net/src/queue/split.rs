//! The split virtqueue (specification 2.6), with no hardware in it.
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
//! all its state in private: which descriptors are free, whose a chain is,
//! how much of it may be written, both of its indices. From the
//! shared memory it reads only what the device has to say: the used ring, its
//! index, its flags and the event; and it believes none of it unchecked.

extern crate alloc;

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use alloc::boxed::Box;
use kickpath_trace::{Event, tracepoint};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use super::barrier;
use super::dma::DmaRegion;
use super::error::{BrokenReason, QueueError};
use super::need_event;

/// The used ring starts at a multiple of this many bytes; the legacy
/// interface fixes it (specification 2.6.2).
pub const USED_ALIGN: usize = 4096;

/// Largest size of a split virtqueue in descriptors (specification 2.6).
pub const MAX_SIZE: u16 = 1 << 15;

/// The chain goes on with the descriptor named by `next`.
const DESC_F_NEXT: u16 = 1;
/// The device writes this buffer (else it reads it).
const DESC_F_WRITE: u16 = 2;
/// In `avail.flags`: no interrupts, please.
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// In `used.flags`: no notifications, please.
const USED_F_NO_NOTIFY: u16 = 1;

/// `struct virtq_desc` (specification 2.6.5), little endian.
#[repr(C, align(16))]
struct Descriptor {
    address: u64,
    length: u32,
    /// `flags`, then `next` in the upper half: one store instead of two.
    flags_and_next: u32,
}

/// One physically contiguous piece of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Address as the device sees it.
    pub address: PhysAddr,
    /// Length in bytes.
    pub length: u32,
    /// Whether the device writes it; else it reads it.
    pub writable: bool,
}

impl Buffer {
    /// A piece of `length` bytes at `address`.
    #[inline]
    pub const fn new(address: PhysAddr, length: u32, writable: bool) -> Self {
        Self {
            address,
            length,
            writable,
        }
    }

    /// The address as trace records have it.
    fn trace_address(&self) -> u64 {
        self.address | u64::from(self.writable) << 63
    }
}

/// A buffer chain that the device has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The token given to [`SplitRing::add`].
    pub token: u16,
    /// Bytes that the device wrote, at most the chain's writable bytes.
    pub length: u32,
}

/// What the driver knows of a chain, kept at the number of its first
/// descriptor: 0 when the device does not have it, else [`OUTSTANDING`] with
/// the caller's token in bits 0 to 15, and in bits 32 to 63 the number of
/// bytes that the device may write. One word, to be read and written at once.
type ChainState = u64;

/// In [`ChainState`]: the device has the chain.
const OUTSTANDING: ChainState = 1 << 16;

/// The first descriptor of a free slot, which the next chain will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head(u16);

impl Head {
    /// The descriptor's number, 0 to size - 1. A caller that keeps a buffer a
    /// slot knows by it which is free.
    #[inline]
    pub fn descriptor(self) -> u16 {
        self.0
    }
}

/// Which way driver and device tell each other when they want to hear of
/// progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventMode {
    /// One flag a side: all or nothing (specification 2.6.7, without
    /// `VIRTIO_F_EVENT_IDX`).
    Flags,
    /// Each side names the index at which it wants to hear
    /// (`VIRTIO_F_EVENT_IDX`).
    EventIdx,
}

impl EventMode {
    /// Bit 48 of a trace record's argument: by event, not by flag.
    #[inline]
    const fn trace_bit(self) -> u64 {
        match self {
            Self::Flags => 0,
            Self::EventIdx => 1 << 48,
        }
    }
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
    /// interface requires (specification 2.6.2 `virtq_size`, Linux
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

/// A split virtqueue's memory and what the driver knows of it.
///
/// A slot is a fixed group of neighbouring descriptors that holds one chain.
/// There is no free list: slots are taken in the order of their number, which
/// is the order in which a device normally gives them back, so that the next
/// one follows from the available index alone. Only where a device used
/// buffers out of order is that slot still taken, and then a free one is
/// searched for.
pub struct SplitRing<H: Hal> {
    memory: DmaRegion<H>,
    layout: Layout,
    /// Start of the available ring within `memory`.
    avail: NonNull<u8>,
    /// Start of the used ring within `memory`.
    used: NonNull<u8>,
    /// One a descriptor; those that head no slot stay 0.
    chains: Box<[ChainState]>,
    /// Index of the queue at the device, for messages.
    queue: u16,
    size: u16,
    /// `size - 1`: what a free-running index is masked with.
    mask: u32,
    /// Descriptors a slot, a power of two.
    slot_length: u32,
    mode: EventMode,
    /// Next index of the available ring; published up to `published_idx`.
    avail_idx: u16,
    published_idx: u16,
    /// Next index of the used ring to consume, and how far the device was
    /// last seen to have come.
    last_used_idx: u16,
    seen_used_idx: u16,
    /// Chains published since the ring was made.
    added: u64,
    /// The `used_event` or the flag that was last written.
    interrupts_disabled: bool,
    used_event: u16,
    broken: Option<BrokenReason>,
}

// SAFETY: `avail` and `used` point into `memory`, which this value owns.
unsafe impl<H: Hal> Send for SplitRing<H> {}

impl<H: Hal> SplitRing<H> {
    /// Allocates a ring of `size` descriptors for queue number `queue`, for
    /// chains of up to `chain` descriptors (rounded up to a power of two): it
    /// holds `size / chain` of them.
    ///
    /// # Errors
    ///
    /// [`QueueError::BadSize`] for a size that a split queue cannot have or
    /// that does not hold a single chain, [`QueueError::NoMemory`] when the
    /// `Hal` has no such memory.
    pub fn new(queue: u16, size: u32, chain: u16, mode: EventMode) -> Result<Self, QueueError> {
        let bad_size = QueueError::BadSize { queue, size };
        let size = match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= MAX_SIZE => size,
            _ => return Err(bad_size),
        };
        let slot_length = match chain.max(1).checked_next_power_of_two() {
            Some(length) if length <= size => length,
            _ => return Err(bad_size),
        };
        let layout = Layout::new(size);
        let memory =
            DmaRegion::new(layout.total, BufferDirection::Both).ok_or(QueueError::NoMemory {
                queue,
                pages: layout.total.div_ceil(virtio_drivers::PAGE_SIZE),
            })?;
        // SAFETY: both offsets lie within the layout, whose total was allocated.
        let (avail, used) = unsafe {
            (
                memory.pointer().add(layout.avail),
                memory.pointer().add(layout.used),
            )
        };
        let mut ring = Self {
            memory,
            layout,
            avail,
            used,
            chains: core::iter::repeat_n(0, usize::from(size)).collect(),
            queue,
            size,
            mask: u32::from(size - 1),
            slot_length: u32::from(slot_length),
            mode,
            avail_idx: 0,
            published_idx: 0,
            last_used_idx: 0,
            seen_used_idx: 0,
            added: 0,
            interrupts_disabled: false,
            used_event: 0,
            broken: None,
        };
        ring.disable_interrupts();
        Ok(ring)
    }

    /// Address of the descriptor table as the device sees it.
    pub fn descriptor_area(&self) -> PhysAddr {
        self.memory.physical()
    }

    /// Address of the available ring as the device sees it.
    pub fn driver_area(&self) -> PhysAddr {
        self.memory.physical() + self.layout.avail as u64
    }

    /// Address of the used ring as the device sees it.
    pub fn device_area(&self) -> PhysAddr {
        self.memory.physical() + self.layout.used as u64
    }

    /// Index of the queue at the device.
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// Number of descriptors.
    #[inline]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Number of descriptors a slot.
    pub fn slot_length(&self) -> u16 {
        // A power of two up to `size`, so it fits.
        self.slot_length as u16
    }

    /// Number of chains that the ring holds.
    #[inline]
    pub fn capacity(&self) -> u16 {
        self.size / self.slot_length()
    }

    /// Chains added since the ring was made.
    pub fn added(&self) -> u64 {
        self.added + u64::from(self.avail_idx.wrapping_sub(self.published_idx))
    }

    /// Number of chains that can be added.
    #[inline]
    pub fn free(&self) -> u16 {
        if self.broken.is_some() {
            return 0;
        }
        self.capacity() - self.outstanding()
    }

    /// Number of chains that the device has.
    #[inline]
    pub fn outstanding(&self) -> u16 {
        // Every chain moves one index when it goes and the other when it
        // comes back.
        self.avail_idx.wrapping_sub(self.last_used_idx)
    }

    /// The driver's free-running index of the available ring, including what
    /// is not published yet.
    pub fn avail_idx(&self) -> u16 {
        self.avail_idx
    }

    /// How far the driver has consumed the used ring.
    pub fn last_used_idx(&self) -> u16 {
        self.last_used_idx
    }

    /// The device's index of the used ring, read now.
    #[inline]
    pub fn used_idx(&self) -> u16 {
        // Acquire: what the index announces is read after it.
        self.used_word(1).load(Ordering::Acquire)
    }

    /// Why the ring is unusable, if the device broke the protocol.
    pub fn broken(&self) -> Option<BrokenReason> {
        self.broken
    }

    /// Whether chains were added that [`Self::publish`] has not shown to the
    /// device yet.
    #[inline]
    pub fn has_unpublished(&self) -> bool {
        self.avail_idx != self.published_idx
    }

    /// The slot that the next chain will take, if there is room for one.
    #[inline]
    pub fn next_head(&self) -> Option<Head> {
        // In 32 bits, which saves the CPU cutting each step to 16.
        let head = (u32::from(self.avail_idx) * self.slot_length) & self.mask;
        let head = head as u16;
        if *self.chain(head) == 0 {
            Some(Head(head))
        } else {
            self.search_free_slot(head)
        }
    }

    /// Finds a free slot after one that the device did not give back in order.
    #[cold]
    fn search_free_slot(&self, taken: u16) -> Option<Head> {
        if self.free() == 0 {
            return None;
        }
        (1..self.capacity())
            .map(|distance| {
                let head = u32::from(taken) + u32::from(distance) * self.slot_length;
                (head & self.mask) as u16
            })
            .find(|&head| *self.chain(head) == 0)
            .map(Head)
    }

    /// Puts a chain of buffers into the next slot and offers it to the device
    /// (Linux `virtqueue_add_split`). The device sees it after
    /// [`Self::publish`]. `token` comes back with it from
    /// [`Self::pop_used`].
    ///
    /// Buffers that the device reads must come before those it writes
    /// (specification 2.6.4.2).
    ///
    /// # Safety
    ///
    /// Until the chain comes back from [`Self::pop_used`], or the device has
    /// been reset, each buffer must be memory that the device may access at
    /// that address; a writable one may be accessed by nobody else, a
    /// readable one may be written by nobody.
    ///
    /// # Errors
    ///
    /// [`QueueError::Full`], [`QueueError::ChainLength`] for no buffers or
    /// more than a slot holds, [`QueueError::Broken`]. Nothing has changed
    /// then.
    #[inline]
    pub unsafe fn add(&mut self, buffers: &[Buffer], token: u16) -> Result<(), QueueError> {
        let Some(head) = self.next_head() else {
            return Err(self.refusal());
        };
        // SAFETY: the caller's promise, and the head is the next one.
        unsafe { self.add_at(head, buffers, token) }
    }

    /// As [`Self::add`], for a caller that has asked for the slot already.
    ///
    /// # Safety
    ///
    /// As for [`Self::add`]; and `head` must come from this ring's
    /// [`Self::next_head`], with nothing added or popped in between.
    ///
    /// # Errors
    ///
    /// [`QueueError::ChainLength`]. Nothing has changed then.
    #[inline]
    pub unsafe fn add_at(
        &mut self,
        head: Head,
        buffers: &[Buffer],
        token: u16,
    ) -> Result<(), QueueError> {
        let most = self.slot_length as usize;
        let (last, rest) = match buffers.split_last() {
            // Any slot holds a single buffer; no need to ask.
            Some(parts) if buffers.len() == 1 || buffers.len() <= most => parts,
            _ => {
                return Err(QueueError::ChainLength {
                    queue: self.queue,
                    length: buffers.len(),
                    most,
                });
            }
        };

        // Step 1 (specification 2.6.13): the buffers go into the descriptor
        // table.
        let Head(head) = head;
        let mut id = head;
        let mut writable = 0u32;
        for buffer in rest {
            tracepoint!(
                Event::Descriptor,
                self.queue,
                u64::from(id) | u64::from(buffer.length) << 32,
                buffer.trace_address()
            );
            self.write_descriptor(id, buffer, DESC_F_NEXT, id + 1);
            writable = writable.saturating_add(if buffer.writable { buffer.length } else { 0 });
            id += 1;
        }
        self.write_descriptor(id, last, 0, 0);
        writable = writable.saturating_add(if last.writable { last.length } else { 0 });
        *self.chain_mut(head) =
            ChainState::from(writable) << 32 | OUTSTANDING | ChainState::from(token);

        // Step 2: the head goes into the next entry of the available ring.
        let entry = (u32::from(self.avail_idx) & self.mask) as usize;
        tracepoint!(
            Event::Add,
            self.queue,
            u64::from(head) | (entry as u64) << 16 | u64::from(last.length) << 32,
            last.trace_address()
        );
        // Relaxed: the index that announces the entry is stored with Release.
        self.avail_word(2 + entry)
            .store(head.to_le(), Ordering::Relaxed);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        Ok(())
    }

    /// Shows all added chains to the device and returns whether it wants to
    /// be notified of them (Linux `virtqueue_kick_prepare_split`).
    #[inline]
    pub fn publish(&mut self) -> bool {
        let old = self.published_idx;
        let new = self.avail_idx;
        // Step 3 (specification 2.6.13): the entries are visible before the
        // index that announces them.
        self.avail_word(1).store(new.to_le(), Ordering::Release);
        self.published_idx = new;
        self.added += u64::from(new.wrapping_sub(old));
        tracepoint!(Event::Publish, self.queue, u64::from(new), u64::from(old));
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
            self.queue,
            u64::from(new) | u64::from(old) << 16 | u64::from(wish) << 32 | self.mode.trace_bit(),
            u64::from(wanted)
        );
        wanted
    }

    /// Whether the device has used a chain that was not popped yet.
    #[inline]
    pub fn has_used(&self) -> bool {
        self.last_used_idx != self.seen_used_idx || self.last_used_idx != self.used_idx()
    }

    /// Takes the next used chain, if there is one (Linux
    /// `virtqueue_get_buf_ctx_split`).
    ///
    /// # Errors
    ///
    /// [`QueueError::Broken`] when the device's index, id or length is
    /// impossible, and ever after.
    #[inline]
    pub fn pop_used(&mut self) -> Result<Option<Used>, QueueError> {
        let Some((entry, head, state)) = self.peek_used()? else {
            return Ok(None);
        };
        // Devices have always been careless about the length of a chain they
        // only read (specification 2.6.8.1); nothing depends on that one.
        let writable = (state >> 32) as u32;
        let mut length = 0;
        if writable != 0 {
            length = u32::from_le(self.used_element(entry, 1).load(Ordering::Relaxed));
            if length > writable {
                return self.break_down(BrokenReason::LengthTooLong {
                    id: head,
                    length,
                    writable,
                });
            }
        }
        self.consume_used(head);
        Ok(Some(Used {
            token: state as u16,
            length,
        }))
    }

    /// Takes every used chain and forgets it: for a ring whose chains the
    /// device only reads, each in the buffer of its slot.
    ///
    /// # Errors
    ///
    /// As for [`Self::pop_used`], but lengths are not looked at.
    #[inline]
    pub fn discard_used(&mut self) -> Result<(), QueueError> {
        while let Some((_, head, _)) = self.peek_used()? {
            self.consume_used(head);
        }
        Ok(())
    }

    /// The next used entry: its place in the used ring, the head of its chain
    /// and what is known of it.
    // Always: out of line, its three results go by memory.
    #[inline(always)]
    fn peek_used(&mut self) -> Result<Option<(usize, u16, ChainState)>, QueueError> {
        if self.last_used_idx == self.seen_used_idx && !self.look_for_used()? {
            return Ok(None);
        }
        let entry = (u32::from(self.last_used_idx) & self.mask) as usize;
        // Read after the index: `look_for_used` loaded it with Acquire.
        let id = u32::from_le(self.used_element(entry, 0).load(Ordering::Relaxed));
        if id > self.mask {
            return self.break_down(BrokenReason::IdOutOfRange {
                id,
                size: self.size,
            });
        }
        // At most `size - 1`, so it fits.
        let head = id as u16;
        let state = *self.chain(head);
        if state == 0 {
            return self.break_down(BrokenReason::IdNotOutstanding { id: head });
        }
        tracepoint!(
            Event::PopUsed,
            self.queue,
            u64::from(head)
                | (entry as u64) << 16
                | u64::from(u32::from_le(
                    self.used_element(entry, 1).load(Ordering::Relaxed)
                )) << 32,
            u64::from(self.seen_used_idx)
        );
        Ok(Some((entry, head, state)))
    }

    #[inline]
    fn consume_used(&mut self, head: u16) {
        *self.chain_mut(head) = 0;
        self.last_used_idx = self.last_used_idx.wrapping_add(1);
    }

    /// Reads the device's index and returns whether there is news.
    #[inline]
    fn look_for_used(&mut self) -> Result<bool, QueueError> {
        if let Some(reason) = self.broken {
            return Err(QueueError::Broken {
                queue: self.queue,
                reason,
            });
        }
        let used_idx = self.used_idx();
        let news = used_idx.wrapping_sub(self.last_used_idx);
        // Only what was published can have been used. Counting what was added
        // since would let a device keep a caller busy for ever that adds a
        // chain for each that it pops.
        let outstanding = self.published_idx.wrapping_sub(self.last_used_idx);
        if news > outstanding {
            return self.break_down(BrokenReason::UsedIndex {
                used_idx,
                last_used_idx: self.last_used_idx,
                outstanding,
            });
        }
        self.seen_used_idx = used_idx;
        Ok(news != 0)
    }

    #[cold]
    #[inline(never)]
    fn break_down<T>(&mut self, reason: BrokenReason) -> Result<T, QueueError> {
        self.broken = Some(reason);
        // From here every `pop_used` goes by `look_for_used`, which refuses.
        self.seen_used_idx = self.last_used_idx;
        // And every `add` finds all slots taken.
        self.chains.fill(OUTSTANDING);
        Err(QueueError::Broken {
            queue: self.queue,
            reason,
        })
    }

    /// Why there is no slot for `add`.
    #[cold]
    fn refusal(&self) -> QueueError {
        match self.broken {
            Some(reason) => QueueError::Broken {
                queue: self.queue,
                reason,
            },
            None => QueueError::Full {
                queue: self.queue,
                capacity: self.capacity(),
            },
        }
    }

    /// Asks the device not to interrupt. With EVENT_IDX there is no flag to
    /// ask by: the event is put where the device's index has just passed, so
    /// it will not get there within the next 65535 chains. Called at every
    /// poll, it moves the event on before that.
    #[inline]
    pub fn disable_interrupts(&mut self) {
        match self.mode {
            EventMode::Flags => {
                if !self.interrupts_disabled {
                    tracepoint!(
                        Event::DisableInterrupts,
                        self.queue,
                        u64::from(AVAIL_F_NO_INTERRUPT)
                    );
                    self.avail_word(0)
                        .store(AVAIL_F_NO_INTERRUPT.to_le(), Ordering::Relaxed);
                }
            }
            EventMode::EventIdx => {
                let passed = self.last_used_idx.wrapping_sub(1);
                let distance = passed.wrapping_sub(self.used_event);
                if !self.interrupts_disabled || distance >= MAX_SIZE {
                    tracepoint!(
                        Event::DisableInterrupts,
                        self.queue,
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

    /// Asks for an interrupt once `more` further chains are used (with flags:
    /// at the next one), and returns whether enough are used already; then no
    /// interrupt may come and the caller must poll.
    #[inline]
    pub fn enable_interrupts_after(&mut self, more: u16) -> bool {
        let event = self.last_used_idx.wrapping_add(more);
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
        let used = self.used_idx().wrapping_sub(self.last_used_idx);
        let (wish, enough) = match self.mode {
            EventMode::Flags => (0, used > 0),
            EventMode::EventIdx => (event, used > more),
        };
        tracepoint!(
            Event::EnableInterrupts,
            self.queue,
            u64::from(wish) | self.mode.trace_bit(),
            u64::from(enough)
        );
        enough
    }

    #[inline]
    fn write_descriptor(&mut self, id: u16, buffer: &Buffer, flags: u16, next: u16) {
        let flags = flags | if buffer.writable { DESC_F_WRITE } else { 0 };
        debug_assert!(id < self.size);
        // SAFETY: `id` lies in a slot of the ring and so is below `size`; the
        // table of `size` descriptors starts the memory.
        // Volatile, because the device reads it; field by field, because a
        // volatile copy of the whole is built on the stack first.
        unsafe {
            let descriptor = self
                .memory
                .pointer()
                .cast::<Descriptor>()
                .add(usize::from(id))
                .as_ptr();
            (&raw mut (*descriptor).address).write_volatile(buffer.address.to_le());
            (&raw mut (*descriptor).length).write_volatile(buffer.length.to_le());
            (&raw mut (*descriptor).flags_and_next)
                .write_volatile((u32::from(next) << 16 | u32::from(flags)).to_le());
        }
    }

    #[inline]
    fn chain(&self, id: u16) -> &ChainState {
        debug_assert!(id < self.size);
        // SAFETY: ids are masked with `size - 1` or were compared with
        // `size`, the length of `chains`.
        unsafe { self.chains.get_unchecked(usize::from(id)) }
    }

    #[inline]
    fn chain_mut(&mut self, id: u16) -> &mut ChainState {
        debug_assert!(id < self.size);
        // SAFETY: as in `chain`.
        unsafe { self.chains.get_unchecked_mut(usize::from(id)) }
    }

    /// Word `index` of the available ring: 0 flags, 1 idx, 2.. the slots,
    /// `2 + size` used_event.
    #[inline]
    fn avail_word(&self, index: usize) -> &AtomicU16 {
        debug_assert!(index <= 2 + usize::from(self.size));
        // SAFETY: `avail` is followed by 3 + size words within the memory,
        // 2-byte aligned; every access to them is atomic.
        unsafe { self.avail.add(2 * index).cast().as_ref() }
    }

    #[inline]
    fn used_event_word(&self) -> &AtomicU16 {
        self.avail_word(2 + usize::from(self.size))
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
                .add(4 + 8 * usize::from(self.size))
                .cast()
                .as_ref()
        }
    }

    /// The id (`part` 0) or length (`part` 1) of a used element.
    #[inline]
    fn used_element(&self, entry: usize, part: usize) -> &AtomicU32 {
        debug_assert!(entry < usize::from(self.size) && part < 2);
        // SAFETY: `size` elements of two 32-bit words follow the used ring's
        // first four bytes, 4-byte aligned; every access to them is atomic.
        unsafe { self.used.add(4 + 8 * entry + 4 * part).cast().as_ref() }
    }
}
