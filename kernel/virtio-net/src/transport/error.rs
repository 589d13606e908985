//! What a device can get wrong at its registers.

use core::fmt;

use virtio_drivers::PhysAddr;

/// A register access that did not have the effect that it must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The BAR that holds the registers is missing, of the wrong kind, not
    /// assigned by the firmware, or too small.
    #[error("BAR {bar} {problem}")]
    UnusableBar {
        /// Index of the BAR, 0 to 5.
        bar: u8,
        /// What is wrong with it.
        problem: BarProblem,
    },
    /// The device is not one of this transport.
    #[error("{vendor:04x}:{device:04x} is not a device of this transport")]
    NotThisTransport {
        /// PCI vendor id.
        vendor: u16,
        /// PCI device id.
        device: u16,
    },
    /// The PCI subsystem id, or what stands for it, names no kind of virtio
    /// device.
    #[error("id {id} names no kind of virtio device")]
    UnknownDeviceType {
        /// The id.
        id: u16,
    },
    /// A structure that a virtio-pci device must have is nowhere to be found
    /// (specification 4.1.4).
    #[error("no capability tells of the {structure}")]
    NoStructure {
        /// Which one.
        structure: Structure,
    },
    /// Every capability for a structure is wrong; this is what is wrong with
    /// the last (specification 4.1.4).
    #[error("the {structure} (capability at {capability:#x}) {problem}")]
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
    #[error(
        "queue {queue}: its notify register at {offset:#x} lies outside the notification \
         structure of {length} bytes"
    )]
    NotifyOutside {
        /// Index of the queue.
        queue: u16,
        /// Offset of its register in the structure, in bytes.
        offset: u64,
        /// Length of the structure in bytes.
        length: u32,
    },
    /// The `Hal` could not map registers.
    #[error("{size} bytes of registers at {address:#x} cannot be mapped")]
    Unmappable {
        /// Their physical address.
        address: PhysAddr,
        /// Their length in bytes.
        size: usize,
    },
    /// There are no virtio-mmio registers at the address: not the magic value
    /// (specification 4.2.2).
    #[error("no virtio-mmio registers are there: the magic value reads {read:#x}")]
    NoMagic {
        /// What the magic register reads as.
        read: u32,
    },
    /// The virtio-mmio device is of a version that nobody has specified.
    #[error("virtio-mmio version {version} is unknown")]
    UnknownVersion {
        /// The version.
        version: u32,
    },
    /// Device id 0: a virtio-mmio place with no device in it (specification
    /// 4.2.3.1.1).
    #[error("the virtio-mmio place is empty (device id 0)")]
    NoDevice,
    /// The region is too small for the registers.
    #[error("the register region has {size} bytes, {needed} are needed")]
    RegionTooSmall {
        /// Its size in bytes.
        size: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// The device has no such queue.
    #[error("the device has no queue {queue}")]
    NoSuchQueue {
        /// Index of the queue.
        queue: u16,
    },
    /// The device does not take a ring of this size.
    #[error("queue {queue}: the device takes {max} descriptors at most, not {size}")]
    QueueSizeRefused {
        /// Index of the queue.
        queue: u16,
        /// Number of descriptors of the ring.
        size: u16,
        /// The most that the device takes.
        max: u32,
    },
    /// Somebody has set the queue up already.
    #[error("queue {queue} is in use already")]
    QueueInUse {
        /// Index of the queue.
        queue: u16,
    },
    /// The ring's address does not fit the register.
    #[error("queue {queue}: the device cannot address {address:#x}")]
    AddressTooHigh {
        /// Index of the queue.
        queue: u16,
        /// The address.
        address: PhysAddr,
    },
    /// The device did not keep the ring's address.
    #[error("queue {queue}: wrote page frame {wrote:#x}, the device kept {read:#x}")]
    QueueNotTaken {
        /// Index of the queue.
        queue: u16,
        /// What was written.
        wrote: u32,
        /// What was read back.
        read: u32,
    },
    /// The device did not enable the queue.
    #[error("queue {queue}: the device did not enable it")]
    QueueNotEnabled {
        /// Index of the queue.
        queue: u16,
    },
    /// The register to notify the device by has no room for the 32 bits of
    /// `VIRTIO_F_NOTIFICATION_DATA`, which was agreed on (specification
    /// 4.1.4.4.1).
    #[error("queue {queue}: a notification with data does not fit its register")]
    NoNotificationData {
        /// Index of the queue.
        queue: u16,
    },
    /// The transport has no register to reset a single queue with.
    #[error("queue {queue} cannot be reset alone: there is no register for it")]
    NoQueueReset {
        /// Index of the queue.
        queue: u16,
    },
    /// The device did not finish the reset of a queue in the allowed number of
    /// reads.
    #[error("queue {queue}: the device does not finish its reset")]
    QueueResetTimeout {
        /// Index of the queue.
        queue: u16,
    },
    /// The device says that the reset of a queue is over, and the queue is
    /// still enabled: it has not done it.
    #[error("queue {queue}: the device does not reset it alone")]
    QueueNotReset {
        /// Index of the queue.
        queue: u16,
    },
    /// The device has no MSI-X, or not as many entries as needed.
    #[error("{needed} MSI-X vectors needed, the device has {available}")]
    TooFewVectors {
        /// Entries needed.
        needed: u16,
        /// Entries that the device has.
        available: u16,
    },
    /// The device answered `VIRTIO_MSI_NO_VECTOR` or another vector when one
    /// was assigned: it has no resources for it (specification 4.1.5.1.2.2).
    #[error(fmt = vector_not_taken)]
    VectorNotTaken {
        /// Whose vector: `None` for configuration changes, else the queue.
        queue: Option<u16>,
        /// What was written.
        wrote: u16,
        /// What was read back.
        read: u16,
    },
    /// The device's registers read as all ones: it was taken out, or does not
    /// decode its addresses.
    #[error("the device is gone: its registers read as all ones")]
    Gone,
    /// The device did not finish its reset in the allowed number of reads.
    #[error("the device does not finish its reset (status {status:#x})")]
    ResetTimeout {
        /// The status that it still shows.
        status: u32,
    },
    /// The device did not accept the feature bits (specification 3.1.1).
    #[error("the device refused the features {features:#x}")]
    FeaturesRefused {
        /// What was written.
        features: u64,
    },
    /// `VIRTIO_F_VERSION_1` was not agreed on, without which this transport
    /// does not work: the device did not offer it, or the driver was told to
    /// refuse it (specification 6.1).
    #[error("VERSION_1 was not agreed on, and this transport does not work without it")]
    NoVersion1,
    /// The device offers `VIRTIO_F_ACCESS_PLATFORM`, so its memory accesses
    /// may be translated, and the `Hal` did not say that it knows how, or the
    /// driver was told to refuse the feature (specification 6.1).
    #[error(
        "the device demands ACCESS_PLATFORM (iommu_platform=on): its memory accesses may \
         be translated by an IOMMU, which this platform does not drive"
    )]
    AccessPlatform,
}

