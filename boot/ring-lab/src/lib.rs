//! A virtqueue that a student works by hand: one step of the driver or of the device at a
//! time, in an order of their choice.
//!
//! The driver's end is the driver: [`Virtqueue`] and [`PositionalRing`] as the guest has
//! them. The device's end is [`Device`]. Its doorbell wakes it, as a kick wakes QEMU's main
//! loop: a device that sleeps and is not told does nothing.
#![cfg_attr(target_family = "wasm", no_std)]
#![deny(missing_docs)]

extern crate alloc;

mod device;
mod memory;
#[cfg(target_family = "wasm")]
mod page;

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use virtio_net::doorbell::Notify;
use virtio_net::queue::{
    EventMode, PositionalRing, QueueError, QueueRing, RingLayout, RingShape, SlotBuffers, Virtqueue,
};

pub use device::Device;
pub use memory::Pages;

/// The queue's number: the first that transmits.
const QUEUE: u16 = 1;

/// Bytes of `struct virtio_net_hdr` (specification 5.1.6).
const HEADER: u32 = 12;

/// Bytes of the longest frame.
pub const LONGEST: u32 = 1514;

/// Where the buffer of a slot is said to be. Nobody looks there.
const BUFFERS: u64 = 0x1_0000;

/// What a device does with a ring.
pub trait DeviceEnd {
    /// The end of a ring of `size` descriptors with its parts at these addresses
    /// (`QueueRing::areas`).
    ///
    /// # Safety
    ///
    /// They are the parts of such a ring in this program's memory, which stay until the last
    /// call of this device, and which the driver accesses as those of a live device.
    unsafe fn new(areas: [u64; 3], size: u16, layout: RingLayout, event_idx: bool) -> Self;
    /// Takes the next chain: its head, or its id.
    fn take(&mut self) -> Option<u16>;
    /// Gives a chain back.
    fn give_back(&mut self, head: u16);
    /// Whether the driver wants an interrupt for what was given back since this was last asked.
    fn must_interrupt(&mut self) -> bool;
    /// Asks for no kicks, as far as it can.
    fn disable_notification(&mut self);
    /// Asks for a kick at the next chain, and says whether it is there already.
    fn enable_notification(&mut self) -> bool;
}

/// What a device has done while it was awake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// Chains used.
    pub used: u32,
    /// Whether it has interrupted for them.
    pub interrupt: bool,
    /// Whether it found no more, asked for a kick and went to sleep.
    pub asleep: bool,
}

/// What was counted since the ring was made, or the last [`Lab::jump`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Doorbell writes.
    pub kicks: u64,
    /// Kicks that `kick_prepare` found unnecessary.
    pub suppressed: u64,
    /// Interrupts.
    pub interrupts: u64,
}

/// The doorbell: it wakes the device.
#[derive(Clone)]
pub struct Bell(Arc<AtomicBool>);

impl Notify for Bell {
    fn queue(&self) -> u16 {
        QUEUE
    }
    fn ring(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl fmt::Display for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a flag of the laboratory")
    }
}

/// A ring with both its ends.
pub struct Lab<D> {
    driver: Virtqueue<PositionalRing<Pages>, Bell>,
    device: D,
    /// The doorbell was rung and the device has not looked since.
    told: Arc<AtomicBool>,
    awake: bool,
    interrupts: u64,
    /// Whether the driver has asked for no interrupts.
    masked: bool,
    /// What was counted before.
    before: Counts,
}

impl<D: DeviceEnd> Lab<D> {
    /// A ring of `size` descriptors, a power of two; the device sleeps, and wants a kick.
    ///
    /// # Errors
    /// As [`QueueRing::new`].
    pub fn new(size: u16, layout: RingLayout, mode: EventMode) -> Result<Self, QueueError> {
        let shape = match layout {
            RingLayout::Split => RingShape::split(1, mode),
            RingLayout::Packed => RingShape::packed(1, mode),
        };
        let mut ring = PositionalRing::<Pages>::new(QUEUE, size.into(), shape)?;
        let buffers = SlotBuffers {
            header: HEADER,
            capacity: LONGEST,
            ..SlotBuffers::default()
        };
        // SAFETY: no side accesses the buffers, and `add` bounds the length.
        unsafe { ring.prepare(size, buffers, |slot| BUFFERS + 0x800 * u64::from(slot)) };
        let event_idx = mode == EventMode::EventIdx;
        // SAFETY: they are the ring's, which goes together with the device.
        let mut device = unsafe { D::new(ring.areas(), size, layout, event_idx) };
        device.enable_notification();
        let told = Arc::new(AtomicBool::new(false));
        let mut driver = Virtqueue::new(ring, Bell(Arc::clone(&told)));
        // Nothing is used yet.
        let _ = driver.enable_interrupts();
        Ok(Self {
            driver,
            device,
            told,
            awake: false,
            interrupts: 0,
            masked: false,
            before: Counts::default(),
        })
    }

