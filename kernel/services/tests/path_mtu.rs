//! Paths with a hop that carries less than the link.

mod common;

use common::*;
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, Icmpv6Type};
use smoltcp::wire::IpAddress;

/// The router's message about a frame that it dropped.
fn too_big(dropped: &[u8], mtu: u16) -> Vec<u8> {
    if dropped[12] == 0x08 {
        let guest: [u8; 4] = dropped[26..30].try_into().unwrap();
        let kind = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
        let kind = Icmpv4Type::DestinationUnreachable(kind);
        let builder = packet(HOST_MAC, HOST4, guest).icmpv4(kind);
        frame(|f| builder.write(f, &dropped[14..42]))
    } else {
        let guest: [u8; 16] = dropped[22..38].try_into().unwrap();
        let kind = Icmpv6Type::PacketTooBig { mtu: mtu.into() };
        let builder = packet(HOST_MAC, HOST6, guest).icmpv6(kind);
        frame(|f| builder.write(f, &dropped[14..74]))
    }
}

/// Reads 40 KB of chargen behind a hop of 1280 bytes; `answer` says what the
/// router sends about a frame that it drops. Returns the largest packet that came
/// through, and how many did not.
fn read(
    world: &mut World,
    guest: IpAddress,
    mut answer: impl FnMut(&[u8]) -> Vec<Vec<u8>>,
) -> (usize, usize) {
    let socket = world.connect((guest, 19));
    let (mut text, mut largest, mut dropped) = (vec![], 0, 0);
    world.wait(60, |w| {
        w.turn_guest();
        let frames: Vec<_> = w.host.inbox.borrow_mut().drain(..).collect();
        let before = dropped;
        for frame in frames {
            if frame.len() - 14 > 1280 {
                dropped += 1;
                answer(&frame).into_iter().for_each(|f| w.inject(f));
            } else {
                largest = largest.max(frame.len() - 14);
                w.host.inbox.borrow_mut().push_back(frame);
            }
        }
        if before == 0 && dropped > 0 {
            // The end of the first burst came through because it was small.
            largest = 0;
        }
        text.extend(w.take(socket));
        text.len() > 40_000
    });
    assert_chargen(&text);
    world.tcp_socket(socket).abort();
    world.run(5);
    (largest, dropped)
}

#[test]
fn segments_follow_what_routers_say() {
    for guest in [GUEST, GUEST_V6] {
        let mut world = World::new();
        let (largest, dropped) = read(&mut world, guest, |frame| vec![too_big(frame, 1280)]);
        assert_eq!(largest, 1280);
        assert!(dropped > 0);
        // The next connection knows.
        let (largest, dropped) = read(&mut world, guest, |_| vec![]);
        assert_eq!((largest, dropped), (1280, 0));
    }
}

#[test]
fn a_black_hole_is_got_out_of() {
    for (guest, mtu) in [(GUEST, 1064), (GUEST_V6, 1280)] {
        let (largest, dropped) = read(&mut World::new(), guest, |_| vec![]);
        assert_eq!(largest, mtu);
        assert!(dropped > 0);
    }
}

/// A message that says too little, about another connection, or about what was
/// never sent.
#[test]
fn forged_messages_do_little() {
    let (largest, _) = read(&mut World::new(), GUEST, |frame| vec![too_big(frame, 68)]);
    assert_eq!(largest, 552);
    for (at, change) in [(34, 1), (36, 1), (38, 0x40), (26, 1), (30, 1), (23, 17)] {
        let (largest, _) = read(&mut World::new(), GUEST, |frame| {
            let mut other = frame.to_vec();
            other[at] ^= change;
            vec![too_big(&other, 600)]
        });
        assert_eq!(largest, 1064, "{at}");
    }
}
