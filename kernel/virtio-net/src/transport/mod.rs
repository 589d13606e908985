//! The ways to a device's registers, one file each.
//!
//! `virtio_drivers::transport::Transport` is what every device driver needs;
//! [`ConfigOps`] adds what it lacks: errors instead of silence, the notify
//! hook, and interrupt vectors. Together they answer to Linux's
//! `struct virtio_config_ops`.

pub mod legacy_pci;
pub mod msix;
mod ports;

pub use ports::{Ports, X86Ports};

use core::fmt;

use virtio_drivers::PhysAddr;
use virtio_drivers::transport::Transport;

use crate::doorbell::Doorbell;
use crate::interrupt::IsrRegister;

/// Where an MSI-X entry sends its interrupt: a memory write (PCI 6.8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Address of the write, on x86 a local APIC's at 0xfee0_0000.
    pub address: u64,
    /// Data of the write, on x86 the vector.
    pub data: u32,
}

/// A register access that did not have the effect that it must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportError {
    /// The BAR that holds the registers is missing, of the wrong kind, not
    /// assigned by the firmware, or too small.
    UnusableBar {
        /// Index of the BAR, 0 to 5.
        bar: u8,
        /// What is wrong with it.
        problem: BarProblem,
    },
    /// The device is not one of this transport.
    NotThisTransport {
        /// PCI vendor id.
        vendor: u16,
        /// PCI device id.
        device: u16,
    },
    /// The PCI subsystem id names no kind of virtio device.
    UnknownDeviceType {
        /// The id.
        id: u16,
    },
    /// The device has no such queue.
    NoSuchQueue {
        /// Index of the queue.
        queue: u16,
    },
    /// Somebody has set the queue up already.
    QueueInUse {
        /// Index of the queue.
        queue: u16,
    },
    /// The ring's address does not fit the register.
    AddressTooHigh {
        /// Index of the queue.
        queue: u16,
        /// The address.
        address: PhysAddr,
    },
    /// The device did not keep the ring's address.
    QueueNotTaken {
        /// Index of the queue.
        queue: u16,
        /// What was written.
        wrote: u32,
        /// What was read back.
        read: u32,
    },
    /// The device has no MSI-X, or not as many entries as needed.
    TooFewVectors {
        /// Entries needed.
        needed: u16,
        /// Entries that the device has.
        available: u16,
    },
    /// The device answered `VIRTIO_MSI_NO_VECTOR` or another vector when one
    /// was assigned: it has no resources for it (specification 4.1.5.1.2.2).
    VectorNotTaken {
        /// Whose vector: `None` for configuration changes, else the queue.
        queue: Option<u16>,
        /// What was written.
        wrote: u16,
        /// What was read back.
        read: u16,
    },
    /// The device did not finish its reset in the allowed number of reads.
    ResetTimeout {
        /// The status that it still shows.
        status: u32,
    },
    /// The device did not accept the feature bits (specification 3.1.1).
    FeaturesRefused {
        /// What was written.
        features: u64,
    },
}

/// What is wrong with a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarProblem {
    /// It could not be read.
    Unreadable,
    /// There is none.
    Missing,
    /// It is memory where ports are needed, or the reverse.
    WrongKind,
    /// Its address is 0: the firmware has not assigned one.
    Unassigned,
    /// It is smaller than what it must hold.
    TooSmall {
        /// Its size in bytes.
        size: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// Its address lies beyond the port space of 64 KiB.
    OutOfRange {
        /// The address.
        address: u64,
    },
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UnusableBar { bar, problem } => write!(f, "BAR {bar} {problem}"),
            Self::NotThisTransport { vendor, device } => {
                write!(
                    f,
                    "{vendor:04x}:{device:04x} is not a device of this transport"
                )
            }
            Self::UnknownDeviceType { id } => {
                write!(f, "subsystem id {id} names no kind of virtio device")
            }
            Self::NoSuchQueue { queue } => write!(f, "the device has no queue {queue}"),
            Self::QueueInUse { queue } => write!(f, "queue {queue} is in use already"),
            Self::AddressTooHigh { queue, address } => {
                write!(f, "queue {queue}: the device cannot address {address:#x}")
            }
            Self::QueueNotTaken { queue, wrote, read } => write!(
                f,
                "queue {queue}: wrote page frame {wrote:#x}, the device kept {read:#x}"
            ),
            Self::TooFewVectors { needed, available } => write!(
                f,
                "{needed} MSI-X vectors needed, the device has {available}"
            ),
            Self::VectorNotTaken { queue, wrote, read } => {
                match queue {
                    Some(queue) => write!(f, "queue {queue}")?,
                    None => f.write_str("configuration changes")?,
                }
                write!(f, ": wrote vector {wrote}, the device kept {read:#x}")
            }
            Self::ResetTimeout { status } => {
                write!(
                    f,
                    "the device does not finish its reset (status {status:#x})"
                )
            }
            Self::FeaturesRefused { features } => {
                write!(f, "the device refused the features {features:#x}")
            }
        }
    }
}

