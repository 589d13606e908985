//! virtio-pci by its legacy interface: one port-I/O BAR (specification
//! 4.1.4.10; Linux `virtio_pci_legacy.c`).
//!
//! ```text
//! BAR 0     31           16 15            0
//!  0x00    | HOST_FEATURES (read)          |  what the device offers
//!  0x04    | GUEST_FEATURES                |  what the driver takes
//!  0x08    | QUEUE_PFN                     |  ring's page frame number; 0 = none
//!  0x0c    | QUEUE_SEL     | QUEUE_NUM (r) |  the queue meant; its size
//!  0x10    | ISR | STATUS  | QUEUE_NOTIFY  |  reading ISR acknowledges it
//!  0x14    | QUEUE_VECTOR  | CONFIG_VECTOR |  only while MSI-X is on
//!  0x14/18 | the device's own configuration|  behind the vectors
//! ```
//!
//! A write of the queue's index to QUEUE_NOTIFY is the kick. The device
//! dictates each queue's size. It has no FEATURES_OK: what is written to
//! GUEST_FEATURES is agreed.

use core::fmt;

use virtio_drivers::transport::pci::bus::{BarInfo, ConfigurationAccess, DeviceFunction};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, Hal, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::isr::IsrRegister;
use super::msix::vector_taken;
use super::pci_common::{PciFunction, TRANSITIONAL, VENDOR_VIRTIO, pci_methods};
use super::ports::{NativePorts, Ports};
use super::registers::Accesses;
use super::{BarProblem, ConfigOps, MsiMessage, RingAddresses, TransportError, steps};
use crate::doorbell::Doorbell;

/// Offsets of the registers from the start of BAR 0, in bytes.
mod register {
    pub const HOST_FEATURES: u16 = 0x00;
    pub const GUEST_FEATURES: u16 = 0x04;
    pub const QUEUE_PFN: u16 = 0x08;
    pub const QUEUE_NUM: u16 = 0x0c;
    pub const QUEUE_SEL: u16 = 0x0e;
    pub const QUEUE_NOTIFY: u16 = 0x10;
    pub const STATUS: u16 = 0x12;
    pub const ISR: u16 = 0x13;
    pub const CONFIG_VECTOR: u16 = 0x14;
    pub const QUEUE_VECTOR: u16 = 0x16;
    /// The device's configuration, while MSI-X is off.
    pub const CONFIG: u16 = 0x14;
    /// The device's configuration, while MSI-X is on.
    pub const CONFIG_MSIX: u16 = 0x18;
}

/// Status reads until a reset counts as failed. A legacy device resets within
/// the write; each read is an exit of a microsecond or more.
const RESET_READS: u32 = 1000;

/// A legacy or transitional virtio-pci device, driven by port I/O.
pub struct LegacyPciTransport<H: Hal, C: ConfigurationAccess, P: Ports = NativePorts> {
    pci: PciFunction<H, C>,
    device_type: DeviceType,
    ports: P,
    base: u16,
    size: u16,
    accesses: Accesses,
}

