//! A ring with the driver at one end and a device at the other: `virtio-queue`
//! for the split layout, [`PackedDevice`] for the packed one.

use std::sync::atomic::Ordering;

use virtio_net::queue::{
    Buffer, CommandRing, EventMode, PositionalRing, QueueError, QueueRing, RingLayout, RingShape,
    SlotBuffers,
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::memory::{GuestHal, check_ring, guest_memory};
use super::packed::{PackedDevice, Piece};

/// Every layout and way to tell of events, for chains of one buffer.
pub fn shapes() -> [RingShape; 4] {
    [
        RingShape::split(1, EventMode::Flags),
        RingShape::split(1, EventMode::EventIdx),
        RingShape::packed(1, EventMode::Flags),
        RingShape::packed(1, EventMode::EventIdx),
    ]
}

/// Rings for chains of up to `chain` buffers, in all layouts and with and
/// without indirect descriptors.
pub fn chain_shapes(chain: u16) -> Vec<RingShape> {
    shapes()
        .into_iter()
        .flat_map(|shape| {
            [false, true].map(|indirect| RingShape {
                chain,
                indirect,
                ..shape
            })
        })
        .collect()
}

/// The device's end, in either layout.
pub enum DeviceEnd {
    Split {
        queue: Queue,
        memory: GuestMemoryMmap<()>,
    },
    Packed(PackedDevice),
}

impl DeviceEnd {
    /// The device finds the ring's parts by the addresses that the driver
    /// would put into registers.
    pub fn new(driver: &impl QueueRing, shape: RingShape) -> Self {
        let areas = driver.areas();
        let event_idx = shape.mode == EventMode::EventIdx;
        Self::at(areas, driver.size(), shape.layout, event_idx)
    }

    /// That of a ring whose parts are at these addresses.
    pub fn at(areas: [u64; 3], size: u16, layout: RingLayout, event_idx: bool) -> Self {
        let memory = guest_memory();
        check_ring(areas, size, layout == RingLayout::Packed);
        if layout == RingLayout::Packed {
            return Self::Packed(PackedDevice::new(memory, size, areas, event_idx));
        }
        let [descriptors, driver, device] = areas.map(GuestAddress);
        let mut queue = Queue::new(size).unwrap();
        queue.try_set_desc_table_address(descriptors).unwrap();
        queue.try_set_avail_ring_address(driver).unwrap();
        queue.try_set_used_ring_address(device).unwrap();
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        Self::Split { queue, memory }
    }

    /// Takes the next available chain: its head or id, and its buffers.
    pub fn take(&mut self) -> Option<(u16, Vec<Piece>)> {
        let (queue, memory) = match self {
            Self::Split { queue, memory } => (queue, &*memory),
            Self::Packed(device) => return device.take(),
        };
        let chain = queue.iter(memory).unwrap().next()?;
        let head = chain.head_index();
        let pieces = chain
            .map(|descriptor| Piece {
                address: descriptor.addr().0,
                length: descriptor.len(),
                writable: descriptor.is_write_only(),
            })
            .collect();
        Some((head, pieces))
    }

    /// Uses a chain.
    pub fn give_back(&mut self, head: u16, length: u32) {
        match self {
            Self::Split { queue, memory } => queue.add_used(memory, head, length).unwrap(),
            Self::Packed(device) => device.give_back(head, length),
        }
    }

    /// Whether the device must interrupt for what it used since it was last
    /// asked. `virtio-queue` decides by the event; the flag it leaves to its
    /// user (specification 2.7.7.1).
    pub fn must_interrupt(&mut self) -> bool {
        match self {
            Self::Split { queue, memory } => {
                let needed = queue.needs_notification(memory).unwrap();
                let flags: u16 = memory
                    .load(GuestAddress(queue.avail_ring()), Ordering::SeqCst)
                    .unwrap();
                needed && (queue.event_idx_enabled() || u16::from_le(flags) & 1 == 0)
            }
            Self::Packed(device) => device.must_interrupt(),
        }
    }

    /// Asks for no kicks.
    pub fn disable_notification(&mut self) {
        match self {
            Self::Split { queue, memory } => queue.disable_notification(memory).unwrap(),
            Self::Packed(device) => device.disable_notification(),
        }
    }

    /// Asks for a kick at the next chain. Returns whether it is there already.
    pub fn enable_notification(&mut self) -> bool {
        match self {
            Self::Split { queue, memory } => queue.enable_notification(memory).unwrap(),
            Self::Packed(device) => device.enable_notification(),
        }
    }
}

/// Where a ring's parts are, by name.
pub trait Areas {
    fn descriptor_area(&self) -> u64;
    fn driver_area(&self) -> u64;
    fn device_area(&self) -> u64;
}

impl<R: QueueRing> Areas for R {
    fn descriptor_area(&self) -> u64 {
        self.areas()[0]
    }

    fn driver_area(&self) -> u64 {
        self.areas()[1]
    }

    fn device_area(&self) -> u64 {
        self.areas()[2]
    }
}

/// What both kinds of rings do alike, with buffers of [`LENGTH`] bytes for the
/// device to write.
pub trait Carrier: QueueRing {
    /// A ring that can be added to.
    fn make(size: u16, shape: RingShape) -> Self;

    /// Adds a chain of one buffer, if there is room.
    fn add_one(&mut self) -> Result<(), QueueError>;

    /// Takes a used chain: how many bytes were written.
    fn pop_one(&mut self) -> Result<Option<u32>, QueueError>;

    /// Chains that were added and did not come back.
    fn outstanding(&self) -> u16 {
        self.avail_idx().wrapping_sub(self.last_used_idx())
    }
}

/// Bytes of a [`Carrier`]'s buffers.
pub const LENGTH: u32 = 64;

impl Carrier for CommandRing<GuestHal> {
    fn make(size: u16, shape: RingShape) -> Self {
        Self::new(7, size.into(), shape).unwrap()
    }

    fn add_one(&mut self) -> Result<(), QueueError> {
        // SAFETY: nothing accesses the buffer, which is only a number.
        unsafe { self.add(&[writable(0x1000, LENGTH)]) }
    }

    fn pop_one(&mut self) -> Result<Option<u32>, QueueError> {
        self.pop_used()
    }
}

impl Carrier for PositionalRing<GuestHal> {
    fn make(size: u16, shape: RingShape) -> Self {
        let mut ring = Self::new(7, size.into(), shape).unwrap();
        let buffers = SlotBuffers {
            capacity: LENGTH,
            writable: true,
            ..SlotBuffers::default()
        };
        // SAFETY: nothing accesses the buffers, which are only numbers.
        unsafe { ring.prepare(size, buffers, |slot| 0x1000 * u64::from(slot + 1)) };
        ring
    }

    fn add_one(&mut self) -> Result<(), QueueError> {
        let (queue, capacity) = (self.queue(), self.slots());
        match (self.broken(), self.next_slot()) {
            (Some(reason), _) => Err(QueueError::Broken { queue, reason }),
            (None, None) => Err(QueueError::Full { queue, capacity }),
            (None, Some(_)) => {
                self.add(LENGTH);
                Ok(())
            }
        }
    }

    fn pop_one(&mut self) -> Result<Option<u32>, QueueError> {
        Ok(self.pop_used()?.map(|used| used.length))
    }
}

/// Both ends of a ring.
pub struct Ends<R = CommandRing<GuestHal>> {
    /// The driver's end.
    pub driver: R,
    /// The device's end.
    pub device: DeviceEnd,
    /// The memory between them.
    pub memory: GuestMemoryMmap<()>,
}

impl<R: Carrier> Ends<R> {
    /// A ring of `size` descriptors of this form.
    pub fn shaped(size: u16, shape: RingShape) -> Self {
        let driver = R::make(size, shape);
        let device = DeviceEnd::new(&driver, shape);
        Self {
            driver,
            device,
            memory: guest_memory(),
        }
    }

    /// The device's end of a packed ring.
    pub fn packed(&mut self) -> &mut PackedDevice {
        match &mut self.device {
            DeviceEnd::Packed(device) => device,
            DeviceEnd::Split { .. } => panic!("the ring is split"),
        }
    }

    /// Takes the next available chain at the device: its head or id, and its
    /// buffers.
    pub fn take(&mut self) -> Option<(u16, Vec<Piece>)> {
        self.device.take()
    }

    /// Uses a chain at the device.
    pub fn give_back(&mut self, head: u16, length: u32) {
        self.device.give_back(head, length);
    }

    /// Adds so many chains of one buffer, and publishes them.
    pub fn publish(&mut self, chains: u16) -> bool {
        (0..chains).for_each(|_| self.driver.add_one().unwrap());
        self.driver.publish()
    }

    /// Uses every available chain, and has the driver take them back.
    pub fn use_all(&mut self) {
        while let Some((head, _)) = self.take() {
            self.give_back(head, 0);
        }
        while self.driver.pop_one().unwrap().is_some() {}
    }

    /// The flags of a split ring's available ring.
    pub fn avail_flags(&self) -> u16 {
        self.memory
            .load::<u16>(GuestAddress(self.driver.driver_area()), Ordering::Relaxed)
            .map(u16::from_le)
            .unwrap()
    }

    /// Writes 16 bits into a split ring's used ring, `offset` bytes from its
    /// start.
    pub fn scribble_used_u16(&self, offset: u64, value: u16) {
        self.memory
            .store(
                value.to_le(),
                GuestAddress(self.driver.device_area() + offset),
                Ordering::Relaxed,
            )
            .unwrap();
    }

    /// Writes an element of a split ring's used ring without moving the index.
    pub fn scribble_used_element(&self, slot: u16, id: u32, length: u32) {
        let address = self.driver.device_area() + 4 + 8 * u64::from(slot);
        self.memory
            .write_obj([id.to_le(), length.to_le()], GuestAddress(address))
            .unwrap();
    }

    /// Writes a used entry where the driver looks for the next one, whatever it has
    /// added.
    pub fn lie(&mut self, id: u32, length: u32) {
        if let DeviceEnd::Packed(device) = &mut self.device {
            return device.write_used(id as u16, length);
        }
        let last = self.driver.last_used_idx();
        self.scribble_used_element(last % self.driver.size(), id, length);
        self.scribble_used_u16(2, last.wrapping_add(1));
    }
}

impl Ends {
    /// Adds a chain. The device of these tests never touches the buffers.
    pub fn add(&mut self, buffers: &[Buffer]) -> Result<(), QueueError> {
        // SAFETY: nothing accesses the buffers, which are only numbers here.
        unsafe { self.driver.add(buffers) }
    }
}

/// A buffer that the device reads.
pub fn readable(address: u64, length: u32) -> Buffer {
    Buffer {
        address,
        length,
        writable: false,
    }
}

/// A buffer that the device writes.
pub fn writable(address: u64, length: u32) -> Buffer {
    Buffer {
        address,
        length,
        writable: true,
    }
}
