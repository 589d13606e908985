//! virtio-mmio, versions 1 and 2 (specification 4.2; Linux `virtio_mmio.c`):
//! registers in memory at an address that the machine's description tells.
//!
//! ```text
//!  0x000 MAGIC (r)           "virt"
//!  0x004 VERSION (r)         1 legacy, 2
//!  0x008 DEVICE_ID (r)       0: no device
//!  0x010 DEVICE_FEATURES (r) 0x014 which 32 bits are meant
//!  0x020 DRIVER_FEATURES     0x024 which 32 bits are meant
//!  0x028 GUEST_PAGE_SIZE     version 1
//!  0x030 QUEUE_SEL           0x034 QUEUE_NUM_MAX (r)   0x038 QUEUE_NUM
//!  0x03c QUEUE_ALIGN         0x040 QUEUE_PFN           version 1
//!  0x044 QUEUE_READY         version 2
//!  0x050 QUEUE_NOTIFY        the kick
//!  0x060 INTERRUPT_STATUS(r) 0x064 INTERRUPT_ACK
//!  0x070 STATUS
//!  0x080 QUEUE_DESC          0x090 QUEUE_DRIVER   0x0a0 QUEUE_DEVICE   version 2
//!  0x0c0 QUEUE_RESET         version 2, with VIRTIO_F_RING_RESET
//!  0x0fc CONFIG_GENERATION   version 2
//!  0x100 the device's own configuration
//! ```
//!
//! Every register has 32 bits. The kick is one 32-bit write of the queue's
//! index. There are no vectors, only one interrupt line.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, Hal, PAGE_SIZE, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::isr::{IsrRegister, MmioInterrupt};
use super::registers::{Accesses, MappedRegisters, Registers};
use super::{AccessPlatform, ConfigOps, RingAddresses, TransportError, config_space, steps};
use crate::doorbell::Doorbell;

/// Offsets of the registers, in bytes (specification 4.2.2 and 4.2.4).
mod register {
    pub const MAGIC: usize = 0x000;
    pub const VERSION: usize = 0x004;
    pub const DEVICE_ID: usize = 0x008;
    pub const DEVICE_FEATURES: usize = 0x010;
    pub const DEVICE_FEATURES_SEL: usize = 0x014;
    pub const DRIVER_FEATURES: usize = 0x020;
    pub const DRIVER_FEATURES_SEL: usize = 0x024;
    pub const GUEST_PAGE_SIZE: usize = 0x028;
    pub const QUEUE_SEL: usize = 0x030;
    pub const QUEUE_NUM_MAX: usize = 0x034;
    pub const QUEUE_NUM: usize = 0x038;
    pub const QUEUE_ALIGN: usize = 0x03c;
    pub const QUEUE_PFN: usize = 0x040;
    pub const QUEUE_READY: usize = 0x044;
    pub const QUEUE_NOTIFY: usize = 0x050;
    pub const INTERRUPT_STATUS: usize = 0x060;
    pub const INTERRUPT_ACK: usize = 0x064;
    pub const STATUS: usize = 0x070;
    pub const QUEUE_DESC: usize = 0x080;
    pub const QUEUE_DRIVER: usize = 0x090;
    pub const QUEUE_DEVICE: usize = 0x0a0;
    pub const QUEUE_RESET: usize = 0x0c0;
    pub const CONFIG_GENERATION: usize = 0x0fc;
    pub const CONFIG: usize = 0x100;
}

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;

/// Reads of the queue's registers until its reset counts as failed.
const QUEUE_RESET_READS: u32 = 100_000;

/// The version of the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 1: the legacy interface (specification 4.2.4).
    Legacy,
    /// 2: the interface of the specification.
    Modern,
}

/// A virtio-mmio device.
pub struct MmioTransport<H: Hal, R: Registers = MappedRegisters> {
    registers: R,
    address: PhysAddr,
    version: Version,
    device_type: DeviceType,
    notify: NonNull<u32>,
    access_platform: bool,
    accesses: Accesses,
    hal: PhantomData<H>,
}

