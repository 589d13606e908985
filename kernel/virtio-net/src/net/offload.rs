//! What the device is asked to do to a frame before it goes out
//! (specification 5.1.6.2): fill in the checksum of a UDP datagram or TCP
//! segment, and cut a large TCP segment into small ones.

use core::num::NonZeroU16;

use zerocopy::little_endian::U16;

use super::header::{F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6, Header};

const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
/// Protocol number of TCP.
pub(super) const TCP: u8 = 6;
const UDP: u8 = 17;

/// EtherType of IPv4.
const IPV4: [u8; 2] = [0x08, 0x00];
/// EtherType of IPv6.
pub(super) const IPV6: [u8; 2] = [0x86, 0xdd];

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
struct Found {
    transport: Transport,
    is_ipv4: bool,
    /// Where its header begins, in bytes from the start of the frame.
    start: u16,
    /// The sum over both addresses, see [`sum`].
    addresses: u64,
}

/// What the device is to do to one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    checksum_start: u16,
    checksum_offset: u16,
    segmentation: Option<Segmentation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segmentation {
    is_ipv4: bool,
    /// Ethernet, IP and TCP header together, in bytes.
    header_length: u16,
    /// Bytes of payload a segment.
    size: NonZeroU16,
}

impl Offload {
    /// Prepares `frame`, which begins with its Ethernet header, may have VLAN
    /// tags, and ends with its IP packet: the checksum covers all up to the end,
    /// so there must be no padding. Puts the checksum of the pseudo-header where
    /// that of the UDP datagram or TCP segment goes (Linux
    /// `skb_partial_csum_set`, `__tcp_v4_send_check`). With a `segment_size`, a
    /// TCP segment with more payload is to be cut into pieces of that many bytes.
    ///
    /// `None`, and the frame stays as it is, when there is neither a whole
    /// datagram nor a whole segment in it: in a fragment, or behind an IPv6
    /// extension header.
    ///
    /// The device must have agreed to `VIRTIO_NET_F_CSUM`, and for a segment
    /// size to `VIRTIO_NET_F_HOST_TSO4` or `_TSO6`.
    #[doc(alias = "skb_partial_csum_set")]
    #[doc(alias = "virtio_net_hdr_from_skb")]
    pub fn prepare(frame: &mut [u8], segment_size: Option<NonZeroU16>) -> Option<Self> {
        let found = find(frame)?;
        let (_, segment) = frame.split_at_mut_checked(found.start.into())?;
        let protocol = match found.transport {
            Transport::Tcp => TCP,
            Transport::Udp => UDP,
        };
        let length = segment.len() as u64;
        let header_length = match found.transport {
            Transport::Tcp => usize::from(segment.get(12)? >> 4) * 4,
            Transport::Udp => 8,
        };
        let payload = segment.len().checked_sub(header_length)?;
        let offset = found.transport.checksum_offset();
        let field = segment.get_mut(offset.into()..)?.first_chunk_mut::<2>()?;
        // RFC 9293, 3.1; RFC 8200, 8.1.
        *field = fold(found.addresses + u64::from(protocol) + length).to_be_bytes();
        let segmentation = segment_size
            .filter(|size| payload > usize::from(size.get()) && found.transport == Transport::Tcp)
            .map(|size| Segmentation {
                is_ipv4: found.is_ipv4,
                // A TCP header has at most 60 bytes.
                header_length: found.start + header_length as u16,
                size,
            });
        Some(Self {
            checksum_start: found.start,
            checksum_offset: offset,
            segmentation,
        })
    }

    /// Whether the device is to cut it into pieces.
    pub fn is_segmented(&self) -> bool {
        self.segmentation.is_some()
    }

    /// The header that says so.
    pub(super) fn header(&self) -> Header {
        let mut header = Header {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_NONE,
            csum_start: U16::new(self.checksum_start),
            csum_offset: U16::new(self.checksum_offset),
            ..Header::default()
        };
        if let Some(segmentation) = self.segmentation {
            header.gso_type = if segmentation.is_ipv4 {
                GSO_TCPV4
            } else {
                GSO_TCPV6
            };
            header.hdr_len = U16::new(segmentation.header_length);
            header.gso_size = U16::new(segmentation.size.get());
        }
        header
    }
}

/// Where a frame's packet begins, behind VLAN tags, in bytes from the start;
/// and its EtherType.
#[inline]
pub(super) fn network_header(frame: &[u8]) -> Option<(usize, [u8; 2])> {
    let mut start = ETHERNET;
    let mut ethertype = *frame.get(start - 2..)?.first_chunk::<2>()?;
    while let [0x81, 0x00] | [0x88, 0xa8] = ethertype {
        start += VLAN_TAG;
        ethertype = *frame.get(start - 2..)?.first_chunk::<2>()?;
    }
    Some((start, ethertype))
}

/// Finds the UDP or TCP header of a frame.
fn find(frame: &[u8]) -> Option<Found> {
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
            (true, length, header[9], sum(&header[12..]))
        }
        IPV6 => {
            let header = packet.first_chunk::<40>()?;
            (false, header.len(), header[6], sum(&header[8..]))
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

/// The sum of 16-bit words in network byte order; what is left over at the end
/// does not count.
fn sum(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<2>();
    words
        .iter()
        .map(|word| u64::from(u16::from_be_bytes(*word)))
        .sum()
}

/// Brings the carries back in at the bottom (RFC 1071).
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
