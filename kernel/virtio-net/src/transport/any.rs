//! A transport that is chosen when the program runs.

use core::fmt;

use virtio_drivers::transport::pci::bus::ConfigurationAccess;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, Hal, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::forward;
use super::isr::IsrRegister;
use super::legacy_pci::LegacyPciTransport;
use super::mmio::MmioTransport;
use super::modern_pci::ModernPciTransport;
use super::{
    ConfigOps, MappedRegisters, MsiMessage, NativePorts, Ports, Registers, RingAddresses,
    TransportError,
};
use crate::doorbell::Doorbell;

/// One of the transports. It costs a branch an access, none of them on the
/// data path: a kick goes through the queue's [`Doorbell`].
pub enum AnyTransport<H, C, P = NativePorts, R = MappedRegisters>
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
    forward! { delegate
        fn device_type(&self) -> DeviceType;
        fn get_status(&self) -> DeviceStatus;
        fn requires_legacy_layout(&self) -> bool;
        fn read_config_generation(&self) -> u32;
    }
    forward! { delegate
        fn read_device_features(&mut self) -> u64;
        fn write_driver_features(&mut self, features: u64);
        fn max_queue_size(&mut self, queue: u16) -> u32;
        fn notify(&mut self, queue: u16);
        fn set_status(&mut self, status: DeviceStatus);
        fn set_guest_page_size(&mut self, size: u32);
        fn queue_set(&mut self, queue: u16, size: u32, descriptors: PhysAddr, driver: PhysAddr, device: PhysAddr);
        fn queue_unset(&mut self, queue: u16);
        fn queue_used(&mut self, queue: u16) -> bool;
        fn ack_interrupt(&mut self) -> InterruptStatus;
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
    type Notify = Doorbell;

    forward! { delegate
        fn bus_name(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
        fn dictates_queue_size(&self) -> bool;
        fn access_platform(&self) -> bool;
        fn num_queues(&self) -> Option<u16>;
        fn queue_reset_is_doubtful(&self) -> bool;
        fn unsupported_features(&self) -> u64;
        fn msix_entries(&self) -> u16;
        fn isr(&self) -> Option<IsrRegister>;
        fn register_accesses(&self) -> u64;
    }
    forward! { delegate
        fn reset(&mut self) -> Result<(), TransportError>;
        fn read_device_features_beyond(&mut self) -> u64;
        fn finalize_features(&mut self, features: u64) -> Result<(), TransportError>;
        fn setup_queue(&mut self, queue: u16, rings: RingAddresses) -> Result<Doorbell, TransportError>;
        fn enable_queue(&mut self, queue: u16) -> Result<(), TransportError>;
        fn queue_reset(&mut self, queue: u16) -> Result<(), TransportError>;
        fn msix_enable(&mut self, messages: &[MsiMessage]) -> Result<(), TransportError>;
        fn msix_disable(&mut self);
        fn set_config_vector(&mut self, entry: u16) -> Result<(), TransportError>;
        fn set_queue_vector(&mut self, queue: u16, entry: u16) -> Result<(), TransportError>;
        fn set_vq_affinity(&mut self, entry: u16, message: MsiMessage) -> Result<(), TransportError>;
        fn intx_enable(&mut self, enable: bool);
    }
}