    /// The driver's end, to look at.
    pub fn driver(&self) -> &Virtqueue<PositionalRing<Pages>, Bell> {
        &self.driver
    }

    /// The device's end.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// Whether the device has been told, or has not yet gone to sleep again.
    pub fn is_awake(&self) -> bool {
        self.awake || self.told.load(Ordering::SeqCst)
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        let stats = self.driver.stats();
        Counts {
            kicks: stats.kicks - self.before.kicks,
            suppressed: stats.kicks_suppressed - self.before.suppressed,
            interrupts: self.interrupts - self.before.interrupts,
        }
    }

    /// Adds a frame of `length` bytes, at most [`LONGEST`]; `false` when the ring is full.
    pub fn add(&mut self, length: u32) -> bool {
        let ring = self.driver.ring_mut();
        let is_free = ring.next_slot().is_some();
        if is_free {
            ring.add(length.min(LONGEST));
        }
        is_free
    }

    /// Publishes what was added: whether the device wants to be kicked, `None` where nothing
    /// was added (`Virtqueue::kick_prepare`).
    pub fn publish(&mut self) -> Option<bool> {
        let is_new = self.driver.ring().has_unpublished();
        is_new.then(|| self.driver.kick_prepare())
    }

    /// Rings the doorbell (`Virtqueue::notify`).
    pub fn kick(&mut self) {
        self.driver.notify();
    }

    /// Lets the device use up to `most` chains; `None` while it sleeps and was not told.
    pub fn run(&mut self, most: u32) -> Option<Ran> {
        let was_told = self.told.swap(false, Ordering::SeqCst);
        if was_told && !self.awake {
            self.awake = true;
            self.device.disable_notification();
        }
        if !self.awake {
            return None;
        }
        let mut ran = Ran::default();
        while ran.used < most {
            if let Some(head) = self.device.take() {
                self.device.give_back(head);
                ran.used += 1;
            } else if self.device.enable_notification() {
                // One came between.
                self.device.disable_notification();
            } else {
                self.awake = false;
                break;
            }
        }
        ran.asleep = !self.awake;
        ran.interrupt = ran.used > 0 && self.device.must_interrupt();
        self.interrupts += u64::from(ran.interrupt);
        Some(ran)
    }

    /// Takes up to `most` used frames back; how many there were.
    ///
    /// # Errors
    /// The device broke the protocol.
    pub fn take_back(&mut self, most: u32) -> Result<u32, QueueError> {
        let mut count = 0;
        while count < most && self.driver.ring_mut().pop_used()?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    /// Asks for no interrupts (`Virtqueue::disable_interrupts`).
    pub fn disable_interrupts(&mut self) {
        self.masked = true;
        self.driver.disable_interrupts();
    }

    /// Asks for an interrupt once `more` further frames are used, and says whether they are
    /// already (`Virtqueue::enable_interrupts_after`).
    pub fn enable_interrupts(&mut self, more: u16) -> bool {
        self.masked = false;
        self.driver.enable_interrupts_after(more)
    }

    /// Sends frames until the driver's index is `index`, which both sides are done with then.
    /// Nothing of it is counted.
    ///
    /// # Errors
    /// The device broke the protocol.
    pub fn jump(&mut self, index: u16) -> Result<(), QueueError> {
        let counted = self.counts();
        while {
            self.publish();
            self.told.store(true, Ordering::SeqCst);
            self.run(u32::MAX);
            self.take_back(u32::MAX)?;
            // As a poll does at its begin or end.
            if self.masked {
                self.driver.disable_interrupts();
            } else {
                // All was taken back.
                let _ = self.driver.enable_interrupts();
            }
            self.driver.ring().avail_idx() != index
        } {
            self.add(LONGEST);
        }
        let stats = self.driver.stats();
        self.before = Counts {
            kicks: stats.kicks - counted.kicks,
            suppressed: stats.kicks_suppressed - counted.suppressed,
            interrupts: self.interrupts - counted.interrupts,
        };
        Ok(())
    }
}
