//! virtio-pci by its modern interface (specification 4.1; Linux
//! `virtio_pci_modern.c`): registers in memory, found by capabilities.
//!
//! ```text
//! common     31           16 15            0
//!  0x00     | DEVICE_FEATURE_SELECT         |  which 32 bits are meant
//!  0x04     | DEVICE_FEATURE (read)         |  what the device offers
//!  0x08     | DRIVER_FEATURE_SELECT         |
//!  0x0c     | DRIVER_FEATURE                |  what the driver takes
//!  0x10     | NUM_QUEUES (r)| CONFIG_VECTOR |
//!  0x14     | QUEUE_SEL     | GEN(r)|STATUS |  generation of the configuration
//!  0x18     | QUEUE_VECTOR  | QUEUE_SIZE    |
//!  0x1c     | NOTIFY_OFF (r)| QUEUE_ENABLE  |
//!  0x20     | QUEUE_DESC                    |  64 bits: descriptor area
//!  0x28     | QUEUE_DRIVER                  |  64 bits: driver area
//!  0x30     | QUEUE_DEVICE                  |  64 bits: device area
//!  0x38     | QUEUE_RESET   | NOTIFY_DATA(r)|  where the structure is so long
//! ```
//!
//! The kick is one 16-bit write of the queue's index, at `queue_notify_off *
//! notify_off_multiplier` of the notification structure: in memory, or, where
//! the device offers that, at a port.

use core::fmt;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, Hal, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::isr::IsrRegister;
use super::msix::vector_taken;
use super::pci_common::{PciFunction, TRANSITIONAL, VENDOR_VIRTIO, pci_methods};
use super::registers::{Accesses, MappedRegisters, Registers};
use super::structures::{Location, Region, Structures};
use super::{
    AccessPlatform, ConfigOps, MsiMessage, NOTIFICATION_DATA, PortAccess, RingAddresses, Structure,
    TransportError, config_space, steps,
};
use crate::doorbell::{self, Doorbell};

/// Offsets in the common configuration, in bytes (specification 4.1.4.3).
mod register {
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub const DEVICE_FEATURE: usize = 0x04;
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub const DRIVER_FEATURE: usize = 0x0c;
    pub const CONFIG_VECTOR: usize = 0x10;
    pub const NUM_QUEUES: usize = 0x12;
    pub const STATUS: usize = 0x14;
    pub const CONFIG_GENERATION: usize = 0x15;
    pub const QUEUE_SEL: usize = 0x16;
    pub const QUEUE_SIZE: usize = 0x18;
    pub const QUEUE_VECTOR: usize = 0x1a;
    pub const QUEUE_ENABLE: usize = 0x1c;
    pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub const QUEUE_DESC: usize = 0x20;
    pub const QUEUE_DRIVER: usize = 0x28;
    pub const QUEUE_DEVICE: usize = 0x30;
    /// Behind the registers of version 1.0 (specification 4.1.4.3, since 1.2).
    pub const QUEUE_RESET: usize = 0x3a;
}

/// PCI device id of a modern device, less its type (specification 4.1.2.1).
const DEVICE_MODERN: u16 = 0x1040;

/// Reads of `queue_reset` and `queue_enable` until the reset of a queue counts
/// as failed.
const QUEUE_RESET_READS: u32 = 100_000;

/// A virtio-pci device, driven by its modern interface.
pub struct ModernPciTransport<H: Hal, C: ConfigurationAccess, R: Registers = MappedRegisters> {
    pci: PciFunction<H, C>,
    device_type: DeviceType,
    structures: Structures,
    ports: PortAccess,
    common: R,
    isr: R,
    device: Option<R>,
    access_platform: bool,
    /// `VIRTIO_F_NOTIFICATION_DATA` was agreed on.
    notification_data: bool,
    accesses: Accesses,
}

impl<H: Hal, C: ConfigurationAccess, R: Registers> ModernPciTransport<H, C, R> {
    /// Takes the device at `function`, turning on its decoding and bus
    /// mastering. The device is not reset yet. `ports` serve a device that has
    /// its notification structure in ports.
    ///
    /// A broken MSI-X capability is reported to the log and treated as none.
    ///
    /// # Errors
    ///
    /// [`TransportError::NotThisTransport`] when it is no virtio device
    /// (1af4:1000 to :107f), [`TransportError::UnknownDeviceType`],
    /// [`TransportError::Unmappable`], and those of [`Structures::find`].
    pub fn new(
        access: &C,
        ports: PortAccess,
        function: DeviceFunction,
    ) -> Result<Self, TransportError> {
        let mut pci = PciFunction::new(access, function);
        let device_type = device_type(&pci)?;
        pci.size_bars();
        let structures = Structures::find(&pci.root, &pci.access, function, &pci.bars, ports)?;
        pci.enable();
        let map = |structure, region: Region| {
            let size = region.length as usize;
            let Location::Memory(address) = region.location else {
                return Err(TransportError::NoStructure { structure });
            };
            // SAFETY: the structure was checked to lie within a memory BAR of
            // this device that has an address.
            unsafe { R::map::<H>(address, size) }
                .ok_or(TransportError::Unmappable { address, size })
        };
        let device = structures.device;
        Ok(Self {
            common: map(Structure::Common, structures.common)?,
            isr: map(Structure::Isr, structures.isr)?,
            device: device.map(|it| map(Structure::Device, it)).transpose()?,
            pci,
            device_type,
            structures,
            ports,
            access_platform: false,
            notification_data: false,
            accesses: Accesses::default(),
        })
    }

