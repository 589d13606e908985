//! Which queue pair a packet belongs to: by its flow, so that the packets of
//! one connection stay in order and on one CPU (Linux `ndo_select_queue`).
//!
//! How received packets are spread over the receive queues is the device's
//! affair. Without RSS it must send a flow's packets to the receive queue
//! whose transmit queue the flow was last sent by (specification 5.1.6.5.6,
//! "automatic receive steering"). So the rule for sending is: a CPU that
//! answers uses the pair by which it was asked. Only who begins a flow has a
//! choice, and [`select_queue`] makes it. With RSS the driver has said which
//! receive queue each hash leads to, and [`super::rss::Rss::select_queue`]
//! finds the one to which the answers will come;
//! [`super::VirtioNet::select_queue`] knows which of the two counts.

use core::net::IpAddr;

/// Length of the key of [`toeplitz`] in bytes: every device that hashes takes
/// one as long (specification 5.1.4.1).
pub const KEY_LENGTH: usize = 40;

/// The key that RSS was first described with, and that its test values are
/// for (Microsoft, "Verifying the RSS Hash Calculation").
pub const DEFAULT_KEY: [u8; KEY_LENGTH] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// The pair, 0 to `pairs` - 1, that a flow with this hash is sent by (Linux
/// `skb_tx_hash` with its `reciprocal_scale`). No pairs count as one.
#[doc(alias = "ndo_select_queue")]
#[doc(alias = "skb_tx_hash")]
pub fn select_queue(hash: u32, pairs: u16) -> u16 {
    // Less than `pairs`, because the hash is less than 2^32.
    ((u64::from(hash) * u64::from(pairs)) >> 32) as u16
}

/// The Toeplitz hash of `data` (specification 5.1.6.4.3): for every bit that
/// is set, the 32 bits of the key that begin at the bit's position are added
/// without carry. Data for which the key is too short is cut.
#[doc(alias = "toeplitz_hash")]
pub fn toeplitz(key: &[u8; KEY_LENGTH], data: &[u8]) -> u32 {
    let [a, b, c, d, rest @ ..] = key;
    let mut window = u32::from_be_bytes([*a, *b, *c, *d]);
    let mut hash = 0;
    for (byte, next) in data.iter().zip(rest) {
        for bit in (0..8).rev() {
            if byte >> bit & 1 != 0 {
                hash ^= window;
            }
            window = window << 1 | u32::from(next >> bit & 1);
        }
    }
    hash
}

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Addresses of source and destination, of one kind.
    pub addresses: [IpAddr; 2],
    /// Protocol and ports of source and destination; `None` for other
    /// protocols, and for fragments, of which only the first has ports.
    pub ports: Option<(Protocol, [u16; 2])>,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*field))
}

impl Flow {
    /// The flow of an Ethernet frame; `None` when it is not IP. It is looked
    /// behind up to 8 IPv6 extension headers, but not in fragments.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let (ethertype, packet) = match be16(frame, 12)? {
            ETHERTYPE_VLAN => (be16(frame, 16)?, frame.get(18..)?),
            ethertype => (ethertype, frame.get(14..)?),
        };
        match ethertype {
            ETHERTYPE_IPV4 => {
                let header = usize::from(packet.first()? & 0x0f) * 4;
                let is_fragment = be16(packet, 6)? & 0x3fff != 0;
                let address = |at: usize| {
                    let bytes: &[u8; 4] = packet.get(at..)?.first_chunk()?;
                    Some(IpAddr::from(*bytes))
                };
                Some(Self {
                    addresses: [address(12)?, address(16)?],
                    ports: (!is_fragment)
                        .then(|| ports(*packet.get(9)?, packet.get(header..)?))
                        .flatten(),
                })
            }
            ETHERTYPE_IPV6 => {
                let address = |at: usize| {
                    let bytes: &[u8; 16] = packet.get(at..)?.first_chunk()?;
                    Some(IpAddr::from(*bytes))
                };
                let payload = packet.get(40..).unwrap_or_default();
                Some(Self {
                    addresses: [address(8)?, address(24)?],
                    ports: behind_extensions(*packet.get(6)?, payload)
                        .and_then(|(protocol, segment)| ports(protocol, segment)),
                })
            }
            _ => None,
        }
    }

    /// The other direction.
    pub fn reversed(&self) -> Self {
        let [source, destination] = self.addresses;
        Self {
            addresses: [destination, source],
            ports: self
                .ports
                .map(|(protocol, [source, destination])| (protocol, [destination, source])),
        }
    }

    /// As if the protocol were unknown.
    pub fn without_ports(&self) -> Self {
        Self {
            ports: None,
            ..*self
        }
    }

    /// The hash that a device reports and RSS goes by, with ports where there
    /// are any (specification 5.1.6.4.3).
    pub fn hash(&self, key: &[u8; KEY_LENGTH]) -> u32 {
        let mut input = [0; 36];
        let mut length = 0;
        let mut push = |bytes: &[u8]| {
            if let Some(place) = input.get_mut(length..length + bytes.len()) {
                place.copy_from_slice(bytes);
                length += bytes.len();
            }
        };
        for address in &self.addresses {
            match address {
                IpAddr::V4(address) => push(&address.octets()),
                IpAddr::V6(address) => push(&address.octets()),
            }
        }
        for port in self.ports.iter().flat_map(|(_, ports)| ports) {
            push(&port.to_be_bytes());
        }
        toeplitz(key, input.get(..length).unwrap_or_default())
    }
}