impl fmt::Display for BarProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Unreadable => f.write_str("cannot be read"),
            Self::Missing => f.write_str("is missing"),
            Self::WrongKind => f.write_str("is of the wrong kind (memory or ports)"),
            Self::Unassigned => f.write_str("has no address: the firmware did not assign one"),
            Self::TooSmall { size, needed } => {
                write!(f, "has {size} bytes, {needed} are needed")
            }
            Self::OutOfRange { address } => {
                write!(f, "at {address:#x} lies outside the 64 KiB of ports")
            }
        }
    }
}

impl core::error::Error for TransportError {}

/// A transport as the queues and the interrupt ladder need it: what Linux's
/// `struct virtio_config_ops` has beyond `virtio_drivers`' [`Transport`].
#[doc(alias = "virtio_config_ops")]
pub trait ConfigOps: Transport {
    /// Writes the device's place on its bus, such as `0000:00:02.0`.
    #[doc(alias = "vp_bus_name")]
    fn bus_name(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// Resets the device and waits until it says that it is done.
    ///
    /// # Errors
    ///
    /// [`TransportError::ResetTimeout`] after a bounded number of reads.
    #[doc(alias = "vp_reset")]
    fn reset(&mut self) -> Result<(), TransportError>;

    /// Tells the device which features the driver takes and makes sure that
    /// it agrees.
    ///
    /// # Errors
    ///
    /// [`TransportError::FeaturesRefused`].
    #[doc(alias = "vp_finalize_features")]
    fn finalize_features(&mut self, features: u64) -> Result<(), TransportError>;

    /// Tells the device where a queue's rings are and returns the queue's
    /// notify hook.
    ///
    /// # Errors
    ///
    /// Any of the [`TransportError`]s about a queue.
    #[doc(alias = "setup_vq")]
    fn setup_queue(&mut self, queue: u16, rings: RingAddresses)
    -> Result<Doorbell, TransportError>;

    /// Number of MSI-X entries, 0 when the device has no MSI-X.
    fn msix_entries(&self) -> u16;

    /// Turns MSI-X on with these messages in the first entries and every
    /// other entry masked.
    ///
    /// # Errors
    ///
    /// [`TransportError::TooFewVectors`]; MSI-X is off then.
    fn msix_enable(&mut self, messages: &[MsiMessage]) -> Result<(), TransportError>;

    /// Turns MSI-X off, if it is on.
    fn msix_disable(&mut self);

    /// Routes configuration changes to an MSI-X entry.
    ///
    /// # Errors
    ///
    /// [`TransportError::VectorNotTaken`].
    #[doc(alias = "vp_config_vector")]
    fn set_config_vector(&mut self, entry: u16) -> Result<(), TransportError>;

    /// Routes a queue's used buffers to an MSI-X entry.
    ///
    /// # Errors
    ///
    /// [`TransportError::VectorNotTaken`].
    #[doc(alias = "vp_queue_vector")]
    fn set_queue_vector(&mut self, queue: u16, entry: u16) -> Result<(), TransportError>;

    /// Lets the device raise its INTx line, or not.
    fn intx_enable(&mut self, enable: bool);

    /// The register that an INTx handler reads to acknowledge, `None` where
    /// the transport has no such line.
    fn isr(&self) -> Option<IsrRegister>;

    /// Accesses made to the device's registers through this transport,
    /// without the doorbells'.
    fn register_accesses(&self) -> u64;
}

/// Where a queue's parts are, as the device sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// Number of descriptors.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: PhysAddr,
    /// The available ring.
    pub driver: PhysAddr,
    /// The used ring.
    pub device: PhysAddr,
}

/// Shows a transport's [`ConfigOps::bus_name`].
pub struct BusName<'a, T: ConfigOps>(pub &'a T);

impl<T: ConfigOps> fmt::Display for BusName<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bus_name(f)
    }
}
