//! What happens to a frame before smoltcp sees it.
//!
//! smoltcp looks for a frame's socket by asking every UDP (or TCP) socket of a
//! set in turn, and asks every socket of a set for something to send. Sockets
//! are therefore kept in several sets, and a glance at the headers, [`classify`],
//! says which one a frame is for: an echo request from a known sender then costs
//! what it would cost with a single socket in the system.

use smoltcp::phy::{Device, DeviceCapabilities, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::checksum::{
    self, Duties, ETHERNET, IPV4_HEADER, IPV4_UDP, IPV6_HEADER, Ipv4, Sum, UDP, Verdict,
};
use crate::{DHCP_CLIENT_PORT, ECHO_PORT};

/// Which sockets a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A whole UDP datagram to the echo port, and its checksum if that was
    /// verified.
    UdpEcho {
        /// The port that it comes from.
        port: u16,
        checksum: Option<[u8; 2]>,
    },
    /// A UDP datagram to the DHCP client port.
    Dhcp,
    /// A fragment of an IPv4 packet: it may complete a packet whose answer
    /// must be fragmented too.
    Fragment,
    /// Anything else.
    Other,
    /// Nobody: a checksum is wrong.
    Corrupt,
    /// Nobody any more: it is answered.
    Echoed,
}

/// Whether the checksums of a frame are right: that of its IPv4 header, and that
/// of the UDP datagram or TCP segment in it. Of a fragment only the first can be
/// told.
///
/// For a device that verifies checksums, but not those of every frame: it drops
/// what this finds wrong.
pub fn has_right_checksums(frame: &[u8]) -> bool {
    classify(frame, &Duties::ALL) != Class::Corrupt
}

/// Reads just enough headers to tell where a frame goes, and verifies its
/// checksums. It decides nothing else: smoltcp validates every field again, and
/// refuses what is too short or contradicts itself.
#[inline]
pub(crate) fn classify(frame: &[u8], duties: &Duties) -> Class {
    let Some((ethernet, packet)) = frame.split_first_chunk::<ETHERNET>() else {
        return Class::Other;
    };
    match [ethernet[12], ethernet[13]] {
        [0x08, 0x00] => classify_ipv4(packet, duties),
        [0x86, 0xdd] => classify_ipv6(packet, duties).unwrap_or(Class::Other),
        _ => Class::Other,
    }
}

/// A datagram to the echo port in the plainest form that IPv4 has: no options,
/// no fragment. [`classify`] says the same of it, in more steps.
pub(crate) struct PlainEcho<'f> {
    header: &'f [u8; IPV4_HEADER],
    datagram: &'f [u8],
    /// The port that it comes from.
    pub(crate) port: u16,
    /// As it is in memory.
    checksum: u16,
}

impl<'f> PlainEcho<'f> {
    #[inline(always)]
    pub(crate) fn parse(frame: &'f [u8]) -> Option<Self> {
        const VERSION_AND_LENGTH: u8 = 0x45;
        // One look at the length; what follows is known when this is compiled.
        let headers = frame.first_chunk::<{ ETHERNET + IPV4_UDP }>()?;
        let (ethernet, packet) = headers.split_first_chunk::<ETHERNET>()?;
        let (header, udp) = packet.split_first_chunk::<IPV4_HEADER>()?;
        let udp = udp.first_chunk::<8>()?;
        // "More fragments" or an offset.
        let fragment = u16::from_ne_bytes([header[6], header[7]]) & 0x3fff_u16.to_be();
        if [ethernet[12], ethernet[13]] != [0x08, 0x00]
            || header[0] != VERSION_AND_LENGTH
            || header[9] != UDP
            || [udp[2], udp[3]] != ECHO_PORT.to_be_bytes()
            || fragment != 0
        {
            return None;
        }
        // Taken from where they are, not from a copy of the header: a load each.
        let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if IPV4_HEADER + length > total {
            return None;
        }
        Some(Self {
            header,
            datagram: frame.get(ETHERNET + IPV4_HEADER..)?.get(..length)?,
            port: u16::from_be_bytes([udp[0], udp[1]]),
            checksum: u16::from_ne_bytes([udp[6], udp[7]]),
        })
    }

