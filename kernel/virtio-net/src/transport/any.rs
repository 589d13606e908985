//! A transport that is chosen when the program runs.

use core::fmt;

use virtio_drivers::transport::pci::bus::ConfigurationAccess;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, Hal, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::legacy_pci::LegacyPciTransport;
use super::mmio::MmioTransport;
use super::modern_pci::ModernPciTransport;
use super::{
    ConfigOps, MappedRegisters, MsiMessage, Ports, Registers, RingAddresses, TransportError,
    X86Ports,
};
use crate::doorbell::Doorbell;
use crate::interrupt::IsrRegister;

/// One of the transports. It costs a branch an access, none of them on the
/// data path: a kick goes through the queue's [`Doorbell`].
pub enum AnyTransport<H, C, P = X86Ports, R = MappedRegisters>
where
    H: Hal,
    C: ConfigurationAccess,
    P: Ports,
    R: Registers,
{
    /// virtio-pci, legacy interface.
    LegacyPci(LegacyPciTransport<H, C, P>),
    /// virtio-pci, modern interface.
    ModernPci(ModernPciTransport<H, C, R>),
    /// virtio-mmio.
    Mmio(MmioTransport<H, R>),
}

/// Calls the transport that it is.
macro_rules! delegate {
    ($any:expr, $transport:ident => $call:expr) => {
        match $any {
            Self::LegacyPci($transport) => $call,
            Self::ModernPci($transport) => $call,
            Self::Mmio($transport) => $call,
        }
    };
}

impl<H: Hal, C: ConfigurationAccess, P: Ports, R: Registers> Transport
    for AnyTransport<H, C, P, R>
{
    fn device_type(&self) -> DeviceType {
        delegate!(self, transport => transport.device_type())
    }

    fn read_device_features(&mut self) -> u64 {
        delegate!(self, transport => transport.read_device_features())
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        delegate!(self, transport => transport.write_driver_features(driver_features))
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        delegate!(self, transport => transport.max_queue_size(queue))
    }

    fn notify(&mut self, queue: u16) {
        delegate!(self, transport => transport.notify(queue))
    }

    fn get_status(&self) -> DeviceStatus {
        delegate!(self, transport => transport.get_status())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        delegate!(self, transport => transport.set_status(status))
    }

    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        delegate!(self, transport => transport.set_guest_page_size(guest_page_size))
    }

    fn requires_legacy_layout(&self) -> bool {
        delegate!(self, transport => transport.requires_legacy_layout())
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        delegate!(self, transport => {
            transport.queue_set(queue, size, descriptors, driver_area, device_area)
        })
    }

    fn queue_unset(&mut self, queue: u16) {
        delegate!(self, transport => transport.queue_unset(queue))
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        delegate!(self, transport => transport.queue_used(queue))
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        delegate!(self, transport => transport.ack_interrupt())
    }

    fn read_config_generation(&self) -> u32 {
        delegate!(self, transport => transport.read_config_generation())
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        delegate!(self, transport => transport.read_config_space(offset))
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        delegate!(self, transport => transport.write_config_space(offset, value))
    }
}

impl<H: Hal, C: ConfigurationAccess, P: Ports, R: Registers> ConfigOps
    for AnyTransport<H, C, P, R>
{
    fn bus_name(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        delegate!(self, transport => transport.bus_name(f))
    }

    fn reset(&mut self) -> Result<(), TransportError> {
        delegate!(self, transport => transport.reset())
    }

    fn finalize_features(&mut self, features: u64) -> Result<(), TransportError> {
        delegate!(self, transport => transport.finalize_features(features))
    }

    fn dictates_queue_size(&self) -> bool {
        delegate!(self, transport => transport.dictates_queue_size())
    }

    fn access_platform(&self) -> bool {
        delegate!(self, transport => transport.access_platform())
    }

    fn num_queues(&self) -> Option<u16> {
        delegate!(self, transport => transport.num_queues())
    }

    fn setup_queue(
        &mut self,
        queue: u16,
        rings: RingAddresses,
    ) -> Result<Doorbell, TransportError> {
        delegate!(self, transport => transport.setup_queue(queue, rings))
    }

    fn enable_queue(&mut self, queue: u16) -> Result<(), TransportError> {
        delegate!(self, transport => transport.enable_queue(queue))
    }

    fn queue_reset_is_doubtful(&self) -> bool {
        delegate!(self, transport => transport.queue_reset_is_doubtful())
    }

    fn queue_reset(&mut self, queue: u16) -> Result<(), TransportError> {
        delegate!(self, transport => transport.queue_reset(queue))
    }

    fn unsupported_features(&self) -> u64 {
        delegate!(self, transport => transport.unsupported_features())
    }

    fn msix_entries(&self) -> u16 {
        delegate!(self, transport => transport.msix_entries())
    }

    fn msix_enable(&mut self, messages: &[MsiMessage]) -> Result<(), TransportError> {
        delegate!(self, transport => transport.msix_enable(messages))
    }

    fn msix_disable(&mut self) {
        delegate!(self, transport => transport.msix_disable())
    }

    fn set_config_vector(&mut self, entry: u16) -> Result<(), TransportError> {
        delegate!(self, transport => transport.set_config_vector(entry))
    }

    fn set_queue_vector(&mut self, queue: u16, entry: u16) -> Result<(), TransportError> {
        delegate!(self, transport => transport.set_queue_vector(queue, entry))
    }

    fn set_vq_affinity(&mut self, entry: u16, message: MsiMessage) -> Result<(), TransportError> {
        delegate!(self, transport => transport.set_vq_affinity(entry, message))
    }

    fn intx_enable(&mut self, enable: bool) {
        delegate!(self, transport => transport.intx_enable(enable))
    }

    fn isr(&self) -> Option<IsrRegister> {
        delegate!(self, transport => transport.isr())
    }

    fn register_accesses(&self) -> u64 {
        delegate!(self, transport => transport.register_accesses())
    }
}
