//! A ring with the driver at one end and a device at the other: `virtio-queue`
//! for the split layout, [`PackedDevice`] for the packed one.

use std::sync::atomic::Ordering;

use virtio_net::queue::{Buffer, EventMode, QueueError, Ring, RingLayout, RingShape};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::memory::{GuestHal, guest_memory};
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
    fn new(driver: &Ring<GuestHal>, shape: RingShape) -> Self {
        let memory = guest_memory();
        let event_idx = shape.mode == EventMode::EventIdx;
        if shape.layout == RingLayout::Packed {
            let areas = [
                driver.descriptor_area(),
                driver.driver_area(),
                driver.device_area(),
            ];
            return Self::Packed(PackedDevice::new(memory, driver.size(), areas, event_idx));
        }
        let mut queue = Queue::new(driver.size()).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(driver.descriptor_area()))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(driver.driver_area()))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(driver.device_area()))
            .unwrap();
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

/// Both ends of a ring.
pub struct Ends {
    /// The driver's end.
    pub driver: Ring<GuestHal>,
    /// The device's end.
    pub device: DeviceEnd,
    /// The memory between them.
    pub memory: GuestMemoryMmap<()>,
}

impl Ends {
    /// A split ring of `size` chains of one buffer.
    pub fn new(size: u16, mode: EventMode) -> Self {
        Self::with_chains(size, 1, mode)
    }

    /// A split ring of `size` descriptors for chains of up to `chain`.
    pub fn with_chains(size: u16, chain: u16, mode: EventMode) -> Self {
        Self::shaped(size, RingShape::split(chain, mode))
    }

    /// A ring of `size` descriptors of this form.
    pub fn shaped(size: u16, shape: RingShape) -> Self {
        let driver = Ring::new(7, u32::from(size), shape).unwrap();
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

    /// Adds a chain. The device of these tests never touches the buffers.
    pub fn add(&mut self, buffers: &[Buffer], token: u16) -> Result<(), QueueError> {
        // SAFETY: nothing accesses the buffers, which are only numbers here.
        unsafe { self.driver.add(buffers, token) }
    }

    /// Adds chains of so many buffers of ten bytes for the device to write, and
    /// publishes them. The n-th has token 100 + n.
    pub fn add_chains(&mut self, lengths: &[u16]) {
        for (token, &length) in (100..).zip(lengths) {
            let buffers: Vec<_> = (0..length)
                .map(|index| writable(0x1000 * u64::from(index), 10))
                .collect();
            self.add(&buffers, token).unwrap();
        }
        self.driver.publish();
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
