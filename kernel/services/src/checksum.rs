//! The Internet checksum (RFC 1071) for whole packets, between smoltcp and the
//! device.
//!
//! smoltcp adds up two bytes at a time. On a target without vector instructions,
//! which the guest's is, that is most of what a large packet costs. This layer
//! tells smoltcp that the device does the checksums of IPv4, UDP and TCP, does
//! them eight bytes at a time, and leaves alone those that the device really
//! does. ICMP stays with smoltcp.

mod fragments;
mod layer;
mod sum;

pub(crate) use fragments::Fragments;
pub(crate) use layer::{Checked, NOBODY, Token};
pub(crate) use sum::Sum;

use smoltcp::phy::{ChecksumCapabilities, Device};

pub(crate) const ETHERNET: usize = 14;
pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
/// An IPv4 header without options, and UDP's.
pub(crate) const IPV4_UDP: usize = IPV4_HEADER + 8;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// What is done in this layer, each way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Duties {
    ipv4: Duty,
    udp: Duty,
    tcp: Duty,
}

#[derive(Clone, Copy, Debug)]
struct Duty {
    verify: bool,
    fill: bool,
}

impl Duties {
    /// The device does nothing.
    pub(crate) const ALL: Self = Self::everywhere(true);
    /// The device does everything.
    #[cfg(test)]
    pub(crate) const NONE: Self = Self::everywhere(false);

    const fn everywhere(here: bool) -> Self {
        let duty = Duty {
            verify: here,
            fill: here,
        };
        Self {
            ipv4: duty,
            udp: duty,
            tcp: duty,
        }
    }
}

impl Duties {
    pub(crate) fn of<D: Device + ?Sized>(device: &D) -> Self {
        let ChecksumCapabilities { ipv4, udp, tcp, .. } = device.capabilities().checksum;
        let [ipv4, udp, tcp] = [ipv4, udp, tcp].map(|checksum| Duty {
            verify: checksum.rx(),
            fill: checksum.tx(),
        });
        Self { ipv4, udp, tcp }
    }

    /// Whether the checksum of a received IPv4 header is verified here.
    #[inline]
    pub(crate) fn verify_ipv4(&self) -> bool {
        self.ipv4.verify
    }

    /// Whether that of a received UDP datagram is.
    #[inline]
    pub(crate) fn verify_udp(&self) -> bool {
        self.udp.verify
    }

    fn transport(&self, protocol: u8) -> Option<(Duty, usize)> {
        match protocol {
            UDP => Some((self.udp, 6)),
            TCP => Some((self.tcp, 16)),
            _ => None,
        }
    }
}

/// A received IPv4 packet.
pub(crate) struct Ipv4<'a> {
    /// The header without options.
    pub(crate) header: &'a [u8; IPV4_HEADER],
    options: &'a [u8],
    /// Without what Ethernet padded.
    pub(crate) payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    #[inline]
    pub(crate) fn parse(packet: &'a [u8]) -> Option<Self> {
        let header = packet.first_chunk::<IPV4_HEADER>()?;
        let options = (usize::from(header[0] & 0xf) * 4).checked_sub(IPV4_HEADER)?;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let (options, payload) = packet.get(IPV4_HEADER..total)?.split_at_checked(options)?;
        Some(Self {
            header,
            options,
            payload,
        })
    }

    /// The sum over both addresses.
    #[inline]
    pub(crate) fn addresses(&self) -> Sum {
        let [.., a, b, c, d, e, f, g, h] = *self.header;
        Sum::of_header(&[a, b, c, d, e, f, g, h])
    }

    /// Whether the header's checksum is right, or not ours to verify.
    #[inline]
    pub(crate) fn is_header_right(&self, duties: &Duties) -> bool {
        let mut sum = Sum::of_header(self.header);
        if !self.options.is_empty() {
            sum = sum.plus(Sum::of(self.options));
        }
        !duties.ipv4.verify || sum.is_right()
    }
}

/// What is known of the checksum of a UDP datagram or TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was added up and is right.
    Right([u8; 2]),
    /// There is none, or it is not ours to verify. What is too short for one is
    /// for smoltcp to refuse.
    Unknown,
    Wrong,
}

/// Verifies the checksum of a whole UDP datagram or TCP segment.
#[inline]
pub(crate) fn verify_transport(
    addresses: Sum,
    is_ipv4: bool,
    protocol: u8,
    segment: &[u8],
    duties: &Duties,
) -> Verdict {
    let Some((duty, at)) = duties.transport(protocol) else {
        return Verdict::Unknown;
    };
    let checksum = segment.get(at..).and_then(<[u8]>::first_chunk::<2>);
    // RFC 768: none in this datagram. RFC 8200, 8.1: IPv6 has no such thing.
    let is_optional = is_ipv4 && protocol == UDP;
    if !duty.verify || (is_optional && checksum == Some(&[0, 0])) {
        return Verdict::Unknown;
    }
    let sum = Sum::pseudo_header(addresses, protocol, segment.len()).plus(Sum::of(segment));
    match checksum {
        _ if !sum.is_right() => Verdict::Wrong,
        Some(checksum) => Verdict::Right(*checksum),
        None => Verdict::Unknown,
    }
}
