//! The legacy transport, made fit for a process without a device.
//!
//! Doorbell and ISR are accessed by an instruction of their own, not through
//! `Ports`: here the one becomes a call of the model and the other a byte of
//! memory. A model that offers features above bit 31 is asked for them past the
//! transport, which has no registers for them. Everything else is the transport
//! as it is.

use std::fmt;
use std::ptr::NonNull;

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use virtio_net::doorbell::Notify;
use virtio_net::interrupt::IsrRegister;
use virtio_net::transport::legacy_pci::LegacyPciTransport;
use virtio_net::transport::{ConfigOps, MsiMessage, RingAddresses, TransportError};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::device::{self, FakePorts, IO_BASE};
use super::memory::GuestHal;
use super::pci::FakeAccess;

/// The transport under test.
pub type Legacy = LegacyPciTransport<GuestHal, FakeAccess, FakePorts>;

thread_local! {
    static ISR: NonNull<u8> = NonNull::from(Box::leak(Box::new(0)));
}

/// The steps before features are agreed on.
pub fn acknowledge(transport: &mut impl Transport) {
    transport.set_status(DeviceStatus::ACKNOWLEDGE);
    transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
}

/// Sets what a read of the ISR register gives.
pub fn isr_byte(value: u8) {
    // SAFETY: the byte is the thread's and stays for ever.
    ISR.with(|isr| unsafe { isr.write_volatile(value) });
}

/// A transport, such as [`Legacy`], with the two instructions replaced.
pub struct Wired<T = Legacy>(pub T, pub fn(u16));

/// A queue's doorbell: the call that is made instead.
#[derive(Clone, Copy, Debug)]
pub struct Bell(fn(u16), u16);

impl Notify for Bell {
    fn queue(&self) -> u16 {
        self.1
    }
    fn ring(&self) {
        (self.0)(self.1);
    }
}

impl fmt::Display for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call for queue {}", self.1)
    }
}

impl<W: Transport> Transport for Wired<W> {
    fn device_type(&self) -> DeviceType {
        self.0.device_type()
    }
    fn read_device_features(&mut self) -> u64 {
        let high = match self.0.requires_legacy_layout() {
            true => u64::from(device::offered_high()) << 32,
            false => 0,
        };
        self.0.read_device_features() | high
    }
    fn write_driver_features(&mut self, driver_features: u64) {
        self.0.write_driver_features(driver_features);
    }
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.max_queue_size(queue)
    }
    fn notify(&mut self, queue: u16) {
        self.0.notify(queue);
    }
    fn get_status(&self) -> DeviceStatus {
        self.0.get_status()
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.0.set_status(status);
    }
    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.0.set_guest_page_size(guest_page_size);
    }
    fn requires_legacy_layout(&self) -> bool {
        self.0.requires_legacy_layout()
    }
    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.0
            .queue_set(queue, size, descriptors, driver_area, device_area);
    }
    fn queue_unset(&mut self, queue: u16) {
        self.0.queue_unset(queue);
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.queue_used(queue)
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.0.ack_interrupt()
    }
    fn read_config_generation(&self) -> u32 {
        self.0.read_config_generation()
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        self.0.read_config_space(offset)
    }
    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        self.0.write_config_space(offset, value)
    }
}

impl<W: ConfigOps> ConfigOps for Wired<W> {
    type Notify = Bell;

    fn bus_name(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bus_name(f)
    }
    fn reset(&mut self) -> Result<(), TransportError> {
        self.0.reset()
    }
    fn finalize_features(&mut self, features: u64) -> Result<(), TransportError> {
        if !self.0.requires_legacy_layout() {
            return self.0.finalize_features(features);
        }
        device::agree_high((features >> 32) as u32);
        self.0.finalize_features(features & u64::from(u32::MAX))
    }
    fn setup_queue(&mut self, queue: u16, rings: RingAddresses) -> Result<Bell, TransportError> {
        let doorbell = self.0.setup_queue(queue, rings)?.to_string();
        // QUEUE_NOTIFY.
        let port = format!("outw {queue} -> port {:#x}", IO_BASE + 0x10);
        assert!([port, format!("call of the transport for queue {queue}")].contains(&doorbell));
        Ok(Bell(self.1, queue))
    }
    fn queue_reset(&mut self, queue: u16) -> Result<(), TransportError> {
        device::reset_queue(queue);
        Ok(())
    }
    fn msix_entries(&self) -> u16 {
        self.0.msix_entries()
    }
    fn msix_enable(&mut self, messages: &[MsiMessage]) -> Result<(), TransportError> {
        self.0.msix_enable(messages)
    }
    fn msix_disable(&mut self) {
        self.0.msix_disable();
    }
    fn set_config_vector(&mut self, entry: u16) -> Result<(), TransportError> {
        self.0.set_config_vector(entry)
    }
    fn set_queue_vector(&mut self, queue: u16, entry: u16) -> Result<(), TransportError> {
        self.0.set_queue_vector(queue, entry)
    }
    fn intx_enable(&mut self, enable: bool) {
        self.0.intx_enable(enable);
    }
    fn isr(&self) -> Option<IsrRegister> {
        let isr = self.0.isr()?;
        assert!(matches!(isr, IsrRegister::Port { 0: port, .. } if port == IO_BASE + 0x13));
        // SAFETY: the byte is the thread's and stays for ever.
        Some(unsafe { IsrRegister::mmio(ISR.with(|isr| *isr)) })
    }
    fn register_accesses(&self) -> u64 {
        self.0.register_accesses()
    }
}
