//! Checksums, as a peer sees them: what is corrupt is not answered, whole or in
//! fragments, and what the guest sends is right.

mod common;

use common::*;
use etherparse::{NetHeaders, PacketHeaders};
use smoltcp::wire::{Ipv4Packet, UdpPacket};

fn echo_request(payload: &[u8]) -> Vec<u8> {
    datagram(HOST_MAC, HOST4, GUEST4, [1000, 7], payload)
}

/// Cuts a frame's IPv4 packet into fragments of 1480 bytes.
fn fragments(frame: &[u8], identification: u16) -> Vec<Vec<u8>> {
    let (headers, payload) = frame.split_at(34);
    let count = payload.len().div_ceil(1480);
    payload
        .chunks(1480)
        .enumerate()
        .map(|(n, piece)| {
            let mut fragment = [headers, piece].concat();
            let mut packet = Ipv4Packet::new_unchecked(&mut fragment[14..]);
            packet.set_total_len(20 + piece.len() as u16);
            packet.set_ident(identification);
            packet.set_dont_frag(false);
            packet.set_more_frags(n + 1 < count);
            packet.set_frag_offset(n as u16 * 1480);
            packet.fill_checksum();
            fragment
        })
        .collect()
}

fn answers(world: &mut World) -> usize {
    let frames = world.sent();
    let is_udp = |f: &&Vec<u8>| f[12..14] == [8, 0] && f[23] == 17;
    frames.iter().filter(is_udp).count()
}

#[test]
fn whole_packets() {
    let mut world = World::greeted();
    let frame = echo_request(b"a payload");
    world.inject(&*frame);
    assert_eq!(answers(&mut world), 1);
    for byte in 14..frame.len() {
        let mut corrupt = frame.clone();
        corrupt[byte] ^= 0x10;
        world.inject(corrupt);
        assert_eq!(answers(&mut world), 0, "byte {byte}");
    }
}

#[test]
fn fragmented_packets() {
    let mut world = World::greeted();
    let payload: Vec<u8> = (0..4000u32).map(|i| (i * 31) as u8).collect();
    let frame = echo_request(&payload);
    let mut identification = 0;
    let mut send = |world: &mut World, frame: &[u8], order: &[usize]| {
        identification += 1;
        let fragments = fragments(frame, identification);
        for &n in order {
            world.inject(&*fragments[n]);
        }
        let answers = answers(world);
        // What was not completed is forgotten.
        world.run(3100);
        world.guest.outbox.borrow_mut().clear();
        answers
    };
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        assert_eq!(send(&mut world, &frame, &order), 3, "{order:?}");
    }
    for byte in [34, 38, 41, 42, 1000, 1513, 1514, 3000, frame.len() - 1] {
        let mut corrupt = frame.clone();
        corrupt[byte] ^= 0x10;
        assert_eq!(send(&mut world, &corrupt, &[0, 1, 2]), 0, "byte {byte}");
        assert_eq!(send(&mut world, &corrupt, &[2, 0, 1]), 0, "byte {byte}");
    }
    // A missing one, and one that comes twice in its place.
    assert_eq!(send(&mut world, &frame, &[0, 2]), 0);
    assert_eq!(send(&mut world, &frame, &[0, 0, 2]), 0);
    // Without a checksum it is taken as it is (RFC 768).
    let mut without = frame.clone();
    without[40..42].fill(0);
    assert_eq!(send(&mut world, &without, &[0, 1, 2]), 3);
}

/// Every IPv4, UDP and TCP checksum that the guest sends, by another's count, and ICMP's.
fn assert_right(frame: &[u8]) {
    let sent = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let (Some(net), Some(mut right)) = (&sent.net, sent.transport.clone()) else {
        return;
    };
    let payload = sent.payload.slice();
    match net {
        NetHeaders::Ipv4(ip, _) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            right.update_checksum_ipv4(ip, payload).unwrap();
        }
        NetHeaders::Ipv6(ip, _) => right.update_checksum_ipv6(ip, payload).unwrap(),
        NetHeaders::Arp(_) => {}
    }
    assert_eq!(sent.transport, Some(right));
}

#[test]
fn what_the_guest_sends() {
    let mut world = World::with("ip=dhcp");
    let mut counted = 0;
    let mut check = |world: &mut World| {
        for _ in 0..40 {
            world.turn_guest();
            for frame in world.guest.outbox.borrow().iter() {
                assert_right(frame);
                counted += 1;
            }
            world.step();
        }
    };
    check(&mut world);
    world.run(5000);
    let socket = world.udp();
    for address in [GUEST, GUEST_V6] {
        world.udp_ask(socket, (address, 7), b"resolve");
    }
    for size in 0..70 {
        world.udp_send(socket, (GUEST, 7), &vec![size as u8; size]);
        world.udp_send(socket, (GUEST_V6, 7), &vec![0xff; size * 10]);
        if size % 10 == 0 {
            check(&mut world);
        }
    }
    world.udp_send(socket, (GUEST, 19), b"");
    check(&mut world);
    for address in [GUEST, GUEST_V6] {
        let tcp = world.tcp((address, 19));
        let refused = world.tcp((address, 1));
        check(&mut world);
        world.tcp_socket(tcp).close();
        world.tcp_socket(refused).close();
        check(&mut world);
    }
    assert!(counted > 200, "{counted}");
}

#[test]
fn the_first_fragment_carries_the_checksum_of_all() {
    let mut world = World::greeted();
    for length in [1473, 2000, 4001] {
        let payload: Vec<u8> = (0..length).map(|i| (i * 31) as u8).collect();
        for fragment in fragments(&echo_request(&payload), length as u16) {
            world.inject(fragment);
        }
        let mut datagram = vec![0; 8 + length];
        for frame in world.sent() {
            let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
            assert!(packet.verify_checksum());
            let at = usize::from(packet.frag_offset());
            datagram[at..at + packet.payload().len()].copy_from_slice(packet.payload());
        }
        let datagram = UdpPacket::new_checked(&datagram[..]).unwrap();
        assert_eq!(datagram.payload(), payload);
        assert_ne!(datagram.checksum(), 0);
        assert!(datagram.verify_checksum(&GUEST, &HOST));
    }
}