    /// Lets `VIRTIO_F_ACCESS_PLATFORM` be agreed on if the `Hal` says that it
    /// can (specification 6.1).
    #[must_use]
    pub fn with_access_platform(mut self) -> Self
    where
        H: AccessPlatform,
    {
        self.access_platform = H::access_platform();
        self
    }

    /// Place of the device on its bus.
    pub fn function(&self) -> DeviceFunction {
        self.pci.place
    }

    /// Where the device's structures are.
    pub fn structures(&self) -> &Structures {
        &self.structures
    }

    /// The common configuration, and one more access counted.
    fn common(&self) -> &R {
        self.accesses.count(1);
        &self.common
    }

    fn common_mut(&mut self) -> &mut R {
        self.accesses.count(1);
        &mut self.common
    }

    fn select(&mut self, queue: u16) {
        self.common_mut().write16(register::QUEUE_SEL, queue);
    }

    /// Specification 4.1.3.1: 64-bit registers are written in halves.
    fn write_address(&mut self, register: usize, address: PhysAddr) {
        self.common_mut().write32(register, address as u32);
        self.common_mut()
            .write32(register + 4, (address >> 32) as u32);
    }

    /// The word of 32 feature bits with this number.
    fn device_features(&mut self, select: u32) -> u64 {
        self.common_mut()
            .write32(register::DEVICE_FEATURE_SELECT, select);
        u64::from(self.common().read32(register::DEVICE_FEATURE))
    }

    /// The notify hook of the selected queue (specification 4.1.4.4).
    fn doorbell(&self, queue: u16) -> Result<Doorbell, TransportError> {
        let notify_off = self.common().read16(register::QUEUE_NOTIFY_OFF);
        let offset = u64::from(notify_off) * u64::from(self.structures.notify_off_multiplier);
        let length = self.structures.notify.length;
        let outside = TransportError::NotifyOutside {
            queue,
            offset,
            length,
        };
        // Specification 4.1.4.4.1.
        let width = if self.notification_data { 4 } else { 2 };
        if offset + width > u64::from(length) {
            return Err(outside);
        }
        match self.structures.notify.location {
            // The whole structure was checked to lie within the 64 KiB.
            Location::Ports(base) => {
                let doorbell = self.ports.doorbell(base + offset as u16, queue);
                doorbell.ok_or(outside)
            }
            Location::Memory(base) => {
                let (address, size) = (base + offset, width as usize);
                // SAFETY: the register lies within the structure, and that within
                // a memory BAR of this device.
                let register = unsafe { R::map::<H>(address, size) }
                    .ok_or(TransportError::Unmappable { address, size })?;
                Ok(Doorbell::Mmio16 {
                    register: register.pointer(0).ok_or(outside)?,
                    queue,
                })
            }
        }
    }
}

/// Specification 4.1.2.1: the device id is 0x1040 and the type; that of a
/// transitional device is in its subsystem id.
fn device_type<H: Hal, C: ConfigurationAccess>(
    pci: &PciFunction<H, C>,
) -> Result<DeviceType, TransportError> {
    let (vendor, device) = pci.id();
    let id = match device {
        _ if vendor != VENDOR_VIRTIO => None,
        _ if TRANSITIONAL.contains(&device) => Some(pci.subsystem()),
        DEVICE_MODERN..=0x107f => Some(device - DEVICE_MODERN),
        _ => None,
    };
    let id = id.ok_or(TransportError::NotThisTransport { vendor, device })?;
    DeviceType::try_from(id).map_err(|_| TransportError::UnknownDeviceType { id })
}

impl<H: Hal, C: ConfigurationAccess, R: Registers> Transport for ModernPciTransport<H, C, R> {
    fn device_type(&self) -> DeviceType {
        self.device_type
    }

    #[doc(alias = "vp_get_features")]
    fn read_device_features(&mut self) -> u64 {
        self.device_features(0) | self.device_features(1) << 32
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        for (select, half) in [(0, driver_features), (1, driver_features >> 32)] {
            self.common_mut()
                .write32(register::DRIVER_FEATURE_SELECT, select);
            self.common_mut()
                .write32(register::DRIVER_FEATURE, half as u32);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.select(queue);
        u32::from(self.common().read16(register::QUEUE_SIZE))
    }

    /// For other drivers, which have no doorbell: finds the register anew.
    fn notify(&mut self, queue: u16) {
        self.select(queue);
        match self.doorbell(queue) {
            Ok(doorbell) => doorbell::ring(&doorbell, None),
            Err(error) => log::error!("{}: {error}", self.pci.place),
        }
    }

    #[doc(alias = "vp_get_status")]
    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(u32::from(self.common().read8(register::STATUS)))
    }

