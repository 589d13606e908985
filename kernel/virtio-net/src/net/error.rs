//! What can go wrong with the network device.

use super::features::Features;
use crate::queue::QueueError;
use crate::transport::TransportError;
use crate::vectors::FindVqsError;

/// Why the network device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The device is not a network device.
    #[error("the device is of type {device_type:?}, not a network device")]
    NotNetwork {
        /// What it is.
        device_type: virtio_drivers::transport::DeviceType,
    },
    /// A register did not do what it must.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// No rung of the interrupt ladder could be taken, not even polling.
    #[error(transparent)]
    FindVqs(#[from] FindVqsError),
    /// A queue refused or broke.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A command to the device was not carried out.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// There was no memory for buffers.
    #[error("queue {queue}: no memory for {count} buffers of {size} bytes")]
    NoBuffers {
        /// Index of the queue.
        queue: u16,
        /// Buffers that were needed.
        count: u16,
        /// Bytes that each takes.
        size: usize,
    },
    /// The device's configuration could not be read.
    #[error("the device's configuration cannot be read at offset {offset}")]
    Config {
        /// Offset of the field in bytes.
        offset: usize,
    },
    /// There is no such queue pair, or it has been taken.
    #[error("there is no queue pair {number} to be taken")]
    NoSuchPair {
        /// Its number, from 0.
        number: usize,
    },
    /// The address cannot be a station's: it is multicast, or zero.
    #[error("{mac:02x?} cannot be the hardware address of a device")]
    InvalidMac {
        /// The address.
        mac: [u8; 6],
    },
    /// There is no such VLAN; ids are 0 to 4095.
    #[error("there is no VLAN {id}; ids are 0 to 4095")]
    InvalidVlan {
        /// The id.
        id: u16,
    },
    /// The device cannot have this MTU.
    #[error("an MTU of {mtu} bytes; {least} to {most} are possible")]
    InvalidMtu {
        /// What was asked for, in bytes.
        mtu: u16,
        /// What is possible at least.
        least: u16,
        /// What is possible at most.
        most: u16,
    },
    /// The device does not send what it was given.
    #[error("the device does not send what it was given")]
    NotSent,
    /// After a reset the device does not offer the same offloads as before.
    #[error("after its reset the device does not agree to what it did before: {features}")]
    OffloadsChanged {
        /// Those that came or went.
        features: Features,
    },
    /// The device asked to be reset (`DEVICE_NEEDS_RESET`, specification
    /// 2.1.2).
    #[error("the device asks to be reset")]
    NeedsReset,
    /// The device is not open.
    #[error("the device is not open")]
    NotOpen,
}

/// Why a command was not carried out (specification 5.1.6.5: the device answers
/// `VIRTIO_NET_OK` or `VIRTIO_NET_ERR`; Linux `virtnet_send_command`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The feature that the command needs was not agreed on.
    #[error("command {command} needs {feature}, which was not negotiated")]
    NotNegotiated {
        /// The command's name in the specification.
        command: &'static str,
        /// The feature.
        feature: Features,
    },
    /// The data is too long for the queue's memory. Nothing was sent.
    #[error("command {command} is too long")]
    TooLong {
        /// The command's name in the specification.
        command: &'static str,
    },
    /// The device answered that it did not do it.
    #[error("the device refused command {command} (ack {ack})")]
    Refused {
        /// The command's name in the specification.
        command: &'static str,
        /// The answer; `VIRTIO_NET_ERR` is 1.
        ack: u8,
    },
    /// The device did not answer in time, or broke. The control queue is given up.
    #[error("the device does not answer command {command}; the control queue is given up")]
    NoAnswer {
        /// The command's name in the specification.
        command: &'static str,
    },
    /// The device broke the queue's protocol. The control queue is given up.
    #[error("{0}; the control queue is given up")]
    Queue(QueueError),
    /// The control queue was given up before, until the device is opened again.
    #[error("no command {command}: the control queue was given up")]
    GivenUp {
        /// The command's name in the specification.
        command: &'static str,
    },
}
