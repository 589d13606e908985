//! TCP connections, the stream echo, and HTTP over them.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;

use super::stack::{Stack, endpoint};
use crate::wire::far_end::{check_pattern, fill_pattern};
use crate::wire::http::{self, Response};
use crate::wire::{ECHO_PORT, Echo, HTTP_PORT, WireError, left};

/// Bytes of each of the two buffers of a connection.
const BUFFER: usize = 128 * 1024;

/// An open connection of a [`super::Peer`]. It stays open until it is given to
/// `tcp_close` or `tcp_abort`.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a connection that is forgotten stays open"]
pub struct Connection {
    handle: SocketHandle,
    to: SocketAddr,
}

impl Connection {
    fn closed(&self, after: usize) -> WireError {
        WireError::Closed {
            what: format!("TCP connection to {}", self.to),
            after,
        }
    }
}

impl Stack {
    pub fn tcp_connect(
        &mut self,
        to: SocketAddr,
        bound: Duration,
    ) -> Result<Connection, WireError> {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        // The far end must not be what a measurement waits for.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let handle = self.sockets.add(socket);
        let what = format!("TCP connection to {to}");
        if let Err(error) = self.connect(handle, endpoint(to.ip(), to.port())) {
            self.sockets.remove(handle);
            return Err(WireError::Argument(format!("{what}: {error}")));
        }
        let connection = Connection { handle, to };
        let state = self.run(&what, bound, |stack| {
            match stack.sockets.get::<tcp::Socket>(handle).state() {
                tcp::State::SynSent | tcp::State::SynReceived => None,
                state => Some(state),
            }
        });
        match state {
            Ok(tcp::State::Closed) => {
                let error = connection.closed(0);
                self.tcp_abort(connection);
                Err(error)
            }
            Ok(_) => Ok(connection),
            Err(error) => {
                self.tcp_abort(connection);
                Err(error)
            }
        }
    }

    pub fn tcp_send(
        &mut self,
        connection: &Connection,
        data: &[u8],
        bound: Duration,
    ) -> Result<(), WireError> {
        let what = format!("{} bytes to {}", data.len(), connection.to);
        let mut done = 0;
        self.run(&what, bound, |stack| {
            let socket = stack.sockets.get_mut::<tcp::Socket>(connection.handle);
            match socket.send_slice(&data[done..]) {
                Ok(more) => done += more,
                Err(_) => return Some(Err(connection.closed(0))),
            }
            (done == data.len()).then_some(Ok(()))
        })?
    }

    pub fn tcp_recv(
        &mut self,
        connection: &Connection,
        buffer: &mut [u8],
        bound: Duration,
    ) -> Result<usize, WireError> {
        let what = format!("bytes from {}", connection.to);
        self.run(&what, bound, |stack| {
            let socket = stack.sockets.get_mut::<tcp::Socket>(connection.handle);
            match socket.recv_slice(buffer) {
                Ok(0) => None,
                Ok(length) => Some(Ok(length)),
                Err(tcp::RecvError::Finished) => Some(Ok(0)),
                Err(tcp::RecvError::InvalidState) => Some(Err(connection.closed(0))),
            }
        })?
    }

    pub fn tcp_close(&mut self, connection: Connection) {
        self.sockets
            .get_mut::<tcp::Socket>(connection.handle)
            .close();
        self.closing.push(connection.handle);
    }

    pub fn tcp_abort(&mut self, connection: Connection) {
        self.sockets
            .get_mut::<tcp::Socket>(connection.handle)
            .abort();
        // One poll sends the RST, and then takes the socket away.
        self.closing.push(connection.handle);
        self.step(Duration::ZERO);
    }

    pub fn tcp_echo(
        &mut self,
        guest: IpAddr,
        size: usize,
        bound: Duration,
    ) -> Result<Echo, WireError> {
        let deadline = Instant::now() + bound;
        let connection = self.tcp_connect(SocketAddr::new(guest, ECHO_PORT), bound)?;
        let start = Instant::now();
        let result = self.echo_stream(&connection, size, bound, left(deadline));
        match result {
            Ok(()) => self.tcp_close(connection),
            Err(_) => self.tcp_abort(connection),
        }
        result.map(|()| Echo {
            bytes: size,
            elapsed: start.elapsed(),
        })
    }

    fn echo_stream(
        &mut self,
        connection: &Connection,
        size: usize,
        bound: Duration,
        left: Duration,
    ) -> Result<(), WireError> {
        let what = format!("TCP echo of {size} bytes");
        let seed = size as u64;
        let (mut sent, mut received) = (0, 0);
        let echoed = self.run(&what, left, |stack| {
            let socket = stack.sockets.get_mut::<tcp::Socket>(connection.handle);
            while sent < size && socket.can_send() {
                let more = socket.send(|room| {
                    let more = room.len().min(size - sent);
                    fill_pattern(seed, sent, &mut room[..more]);
                    (more, more)
                });
                match more {
                    Ok(more) => sent += more,
                    Err(_) => return Some(Err(connection.closed(received))),
                }
            }
            while socket.can_recv() && received < size {
                let more = socket.recv(|bytes| {
                    let more = bytes.len().min(size - received);
                    let checked = check_pattern(&what, seed, received, &bytes[..more]);
                    (more, checked.map(|()| more))
                });
                match more {
                    Ok(Ok(more)) => received += more,
                    Ok(Err(error)) => return Some(Err(error)),
                    Err(_) => return Some(Err(connection.closed(received))),
                }
            }
            if received == size {
                return Some(Ok(()));
            }
            (!socket.may_recv()).then(|| Err(connection.closed(received)))
        });
        match echoed {
            Err(WireError::Timeout { what, .. }) => Err(WireError::Timeout {
                what: format!("{what} ({sent} sent, {received} back)"),
                bound,
            }),
            Err(other) => Err(other),
            Ok(done) => done,
        }
    }

    pub fn http_get(
        &mut self,
        guest: IpAddr,
        path: &str,
        bound: Duration,
    ) -> Result<Response, WireError> {
        let deadline = Instant::now() + bound;
        let connection = self.tcp_connect(SocketAddr::new(guest, HTTP_PORT), bound)?;
        let result = self.http_over(&connection, guest, path, deadline);
        match result {
            Ok(_) => self.tcp_close(connection),
            Err(_) => self.tcp_abort(connection),
        }
        result
    }

    fn http_over(
        &mut self,
        connection: &Connection,
        host: IpAddr,
        path: &str,
        deadline: Instant,
    ) -> Result<Response, WireError> {
        self.tcp_send(connection, &http::request(host, path), left(deadline))?;
        http::receive(host, path, |buffer| {
            self.tcp_recv(connection, buffer, left(deadline))
        })
    }
}
