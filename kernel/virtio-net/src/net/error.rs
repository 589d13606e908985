//! What can go wrong with the network device.

use core::fmt;

use super::control::ControlError;
use super::features::Features;
use crate::queue::QueueError;
use crate::transport::TransportError;
use crate::vectors::FindVqsError;

/// Why the network device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetError {
    /// The device is not a network device.
    NotNetwork {
        /// What it is.
        device_type: virtio_drivers::transport::DeviceType,
    },
    /// A register did not do what it must.
    Transport(TransportError),
    /// No rung of the interrupt ladder could be taken, not even polling.
    FindVqs(FindVqsError),
    /// A queue refused or broke.
    Queue(QueueError),
    /// A command to the device was not carried out.
    Control(ControlError),
    /// There was no memory for buffers.
    NoBuffers {
        /// Index of the queue.
        queue: u16,
        /// Buffers that were needed.
        count: u16,
        /// Bytes that each takes.
        size: usize,
    },
    /// The device's configuration could not be read.
    Config {
        /// Offset of the field in bytes.
        offset: usize,
    },
    /// There is no such queue pair, or it has been taken.
    NoSuchPair {
        /// Its number, from 0.
        number: usize,
    },
    /// The address cannot be a station's: it is multicast, or zero.
    InvalidMac {
        /// The address.
        mac: [u8; 6],
    },
    /// There is no such VLAN; ids are 0 to 4095.
    InvalidVlan {
        /// The id.
        id: u16,
    },
    /// The device cannot have this MTU.
    InvalidMtu {
        /// What was asked for, in bytes.
        mtu: u16,
        /// What is possible at least.
        least: u16,
        /// What is possible at most.
        most: u16,
    },
    /// The device does not send what it was given.
    NotSent,
    /// After a reset the device does not offer the same offloads as before.
    OffloadsChanged {
        /// Those that came or went.
        features: Features,
    },
    /// The device asked to be reset (`DEVICE_NEEDS_RESET`, specification
    /// 2.1.2).
    NeedsReset,
    /// The device is not open.
    NotOpen,
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNetwork { device_type } => {
                write!(
                    f,
                    "the device is of type {device_type:?}, not a network device"
                )
            }
            Self::Transport(error) => error.fmt(f),
            Self::FindVqs(error) => error.fmt(f),
            Self::Queue(error) => error.fmt(f),
            Self::Control(error) => error.fmt(f),
            Self::NoBuffers { queue, count, size } => write!(
                f,
                "queue {queue}: no memory for {count} buffers of {size} bytes"
            ),
            Self::Config { offset } => write!(
                f,
                "the device's configuration cannot be read at offset {offset}"
            ),
            Self::NoSuchPair { number } => {
                write!(f, "there is no queue pair {number} to be taken")
            }
            Self::InvalidMac { mac } => {
                write!(f, "{mac:02x?} cannot be the hardware address of a device")
            }
            Self::InvalidVlan { id } => write!(f, "there is no VLAN {id}; ids are 0 to 4095"),
            Self::InvalidMtu { mtu, least, most } => {
                write!(f, "an MTU of {mtu} bytes; {least} to {most} are possible")
            }
            Self::NotSent => f.write_str("the device does not send what it was given"),
            Self::OffloadsChanged { features } => write!(
                f,
                "after its reset the device does not agree to what it did before: {features}"
            ),
            Self::NeedsReset => f.write_str("the device asks to be reset"),
            Self::NotOpen => f.write_str("the device is not open"),
        }
    }
}

impl core::error::Error for NetError {}

impl From<TransportError> for NetError {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl From<FindVqsError> for NetError {
    fn from(error: FindVqsError) -> Self {
        Self::FindVqs(error)
    }
}

impl From<ControlError> for NetError {
    fn from(error: ControlError) -> Self {
        Self::Control(error)
    }
}

impl From<QueueError> for NetError {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}
