//! What can go wrong on a virtqueue.

use super::shape::{MAX_SIZE, RingLayout};

/// Why a virtqueue operation did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The queue size is not from 1 to 32768, or not a power of two in the
    /// split layout, which requires that (specification 2.7 and 2.8.10.1); or
    /// it does not hold a single chain.
    #[error("queue {queue}: size {size} {}", bad_size(*.size, *.layout))]
    BadSize {
        /// Index of the queue.
        queue: u16,
        /// The size that the device gave.
        size: u32,
        /// The layout.
        layout: RingLayout,
    },
    /// There was no memory for the ring.
    #[error("queue {queue}: no memory for a ring of {pages} pages")]
    NoMemory {
        /// Index of the queue.
        queue: u16,
        /// Pages of 4096 bytes that were needed.
        pages: usize,
    },
    /// The ring holds no more chains.
    #[error("queue {queue}: full with {capacity} chains")]
    Full {
        /// Index of the queue.
        queue: u16,
        /// Chains that the ring holds.
        capacity: u16,
    },
    /// The chain is empty or longer than the ring takes.
    #[error("queue {queue}: a chain of {length} buffers, 1 to {most} are possible")]
    ChainLength {
        /// Index of the queue.
        queue: u16,
        /// Buffers in the chain.
        length: usize,
        /// Buffers that the longest has.
        most: usize,
    },
    /// The device broke the protocol; the queue stays unusable until the device is reset.
    #[error("queue {queue} is broken: {reason}")]
    Broken {
        /// Index of the queue.
        queue: u16,
        /// What the device did.
        reason: BrokenReason,
    },
}

/// What the device did to a virtqueue that it may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BrokenReason {
    /// The used index moved past what is outstanding.
    #[error("used index {used_idx} is past {last_used_idx} + {outstanding} outstanding")]
    UsedIndex {
        /// The device's index.
        used_idx: u16,
        /// How far the driver had consumed.
        last_used_idx: u16,
        /// Chains that the device had been shown and had not given back.
        outstanding: u16,
    },
    /// The used id is not a descriptor of this queue.
    #[error("used id {id} is out of range 0..{size}")]
    IdOutOfRange {
        /// The id.
        id: u32,
        /// Number of descriptors.
        size: u16,
    },
    /// The used id is not the head of an outstanding chain.
    #[error("used id {id} is not outstanding")]
    IdNotOutstanding {
        /// The id.
        id: u16,
    },
    /// The used id is not of a chain that can come next where chains come
    /// back in order (`VIRTIO_F_IN_ORDER`).
    #[error("used id {id} is not one that comes next in order")]
    NotInOrder {
        /// The id.
        id: u16,
    },
    /// The device says that it wrote more than it was given room for.
    #[error("used id {id}: length {length}, but only {writable} bytes were writable")]
    LengthTooLong {
        /// The id.
        id: u16,
        /// Bytes that the device says it wrote.
        length: u32,
        /// Bytes that it could write.
        writable: u32,
    },
    /// The device gives back nothing of what it has.
    #[error("the device has {outstanding} chains and gave none back for {looks} s")]
    Stuck {
        /// Chains that it has.
        outstanding: u16,
        /// Looks at which they had not moved, a second apart.
        looks: u8,
    },
    /// The device uses buffers and does not interrupt.
    #[error("buffers were used without an interrupt, {looks} times in a row")]
    NoInterrupt {
        /// Looks in a row that found some, a second apart.
        looks: u8,
    },
    /// The device says that a frame lies in more buffers than it has used.
    #[error("a frame lies in {num_buffers} buffers, but only {used} are used")]
    NumBuffers {
        /// How many it says.
        num_buffers: u16,
        /// How many it has used.
        used: u16,
    },
}

/// What is wrong with a size.
fn bad_size(size: u32, layout: RingLayout) -> &'static str {
    let fits = (1..=u32::from(MAX_SIZE)).contains(&size);
    match layout {
        RingLayout::Split if !fits || !size.is_power_of_two() => {
            "is not a power of two from 1 to 32768"
        }
        RingLayout::Packed if !fits => "is not from 1 to 32768",
        _ => "does not hold a single chain",
    }
}

impl QueueError {
    /// Why nothing can be added.
    #[cold]
    pub(super) fn refusal(queue: u16, broken: Option<BrokenReason>, capacity: u16) -> Self {
        match broken {
            Some(reason) => Self::Broken { queue, reason },
            None => Self::Full { queue, capacity },
        }
    }
}