impl<H: Hal, C: ConfigurationAccess, P: Ports> LegacyPciTransport<H, C, P> {
    /// Takes the device at `function`, turning on its port decoding and bus
    /// mastering. The device is not reset yet.
    ///
    /// A broken MSI-X capability is reported to the log and treated as none.
    ///
    /// # Errors
    ///
    /// [`TransportError::NotThisTransport`] when it is no legacy or
    /// transitional virtio device (1af4:1000 to :103f, revision 0),
    /// [`TransportError::UnusableBar`], [`TransportError::UnknownDeviceType`].
    pub fn new(access: &C, ports: P, function: DeviceFunction) -> Result<Self, TransportError> {
        let mut pci = PciFunction::new(access, function);
        let (vendor, device) = pci.id();
        // Specification 4.1.2.3: a transitional device has revision 0.
        if vendor != VENDOR_VIRTIO || !TRANSITIONAL.contains(&device) || pci.revision() != 0 {
            return Err(TransportError::NotThisTransport { vendor, device });
        }
        let id = pci.subsystem();
        let device_type =
            DeviceType::try_from(id).map_err(|_| TransportError::UnknownDeviceType { id })?;

        let unusable = |problem| TransportError::UnusableBar { bar: 0, problem };
        pci.size_bars();
        let (address, size) = match pci.bars[0] {
            // A device that decodes 16 bits of address has no upper half to
            // size (PCI Local Bus 3.0, 6.2.5.1).
            Some(BarInfo::IO { address, size }) => (address, size & 0xffff),
            Some(BarInfo::Memory { .. }) => return Err(unusable(BarProblem::WrongKind)),
            None => return Err(unusable(BarProblem::Missing)),
        };
        let out_of_range = unusable(BarProblem::OutOfRange {
            address: u64::from(address),
        });
        if address == 0 {
            return Err(unusable(BarProblem::Unassigned));
        }
        if size < u32::from(register::CONFIG_MSIX) {
            return Err(unusable(BarProblem::TooSmall {
                size: u64::from(size),
                needed: u64::from(register::CONFIG_MSIX),
            }));
        }
        let (Ok(base), Ok(size)) = (u16::try_from(address), u16::try_from(size)) else {
            return Err(out_of_range);
        };
        if base.checked_add(size - 1).is_none() {
            return Err(out_of_range);
        }
        if ports.access().isr(base + register::ISR).is_none() {
            return Err(unusable(BarProblem::OutOfReach));
        }
        pci.enable();
        Ok(Self {
            pci,
            device_type,
            ports,
            base,
            size,
            accesses: Accesses::default(),
        })
    }

    /// Place of the device on its bus.
    pub fn function(&self) -> DeviceFunction {
        self.pci.place
    }

    /// Port of a register, and one more access counted.
    fn port(&self, offset: u16) -> u16 {
        self.accesses.count(1);
        self.base + offset
    }

    fn select(&mut self, queue: u16) {
        self.ports.write16(self.port(register::QUEUE_SEL), queue);
    }

    /// Specification 4.1.4.10: the device's configuration moves behind the
    /// vector registers when MSI-X is turned on.
    fn config_base(&self) -> u16 {
        if self.pci.msix_on() {
            register::CONFIG_MSIX
        } else {
            register::CONFIG
        }
    }

    /// Offset in the BAR of `length` bytes at `offset` of the configuration.
    fn config_offset(&self, offset: usize, length: usize) -> Result<u16, Error> {
        let start = usize::from(self.config_base()).saturating_add(offset);
        let end = start.saturating_add(length);
        if end > usize::from(self.size) {
            return Err(Error::ConfigSpaceTooSmall);
        }
        u16::try_from(start).map_err(|_| Error::ConfigSpaceTooSmall)
    }
}

impl<H: Hal, C: ConfigurationAccess, P: Ports> Transport for LegacyPciTransport<H, C, P> {
    fn device_type(&self) -> DeviceType {
        self.device_type
    }

    /// The legacy interface has 32 feature bits.
    #[doc(alias = "vp_get_features")]
    fn read_device_features(&mut self) -> u64 {
        u64::from(self.ports.read32(self.port(register::HOST_FEATURES)))
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.ports
            .write32(self.port(register::GUEST_FEATURES), driver_features as u32);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.select(queue);
        u32::from(self.ports.read16(self.port(register::QUEUE_NUM)))
    }

    fn notify(&mut self, queue: u16) {
        self.ports.write16(self.port(register::QUEUE_NOTIFY), queue);
    }

