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
//! all its state in private, and reads from here only what the device has to say:
//! the used ring, its index, its flags and the event; and it believes none of it
//! unchecked. Each part is accessed by one atomic or volatile load or store.

use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use crate::barrier::{self, AtomicU16, AtomicU32};
use crate::trace::tracepoint;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use super::chain::{Buffer, DESC_F_WRITE};
use super::error::QueueError;
use super::event::{EventMode, need_event};
use super::shape::MAX_SIZE;
use crate::hal::DmaRegion;

/// The used ring starts at a multiple of this many bytes; the legacy
/// interface fixes it (specification 2.7.2).
pub const USED_ALIGN: usize = 4096;

/// In `avail.flags`: no interrupts, please.
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// In `used.flags`: no notifications, please.
const USED_F_NO_NOTIFY: u16 = 1;

/// `struct virtq_desc` (specification 2.7.5), little endian.
#[repr(C, align(16))]
pub(super) struct Descriptor {
    address: u64,
    length: AtomicU32,
    /// `flags`, then `next` in the upper half: one store instead of two.
    flags_and_next: u32,
}

/// `struct virtq_used_elem` (specification 2.7.8), little endian.
#[repr(C)]
pub(super) struct UsedElement {
    id: AtomicU32,
    length: AtomicU32,
}

impl UsedElement {
    #[inline(always)]
    pub(super) fn id(&self) -> u32 {
        u32::from_le(self.id.load(Ordering::Relaxed))
    }

