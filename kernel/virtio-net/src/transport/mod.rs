//! The ways to a device's registers, one file each.
//!
//! `virtio_drivers::transport::Transport` is what every device driver needs;
//! [`ConfigOps`] adds what it lacks: errors instead of silence, the notify
//! hook, and interrupt vectors. Together they answer to Linux's
//! `struct virtio_config_ops`.

pub mod adapter;
pub mod any;
mod config_space;
mod error;
pub(crate) mod isr;
pub mod legacy_pci;
pub mod mmio;
pub mod modern_pci;
mod msix;
mod pci_common;
mod ports;
mod registers;
mod steps;
pub mod structures;

pub use error::{BarProblem, Structure, StructureProblem, TransportError};
pub use isr::{IsrRegister, MmioInterrupt};
#[cfg(target_arch = "x86_64")]
pub use ports::X86Ports;
pub use ports::{NativePorts, PortAccess, PortWindow, Ports};
pub use registers::{MappedRegisters, Registers};

use core::fmt;

use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_drivers::{Hal, PhysAddr};

#[cfg(doc)]
use crate::doorbell::Doorbell;
use crate::doorbell::Notify;

/// `VIRTIO_F_VERSION_1` (specification 6).
const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_NOTIFICATION_DATA` (specification 6).
const NOTIFICATION_DATA: u64 = 1 << 38;
/// `VIRTIO_F_RING_RESET` (specification 6).
const RING_RESET: u64 = 1 << 40;
/// `VIRTIO_F_ACCESS_PLATFORM` (specification 6).
const ACCESS_PLATFORM: u64 = 1 << 33;

/// The status of a device that is live (specification 3.1.1, step 8).
pub(crate) const LIVE: DeviceStatus = DeviceStatus::ACKNOWLEDGE
    .union(DeviceStatus::DRIVER)
    .union(DeviceStatus::FEATURES_OK)
    .union(DeviceStatus::DRIVER_OK);

/// Methods that only hand on to another transport, to which `$to` leads.
macro_rules! forward {
    ($to:ident $(fn $name:ident(&self $(, $given:ident: $type:ty)*) $(-> $out:ty)?;)*) => {
        $(fn $name(&self $(, $given: $type)*) $(-> $out)? {
            $to!(self, transport => transport.$name($($given),*))
        })*
    };
    ($to:ident $(fn $name:ident(&mut self $(, $given:ident: $type:ty)*) $(-> $out:ty)?;)*) => {
        $(fn $name(&mut self $(, $given: $type)*) $(-> $out)? {
            $to!(self, transport => transport.$name($($given),*))
        })*
    };
}
use forward;

/// A [`Hal`] that knows of translated accesses (`VIRTIO_F_ACCESS_PLATFORM`,
/// specification 6.1): an IOMMU may stand between the device and the memory. A
/// transport asks by its `with_access_platform`; one that was not told to
/// refuses a device that demands it.
///
/// # Safety
///
/// When [`Self::access_platform`] says so, the addresses of the `Hal` must be
/// those by which such a device reaches the memory, and no other memory.
pub unsafe trait AccessPlatform: Hal {
    /// Whether the addresses that this `Hal` gives are right also for a device
    /// whose accesses are translated: it maps its memory in the IOMMU, or there
    /// is none.
    fn access_platform() -> bool;
}

/// Where an MSI-X entry sends its interrupt: a memory write (PCI 6.8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Address of the write, on x86 a local APIC's at 0xfee0_0000.
    pub address: u64,
    /// Data of the write, on x86 the vector.
    pub data: u32,
}

/// A transport as the queues and the interrupt ladder need it: what Linux's
/// `struct virtio_config_ops` has beyond `virtio_drivers`' [`Transport`].
#[doc(alias = "virtio_config_ops")]
pub trait ConfigOps: Transport {
    /// The notify hook of a queue: [`Doorbell`] where it is a register.
    type Notify: Notify;

    /// Writes the device's place on its bus, such as `0000:00:02.0`.
    #[doc(alias = "vp_bus_name")]
    fn bus_name(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// Resets the device and waits until it says that it is done.
    ///
    /// # Errors
    ///
    /// [`TransportError::ResetTimeout`] after a bounded number of reads,
    /// [`TransportError::Gone`].
    #[doc(alias = "vp_reset")]
    fn reset(&mut self) -> Result<(), TransportError>;

    /// The features 64 to 127 that the device offers, to be shown: none of them
    /// is implemented, and [`Self::finalize_features`] acknowledges none. 0
    /// where the transport has no register for them.
    fn read_device_features_beyond(&mut self) -> u64 {
        0
    }

    /// Tells the device which features the driver takes and makes sure that
    /// it agrees. The status is `ACKNOWLEDGE | DRIVER` before, and has
    /// `FEATURES_OK` after where the transport knows that bit (specification
    /// 3.1.1, steps 4 to 6).
    ///
    /// # Errors
    ///
    /// [`TransportError::FeaturesRefused`], [`TransportError::NoVersion1`].
    #[doc(alias = "vp_finalize_features")]
    fn finalize_features(&mut self, features: u64) -> Result<(), TransportError>;

    /// Whether the addresses that the embedder's `Hal` gives are right also
    /// when the device's accesses are translated (`VIRTIO_F_ACCESS_PLATFORM`).
    fn access_platform(&self) -> bool {
        false
    }

    /// Whether a queue has exactly the size that the device says, and not less
    /// if the driver so wishes (specification 4.1.5.1.3.1: legacy virtio-pci
    /// has no register to write it to).
    fn dictates_queue_size(&self) -> bool {
        self.requires_legacy_layout()
    }

    /// Number of queues that the device has at most, where it tells.
    fn num_queues(&self) -> Option<u16> {
        None
    }

    /// Tells the device where a queue's rings are and returns the queue's
    /// notify hook. [`Self::enable_queue`] makes it live; its vector is set
    /// before that.
    ///
    /// # Errors
    ///
    /// Any of the [`TransportError`]s about a queue.
    #[doc(alias = "setup_vq")]
    fn setup_queue(
        &mut self,
        queue: u16,
        rings: RingAddresses,
    ) -> Result<Self::Notify, TransportError>;

    /// Enables a queue that was set up: the last step, after which only a reset
    /// takes it back (specification 4.1.5.1.3). Where the ring's address
    /// enables the queue, as in the legacy interface, there is nothing to do.
    ///
    /// # Errors
    ///
    /// [`TransportError::QueueNotEnabled`].
    #[doc(alias = "vp_modern_set_queue_enable")]
    fn enable_queue(&mut self, queue: u16) -> Result<(), TransportError> {
        let _ = queue;
        Ok(())
    }

    /// Features of the transport that this one cannot do, whatever the device
    /// offers: they are not taken.
    fn unsupported_features(&self) -> u64 {
        0
    }

    /// Whether a device may offer `VIRTIO_F_RING_RESET` and have no register for
    /// it. It is tried then, before the device is live.
    fn queue_reset_is_doubtful(&self) -> bool {
        false
    }

    /// Resets one queue and waits until the device no longer uses it
    /// (`VIRTIO_F_RING_RESET`, specification 2.6.1). It is set up again by
    /// [`Self::setup_queue`], [`Self::set_queue_vector`] and
    /// [`Self::enable_queue`].
    ///
    /// # Errors
    ///
    /// [`TransportError::NoQueueReset`] where the transport has no register for
    /// it, [`TransportError::QueueNotReset`] where the device's does nothing,
    /// [`TransportError::QueueResetTimeout`] after a bounded number of reads.
    #[doc(alias = "disable_vq_and_reset")]
    fn queue_reset(&mut self, queue: u16) -> Result<(), TransportError> {
        Err(TransportError::NoQueueReset { queue })
    }

    /// Number of MSI-X entries, 0 when the device has no MSI-X. A transport
    /// without MSI-X leaves this and all that follows from it as it is here.
    fn msix_entries(&self) -> u16 {
        0
    }

    /// Turns MSI-X on with these messages in the first entries and every
    /// other entry masked.
    ///
    /// # Errors
    ///
    /// [`TransportError::TooFewVectors`]; MSI-X is off then.
    fn msix_enable(&mut self, messages: &[MsiMessage]) -> Result<(), TransportError> {
        Err(TransportError::no_msix(messages.len()))
    }

    /// Turns MSI-X off, if it is on.
    fn msix_disable(&mut self) {}

    /// Routes configuration changes to an MSI-X entry.
    ///
    /// # Errors
    ///
    /// [`TransportError::VectorNotTaken`]; [`TransportError::TooFewVectors`] of
    /// a transport without MSI-X.
    #[doc(alias = "vp_config_vector")]
    fn set_config_vector(&mut self, entry: u16) -> Result<(), TransportError> {
        Err(TransportError::no_msix(usize::from(entry) + 1))
    }

    /// Routes a queue's used buffers to an MSI-X entry.
    ///
    /// # Errors
    ///
    /// As for [`Self::set_config_vector`].
    #[doc(alias = "vp_queue_vector")]
    fn set_queue_vector(&mut self, queue: u16, entry: u16) -> Result<(), TransportError> {
        let _ = queue;
        Err(TransportError::no_msix(usize::from(entry) + 1))
    }

    /// Sends the interrupts of an MSI-X entry elsewhere, which is how the
    /// queues that use it move to another CPU.
    ///
    /// # Errors
    ///
    /// [`TransportError::TooFewVectors`] when MSI-X is off or has no such
    /// entry.
    #[doc(alias = "vp_set_vq_affinity")]
    fn set_vq_affinity(&mut self, entry: u16, message: MsiMessage) -> Result<(), TransportError> {
        let _ = message;
        Err(TransportError::no_msix(usize::from(entry) + 1))
    }

    /// Lets the device raise its interrupt line (INTx), or not. Where the
    /// device cannot be told, a line is masked where it ends.
    fn intx_enable(&mut self, enable: bool) {
        let _ = enable;
    }

    /// The register by which a handler of the interrupt line (INTx)
    /// acknowledges, `None` where the transport has no such line.
    fn isr(&self) -> Option<IsrRegister>;

    /// Accesses made to the device's registers through this transport,
    /// without the doorbells'.
    fn register_accesses(&self) -> u64;
}

/// Where a queue's parts are, as the device sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// Number of descriptors, 1 to 32768 (specification 2.7 and 2.8.10.1).
    pub size: u16,
    /// The descriptor table; of a packed queue the descriptor ring.
    pub descriptors: PhysAddr,
    /// The available ring; of a packed queue the driver event suppression
    /// structure.
    pub driver: PhysAddr,
    /// The used ring; of a packed queue the device event suppression structure.
    pub device: PhysAddr,
}

/// Shows a transport's [`ConfigOps::bus_name`].
pub struct BusName<'a, T: ConfigOps>(pub &'a T);

impl<T: ConfigOps> fmt::Display for BusName<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bus_name(f)
    }
}

/// Whether a status is what a device reads as that is not there any more: all ones
/// (PCI Express Base 5.0, 2.3.2).
pub(crate) fn is_gone(status: DeviceStatus) -> bool {
    matches!(status.bits(), 0xff | u32::MAX)
}

/// Makes sure that a device's accesses are such as the transport's `Hal` can
/// serve, before features are agreed on.
pub(crate) fn check_access_platform<T: ConfigOps>(
    transport: &T,
    offered: u64,
) -> Result<(), TransportError> {
    if offered & ACCESS_PLATFORM != 0 && !transport.access_platform() {
        return Err(TransportError::AccessPlatform);
    }
    Ok(())
}
