//! What the guest says of itself to the link, and hears of it: ARP with probes and
//! conflicts (RFC 5227), neighbour discovery with duplicates (RFC 4861, 4862),
//! multicast groups (RFC 3810), priority tags, sources that cannot be.

mod common;

use std::net::Ipv6Addr;

use common::*;
use smoltcp::time::Duration;
use smoltcp::wire::*;

const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// The stranger's address.
const OTHER: Ipv6Address = Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
const ALL_NODES: Ipv6Address = Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Lets time pass with nobody at the other end.
fn pass(world: &mut World, milliseconds: u64) -> Vec<Vec<u8>> {
    let mut frames = vec![];
    for _ in 0..milliseconds.div_ceil(50) {
        frames.extend(world.sent());
        world.now += Duration::from_millis(50);
    }
    frames
}

/// A guest that has said all that it says unasked.
fn quiet() -> World {
    let mut world = World::new();
    pass(&mut world, 15_000);
    world
}

fn arp_of(frames: &[Vec<u8>]) -> Vec<&[u8]> {
    let arp = frames.iter().filter(|frame| frame[12..14] == [8, 6]);
    arp.map(|frame| &frame[..]).collect()
}

/// ICMPv6 messages with their ends, the hop-by-hop header taken off.
fn icmpv6_of(frames: &[Vec<u8>]) -> Vec<(Ipv6Address, Ipv6Address, Vec<u8>)> {
    let mut found = vec![];
    for frame in frames.iter().filter(|frame| frame[12..14] == [0x86, 0xdd]) {
        let ends =
            |at: usize| Ipv6Address::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
        let (source, destination) = (ends(22), ends(38));
        let at = if frame[20] == 0 { 62 } else { 54 };
        let message = frame[at..].to_vec();
        let packet = Icmpv6Packet::new_unchecked(&message[..]);
        assert!(packet.verify_checksum(&source, &destination), "{frame:x?}");
        found.push((source, destination, message));
    }
    found
}

fn solicited_node() -> (Ipv6Address, [u8; 6]) {
    let group = Ipv6Address::new(0xff02, 0, 0, 0, 0, 1, 0xff12, 0x3456);
    (group, [0x33, 0x33, 0xff, 0x12, 0x34, 0x56])
}

fn solicitation(source: Ipv6Address, option: bool) -> Vec<u8> {
    let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
        target_addr: GUEST6,
        lladdr: option.then(|| RawHardwareAddress::from_bytes(&STRANGER)),
    });
    let (group, to) = solicited_node();
    icmpv6(255, [source, group], [STRANGER, to], &icmp)
}

fn advertisement(
    source: Ipv6Address,
    target: Ipv6Address,
    mac: [u8; 6],
    flags: NdiscNeighborFlags,
) -> Vec<u8> {
    let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags,
        target_addr: target,
        lladdr: Some(RawHardwareAddress::from_bytes(&mac)),
    });
    icmpv6(255, [source, GUEST6], [STRANGER, GUEST_MAC], &icmp)
}

#[test]
fn a_probe_for_our_address_is_answered() {
    let mut world = quiet();
    // RFC 5227, 2.1.1: from nobody.
    let frames = world.answers_to(arp(1, STRANGER, [0; 4], GUEST4));
    let [answer] = arp_of(&frames)[..] else {
        panic!("{frames:x?}");
    };
    assert_eq!(answer[..6], STRANGER);
    assert_eq!(answer[20..22], [0, 2]);
    assert_eq!(answer[22..28], GUEST_MAC);
    assert_eq!(answer[28..32], GUEST4);
    // For others' addresses nobody answers.
    let for_another = arp(1, STRANGER, [0; 4], [10, 0, 2, 16]);
    assert_eq!(world.answers_to(for_another), [[0; 0]; 0]);
}

#[test]
fn an_address_that_another_claims_is_defended_but_not_for_ever() {
    let mut world = quiet();
    let claim = |world: &mut World, operation| {
        arp_of(&world.answers_to(arp(operation, STRANGER, GUEST4, GUEST4))).len()
    };
    assert_eq!(claim(&mut world, 1), 1);
    for operation in [1, 2, 2] {
        assert_eq!(claim(&mut world, operation), 0);
        pass(&mut world, 1000);
    }
    pass(&mut world, 8000);
    let frames = world.answers_to(arp(1, STRANGER, GUEST4, GUEST4));
    let [defence] = arp_of(&frames)[..] else {
        panic!("{frames:x?}");
    };
    // An announcement: to all, of ourselves.
    assert_eq!(defence[..6], [0xff; 6]);
    assert_eq!(defence[28..32], GUEST4);
    assert_eq!(defence[38..42], GUEST4);
    // Who claims it is not believed.
    world.assert_echo();
}

#[test]
fn what_finds_no_room_waits_asleep() {
    let mut world = World::new();
    world.guest.room = 0;
    world.turn_guest();
    assert!(world.stack.poll_at().is_some_and(|at| at > world.now));
    world.guest.room = 256;
    world.now += Duration::from_millis(1);
    let messages = icmpv6_of(&world.sent());
    assert!(messages.iter().any(|(.., message)| message[0] == 135));
}

