//! What a network can say to the stack.

use etherparse::PacketBuilder;
use smoltcp::time::Duration;

use crate::common::*;
use crate::input::Input;

const PORTS: [u16; 6] = [7, 9, 19, 80, 68, 4];
/// Frames that one input makes at most.
const MOST: usize = 64;

fn world(config: &str) -> World {
    let mut world = World::with(config);
    world.inject(arp_request());
    world.turn_guest();
    world
}

/// After everything there is service: a datagram is echoed.
fn assert_service(world: &mut World) {
    world.guest.outbox.borrow_mut().clear();
    world.now += Duration::from_secs(2);
    world.inject(arp_request());
    world.turn_guest();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(HOST_MAC, GUEST_MAC)
        .ipv4(HOST4, GUEST4, 64)
        .udp(4711, 7)
        .write(&mut frame, b"still there?")
        .unwrap();
    world.inject(frame);
    world.turn_guest();
    let frames = world.guest.outbox.borrow();
    let answered = frames.iter().any(|frame| frame.ends_with(b"still there?"));
    assert!(answered, "no echo in {} frames", frames.len());
}

/// A frame that the bytes describe: of a known kind with some bytes changed, or none.
fn frame(input: &mut Input<'_>) -> Vec<u8> {
    let ethernet = || PacketBuilder::ethernet2(HOST_MAC, GUEST_MAC);
    let kind = input.u8();
    let port = input.pick(&PORTS);
    let length = usize::from(input.u8());
    let payload = input.bytes(length);
    let mut frame = Vec::new();
    let (sequence, acknowledged) = (u32::from(input.u8()), u32::from(input.u8()));
    let written = match kind % 8 {
        0 => ethernet()
            .ipv4(HOST4, GUEST4, 64)
            .udp(1000, port)
            .write(&mut frame, payload),
        1 => ethernet()
            .ipv6(HOST6.octets(), GUEST6.octets(), 255)
            .udp(1000, port)
            .write(&mut frame, payload),
        2 => ethernet()
            .ipv4(HOST4, GUEST4, 64)
            .tcp(1000, port, sequence, 1000)
            .syn()
            .write(&mut frame, &[]),
        3 => ethernet()
            .ipv4(HOST4, GUEST4, 64)
            .tcp(1000, port, sequence, 1000)
            .ack(acknowledged)
            .write(&mut frame, payload),
        4 => ethernet()
            .ipv6(HOST6.octets(), GUEST6.octets(), 255)
            .icmpv6_raw(sequence as u8, acknowledged as u8, [0; 4])
            .write(&mut frame, payload),
        5 => ethernet()
            .ipv4(HOST4, GUEST4, 64)
            .icmpv4_raw(sequence as u8, acknowledged as u8, [0; 4])
            .write(&mut frame, payload),
        6 => {
            frame = arp_request();
            Ok(())
        }
        _ => {
            frame.extend(payload);
            Ok(())
        }
    };
    if written.is_err() {
        frame.clear();
    }
    for _ in 0..input.u8() % 4 {
        let at = usize::from(input.u8());
        let value = input.u8();
        if let Some(byte) = frame.get_mut(at) {
            *byte = value;
        }
    }
    frame
}

/// Nothing panics, no turn is endless, and there is service afterwards.
pub fn frames(data: &[u8]) {
    let mut input = Input(data);
    let mut world = world("ip=10.0.2.15/24 gateway=10.0.2.2");
    for _ in 0..MOST {
        if input.is_at_end() {
            break;
        }
        let frame = frame(&mut input);
        world.inject(frame);
        if input.u8() % 2 == 0 {
            world.turn_guest();
            world.now += Duration::from_millis(u64::from(input.u8()) * 16);
        }
    }
    world.turn_guest();
    assert_service(&mut world);
}

/// A DHCP server that answers the guest's question as it likes; whatever it says, the
/// guest goes on.
pub fn dhcp(data: &[u8]) {
    let mut input = Input(data);
    let mut world = World::with("ip=dhcp");
    for _ in 0..8 {
        world.turn_guest();
        let asked = world.guest.outbox.borrow_mut().drain(..).rfind(|frame| {
            frame.len() > 42 + 8
                && frame[12..14] == [8, 0]
                && frame[23] == 17
                && frame[36..38] == [0, 67]
        });
        if let Some(asked) = asked {
            let mut message = vec![2, 1, 6, 0];
            message.extend(&asked[46..50]);
            message.resize(16, 0);
            let address = input.pick(&[GUEST4, [0; 4], [255; 4], [127, 0, 0, 1], HOST4]);
            message.extend(address);
            message.extend(HOST4);
            message.resize(28, 0);
            message.extend(GUEST_MAC);
            message.resize(236, 0);
            message.extend([0x63, 0x82, 0x53, 0x63]);
            if input.u8() % 4 != 0 {
                let kind = input.pick(&[2, 5, 6]);
                message.extend([53, 1, kind, 54, 4, 10, 0, 2, 2, 51, 4, 0, 0, 0, 60]);
                message.extend([1, 4, 255, 255, 255, 0]);
            }
            let length = usize::from(input.u8());
            message.extend(input.bytes(length));
            message.push(255);
            let cut = usize::from(input.u8());
            if cut > 200 {
                message.truncate(cut);
            }
            let mut frame = Vec::new();
            PacketBuilder::ethernet2(HOST_MAC, [0xff; 6])
                .ipv4(HOST4, [255; 4], 64)
                .udp(67, 68)
                .write(&mut frame, &message)
                .unwrap();
            world.inject(frame);
            world.turn_guest();
        }
        world.now += Duration::from_millis(500 + u64::from(input.u8()) * 64);
    }
    // It still answers who asks for it, or asks.
    world.inject(arp_request());
    world.turn_guest();
    let _ = world.stack.network();
}

/// What a client sends to the web server, in segments as the bytes say. Whatever it is,
/// there is an answer or the connection's end, and service.
pub fn http(data: &[u8]) {
    let mut input = Input(data);
    let mut world = world("ip=10.0.2.15/24 gateway=10.0.2.2");
    world.guest.outbox.borrow_mut().clear();
    let segment = |sequence: u32, acknowledge: Option<u32>, payload: &[u8]| {
        let builder = PacketBuilder::ethernet2(HOST_MAC, GUEST_MAC)
            .ipv4(HOST4, GUEST4, 64)
            .tcp(1000, 80, sequence, 60_000);
        let builder = match acknowledge {
            Some(number) => builder.ack(number),
            None => builder.syn(),
        };
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).unwrap();
        frame
    };
    world.inject(segment(0, None, &[]));
    world.turn_guest();
    let answer = world.guest.outbox.borrow_mut().pop_back();
    let answer = answer.expect("an answer to SYN");
    let number = u32::from_be_bytes(answer[38..42].try_into().unwrap()).wrapping_add(1);
    let mut sequence = 1u32;
    while !input.is_at_end() {
        let length = usize::from(input.u8()).max(1);
        let payload = input.bytes(length);
        world.inject(segment(sequence, Some(number), payload));
        sequence = sequence.wrapping_add(payload.len() as u32);
        world.turn_guest();
    }
    assert_service(&mut world);
}
