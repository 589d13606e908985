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
    let (mut port, mut other) = second(&world);
    let frames = segments(&mut world, socket, b"where are you?");
    port.inbox.borrow_mut().extend(frames);
    while other.poll(world.now, &mut port) {}
    // It is not its own to answer.
    assert!(port.outbox.borrow().is_empty());
    let strays: Vec<_> = other.take_strays().collect();
    assert_eq!(strays.len(), 1);
    for frame in strays {
        assert!(!other.receive_stray(world.now, &frame, false, &mut port));
        assert!(port.outbox.borrow().is_empty());
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
    let (mut port, mut first) = second(&world);
    let (mut last_port, mut last) = second(&world);
    for frame in world.stack.take_shared() {
        last.receive_shared(world.now, &frame);
    }
    let frames = segments(&mut world, socket, b"who are you?");
    port.inbox.borrow_mut().extend(frames);
    while first.poll(world.now, &mut port) {}
    for frame in first.take_strays() {
        assert!(!last.receive_stray(world.now, &frame, true, &mut last_port));
    }
    assert!(port.outbox.borrow().is_empty());
    let answers = last_port.outbox.borrow();
    assert_eq!(answers.len(), 1);
    assert!(is_reset(&answers[0]));
}

#[test]
fn a_stack_alone_answers_at_once() {
    let mut world = World::new();
    let socket = world.connect((GUEST, 7));
    let segments = segments(&mut world, socket, b"who are you?");
    let mut alone = World::new();
    alone.assert_echo();
    alone.host.inbox.borrow_mut().clear();
    for frame in segments {
        alone.inject(frame);
    }
    alone.turn_guest();
    assert_eq!(alone.stack.take_strays().count(), 0);
    let answers = alone.host.inbox.borrow();
    assert_eq!(answers.len(), 1);
    assert!(is_reset(&answers[0]));
}

#[test]
fn others_than_segments_to_this_host_are_no_strays() {
    let mut world = World::new();
    world.stack.share_frames();
    let socket = world.connect((GUEST, 7));
    let segment = segments(&mut world, socket, b"who are you?").remove(0);
    let (mut port, mut other) = second(&world);
    // To another host, and cut short.
    let mut elsewhere = segment.clone();
    elsewhere[33] = 99;
    for frame in [elsewhere, segment[..40].to_vec()] {
        assert!(other.receive_stray(world.now, &frame, false, &mut port));
        port.inbox.borrow_mut().push_back(frame);
    }
    while other.poll(world.now, &mut port) {}
    assert_eq!(other.take_strays().count(), 0);
    // No more than there is room for.
    let frames = std::iter::repeat_n(segment, 100);
    port.inbox.borrow_mut().extend(frames);
    while other.poll(world.now, &mut port) {}
    assert_eq!(other.take_strays().count(), 16);
}