#[test]
fn duplicates_are_asked_for_and_found() {
    let mut world = World::new();
    let messages = icmpv6_of(&world.sent());
    let (group, _) = solicited_node();
    let asks = messages.iter().find(|(source, destination, message)| {
        source.is_unspecified() && *destination == group && message[0] == 135
    });
    assert!(asks.is_some(), "{messages:x?}");
    // Somebody has it.
    let flags = NdiscNeighborFlags::OVERRIDE;
    world.inject(advertisement(OTHER, GUEST6, STRANGER, flags));
    world.turn_guest();
    assert_eq!(world.stack.network().ipv6, [""; 0]);
    pass(&mut world, 10_000);
    assert_eq!(world.stack.network().ipv6, [""; 0]);
    // Another link, where nobody has.
    world.stack.link_came_up(world.now);
    pass(&mut world, 3_000);
    assert_eq!(world.stack.network().ipv6.len(), 1);
}

#[test]
fn two_that_want_one_address_at_the_same_time_both_leave_it() {
    let mut world = World::new();
    world.turn_guest();
    world.inject(solicitation(Ipv6Addr::UNSPECIFIED, false));
    world.turn_guest();
    assert_eq!(world.stack.network().ipv6, [""; 0]);
}

#[test]
fn an_address_that_has_been_ours_stays_and_is_told_to_who_wants_it() {
    let mut world = quiet();
    let answers = world.answers_to(solicitation(Ipv6Addr::UNSPECIFIED, false));
    let answers = icmpv6_of(&answers);
    let [(source, destination, message)] = &answers[..] else {
        panic!("{answers:x?}");
    };
    // RFC 4861, 7.2.4: to all nodes, not as solicited, overriding.
    assert_eq!((*source, *destination), (GUEST6, ALL_NODES));
    assert_eq!((message[0], message[4]), (136, 0x20));
    let flags = NdiscNeighborFlags::OVERRIDE;
    world.inject(advertisement(OTHER, GUEST6, STRANGER, flags));
    world.turn_guest();
    assert_eq!(world.stack.network().ipv6.len(), 1);
    // By 7.1.1 who has no address may not say where he is.
    let answers = world.answers_to(solicitation(Ipv6Addr::UNSPECIFIED, true));
    assert_eq!(answers, [[0; 0]; 0]);
    // And whoever has one is answered himself.
    let frames = world.answers_to(solicitation(OTHER, true));
    let answers = icmpv6_of(&frames);
    assert_eq!(frames[0][..6], STRANGER);
    assert_eq!((answers[0].1, answers[0].2[4]), (OTHER, 0x60));
}

#[test]
fn an_advertisement_moves_a_neighbour_only_if_it_overrides() {
    let mut world = quiet();
    world.answers_to(solicitation(OTHER, true));
    let ask = |world: &mut World| {
        let answers = world.answers_to(ping(STRANGER, OTHER, GUEST6, 1, b"where?"));
        answers[0][..6].to_vec()
    };
    assert_eq!(ask(&mut world), STRANGER);
    let moved = [2, 0, 0, 0, 0, 10];
    let (none, overrides) = (NdiscNeighborFlags::empty(), NdiscNeighborFlags::OVERRIDE);
    for (flags, expected) in [(none, STRANGER), (overrides, moved)] {
        world.inject(advertisement(OTHER, OTHER, moved, flags));
        assert_eq!(ask(&mut world), expected);
    }
}

/// The groups of reports by version.
fn reports(frames: &[Vec<u8>]) -> [Vec<Ipv6Address>; 2] {
    let mut found = [vec![], vec![]];
    for (_, destination, message) in icmpv6_of(frames) {
        let group = |bytes: &[u8]| Ipv6Address::from(<[u8; 16]>::try_from(bytes).unwrap());
        match message[0] {
            131 => {
                assert_eq!(group(&message[8..24]), destination);
                found[0].push(destination);
            }
            143 => {
                let all_routers = Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
                assert_eq!(destination, all_routers);
                let records = message[8..].chunks(20);
                assert_eq!(records.len(), usize::from(message[7]));
                found[1].extend(records.map(|record| group(&record[4..])));
            }
            _ => (),
        }
    }
    for frame in frames.iter().filter(|frame| frame[20] == 0) {
        // RFC 3810, 5: a hop limit of 1 and the router alert.
        assert_eq!(frame[21], 1);
        assert_eq!(frame[54..62], [58, 0, 5, 2, 0, 0, 1, 0]);
    }
    found
}

/// A message of ICMPv6 from a router to all nodes.
fn from_router(hop_limit: u8, kind: u8, head: [u8; 4], rest: &[u8]) -> Vec<u8> {
    let router = Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let builder = etherparse::PacketBuilder::ethernet2(STRANGER, [0x33, 0x33, 0, 0, 0, 1])
        .ipv6(router.octets(), ALL_NODES.octets(), hop_limit)
        .icmpv6_raw(kind, 0, head);
    frame(|f| builder.write(f, rest))
}

