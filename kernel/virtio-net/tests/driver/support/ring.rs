//! A ring with the driver at one end and `virtio-queue` at the other.

use std::sync::atomic::Ordering;

use virtio_net::queue::{Buffer, EventMode, Ring, RingShape};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::memory::{GuestHal, guest_memory};

/// Both ends of a ring.
pub struct Ends {
    /// The driver's end.
    pub driver: Ring<GuestHal>,
    /// The device's end.
    pub device: Queue,
    /// The memory between them.
    pub memory: GuestMemoryMmap<()>,
}

impl Ends {
    /// A ring of `size` chains of one buffer.
    pub fn new(size: u16, mode: EventMode) -> Self {
        Self::with_chains(size, 1, mode)
    }

    /// A ring of `size` descriptors for chains of up to `chain`; the device
    /// finds its parts by the addresses that the driver would put into
    /// registers.
    pub fn with_chains(size: u16, chain: u16, mode: EventMode) -> Self {
        let driver = Ring::new(7, u32::from(size), RingShape::split(chain, mode)).unwrap();
        let memory = guest_memory();
        let mut device = Queue::new(size).unwrap();
        device
            .try_set_desc_table_address(GuestAddress(driver.descriptor_area()))
            .unwrap();
        device
            .try_set_avail_ring_address(GuestAddress(driver.driver_area()))
            .unwrap();
        device
            .try_set_used_ring_address(GuestAddress(driver.device_area()))
            .unwrap();
        device.set_event_idx(mode == EventMode::EventIdx);
        device.set_ready(true);
        assert!(device.is_valid(&memory));
        Self {
            driver,
            device,
            memory,
        }
    }

    /// Adds a chain. The device of these tests never touches the buffers.
    pub fn add(
        &mut self,
        buffers: &[Buffer],
        token: u16,
    ) -> Result<(), virtio_net::queue::QueueError> {
        // SAFETY: nothing accesses the buffers, which are only numbers here.
        unsafe { self.driver.add(buffers, token) }
    }

    /// Takes the next available chain at the device: its head and its
    /// descriptors.
    pub fn take(&mut self) -> Option<(u16, Vec<Descriptor>)> {
        let chain = self.device.iter(&self.memory).unwrap().next()?;
        Some((chain.head_index(), chain.collect()))
    }

    /// Uses a chain at the device.
    pub fn give_back(&mut self, head: u16, length: u32) {
        self.device.add_used(&self.memory, head, length).unwrap();
    }

    /// Whether the device must interrupt for what it used since it was last
    /// asked. `virtio-queue` decides by the event; the flag it leaves to its
    /// user (specification 2.6.7.1).
    pub fn must_interrupt(&mut self) -> bool {
        let needed = self.device.needs_notification(&self.memory).unwrap();
        needed && (self.device.event_idx_enabled() || self.avail_flags() & 1 == 0)
    }

    /// The flags of the available ring.
    pub fn avail_flags(&self) -> u16 {
        self.memory
            .load::<u16>(GuestAddress(self.driver.driver_area()), Ordering::Relaxed)
            .map(u16::from_le)
            .unwrap()
    }

    /// Writes 16 bits into the used ring, `offset` bytes from its start.
    pub fn scribble_used_u16(&self, offset: u64, value: u16) {
        self.memory
            .store(
                value.to_le(),
                GuestAddress(self.driver.device_area() + offset),
                Ordering::Relaxed,
            )
            .unwrap();
    }

    /// Writes an element of the used ring without moving the index.
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
