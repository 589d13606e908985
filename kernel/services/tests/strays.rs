//! TCP segments that a device with several queues puts into another one than
//! that of their connection.

mod common;

use common::*;
use smoltcp::wire::{EthernetFrame, Ipv4Packet, TcpPacket};

/// Has the host send this to the echo service, and takes the segments off the
/// cable.
fn segments(world: &mut World, socket: smoltcp::iface::SocketHandle, text: &[u8]) -> Vec<Vec<u8>> {
    world.send(socket, text);
    world.turn_host();
    let segments: Vec<_> = world.guest.inbox.borrow_mut().drain(..).collect();
    assert!(!segments.is_empty());
    segments
}

/// Whether a frame is a TCP segment with RST.
fn is_reset(frame: &[u8]) -> bool {
    let frame = EthernetFrame::new_checked(frame).unwrap();
    let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
    TcpPacket::new_checked(packet.payload()).unwrap().rst()
}

#[test]
fn a_connection_survives_that_its_segments_come_to_another_stack() {
    let mut world = World::new();
    world.stack.share_frames();
    let socket = world.connect((GUEST, 7));
    let mut other = second(&world);
    other.inject_all(segments(&mut world, socket, b"where are you?"));
    // It is not its own to answer.
    assert!(other.sent().is_empty());
    let strays: Vec<_> = other.stack.take_strays().collect();
    assert_eq!(strays.len(), 1);
    for frame in strays {
        let guest = &mut other.guest;
        assert!(!other.stack.receive_stray(world.now, &frame, false, guest));
        assert!(guest.outbox.borrow().is_empty());
        let (stack, guest) = (&mut world.stack, &mut world.guest);
        assert!(stack.receive_stray(world.now, &frame, true, guest));
    }
    assert_eq!(world.receive(socket, 14), b"where are you?");
}

#[test]
fn what_no_stack_has_is_reset_by_the_last_one() {
    let mut world = World::new();
    world.stack.share_frames();
    let socket = world.connect((GUEST, 7));
    // Two stacks that never heard of the connection, but of the host.
    let (mut first, mut last) = (second(&world), second(&world));
    for frame in world.stack.take_shared() {
        last.stack.receive_shared(world.now, &frame);
    }
    first.inject_all(segments(&mut world, socket, b"who are you?"));
    assert!(first.sent().is_empty());
    for frame in first.stack.take_strays() {
        let guest = &mut last.guest;
        assert!(!last.stack.receive_stray(world.now, &frame, true, guest));
    }
    let answers = last.guest.outbox.borrow();
    assert_eq!(answers.len(), 1);
    assert!(is_reset(&answers[0]));
}

#[test]
fn a_stack_alone_answers_at_once() {
    let mut world = World::new();
    let socket = world.connect((GUEST, 7));
    let segments = segments(&mut world, socket, b"who are you?");
    let mut alone = World::greeted();
    alone.host.inbox.borrow_mut().clear();
    alone.inject_all(segments);
    let answers = alone.sent();
    assert_eq!(alone.stack.take_strays().count(), 0);
    assert_eq!(answers.len(), 1);
    assert!(is_reset(&answers[0]));
}

#[test]
fn others_than_segments_to_this_host_are_no_strays() {
    let mut world = World::new();
    world.stack.share_frames();
    let socket = world.connect((GUEST, 7));
    let segment = segments(&mut world, socket, b"who are you?").remove(0);
    let mut other = second(&world);
    // To another host, and cut short.
    let mut elsewhere = segment.clone();
    elsewhere[33] = 99;
    for frame in [elsewhere, segment[..40].to_vec()] {
        let guest = &mut other.guest;
        assert!(other.stack.receive_stray(world.now, &frame, false, guest));
        other.inject(frame);
    }
    other.turn_guest();
    assert_eq!(other.stack.take_strays().count(), 0);
    // No more than there is room for.
    other.inject_all(std::iter::repeat_n(segment, 100));
    other.turn_guest();
    assert_eq!(other.stack.take_strays().count(), 16);
}
