//! A hostile network: twenty kinds of frames, as many of each as are asked for.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::ArpOperation;
use fastrand::Rng;

use super::checksum::{fix_ipv4_checksum, tcp_checksum};
use super::{FORBIDDEN, IP, IPV4_PAYLOAD, Route, forbidden, junk, random};

/// A kind of frames: its name, and one of them.
pub type Kind = (&'static str, fn(&Flood, &mut Rng) -> Vec<u8>);

/// What hostile frames are made from.
pub struct Flood {
    route: Route,
    junk: Vec<Vec<u8>>,
    forbidden: Vec<Vec<u8>>,
}

/// Every kind.
pub const KINDS: [Kind; 20] = [
    (
        "anything, and honest frames with bits turned",
        |flood, rng| random(&flood.route, rng),
    ),
    ("wrong lengths, options, headers", |flood, rng| {
        flood.junk[rng.usize(..flood.junk.len())].clone()
    }),
    ("what must not be answered", |flood, rng| {
        flood.forbidden[rng.usize(..flood.forbidden.len())].clone()
    }),
    ("honest frames, cut", |flood, rng| {
        let mut frame = flood.honest(rng);
        frame.truncate(1 + rng.usize(..frame.len()));
        frame
    }),
    ("options of IPv4", ipv4_options),
    ("fragments of IPv4", |flood, rng| {
        let mut frame = flood.stranger(rng).udp4(1, &[1; 64]);
        frame[IP + 4..IP + 6].copy_from_slice(&rng.u16(..64).to_be_bytes());
        frame[IP + 6..IP + 8].copy_from_slice(&(rng.u16(..) & 0x3fff).to_be_bytes());
        fix_ipv4_checksum(&mut frame, 20);
        frame
    }),
    ("fragments of IPv6", |flood, rng| {
        let mut payload = vec![17, 0];
        payload.extend(rng.u16(..).to_be_bytes());
        payload.extend(rng.u32(..64).to_be_bytes());
        payload.extend([1; 64]);
        flood.stranger(rng).ipv6(44, &payload)
    }),
    ("extension headers of IPv6", |flood, rng| {
        const HEADERS: [u8; 7] = [0, 43, 44, 51, 58, 59, 60];
        let mut payload = Vec::new();
        for _ in 0..1 + rng.usize(..20) {
            let mut header = [0; 8];
            header.fill_with(|| rng.u8(..));
            (header[0], header[1]) = (HEADERS[rng.usize(..7)], rng.u8(..3));
            payload.extend(header);
        }
        flood.stranger(rng).ipv6(HEADERS[rng.usize(..7)], &payload)
    }),
    ("ARP from everywhere", |flood, rng| {
        let operation = match rng.bool() {
            true => ArpOperation::REQUEST,
            false => ArpOperation::REPLY,
        };
        flood.stranger(rng).arp(operation)
    }),
    ("neighbour solicitations", |flood, rng| {
        flood.stranger(rng).neighbor_solicitation()
    }),
    ("neighbour advertisements", |flood, rng| {
        let stranger = flood.stranger(rng);
        let mut body = vec![rng.u8(..), 0, 0, 0];
        body.extend(stranger.from_ipv6.octets());
        body.extend([2, 1]);
        body.extend(stranger.from);
        stranger.icmpv6(255, 136, 0, &body)
    }),
    ("router advertisements", |flood, rng| {
        let length = [0, 48, 64, 127, 128, 255][rng.usize(..6)];
        flood
            .stranger(rng)
            .router_advertisement(length, [0xfd, rng.u8(..)])
    }),
    ("redirects and packets too big", |flood, rng| {
        let kind = [2, 137][rng.usize(..2)];
        let mut body: Vec<u8> = (0..100).map(|_| rng.u8(..)).collect();
        body[..4].copy_from_slice(&rng.u32(..1500).to_be_bytes());
        flood.stranger(rng).icmpv6(255, kind, 0, &body)
    }),
    ("forged DHCP", dhcp),
    ("TCP: SYN", |flood, rng| tcp(flood, rng, 0x02)),
    ("TCP: other flags", |flood, rng| {
        let flags = rng.u8(..) & !0x02;
        tcp(flood, rng, flags)
    }),
    ("pings", |flood, rng| {
        let stranger = flood.stranger(rng);
        match rng.bool() {
            true => stranger.ping4(rng.u16(..), &[5; 500]),
            false => stranger.ping6(rng.u16(..), &[5; 500]),
        }
    }),
    ("UDP to any port", |flood, rng| {
        let stranger = flood.stranger(rng);
        let mut frame = stranger.udp4(rng.u16(..), &[3; 100]);
        // No checksum is one that is right.
        frame[IPV4_PAYLOAD + 2..IPV4_PAYLOAD + 4].copy_from_slice(&rng.u16(..).to_be_bytes());
        frame[IPV4_PAYLOAD + 6..IPV4_PAYLOAD + 8].fill(0);
        frame
    }),
    ("to groups, and to all", |flood, rng| {
        let mut frame = flood.honest(rng);
        let group = match rng.bool() {
            true => [0xff; 6],
            false => [0x33, 0x33, 0, 0, 0, 1],
        };
        frame[..6].copy_from_slice(&group);
        frame
    }),
    ("stacks of VLAN tags", |flood, rng| {
        let frame = flood.honest(rng);
        let mut tagged = frame[..12].to_vec();
        for _ in 0..1 + rng.usize(..30) {
            tagged.extend([[0x81, 0x00], [0x88, 0xa8]][rng.usize(..2)]);
            tagged.extend(rng.u16(..).to_be_bytes());
        }
        tagged.extend(&frame[12..]);
        tagged
    }),
];

impl Flood {
    /// Frames to the guest of this route, from strangers.
    pub fn new(route: Route) -> Self {
        let forbidden = forbidden(&route).into_iter().map(|wrong| wrong.bytes);
        Self {
            junk: junk(&route)
                .into_iter()
                .filter(|frame| frame.len() <= 1514)
                .collect(),
            forbidden: forbidden.collect(),
            route,
        }
    }

    /// One of 256, and of half as many IPv4 addresses.
    fn stranger(&self, rng: &mut Rng) -> Route {
        let number = rng.u8(..);
        Route {
            from: [0x02, 0xaa, 0xaa, 0xaa, 0xbb, number],
            // Not the guest's network's first addresses, where the honest are.
            from_ipv4: Ipv4Addr::new(10, 0, 2, 128 | number >> 1),
            from_ipv6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0xaaaa, 0, 0, number.into()),
            ..self.route
        }
    }

    /// A frame that is right.
    fn honest(&self, rng: &mut Rng) -> Vec<u8> {
        let stranger = self.stranger(rng);
        match rng.u8(..6) {
            0 => stranger.udp4(rng.u16(..FORBIDDEN), &[1; 32]),
            1 => stranger.udp6(rng.u16(..FORBIDDEN), &[1; 32]),
            2 => stranger.ping4(rng.u16(..), &[2; 32]),
            3 => stranger.ping6(rng.u16(..), &[2; 32]),
            4 => stranger.arp(ArpOperation::REQUEST),
            _ => stranger.neighbor_solicitation(),
        }
    }
}