// SAFETY: `notify` points to one of the registers, which this value owns.
unsafe impl<H: Hal, R: Registers + Send> Send for MmioTransport<H, R> {}

impl<H: Hal, R: Registers> MmioTransport<H, R> {
    /// Takes the device whose `size` bytes of registers are at physical
    /// address `address`. The device is not reset yet.
    ///
    /// # Errors
    ///
    /// [`TransportError::RegionTooSmall`], [`TransportError::NoMagic`],
    /// [`TransportError::UnknownVersion`], [`TransportError::NoDevice`],
    /// [`TransportError::UnknownDeviceType`]. Nothing was written then.
    ///
    /// # Safety
    ///
    /// `address` must be that of `size` bytes of device registers, which
    /// nobody else uses. What registers they are is found out.
    pub unsafe fn new(address: PhysAddr, size: usize) -> Result<Self, TransportError> {
        if size < register::CONFIG {
            let needed = register::CONFIG;
            return Err(TransportError::RegionTooSmall { size, needed });
        }
        let size = size.min(PAGE_SIZE);
        // SAFETY: the caller's promise.
        let registers = unsafe { R::map::<H>(address, size) }
            .ok_or(TransportError::Unmappable { address, size })?;
        // Specification 4.2.3.1.1: in this order.
        let read = registers.read32(register::MAGIC);
        if read != MAGIC {
            return Err(TransportError::NoMagic { read });
        }
        let version = match registers.read32(register::VERSION) {
            1 => Version::Legacy,
            2 => Version::Modern,
            version => return Err(TransportError::UnknownVersion { version }),
        };
        let id = registers.read32(register::DEVICE_ID);
        if id == 0 {
            return Err(TransportError::NoDevice);
        }
        let id = u16::try_from(id).unwrap_or(u16::MAX);
        let device_type =
            DeviceType::try_from(id).map_err(|_| TransportError::UnknownDeviceType { id })?;
        let notify = registers
            .pointer(register::QUEUE_NOTIFY)
            // Not reached: at an address that is no multiple of 4 the magic
            // value reads as all ones.
            .ok_or(TransportError::NoMagic { read })?;
        let accesses = Accesses::default();
        accesses.count(3); // the reads above
        Ok(Self {
            registers,
            address,
            version,
            device_type,
            notify,
            access_platform: false,
            accesses,
            hal: PhantomData,
        })
    }

    /// As [`ModernPciTransport::with_access_platform`].
    ///
    /// [`ModernPciTransport::with_access_platform`]: super::modern_pci::ModernPciTransport::with_access_platform
    #[must_use]
    pub fn with_access_platform(mut self) -> Self
    where
        H: AccessPlatform,
    {
        self.access_platform = H::access_platform();
        self
    }

    /// The version of the registers.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Physical address of the registers.
    pub fn address(&self) -> PhysAddr {
        self.address
    }

    fn read(&self, register: usize) -> u32 {
        self.accesses.count(1);
        self.registers.read32(register)
    }

    /// The word of 32 feature bits with this number.
    fn device_features(&mut self, select: u32) -> u64 {
        self.write(register::DEVICE_FEATURES_SEL, select);
        u64::from(self.read(register::DEVICE_FEATURES))
    }

    fn write(&mut self, register: usize, value: u32) {
        self.accesses.count(1);
        self.registers.write32(register, value);
    }

    fn write_address(&mut self, register: usize, address: PhysAddr) {
        self.write(register, address as u32);
        self.write(register + 4, (address >> 32) as u32);
    }

    /// The register that says whether the selected queue is in use.
    fn in_use_register(&self) -> usize {
        match self.version {
            Version::Legacy => register::QUEUE_PFN,
            Version::Modern => register::QUEUE_READY,
        }
    }

