//! What can go wrong on a virtqueue.

use core::fmt;

use super::ring::{MAX_SIZE, RingLayout};

/// Why a virtqueue operation did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// The queue size is not from 1 to 32768, or not a power of two in the
    /// split layout, which requires that (specification 2.7 and 2.8.10.1); or
    /// it does not hold a single chain.
    BadSize {
        /// Index of the queue.
        queue: u16,
        /// The size that the device gave.
        size: u32,
        /// The layout.
        layout: RingLayout,
    },
    /// There was no memory for the ring.
    NoMemory {
        /// Index of the queue.
        queue: u16,
        /// Pages of 4096 bytes that were needed.
        pages: usize,
    },
    /// Every slot of the ring is taken.
    Full {
        /// Index of the queue.
        queue: u16,
        /// Chains that the ring holds.
        capacity: u16,
    },
    /// The chain is empty or longer than a slot.
    ChainLength {
        /// Index of the queue.
        queue: u16,
        /// Buffers in the chain.
        length: usize,
        /// Descriptors a slot.
        most: usize,
    },
    /// The device broke the protocol; the queue stays unusable until the
    /// device is reset.
    Broken {
        /// Index of the queue.
        queue: u16,
        /// What the device did.
        reason: BrokenReason,
    },
}

/// What the device did to a virtqueue that it may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokenReason {
    /// The used index moved past what is outstanding.
    UsedIndex {
        /// The device's index.
        used_idx: u16,
        /// How far the driver had consumed.
        last_used_idx: u16,
        /// Chains that the device had been shown and had not given back.
        outstanding: u16,
    },
    /// The used id is not a descriptor of this queue.
    IdOutOfRange {
        /// The id.
        id: u32,
        /// Number of descriptors.
        size: u16,
    },
    /// The used id is not the head of an outstanding chain.
    IdNotOutstanding {
        /// The id.
        id: u16,
    },
    /// The used id is not of a chain that can come next where chains come
    /// back in order (`VIRTIO_F_IN_ORDER`).
    NotInOrder {
        /// The id.
        id: u16,
    },
    /// The device says that it wrote more than it was given room for.
    LengthTooLong {
        /// The id.
        id: u16,
        /// Bytes that the device says it wrote.
        length: u32,
        /// Bytes that it could write.
        writable: u32,
    },
    /// The device says that a frame lies in more buffers than it has used.
    NumBuffers {
        /// How many it says.
        num_buffers: u16,
        /// How many it has used.
        used: u16,
    },
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BadSize {
                queue,
                size,
                layout,
            } => {
                let (power, fits) = match layout {
                    RingLayout::Split => ("a power of two ", size.is_power_of_two()),
                    RingLayout::Packed => ("", true),
                };
                if fits && (1..=u32::from(MAX_SIZE)).contains(&size) {
                    write!(f, "queue {queue}: size {size} does not hold a single chain")
                } else {
                    write!(
                        f,
                        "queue {queue}: size {size} is not {power}from 1 to 32768"
                    )
                }
            }
            Self::NoMemory { queue, pages } => {
                write!(f, "queue {queue}: no memory for a ring of {pages} pages")
            }
            Self::Full { queue, capacity } => {
                write!(f, "queue {queue}: full with {capacity} chains")
            }
            Self::ChainLength {
                queue,
                length,
                most,
            } => write!(
                f,
                "queue {queue}: a chain of {length} buffers, 1 to {most} are possible"
            ),
            Self::Broken { queue, reason } => write!(f, "queue {queue} is broken: {reason}"),
        }
    }
}

impl fmt::Display for BrokenReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UsedIndex {
                used_idx,
                last_used_idx,
                outstanding,
            } => write!(
                f,
                "used index {used_idx} is past {last_used_idx} + {outstanding} outstanding"
            ),
            Self::IdOutOfRange { id, size } => {
                write!(f, "used id {id} is out of range 0..{size}")
            }
            Self::IdNotOutstanding { id } => write!(f, "used id {id} is not outstanding"),
            Self::NotInOrder { id } => {
                write!(f, "used id {id} is not one that comes next in order")
            }
            Self::LengthTooLong {
                id,
                length,
                writable,
            } => write!(
                f,
                "used id {id}: length {length}, but only {writable} bytes were writable"
            ),
            Self::NumBuffers { num_buffers, used } => write!(
                f,
                "a frame lies in {num_buffers} buffers, but only {used} are used"
            ),
        }
    }
}

impl core::error::Error for QueueError {}
