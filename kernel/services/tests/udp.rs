//! UDP: echo of every size, by IPv4 and IPv6, whole and fragmented, no loss;
//! discard, chargen; nothing that two services could say to each other for ever.

mod common;

use common::*;

/// A UDP datagram to the guest in a frame.
fn datagram(source: [u8; 4], source_port: u16, destination: [u8; 4], port: u16) -> Vec<u8> {
    let ports = [source_port, port];
    common::datagram(HOST_MAC, source, destination, ports, b"hello")
}

/// What the guest sends to port `port`, by UDP over IPv4, when it gets this.
fn sent_to(world: &mut World, port: u16, frame: Vec<u8>) -> usize {
    let mut sent = world.answers_to(frame);
    sent.retain(|f| f[12..14] == [8, 0] && f[23] == 17 && f[36..38] == port.to_be_bytes());
    sent.len()
}

#[test]
fn every_size_comes_back() {
    let mut world = World::new();
    let socket = world.udp();
    for (guest, largest) in [(GUEST, 1472u32), (GUEST_V6, 1452)] {
        for size in 0..=largest {
            let data: Vec<u8> = (0..size).map(|i| (i * 7 + size) as u8).collect();
            assert_eq!(world.udp_ask(socket, (guest, 7), &data), data, "{size}");
        }
    }
}

#[test]
fn fragments_come_back() {
    let mut world = World::new();
    let socket = world.udp();
    for size in [1473, 2000, 4096, 8000, 16_000] {
        let data: Vec<u8> = (0..size).map(|i| (i / 8) as u8).collect();
        assert_eq!(world.udp_ask(socket, (GUEST, 7), &data), data, "{size}");
    }
}

#[test]
fn fragments_of_ipv6_come_in_any_order() {
    let mut world = World::new();
    let socket = world.udp();
    world.udp_ask(socket, (GUEST_V6, 7), b"resolve");
    let whole = common::datagram(HOST_MAC, HOST6, GUEST6, [1000, 7], &[7; 40]);
    let (headers, datagram) = whole.split_at(54);
    // Protocol, number of the packet, first and last 8 bytes.
    let fragment = |protocol, packet, [start, end]: [u8; 2]| {
        let part = &datagram[usize::from(start) * 8..usize::from(end) * 8];
        let offset = (start * 8) | u8::from(end < 6);
        let extension = [protocol, 0, 0, offset, 0, 0, 0, packet];
        let mut frame = [headers, &extension, part].concat();
        (frame[19], frame[20]) = (8 + part.len() as u8, 44);
        frame
    };
    let orders: [(&[[u8; 2]], usize); 8] = [
        (&[[0, 6]], 1),
        (&[[0, 2], [2, 6]], 1),
        (&[[4, 6], [2, 4], [0, 2]], 1),
        (&[[0, 2], [0, 2], [4, 6], [4, 6], [2, 4]], 1),
        (&[[0, 1], [2, 3], [4, 6], [3, 4], [1, 2]], 1),
        // A hole; parts that overlap, and what is left of them.
        (&[[0, 2], [4, 6]], 0),
        (&[[0, 3], [2, 6]], 0),
        (&[[0, 3], [2, 4], [3, 6]], 0),
    ];
    for (packet, (order, answers)) in orders.into_iter().enumerate() {
        for part in order {
            world.inject(fragment(17, packet as u8, *part));
        }
        let sent = world.sent();
        let is_answer = |f: &&Vec<u8>| f[20] == 17 && f[62..] == [7; 40];
        assert_eq!(sent.iter().filter(is_answer).count(), answers, "{order:?}");
    }
    // A fragment in a fragment in a fragment.
    assert!(world.answers_to(fragment(44, 100, [0, 6])).is_empty());
    assert_eq!(world.udp_ask(socket, (GUEST_V6, 7), b"on"), b"on");
}

