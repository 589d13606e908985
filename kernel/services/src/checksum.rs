//! The Internet checksum (RFC 1071), many bytes at a time.

pub(crate) const ETHERNET: usize = 14;
pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// A sum in one's complement, byte order as in memory: the sum does not care
/// (RFC 1071, 2 B). It is folded to 16 bits only when it is asked for; a packet's
/// words do not overflow it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum(u128);

impl Sum {
    /// The sum over a slice that begins at an even offset of the packet.
    #[inline(always)]
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let (mut sum, mut carries) = (0u64, 0u64);
        // One instruction a word: each addition takes in the carry of the one
        // before it, which has the same weight (RFC 1071, 2 C).
        let mut add = |words: &[u8]| {
            let mut carry = false;
            for word in words.as_chunks().0 {
                (sum, carry) = sum.carrying_add(u64::from_ne_bytes(*word), carry);
            }
            carries += u64::from(carry);
        };
        let (blocks, mut rest) = bytes.as_chunks::<128>();
        for block in blocks {
            add(block);
        }
        macro_rules! step {
            ($($bytes:literal)+) => {
                $(if let Some((words, after)) = rest.split_first_chunk::<$bytes>() {
                    add(words);
                    rest = after;
                })+
            };
        }
        // One step a bit of the length: a loop would be unrolled.
        step!(64 32 16 8);
        let mut sum = u128::from(carries) << 64 | u128::from(sum);
        if let Some((word, after)) = rest.split_first_chunk() {
            sum += u128::from(u32::from_ne_bytes(*word));
            rest = after;
        }
        if let Some((word, after)) = rest.split_first_chunk() {
            sum += u128::from(u16::from_ne_bytes(*word));
            rest = after;
        }
        if let Some(last) = rest.first() {
            sum += u128::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(sum)
    }

    /// The sum over a header, whose length is known when this is compiled.
    #[inline]
    pub(crate) fn of_header<const N: usize>(bytes: &[u8; N]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut sum = 0;
        for word in words {
            sum += u128::from(u64::from_ne_bytes(*word));
        }
        Self(sum).plus(Self::of(rest))
    }

    #[inline]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The sum over the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1), of which
    /// `addresses` is the sum over both addresses.
    #[inline]
    pub(crate) fn pseudo_header(addresses: Self, protocol: u8, length: usize) -> Self {
        // IPv6 has a length of 32 bits there, but no packet here is that long.
        let rest = u32::from((length as u16).to_be()) + u32::from(u16::from(protocol).to_be());
        addresses.plus(Self(rest.into()))
    }

    /// Whether this is the sum over something with a right checksum in it.
    #[inline]
    pub(crate) fn is_right(self) -> bool {
        self.fold() == 0xffff
    }

    /// The checksum that makes it right, as it is in memory.
    #[inline]
    pub(crate) fn checksum(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }

    /// The same for UDP, where 0 means that there is none (RFC 768).
    #[inline]
    pub(crate) fn udp_checksum(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            checksum => checksum,
        }
    }

    /// Brings the carries back in at the bottom.
    #[inline]
    fn fold(self) -> u16 {
        let (sum, carry) = (self.0 as u64).overflowing_add((self.0 >> 64) as u64);
        let sum = sum + u64::from(carry);
        // A word and itself with its halves swapped: the upper half then has the
        // sum of both, and the carry out of the lower one.
        let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
        (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// RFC 1071, 4.1, in the plainest way.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).checksum(), (!0xddf2u16).to_be_bytes());
    }

    #[test]
    fn the_greatest_sums_are_folded() {
        for length in [0, 1, 2, 7, 8, 9, 128, 255, 256, 65_535] {
            let bytes = alloc::vec![0xff; length];
            let expected = plain(&bytes).to_be_bytes();
            assert_eq!(Sum::of(&bytes).checksum(), expected, "{length}");
        }
        assert_eq!(Sum(u128::MAX).fold(), 0xffff);
        assert_eq!(Sum(0x1_0000_ffff).fold(), 1);
    }

    proptest! {
        #[test]
        fn it_is_what_the_rfc_says(bytes in vec(any::<u8>(), 0..600), split in 0usize..300) {
            let expected = plain(&bytes).to_be_bytes();
            prop_assert_eq!(Sum::of(&bytes).checksum(), expected);
            let (first, second) = bytes.split_at((split * 2).min(bytes.len()));
            prop_assert_eq!(Sum::of(second).plus(Sum::of(first)).checksum(), expected);
        }
    }
}
