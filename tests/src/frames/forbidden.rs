//! Requests that a host must not answer.

use std::net::Ipv4Addr;

use super::checksum::{fix_ipv4_checksum, tcp_checksum};
use super::{IP, IPV4_PAYLOAD, IPV6_PAYLOAD, Route};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::somebody;

    #[test]
    fn numbers_are_unique_() {
        let list = forbidden(&somebody());
        for (index, request) in list.iter().enumerate() {
            assert_eq!(request.number, FORBIDDEN + index as u16, "{}", request.what);
        }
    }
}
