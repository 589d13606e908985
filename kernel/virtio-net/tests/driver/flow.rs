//! Which flow a frame belongs to, its hash and its pair.

use std::net::IpAddr;

use virtio_net::net::flow::{DEFAULT_KEY, Flow, Protocol, select_queue};

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
    let mut packet = vec![0; 20 + options];
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
        let mut count = vec![0; usize::from(pairs)];
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
