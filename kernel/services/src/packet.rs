//! A received frame, read once. What [`Packet::parse`] finds is all that anybody
//! decides by: which service takes the frame, who sent it, whether it is intact.

use core::net::{Ipv4Addr, Ipv6Addr};

use smoltcp::wire::IpAddress;

use crate::checksum::{ETHERNET, IPV4_HEADER, IPV6_HEADER, Sum, TCP, UDP};

const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
pub(crate) const UDP_HEADER: usize = 8;
/// Bytes of a TCP header without options.
const TCP_HEADER: usize = 20;

/// An IPv6 address, or an IPv4 address mapped into IPv6 (RFC 4291, 2.5.5.2), with
/// its bytes in the order of the packet: equal or not is all that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address(pub(crate) u128);

impl Address {
    #[inline(always)]
    pub(crate) fn v4([a, b, c, d]: [u8; 4]) -> Self {
        Self(u128::from_ne_bytes([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d,
        ]))
    }

    #[inline(always)]
    pub(crate) fn v6(bytes: [u8; 16]) -> Self {
        Self(u128::from_ne_bytes(bytes))
    }

    /// Whether it is an IPv4 address mapped into IPv6.
    #[inline(always)]
    pub(crate) fn is_ipv4(self) -> bool {
        let prefix = Self::v4([0xff; 4]).0;
        let mask = u128::from_ne_bytes([
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,
        ]);
        (self.0 ^ prefix) & mask == 0
    }

    pub(crate) fn ip(self) -> IpAddress {
        let ipv6 = self.ipv6();
        match ipv6.to_ipv4_mapped() {
            Some(ipv4) => IpAddress::Ipv4(ipv4),
            None => IpAddress::Ipv6(ipv6),
        }
    }

    pub(crate) fn ipv6(self) -> Ipv6Addr {
        Ipv6Addr::from(self.0.to_ne_bytes())
    }
}

