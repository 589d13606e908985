//! The virtqueues of a timeline.

use serde::{Deserialize, Serialize};

use super::is_false;

/// A virtqueue's memory at a step, as the records of both sides tell it: the
/// driver's of what it wrote and read, the device's of what it took and gave
/// back. What no record told is `None`, or not in its list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSnapshot {
    /// The queue's index.
    pub queue: u16,
    /// `receive` or `transmit`, or `control`.
    pub name: String,
    /// Number of descriptors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u16>,
    /// The memory.
    #[serde(flatten)]
    pub memory: RingMemory,
    /// Chains that were given to the device and not taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outstanding: Option<u16>,
    /// What this step changed.
    pub changed: Vec<Part>,
    /// What this step wrote as it was before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub written: Vec<Part>,
    /// What this step only read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read: Vec<Part>,
}

/// The memory that both sides share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "kebab-case")]
pub enum RingMemory {
    /// 2.7 Split Virtqueues.
    Split {
        /// Descriptors that the window's records touch, by their number.
        descriptors: Vec<Descriptor>,
        /// What the driver writes.
        avail: AvailRing,
        /// What the device writes.
        used: UsedRing,
    },
    /// 2.8 Packed Virtqueues.
    Packed {
        /// Descriptors that the window's records touch, by their place.
        descriptors: Vec<PackedDescriptor>,
        /// Where the driver makes the next descriptor available, with its wrap
        /// counter. It is not in memory: each side counts for itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next_avail: Option<RingPlace>,
        /// Where the device writes the next used descriptor, likewise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next_used: Option<RingPlace>,
        /// When the driver wants to be told: it writes, the device reads.
        driver_event: EventSuppression,
        /// When the device wants to be told: it writes, the driver reads.
        device_event: EventSuppression,
    },
}

/// How far a chain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChainProgress {
    /// Written, and not shown to the device yet.
    Added,
    /// The device may take it.
    Available,
    /// The device has taken it.
    Taken,
    /// The device has given it back.
    Used,
    /// The driver has it again.
    Reclaimed,
}

/// A descriptor of a split queue: 2.7.5 The Virtqueue Descriptor Table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its number.
    pub number: u16,
    /// Address of the buffer as the device sees it; that of a table of
    /// descriptors is not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<u64>,
    /// Length of the buffer in bytes.
    pub length: u32,
    /// Whether the device writes the buffer (`VIRTQ_DESC_F_WRITE`).
    pub device_writes: bool,
    /// The buffer is a table of descriptors (`VIRTQ_DESC_F_INDIRECT`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub indirect: bool,
    /// The next descriptor of the chain (`VIRTQ_DESC_F_NEXT`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u16>,
    /// How far its chain is.
    pub progress: ChainProgress,
}

/// A descriptor of a packed queue: 2.8.13 The Virtqueue Descriptor Format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedDescriptor {
    /// Its place in the ring.
    pub place: u16,
    /// Address of the buffer as the device sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<u64>,
    /// Length of the buffer in bytes; of a used one, bytes that were written.
    pub length: u32,
    /// The buffer id, once it is written: with the flags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u16>,
    /// `VIRTQ_DESC_F_AVAIL`, once it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avail: Option<bool>,
    /// `VIRTQ_DESC_F_USED`, once it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<bool>,
    /// `VIRTQ_DESC_F_WRITE`, once it is written. The device writes its flags anew, and
    /// no record tells what but `AVAIL` and `USED` is in them then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_writes: Option<bool>,
    /// `VIRTQ_DESC_F_INDIRECT`
    #[serde(default, skip_serializing_if = "is_false")]
    pub indirect: bool,
    /// `VIRTQ_DESC_F_NEXT`
    #[serde(default, skip_serializing_if = "is_false")]
    pub next: bool,
    /// How far its chain is.
    pub progress: ChainProgress,
}

/// A place in a packed ring: 2.8.1 Driver and Device Ring Wrap Counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingPlace {
    /// Number of the descriptor.
    pub index: u16,
    /// The wrap counter there.
    pub wrap: bool,
}

/// One of the two areas of 2.8.14 Event Suppression Structure Format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventSuppression {
    /// 0 always, 1 never, 2 at the descriptor of `place`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<u16>,
    /// The descriptor, where flags are 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<RingPlace>,
}

/// What the driver writes: 2.7.6 The Virtqueue Available Ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AvailRing {
    /// `flags`: 1 asks for no interrupt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<u16>,
    /// `idx`: where the driver will put the next entry, modulo the size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idx: Option<u16>,
    /// Entries that the window's records touch.
    pub entries: Vec<AvailEntry>,
    /// `used_event`: the used index at which an interrupt is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_event: Option<u16>,
}

/// An entry of the available ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AvailEntry {
    /// Its place.
    pub slot: u16,
    /// The head of the chain.
    pub head: u16,
}

/// What the device writes: 2.7.8 The Virtqueue Used Ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedRing {
    /// `flags`: 1 asks for no notification. As the driver read it last: the
    /// device leaves no record when it writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<u16>,
    /// `idx`: where the device will put the next entry, modulo the size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idx: Option<u16>,
    /// Entries that the window's records touch.
    pub entries: Vec<UsedEntry>,
    /// `avail_event`: the available index at which a notification is wanted,
    /// as the driver read it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avail_event: Option<u16>,
}

/// An entry of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedEntry {
    /// Its place.
    pub slot: u16,
    /// The head of the chain (`id`).
    pub id: u16,
    /// Bytes that the device wrote (`len`).
    pub length: u32,
}

/// A part of a virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// `addr` of this descriptor.
    DescriptorAddress(u16),
    /// `len` of this descriptor.
    DescriptorLength(u16),
    /// `id` of this descriptor of a packed ring.
    DescriptorId(u16),
    /// `flags` of this descriptor; in a split ring with `next`.
    DescriptorFlags(u16),
    /// `avail->flags`
    AvailFlags,
    /// `avail->idx`
    AvailIndex,
    /// `avail->ring[]` at this place.
    AvailEntry(u16),
    /// `used_event`
    UsedEvent,
    /// `used->flags`
    UsedFlags,
    /// `used->idx`
    UsedIndex,
    /// `used->ring[]` at this place.
    UsedEntry(u16),
    /// `avail_event`
    AvailEvent,
    /// The driver's place in a packed ring, and its wrap counter.
    NextAvail,
    /// The device's.
    NextUsed,
    /// The driver's event suppression structure.
    DriverEvent,
    /// The device's.
    DeviceEvent,
}

impl Part {
    /// The descriptor that it is of.
    pub fn descriptor(self) -> Option<u16> {
        match self {
            Self::DescriptorAddress(number)
            | Self::DescriptorLength(number)
            | Self::DescriptorId(number)
            | Self::DescriptorFlags(number) => Some(number),
            _ => None,
        }
    }
}