/// Says whose vector it was.
fn vector_not_taken(
    queue: &Option<u16>,
    wrote: &u16,
    read: &u16,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    match queue {
        Some(queue) => write!(f, "queue {queue}")?,
        None => f.write_str("configuration changes")?,
    }
    write!(f, ": wrote vector {wrote}, the device kept {read:#x}")
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BarProblem {
    /// There is none, or none that can be read.
    #[error("is missing")]
    Missing,
    /// It is memory where ports are needed, or the reverse.
    #[error("is of the wrong kind (memory or ports)")]
    WrongKind,
    /// Its address is 0: the firmware has not assigned one.
    #[error("has no address: the firmware did not assign one")]
    Unassigned,
    /// It is smaller than what it must hold.
    #[error("has {size} bytes, {needed} are needed")]
    TooSmall {
        /// Its size in bytes.
        size: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// Its address lies beyond the port space of 64 KiB, or it wraps.
    #[error("at {address:#x} lies outside the address space")]
    OutOfRange {
        /// The address.
        address: u64,
    },
    /// It is in ports, and the kernel has given none that reach it.
    #[error("is in ports, which the kernel cannot access")]
    OutOfReach,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StructureProblem {
    /// The capability reaches beyond the configuration space, or is shorter
    /// than its kind must be.
    #[error("has a truncated capability of {length} bytes")]
    Truncated {
        /// Its `cap_len` in bytes.
        length: u8,
    },
    /// The BAR that it names cannot be used.
    #[error("lies in BAR {bar}, which {problem}")]
    Bar {
        /// Index of the BAR, 0 to 5.
        bar: u8,
        /// What is wrong with it.
        problem: BarProblem,
    },
    /// The structure reaches beyond its BAR.
    #[error("({length} bytes at {offset:#x}) lies outside its BAR of {size} bytes")]
    OutsideBar {
        /// Offset of the structure in the BAR, in bytes.
        offset: u32,
        /// Length of the structure in bytes.
        length: u32,
        /// Size of the BAR in bytes.
        size: u64,
    },
    /// The structure is shorter than its registers.
    #[error("has {length} bytes, {needed} are needed")]
    TooShort {
        /// Length of the structure in bytes.
        length: u32,
        /// Bytes needed.
        needed: u32,
    },
    /// The structure does not begin at a multiple of what it must.
    #[error("at {offset:#x} does not begin at a multiple of {alignment}")]
    Misaligned {
        /// Offset of the structure in the BAR, in bytes.
        offset: u32,
        /// The alignment in bytes.
        alignment: u32,
    },
    /// `notify_off_multiplier` is neither 0 nor an even power of 2.
    #[error("has the notify_off_multiplier {multiplier}, which is no even power of 2")]
    Multiplier {
        /// The multiplier in bytes.
        multiplier: u32,
    },
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
