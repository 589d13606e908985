//! TCP echo, discard and chargen, and clients that want it all for themselves.

mod common;

use common::*;
use smoltcp::socket::tcp;
use smoltcp::time::Duration;

fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// Sends `data` to the TCP echo at `address` and checks what comes back.
fn echo(world: &mut World, address: smoltcp::wire::IpAddress, data: &[u8]) {
    let socket = world.connect((address, 7));
    let (mut sent, mut back) = (0, vec![]);
    world.wait(600, |w| {
        if sent < data.len() {
            sent += w.tcp_socket(socket).send_slice(&data[sent..]).unwrap();
            if sent == data.len() {
                w.tcp_socket(socket).close();
            }
        }
        back.extend(w.take(socket));
        !w.tcp_socket(socket).may_recv()
    });
    assert!(back == data, "{} of {} bytes", back.len(), data.len());
    world.run(3);
    world.sockets.remove(socket);
}

#[test]
fn the_echo_of_8_mib_is_intact_and_closes_with_the_client() {
    let mut world = World::new();
    echo(&mut world, GUEST, &pattern(8 << 20));
    echo(&mut world, GUEST_V6, &pattern(100_000));
}

/// A client whose SYN is not answered in time sends it again. Wherever the
/// sockets of the service lie by then, it stays one connection.
#[test]
fn a_syn_that_comes_again_is_no_other_connection() {
    for closed in 0..4 {
        let mut world = World::new();
        let others: Vec<_> = (0..4).map(|_| world.connect((GUEST, 7))).collect();
        world.tcp_socket(others[closed]).close();
        world.wait(5, |w| is_over(w, others[closed]));
        let socket = world.tcp((GUEST, 7));
        world.turn_host();
        let syn = world.guest.inbox.borrow().back().unwrap().clone();
        // Each is answered before the next one comes.
        for _ in 0..3 {
            world.turn_guest();
            world.inject(syn.clone());
        }
        world.wait(5, |w| w.tcp_socket(socket).may_send());
        for &talking in others.iter().chain([&socket]) {
            if talking == others[closed] {
                continue;
            }
            world.send(talking, b"one");
            assert_eq!(world.receive(talking, 3), b"one", "{closed}");
        }
    }
}

/// Whether both ends have closed.
fn is_over(world: &mut World, socket: smoltcp::iface::SocketHandle) -> bool {
    world.tcp_socket(socket).state() == tcp::State::TimeWait
}

#[test]
fn discard_reads_everything() {
    let mut world = World::new();
    let socket = world.connect((GUEST, 9));
    let mut left: usize = 1 << 20;
    let data = pattern(65535);
    world.wait(60, |w| {
        let piece = &data[..left.min(data.len())];
        left -= w.tcp_socket(socket).send_slice(piece).unwrap();
        left == 0 && w.tcp_socket(socket).send_queue() == 0
    });
    assert!(world.take(socket).is_empty());
    world.tcp_socket(socket).close();
    world.wait(5, |w| is_over(w, socket));
}

#[test]
fn chargen_goes_on_until_the_client_closes() {
    let mut world = World::new();
    let socket = world.connect((GUEST, 19));
    let mut text = vec![];
    world.wait(60, |w| {
        text.extend(w.take(socket));
        text.len() > 1 << 20
    });
    assert_chargen(&text);
    world.tcp_socket(socket).close();
    world.wait(5, |w| {
        w.take(socket);
        is_over(w, socket)
    });
}

#[test]
fn idle_connections_are_closed() {
    let mut world = World::new();
    let sockets: Vec<_> = [7, 9, 80].map(|port| world.connect((GUEST, port))).into();
    world.run(61_000);
    for socket in sockets {
        assert!(!world.tcp_socket(socket).may_send());
    }
}