/// An echo request behind up to 40 bytes of options.
fn ipv4_options(flood: &Flood, rng: &mut Rng) -> Vec<u8> {
    let words = 1 + rng.usize(..10);
    let mut frame = flood.stranger(rng).udp4(1, &[1; 32]);
    let options: Vec<u8> = (0..4 * words).map(|_| rng.u8(..)).collect();
    frame.splice(IPV4_PAYLOAD..IPV4_PAYLOAD, options);
    frame[IP] = 0x45 + words as u8;
    let length = (frame.len() - IP) as u16;
    frame[IP + 2..IP + 4].copy_from_slice(&length.to_be_bytes());
    fix_ipv4_checksum(&mut frame, 20 + 4 * words);
    frame
}

/// A segment with these flags to a service, or to nobody.
fn tcp(flood: &Flood, rng: &mut Rng, flags: u8) -> Vec<u8> {
    let mut frame = flood.stranger(rng).syn(rng.u16(1..));
    let port = [7, 9, 19, 80, rng.u16(..)][rng.usize(..5)];
    frame[IPV4_PAYLOAD + 2..IPV4_PAYLOAD + 4].copy_from_slice(&port.to_be_bytes());
    frame[IPV4_PAYLOAD + 4..IPV4_PAYLOAD + 8].copy_from_slice(&rng.u32(..).to_be_bytes());
    frame[IPV4_PAYLOAD + 8..IPV4_PAYLOAD + 12].copy_from_slice(&rng.u32(..).to_be_bytes());
    frame[IPV4_PAYLOAD + 13] = flags;
    tcp_checksum(frame)
}

/// A reply of a DHCP server (RFC 2131) that nobody has asked, with options by chance.
fn dhcp(flood: &Flood, rng: &mut Rng) -> Vec<u8> {
    let mut message = vec![2, 1, 6, 0];
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, rng.u8(..9)]);
    message.extend((0..rng.usize(..100)).map(|_| rng.u8(..)));
    let mut frame = flood.stranger(rng).udp4(67, &message);
    frame[IPV4_PAYLOAD + 2..IPV4_PAYLOAD + 4].copy_from_slice(&68u16.to_be_bytes());
    frame[IPV4_PAYLOAD + 6..IPV4_PAYLOAD + 8].fill(0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::somebody;

    #[test]
    fn frames_fit_repeat_and_never_claim_to_be_the_honest() {
        let route = somebody();
        let flood = Flood::new(Route {
            from: [0x02, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa],
            from_ipv4: Ipv4Addr::new(10, 0, 2, 0x5d),
            ..route
        });
        for (name, make) in KINDS {
            let list = |seed| {
                let mut rng = Rng::with_seed(seed);
                (0..1000)
                    .map(|_| make(&flood, &mut rng))
                    .collect::<Vec<_>>()
            };
            let frames = list(1);
            assert_eq!(frames, list(1), "{name}");
            assert_ne!(frames[0], frames[1], "{name}");
            for frame in frames {
                assert!((1..=1514).contains(&frame.len()), "{name}: {}", frame.len());
                assert_ne!(frame.get(6..12), Some(&route.from[..]), "{name}");
            }
        }
    }
}
