//! This machine's sockets against servers of this process.

use std::net::TcpListener;

use super::*;
use crate::qemu::Protocol;

const BOUND: Duration = Duration::from_secs(10);
const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15));

fn forward(protocol: Protocol, host_port: u16, guest_port: u16) -> HostSockets {
    HostSockets::forwarded(vec![Forward {
        protocol,
        host_port,
        guest_port,
    }])
}

/// A UDP server that answers with what `change` makes of a datagram.
fn udp_server(change: fn(&mut Vec<u8>)) -> HostSockets {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut answer = buffer[..length].to_vec();
            change(&mut answer);
            socket.send_to(&answer, from).unwrap();
        }
    });
    forward(Protocol::Udp, port, ECHO_PORT)
}

/// A TCP server that does this with its first connection.
fn tcp_server(guest_port: u16, serve: fn(TcpStream)) -> HostSockets {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || serve(listener.accept().unwrap().0));
    forward(Protocol::Tcp, port, guest_port)
}

fn echo(mut stream: TcpStream) {
    let mut reader = stream.try_clone().unwrap();
    let _ = io::copy(&mut reader, &mut stream);
}

#[test]
fn udp_is_compared() {
    let honest = udp_server(|_| {});
    for size in [0, 1, 1472, 9000] {
        assert_eq!(honest.udp_echo(GUEST, size, BOUND).unwrap().bytes, size);
    }
    let changes: [fn(&mut Vec<u8>); 3] = [|d| d[5] ^= 1, |d| d.truncate(63), |d| d.push(0)];
    for change in changes {
        let error = udp_server(change).udp_echo(GUEST, 64, BOUND).unwrap_err();
        assert!(matches!(error, WireError::Content { .. }), "{error}");
    }
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = silent.local_addr().unwrap().port();
    let silent_end = forward(Protocol::Udp, port, ECHO_PORT);
    let bound = Duration::from_millis(200);
    let error = silent_end.udp_echo(GUEST, 64, bound).unwrap_err();
    assert!(matches!(error, WireError::Timeout { .. }), "{error}");
}

#[test]
fn tcp_streams_are_compared() {
    let far = tcp_server(ECHO_PORT, echo);
    assert_eq!(
        far.tcp_echo(GUEST, 3_000_001, BOUND).unwrap().bytes,
        3_000_001
    );

    let far = tcp_server(ECHO_PORT, |mut stream| {
        let mut bytes = vec![0; 1000];
        stream.read_exact(&mut bytes).unwrap();
        bytes.rotate_left(8);
        stream.write_all(&bytes).unwrap();
    });
    let error = far.tcp_echo(GUEST, 1000, BOUND).unwrap_err();
    assert!(matches!(error, WireError::Content { .. }), "{error}");

    let far = tcp_server(ECHO_PORT, |mut stream| {
        let mut bytes = vec![0; 10];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let error = far.tcp_echo(GUEST, 10_000_000, BOUND).unwrap_err();
    let is_end = matches!(error, WireError::Closed { .. } | WireError::System { .. });
    assert!(is_end, "{error}");

    // Takes everything, answers nothing.
    let far = tcp_server(ECHO_PORT, |mut stream| {
        let _ = io::copy(&mut stream, &mut io::sink());
    });
    let error = far
        .tcp_echo(GUEST, 1000, Duration::from_millis(300))
        .unwrap_err();
    assert!(matches!(error, WireError::Timeout { .. }), "{error}");
}

#[test]
fn pages_are_fetched() {
    let far = tcp_server(HTTP_PORT, |mut stream| {
        let mut request = [0; 4096];
        let length = stream.read(&mut request).unwrap();
        assert!(request[..length].starts_with(b"GET /stats.json HTTP/1.1\r\n"));
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        for byte in answer {
            stream.write_all(&[*byte]).unwrap();
        }
    });
    let page = far.http_get(GUEST, "/stats.json", BOUND).unwrap();
    assert_eq!((page.status, &page.body[..]), (200, &b"{}"[..]));
}

#[test]
fn what_this_end_cannot_do_is_said() {
    let far = forward(Protocol::Tcp, 1, HTTP_PORT);
    for error in [
        far.ping(GUEST, 1, 1, BOUND).unwrap_err(),
        far.udp_echo(GUEST, 1, BOUND).unwrap_err(),
        far.tcp_echo(GUEST, 1, BOUND).unwrap_err(),
    ] {
        assert!(matches!(error, WireError::NotPossible(_)), "{error}");
    }
    let nowhere = HostSockets::in_namespace("/does/not/exist");
    let error = nowhere.udp_echo(GUEST, 1, BOUND).unwrap_err();
    assert!(matches!(error, WireError::System { .. }), "{error}");
}

#[test]
fn the_first_byte_that_is_not_the_texts_is_named() {
    let text: Vec<u8> = (0..3 * CHARGEN_PERIOD).map(chargen).collect();
    for position in [0, 1, 73, CHARGEN_PERIOD - 1, CHARGEN_PERIOD, 20_000] {
        let read: Vec<u8> = text
            .iter()
            .cycle()
            .skip(position)
            .take(15_000)
            .copied()
            .collect();
        assert_eq!(differs(position, &read), None);
        for at in [0, 1, 7_029, 7_030, 14_999] {
            let mut wrong = read.clone();
            wrong[at] ^= 1;
            assert_eq!(differs(position, &wrong), Some(position + at));
        }
        assert_eq!(differs(position + 1, &read), Some(position + 1));
    }
    assert_eq!(differs(5, &[]), None);
}
