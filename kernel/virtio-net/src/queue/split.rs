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
//! all its state in private: which descriptors are free, how a chain is
//! linked, what a chain may be written with, both of its indices. From the
//! shared memory it reads only what the device has to say: the used ring, its
//! index, its flags and the event; and it believes none of it unchecked.

extern crate alloc;

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use alloc::boxed::Box;
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
    flags: u16,
    next: u16,
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

/// A buffer chain that the device has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The token given to [`SplitRing::add`].
    pub token: u16,
    /// Bytes that the device wrote, at most the chain's writable bytes.
    pub length: u32,
}

/// What the driver knows of a descriptor.
#[derive(Clone, Copy)]
struct Shadow {
    /// The next descriptor of the chain, or of the free list.
    next: u16,
    /// For the head of an outstanding chain its number of descriptors, else 0.
    chain: u16,
    /// The caller's token of an outstanding chain.
    token: u16,
    /// Bytes of an outstanding chain that the device may write.
    writable: u32,
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
pub struct SplitRing<H: Hal> {
    memory: DmaRegion<H>,
    layout: Layout,
    shadow: Box<[Shadow]>,
    /// Index of the queue at the device, for messages.
    queue: u16,
    size: u16,
    mode: EventMode,
    free_head: u16,
    free: u16,
    /// Chains that the device has.
    outstanding: u16,
    /// Next index of the available ring; published up to `published_idx`.
    avail_idx: u16,
    published_idx: u16,
    /// Next index of the used ring to consume, and how far the device was
    /// last seen to have come.
    last_used_idx: u16,
    seen_used_idx: u16,
    /// The `used_event` or the flag that was last written.
    interrupts_disabled: bool,
    used_event: u16,
    broken: Option<BrokenReason>,
}

impl<H: Hal> SplitRing<H> {
    /// Allocates a ring of `size` descriptors for queue number `queue`.
    ///
    /// # Errors
    ///
    /// [`QueueError::BadSize`] for a size that a split queue cannot have,
    /// [`QueueError::NoMemory`] when the `Hal` has no such memory.
    pub fn new(queue: u16, size: u32, mode: EventMode) -> Result<Self, QueueError> {
        let size = match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= MAX_SIZE => size,
            _ => return Err(QueueError::BadSize { queue, size }),
        };
        let layout = Layout::new(size);
        let memory =
            DmaRegion::new(layout.total, BufferDirection::Both).ok_or(QueueError::NoMemory {
                queue,
                pages: layout.total.div_ceil(virtio_drivers::PAGE_SIZE),
            })?;
        let shadow = (1..=size)
            .map(|next| Shadow {
                next,
                chain: 0,
                token: 0,
                writable: 0,
            })
            .collect();
        let mut ring = Self {
            memory,
            layout,
            shadow,
            queue,
            size,
            mode,
            free_head: 0,
            free: size,
            outstanding: 0,
            avail_idx: 0,
            published_idx: 0,
            last_used_idx: 0,
            seen_used_idx: 0,
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

    /// Number of free descriptors.
    #[inline]
    pub fn free(&self) -> u16 {
        self.free
    }

    /// Number of chains that the device has.
    #[inline]
    pub fn outstanding(&self) -> u16 {
        self.outstanding
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

    /// Puts a chain of buffers into the next slot of the available ring
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
    /// [`QueueError::Full`] when there are fewer free descriptors than
    /// buffers, [`QueueError::EmptyChain`], [`QueueError::Broken`]. Nothing
    /// has changed then.
    #[inline]
    pub unsafe fn add(&mut self, buffers: &[Buffer], token: u16) -> Result<(), QueueError> {
        let wanted = buffers.len();
        if wanted > usize::from(self.free) {
            return Err(QueueError::Full {
                queue: self.queue,
                wanted: u16::try_from(wanted).unwrap_or(u16::MAX),
                free: self.free,
            });
        }
        if let Some(reason) = self.broken {
            return Err(QueueError::Broken {
                queue: self.queue,
                reason,
            });
        }
        let Some((last, rest)) = buffers.split_last() else {
            return Err(QueueError::EmptyChain { queue: self.queue });
        };

        // Step 1 (specification 2.6.13): the buffers go into the descriptor
        // table, linked as the free list already links them.
        let head = self.free_head;
        let mut id = head;
        let mut writable = 0u32;
        for buffer in rest {
            let next = self.shadow(id).next;
            self.write_descriptor(id, buffer, DESC_F_NEXT, next);
            writable = writable.saturating_add(if buffer.writable { buffer.length } else { 0 });
            id = next;
        }
        self.write_descriptor(id, last, 0, 0);
        writable = writable.saturating_add(if last.writable { last.length } else { 0 });
        self.free_head = self.shadow(id).next;
        // At most `free` <= 32768, so it fits.
        let chain = wanted as u16;
        self.free -= chain;
        self.outstanding += 1;
        let shadow = self.shadow_mut(head);
        shadow.chain = chain;
        shadow.token = token;
        shadow.writable = writable;

        // Step 2: the head goes into the next slot of the available ring.
        let slot = self.avail_idx & (self.size - 1);
        // Relaxed: the index that announces the slot is stored with Release.
        self.avail_word(2 + slot)
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
        // Step 4: the index is visible before the device's wish is read, or
        // the device could go to sleep between the two and be told nothing.
        barrier::store_load();
        match self.mode {
            EventMode::EventIdx => {
                // avail_event, the last word of the used ring.
                let event = u16::from_le(self.avail_event_word().load(Ordering::Relaxed));
                need_event(event, new, old)
            }
            EventMode::Flags => {
                let flags = u16::from_le(self.used_word(0).load(Ordering::Relaxed));
                flags & USED_F_NO_NOTIFY == 0
            }
        }
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
        if self.last_used_idx == self.seen_used_idx && !self.look_for_used()? {
            return Ok(None);
        }
        let slot = usize::from(self.last_used_idx & (self.size - 1));
        // Read after the index: `look_for_used` loaded it with Acquire.
        let id = u32::from_le(self.used_element(slot, 0).load(Ordering::Relaxed));
        let length = u32::from_le(self.used_element(slot, 1).load(Ordering::Relaxed));
        let head = match u16::try_from(id) {
            Ok(head) if head < self.size => head,
            _ => {
                return self.break_down(BrokenReason::IdOutOfRange {
                    id,
                    size: self.size,
                });
            }
        };
        let Shadow {
            chain,
            token,
            writable,
            ..
        } = *self.shadow(head);
        if chain == 0 {
            return self.break_down(BrokenReason::IdNotOutstanding { id: head });
        }
        // Devices have always been careless about the length of a chain they
        // only read (specification 2.6.8.1); nothing depends on that one.
        let length = if writable == 0 { 0 } else { length };
        if length > writable {
            return self.break_down(BrokenReason::LengthTooLong {
                id: head,
                length,
                writable,
            });
        }

        // The chain goes back to the free list by the private links.
        let mut tail = head;
        for _ in 1..chain {
            tail = self.shadow(tail).next;
        }
        let free_head = self.free_head;
        self.shadow_mut(tail).next = free_head;
        self.shadow_mut(head).chain = 0;
        self.free_head = head;
        self.free += chain;
        self.outstanding -= 1;
        self.last_used_idx = self.last_used_idx.wrapping_add(1);
        Ok(Some(Used { token, length }))
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
        if news > self.outstanding {
            return self.break_down(BrokenReason::UsedIndex {
                used_idx,
                last_used_idx: self.last_used_idx,
                outstanding: self.outstanding,
            });
        }
        self.seen_used_idx = used_idx;
        Ok(news != 0)
    }

    #[cold]
    fn break_down<T>(&mut self, reason: BrokenReason) -> Result<T, QueueError> {
        self.broken = Some(reason);
        // From here every `pop_used` goes by `look_for_used`, which refuses.
        self.seen_used_idx = self.last_used_idx;
        Err(QueueError::Broken {
            queue: self.queue,
            reason,
        })
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
                    self.avail_word(0)
                        .store(AVAIL_F_NO_INTERRUPT.to_le(), Ordering::Relaxed);
                }
            }
            EventMode::EventIdx => {
                let passed = self.last_used_idx.wrapping_sub(1);
                let distance = passed.wrapping_sub(self.used_event);
                if !self.interrupts_disabled || distance >= MAX_SIZE {
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
        used > if self.mode == EventMode::Flags {
            0
        } else {
            more
        }
    }

    #[inline]
    fn write_descriptor(&mut self, id: u16, buffer: &Buffer, flags: u16, next: u16) {
        let flags = flags | if buffer.writable { DESC_F_WRITE } else { 0 };
        let descriptor = Descriptor {
            address: buffer.address.to_le(),
            length: buffer.length.to_le(),
            flags: flags.to_le(),
            next: next.to_le(),
        };
        debug_assert!(id < self.size);
        // SAFETY: `id` comes from the private free list, whose members are
        // below `size`; the table of `size` descriptors starts the memory.
        // Volatile, because the device reads it.
        unsafe {
            self.memory
                .pointer()
                .cast::<Descriptor>()
                .add(usize::from(id))
                .write_volatile(descriptor);
        }
    }

    #[inline]
    fn shadow(&self, id: u16) -> &Shadow {
        debug_assert!(id < self.size);
        // SAFETY: ids come from the free list, from `next` links of it or
        // were checked by `pop_used`; all are below `size`, the length of
        // `shadow`. (The last link, `size` itself, is followed only when
        // more descriptors are wanted than are free, which `add` refuses.)
        unsafe { self.shadow.get_unchecked(usize::from(id)) }
    }

    #[inline]
    fn shadow_mut(&mut self, id: u16) -> &mut Shadow {
        debug_assert!(id < self.size);
        // SAFETY: as in `shadow`.
        unsafe { self.shadow.get_unchecked_mut(usize::from(id)) }
    }

    /// Word `index` of the available ring: 0 flags, 1 idx, 2.. the slots,
    /// `2 + size` used_event.
    #[inline]
    fn avail_word(&self, index: u16) -> &AtomicU16 {
        debug_assert!(index <= 2 + self.size);
        // SAFETY: `avail` is followed by 3 + size words within the memory,
        // 2-byte aligned; every access to them is atomic.
        unsafe {
            self.word(self.layout.avail + 2 * usize::from(index))
                .cast()
                .as_ref()
        }
    }

    #[inline]
    fn used_event_word(&self) -> &AtomicU16 {
        self.avail_word(2 + self.size)
    }

    /// Word 0 (flags) or 1 (idx) of the used ring.
    #[inline]
    fn used_word(&self, index: u16) -> &AtomicU16 {
        debug_assert!(index < 2);
        // SAFETY: the used ring starts with two words within the memory;
        // every access to them is atomic.
        unsafe {
            self.word(self.layout.used + 2 * usize::from(index))
                .cast()
                .as_ref()
        }
    }

    /// The avail_event word, behind the used ring's elements.
    #[inline]
    fn avail_event_word(&self) -> &AtomicU16 {
        // SAFETY: it is the last word of the layout, 2-byte aligned; every
        // access to it is atomic.
        unsafe {
            self.word(self.layout.used + 4 + 8 * usize::from(self.size))
                .cast()
                .as_ref()
        }
    }

    /// The id (`part` 0) or length (`part` 1) of a used element.
    #[inline]
    fn used_element(&self, slot: usize, part: usize) -> &AtomicU32 {
        debug_assert!(slot < usize::from(self.size) && part < 2);
        // SAFETY: `size` elements of two 32-bit words follow the used ring's
        // first four bytes, 4-byte aligned; every access to them is atomic.
        unsafe {
            self.word(self.layout.used + 4 + 8 * slot + 4 * part)
                .cast()
                .as_ref()
        }
    }

    /// # Safety
    ///
    /// `offset` must lie within the ring's layout.
    #[inline]
    unsafe fn word(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset < self.layout.total);
        // SAFETY: by the caller's promise, within the allocation.
        unsafe { self.memory.pointer().add(offset) }
    }
}
