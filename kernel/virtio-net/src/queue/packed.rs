//! The packed virtqueue (specification 2.8), with no hardware in it.
//!
//! ```text
//!               written by        read by
//! desc[]        driver, device    both      address, length, id, flags
//! driver event  driver            device    when the driver wants interrupts
//! device event  device            driver    when the device wants kicks
//! ```
//!
//! Descriptors carry two bits that say whose they are. Both sides go around
//! the ring with a wrap counter that turns over at each lap: the driver makes
//! a descriptor available by setting `AVAIL` to its counter and `USED` to the
//! opposite, the device marks it as used by setting both to its own. A used
//! descriptor is written where the device stands in the ring, in the place of
//! a descriptor that it has read, and names its chain by the buffer id.
//!
//! ```text
//! id:      3 4 5 6 | 0 1 2          chains that were added, id in order
//! AVAIL:   1 1 1 1 | 1 1 0  wrap=1
//! USED:    1 1 0 0 | 0 0 0          the first two were used, two more wait,
//!              ^       ^            for the driver at next_used, and so on
//! ```
//!
//! As everywhere in this module, the driver never reads back what the device
//! could have changed: positions, wrap counters and the lengths of chains are
//! kept in private. Of a descriptor it reads the flags, and once they say
//! that it was used, id and length, which it checks.

mod position;

use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::Ordering;

use crate::barrier::{self, AtomicU32};
use crate::trace::tracepoint;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use super::error::QueueError;
use super::event::{EventMode, need_event};
use crate::hal::DmaRegion;
pub(super) use position::Position;
use position::{MARKS, WRAP_COUNTER};

/// In an event suppression structure's flags: always.
const EVENT_FLAGS_ENABLE: u16 = 0;
/// In an event suppression structure's flags: never.
const EVENT_FLAGS_DISABLE: u16 = 1;
/// In an event suppression structure's flags: at the descriptor that the structure names.
const EVENT_FLAGS_DESC: u16 = 2;
/// The bits of an event suppression structure's flags that mean something.
const EVENT_FLAGS: u16 = 3;

/// Bytes that a descriptor takes, in either layout.
pub(super) const DESCRIPTOR_SIZE: usize = 16;

/// The event suppression structures have cache lines of their own, because
/// the one is written by the driver and the other by the device. In bytes.
const EVENT_ALIGN: usize = 64;

/// Where a ring's parts lie within its memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Offset of the driver event suppression structure.
    pub driver: usize,
    /// Offset of the device event suppression structure.
    pub device: usize,
    /// Size of the whole.
    pub total: usize,
}

impl Layout {
    /// The layout for `size` descriptors.
    pub const fn new(size: u16) -> Self {
        let driver = (DESCRIPTOR_SIZE * size as usize).next_multiple_of(EVENT_ALIGN);
        let device = driver + EVENT_ALIGN;
        Self {
            driver,
            device,
            total: device + size_of::<u32>(),
        }
    }
}

/// A descriptor.
#[repr(C)]
pub(super) struct Descriptor {
    address: UnsafeCell<u64>,
    length: AtomicU32,
    /// The id and, in bits 16 to 31, flags.
    id_and_flags: AtomicU32,
}

impl Descriptor {
    /// Writes all but what makes it available.
    #[inline(always)]
    pub(super) fn write_buffer(&self, address: PhysAddr, length: u32) {
        // SAFETY: nobody here reads it. Volatile, because the device does, after the
        // flags that announce it.
        unsafe { self.address.get().write_volatile(address.to_le()) };
        self.length.store(length.to_le(), Ordering::Relaxed);
    }

    /// Makes it available, where the device does not come to before the one that
    /// [`Self::publish`] is for.
    #[inline(always)]
    pub(super) fn write_available(&self, word: u32) {
        self.id_and_flags.store(word.to_le(), Ordering::Relaxed);
    }

    /// Makes it available, and with it all that was written: that is visible before
    /// its flags (specification 2.8.21).
    #[inline]
    pub(super) fn publish(&self, word: u32) {
        barrier::publish();
        self.id_and_flags.store(word.to_le(), Ordering::Release);
    }