fn query(v2: bool) -> Vec<u8> {
    let rest = [0; 16].into_iter().chain([2, 125, 0, 0]);
    let rest: Vec<u8> = rest.take(if v2 { 20 } else { 16 }).collect();
    let mut frame = from_router(1, 130, [0x03, 0xe8, 0, 0], &rest);
    // With the router alert before it.
    frame.splice(54..54, [58, 0, 5, 2, 0, 0, 1, 0]);
    frame[19] += 8;
    frame[20] = 0;
    frame
}

#[test]
fn groups_are_reported_unasked_and_to_queriers_of_both_versions() {
    let mut world = World::new();
    let (group, _) = solicited_node();
    assert_eq!(reports(&pass(&mut world, 5000)), [vec![], vec![group; 2]]);
    let none: [Vec<Ipv6Address>; 2] = Default::default();
    assert_eq!(reports(&pass(&mut world, 20_000)), none);
    world.inject(query(true));
    assert_eq!(reports(&pass(&mut world, 1100)), [vec![], vec![group]]);
    world.inject(query(false));
    assert_eq!(reports(&pass(&mut world, 1100)), [vec![group], vec![]]);
    // The old one is remembered, and forgotten.
    world.inject(query(true));
    assert_eq!(reports(&pass(&mut world, 1100)), [vec![group], vec![]]);
    pass(&mut world, 261_000);
    world.inject(query(true));
    assert_eq!(reports(&pass(&mut world, 1100)), [vec![], vec![group]]);
    // Of another link.
    let mut far = query(true);
    far[21] = 2;
    world.inject(far);
    assert_eq!(reports(&pass(&mut world, 1100)), none);
}

#[test]
fn a_router_may_make_the_link_smaller() {
    let mut world = World::new();
    world.wait(5, |w| !w.stack.network().ipv6.is_empty());
    let advertise = |world: &mut World, mtu: u32| {
        let mut rest = vec![0, 0, 0, 0, 0, 0, 0, 0, 5, 1, 0, 0];
        rest.extend(mtu.to_be_bytes());
        world.inject(from_router(255, 134, [64, 0, 0, 0], &rest));
        world.turn_guest();
    };
    // Less than any link has is not believed.
    for (mtu, expected) in [(100, 1500), (1300, 1300), (9000, 1500), (1280, 1280)] {
        advertise(&mut world, mtu);
        let socket = world.connect((GUEST_V6, 19));
        let mut largest = 0;
        for _ in 0..50 {
            world.turn_guest();
            let queue = world.guest.outbox.borrow();
            largest = queue.iter().map(Vec::len).chain([largest]).max().unwrap();
            drop(queue);
            world.step();
            world.take(socket);
        }
        world.tcp_socket(socket).abort();
        world.run(5);
        assert_eq!(largest, 14 + expected, "{mtu}");
    }
}

fn ping_from(source: [u8; 4]) -> Vec<u8> {
    ping(HOST_MAC, source, GUEST4, 1, b"a ping")
}

#[test]
fn a_frame_with_a_priority_and_no_vlan_is_taken() {
    let mut world = World::greeted();
    for (tag, answers) in [(0xa000_u16, 1), (0, 1), (0xa005, 0)] {
        let plain = ping_from(HOST4);
        let tag = tag.to_be_bytes();
        let tagged = [&plain[..12], &[0x81, 0], &tag, &plain[12..]].concat();
        let replies = world.answers_to(tagged);
        let replies = replies.iter().filter(|frame| frame[12..14] == [8, 0]);
        assert_eq!(replies.count(), answers, "{tag:x?}");
    }
    let plain = arp(1, STRANGER, [10, 0, 2, 77], GUEST4);
    let tagged = [&plain[..12], &[0x81, 0, 0x20, 0], &plain[12..]].concat();
    assert_eq!(arp_of(&world.answers_to(tagged)).len(), 1);
}

#[test]
fn packets_from_nowhere_are_dropped_and_counted() {
    let mut world = World::greeted();
    let impossible = [
        [127, 0, 0, 1],
        [255, 255, 255, 255],
        [10, 0, 2, 255],
        [224, 0, 0, 5],
        [0, 0, 0, 0],
        GUEST4,
    ];
    for source in impossible {
        world.inject(ping_from(source));
    }
    assert_eq!(world.sent(), [[0; 0]; 0]);
    assert_eq!(world.stack.network().impossible_sources, 6);
    // IPv4 in IPv6's clothes, on a link.
    let mapped = Ipv6Address::new(0, 0, 0, 0, 0, 0xffff, 0x0a00, 0x0202);
    let answers = world.answers_to(ping(STRANGER, mapped, GUEST6, 1, b"who?"));
    assert_eq!(answers, [[0; 0]; 0]);
}