    /// Verifies the checksums that are ours to verify. `None` when one is
    /// wrong, else that of UDP if it was verified.
    #[inline(always)]
    pub(crate) fn verify(&self, duties: &Duties) -> Option<Option<[u8; 2]>> {
        if duties.verify_ipv4() && !Sum::of_header(self.header).is_right() {
            return None;
        }
        // RFC 768: 0 is none.
        if !duties.verify_udp() || self.checksum == 0 {
            return Some(None);
        }
        let [.., a, b, c, d, e, f, g, h] = *self.header;
        let addresses = Sum::of_header(&[a, b, c, d, e, f, g, h]);
        Sum::pseudo_header(addresses, UDP, self.datagram.len())
            .plus(Sum::of(self.datagram))
            .is_right()
            .then_some(Some(self.checksum.to_ne_bytes()))
    }
}

#[inline]
fn classify_ipv4(packet: &[u8], duties: &Duties) -> Class {
    let Some(packet) = Ipv4::parse(packet) else {
        return Class::Other;
    };
    if !packet.is_header_right(duties) {
        return Class::Corrupt;
    }
    let header = packet.header;
    // "More fragments" or an offset.
    if (header[6] & 0x3f) | header[7] != 0 {
        return Class::Fragment;
    }
    let addresses = packet.addresses();
    classify_transport(addresses, true, header[9], packet.payload, duties)
}

#[inline]
fn classify_ipv6(packet: &[u8], duties: &Duties) -> Option<Class> {
    const HOP_BY_HOP: u8 = 0;
    let (header, payload) = packet.split_first_chunk::<IPV6_HEADER>()?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let mut payload = payload.get(..length)?;
    let mut protocol = header[6];
    // The only extension header behind which smoltcp looks.
    if protocol == HOP_BY_HOP {
        let &[next, length] = payload.first_chunk::<2>()?;
        payload = payload.get(8 + usize::from(length) * 8..)?;
        protocol = next;
    }
    let addresses = Sum::of_header(header.last_chunk::<32>()?);
    Some(classify_transport(
        addresses, false, protocol, payload, duties,
    ))
}

#[inline]
fn classify_transport(
    addresses: Sum,
    is_ipv4: bool,
    protocol: u8,
    payload: &[u8],
    duties: &Duties,
) -> Class {
    let verify =
        |segment| checksum::verify_transport(addresses, is_ipv4, protocol, segment, duties);
    // A datagram says itself how long it is.
    let (UDP, &[from_high, from_low, to_high, to_low, high, low, ..]) = (protocol, payload) else {
        return match verify(payload) {
            Verdict::Wrong => Class::Corrupt,
            _ => Class::Other,
        };
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let Some(datagram) = payload.get(..length) else {
        return Class::Other;
    };
    let checksum = match verify(datagram) {
        Verdict::Wrong => return Class::Corrupt,
        Verdict::Right(checksum) => Some(checksum),
        Verdict::Unknown => None,
    };
    match u16::from_be_bytes([to_high, to_low]) {
        ECHO_PORT => Class::UdpEcho {
            port: u16::from_be_bytes([from_high, from_low]),
            checksum,
        },
        DHCP_CLIENT_PORT => Class::Dhcp,
        _ => Class::Other,
    }
}

/// A device that receives one frame and can send one answer: how a frame that
/// has been looked at is handed to `Interface::poll_ingress_single`.
pub(crate) struct OneFrame<'f, T> {
    frame: Option<(&'f [u8], PacketMeta)>,
    answer: Option<T>,
}

impl<'f, T: TxToken> OneFrame<'f, T> {
    pub(crate) fn new(frame: &'f [u8], meta: PacketMeta, answer: T) -> Self {
        Self {
            frame: Some((frame, meta)),
            answer: Some(answer),
        }
    }
}

impl<'f, T: TxToken> Device for OneFrame<'f, T> {
    type RxToken<'a>
        = Frame<'f>
    where
        Self: 'a;
    type TxToken<'a>
        = T
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Frame<'f>, T)> {
        let (frame, meta) = self.frame.take()?;
        Some((Frame { frame, meta }, self.answer.take()?))
    }

    fn transmit(&mut self, _now: Instant) -> Option<T> {
        self.answer.take()
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // The interface keeps the capabilities of the device that it was made
        // for; receiving does not ask again.
        DeviceCapabilities::default()
    }
}

