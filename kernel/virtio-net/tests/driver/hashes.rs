//! What is hashed, and which pair a hash leads to.

use std::net::IpAddr;

use virtio_net::net::flow::{DEFAULT_KEY as KEY, Flow, Protocol};
use virtio_net::net::rss::{HashKind, HashLimits, HashTypes, Rss};

const LIMITS: HashLimits = HashLimits {
    max_key_size: 40,
    max_table_length: 128,
    types: HashTypes::all(),
};

fn flow(ports: Option<(Protocol, [u16; 2])>) -> Flow {
    // Of the published values.
    Flow {
        addresses: [IpAddr::from([66, 9, 149, 187]), [161, 142, 100, 80].into()],
        ports,
    }
}

fn hash(types: HashTypes, flow: &Flow) -> Option<(u32, HashKind)> {
    let limits = HashLimits { types, ..LIMITS };
    let hash = Rss::new(&limits, KEY, 2).hash(flow);
    hash.map(|hash| (hash.value, hash.kind))
}

/// Specification 5.1.6.4.3.1: ports where the types say so, else addresses,
/// else nothing.
#[test]
fn the_types_say_what_is_hashed() {
    let ports = [2794, 1766];
    let tcp = flow(Some((Protocol::Tcp, ports)));
    let udp = flow(Some((Protocol::Udp, ports)));
    let other = flow(None);
    let (with_ports, without) = (0x51cc_c178, 0x323e_8fc2);
    let all = HashTypes::all();
    assert_eq!(hash(all, &tcp), Some((with_ports, HashKind::Tcpv4)));
    assert_eq!(hash(all, &udp), Some((with_ports, HashKind::Udpv4)));
    assert_eq!(hash(all, &other), Some((without, HashKind::Ipv4)));
    let no_udp = all - HashTypes::UDPV4;
    assert_eq!(hash(no_udp, &tcp), Some((with_ports, HashKind::Tcpv4)));
    assert_eq!(hash(no_udp, &udp), Some((without, HashKind::Ipv4)));
    let only_udp = HashTypes::UDPV4;
    assert_eq!(hash(only_udp, &udp), Some((with_ports, HashKind::Udpv4)));
    assert_eq!(hash(only_udp, &tcp), None);
    assert_eq!(hash(only_udp, &other), None);
    let v6 = Flow {
        addresses: [
            "3ffe:2501:200:1fff::7".parse().unwrap(),
            "3ffe:2501:200:3::1".parse().unwrap(),
        ],
        ports: Some((Protocol::Udp, ports)),
    };
    assert_eq!(hash(all, &v6), Some((0x4020_7d3d, HashKind::Udpv6)));
    assert_eq!(hash(no_udp, &v6), Some((0x4020_7d3d, HashKind::Udpv6)));
    let v6 = v6.without_ports();
    assert_eq!(hash(all, &v6), Some((0x2cc1_8cd5, HashKind::Ipv6)));
    assert_eq!(hash(HashTypes::IPV4, &v6), None);
}

#[test]
fn the_table_is_a_power_of_two_and_spread_evenly() {
    for (offered, length) in [
        (0, 0),
        (1, 1),
        (3, 2),
        (100, 64),
        (128, 128),
        (129, 128),
        (u16::MAX, 128),
    ] {
        let limits = HashLimits {
            max_table_length: offered,
            ..LIMITS
        };
        assert_eq!(limits.table_length(), length);
        for pairs in [1, 2, 3, 8, u16::MAX] {
            let rss = Rss::new(&limits, KEY, pairs);
            assert_eq!(rss.table().len(), usize::from(length));
            assert_eq!(rss.pairs(), pairs.clamp(1, length.max(1)));
            let shares: Vec<_> = (0..rss.pairs())
                .map(|pair| rss.table().iter().filter(|entry| **entry == pair).count())
                .collect();
            let least = shares.iter().min().unwrap();
            let most = shares.iter().max().unwrap();
            assert!(most - least <= 1, "{shares:?}");
            assert!(rss.table().iter().all(|pair| *pair < rss.pairs()));
        }
    }
}

/// Where answers arrive is where the flow is sent by.
#[test]
fn both_directions_agree() {
    for pairs in [2, 3, 4] {
        let rss = Rss::new(&LIMITS, KEY, pairs);
        let mut seen = Vec::new();
        for port in 0..200 {
            let sent = flow(Some((Protocol::Udp, [port, 7])));
            let answer = flow(Some((Protocol::Udp, [7, port])));
            let answer = Flow {
                addresses: [answer.addresses[1], answer.addresses[0]],
                ..answer
            };
            let hash = answer.hash(&KEY);
            let pair = rss.select_queue(&sent);
            assert_eq!(pair, rss.table()[hash as usize % 128]);
            seen.push(pair);
        }
        assert!((0..pairs).all(|pair| seen.contains(&pair)));
        assert_eq!(rss.pair_of(None), 0);
    }
    // No table leads nowhere but to the first.
    let reports = Rss::reports_only(&LIMITS, KEY);
    assert_eq!(reports.select_queue(&flow(None)), 0);
}

#[test]
fn reports_are_the_specification_s() {
    for report in 1..=9 {
        assert_eq!(
            HashKind::from_report(report).map(|kind| kind as u16),
            Some(report)
        );
    }
    for report in [0, 10, u16::MAX] {
        assert_eq!(HashKind::from_report(report), None);
    }
}