    /// Gives the address of the selected queue as version 1 wants it.
    fn set_queue_pfn(&mut self, queue: u16, rings: RingAddresses) -> Result<(), TransportError> {
        let wrote = steps::page_frame(queue, rings.descriptors)?;
        self.write(register::QUEUE_NUM, u32::from(rings.size));
        self.write(register::QUEUE_ALIGN, PAGE_SIZE as u32);
        self.write(register::QUEUE_PFN, wrote);
        let read = self.read(register::QUEUE_PFN);
        if read != wrote {
            return Err(TransportError::QueueNotTaken { queue, wrote, read });
        }
        Ok(())
    }
}

impl<H: Hal, R: Registers> Transport for MmioTransport<H, R> {
    fn device_type(&self) -> DeviceType {
        self.device_type
    }

    #[doc(alias = "vm_get_features")]
    fn read_device_features(&mut self) -> u64 {
        match self.version {
            Version::Legacy => self.device_features(0),
            Version::Modern => self.device_features(1) << 32 | self.device_features(0),
        }
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        if self.version == Version::Modern {
            self.write(register::DRIVER_FEATURES_SEL, 1);
            self.write(register::DRIVER_FEATURES, (driver_features >> 32) as u32);
        }
        self.write(register::DRIVER_FEATURES_SEL, 0);
        self.write(register::DRIVER_FEATURES, driver_features as u32);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.write(register::QUEUE_SEL, u32::from(queue));
        self.read(register::QUEUE_NUM_MAX)
    }

    fn notify(&mut self, queue: u16) {
        self.write(register::QUEUE_NOTIFY, u32::from(queue));
    }

    #[doc(alias = "vm_get_status")]
    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.read(register::STATUS))
    }

    #[doc(alias = "vm_set_status")]
    fn set_status(&mut self, status: DeviceStatus) {
        // FEATURES_OK does not exist in version 1 (specification 3.1.2).
        let status = match self.version {
            Version::Legacy => status - DeviceStatus::FEATURES_OK,
            Version::Modern => status,
        };
        self.write(register::STATUS, status.bits());
    }

    /// Before any queue is used, and again after each reset (specification
    /// 4.2.4); version 2 has no such register.
    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        if self.version == Version::Legacy {
            self.write(register::GUEST_PAGE_SIZE, guest_page_size);
        }
    }

    fn requires_legacy_layout(&self) -> bool {
        self.version == Version::Legacy
    }

    steps::queue_set_method!();

    #[doc(alias = "vm_del_vq")]
    fn queue_unset(&mut self, queue: u16) {
        self.write(register::QUEUE_SEL, u32::from(queue));
        self.write(self.in_use_register(), 0);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.write(register::QUEUE_SEL, u32::from(queue));
        self.read(self.in_use_register()) != 0
    }

    #[doc(alias = "vm_interrupt")]
    fn ack_interrupt(&mut self) -> InterruptStatus {
        let status = self.read(register::INTERRUPT_STATUS);
        if status != 0 {
            self.write(register::INTERRUPT_ACK, status);
        }
        InterruptStatus::from_bits_truncate(status)
    }

    fn read_config_generation(&self) -> u32 {
        match self.version {
            Version::Legacy => 0,
            Version::Modern => self.read(register::CONFIG_GENERATION),
        }
    }

    #[doc(alias = "vm_get")]
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        config_space::read(
            &self.registers,
            register::CONFIG,
            offset,
            || self.read_config_generation(),
            &self.accesses,
        )
    }

    #[doc(alias = "vm_set")]
    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        config_space::write(
            &mut self.registers,
            register::CONFIG,
            offset,
            value.as_bytes(),
            &self.accesses,
        )
    }
}

impl<H: Hal, R: Registers> ConfigOps for MmioTransport<H, R> {
    type Notify = Doorbell;

