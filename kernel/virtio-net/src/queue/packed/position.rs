//! Where either side is in a packed ring (specification 2.8.1): all that there
//! is to know of wrap counters.

/// The driver's mark.
const DESC_F_AVAIL: u16 = 1 << 7;
/// The device's mark.
const DESC_F_USED: u16 = 1 << 15;

/// Where the wrap counter is beside a position in the ring: in an event
/// suppression structure, a notification and a trace record.
pub(super) const WRAP_COUNTER: u16 = 1 << 15;

/// A place in the ring, and the lap in which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// 0 to size - 1.
    pub(super) index: u16,
    /// The wrap counter: on at first, turned over at each lap.
    pub(super) wrap: bool,
}

impl Position {
    /// Where both sides begin (specification 2.8.1).
    pub(super) const START: Self = Self {
        index: 0,
        wrap: true,
    };

    /// The position `distance` further on, in a ring of `size`; at most a lap.
    #[inline]
    pub(super) fn after(self, distance: u16, size: u16) -> Self {
        // In 32 bits: both may be 2^15.
        let index = u32::from(self.index) + u32::from(distance);
        match index.checked_sub(u32::from(size)) {
            Some(index) => Self {
                index: index as u16,
                wrap: !self.wrap,
            },
            None => Self {
                index: index as u16,
                wrap: self.wrap,
            },
        }
    }

    /// The position `distance` before, at most a lap.
    #[inline]
    pub(super) fn before(self, distance: u16, size: u16) -> Self {
        match self.index.checked_sub(distance) {
            Some(index) => Self {
                index,
                wrap: self.wrap,
            },
            // At most `size`, which is at most 2^15.
            None => Self {
                index: self.index + (size - distance),
                wrap: !self.wrap,
            },
        }
    }

    /// How far this position is after `other`, 0 to two laps less one.
    pub(super) fn distance_from(self, other: Self, size: u16) -> u16 {
        let same_lap = self.wrap == other.wrap;
        match self.index.checked_sub(other.index) {
            Some(distance) if same_lap => distance,
            // At most `2 * size - 1`, which is below 2^16.
            Some(distance) => distance + size,
            None if same_lap => (size - other.index) + size + self.index,
            None => (size - other.index) + self.index,
        }
    }

    /// The position that a word names, in a ring of `size`; `None` when that
    /// has no such place.
    pub(super) fn from_word(word: u16, size: u16) -> Option<Self> {
        let index = word & !WRAP_COUNTER;
        (index < size).then_some(Self {
            index,
            wrap: word & WRAP_COUNTER != 0,
        })
    }

    /// Both in one word, the wrap counter in bit 15.
    #[inline]
    pub(super) fn word(self) -> u16 {
        self.index | if self.wrap { WRAP_COUNTER } else { 0 }
    }

    /// Flags that make a descriptor here available (specification 2.8.1).
    #[inline]
    pub(super) fn available(self) -> u16 {
        if self.wrap { DESC_F_AVAIL } else { DESC_F_USED }
    }

    /// Whether these flags say that the descriptor here was used.
    #[inline]
    pub(super) fn is_used_by(self, flags: u16) -> bool {
        let both = DESC_F_AVAIL | DESC_F_USED;
        flags & both == if self.wrap { both } else { 0 }
    }
}