    /// The id and, in bits 16 to 31, the marks: what was written before these is read
    /// after them.
    #[inline(always)]
    pub(super) fn used_word(&self) -> u32 {
        let word = u32::from_le(self.id_and_flags.load(Ordering::Acquire));
        barrier::consume();
        word & (u32::from(MARKS) << 16 | 0xffff)
    }

    /// The id, once it is used.
    #[inline]
    pub(super) fn read_id(&self) -> u32 {
        self.used_word() & 0xffff
    }

    /// The length, once it is used.
    #[inline(always)]
    pub(super) fn read_length(&self) -> u32 {
        u32::from_le(self.length.load(Ordering::Relaxed))
    }
}

const _: () = assert!(size_of::<Descriptor>() == DESCRIPTOR_SIZE);

/// The memory of a packed ring.
pub(super) struct PackedMemory<H: Hal> {
    region: DmaRegion<H>,
    layout: Layout,
    /// Index of the queue at the device.
    queue: u16,
    /// Number of descriptors, at most 2^15.
    size: u16,
    mode: EventMode,
    /// The driver event suppression structure as it was last written.
    driver_event: u32,
}

impl<H: Hal> PackedMemory<H> {
    /// Allocates the memory of a queue's ring of `size` descriptors, zeroed; no
    /// interrupts are asked for.
    pub(super) fn new(queue: u16, size: u16, mode: EventMode) -> Result<Self, QueueError> {
        let layout = Layout::new(size);
        let pages = layout.total.div_ceil(PAGE_SIZE);
        let region = DmaRegion::new(layout.total, BufferDirection::Both);
        let region = region.ok_or(QueueError::NoMemory { queue, pages })?;
        let mut this = Self {
            region,
            layout,
            queue,
            size,
            mode,
            // As the memory is: zeroed.
            driver_event: u32::from(EVENT_FLAGS_ENABLE),
        };
        this.disable_interrupts();
        Ok(this)
    }

    /// Where descriptors, driver and device event suppression structure are,
    /// as the device sees them.
    pub(super) fn areas(&self) -> [PhysAddr; 3] {
        let start = self.region.physical();
        [0, self.layout.driver, self.layout.device].map(|offset| start + offset as PhysAddr)
    }

    /// The descriptors in these places, which are in the ring.
    #[inline(always)]
    pub(super) fn descriptors(&self, places: Range<usize>) -> &[Descriptor] {
        debug_assert!(places.start <= places.end && places.end <= self.size.into());
        // SAFETY: the memory starts with `size` descriptors, 16-byte aligned; of each
        // word every access is atomic, or volatile where the driver alone writes it.
        unsafe {
            let first = self.region.pointer().cast::<Descriptor>().add(places.start);
            core::slice::from_raw_parts(first.as_ptr(), places.len())
        }
    }

    /// The descriptor in this place, which is in the ring.
    #[inline(always)]
    pub(super) fn descriptor(&self, index: u16) -> &Descriptor {
        debug_assert!(index < self.size);
        let first = self.region.pointer().cast::<Descriptor>();
        // SAFETY: as in `descriptors`.
        unsafe { first.add(index.into()).as_ref() }
    }

    /// Whether the device has marked the descriptor there as used.
    #[inline]
    pub(super) fn is_used(&self, position: Position) -> bool {
        let word = self.descriptor(position.index).used_word();
        word >> 16 == position.used_word(0) >> 16
    }

    /// Whether the device wants to be told of the `added` descriptors before `new`, which
    /// are available. `outstanding` is how many before `new` were not seen to be used.
    pub(super) fn kick_prepare(&self, new: Position, added: u16, outstanding: u16) -> bool {
        let before = new.before(added, self.size);
        tracepoint!(
            Event::Publish,
            self.queue,
            u64::from(new.word()),
            u64::from(before.word())
        );
        // The descriptors are visible before the device's wish is read, or the
        // device could go to sleep between the two and be told nothing
        // (specification 2.8.21.3.1).
        barrier::store_load();
        // Position and flags by one load, so that they belong together.
        let event = u32::from_le(self.event(self.layout.device).load(Ordering::Relaxed));
        let (position, flags) = (event as u16, (event >> 16) as u16 & EVENT_FLAGS);
        let by_event = flags == EVENT_FLAGS_DESC && self.mode == EventMode::EventIdx;
        let wanted = if by_event {
            // As Linux's `virtqueue_kick_prepare_packed`: positions are counted
            // from this lap's start, those of the lap before below it.
            let old = new.index.wrapping_sub(added);
            let mut event = position & !WRAP_COUNTER;
            if (position & WRAP_COUNTER != 0) != new.wrap {
                event = event.wrapping_sub(self.size);
            }
            need_event(event, new.index, old) || self.has_passed(new, position, outstanding)
        } else {
            flags != EVENT_FLAGS_DISABLE
        };
        tracepoint!(
            Event::KickPrepare,
            self.queue,
            u64::from(new.word())
                | u64::from(before.word()) << 16
                | u64::from(if by_event { position } else { flags }) << 32
                | u64::from(by_event) << 48,
            u64::from(wanted)
        );
        wanted
    }