    #[doc(alias = "vp_get_status")]
    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(u32::from(self.ports.read8(self.port(register::STATUS))))
    }

    #[doc(alias = "vp_set_status")]
    fn set_status(&mut self, status: DeviceStatus) {
        // FEATURES_OK does not exist here (specification 3.1.2).
        let status = status - DeviceStatus::FEATURES_OK;
        self.ports
            .write8(self.port(register::STATUS), status.bits() as u8);
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {
        // Fixed at 4096 for PCI (specification 4.1.5.1.3.1).
    }

    fn requires_legacy_layout(&self) -> bool {
        true
    }

    steps::queue_set_method!();

    #[doc(alias = "vp_del_vq")]
    fn queue_unset(&mut self, queue: u16) {
        self.select(queue);
        // QEMU resets the whole device at this; the interface has no way to
        // take a single queue back.
        self.ports.write32(self.port(register::QUEUE_PFN), 0);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.select(queue);
        self.ports.read32(self.port(register::QUEUE_PFN)) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_truncate(u32::from(self.ports.read8(self.port(register::ISR))))
    }

    fn read_config_generation(&self) -> u32 {
        // The legacy interface has none (specification 2.5.4).
        0
    }

    #[doc(alias = "vp_get")]
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes();
        let mut at = self.config_offset(offset, bytes.len())?;
        // A field is read by one access of its width (specification 4.1.3.1),
        // which keeps what the device changes meanwhile in one piece.
        match bytes.len() {
            2 => bytes.copy_from_slice(&self.ports.read16(self.port(at)).to_le_bytes()),
            4 => bytes.copy_from_slice(&self.ports.read32(self.port(at)).to_le_bytes()),
            _ => {
                for byte in bytes {
                    *byte = self.ports.read8(self.port(at));
                    at += 1;
                }
            }
        }
        Ok(value)
    }

    #[doc(alias = "vp_set")]
    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        let bytes = value.as_bytes();
        let mut at = self.config_offset(offset, bytes.len())?;
        match *bytes {
            [a, b] => {
                self.ports
                    .write16(self.port(at), u16::from_le_bytes([a, b]));
            }
            [a, b, c, d] => {
                self.ports
                    .write32(self.port(at), u32::from_le_bytes([a, b, c, d]));
            }
            ref bytes => {
                for &byte in bytes {
                    self.ports.write8(self.port(at), byte);
                    at += 1;
                }
            }
        }
        Ok(())
    }
}

impl<H: Hal, C: ConfigurationAccess, P: Ports> ConfigOps for LegacyPciTransport<H, C, P> {
    pci_methods!();

    fn reset(&mut self) -> Result<(), TransportError> {
        steps::reset(self, RESET_READS)
    }

    fn finalize_features(&mut self, features: u64) -> Result<(), TransportError> {
        steps::finalize_legacy_features(self, features)
    }

    fn setup_queue(
        &mut self,
        queue: u16,
        rings: RingAddresses,
    ) -> Result<Doorbell, TransportError> {
        self.select(queue);
        let size = self.ports.read16(self.port(register::QUEUE_NUM));
        // The size is the device's to choose; a ring of another would be laid
        // out elsewhere than the device looks for it.
        if size == 0 || size != rings.size {
            return Err(TransportError::NoSuchQueue { queue });
        }
        if self.ports.read32(self.port(register::QUEUE_PFN)) != 0 {
            return Err(TransportError::QueueInUse { queue });
        }
        let wrote = steps::page_frame(queue, rings.descriptors)?;
        self.ports.write32(self.port(register::QUEUE_PFN), wrote);
        let read = self.ports.read32(self.port(register::QUEUE_PFN));
        if read != wrote {
            return Err(TransportError::QueueNotTaken { queue, wrote, read });
        }
        let port = self.base + register::QUEUE_NOTIFY;
        let doorbell = self.ports.access().doorbell(port, queue);
        doorbell.ok_or(TransportError::UnusableBar {
            bar: 0,
            problem: BarProblem::OutOfReach,
        })
    }

    fn set_config_vector(&mut self, entry: u16) -> Result<(), TransportError> {
        self.ports
            .write16(self.port(register::CONFIG_VECTOR), entry);
        let read = self.ports.read16(self.port(register::CONFIG_VECTOR));
        vector_taken(None, entry, read)
    }

    fn set_queue_vector(&mut self, queue: u16, entry: u16) -> Result<(), TransportError> {
        self.select(queue);
        self.ports.write16(self.port(register::QUEUE_VECTOR), entry);
        let read = self.ports.read16(self.port(register::QUEUE_VECTOR));
        vector_taken(Some(queue), entry, read)
    }

    fn isr(&self) -> Option<IsrRegister> {
        self.ports.access().isr(self.base + register::ISR)
    }
}

impl<H: Hal, C: ConfigurationAccess, P: Ports> Drop for LegacyPciTransport<H, C, P> {
    fn drop(&mut self) {
        steps::shut_down(self);
    }
}
