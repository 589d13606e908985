//! Who gets answers, and where they go: hosts that the guest has heard of, beside
//! a crowd of strangers, and senders that are forged.

mod common;

use std::net::IpAddr;

use common::*;

/// The guest, as somebody of this kind of address knows it.
fn guest(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => GUEST4.into(),
        IpAddr::V6(_) => GUEST6.into(),
    }
}

/// A UDP datagram from a host at this hardware address to the guest's character
/// generator.
fn ask_chargen(mac: [u8; 6], from: IpAddr) -> Vec<u8> {
    datagram(mac, from, guest(from), [4321, 19], b"characters, please")
}

fn is_pong(frame: &[u8]) -> bool {
    match frame[12..14] {
        [0x08, 0x00] => frame[23] == 1 && frame[34] == 0,
        [0x86, 0xdd] => frame[20] == 58 && frame[54] == 129,
        _ => false,
    }
}

/// The hardware addresses to which the guest sends answers of its character
/// generator.
fn answers_of_chargen(world: &mut World) -> Vec<[u8; 6]> {
    let mut frames = world.sent();
    frames.retain(|frame| frame.windows(4).any(|w| w == [0, 19, 0x10, 0xe1]));
    let macs = frames.iter().map(|frame| *frame.first_chunk().unwrap());
    macs.collect()
}

/// Strangers fill the table of neighbours, and have the guest look for hosts
/// that are not there: a host that it has heard of gets its answers at once all
/// the same.
#[test]
fn strangers_cut_nobody_off() {
    // The gateway is not there.
    let mut world = World::with("ip=10.0.2.15/24 gateway=10.0.2.3");
    let stranger = |n: u8| [2, 0xaa, 0, 0, 0, n];
    // The host asks for the guest.
    for guest in [GUEST, GUEST_V6] {
        let socket = world.udp();
        world.udp_ask(socket, (guest, 7), b"here I am");
    }
    let known: [IpAddr; 2] = [HOST4.into(), HOST6.into()];
    for n in 0..=255 {
        // ARP for the guest, from all of its network.
        if ![2, 3, 15].contains(&n) {
            world.inject(arp(1, stranger(n), [10, 0, 2, n], GUEST4));
        }
        // Packets from hosts that never said where they are.
        let nobody = format!("fe80::{n:x}").parse().unwrap();
        world.inject(ask_chargen(stranger(n), nobody));
        let afar = [192, 0, 2, n];
        world.inject(ask_chargen(stranger(n), afar.into()));
        for host in known {
            world.inject(ping(HOST_MAC, host, guest(host), 2, b"ping"));
        }
        let frames = world.sent();
        let pongs = frames.iter().filter(|f| is_pong(f) && f[..6] == HOST_MAC);
        assert_eq!(pongs.count(), 2, "{n}");
    }
}

/// Where a host is, ARP says; a packet in its name does not move it.
#[test]
fn a_forged_sender_moves_nobody() {
    let mut world = World::new();
    let forger = [2, 0xbb, 0, 0, 0, 1];
    world.inject(arp_request());
    answers_of_chargen(&mut world);
    for round in 0..3 {
        world.inject(ask_chargen(forger, HOST4.into()));
        // None, while the guest asks where the host is.
        let answers = answers_of_chargen(&mut world);
        assert!(!answers.contains(&forger), "{round}");
        world.inject(ask_chargen(HOST_MAC, HOST4.into()));
        let answers = answers_of_chargen(&mut world);
        assert!(answers.contains(&HOST_MAC), "{round}");
        assert!(!answers.contains(&forger), "{round}");
        // As many strangers as make the guest unsure of the host.
        for n in 100..140 {
            world.inject(ask_chargen([2, 0xaa, 0, 0, 0, n], [10, 0, 2, n].into()));
        }
        answers_of_chargen(&mut world);
    }
    world.inject(ask_chargen(HOST_MAC, HOST4.into()));
    answers_of_chargen(&mut world);
    // It has a new card, and says so.
    world.inject(arp(1, forger, HOST4, GUEST4));
    answers_of_chargen(&mut world);
    world.inject(ask_chargen(forger, HOST4.into()));
    assert_eq!(answers_of_chargen(&mut world), [forger]);
}

/// Before the guest has heard of a host, a packet in its name tells nothing.
#[test]
fn nothing_is_learnt_from_packets() {
    let mut world = World::new();
    for mac in [HOST_MAC, [0x01, 0, 0x5e, 0, 0, 1]] {
        world.inject(ask_chargen(mac, [10, 0, 2, 77].into()));
        let answers = answers_of_chargen(&mut world);
        assert!(answers.is_empty(), "{answers:x?}");
    }
}
