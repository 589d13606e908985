//! Frames that no honest peer sends: truncated, contradictory, random, and TCP
//! segments just off what a connection expects. Whatever they are, no panic, no
//! endless turn, and the echo answers afterwards.

mod common;

use std::ops::Range;

use common::*;
use etherparse::{PacketBuilder, TcpOptionElement};
use fastrand::Rng;
use smoltcp::wire::*;

fn pick<T: Copy>(random: &mut Rng, from: &[T]) -> T {
    from[random.usize(..from.len())]
}

/// Well-formed frames of every kind that the guest understands.
fn frames() -> Vec<Vec<u8>> {
    let ethernet = || PacketBuilder::ethernet2(HOST_MAC, GUEST_MAC);
    let ipv4 = || packet(HOST_MAC, HOST4, GUEST4);
    let ipv6 = || ethernet().ipv6(HOST6.octets(), GUEST6.octets(), 255);
    let mut frames = vec![];
    let mut add = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = vec![];
        write(&mut frame);
        frames.push(frame);
    };
    let request = |port| ipv4().tcp(1000, port, 2, 1000).ack(1);
    for port in [7, 9, 19, 67, 68, 4] {
        add(&|f| ipv4().udp(1000, port).write(f, &[1; 40]).unwrap());
        add(&|f| ipv6().udp(1000, port).write(f, &[1; 40]).unwrap());
    }
    for port in [7, 9, 19, 80, 4] {
        add(&|f| ipv4().tcp(1000, port, 1, 1000).syn().write(f, &[]).unwrap());
        add(&|f| ipv6().tcp(1000, port, 1, 1000).syn().write(f, &[]).unwrap());
        add(&|f| request(port).write(f, b"GET /").unwrap());
    }
    add(&|f| ipv4().icmpv4_echo_request(1, 2).write(f, &[3; 56]).unwrap());
    add(&|f| ipv6().icmpv6_echo_request(1, 2).write(f, &[3; 56]).unwrap());
    // ICMPv6: errors, router and neighbour discovery, redirect, MLD.
    for kind in [1, 2, 3, 4, 130, 131, 132, 133, 134, 135, 136, 137, 143] {
        let mut body = vec![0; 16];
        body.extend(GUEST6.octets());
        body.extend([1, 1, 0x52, 0x54, 0, 0, 0, 1]);
        body.extend([3, 4, 64, 0xc0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        body.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        add(&|f| ipv6().icmpv6_raw(kind, 0, [0; 4]).write(f, &body).unwrap());
    }
    // Hop-by-hop options, fragments of both versions.
    for (kind, extension) in [
        (0, [58, 0, 5, 2, 0, 0, 1, 0]),
        (44, [58, 0, 0, 1, 0, 0, 0, 1]),
    ] {
        add(&|f| {
            ipv6().icmpv6_echo_request(1, 2).write(f, &[3; 8]).unwrap();
            f[20] = kind;
            f.splice(54..54, extension);
            f[19] += 8;
        });
    }
    for (flags, offset) in [(0x20, 0), (0x20, 185), (0, 185), (0x3f, 0xff), (0x1f, 0xff)] {
        add(&|f| {
            ipv4().udp(1000, 7).write(f, &[1; 1000]).unwrap();
            f[20] = flags;
            f[21] = offset;
            fix_ipv4(f);
        });
    }
    // ARP request, ARP reply.
    for operation in [1, 2] {
        frames.push(arp(operation, HOST_MAC, HOST4, GUEST4));
    }
    frames
}

/// Corrects the IPv4 header's checksum.
fn fix_ipv4(frame: &mut [u8]) {
    let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
    let length = usize::from(packet.header_len());
    if (20..=packet.as_ref().len()).contains(&length) {
        packet.fill_checksum();
    }
}

/// Corrects every checksum that can be found, so that what is wrong elsewhere is
/// looked at.
fn fix(frame: &mut [u8]) -> Option<()> {
    frame.get(..34)?;
    let (source, destination, protocol, range): (IpAddress, IpAddress, _, Range<usize>);
    match [frame[12], frame[13]] {
        [8, 0] => {
            fix_ipv4(frame);
            let packet = Ipv4Packet::new_checked(&frame[14..]).ok()?;
            (source, destination) = (packet.src_addr().into(), packet.dst_addr().into());
            protocol = packet.next_header();
            range = packet.header_len().into()..packet.total_len().into();
        }
        [0x86, 0xdd] => {
            let packet = Ipv6Packet::new_checked(&frame[14..]).ok()?;
            (source, destination) = (packet.src_addr().into(), packet.dst_addr().into());
            protocol = packet.next_header();
            range = packet.header_len()..packet.total_len();
        }
        _ => return None,
    }
    let payload = &mut frame[14..][range];
    match protocol {
        IpProtocol::Udp if UdpPacket::new_checked(&payload[..]).is_ok() => {
            UdpPacket::new_unchecked(payload).fill_checksum(&source, &destination);
        }
        IpProtocol::Tcp if TcpPacket::new_checked(&payload[..]).is_ok() => {
            TcpPacket::new_unchecked(payload).fill_checksum(&source, &destination);
        }
        IpProtocol::Icmp if payload.len() >= 8 => {
            Icmpv4Packet::new_unchecked(payload).fill_checksum();
        }
        IpProtocol::Icmpv6 if payload.len() >= 8 => {
            if let (IpAddress::Ipv6(source), IpAddress::Ipv6(destination)) = (source, destination) {
                Icmpv6Packet::new_unchecked(payload).fill_checksum(&source, &destination);
            }
        }
        _ => {}
    }
    Some(())
}

#[test]
fn random_frames() {
    let mut world = World::greeted();
    let mut random = Rng::with_seed(0x5eed);
    for n in 0..20_000 {
        let length = random.usize(..1515);
        let mut frame = vec![0; length];
        random.fill(&mut frame);
        if n % 4 != 0 && length > 14 {
            // To us, and of a type that we read.
            frame[..6].copy_from_slice(&GUEST_MAC);
            let ethertype = pick(&mut random, &[[8, 0], [8, 6], [0x86, 0xdd]]);
            frame[12..14].copy_from_slice(&ethertype);
            if length > 34 && n % 4 == 2 {
                frame[14] = if ethertype == [8, 0] { 0x45 } else { 0x60 };
            }
            fix(&mut frame);
        }
        world.answers_to(frame);
    }
    world.assert_echo();
}

#[test]
fn every_truncation() {
    let mut world = World::greeted();
    for frame in frames() {
        for length in 0..=frame.len() {
            world.inject(&frame[..length]);
            let mut padded = frame[..length].to_vec();
            padded.resize(frame.len(), 0);
            fix(&mut padded);
            world.answers_to(padded);
        }
    }
    world.run(2000);
    world.assert_echo();
}

#[test]
fn well_formed_frames_with_bytes_changed() {
    let frames = frames();
    for seed in 1..=20 {
        let config = ["ip=dhcp", "ip=10.0.2.15/24"][seed as usize % 2];
        let mut world = World::with(config);
        world.run(4100);
        world.assert_echo();
        let mut random = Rng::with_seed(seed);
        for n in 0..3000 {
            let mut frame = frames[random.usize(..frames.len())].clone();
            for _ in 0..random.usize(..4) {
                let at = random.usize(..frame.len());
                frame[at] = match random.usize(..3) {
                    0 => random.u8(..),
                    1 => frame[at] ^ (1 << random.usize(..8)),
                    _ => pick(&mut random, &[0, 1, 0x7f, 0x80, 0xff]),
                };
            }
            if n % 8 != 0 {
                fix(&mut frame);
            }
            world.inject(frame);
            if n % 3 == 0 {
                world.sent();
            }
            if n % 100 == 0 {
                world.now += smoltcp::time::Duration::from_millis(random.u64(..3000));
            }
        }
        world.sent();
        // An ARP among them may have told the guest that the host is elsewhere:
        // ARP is like that, until the host asks for something.
        world.inject(arp_request());
        world.run(2000);
        world.assert_echo();
    }
}

/// The last TCP segment that the guest sent to `port`: its sequence number after
/// it, and what it acknowledges.
fn tcp_answer(frames: &[Vec<u8>], port: u16) -> Option<(u32, u32)> {
    let mut tcp = frames.iter().filter(|f| f[12..14] == [8, 0] && f[23] == 6);
    let frame = tcp.rfind(|f| f[36..38] == port.to_be_bytes())?;
    let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    let flags = frame[47];
    let length =
        u32::from(u16::from_be_bytes([frame[16], frame[17]])) - 20 - u32::from(frame[46] >> 4) * 4
            + u32::from(flags & 1)
            + u32::from(flags >> 1 & 1);
    Some((number(38).wrapping_add(length), number(42)))
}

/// Connections whose segments are near what is expected, but seldom it.
#[test]
fn tcp_segments_out_of_order() {
    let mut world = World::greeted();
    let mut random = Rng::with_seed(77);
    // From what is expected; mostly just that.
    let near = [
        [0, 0, 0, 0, 1, 2, 5, 100, 1460, 32_767, 32_768].as_slice(),
        &[65_535, 65_536, 1 << 20, 1 << 30, u32::MAX, u32::MAX - 1],
        &[u32::MAX - 100, i32::MAX as u32, 1 << 31, (1 << 31) + 1],
    ]
    .concat();
    for connection in 0..3000u16 {
        let port = 20_000 + connection;
        let service = pick(&mut random, &[7, 9, 19, 80]);
        let mut sequence = random.u32(..);
        let mut acknowledged = 0;
        for segment in 0..random.usize(..30) {
            let number = sequence.wrapping_add(pick(&mut random, &near));
            let acknowledge = u32::wrapping_add(acknowledged, pick(&mut random, &near));
            let window = pick(&mut random, &[0, 1, 100, 1000, 65_535]);
            let ip = packet(HOST_MAC, HOST4, GUEST4);
            let mut builder;
            if segment == 0 {
                builder = ip.tcp(port, service, sequence, window).syn();
                sequence = sequence.wrapping_add(1);
            } else {
                builder = ip.tcp(port, service, number, window);
                if random.usize(..10) != 0 {
                    builder = builder.ack(acknowledge);
                }
                match random.usize(..20) {
                    0 => builder = builder.syn(),
                    1 => builder = builder.rst(),
                    2..=4 => builder = builder.fin(),
                    _ => {}
                }
            }
            if random.usize(..2) == 0 {
                let size = pick(&mut random, &[0, 1, 47, 536, 65_535]);
                let scale = pick(&mut random, &[0, 7, 14, 15, 255]);
                let options = [
                    TcpOptionElement::MaximumSegmentSize(size),
                    TcpOptionElement::WindowScale(scale),
                    TcpOptionElement::SelectiveAcknowledgementPermitted,
                ];
                builder = builder.options(&options).unwrap();
            }
            let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
            let length = pick(&mut random, &[0, 0, 1, 5, text.len()]);
            let answers = world.answers_to(frame(|f| builder.write(f, &text[..length])));
            if let Some((theirs, ours)) = tcp_answer(&answers, port) {
                acknowledged = theirs;
                sequence = ours;
            }
            if random.usize(..4) == 0 {
                let pause = pick(&mut random, &[1, 10, 200, 1000, 3000]);
                world.now += smoltcp::time::Duration::from_millis(pause);
            }
        }
    }
    world.run(1000);
    world.assert_echo();
    let page = world.converse(80, b"GET / HTTP/1.0\r\n\r\n", 5);
    assert!(page.starts_with(b"HTTP/1.1 200"));
}

/// A client that offers window scaling and then sends more than the window, in
/// one batch, before the guest has read anything.
#[test]
fn more_than_the_window() {
    for service in [7, 9, 19, 80] {
        let mut world = World::greeted();
        let segment = |sequence: u32, acknowledge: Option<u32>, data: &[u8]| {
            let ip = packet(HOST_MAC, HOST4, GUEST4);
            let builder = ip.tcp(1000, service, sequence, 1000);
            let builder = match acknowledge {
                Some(number) => builder.ack(number),
                None => {
                    let scale = [TcpOptionElement::WindowScale(7)];
                    builder.syn().options(&scale).unwrap()
                }
            };
            frame(|f| builder.write(f, data))
        };
        let answers = world.answers_to(segment(0, None, &[]));
        let (theirs, ours) = tcp_answer(&answers, 1000).unwrap();
        assert_eq!(ours, 1);
        for n in 0..100u32 {
            world.inject(segment(1 + 1400 * n, Some(theirs), &[b'a'; 1400]));
        }
        world.sent();
        world.assert_echo();
    }
}

/// Reassembly that never ends keeps nobody else's fragments out for long.
#[test]
fn fragments_without_end() {
    let mut world = World::new();
    let socket = world.udp();
    let data: Vec<u8> = (0..4000u32).map(|i| i as u8).collect();
    assert_eq!(world.udp_ask(socket, (GUEST, 7), &data), data);
    for n in 0..100u8 {
        let mut frame = datagram(HOST_MAC, HOST4, GUEST4, [1000, 7], &[1; 1000]);
        frame[18] = n;
        frame[20] = 0x20;
        fix_ipv4(&mut frame);
        world.answers_to(frame);
    }
    world.assert_echo();
    world.run(3100);
    assert_eq!(world.udp_ask(socket, (GUEST, 7), &data), data);
}