    /// Whether the place at which the device asks to be notified lies behind
    /// it: it went on and has forgotten to ask again.
    ///
    /// QEMU 7.2 does so after a frame had to wait for the cable:
    /// `virtio_net_tx_complete` asks, sends what else is there, up to a whole
    /// ring, and goes to sleep; `virtqueue_packed_pop` does not ask again, as
    /// its counterpart for split rings does. A device that does not want to be
    /// notified says so by a flag, so nothing is lost by telling this one.
    #[cold]
    fn has_passed(&self, new: Position, event: u16, outstanding: u16) -> bool {
        let Some(event) = Position::from_word(event, self.size) else {
            return false;
        };
        let behind = new.distance_from(event, self.size);
        if (1..=outstanding).contains(&behind) {
            return self.is_used(event);
        }
        // A word names a place every two laps, and a device that asked a lap
        // ago may since have been given another lap at once. What can still be
        // added before it gives something back lies ahead; all else, behind.
        let ahead = match behind {
            0 => 0,
            behind => 2 * u32::from(self.size) - u32::from(behind),
        };
        ahead >= u32::from(self.size - outstanding)
    }

    /// Asks the device not to interrupt: here there is a flag for it, with EVENT_IDX too.
    #[inline]
    pub(super) fn disable_interrupts(&mut self) {
        if self.driver_event >> 16 != u32::from(EVENT_FLAGS_DISABLE) {
            tracepoint!(
                Event::DisableInterrupts,
                self.queue,
                u64::from(EVENT_FLAGS_DISABLE)
            );
            self.write_driver_event(0, EVENT_FLAGS_DISABLE);
        }
    }

    /// Asks for an interrupt once the descriptor at `event` is used (with flags:
    /// at the next one). What is used is looked at after this. Returns what was
    /// asked for, for [`Self::trace_enabled`].
    #[inline]
    pub(super) fn ask_for_interrupt(&mut self, event: Position) -> u16 {
        let wish = match self.mode {
            EventMode::EventIdx => {
                self.write_driver_event(event.word(), EVENT_FLAGS_DESC);
                event.word()
            }
            EventMode::Flags => {
                if self.driver_event >> 16 != u32::from(EVENT_FLAGS_ENABLE) {
                    self.write_driver_event(0, EVENT_FLAGS_ENABLE);
                }
                0
            }
        };
        // The wish is visible before the ring is read again, or a chain used
        // between the two would go unannounced.
        barrier::store_load();
        wish
    }

    /// Records what was asked for, and whether enough was used already.
    #[inline]
    pub(super) fn trace_enabled(&self, wish: u16, enough: bool) {
        tracepoint!(
            Event::EnableInterrupts,
            self.queue,
            u64::from(wish) | self.mode.trace_bit(),
            u64::from(enough)
        );
    }

    /// Whether the event suppression structures name a position.
    pub(super) fn has_event_idx(&self) -> bool {
        self.mode == EventMode::EventIdx
    }

    /// Writes the driver event suppression structure, flags and position at once.
    #[inline]
    fn write_driver_event(&mut self, position: u16, flags: u16) {
        self.driver_event = u32::from(flags) << 16 | u32::from(position);
        self.event(self.layout.driver)
            .store(self.driver_event.to_le(), Ordering::Relaxed);
    }

    /// An event suppression structure: position and wrap counter in bits 0 to
    /// 15, flags in bits 16 to 31.
    #[inline]
    fn event(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the layout has four bytes there, 4-byte aligned; every
        // access is atomic.
        unsafe { self.region.pointer().add(offset).cast().as_ref() }
    }
}