/// Protocol and segment behind the extension headers of an IPv6 packet; `None`
/// in a fragment, and when there are more than anyone needs (RFC 8200, 4).
fn behind_extensions(mut next: u8, mut payload: &[u8]) -> Option<(u8, &[u8])> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    for _ in 0..8 {
        let length = |payload: &[u8]| payload.get(1).copied().map(usize::from);
        let length = match next {
            HOP_BY_HOP | ROUTING | DESTINATION => 8 * (length(payload)? + 1),
            AUTHENTICATION => 4 * (length(payload)? + 2),
            FRAGMENT => return None,
            _ => return Some((next, payload)),
        };
        next = *payload.first()?;
        payload = payload.get(length..)?;
    }
    None
}

fn ports(protocol: u8, segment: &[u8]) -> Option<(Protocol, [u16; 2])> {
    let protocol = match protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    Some((protocol, [be16(segment, 0)?, be16(segment, 2)?]))
}

#[cfg(test)]
mod tests {
    extern crate alloc;
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use alloc::vec::Vec;

    /// Microsoft, "Verifying the RSS Hash Calculation": destination and
    /// source, hash of the addresses, hash with TCP's ports.
    const KNOWN: [(&str, u16, &str, u16, u32, u32); 8] = [
        (
            "161.142.100.80",
            1766,
            "66.9.149.187",
            2794,
            0x323e_8fc2,
            0x51cc_c178,
        ),
        (
            "65.69.140.83",
            4739,
            "199.92.111.2",
            14230,
            0xd718_262a,
            0xc626_b0ea,
        ),
        (
            "12.22.207.184",
            38024,
            "24.19.198.95",
            12898,
            0xd2d0_a5de,
            0x5c2b_394a,
        ),
        (
            "209.142.163.6",
            2217,
            "38.27.205.30",
            48228,
            0x8298_9176,
            0xafc7_327f,
        ),
        (
            "202.188.127.2",
            1303,
            "153.39.163.191",
            44251,
            0x5d18_09c5,
            0x10e8_28a2,
        ),
        (
            "3ffe:2501:200:3::1",
            1766,
            "3ffe:2501:200:1fff::7",
            2794,
            0x2cc1_8cd5,
            0x4020_7d3d,
        ),
        (
            "ff02::1",
            4739,
            "3ffe:501:8::260:97ff:fe40:efab",
            14230,
            0x0f0c_461c,
            0xdde5_1bbf,
        ),
        (
            "fe80::200:f8ff:fe21:67cf",
            38024,
            "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
            44251,
            0x4b61_e985,
            0x02d1_feef,
        ),
    ];

    #[test]
    fn hashes_are_the_published_ones() {
        for (to, to_port, from, from_port, addresses_only, with_ports) in KNOWN {
            let mut flow = Flow {
                addresses: [from.parse().unwrap(), to.parse().unwrap()],
                ports: None,
            };
            assert_eq!(flow.hash(&DEFAULT_KEY), addresses_only, "{from}");
            flow.ports = Some((Protocol::Tcp, [from_port, to_port]));
            assert_eq!(flow.hash(&DEFAULT_KEY), with_ports, "{from}");
        }
    }

    /// A frame with this Ethernet type and packet.
    fn frame(ethertype: &[u8], packet: &[u8]) -> Vec<u8> {
        [&[0; 12], ethertype, packet].concat()
    }