/// 200 clients at each service, over and over, that send nothing, or ask for
/// much and never read; none of them ever closes.
#[test]
fn greedy_clients_do_not_stop_the_echo_of_others() {
    let mut world = World::new();
    let udp = world.udp();
    let busy = world.connect((GUEST, 7));
    let mut crowd = vec![];
    for round in 0..50u32 {
        for client in 0..16 {
            let port = [7, 9, 19, 80][client % 4];
            let socket = world.tcp((GUEST, port));
            crowd.push((socket, client));
        }
        for step in 0..60u32 {
            // A UDP client and a TCP client that were there before.
            let text = (round * 1000 + step).to_be_bytes();
            assert_eq!(world.udp_ask(udp, (GUEST, 7), &text), text);
            world.send(busy, &text);
            assert_eq!(world.receive(busy, 4), text);
            for &(socket, client) in &crowd {
                let socket = world.tcp_socket(socket);
                if client % 8 >= 4 && socket.may_send() && socket.send_queue() < 1000 {
                    let _ = socket.send_slice(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                }
            }
        }
        // The dead make place on our side.
        crowd.retain(|&(socket, _)| {
            let open = world.tcp_socket(socket).is_open();
            if !open {
                world.sockets.remove(socket);
            }
            open
        });
    }
    // New clients get in, at the latest when the crowd has been idle a while.
    world.run(600);
    echo(&mut world, GUEST, b"in spite of them all");
    let page = world.converse(80, b"HEAD / HTTP/1.0\r\n\r\n", 5);
    assert!(page.starts_with(b"HTTP/1.1 200 OK"));
}

/// However connections end, their places come back: the six that a service has
/// of eight serve many more than six, and then all six at once.
#[test]
fn no_place_is_lost() {
    let mut world = World::new();
    world.stack.set_heap(SMALL);
    for n in 0..100 {
        let socket = world.tcp((GUEST, 7));
        // Reset at every stage of a connection.
        for _ in 0..n % 4 {
            world.step();
        }
        if n % 3 == 0 {
            world.tcp_socket(socket).close();
        } else {
            world.tcp_socket(socket).abort();
        }
        world.run(3);
        if n % 5 == 0 {
            world.run(700);
        }
        world.sockets.remove(socket);
    }
    world.run(700);
    assert_eq!(world.stack.network().tcp_connections, 0);
    let all: Vec<_> = (0..6).map(|_| world.connect((GUEST, 7))).collect();
    assert_eq!(world.stack.network().tcp_connections, 6);
    // The SYN of a seventh is dropped while they are new, not answered by RST,
    // and there is room for another service.
    let seventh = world.tcp((GUEST, 7));
    world.run(5);
    assert_eq!(world.tcp_socket(seventh).state(), tcp::State::SynSent);
    world.connect((GUEST, 80));
    for &socket in &all {
        world.send(socket, b"x");
        assert_eq!(world.receive(socket, 1), b"x");
    }
    // One of those gives way when they have done nothing for a while.
    world.wait(4, |w| w.tcp_socket(seventh).may_send());
    world.run(5);
    let left = all.iter().filter(|&&s| world.tcp_socket(s).may_send());
    assert_eq!(left.count(), 5);
}

/// The heap that is left of little memory: room for eight connections.
const SMALL: usize = 512 << 10;

/// What is left of 128 MB: a thousand clients are served at the same time.
#[test]
fn a_thousand_connections_at_once() {
    let mut world = World::new();
    world.stack.set_heap(96 << 20);
    let mut clients = vec![];
    for n in 0..1000 {
        let socket = world.tcp_with((GUEST, [7, 80][n % 2]), 2048);
        clients.push(socket);
        if n % 50 == 0 {
            world.run(3);
        }
    }
    world.run(20);
    for (n, &socket) in clients.iter().enumerate() {
        let socket = world.tcp_socket(socket);
        assert_eq!(socket.state(), tcp::State::Established, "{n}");
        let text: &[u8] = [b"hello".as_slice(), b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"][n % 2];
        socket.send_slice(text).unwrap();
    }
    world.run(20);
    for (n, &socket) in clients.iter().enumerate() {
        let answer = world.take(socket);
        let expected: &[u8] = [b"hello".as_slice(), b"HTTP/1.1 200 OK"][n % 2];
        assert!(answer.starts_with(expected), "{n}: {answer:?}");
    }
}

/// Twelve that send a byte every 400 ms hold all eight places, again and again;
/// others are served all the same.
#[test]
fn slow_requests_give_way() {
    let mut world = World::new();
    world.stack.set_heap(SMALL);
    let mut slow = vec![];
    let mut start = world.now;
    for fetch in 0..30 {
        while slow.len() < 12 {
            slow.push(world.tcp_with((GUEST, 80), 2048));
        }
        let honest = world.tcp_with((GUEST, 80), 2048);
        let mut asked = false;
        world.wait(10, |w| {
            if w.now - start > Duration::from_millis(400) {
                start = w.now;
                for &socket in &slow {
                    let _ = w.tcp_socket(socket).send_slice(b"G");
                }
            }
            let socket = w.tcp_socket(honest);
            if socket.may_send() && !asked {
                socket.send_slice(b"HEAD / HTTP/1.0\r\n\r\n").unwrap();
                asked = true;
            }
            assert!(socket.is_open(), "fetch {fetch} was thrown out");
            w.take(honest).starts_with(b"HTTP/1.1 200 OK")
        });
        world.tcp_socket(honest).abort();
        slow.retain(|&socket| world.tcp_socket(socket).is_open());
    }
}

/// Ten SYNs a millisecond that lead nowhere cost nobody else more than one SYN
/// sent again.
#[test]
fn a_flood_of_syns_costs_others_little() {
    let mut world = World::new();
    let mut number = 0_u16;
    for _ in 0..20 {
        let honest = world.tcp_with((GUEST, 80), 2048);
        let start = world.now;
        world.wait(5, |w| {
            for _ in 0..10 {
                number = number.wrapping_add(1);
                let ip = packet(HOST_MAC, [10, 0, 2, 77], GUEST4);
                let syn = ip.tcp(number, 80, 1, 64000).syn();
                w.inject(frame(|f| syn.write(f, &[])));
            }
            w.tcp_socket(honest).may_send()
        });
        assert!(world.now - start < Duration::from_millis(1500));
        world.send(honest, b"HEAD / HTTP/1.0\r\n\r\n");
        world.wait(2, |w| !w.take(honest).is_empty());
    }
}

#[test]
fn a_fin_that_comes_again_is_acknowledged_until_time_wait_is_over() {
    const FLAGS: usize = 47;
    let mut world = World::new();
    let socket = world.connect((GUEST, 80));
    world.send(socket, b"GET / HTTP/1.0\r\n\r\n");
    world.read_to_end(socket, 5);
    world.tcp_socket(socket).close();
    world.turn_host();
    let fin = {
        let inbox = world.guest.inbox.borrow();
        inbox.iter().find(|frame| frame[FLAGS] & 1 != 0).cloned()
    };
    let fin = fin.expect("no FIN");
    world.run(5);
    let again = |world: &mut World| {
        world.guest.outbox.borrow_mut().clear();
        let mut frames = world.answers_to(fin.clone());
        frames.retain(|frame| frame[12..14] == [8, 0]);
        assert_eq!(frames.len(), 1, "{frames:x?}");
        frames[0].clone()
    };
    for _ in 0..3 {
        let answer = again(&mut world);
        let number = |f: &[u8], at: usize| u32::from_be_bytes(*f[at..].first_chunk().unwrap());
        assert_eq!(answer[FLAGS], 0x10);
        assert_eq!(number(&answer, 38), number(&fin, 42));
        assert_eq!(number(&answer, 42), number(&fin, 38).wrapping_add(1));
        world.now += Duration::from_secs(3);
    }
    world.now += Duration::from_secs(2);
    world.turn_guest();
    // Nobody knows it any more.
    assert_eq!(again(&mut world)[FLAGS] & 4, 4);
    // And while one waits, its ends may begin anew.
    for _ in 0..300 {
        let page = world.converse(80, b"HEAD / HTTP/1.0\r\n\r\n", 5);
        assert!(page.starts_with(b"HTTP/1.1 200 OK"));
    }
}
