//! What smoltcp has written into a frame, as far as the device can do something
//! for it. smoltcp does not say, so the headers are read once.

use core::num::NonZeroU16;

use crate::net::coalesce::IPV6_HEADER;
use crate::net::offload::Offload;

const ETHERNET: usize = 14;
/// Protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// EtherTypes, as they are in memory.
const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
const VLAN: u16 = 0x8100_u16.to_be();
const SERVICE_VLAN: u16 = 0x88a8_u16.to_be();

/// A UDP datagram or TCP segment in a frame, whole.
pub(super) struct Found {
    pub(super) is_ipv4: bool,
    pub(super) is_tcp: bool,
    /// Where its header begins, in bytes from the start of the frame.
    pub(super) start: u16,
    /// Where its checksum is in that.
    checksum: u16,
    /// The sum over addresses and protocol; see [`sum`].
    sum: u64,
}

impl Found {
    /// Puts the checksum of the pseudo-header where that of the UDP datagram or TCP
    /// segment goes, in the frame in which this was found (Linux
    /// `__tcp_v4_send_check`), and says what the device is to do: with a
    /// `segment_size`, a TCP segment with more payload is to be cut into pieces of
    /// that many bytes. `None`, and the frame stays as it is, when it is too short.
    #[inline]
    pub(super) fn prepare(
        &self,
        frame: &mut [u8],
        segment_size: Option<NonZeroU16>,
    ) -> Option<Offload> {
        let length = frame.len().checked_sub(self.start.into())?;
        let field = usize::from(self.start) + usize::from(self.checksum);
        let field = frame.get_mut(field..)?.first_chunk_mut::<2>()?;
        // RFC 9293, 3.1; RFC 8200, 8.1. A frame is shorter than 2^32 bytes.
        *field = fold(self.sum + u64::from((length as u32).to_be()));
        let offload = Offload::checksum(self.start, self.checksum);
        let Some(size) = segment_size.filter(|_| self.is_tcp) else {
            return Some(offload);
        };
        // At most 60 bytes.
        let header = u16::from(frame.get(usize::from(self.start) + 12)? >> 4) * 4;
        let is_longer = length > usize::from(header) + usize::from(size.get());
        let segmented = || offload.segmented(self.is_ipv4, self.start + header, size);
        Some(if is_longer { segmented() } else { offload })
    }
}

pub(super) fn prepare(frame: &mut [u8], segment_size: Option<NonZeroU16>) -> Option<Offload> {
    find(frame)?.prepare(frame, segment_size)
}

/// Finds the UDP or TCP header of a frame, which begins with its Ethernet header,
/// may have VLAN tags, and ends with its IP packet. `None` when there is neither a
/// whole datagram nor a whole segment in it: in a fragment, or behind an IPv6
/// extension header.
#[inline(always)]
pub(super) fn find(frame: &[u8]) -> Option<Found> {
    let (ethernet, packet) = frame.split_first_chunk::<ETHERNET>()?;
    match u16::from_ne_bytes([ethernet[12], ethernet[13]]) {
        VLAN | SERVICE_VLAN => find_behind_tags(packet),
        ethertype => find_behind(packet, ETHERNET, ethertype),
    }
}

/// As [`find`], in what begins in a VLAN tag.
#[cold]
fn find_behind_tags(mut packet: &[u8]) -> Option<Found> {
    let mut start = ETHERNET;
    loop {
        let ([.., a, b], rest) = packet.split_first_chunk::<4>()?;
        (packet, start) = (rest, start + 4);
        match u16::from_ne_bytes([*a, *b]) {
            VLAN | SERVICE_VLAN => (),
            ethertype => return find_behind(packet, start, ethertype),
        }
    }
}

/// As [`find`], in the packet that begins so many bytes from the start of its frame.
#[inline(always)]
fn find_behind(packet: &[u8], start: usize, ethertype: u16) -> Option<Found> {
    let (is_ipv4, header_length, protocol, addresses) = match ethertype {
        IPV4 => {
            let header = packet.first_chunk::<20>()?;
            // "More fragments" or an offset.
            if u16::from_ne_bytes([header[6], header[7]]) & 0x3fff_u16.to_be() != 0 {
                return None;
            }
            let length = usize::from(header[0] & 0xf) * 4;
            (true, length, header[9], sum(header.last_chunk::<8>()?))
        }
        IPV6 => {
            let header = packet.first_chunk::<IPV6_HEADER>()?;
            let addresses = sum(header.last_chunk::<32>()?);
            (false, IPV6_HEADER, header[6], addresses)
        }
        _ => return None,
    };
    let checksum = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    Some(Found {
        is_ipv4,
        is_tcp: protocol == TCP,
        start: u16::try_from(start + header_length).ok()?,
        checksum,
        sum: addresses + u64::from(u32::from(protocol).to_be()),
    })
}

/// The sum of words in the byte order of memory, to be folded (RFC 1071, 2 B).
#[inline(always)]
fn sum<const N: usize>(bytes: &[u8; N]) -> u64 {
    let words = bytes.as_chunks().0.iter();
    words.map(|word| u64::from(u32::from_ne_bytes(*word))).sum()
}

/// Brings the carries back in at the bottom: the upper half of the sum of a word and
/// itself with its halves swapped has both, and the carry out of the lower one.
#[inline(always)]
fn fold(sum: u64) -> [u8; 2] {
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    let sum = (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16;
    sum.to_ne_bytes()
}
