//! Where either side is in a packed ring (specification 2.8.1): all that there
//! is to know of wrap counters.

use crate::queue::chain::DESC_F_WRITE;

/// The driver's mark.
const DESC_F_AVAIL: u16 = 1 << 7;
/// The device's mark.
const DESC_F_USED: u16 = 1 << 15;

/// Both.
pub(in crate::queue) const MARKS: u16 = DESC_F_AVAIL | DESC_F_USED;

/// Where the wrap counter is beside a position in the ring: in an event
/// suppression structure, a notification and a trace record.
pub(in crate::queue) const WRAP_COUNTER: u16 = 1 << 15;

/// A place in the ring, and the lap in which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::queue) struct Position {
    /// 0 to size - 1.
    pub(in crate::queue) index: u16,
    /// The wrap counter: on at first, turned over at each lap.
    pub(in crate::queue) wrap: bool,
}

impl Position {
    /// Where both sides begin (specification 2.8.1).
    pub(in crate::queue) const START: Self = Self {
        index: 0,
        wrap: true,
    };

    /// The position of the descriptor with this number, from 0, in a ring of
    /// `size`, a power of two, that is gone round with one after the other.
    #[inline(always)]
    pub(in crate::queue) fn of_count(count: u32, size: u16) -> Self {
        let size = u32::from(size);
        Self {
            // Below the size.
            index: (count & (size - 1)) as u16,
            wrap: count & size == 0,
        }
    }

    /// The position `distance` further on, in a ring of `size`; at most a lap.
    #[inline]
    pub(in crate::queue) fn after(self, distance: u16, size: u16) -> Self {
        // In 32 bits: both may be 2^15.
        let index = u32::from(self.index) + u32::from(distance);
        let wraps = index >= u32::from(size);
        Self {
            index: (index - if wraps { u32::from(size) } else { 0 }) as u16,
            wrap: self.wrap != wraps,
        }
    }

    /// The position `distance` before, at most a lap.
    #[inline]
    pub(in crate::queue) fn before(self, distance: u16, size: u16) -> Self {
        let wraps = self.index < distance;
        Self {
            // Less than twice 2^15.
            index: self.index + if wraps { size } else { 0 } - distance,
            wrap: self.wrap != wraps,
        }
    }

    /// How far this position is after `other`, 0 to two laps less one.
    pub(in crate::queue) fn distance_from(self, other: Self, size: u16) -> u16 {
        let size = u32::from(size);
        let number = |at: Self| u32::from(at.index) + if at.wrap { 0 } else { size };
        ((number(self) + 2 * size - number(other)) % (2 * size)) as u16
    }

    /// The position that a word names, in a ring of `size`; `None` when that
    /// has no such place.
    pub(in crate::queue) fn from_word(word: u16, size: u16) -> Option<Self> {
        let index = word & !WRAP_COUNTER;
        (index < size).then_some(Self {
            index,
            wrap: word & WRAP_COUNTER != 0,
        })
    }

    /// Both in one word, the wrap counter in bit 15.
    #[inline]
    pub(in crate::queue) fn word(self) -> u16 {
        self.index | if self.wrap { WRAP_COUNTER } else { 0 }
    }

    /// Flags that make a descriptor here available (specification 2.8.1), in bits 16 to
    /// 31.
    #[inline(always)]
    pub(in crate::queue) fn available(self, writable: bool) -> u32 {
        let mark = if self.wrap { DESC_F_AVAIL } else { DESC_F_USED };
        u32::from(mark | if writable { DESC_F_WRITE } else { 0 }) << 16
    }

    /// The id and, in bits 16 to 31, the marks of the descriptor here once the
    /// device has used it.
    #[inline(always)]
    pub(in crate::queue) fn used_word(self, id: u32) -> u32 {
        id | if self.wrap { u32::from(MARKS) << 16 } else { 0 }
    }
}
