//! Frames that no honest host would send, and the honest ones that they are
//! made from.
//!
//! Every frame that asks for an answer carries a number (as its UDP or TCP
//! source port, or as its ICMP identifier), and [`answered`] reads it from the
//! guest's answer.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv4Type, Icmpv6Type, LaxSlicedPacket,
    PacketBuilder, TransportSlice, VlanId,
};

/// Offset of the IP header in a frame.
pub const IP: usize = 14;
/// Offset of what an IPv4 header without options carries.
pub const IPV4_PAYLOAD: usize = IP + 20;
/// Offset of what an IPv6 header carries.
pub const IPV6_PAYLOAD: usize = IP + 40;

/// Port of the echo services.
const ECHO: u16 = 7;

/// Where frames claim to come from, and where they go.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The sender's hardware address.
    pub from: [u8; 6],
    /// The sender.
    pub from_ipv4: Ipv4Addr,
    /// The sender.
    pub from_ipv6: Ipv6Addr,
    /// The guest's hardware address.
    pub to: [u8; 6],
    /// The guest.
    pub to_ipv4: Ipv4Addr,
    /// The guest.
    pub to_ipv6: Ipv6Addr,
}

impl Route {
    /// A UDP echo request over IPv4.
    pub fn udp4(&self, number: u16, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.from, self.to)
            .ipv4(self.from_ipv4.octets(), self.to_ipv4.octets(), 64)
            .udp(number, ECHO);
        let mut frame = Vec::new();
        builder
            .write(&mut frame, payload)
            .expect("fits into a frame");
        frame
    }

    /// A UDP echo request over IPv6.
    pub fn udp6(&self, number: u16, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.from, self.to)
            .ipv6(self.from_ipv6.octets(), self.to_ipv6.octets(), 64)
            .udp(number, ECHO);
        let mut frame = Vec::new();
        builder
            .write(&mut frame, payload)
            .expect("fits into a frame");
        frame
    }

    /// The first segment of a TCP connection to the echo service.
    pub fn syn(&self, number: u16) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.from, self.to)
            .ipv4(self.from_ipv4.octets(), self.to_ipv4.octets(), 64)
            .tcp(number, ECHO, 0x1234_5678, 4096)
            .syn();
        let mut frame = Vec::new();
        builder.write(&mut frame, &[]).expect("fits into a frame");
        frame
    }

    /// A ping.
    pub fn ping4(&self, number: u16, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.from, self.to)
            .ipv4(self.from_ipv4.octets(), self.to_ipv4.octets(), 64)
            .icmpv4_echo_request(number, 1);
        let mut frame = Vec::new();
        builder
            .write(&mut frame, payload)
            .expect("fits into a frame");
        frame
    }

    /// A ping over IPv6.
    pub fn ping6(&self, number: u16, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.from, self.to)
            .ipv6(self.from_ipv6.octets(), self.to_ipv6.octets(), 64)
            .icmpv6_echo_request(number, 1);
        let mut frame = Vec::new();
        builder
            .write(&mut frame, payload)
            .expect("fits into a frame");
        frame
    }

    /// An ARP message from the sender to the guest.
    pub fn arp(&self, operation: ArpOperation) -> Vec<u8> {
        let arp = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            operation,
            &self.from,
            &self.from_ipv4.octets(),
            &[0; 6],
            &self.to_ipv4.octets(),
        )
        .expect("addresses of the right lengths");
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(self.from, [0xff; 6]).arp(arp);
        builder.write(&mut frame).expect("fits into a frame");
        frame
    }

    /// An ICMPv6 message with any type and body.
    pub fn icmpv6(&self, hop_limit: u8, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
        let (head, payload) = body.split_first_chunk::<4>().expect("at least four bytes");
        let builder = PacketBuilder::ethernet2(self.from, self.to)
            .ipv6(self.from_ipv6.octets(), self.to_ipv6.octets(), hop_limit)
            .icmpv6_raw(kind, code, *head);
        let mut frame = Vec::new();
        builder
            .write(&mut frame, payload)
            .expect("fits into a frame");
        frame
    }

    /// An IPv6 packet with any payload.
    pub fn ipv6(&self, next_header: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.udp6(1, &vec![0; payload.len().saturating_sub(8)]);
        frame.truncate(IPV6_PAYLOAD);
        frame.extend_from_slice(payload);
        frame[IP + 6] = next_header;
        frame[IP + 4..IP + 6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        frame
    }

    /// A UDP echo request inside of a VLAN tag.
    pub fn vlan(&self, number: u16) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.from, self.to)
            .single_vlan(VlanId::try_new(5).expect("12 bits"))
            .ipv4(self.from_ipv4.octets(), self.to_ipv4.octets(), 64)
            .udp(number, ECHO);
        let mut frame = Vec::new();
        builder
            .write(&mut frame, b"tagged")
            .expect("fits into a frame");
        frame
    }
}

