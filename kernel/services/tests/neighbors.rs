//! The first packets of senders that the guest does not know yet, and of those
//! that another stack of the device has heard of.

mod common;

use common::*;
use smoltcp::time::Duration;
use smoltcp::wire::*;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// An ARP message of a host to the guest.
fn arp(operation: u8, sender: [u8; 4]) -> Vec<u8> {
    common::arp(operation, mac_of(sender), sender, GUEST4)
}

/// Every sender has its own.
fn mac_of(sender: [u8; 4]) -> [u8; 6] {
    [2, 0, sender[0], sender[1], sender[2], sender[3]]
}

fn ping(sender: [u8; 4], sequence: u16) -> Vec<u8> {
    common::ping(mac_of(sender), sender, GUEST4, sequence, b"a ping")
}

fn datagram(sender: [u8; 4]) -> Vec<u8> {
    common::datagram(mac_of(sender), sender, GUEST4, [1000, 7], b"hello")
}

/// What the guest has sent since the last call.
#[derive(Debug, Default, PartialEq)]
struct Sent {
    /// Who was asked for by ARP.
    asked: Vec<[u8; 4]>,
    /// To whom an echo reply went, and its number.
    replies: Vec<([u8; 4], u16)>,
    /// To whom a datagram went.
    datagrams: Vec<[u8; 4]>,
}

fn sent(world: &mut World) -> Sent {
    let mut sent = Sent::default();
    for frame in world.sent() {
        if frame[12..14] == [8, 6] {
            sent.asked.push(frame[38..42].try_into().unwrap());
            continue;
        }
        if frame[12..14] != [8, 0] {
            continue;
        }
        let to = frame[30..34].try_into().unwrap();
        assert_eq!(frame[..6], mac_of(to), "{frame:x?}");
        match (frame[23], frame[34]) {
            (1, 0) => {
                assert_eq!(frame[42..], *b"a ping");
                let sequence = u16::from_be_bytes([frame[40], frame[41]]);
                sent.replies.push((to, sequence));
            }
            (17, _) => sent.datagrams.push(to),
            other => panic!("{other:?}"),
        }
    }
    sent
}

/// A guest that has said all that it says unasked; what the host at the other
/// end would say is up to the test.
fn quiet() -> World {
    let mut world = World::new();
    sent(&mut world);
    world
}

#[test]
fn a_stranger_is_answered_when_its_address_is_known() {
    let mut world = quiet();
    let sender = [10, 0, 2, 77];
    for sequence in 0..3 {
        world.inject_all([ping(sender, sequence), datagram(sender)]);
    }
    let asked = Sent {
        asked: vec![sender],
        ..Sent::default()
    };
    assert_eq!(sent(&mut world), asked);
    world.inject(arp(REPLY, sender));
    let answered = sent(&mut world);
    assert_eq!(answered.asked, [[0; 4]; 0]);
    assert_eq!(answered.replies, [(sender, 0), (sender, 1), (sender, 2)]);
    assert_eq!(answered.datagrams, [sender; 3]);
    // Once.
    world.now += Duration::from_secs(5);
    assert_eq!(sent(&mut world).replies, []);
}

#[test]
fn many_strangers_at_once_are_each_asked_for_and_answered() {
    let mut world = quiet();
    let senders: Vec<_> = (100..116).map(|n| [10, 0, 2, n]).collect();
    for sender in &senders {
        world.inject(ping(*sender, 5));
    }
    let mut asked = sent(&mut world).asked;
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked, senders);
    for sender in &senders {
        world.inject(arp(REPLY, *sender));
    }
    let replies: Vec<_> = senders.iter().map(|sender| (*sender, 5)).collect();
    assert_eq!(sent(&mut world).replies, replies);
}

#[test]
fn a_stranger_behind_the_router_is_answered_through_it() {
    let mut world = quiet();
    let (sender, router) = ([198, 51, 100, 7], HOST4);
    // smoltcp asks for a neighbour: not for the router within the next second.
    world.inject(ping([10, 0, 2, 77], 0));
    sent(&mut world);
    world.inject(ping(sender, 1));
    assert_eq!(sent(&mut world).asked, [router]);
    world.inject(arp(REPLY, router));
    world.turn_guest();
    let frame = world.guest.outbox.borrow_mut().pop_front().unwrap();
    assert_eq!(frame[..6], mac_of(router));
    assert_eq!(frame[30..34], sender);
}