    #[inline(always)]
    pub(super) fn length(&self) -> u32 {
        u32::from_le(self.length.load(Ordering::Relaxed))
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

/// The memory of a split ring.
pub(super) struct SplitMemory<H: Hal> {
    memory: DmaRegion<H>,
    layout: Layout,
    /// Index of the queue at the device.
    queue: u16,
    /// Start of the available ring within `memory`.
    avail: NonNull<u8>,
    /// Start of the used ring within `memory`.
    used: NonNull<u8>,
    /// `size - 1`: what a free-running index is masked with.
    mask: u32,
    mode: EventMode,
    /// The `used_event` or the flag that was last written.
    interrupts_disabled: bool,
    used_event: u16,
}

// SAFETY: `avail` and `used` point into `memory`, which this value owns.
unsafe impl<H: Hal> Send for SplitMemory<H> {}

impl<H: Hal> SplitMemory<H> {
    /// Allocates the memory of a queue's ring, zeroed; no interrupts are asked for.
    /// `size` is a power of two, at most [`MAX_SIZE`].
    pub(super) fn new(queue: u16, size: u16, mode: EventMode) -> Result<Self, QueueError> {
        let layout = Layout::new(size);
        let pages = layout.total.div_ceil(PAGE_SIZE);
        let memory = DmaRegion::new(layout.total, BufferDirection::Both);
        let memory = memory.ok_or(QueueError::NoMemory { queue, pages })?;
        let start = memory.pointer();
        // SAFETY: both offsets lie within the layout, whose total was allocated.
        let (avail, used) = unsafe { (start.add(layout.avail), start.add(layout.used)) };
        let mut this = Self {
            memory,
            layout,
            queue,
            avail,
            used,
            mask: u32::from(size - 1),
            mode,
            interrupts_disabled: false,
            used_event: 0,
        };
        this.disable_interrupts(0);
        Ok(this)
    }

    /// Where descriptor table, available and used ring are, as the device sees them.
    pub(super) fn areas(&self) -> [PhysAddr; 3] {
        let start = self.memory.physical();
        [0, self.layout.avail, self.layout.used].map(|offset| start + offset as PhysAddr)
    }

    /// Where a free-running index is in the available and in the used ring.
    #[inline(always)]
    pub(super) fn entry(&self, index: u32) -> usize {
        (index & self.mask) as usize
    }

    /// Descriptor `id` of the ring.
    #[inline(always)]
    pub(super) fn descriptor(&self, id: usize) -> NonNull<Descriptor> {
        debug_assert!(id <= self.mask as usize);
        // SAFETY: `id` lies in a slot of the ring and so is below its size;
        // the table of `size` descriptors starts the memory.
        unsafe { self.memory.pointer().cast().add(id) }
    }

    /// Writes a descriptor of the ring.
    ///
    /// # Safety
    ///
    /// It is one of those, and the device has not got it.
    #[inline]
    pub(super) unsafe fn write_descriptor(
        descriptor: NonNull<Descriptor>,
        buffer: &Buffer,
        flags: u16,
        next: u16,
    ) {
        let flags = flags | if buffer.writable { DESC_F_WRITE } else { 0 };
        let descriptor = descriptor.as_ptr();
        // SAFETY: the caller's promise. Volatile, because the device reads it; field by
        // field, because a volatile copy of the whole is built on the stack first.
        unsafe {
            (&raw mut (*descriptor).address).write_volatile(buffer.address.to_le());
            (*descriptor)
                .length
                .store(buffer.length.to_le(), Ordering::Relaxed);
            (&raw mut (*descriptor).flags_and_next)
                .write_volatile((u32::from(next) << 16 | u32::from(flags)).to_le());
        }
    }

    /// Writes the length of descriptor `id` of the ring, and leaves the rest.
    #[inline(always)]
    pub(super) fn write_length(&self, id: usize, length: u32) {
        let descriptor = self.descriptor(id).as_ptr();
        // SAFETY: it is a descriptor of the ring; every access to its length is atomic.
        unsafe {
            (*descriptor)
                .length
                .store(length.to_le(), Ordering::Relaxed)
        };
    }

    /// Writes the address of descriptor `id` of the ring, and leaves the rest.
    pub(super) fn write_address(&self, id: usize, address: PhysAddr) {
        let descriptor = self.descriptor(id).as_ptr();
        // SAFETY: it is a descriptor of the ring. Volatile, because the device reads it.
        unsafe { (&raw mut (*descriptor).address).write_volatile(address.to_le()) };
    }

    /// Writes the head of a chain into an entry of the available ring.
    #[inline(always)]
    pub(super) fn write_available(&self, entry: usize, head: u16) {
        // Relaxed: the index that announces the entry is stored with Release.
        self.avail_word(2 + entry)
            .store(head.to_le(), Ordering::Relaxed);
    }

    /// The entries of the used ring in these places, which are in the ring: what
    /// [`Self::used_idx`] has announced is read after it.
    #[inline(always)]
    pub(super) fn used(&self, places: Range<usize>) -> &[UsedElement] {
        debug_assert!(places.start <= places.end && places.end <= 1 + self.mask as usize);
        // SAFETY: `size` elements of two 32-bit words follow the used ring's
        // first four bytes, 4-byte aligned; every access to them is atomic.
        unsafe {
            let first = self.used.add(4).cast().add(places.start);
            core::slice::from_raw_parts(first.as_ptr(), places.len())
        }
    }

    /// The entry for a free-running index, as [`Self::used`].
    #[inline(always)]
    pub(super) fn used_element(&self, index: u32) -> &UsedElement {
        // SAFETY: as there; the mask is the ring's size less one.
        unsafe { self.used.add(4).cast().add(self.entry(index)).as_ref() }
    }

    /// The device's index of the used ring.
    #[inline(always)]
    pub(super) fn used_idx(&self) -> u16 {
        // What the index announces is read after it.
        let index = u16::from_le(self.used_word(1).load(Ordering::Acquire));
        barrier::consume();
        index
    }

    /// Shows the entries from `old` up to `new` to the device, and returns
    /// whether it wants to be told of them.
    #[inline]
    pub(super) fn publish(&self, old: u16, new: u16) -> bool {
        // Step 3 (specification 2.7.13): the entries are visible before the
        // index that announces them.
        barrier::publish();
        #[cfg(feature = "faults")]
        let early = crate::faults::read_too_early(|| self.avail_event());
        self.avail_word(1).store(new.to_le(), Ordering::Release);
        tracepoint!(Event::Publish, self.queue, u64::from(new), u64::from(old));
        // Step 4: the index is visible before the device's wish is read, or
        // the device could go to sleep between the two and be told nothing.
        barrier::store_load();
        let (wish, wanted) = match self.mode {
            EventMode::EventIdx => {
                let event = self.avail_event();
                #[cfg(feature = "faults")]
                let event = early.unwrap_or(event);
                (event, need_event(event, new, old))
            }
            EventMode::Flags => {
                let flags = u16::from_le(self.used_word(0).load(Ordering::Relaxed));
                (flags, flags & USED_F_NO_NOTIFY == 0)
            }
        };
        #[cfg(feature = "faults")]
        let wanted = crate::faults::wanted(wish, new, old, wanted);
        tracepoint!(
            Event::KickPrepare,
            self.queue,
            u64::from(new) | u64::from(old) << 16 | u64::from(wish) << 32 | self.mode.trace_bit(),
            u64::from(wanted)
        );
        wanted
    }

    /// Asks the device not to interrupt. With EVENT_IDX there is no flag to
    /// ask by: the event is put where the device's index has just passed, so
    /// it will not get there within the next 65535 chains. Called at every
    /// poll, it moves the event on before that.
    #[inline]
    pub(super) fn disable_interrupts(&mut self, last_used_idx: u16) {
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
                let passed = last_used_idx.wrapping_sub(1);
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

    /// Asks for an interrupt once `more` chains behind `last_used_idx` are used
    /// (with flags: at the next one), and returns whether enough are already.
    #[inline]
    pub(super) fn enable_interrupts_after(&mut self, last_used_idx: u16, more: u16) -> bool {
        let event = last_used_idx.wrapping_add(more);
        #[cfg(feature = "faults")]
        crate::faults::before_interrupts(|| self.used_idx() != last_used_idx);
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
        let used = self.used_idx().wrapping_sub(last_used_idx);
        let (wish, enough) = match self.mode {
            EventMode::Flags => (0, used > 0),
            EventMode::EventIdx => (event, used > more),
        };
        #[cfg(feature = "faults")]
        let enough = crate::faults::polls_again(enough);
        tracepoint!(
            Event::EnableInterrupts,
            self.queue,
            u64::from(wish) | self.mode.trace_bit(),
            u64::from(enough)
        );
        enough
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

    /// avail_event, the last word of the used ring, behind its elements.
    #[inline]
    fn avail_event(&self) -> u16 {
        let end = 4 + 8 * (1 + self.mask as usize);
        // SAFETY: it is the last word of the layout, 2-byte aligned; every
        // access to it is atomic.
        let word: &AtomicU16 = unsafe { self.used.add(end).cast().as_ref() };
        u16::from_le(word.load(Ordering::Relaxed))
    }
}
