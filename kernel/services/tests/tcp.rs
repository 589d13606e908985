//! TCP echo, discard and chargen, and clients that want it all for themselves.

mod common;

use common::*;
use smoltcp::socket::tcp;

fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// Sends `data` to the TCP echo at `address` and checks what comes back.
fn echo(world: &mut World, address: smoltcp::wire::IpAddress, data: &[u8]) {
    let socket = world.connect((address, 7));
    let (mut sent, mut back) = (0, vec![]);
    world.until(600, |w| {
        if sent < data.len() {
            sent += w.tcp_socket(socket).send_slice(&data[sent..]).unwrap();
            if sent == data.len() {
                w.tcp_socket(socket).close();
            }
        }
        back.extend(w.take(socket));
        (!w.tcp_socket(socket).may_recv()).then_some(())
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
        world.until(5, |w| {
            (w.tcp_socket(others[closed]).state() == tcp::State::TimeWait).then_some(())
        });
        let socket = world.tcp((GUEST, 7));
        world
            .interface
            .poll(world.now, &mut world.host, &mut world.sockets);
        let syn = world.guest.inbox.borrow().back().unwrap().clone();
        // Each is answered before the next one comes.
        for _ in 0..3 {
            world.turn_guest();
            world.inject(syn.clone());
        }
        world.until(5, |w| w.tcp_socket(socket).may_send().then_some(()));
        for &talking in others.iter().chain([&socket]) {
            if talking == others[closed] {
                continue;
            }
            world.tcp_socket(talking).send_slice(b"one").unwrap();
            let echoed = world.until(5, |w| {
                assert!(w.tcp_socket(talking).may_send(), "reset, {closed}");
                (w.tcp_socket(talking).recv_queue() == 3).then(|| w.take(talking))
            });
            assert_eq!(echoed, b"one");
        }
    }
}

#[test]
fn discard_reads_everything() {
    let mut world = World::new();
    let socket = world.connect((GUEST, 9));
    let mut left: usize = 1 << 20;
    let data = pattern(65535);
    world.until(60, |w| {
        let piece = &data[..left.min(data.len())];
        left -= w.tcp_socket(socket).send_slice(piece).unwrap();
        (left == 0 && w.tcp_socket(socket).send_queue() == 0).then_some(())
    });
    assert!(world.take(socket).is_empty());
    world.tcp_socket(socket).close();
    world.until(5, |w| {
        (w.tcp_socket(socket).state() == tcp::State::TimeWait).then_some(())
    });
}

#[test]
fn chargen_goes_on_until_the_client_closes() {
    let mut world = World::new();
    let socket = world.connect((GUEST, 19));
    let mut text = vec![];
    world.until(60, |w| {
        text.extend(w.take(socket));
        (text.len() > 1 << 20).then_some(())
    });
    let lines: Vec<_> = text.split(|&b| b == b'\n').collect();
    let whole = &lines[..lines.len() - 1];
    assert!(
        whole
            .iter()
            .all(|line| line.len() == 73 && line[72] == b'\r')
    );
    assert!(whole.windows(2).all(|pair| pair[0][1..72] == pair[1][..71]));
    world.tcp_socket(socket).close();
    world.until(5, |w| {
        w.take(socket);
        (w.tcp_socket(socket).state() == tcp::State::TimeWait).then_some(())
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
            world.tcp_socket(busy).send_slice(&text).unwrap();
            let echoed = world.until(1, |w| {
                assert!(
                    w.tcp_socket(busy).may_send(),
                    "the busy client was thrown out"
                );
                (w.tcp_socket(busy).recv_queue() == 4).then(|| w.take(busy))
            });
            assert_eq!(echoed, text);
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

/// However connections end, their sockets come back: the eight of the echo
/// serve many more than eight, and then all eight at once.
#[test]
fn no_socket_is_lost() {
    let mut world = World::new();
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
    let all: Vec<_> = (0..8).map(|_| world.connect((GUEST, 7))).collect();
    // The ninth is refused while they are busy.
    let ninth = world.tcp((GUEST, 7));
    world.run(5);
    assert_eq!(world.tcp_socket(ninth).state(), tcp::State::Closed);
    for socket in all {
        world.tcp_socket(socket).send_slice(b"x").unwrap();
        let back = world.until(1, |w| Some(w.take(socket)).filter(|back| !back.is_empty()));
        assert_eq!(back, b"x");
    }
}

/// Eight clients at once, none of which waits for another.
#[test]
fn a_burst_of_connections_is_accepted() {
    let mut world = World::new();
    world.assert_echo();
    let sockets: Vec<_> = (0..8).map(|_| world.tcp((GUEST, 80))).collect();
    world.run(5);
    for socket in sockets {
        assert_eq!(world.tcp_socket(socket).state(), tcp::State::Established);
    }
}