/// Sets the checksum of an IPv4 header of `length` bytes right.
pub fn fix_ipv4_checksum(frame: &mut [u8], length: usize) {
    frame[IP + 10..IP + 12].fill(0);
    let sum: u32 = frame[IP..IP + length]
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    frame[IP + 10..IP + 12].copy_from_slice(&checksum.to_be_bytes());
}

/// The number of the request that this frame of the guest answers.
pub fn answered(frame: &[u8]) -> Option<u16> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    match packet.transport? {
        TransportSlice::Udp(udp) if udp.source_port() == ECHO => Some(udp.destination_port()),
        TransportSlice::Tcp(tcp) if tcp.source_port() == ECHO => Some(tcp.destination_port()),
        TransportSlice::Icmpv4(icmp) => match icmp.icmp_type() {
            Icmpv4Type::EchoReply(header) => Some(header.id),
            _ => None,
        },
        TransportSlice::Icmpv6(icmp) => match icmp.icmp_type() {
            Icmpv6Type::EchoReply(header) => Some(header.id),
            _ => None,
        },
        _ => None,
    }
}

/// The ARP reply to a frame that asks for `address`, if it does.
pub fn arp_reply(frame: &[u8], address: Ipv4Addr, mac: [u8; 6]) -> Option<Vec<u8>> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let etherparse::LaxNetSlice::Arp(arp) = packet.net? else {
        return None;
    };
    if arp.operation() != ArpOperation::REQUEST || arp.target_protocol_addr() != address.octets() {
        return None;
    }
    let to: [u8; 6] = arp.sender_hw_addr().try_into().ok()?;
    let reply = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REPLY,
        &mac,
        &address.octets(),
        arp.sender_hw_addr(),
        arp.sender_protocol_addr(),
    )
    .ok()?;
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(mac, to)
        .arp(reply)
        .write(&mut bytes)
        .ok()?;
    Some(bytes)
}

