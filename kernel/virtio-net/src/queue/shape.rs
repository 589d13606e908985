//! The form of a ring, as it was negotiated.

use super::event::EventMode;

/// Largest size of a virtqueue in descriptors, in either layout
/// (specification 2.7 and 2.8.10.1).
pub const MAX_SIZE: u16 = 1 << 15;

/// How a ring lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RingLayout {
    /// Three parts, one of them written by the device (specification 2.7).
    #[default]
    Split,
    /// One ring that both sides write (specification 2.8, `VIRTIO_F_RING_PACKED`).
    Packed,
}

/// What was negotiated about the form of the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingShape {
    /// How the ring lies in memory.
    pub layout: RingLayout,
    /// How the two sides tell each other of events.
    pub mode: EventMode,
    /// Buffers that the longest chain has, 1 to 32768.
    pub chain: u16,
    /// Whether a chain of several buffers goes into a table of its own
    /// (`VIRTIO_F_INDIRECT_DESC`).
    pub indirect: bool,
    /// Whether the device uses buffers in the order in which it got them
    /// (`VIRTIO_F_IN_ORDER`).
    pub in_order: bool,
    /// Whether a notification says how far the driver has come
    /// (`VIRTIO_F_NOTIFICATION_DATA`).
    pub notification_data: bool,
    /// Largest number of descriptors that the driver wants, 1 to 32768. The legacy
    /// interface leaves no choice: the device's size is taken there.
    pub largest: u16,
}

impl RingShape {
    /// A split ring for chains of up to `chain` buffers, without any feature
    /// but that of `mode`.
    pub const fn split(chain: u16, mode: EventMode) -> Self {
        Self {
            layout: RingLayout::Split,
            mode,
            chain,
            indirect: false,
            in_order: false,
            notification_data: false,
            largest: MAX_SIZE,
        }
    }

    /// The same with a packed ring.
    pub const fn packed(chain: u16, mode: EventMode) -> Self {
        Self {
            layout: RingLayout::Packed,
            ..Self::split(chain, mode)
        }
    }

    /// The size that is taken of a device that offers up to `max` descriptors
    /// and lets the driver choose (specification 4.1.5.1.3): the power of two
    /// below, which a split ring must have and a positional one counts with.
    pub fn size(&self, max: u32) -> u32 {
        let size = max.min(u32::from(self.largest));
        size.checked_ilog2().map_or(0, |log| 1 << log)
    }
}
