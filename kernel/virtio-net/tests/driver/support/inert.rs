//! A transport as `virtio-drivers` has them, of a device that agrees to
//! everything and then does nothing. It borrows what it notes down, and needs
//! hardly any stack.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Descriptors that a queue has at most.
pub const QUEUE_SIZE: u16 = 256;

/// What the device was told.
#[derive(Debug, Default)]
pub struct Notes {
    /// Its status.
    pub status: AtomicU32,
    /// The features that the driver has taken.
    pub features: AtomicU64,
    /// Bit N: queue N is in use.
    pub queues: AtomicU64,
    /// Bit N: queue N was notified.
    pub notified: AtomicU64,
}

/// See the module.
pub struct InertTransport<'n> {
    /// What is offered.
    pub offered: u64,
    /// Where it is noted down.
    pub notes: &'n Notes,
}

impl Transport for InertTransport<'_> {
    fn device_type(&self) -> DeviceType {
        DeviceType::Network
    }
    fn read_device_features(&mut self) -> u64 {
        self.offered
    }
    fn write_driver_features(&mut self, features: u64) {
        self.notes.features.store(features, Ordering::Relaxed);
    }
    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        QUEUE_SIZE.into()
    }
    fn notify(&mut self, queue: u16) {
        self.notes.notified.fetch_or(1 << queue, Ordering::Relaxed);
    }
    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.notes.status.load(Ordering::Relaxed))
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.notes.status.store(status.bits(), Ordering::Relaxed);
        if status.is_empty() {
            self.notes.queues.store(0, Ordering::Relaxed);
        }
    }
    fn set_guest_page_size(&mut self, _size: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(&mut self, queue: u16, _: u32, _: PhysAddr, _: PhysAddr, _: PhysAddr) {
        self.notes.queues.fetch_or(1 << queue, Ordering::Relaxed);
    }
    fn queue_unset(&mut self, _queue: u16) {}
    fn queue_used(&mut self, queue: u16) -> bool {
        self.notes.queues.load(Ordering::Relaxed) >> queue & 1 != 0
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }
    fn read_config_generation(&self) -> u32 {
        0
    }
    fn read_config_space<V: FromBytes + IntoBytes>(&self, offset: usize) -> Result<V, Error> {
        // A hardware address, status, one pair, an MTU.
        let config = [
            2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0xdc, 5, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        let bytes = config
            .get(offset..)
            .and_then(|rest| rest.get(..size_of::<V>()));
        let bytes = bytes.ok_or(Error::ConfigSpaceTooSmall)?;
        V::read_from_bytes(bytes).map_err(|_| Error::ConfigSpaceTooSmall)
    }
    fn write_config_space<V: IntoBytes + Immutable>(
        &mut self,
        _: usize,
        _: V,
    ) -> Result<(), Error> {
        Ok(())
    }
}
