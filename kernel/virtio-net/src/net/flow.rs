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