    fn ipv4(protocol: u8, fragment: u16, options: usize) -> Vec<u8> {
        let mut packet = alloc::vec![0; 20 + options];
        packet[0] = 0x45 + (options / 4) as u8;
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = protocol;
        packet[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
        packet.extend([0x12, 0x34, 0x00, 0x07, 0, 0, 0, 0]);
        packet
    }

    #[test]
    fn the_flow_is_read_from_the_frame() {
        let ports = Some([0x1234, 7]);
        for (protocol, fragment, options, expected) in [
            (6, 0x4000, 0, ports),
            (17, 0, 0, ports),
            (17, 0, 8, ports),
            (17, 0x2000, 0, None),
            (17, 0x00b9, 0, None),
            (1, 0, 0, None),
        ] {
            let packet = ipv4(protocol, fragment, options);
            for tag in [&[][..], &[0x81, 0x00, 0x00, 0x05]] {
                let ethertype = [tag, &[0x08, 0x00]].concat();
                let flow = Flow::of(&frame(&ethertype, &packet)).unwrap();
                assert_eq!(flow.addresses[1].to_string(), "192.0.2.2");
                assert_eq!(flow.ports.map(|(_, ports)| ports), expected);
            }
        }
        let mut packet = [0; 44];
        packet[6] = 17;
        packet[40..].copy_from_slice(&[0x12, 0x34, 0x00, 0x07]);
        let flow = Flow::of(&frame(&[0x86, 0xdd], &packet)).unwrap();
        assert_eq!(flow.ports, Some((Protocol::Udp, [0x1234, 7])));
        assert_eq!(Flow::of(&frame(&[0x08, 0x06], &packet)), None);
    }

    #[test]
    fn ports_are_found_behind_extension_headers() {
        let flow = |next: u8, extensions: &[&[u8]]| {
            let mut packet = [0; 40].to_vec();
            packet[6] = next;
            packet.extend(extensions.iter().copied().flatten());
            packet.extend([0x12, 0x34, 0x00, 0x07, 0, 0, 0, 0]);
            Flow::of(&frame(&[0x86, 0xdd], &packet)).unwrap().ports
        };
        let found = Some((Protocol::Udp, [0x1234, 7]));
        // Next header and length in units of 8 bytes beyond the first.
        let routing = [17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(flow(0, &[&[43, 0, 1, 4, 0, 0, 0, 0], &routing]), found);
        assert_eq!(flow(60, &[&[17, 0, 1, 4, 0, 0, 0, 0]]), found);
        // In units of 4 bytes beyond the second.
        let authentication = [17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(flow(51, &[&authentication]), found);
        // A fragment, even a whole one.
        assert_eq!(flow(44, &[&[17, 0, 0, 0, 0, 0, 0, 0]]), None);
        // Longer than the packet, and longer than anyone needs.
        assert_eq!(flow(60, &[&[17, 255, 1, 4, 0, 0, 0, 0]]), None);
        let again = [60, 0, 1, 4, 0, 0, 0, 0];
        let last = [17, 0, 1, 4, 0, 0, 0, 0];
        let chain = |count| [vec![&again[..]; count], vec![&last[..]]].concat();
        assert_eq!(flow(60, &chain(6)), found);
        assert_eq!(flow(60, &chain(8)), None);
    }

    #[test]
    fn directions_are_turned() {
        for ports in [None, Some((Protocol::Tcp, [1, 2]))] {
            let addresses = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
            let flow = Flow { addresses, ports };
            let turned = flow.reversed();
            assert_eq!(turned.addresses, [addresses[1], addresses[0]]);
            assert_eq!(turned.ports, ports.map(|(protocol, _)| (protocol, [2, 1])));
            assert_eq!(turned.reversed(), flow);
            assert_eq!(flow.without_ports().ports, None);
        }
    }

    #[test]
    fn a_frame_that_was_cut_anywhere_is_no_danger() {
        let whole = frame(&[0x81, 0, 0, 5, 0x08, 0], &ipv4(17, 0, 0));
        for length in 0..whole.len() {
            let _ = Flow::of(&whole[..length]);
        }
    }

    #[test]
    fn every_pair_gets_its_share() {
        for pairs in [1u16, 2, 3, 7] {
            let mut count = alloc::vec![0; usize::from(pairs)];
            for port in 0..4096 {
                let flow = Flow {
                    addresses: [IpAddr::from([10, 0, 2, 2]), IpAddr::from([10, 0, 2, 15])],
                    ports: Some((Protocol::Udp, [port, 7])),
                };
                count[usize::from(select_queue(flow.hash(&DEFAULT_KEY), pairs))] += 1;
            }
            let fair = 4096 / u32::from(pairs);
            for share in count {
                assert!(share > fair / 2 && share < fair * 2, "{share} of {fair}");
            }
        }
        assert_eq!(select_queue(u32::MAX, u16::MAX), u16::MAX - 1);
        assert_eq!(select_queue(u32::MAX, 0), 0);
    }
}
