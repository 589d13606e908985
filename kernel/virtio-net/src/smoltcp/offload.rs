//! What smoltcp has written into a frame, as far as the device can do something
//! for it. smoltcp does not say, so the headers are read once.

use core::num::NonZeroU16;

use crate::net::coalesce::IPV6_HEADER;
use crate::net::offload::Offload;

const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
/// Protocol number of TCP.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// EtherType of IPv4.
const IPV4: [u8; 2] = [0x08, 0x00];
/// EtherType of IPv6.
const IPV6: [u8; 2] = [0x86, 0xdd];

/// Which protocols a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// Where the checksum is in the header, in bytes.
    const fn checksum_offset(self) -> u16 {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// A UDP datagram or TCP segment in a frame, whole.
pub(super) struct Found {
    transport: Transport,
    is_ipv4: bool,
    /// Where its header begins, in bytes from the start of the frame.
    start: u16,
    /// Where both addresses are, likewise.
    addresses: usize,
}

impl Found {
    /// Where the IPv6 header begins, in bytes from the start of the frame, if it is a
    /// TCP segment behind one.
    #[inline]
    pub(super) fn ipv6_of_tcp(&self) -> Option<usize> {
        let is_tcp = !self.is_ipv4 && self.transport == Transport::Tcp;
        let ip = usize::from(self.start).checked_sub(IPV6_HEADER);
        ip.filter(|_| is_tcp)
    }

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
        let addresses = frame.get(self.addresses..)?;
        let addresses = if self.is_ipv4 {
            sum(addresses.first_chunk::<8>()?)
        } else {
            sum(addresses.first_chunk::<32>()?)
        };
        let (_, segment) = frame.split_at_mut_checked(self.start.into())?;
        let (protocol, header_length) = match self.transport {
            Transport::Tcp => (TCP, usize::from(segment.get(12)? >> 4) * 4),
            Transport::Udp => (UDP, 8),
        };
        let length = segment.len();
        let payload = length.checked_sub(header_length)?;
        let offset = self.transport.checksum_offset();
        let field = segment.get_mut(offset.into()..)?.first_chunk_mut::<2>()?;
        // RFC 9293, 3.1; RFC 8200, 8.1.
        *field = fold(addresses + u64::from(protocol) + length as u64).to_be_bytes();
        let offload = Offload::checksum(self.start, offset);
        Some(match segment_size {
            Some(size) if payload > size.get().into() && self.transport == Transport::Tcp => {
                // A TCP header has at most 60 bytes.
                offload.segmented(self.is_ipv4, self.start + header_length as u16, size)
            }
            _ => offload,
        })
    }
}

/// Where a frame's packet begins, behind VLAN tags, in bytes from the start;
/// and its EtherType.
#[inline]
fn network_header(frame: &[u8]) -> Option<(usize, [u8; 2])> {
    let mut start = ETHERNET;
    let mut ethertype = *frame.get(start - 2..)?.first_chunk::<2>()?;
    while let [0x81, 0x00] | [0x88, 0xa8] = ethertype {
        start += VLAN_TAG;
        ethertype = *frame.get(start - 2..)?.first_chunk::<2>()?;
    }
    Some((start, ethertype))
}

/// Finds the UDP or TCP header of a frame, which begins with its Ethernet header,
/// may have VLAN tags, and ends with its IP packet. `None` when there is neither a
/// whole datagram nor a whole segment in it: in a fragment, or behind an IPv6
/// extension header.
#[inline]
pub(super) fn find(frame: &[u8]) -> Option<Found> {
    let (start, ethertype) = network_header(frame)?;
    let packet = frame.get(start..)?;
    let (is_ipv4, header_length, protocol, addresses) = match ethertype {
        IPV4 => {
            let header = packet.first_chunk::<20>()?;
            // "More fragments" or an offset.
            if (header[6] & 0x3f) | header[7] != 0 {
                return None;
            }
            let length = usize::from(header[0] & 0xf) * 4;
            (true, length, header[9], start + 12)
        }
        IPV6 => {
            let header = packet.first_chunk::<IPV6_HEADER>()?;
            (false, IPV6_HEADER, header[6], start + 8)
        }
        _ => return None,
    };
    let transport = match protocol {
        TCP => Transport::Tcp,
        UDP => Transport::Udp,
        _ => return None,
    };
    Some(Found {
        transport,
        is_ipv4,
        start: u16::try_from(start + header_length).ok()?,
        addresses,
    })
}

/// The sum of words in network byte order, to be folded; what is left over at the
/// end does not count.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.as_chunks().0.iter();
    words.map(|word| u64::from(u32::from_be_bytes(*word))).sum()
}

/// Brings the carries back in at the bottom (RFC 1071).
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
