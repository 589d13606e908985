//! What a device can get wrong at its registers.

use core::fmt;

use virtio_drivers::PhysAddr;

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
    /// The PCI subsystem id, or what stands for it, names no kind of virtio
    /// device.
    UnknownDeviceType {
        /// The id.
        id: u16,
    },
    /// A structure that a virtio-pci device must have is nowhere to be found
    /// (specification 4.1.4).
    NoStructure {
        /// Which one.
        structure: Structure,
    },
    /// Every capability for a structure is wrong; this is what is wrong with
    /// the last (specification 4.1.4).
    UnusableStructure {
        /// Which one.
        structure: Structure,
        /// Offset of the capability in the configuration space, in bytes.
        capability: u8,
        /// What is wrong with it.
        problem: StructureProblem,
    },
    /// The notification structure does not hold the queue's register
    /// (specification 4.1.4.4).
    NotifyOutside {
        /// Index of the queue.
        queue: u16,
        /// Offset of its register in the structure, in bytes.
        offset: u64,
        /// Length of the structure in bytes.
        length: u32,
    },
    /// There are no virtio-mmio registers at the address: not the magic value
    /// (specification 4.2.2).
    NoMagic {
        /// What the magic register reads as.
        read: u32,
    },
    /// The virtio-mmio device is of a version that nobody has specified.
    UnknownVersion {
        /// The version.
        version: u32,
    },
    /// Device id 0: a virtio-mmio place with no device in it (specification
    /// 4.2.3.1.1).
    NoDevice,
    /// The region is too small for the registers.
    RegionTooSmall {
        /// Its size in bytes.
        size: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// The device has no such queue.
    NoSuchQueue {
        /// Index of the queue.
        queue: u16,
    },
    /// The device does not take a ring of this size.
    QueueSizeRefused {
        /// Index of the queue.
        queue: u16,
        /// Number of descriptors of the ring.
        size: u16,
        /// The most that the device takes.
        max: u32,
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
    /// The device did not enable the queue.
    QueueNotEnabled {
        /// Index of the queue.
        queue: u16,
    },
    /// The register to notify the device by has no room for the 32 bits of
    /// `VIRTIO_F_NOTIFICATION_DATA`, which was agreed on (specification
    /// 4.1.4.4.1).
    NoNotificationData {
        /// Index of the queue.
        queue: u16,
    },
    /// The transport has no register to reset a single queue with.
    NoQueueReset {
        /// Index of the queue.
        queue: u16,
    },
    /// The device did not finish the reset of a queue in the allowed number of
    /// reads.
    QueueResetTimeout {
        /// Index of the queue.
        queue: u16,
    },
    /// The device says that the reset of a queue is over, and the queue is
    /// still enabled: it has not done it.
    QueueNotReset {
        /// Index of the queue.
        queue: u16,
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
    /// `VIRTIO_F_VERSION_1` was not agreed on, without which this transport
    /// does not work: the device did not offer it, or the driver was told to
    /// refuse it (specification 6.1).
    NoVersion1,
    /// The device offers `VIRTIO_F_ACCESS_PLATFORM`, so its memory accesses
    /// may be translated, and the `Hal` did not say that it knows how, or the
    /// driver was told to refuse the feature (specification 6.1).
    AccessPlatform,
}

impl TransportError {
    /// `needed` vectors of a device that has no MSI-X, or has it turned off.
    pub(super) fn no_msix(needed: usize) -> Self {
        Self::TooFewVectors {
            needed: u16::try_from(needed).unwrap_or(u16::MAX),
            available: 0,
        }
    }
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
    /// Its address lies beyond the port space of 64 KiB, or it wraps.
    OutOfRange {
        /// The address.
        address: u64,
    },
}

/// A structure that a virtio capability points to: `cfg_type` (specification
/// 4.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Structure {
    /// `VIRTIO_PCI_CAP_COMMON_CFG`
    Common = 1,
    /// `VIRTIO_PCI_CAP_NOTIFY_CFG`
    Notify = 2,
    /// `VIRTIO_PCI_CAP_ISR_CFG`
    Isr = 3,
    /// `VIRTIO_PCI_CAP_DEVICE_CFG`
    Device = 4,
}

/// What is wrong with a virtio capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StructureProblem {
    /// The capability reaches beyond the configuration space, or is shorter
    /// than its kind must be.
    Truncated {
        /// Its `cap_len` in bytes.
        length: u8,
    },
    /// The BAR that it names cannot be used.
    Bar {
        /// Index of the BAR, 0 to 5.
        bar: u8,
        /// What is wrong with it.
        problem: BarProblem,
    },
    /// The structure reaches beyond its BAR.
    OutsideBar {
        /// Offset of the structure in the BAR, in bytes.
        offset: u32,
        /// Length of the structure in bytes.
        length: u32,
        /// Size of the BAR in bytes.
        size: u64,
    },
    /// The structure is shorter than its registers.
    TooShort {
        /// Length of the structure in bytes.
        length: u32,
        /// Bytes needed.
        needed: u32,
    },
    /// The structure does not begin at a multiple of what it must.
    Misaligned {
        /// Offset of the structure in the BAR, in bytes.
        offset: u32,
        /// The alignment in bytes.
        alignment: u32,
    },
    /// `notify_off_multiplier` is neither 0 nor an even power of 2.
    Multiplier {
        /// The multiplier in bytes.
        multiplier: u32,
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
                write!(f, "id {id} names no kind of virtio device")
            }
            Self::NoStructure { structure } => {
                write!(f, "no capability tells of the {structure}")
            }
            Self::UnusableStructure {
                structure,
                capability,
                problem,
            } => write!(
                f,
                "the {structure} (capability at {capability:#x}) {problem}"
            ),
            Self::NotifyOutside {
                queue,
                offset,
                length,
            } => write!(
                f,
                "queue {queue}: its notify register at {offset:#x} lies outside the notification \
                 structure of {length} bytes"
            ),
            Self::NoMagic { read } => write!(
                f,
                "no virtio-mmio registers are there: the magic value reads {read:#x}"
            ),
            Self::UnknownVersion { version } => {
                write!(f, "virtio-mmio version {version} is unknown")
            }
            Self::NoDevice => f.write_str("the virtio-mmio place is empty (device id 0)"),
            Self::RegionTooSmall { size, needed } => write!(
                f,
                "the register region has {size} bytes, {needed} are needed"
            ),
            Self::NoSuchQueue { queue } => write!(f, "the device has no queue {queue}"),
            Self::QueueSizeRefused { queue, size, max } => write!(
                f,
                "queue {queue}: the device takes {max} descriptors at most, not {size}"
            ),
            Self::QueueInUse { queue } => write!(f, "queue {queue} is in use already"),
            Self::AddressTooHigh { queue, address } => {
                write!(f, "queue {queue}: the device cannot address {address:#x}")
            }
            Self::QueueNotTaken { queue, wrote, read } => write!(
                f,
                "queue {queue}: wrote page frame {wrote:#x}, the device kept {read:#x}"
            ),
            Self::QueueNotEnabled { queue } => {
                write!(f, "queue {queue}: the device did not enable it")
            }
            Self::NoNotificationData { queue } => write!(
                f,
                "queue {queue}: a notification with data does not fit its register"
            ),
            Self::NoQueueReset { queue } => write!(
                f,
                "queue {queue} cannot be reset alone: there is no register for it"
            ),
            Self::QueueResetTimeout { queue } => {
                write!(f, "queue {queue}: the device does not finish its reset")
            }
            Self::QueueNotReset { queue } => {
                write!(f, "queue {queue}: the device does not reset it alone")
            }
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
            Self::NoVersion1 => f.write_str(
                "VERSION_1 was not agreed on, and this transport does not work without it",
            ),
            Self::AccessPlatform => f.write_str(
                "the device demands ACCESS_PLATFORM (iommu_platform=on): its memory accesses may \
                 be translated by an IOMMU, which this platform does not drive",
            ),
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
                write!(f, "at {address:#x} lies outside the address space")
            }
        }
    }
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Common => "common configuration",
            Self::Notify => "notification structure",
            Self::Isr => "ISR status",
            Self::Device => "device configuration",
        })
    }
}

impl fmt::Display for StructureProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated { length } => {
                write!(f, "has a truncated capability of {length} bytes")
            }
            Self::Bar { bar, problem } => write!(f, "lies in BAR {bar}, which {problem}"),
            Self::OutsideBar {
                offset,
                length,
                size,
            } => write!(
                f,
                "({length} bytes at {offset:#x}) lies outside its BAR of {size} bytes"
            ),
            Self::TooShort { length, needed } => {
                write!(f, "has {length} bytes, {needed} are needed")
            }
            Self::Misaligned { offset, alignment } => write!(
                f,
                "at {offset:#x} does not begin at a multiple of {alignment}"
            ),
            Self::Multiplier { multiplier } => write!(
                f,
                "has the notify_off_multiplier {multiplier}, which is no even power of 2"
            ),
        }
    }
}

impl core::error::Error for TransportError {}