    #[doc(alias = "vp_set_status")]
    fn set_status(&mut self, status: DeviceStatus) {
        self.common_mut()
            .write8(register::STATUS, status.bits() as u8);
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {
        // Addresses are whole here.
    }

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    steps::queue_set_method!();

    /// Does nothing without `VIRTIO_F_RING_RESET`, of which this method cannot
    /// know: an enabled queue can then only be disabled by a reset of the
    /// device (specification 4.1.4.3.2).
    #[doc(alias = "del_vq")]
    fn queue_unset(&mut self, _queue: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        self.select(queue);
        self.common().read16(register::QUEUE_ENABLE) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.accesses.count(1);
        InterruptStatus::from_bits_truncate(u32::from(self.isr.read8(0)))
    }

    fn read_config_generation(&self) -> u32 {
        u32::from(self.common().read8(register::CONFIG_GENERATION))
    }

    #[doc(alias = "vp_get")]
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let device = self.device.as_ref().ok_or(Error::ConfigSpaceMissing)?;
        config_space::read(
            device,
            0,
            offset,
            || self.read_config_generation(),
            &self.accesses,
        )
    }

    #[doc(alias = "vp_set")]
    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        let device = self.device.as_mut().ok_or(Error::ConfigSpaceMissing)?;
        config_space::write(device, 0, offset, value.as_bytes(), &self.accesses)
    }
}

impl<H: Hal, C: ConfigurationAccess, R: Registers> ConfigOps for ModernPciTransport<H, C, R> {
    pci_methods!();

    fn reset(&mut self) -> Result<(), TransportError> {
        steps::reset(self, steps::RESET_READS)
    }

    fn read_device_features_beyond(&mut self) -> u64 {
        self.device_features(2) | self.device_features(3) << 32
    }

    fn finalize_features(&mut self, features: u64) -> Result<(), TransportError> {
        steps::finalize_features(self, features)?;
        self.notification_data = features & NOTIFICATION_DATA != 0;
        Ok(())
    }

    fn access_platform(&self) -> bool {
        self.access_platform
    }

    fn num_queues(&self) -> Option<u16> {
        Some(self.common().read16(register::NUM_QUEUES))
    }

    fn setup_queue(
        &mut self,
        queue: u16,
        rings: RingAddresses,
    ) -> Result<Doorbell, TransportError> {
        steps::check_size(queue, rings.size, self.max_queue_size(queue))?;
        if self.common().read16(register::QUEUE_ENABLE) != 0 {
            return Err(TransportError::QueueInUse { queue });
        }
        let doorbell = self.doorbell(queue)?;
        self.common_mut().write16(register::QUEUE_SIZE, rings.size);
        self.write_address(register::QUEUE_DESC, rings.descriptors);
        self.write_address(register::QUEUE_DRIVER, rings.driver);
        self.write_address(register::QUEUE_DEVICE, rings.device);
        Ok(doorbell)
    }

    fn enable_queue(&mut self, queue: u16) -> Result<(), TransportError> {
        self.select(queue);
        self.common_mut().write16(register::QUEUE_ENABLE, 1);
        match self.common().read16(register::QUEUE_ENABLE) {
            1 => Ok(()),
            _ => Err(TransportError::QueueNotEnabled { queue }),
        }
    }

    #[doc(alias = "vp_modern_set_queue_reset")]
    fn queue_reset(&mut self, queue: u16) -> Result<(), TransportError> {
        if self.common.size() < register::QUEUE_RESET + 2 {
            return Err(TransportError::NoQueueReset { queue });
        }
        self.select(queue);
        self.common_mut().write16(register::QUEUE_RESET, 1);
        // Specification 4.1.4.3.1: it reads 1 until the reset is done, and the
        // queue is disabled then.
        for _ in 0..QUEUE_RESET_READS {
            if self.common().read16(register::QUEUE_RESET) == 0
                && self.common().read16(register::QUEUE_ENABLE) == 0
            {
                return Ok(());
            }
            core::hint::spin_loop();
        }
        Err(TransportError::QueueResetTimeout { queue })
    }

    fn set_config_vector(&mut self, entry: u16) -> Result<(), TransportError> {
        self.common_mut().write16(register::CONFIG_VECTOR, entry);
        let read = self.common().read16(register::CONFIG_VECTOR);
        vector_taken(None, entry, read)
    }

    fn set_queue_vector(&mut self, queue: u16, entry: u16) -> Result<(), TransportError> {
        self.select(queue);
        self.common_mut().write16(register::QUEUE_VECTOR, entry);
        let read = self.common().read16(register::QUEUE_VECTOR);
        vector_taken(Some(queue), entry, read)
    }

    fn isr(&self) -> Option<IsrRegister> {
        self.isr.pointer(0).map(IsrRegister::Mmio)
    }
}

impl<H: Hal, C: ConfigurationAccess, R: Registers> Drop for ModernPciTransport<H, C, R> {
    fn drop(&mut self) {
        steps::shut_down(self);
    }
}