/// The frame of [`OneFrame`].
pub(crate) struct Frame<'f> {
    frame: &'f [u8],
    meta: PacketMeta,
}

impl RxToken for Frame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.frame)
    }

    fn meta(&self) -> PacketMeta {
        self.meta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use etherparse::PacketBuilder;

    fn ipv4(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 2, 2], [10, 0, 2, 15], 64)
            .udp(1000, 7)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    fn ipv6(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([1; 16], [3; 16], 64)
            .udp(1000, 7)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    #[test]
    fn the_checksum_of_an_echo_request_is_told() {
        for (mut frame, at) in [(ipv4(b"abc"), 40), (ipv6(b"abc"), 60), (ipv6(b""), 60)] {
            let checksum = [frame[at], frame[at + 1]];
            let known = Class::UdpEcho {
                port: 1000,
                checksum: Some(checksum),
            };
            assert_eq!(classify(&frame, &Duties::ALL), known);
            // Padding of the frame is no part of the packet.
            frame.extend([0xff; 9]);
            assert_eq!(classify(&frame, &Duties::ALL), known);
            let unknown = Class::UdpEcho {
                port: 1000,
                checksum: None,
            };
            assert_eq!(classify(&frame, &Duties::NONE), unknown);
        }
    }

    #[test]
    fn every_changed_bit_behind_the_ethernet_header_is_seen() {
        for frame in [ipv4(b"a payload"), ipv6(b"a payload"), ipv4(b""), ipv6(b"")] {
            let right = classify(&frame, &Duties::ALL);
            assert!(matches!(right, Class::UdpEcho { .. }));
            for bit in 14 * 8..frame.len() * 8 {
                let mut changed = frame.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                let class = classify(&changed, &Duties::ALL);
                // IPv6 does not protect its first words and its hop limit.
                let unprotected = frame[12] == 0x86 && bit / 8 <= 21;
                assert!(unprotected || class != right, "bit {bit}");
            }
        }
    }

    #[test]
    fn a_missing_checksum_is_right_in_ipv4_only() {
        let mut frame = ipv4(b"abc");
        frame[40..42].fill(0);
        let unknown = Class::UdpEcho {
            port: 1000,
            checksum: None,
        };
        assert_eq!(classify(&frame, &Duties::ALL), unknown);
        let mut frame = ipv6(b"abc");
        frame[60..62].fill(0);
        assert_eq!(classify(&frame, &Duties::ALL), Class::Corrupt);
    }

    #[test]
    fn fragments_are_told() {
        let mut frame = ipv4(b"abc");
        // Don't-fragment is no fragment.
        frame[20] = 0x40;
        assert!(matches!(
            classify(&frame, &Duties::NONE),
            Class::UdpEcho { .. }
        ));
        frame[20] = 0x20;
        assert_eq!(classify(&frame, &Duties::NONE), Class::Fragment);
        (frame[20], frame[21]) = (0, 1);
        assert_eq!(classify(&frame, &Duties::NONE), Class::Fragment);
    }

    #[test]
    fn short_frames_have_no_class() {
        for frame in [ipv4(b"abc"), ipv6(b"abc")] {
            for length in 0..frame.len() {
                assert_eq!(
                    classify(&frame[..length], &Duties::ALL),
                    Class::Other,
                    "{length}"
                );
            }
        }
    }
}