    #[doc(alias = "vm_bus_name")]
    fn bus_name(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "virtio-mmio {:#x}", self.address)
    }

    #[doc(alias = "vm_reset")]
    fn reset(&mut self) -> Result<(), TransportError> {
        steps::reset(self, steps::RESET_READS)?;
        // Version 1 forgets it at a reset.
        self.set_guest_page_size(PAGE_SIZE as u32);
        Ok(())
    }

    fn read_device_features_beyond(&mut self) -> u64 {
        match self.version {
            Version::Legacy => 0,
            // QEMU 7.2 takes any number but 0 for 1, where VERSION_1 is.
            Version::Modern => match [1, 2, 3].map(|select| self.device_features(select)) {
                [one, two, _] if one == two => 0,
                [_, two, three] => three << 32 | two,
            },
        }
    }

    #[doc(alias = "vm_finalize_features")]
    fn finalize_features(&mut self, features: u64) -> Result<(), TransportError> {
        match self.version {
            Version::Legacy => steps::finalize_legacy_features(self, features),
            Version::Modern => steps::finalize_features(self, features),
        }
    }

    /// Both versions have QueueNum (specification 4.2.4).
    fn dictates_queue_size(&self) -> bool {
        false
    }

    fn access_platform(&self) -> bool {
        self.access_platform
    }

    #[doc(alias = "vm_setup_vq")]
    fn setup_queue(
        &mut self,
        queue: u16,
        rings: RingAddresses,
    ) -> Result<Doorbell, TransportError> {
        steps::check_size(queue, rings.size, self.max_queue_size(queue))?;
        if self.read(self.in_use_register()) != 0 {
            return Err(TransportError::QueueInUse { queue });
        }
        match self.version {
            Version::Legacy => self.set_queue_pfn(queue, rings)?,
            Version::Modern => {
                self.write(register::QUEUE_NUM, u32::from(rings.size));
                self.write_address(register::QUEUE_DESC, rings.descriptors);
                self.write_address(register::QUEUE_DRIVER, rings.driver);
                self.write_address(register::QUEUE_DEVICE, rings.device);
            }
        }
        Ok(Doorbell::Mmio32 {
            register: self.notify,
            queue,
        })
    }

    fn enable_queue(&mut self, queue: u16) -> Result<(), TransportError> {
        if self.version == Version::Legacy {
            return Ok(());
        }
        self.write(register::QUEUE_SEL, u32::from(queue));
        self.write(register::QUEUE_READY, 1);
        match self.read(register::QUEUE_READY) {
            1 => Ok(()),
            _ => Err(TransportError::QueueNotEnabled { queue }),
        }
    }

    /// QEMU offers it for the device, whatever the transport, and (7.2) its
    /// virtio-mmio has no QueueReset.
    fn queue_reset_is_doubtful(&self) -> bool {
        self.version == Version::Modern
    }

    fn queue_reset(&mut self, queue: u16) -> Result<(), TransportError> {
        if self.version == Version::Legacy {
            return Err(TransportError::NoQueueReset { queue });
        }
        self.write(register::QUEUE_SEL, u32::from(queue));
        self.write(register::QUEUE_RESET, 1);
        for _ in 0..QUEUE_RESET_READS {
            if self.read(register::QUEUE_RESET) == 0 {
                // Specification 4.2.2.1: when it is over, both are 0.
                return match self.read(register::QUEUE_READY) {
                    0 => Ok(()),
                    _ => Err(TransportError::QueueNotReset { queue }),
                };
            }
            core::hint::spin_loop();
        }
        Err(TransportError::QueueResetTimeout { queue })
    }

    fn isr(&self) -> Option<IsrRegister> {
        Some(IsrRegister::VirtioMmio(MmioInterrupt {
            status: self.registers.pointer(register::INTERRUPT_STATUS)?,
            acknowledge: self.registers.pointer(register::INTERRUPT_ACK)?,
        }))
    }

    fn register_accesses(&self) -> u64 {
        self.accesses.total()
    }
}

impl<H: Hal, R: Registers> Drop for MmioTransport<H, R> {
    fn drop(&mut self) {
        steps::shut_down(self);
    }
}