#[test]
fn fragmented_datagrams_in_a_burst_do_not_mix() {
    let mut world = World::new();
    let socket = world.udp();
    world.udp_ask(socket, (GUEST, 7), b"resolve");
    // The host's smoltcp overwrites its own fragments, hence one at a time into
    // the cable; the guest then gets them all at once.
    let outbox = world.host.outbox.clone();
    let mut cable = vec![];
    for n in 0..3u8 {
        world.udp_send(socket, (GUEST, 7), &[n; 5000]);
        while world.turn_host() == smoltcp::iface::PollResult::SocketStateChanged {}
        for _ in 0..8 {
            world.turn_host();
        }
        cable.extend(outbox.borrow_mut().drain(..));
    }
    assert_eq!(cable.len(), 12);
    outbox.borrow_mut().extend(cable);
    for n in 0..3u8 {
        let answer = world.until(1, |w| w.udp_receive(socket));
        assert!(answer == [n; 5000], "{n}");
    }
}

#[test]
fn nothing_is_lost_with_32_outstanding() {
    let mut world = World::new();
    let socket = world.udp();
    let (mut sent, mut received) = (0u32, 0u32);
    while received < 100_000 {
        while sent < 100_000 && sent - received < 32 {
            let mut data = [0; 64];
            data[..4].copy_from_slice(&sent.to_be_bytes());
            world.udp_send(socket, (GUEST, 7), &data);
            sent += 1;
        }
        world.step();
        while let Some(data) = world.udp_receive(socket) {
            assert_eq!(data[..4], received.to_be_bytes());
            received += 1;
        }
    }
}

#[test]
fn nothing_is_lost_when_the_device_is_full() {
    let mut world = World::new();
    let socket = world.udp();
    world.udp_ask(socket, (GUEST, 7), b"resolve");
    world.guest.room = 3;
    for n in 0..64u8 {
        world.udp_send(socket, (GUEST, 7), &[n; 1000]);
    }
    for n in 0..64u8 {
        assert_eq!(world.until(1, |w| w.udp_receive(socket)), [n; 1000]);
    }
}

#[test]
fn discard_is_silent_and_chargen_bounded() {
    let mut world = World::new();
    let socket = world.udp();
    for _ in 0..100 {
        world.udp_send(socket, (GUEST, 9), b"gone");
        world.step();
    }
    assert_eq!(world.udp_receive(socket), None);
    let text = world.udp_ask(socket, (GUEST, 19), b"");
    assert_eq!(text.len(), 512);
    assert!(text.starts_with(b" !\"#$%&'()"));
    assert_eq!(world.udp_receive(socket), None);
    // A burst, and the text goes on where it was.
    let mut all = text;
    for _ in 0..10 {
        world.udp_send(socket, (GUEST, 19), b"more");
    }
    for _ in 0..10 {
        all.extend(world.until(1, |w| w.udp_receive(socket)));
    }
    assert_chargen(&all);
}

#[test]
fn a_closed_port_is_reported_as_such() {
    let mut world = World::greeted();
    let answers = world.answers_to(datagram(HOST4, 1000, GUEST4, 4));
    let answer = answers.last().unwrap();
    // ICMP destination unreachable, port unreachable.
    assert_eq!((answer[23], answer[34], answer[35]), (1, 3, 3));
}

#[test]
fn services_do_not_talk_to_services() {
    let mut world = World::greeted();
    for service in [7, 19] {
        for port in [0, 7, 9, 13, 17, 19, 37] {
            let frame = datagram(HOST4, port, GUEST4, service);
            assert_eq!(sent_to(&mut world, port, frame), 0, "{port} -> {service}");
        }
        let frame = datagram(HOST4, 8, GUEST4, service);
        assert_eq!(sent_to(&mut world, 8, frame), 1);
    }
}

#[test]
fn only_datagrams_to_us_alone_are_answered() {
    let mut world = World::new();
    for known in [false, true] {
        if known {
            world.assert_echo();
        }
        for destination in [[10, 0, 2, 255], [255, 255, 255, 255], [224, 0, 0, 1]] {
            for service in [7, 19] {
                let mut frame = datagram(HOST4, 1000, destination, service);
                frame[..6].fill(0xff);
                let answers = sent_to(&mut world, 1000, frame);
                assert_eq!(answers, 0, "{destination:?} {service}");
            }
        }
    }
    world.assert_echo();
}
