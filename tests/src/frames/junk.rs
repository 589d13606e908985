//! Frames that are wrong in ways that break parsers.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::ArpOperation;

use super::{IP, Route};

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
        route.neighbor_solicitation(),
        route.router_advertisement(64, [0xfd, 0x11]),
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
        list.push(route.router_advertisement(length, prefix));
    }
    // More prefixes than there is room for.
    for number in 0..64 {
        list.push(route.router_advertisement(64, [0xfd, 0x40 + number]));
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
    let mut far = route.neighbor_solicitation();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::somebody;

    #[test]
    fn no_frame_is_empty() {
        assert!(junk(&somebody()).iter().all(|frame| !frame.is_empty()));
    }
}
