//! How driver and device tell each other when they want to hear of progress.

/// Which way driver and device tell each other when they want to hear of
/// progress (specification 2.7.7 and 2.7.10, packed 2.8.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventMode {
    /// One flag a side: all or nothing (specification 2.7.7 and 2.8.10,
    /// without `VIRTIO_F_EVENT_IDX`).
    Flags,
    /// Each side names the index at which it wants to hear (`VIRTIO_F_EVENT_IDX`).
    EventIdx,
}

impl EventMode {
    /// Bit 48 of a trace record's argument: by event, not by flag.
    #[inline]
    pub(super) const fn trace_bit(self) -> u64 {
        match self {
            Self::Flags => 0,
            Self::EventIdx => 1 << 48,
        }
    }
}

/// Tells whether a device that asked to be told at `event` must be told now
/// that the index moved from `old` to `new`; all three wrap at 2^16.
///
/// This is Linux's `vring_need_event` (specification 2.7.7 and 2.7.10): true iff
/// `event` lies in the half-open interval of entries `old .. new`.
#[doc(alias = "vring_need_event")]
#[inline]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