impl From<IpAddress> for Address {
    fn from(address: IpAddress) -> Self {
        match address {
            IpAddress::Ipv4(address) => Self::v4(address.octets()),
            IpAddress::Ipv6(address) => Self::v6(address.octets()),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self::v4(address.octets())
    }
}

#[derive(Debug)]
pub(crate) enum Parsed<'f> {
    Arp,
    Ip(Packet<'f>),
    /// A checksum is wrong.
    Corrupt,
    /// Too short for what it says, or of a protocol that is not spoken here.
    Unknown,
}

/// An IP packet whose lengths fit the frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'f> {
    pub(crate) frame: &'f [u8],
    pub(crate) is_ipv4: bool,
    /// Not 0 (smoltcp does not look).
    pub(crate) hop_limit: u8,
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) content: Content<'f>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content<'f> {
    Udp(Datagram<'f>),
    Tcp(Segment),
    Fragment,
    /// A neighbour solicitation or advertisement (RFC 4861, 4.3 and 4.4).
    Neighbor(&'f [u8]),
    /// A router advertisement (RFC 4861, 4.2).
    RouterAdvertisement(&'f [u8]),
    /// A query of multicast listener discovery (RFC 3810, 5.1).
    ListenerQuery(&'f [u8]),
    /// Another message of ICMP, or of ICMPv6.
    Icmp(&'f [u8]),
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagram<'f> {
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) payload: &'f [u8],
}

/// The part of a TCP segment that tells whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Ours, then the other's.
    pub(crate) ports: [u16; 2],
    /// What it acknowledges, if anything.
    pub(crate) acknowledged: Option<u32>,
    /// SYN, and neither ACK nor RST nor FIN.
    pub(crate) opens: bool,
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    /// Ours.
    pub(crate) local: Address,
    pub(crate) remote: Address,
    /// Ours, then the other's.
    pub(crate) ports: [u16; 2],
}

impl Packet<'_> {
    /// Whose a segment in it is.
    #[inline]
    pub(crate) fn ends(&self, segment: &Segment) -> Ends {
        Ends {
            local: self.destination,
            remote: self.source,
            ports: segment.ports,
        }
    }
}

impl<'f> Parsed<'f> {
    /// Reads a frame. The checksums of IPv4 headers and of ICMP are always
    /// verified, those of UDP and TCP if `verify` says so. Of a fragment only the
    /// header's can be told.
    #[inline(always)]
    pub(crate) fn parse(frame: &'f [u8], verify: bool) -> Self {
        let Some((ethernet, packet)) = frame.split_first_chunk::<ETHERNET>() else {
            return Self::Unknown;
        };
        match [ethernet[12], ethernet[13]] {
            [0x08, 0x00] => parse_ipv4(frame, packet, verify).unwrap_or(Self::Unknown),
            [0x86, 0xdd] => parse_ipv6(frame, packet, verify).unwrap_or(Self::Unknown),
            [0x08, 0x06] => Self::Arp,
            _ => Self::Unknown,
        }
    }

    /// As [`Self::parse`], for the frames of which there are few, and whose checksum was
    /// verified if there is one.
    #[cold]
    #[inline(never)]
    pub(crate) fn parse_again(frame: &'f [u8]) -> Self {
        Self::parse(frame, false)
    }
}

#[inline(always)]
fn parse_ipv4<'f>(frame: &'f [u8], packet: &'f [u8], verify: bool) -> Option<Parsed<'f>> {
    let header = packet.first_chunk::<IPV4_HEADER>()?;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let packet = packet.get(..total)?;
    let (sum, payload) = if header[0] == 0x45 {
        (Sum::of_header(header), packet.get(IPV4_HEADER..)?)
    } else {
        with_options(packet)?
    };
    if !sum.is_right() {
        return Some(Parsed::Corrupt);
    }
    let [.., a, b, c, d, e, f, g, h] = *header;
    let mut result = Packet {
        frame,
        is_ipv4: true,
        hop_limit: header[8],
        source: Address::v4([a, b, c, d]),
        destination: Address::v4([e, f, g, h]),
        content: Content::Fragment,
    };
    // "More fragments" or an offset.
    if u16::from_ne_bytes([header[6], header[7]]) & 0x3fff_u16.to_be() == 0 {
        let addresses = [a, b, c, d, e, f, g, h];
        match parse_content(header[9], payload, &addresses, true, verify)? {
            Some(content) => result.content = content,
            None => return Some(Parsed::Corrupt),
        }
    }
    Some(Parsed::Ip(result))
}

/// The sum over an IPv4 header that is longer than most, and what follows it.
#[cold]
fn with_options(packet: &[u8]) -> Option<(Sum, &[u8])> {
    let first = packet.first()?;
    let length = usize::from(first & 0xf) * 4;
    if first >> 4 != 4 || length < IPV4_HEADER {
        return None;
    }
    let (header, payload) = packet.split_at_checked(length)?;
    Some((Sum::of(header), payload))
}

#[inline]
fn parse_ipv6<'f>(frame: &'f [u8], packet: &'f [u8], verify: bool) -> Option<Parsed<'f>> {
    let (header, payload) = packet.split_first_chunk::<IPV6_HEADER>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let mut payload = payload.get(..length)?;
    let mut protocol = header[6];
    // The only extension header behind which smoltcp looks.
    if protocol == HOP_BY_HOP {
        (protocol, payload) = behind_options(payload)?;
    }
    let (source, destination) = header[8..].split_at(16);
    let addresses = header.last_chunk::<32>()?;
    let source = Address::v6(*source.first_chunk()?);
    let destination = Address::v6(*destination.first_chunk()?);
    // Not on any link (RFC 4291, 2.5.5.2); here they stand for IPv4.
    if source.is_ipv4() || destination.is_ipv4() {
        return None;
    }
    let content = match protocol {
        FRAGMENT => Content::Fragment,
        _ => match parse_content(protocol, payload, addresses, false, verify)? {
            Some(content) => content,
            None => return Some(Parsed::Corrupt),
        },
    };
    Some(Parsed::Ip(Packet {
        frame,
        is_ipv4: false,
        hop_limit: header[7],
        source,
        destination,
        content,
    }))
}

/// What follows hop-by-hop options (RFC 8200, 4.3), and its protocol.
pub(crate) fn behind_options(options: &[u8]) -> Option<(u8, &[u8])> {
    let &[next, length] = options.first_chunk::<2>()?;
    Some((next, options.get(8 + usize::from(length) * 8..)?))
}

/// Reads what a packet carries; `Some(None)` if its checksum is wrong.
#[inline(always)]
fn parse_content<'f, const N: usize>(
    protocol: u8,
    payload: &'f [u8],
    addresses: &[u8; N],
    is_ipv4: bool,
    verify: bool,
) -> Option<Option<Content<'f>>> {
    let is_right_now = |segment: &[u8]| {
        Sum::pseudo_header(Sum::of_header(addresses), protocol, segment.len())
            .plus(Sum::of(segment))
            .is_right()
    };
    let is_right = |segment: &[u8]| !verify || is_right_now(segment);
    let content = match protocol {
        UDP => {
            let header = payload.first_chunk::<UDP_HEADER>()?;
            // A datagram says itself how long it is.
            let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
            let datagram = payload.get(..length)?;
            // RFC 768: none in this datagram. RFC 8200, 8.1: IPv6 has no such thing.
            let has_none = is_ipv4 && [header[6], header[7]] == [0, 0];
            if !has_none && !is_right(datagram) {
                return Some(None);
            }
            Content::Udp(Datagram {
                from: u16::from_be_bytes([header[0], header[1]]),
                to: u16::from_be_bytes([header[2], header[3]]),
                payload: datagram.get(UDP_HEADER..)?,
            })
        }
        TCP => {
            let header = payload.first_chunk::<TCP_HEADER>()?;
            if !is_right(payload) {
                return Some(None);
            }
            Content::Tcp(Segment {
                ports: [[header[2], header[3]], [header[0], header[1]]].map(u16::from_be_bytes),
                acknowledged: (header[13] & 0x10 != 0)
                    .then(|| u32::from_be_bytes([header[8], header[9], header[10], header[11]])),
                opens: header[13] & 0x17 == 2,
            })
        }
        ICMP if is_ipv4 && !Sum::of(payload).is_right() => return Some(None),
        ICMP if is_ipv4 => Content::Icmp(payload),
        ICMPV6 if !is_ipv4 && !is_right_now(payload) => return Some(None),
        ICMPV6 if !is_ipv4 => match payload.first() {
            Some(130) => Content::ListenerQuery(payload),
            Some(134) => Content::RouterAdvertisement(payload),
            Some(135 | 136) => Content::Neighbor(payload),
            _ => Content::Icmp(payload),
        },
        _ => Content::Other,
    };
    Some(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};

    fn ipv4(payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        datagram(ethernet.ipv4([10, 0, 2, 2], [10, 0, 2, 15], 64), payload)
    }

    fn ipv6(payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        datagram(ethernet.ipv6([1; 16], [3; 16], 64), payload)
    }

    fn datagram(packet: PacketBuilderStep<IpHeaders>, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        packet.udp(1000, 7).write(&mut frame, payload).unwrap();
        frame
    }

    fn content(frame: &[u8], verify: bool) -> Option<Content<'_>> {
        match Parsed::parse(frame, verify) {
            Parsed::Ip(packet) => Some(packet.content),
            _ => None,
        }
    }

    fn is_corrupt(frame: &[u8]) -> bool {
        matches!(Parsed::parse(frame, true), Parsed::Corrupt)
    }

    #[test]
    fn a_datagram_is_read() {
        for mut frame in [ipv4(b"abc"), ipv6(b"abc")] {
            let expected = Content::Udp(Datagram {
                from: 1000,
                to: 7,
                payload: b"abc",
            });
            assert_eq!(content(&frame, true), Some(expected));
            // Padding of the frame is no part of the packet.
            frame.extend([0xff; 9]);
            assert_eq!(content(&frame, true), Some(expected));
            let Parsed::Ip(packet) = Parsed::parse(&frame, false) else {
                panic!("no packet");
            };
            let [source, destination] = [packet.source, packet.destination].map(Address::ip);
            let ends = match packet.is_ipv4 {
                true => [IpAddress::v4(10, 0, 2, 2), IpAddress::v4(10, 0, 2, 15)],
                false => [[1; 16], [3; 16]].map(|bytes| IpAddress::Ipv6(bytes.into())),
            };
            assert_eq!([source, destination], ends);
        }
    }

    #[test]
    fn every_changed_bit_behind_the_ethernet_header_is_seen() {
        for frame in [ipv4(b"a payload"), ipv6(b"a payload"), ipv4(b""), ipv6(b"")] {
            let right = content(&frame, true);
            for bit in 14 * 8..frame.len() * 8 {
                let mut changed = frame.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                // IPv6 does not protect its first words and its hop limit.
                let unprotected = frame[12] == 0x86 && bit / 8 <= 21;
                assert!(unprotected || content(&changed, true) != right, "bit {bit}");
            }
        }
    }

    #[test]
    fn a_missing_checksum_is_right_in_ipv4_only() {
        let mut frame = ipv4(b"abc");
        frame[40..42].fill(0);
        assert!(content(&frame, true).is_some());
        let mut frame = ipv6(b"abc");
        frame[60..62].fill(0);
        assert!(is_corrupt(&frame));
    }

    #[test]
    fn fragments_are_told() {
        for (flags, offset, is_fragment) in [(0x40, 0, false), (0x20, 0, true), (0, 1, true)] {
            let mut frame = ipv4(b"abc");
            (frame[20], frame[21]) = (flags, offset);
            frame[24..26].fill(0);
            let sum = Sum::of(&frame[14..34]).checksum();
            frame[24..26].copy_from_slice(&sum);
            let is_told = content(&frame, true) == Some(Content::Fragment);
            assert_eq!(is_told, is_fragment, "{flags:x} {offset}");
        }
    }

    #[test]
    fn what_is_cut_short_is_nothing() {
        for frame in [ipv4(b"abc"), ipv6(b"abc")] {
            for length in 0..frame.len() {
                let parsed = Parsed::parse(&frame[..length], true);
                assert!(matches!(parsed, Parsed::Unknown), "{length}");
            }
        }
    }
}
