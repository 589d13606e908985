//! A device's end of a ring, written from the specification (1.2, sections 2.7 and 2.8) and
//! not from the driver. `virtio-queue`, which the driver is tested against, has a split one
//! that needs an operating system; the tests here compare.
//!
//! What it has taken and used is counted in 64 bits from the start, so that nothing here
//! wraps: indices and wrap counters follow from the counts.

use core::ptr;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use virtio_net::queue::RingLayout;

use crate::DeviceEnd;

/// Bytes of a descriptor (2.7.5, 2.8.13).
const DESCRIPTOR: u64 = 16;
/// Flags of a packed descriptor (2.8.1).
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// In a split ring's flags: no interrupts (2.7.7), no notifications (2.7.10).
const NOT: u16 = 1;
/// In an event suppression structure's flags (2.8.10): always, never, at a descriptor.
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const AT_DESCRIPTOR: u16 = 2;

/// The device. It reads no buffer: where they are is only a number here.
pub struct Device {
    /// Descriptor, driver and device area.
    areas: [u64; 3],
    size: u64,
    layout: RingLayout,
    event_idx: bool,
    /// Chains taken, and chains used.
    taken: u64,
    used: u64,
    /// `used` when it was last asked whether to interrupt.
    signalled: u64,
}

/// The word at an address.
fn word(address: u64) -> &'static AtomicU16 {
    let place = ptr::with_exposed_provenance::<AtomicU16>(address as usize);
    // SAFETY: the address is one of the ring's words, says the caller of `Device::new`; they
    // are aligned, and what both sides access they access atomically.
    unsafe { &*place }
}

/// The 32-bit word at an address.
fn long(address: u64) -> &'static AtomicU32 {
    let place = ptr::with_exposed_provenance::<AtomicU32>(address as usize);
    // SAFETY: as in `word`.
    unsafe { &*place }
}

fn load(address: u64) -> u16 {
    u16::from_le(word(address).load(Ordering::Acquire))
}

fn store(address: u64, value: u16) {
    word(address).store(value.to_le(), Ordering::Release);
}

impl Device {
    /// Chains that it has taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Chains that it has given back.
    pub fn used(&self) -> u64 {
        self.used
    }

    fn is_split(&self) -> bool {
        self.layout == RingLayout::Split
    }

    /// The packed descriptor of a count.
    fn descriptor(&self, count: u64) -> u64 {
        self.areas[0] + DESCRIPTOR * (count % self.size)
    }

    /// The wrap counter of a count: 1 in the first lap.
    fn wrap(&self, count: u64) -> bool {
        (count / self.size).is_multiple_of(2)
    }

    /// A count as an event structure names it.
    fn position(&self, count: u64) -> u16 {
        (count % self.size) as u16 | u16::from(self.wrap(count)) << 15
    }

    /// Whether a chain is there to be taken.
    fn has_available(&self) -> bool {
        if self.is_split() {
            return load(self.areas[1] + 2) != self.taken as u16;
        }
        let flags = load(self.descriptor(self.taken) + 14);
        let (avail, used) = (flags & AVAIL != 0, flags & USED != 0);
        avail != used && avail == self.wrap(self.taken)
    }

    /// Where a split ring has `avail_event`.
    fn avail_event(&self) -> u64 {
        self.areas[2] + 4 + 8 * self.size
    }

    fn set_device_event(&self, position: u16, flags: u16) {
        store(self.areas[2], position);
        store(self.areas[2] + 2, flags);
    }

    /// Asks to be told once `more` further chains are there (without `VIRTIO_F_EVENT_IDX`: at
    /// the next one).
    pub fn ask_after(&mut self, more: u16) {
        let count = self.taken + u64::from(more);
        match (self.is_split(), self.event_idx) {
            (true, true) => store(self.avail_event(), count as u16),
            (true, false) => store(self.areas[2], 0),
            (false, true) => self.set_device_event(self.position(count), AT_DESCRIPTOR),
            (false, false) => self.set_device_event(0, ENABLE),
        }
        fence(Ordering::SeqCst);
    }
}

impl DeviceEnd for Device {
    unsafe fn new(areas: [u64; 3], size: u16, layout: RingLayout, event_idx: bool) -> Self {
        Self {
            areas,
            size: size.into(),
            layout,
            event_idx,
            taken: 0,
            used: 0,
            signalled: 0,
        }
    }

    fn take(&mut self) -> Option<u16> {
        if !self.has_available() {
            return None;
        }
        let head = match self.is_split() {
            true => load(self.areas[1] + 4 + 2 * (self.taken % self.size)),
            false => load(self.descriptor(self.taken) + 12),
        };
        self.taken += 1;
        Some(head)
    }

    fn give_back(&mut self, head: u16) {
        // The device has written nothing into a buffer that it only reads.
        let length = 0u32.to_le();
        if self.is_split() {
            let element = self.areas[2] + 4 + 8 * (self.used % self.size);
            long(element).store(u32::from(head).to_le(), Ordering::Relaxed);
            long(element + 4).store(length, Ordering::Relaxed);
            self.used += 1;
            store(self.areas[2] + 2, self.used as u16);
            return;
        }
        let descriptor = self.descriptor(self.used);
        long(descriptor + 8).store(length, Ordering::Relaxed);
        word(descriptor + 12).store(head.to_le(), Ordering::Relaxed);
        let marks = if self.wrap(self.used) {
            AVAIL | USED
        } else {
            0
        };
        store(descriptor + 14, marks);
        self.used += 1;
    }

    fn must_interrupt(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let new = self.signalled..self.used;
        self.signalled = self.used;
        let [_, driver, _] = self.areas;
        if self.is_split() {
            return match self.event_idx {
                true => {
                    let event = load(driver + 4 + 2 * self.size);
                    new.into_iter().any(|count| count as u16 == event)
                }
                false => !new.is_empty() && load(driver) & NOT == 0,
            };
        }
        let position = load(driver);
        match load(driver + 2) {
            AT_DESCRIPTOR if self.event_idx => new
                .into_iter()
                .any(|count| self.position(count) == position),
            flags => !new.is_empty() && flags == ENABLE,
        }
    }

    fn disable_notification(&mut self) {
        match (self.is_split(), self.event_idx) {
            // There is no flag then; `avail_event` stays where it was passed (2.7.10).
            (true, true) => {}
            (true, false) => store(self.areas[2], NOT),
            (false, _) => self.set_device_event(0, DISABLE),
        }
    }

    fn enable_notification(&mut self) -> bool {
        self.ask_after(0);
        self.has_available()
    }
}