/// A request that must not be answered, and why.
pub struct Forbidden {
    /// What is wrong with it.
    pub what: &'static str,
    /// Its number.
    pub number: u16,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// First number of [`forbidden`]'s requests.
pub const FORBIDDEN: u16 = 0xb000;

/// Requests that a host must not answer, each wrong in one way only.
pub fn forbidden(route: &Route) -> Vec<Forbidden> {
    let mut list = Vec::new();
    let mut add = |what, make: &dyn Fn(u16) -> Vec<u8>| {
        let number = FORBIDDEN + list.len() as u16;
        let bytes = make(number);
        list.push(Forbidden {
            what,
            number,
            bytes,
        });
    };
    let data = b"sixteen bytes!!!";
    let flip = |mut frame: Vec<u8>, at: usize| {
        frame[at] ^= 0x40;
        frame
    };
    // A header field that its checksum covers, both set.
    let header = |mut frame: Vec<u8>, at: usize, bytes: &[u8]| {
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        fix_ipv4_checksum(&mut frame, 20);
        frame
    };
    let field = |mut frame: Vec<u8>, at: usize, bytes: &[u8]| {
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    add("wrong IPv4 header checksum, UDP", &|n| {
        flip(route.udp4(n, data), IP + 10)
    });
    add("wrong IPv4 header checksum, TCP", &|n| {
        flip(route.syn(n), IP + 10)
    });
    add("wrong IPv4 header checksum, ICMP", &|n| {
        flip(route.ping4(n, data), IP + 10)
    });
    add("wrong UDP checksum", &|n| {
        flip(route.udp4(n, data), IPV4_PAYLOAD + 6)
    });
    add("changed UDP content", &|n| {
        flip(route.udp4(n, data), IPV4_PAYLOAD + 8)
    });
    add("wrong TCP checksum", &|n| {
        flip(route.syn(n), IPV4_PAYLOAD + 16)
    });
    add("wrong ICMP checksum", &|n| {
        flip(route.ping4(n, data), IPV4_PAYLOAD + 2)
    });
    add("wrong UDP checksum over IPv6", &|n| {
        flip(route.udp6(n, data), IPV6_PAYLOAD + 6)
    });
    add("no UDP checksum over IPv6", &|n| {
        field(route.udp6(n, data), IPV6_PAYLOAD + 6, &[0, 0])
    });
    add("wrong ICMPv6 checksum", &|n| {
        flip(route.ping6(n, data), IPV6_PAYLOAD + 2)
    });
    add("IP version 5", &|n| {
        header(route.udp4(n, data), IP, &[0x55])
    });
    add("IPv4 header of 16 bytes", &|n| {
        header(route.udp4(n, data), IP, &[0x44])
    });
    add("IPv4 header of 0 bytes", &|n| {
        header(route.udp4(n, data), IP, &[0x40])
    });
    add("IPv4 header longer than the packet", &|n| {
        header(route.udp4(n, data), IP, &[0x4f])
    });
    add("IPv4 total length 0", &|n| {
        header(route.udp4(n, data), IP + 2, &[0, 0])
    });
    add("IPv4 total length 19", &|n| {
        header(route.udp4(n, data), IP + 2, &[0, 19])
    });
    add("IPv4 total length cuts the UDP header", &|n| {
        header(route.udp4(n, data), IP + 2, &[0, 24])
    });
    add("IPv4 total length beyond the frame", &|n| {
        header(route.udp4(n, data), IP + 2, &[0xff, 0xff])
    });
    add("UDP length 0", &|n| {
        field(route.udp4(n, data), IPV4_PAYLOAD + 4, &[0, 0])
    });
    add("UDP length 7", &|n| {
        field(route.udp4(n, data), IPV4_PAYLOAD + 4, &[0, 7])
    });
    add("UDP length beyond the packet", &|n| {
        field(route.udp4(n, data), IPV4_PAYLOAD + 4, &[0, 25])
    });
    add("UDP length 65535", &|n| {
        field(route.udp4(n, data), IPV4_PAYLOAD + 4, &[0xff, 0xff])
    });
    add("IPv6 payload length beyond the frame", &|n| {
        field(route.udp6(n, data), IP + 4, &[0xff, 0xff])
    });
    add("IPv6 payload length cuts the UDP header", &|n| {
        field(route.udp6(n, data), IP + 4, &[0, 4])
    });
    add("IP version 4 in an IPv6 frame", &|n| {
        field(route.udp6(n, data), IP, &[0x40])
    });
    add("TCP header of 16 bytes", &|n| {
        tcp_checksum(field(route.syn(n), IPV4_PAYLOAD + 12, &[0x40]))
    });
    add("TCP header longer than the packet", &|n| {
        tcp_checksum(field(route.syn(n), IPV4_PAYLOAD + 12, &[0xf0]))
    });
    add("a fragment only", &|n| {
        header(route.udp4(n, data), IP + 6, &[0x20, 0])
    });
    add("a fragment behind the end of the largest packet", &|n| {
        header(route.udp4(n, data), IP + 6, &[0x1f, 0xff])
    });
    add("another host's IPv4 address", &|n| {
        let other = Route {
            to_ipv4: Ipv4Addr::from_bits(route.to_ipv4.to_bits() ^ 0x40),
            ..*route
        };
        other.udp4(n, data)
    });
    add("another host's hardware address", &|n| {
        let mut other = *route;
        other.to[5] ^= 0x40;
        other.udp4(n, data)
    });
    let from = |from_ipv4| Route {
        from_ipv4,
        ..*route
    };
    add("from the guest's own address", &|n| {
        from(route.to_ipv4).udp4(n, data)
    });
    add("from a broadcast address", &|n| {
        from(Ipv4Addr::BROADCAST).udp4(n, data)
    });
    add("from a multicast address", &|n| {
        from(Ipv4Addr::new(224, 0, 0, 1)).udp4(n, data)
    });
    add("from no address", &|n| {
        from(Ipv4Addr::UNSPECIFIED).udp4(n, data)
    });
    add("inside of a VLAN", &|n| route.vlan(n));
    list
}

fn tcp_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[IPV4_PAYLOAD + 16..IPV4_PAYLOAD + 18].fill(0);
    let addresses = &frame[IP + 12..IP + 20];
    let segment = &frame[IPV4_PAYLOAD..];
    let mut sum: u32 = 6 + segment.len() as u32;
    for word in addresses.chunks(2).chain(segment.chunks(2)) {
        sum += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[IPV4_PAYLOAD + 16..IPV4_PAYLOAD + 18].copy_from_slice(&(!sum as u16).to_be_bytes());
    frame
}

/// Frames that are wrong in ways that break parsers.
pub fn junk(route: &Route) -> Vec<Vec<u8>> {
    let mut list = Vec::new();
    let whole = [
        route.udp4(0xa000, b"sixteen bytes!!!"),
        route.udp6(0xa001, b"sixteen bytes!!!"),
        route.syn(0xa002),
        route.ping4(0xa003, b"sixteen bytes!!!"),
        route.ping6(0xa004, b"sixteen bytes!!!"),
        route.arp(ArpOperation::REQUEST),
        route.arp(ArpOperation::REPLY),
        route.vlan(0xa005),
        neighbor_solicitation(route),
        router_advertisement(route, 64, [0xfd, 0x11]),
    ];
    // Cut at every length; QEMU takes a datagram of no bytes for the end.
    for frame in &whole {
        list.extend((1..frame.len()).map(|length| frame[..length].to_vec()));
    }
    // Longer than any buffer, and than the largest packet.
    for size in [1501, 1519, 2000, 9000, 60_000] {
        list.push(route.udp4(0xa006, &vec![0x5a; size - 42]));
    }
    list.extend(arp_junk(route));
    list.extend(ipv6_junk(route));
    // A length instead of a type (IEEE 802.3), and types that nobody has.
    for kind in [0x0000u16, 0x0026, 0x05dc, 0x88cc, 0xffff] {
        let mut frame = route.udp4(0xa007, b"sixteen bytes!!!");
        frame[12..14].copy_from_slice(&kind.to_be_bytes());
        list.push(frame);
    }
    list
}

fn arp_junk(route: &Route) -> Vec<Vec<u8>> {
    let mut list = Vec::new();
    let request = || route.arp(ArpOperation::REQUEST);
    // Hardware type, protocol, lengths of the addresses, operation.
    for (at, bytes) in [
        (IP, [0, 6]),
        (IP, [0xff, 0xff]),
        (IP + 2, [0x86, 0xdd]),
        (IP + 4, [5, 4]),
        (IP + 4, [6, 16]),
        (IP + 4, [255, 255]),
        (IP + 4, [0, 0]),
        (IP + 6, [0, 0]),
        (IP + 6, [0, 3]),
        (IP + 6, [0xff, 0xff]),
    ] {
        let mut frame = request();
        frame[at..at + 2].copy_from_slice(&bytes);
        list.push(frame);
    }
    // Somebody else claims the guest's address; a group claims one.
    let claim = Route {
        from_ipv4: route.to_ipv4,
        ..*route
    };
    let group = Route {
        from: [0xff; 6],
        from_ipv4: Ipv4Addr::from_bits(route.from_ipv4.to_bits() ^ 0x20),
        ..*route
    };
    let nowhere = Route {
        from_ipv4: Ipv4Addr::UNSPECIFIED,
        ..*route
    };
    for other in [claim, group, nowhere] {
        list.push(other.arp(ArpOperation::REQUEST));
        list.push(other.arp(ArpOperation::REPLY));
    }
    list
}

fn neighbor_solicitation(route: &Route) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(route.to_ipv6.octets());
    body.extend([1, 1]);
    body.extend(route.from);
    route.icmpv6(255, 135, 0, &body)
}

fn router_advertisement(route: &Route, prefix_length: u8, prefix: [u8; 2]) -> Vec<u8> {
    // Hop limit, flags, lifetime 0, reachable and retransmission time.
    let mut body = vec![64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // Prefix information, RFC 4861 4.6.2: on link, for addresses.
    body.extend([
        3,
        4,
        prefix_length,
        0xc0,
        0,
        0,
        0,
        30,
        0,
        0,
        0,
        30,
        0,
        0,
        0,
        0,
    ]);
    body.extend(prefix);
    body.extend([0; 14]);
    route.icmpv6(255, 134, 0, &body)
}

fn ipv6_junk(route: &Route) -> Vec<Vec<u8>> {
    let mut list = Vec::new();
    // Prefixes that are none.
    for (length, prefix) in [
        (0, [0xfd, 0x12]),
        (127, [0xfd, 0x12]),
        (129, [0xfd, 0x12]),
        (255, [0xfd, 0x12]),
        (64, [0xff, 0x02]),
        (64, [0xfe, 0x80]),
        (64, [0, 0]),
    ] {
        list.push(router_advertisement(route, length, prefix));
    }
    // More prefixes than there is room for.
    for number in 0..64 {
        list.push(router_advertisement(route, 64, [0xfd, 0x40 + number]));
    }
    // Options of no length, which a careless parser reads for ever; options
    // behind the end; a link-layer address of the wrong size.
    for option in [[1, 0], [3, 0], [5, 0], [1, 2], [1, 255], [5, 1], [0xff, 1]] {
        for (kind, fixed) in [(133, 4), (134, 12), (135, 20), (136, 20), (137, 36)] {
            let mut body = vec![0; fixed];
            body.extend(option);
            body.extend([0xff; 6]);
            list.push(route.icmpv6(255, kind, 0, &body));
        }
    }
    // Neighbour discovery from beyond the link, for a group, for the guest
    // itself.
    let mut far = neighbor_solicitation(route);
    far[IP + 7] = 64;
    list.push(far);
    for target in [
        Ipv6Addr::from_bits(0xff02 << 112 | 1),
        route.to_ipv6,
        Ipv6Addr::UNSPECIFIED,
    ] {
        for kind in [135, 136] {
            let mut body = vec![0xe0, 0, 0, 0];
            body.extend(target.octets());
            body.extend([2, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
            list.push(route.icmpv6(255, kind, 0, &body));
        }
    }
    // Every type of ICMPv6, with nothing that it needs.
    for kind in 0..=255 {
        list.push(route.icmpv6(255, kind, 0, &[0; 4]));
    }
    // Extension headers: hop-by-hop, routing, fragment, destination options,
    // authentication; with every first length, and leading to one another.
    for header in [0, 43, 44, 51, 60] {
        for length in [0, 1, 2, 31, 255] {
            for next in [0, 17, 43, 44, 58, 59, 60] {
                let mut payload = vec![next, length];
                payload.extend([0xc2; 30]);
                list.push(route.ipv6(header, &payload));
                let chain = [next, 0, 1, 4, 0, 0, 0, 0].repeat(20);
                list.push(route.ipv6(header, &chain));
            }
        }
    }
    // An unknown protocol.
    list.push(route.ipv6(253, &[0; 40]));
    list.push(route.ipv6(59, &[]));
    list
}

/// A reproducible source of arbitrary numbers (splitmix64).
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `limit`, which is at least 1.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.word() % limit as u64) as usize
    }
}

/// A random frame: noise, noise behind an honest Ethernet header, or an honest
/// frame with one to four bits turned over and perhaps an end cut off.
pub fn random(route: &Route, random: &mut Random) -> Vec<u8> {
    let mut noise =
        |length: usize| -> Vec<u8> { (0..length).map(|_| random.word() as u8).collect() };
    let kinds: [[u8; 2]; 4] = [[0x08, 0x00], [0x86, 0xdd], [0x08, 0x06], [0x81, 0x00]];
    let mut frame = match noise(1)[0] % 8 {
        0 => {
            let length = 1 + random.below(1514);
            return (0..length).map(|_| random.word() as u8).collect();
        }
        1 | 2 => {
            let mut frame = route.to.to_vec();
            frame.extend(route.from);
            frame.extend(kinds[random.below(4)]);
            let length = random.below(200);
            frame.extend((0..length).map(|_| random.word() as u8));
            return frame;
        }
        3 => route.udp4(0xa100, &noise(64)),
        4 => route.udp6(0xa101, &noise(64)),
        5 => match random.below(3) {
            0 => route.syn(0xa102 + random.below(64) as u16),
            1 => route.ping4(0xa180, &[7; 32]),
            _ => route.ping6(0xa181, &[7; 32]),
        },
        6 => match random.below(3) {
            0 => route.arp(ArpOperation::REQUEST),
            1 => route.arp(ArpOperation::REPLY),
            _ => neighbor_solicitation(route),
        },
        _ => router_advertisement(route, 64, [0xfd, random.below(16) as u8]),
    };
    for _ in 0..=random.below(4) {
        // Not in the hardware address: the frame must reach the guest.
        let bit = 12 * 8 + random.below((frame.len() - 12) * 8);
        frame[bit / 8] ^= 1 << (bit % 8);
    }
    if random.below(4) == 0 {
        frame.truncate(1 + random.below(frame.len()));
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route() -> Route {
        Route {
            from: [2, 0, 0, 0, 0, 1],
            from_ipv4: Ipv4Addr::new(10, 0, 2, 2),
            from_ipv6: "fe80::1".parse().unwrap(),
            to: [2, 0, 0, 0, 0, 2],
            to_ipv4: Ipv4Addr::new(10, 0, 2, 15),
            to_ipv6: "fe80::2".parse().unwrap(),
        }
    }

    /// The frame with which an echo service would answer.
    fn turned(mut frame: Vec<u8>, payload: usize) -> Vec<u8> {
        let (source, destination) = (payload, payload + 2);
        for byte in 0..2 {
            frame.swap(source + byte, destination + byte);
        }
        frame
    }

    #[test]
    fn an_answer_is_recognized_by_its_number() {
        let route = route();
        assert_eq!(
            answered(&turned(route.udp4(77, b"x"), IPV4_PAYLOAD)),
            Some(77)
        );
        assert_eq!(
            answered(&turned(route.udp6(78, b"x"), IPV6_PAYLOAD)),
            Some(78)
        );
        assert_eq!(answered(&turned(route.syn(79), IPV4_PAYLOAD)), Some(79));
        let mut reply = route.ping4(80, b"x");
        reply[IPV4_PAYLOAD] = 0;
        assert_eq!(answered(&reply), Some(80));
        let mut reply = route.ping6(81, b"x");
        reply[IPV6_PAYLOAD] = 129;
        assert_eq!(answered(&reply), Some(81));
        // A request is no answer.
        assert_eq!(answered(&route.ping4(80, b"x")), None);
        assert_eq!(answered(&[0; 60]), None);
    }

    #[test]
    fn checksums_that_are_set_right_are_right() {
        let route = route();
        let honest = route.udp4(1, b"x");
        let mut again = honest.clone();
        again[IP + 10] ^= 0xff;
        fix_ipv4_checksum(&mut again, 20);
        assert_eq!(again, honest);
        let honest = route.syn(1);
        let mut again = honest.clone();
        again[IPV4_PAYLOAD + 16] ^= 0xff;
        assert_eq!(tcp_checksum(again), honest);
    }

    #[test]
    fn numbers_are_unique_and_frames_fit() {
        let list = forbidden(&route());
        for (index, request) in list.iter().enumerate() {
            assert_eq!(request.number, FORBIDDEN + index as u16, "{}", request.what);
        }
        assert!(junk(&route()).iter().all(|frame| !frame.is_empty()));
    }

    #[test]
    fn random_frames_repeat_with_their_seed() {
        let list = |seed| {
            let mut source = Random::new(seed);
            (0..1000)
                .map(|_| random(&route(), &mut source))
                .collect::<Vec<_>>()
        };
        assert_eq!(list(1), list(1));
        assert_ne!(list(1), list(2));
        assert!(
            list(3)
                .iter()
                .all(|frame| (1..=1514).contains(&frame.len()))
        );
    }
}