#[test]
fn ipv6_strangers_are_answered_too() {
    let mut world = quiet();
    let sender: Ipv6Address = "fe80::77".parse().unwrap();
    let mac = [2, 0, 0, 0, 0, 0x77];
    // One before, so that smoltcp does not ask.
    world.inject(ping([10, 0, 2, 77], 0));
    sent(&mut world);
    world.inject(common::ping(mac, sender, GUEST6, 2, b"a ping"));
    world.turn_guest();
    let question = world.guest.outbox.borrow_mut().pop_front().unwrap();
    assert_eq!(question[..6], [0x33, 0x33, 0xff, 0, 0, 0x77]);
    assert_eq!((question[20], question[54]), (58, 135));
    assert_eq!(question[62..78], sender.octets());
    let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE,
        target_addr: sender,
        lladdr: Some(RawHardwareAddress::from_bytes(&mac)),
    });
    world.inject(icmpv6(255, [sender, GUEST6], [mac, GUEST_MAC], &icmp));
    world.turn_guest();
    let reply = world.guest.outbox.borrow_mut().pop_front().unwrap();
    assert_eq!((&reply[..6], reply[54]), (&mac[..], 129));
    assert_eq!(reply[38..54], sender.octets());
}

#[test]
fn what_comes_before_the_mail_about_its_sender_is_answered_after_it() {
    let mut world = quiet();
    world.stack.share_frames();
    let mut other = second(&world);
    let sender = [10, 0, 2, 77];
    // The first stack hears the question, and answers.
    world.inject(arp(REQUEST, sender));
    world.turn_guest();
    let mail: Vec<_> = world.stack.take_shared().collect();
    assert_eq!(mail.len(), 1);
    // The second one does not know of it yet.
    other.inject_all([ping(sender, 1), datagram(sender), ping(sender, 2)]);
    let before = sent(&mut other);
    assert_eq!((before.replies, before.datagrams), (vec![], vec![]));
    // Nobody answers its own question: the mail alone must do.
    for frame in &mail {
        other.stack.receive_shared(world.now, frame);
    }
    assert!(other.stack.poll_at().is_some_and(|at| at <= world.now));
    let after = sent(&mut other);
    assert_eq!(after.replies, [(sender, 1), (sender, 2)]);
    assert_eq!(after.datagrams, [sender]);
    // All have heard it: it is not passed on again.
    assert_eq!(other.stack.take_shared().count(), 0);
}

#[test]
fn who_never_answers_is_asked_for_three_times_and_forgotten() {
    let mut world = quiet();
    let sender = [10, 0, 2, 77];
    world.inject(ping(sender, 1));
    let mut asked = 0;
    for _ in 0..6000 {
        let sent = sent(&mut world);
        assert_eq!(sent.replies, []);
        asked += sent.asked.len();
        world.now += Duration::from_millis(1);
    }
    assert_eq!(asked, 3);
    world.inject(arp(REQUEST, sender));
    assert_eq!(sent(&mut world).replies, []);
}

#[test]
fn forged_senders_are_bounded_and_disturb_nobody() {
    let mut world = quiet();
    let known = [10, 0, 2, 99];
    world.inject(arp(REQUEST, known));
    let mut asked = 0;
    for n in 0..2000u16 {
        // Hosts that do not answer, and some off the network.
        let forged = [10, 0, 2 + (n % 5) as u8, 100 + (n % 100) as u8];
        let chargen = common::datagram(mac_of(forged), forged, GUEST4, [1000, 19], b"hello");
        world.inject_all([ping(forged, n), datagram(forged), chargen]);
        world.inject_all([ping(known, n), datagram(known)]);
        let sent = sent(&mut world);
        assert_eq!(sent.replies, [(known, n)]);
        assert_eq!(sent.datagrams, [known]);
        asked += sent.asked.len();
    }
    assert!(asked <= 18, "{asked} questions at once");
    // Somebody new is heard as well.
    let newcomer = [10, 0, 2, 9];
    world.inject_all([arp(REQUEST, newcomer), datagram(newcomer)]);
    assert_eq!(sent(&mut world).datagrams, [newcomer]);
}

#[test]
fn what_is_due_no_answer_is_not_kept() {
    let mut world = quiet();
    let stranger = [10, 0, 2, 77];
    let mut corrupt = ping(stranger, 1);
    corrupt[41] ^= 1;
    let for_another = common::ping(mac_of(stranger), stranger, [10, 0, 2, 16], 1, b"a ping");
    let from_nobody = ping([0; 4], 1);
    for frame in [corrupt, for_another, from_nobody] {
        world.inject(frame.clone());
        world.turn_guest();
        world.inject(arp(REPLY, stranger));
        world.turn_guest();
        world.now += Duration::from_secs(1);
        assert_eq!(sent(&mut world), Sent::default(), "{frame:x?}");
        // The stranger is forgotten again.
        world.now += Duration::from_secs(61);
        world.turn_guest();
    }
}
