//! A bounded number of TCP connections for one service.
//!
//! smoltcp has no backlog: a listening socket becomes the connection, and a SYN
//! that finds no listening socket is answered by RST. A [`Pool`] therefore sees
//! to it, after every frame, that one of its sockets listens. When all are
//! taken, connections without progress for [`EVICTABLE_AFTER`] give way, the
//! one that has been idle longest first; while there are none, new clients get
//! an RST. All buffers are allocated when the pool is made.

use alloc::vec;
use alloc::vec::Vec;
use core::mem;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};

/// A connection that has made no progress for this long is closed when its
/// place is needed.
pub(crate) const EVICTABLE_AFTER: Duration = Duration::from_millis(500);
/// How long an aborted connection waits to send its RST.
const RESET_TIMEOUT: Duration = Duration::from_millis(100);

/// What a service does with a connection.
pub(crate) trait Service {
    /// What it knows of one connection.
    type Connection: Default;

    /// Moves bytes, closes or aborts, as far as that goes now. Called when a
    /// frame has come or a time is due; must do a bounded amount of work.
    fn serve(
        &mut self,
        now: Instant,
        socket: &mut tcp::Socket<'static>,
        connection: &mut Self::Connection,
    );

    /// When the connection must be served although no frame has come.
    fn deadline(_connection: &Self::Connection) -> Option<Instant> {
        None
    }
}

/// The size of a pool.
pub(crate) struct Limits {
    pub(crate) port: u16,
    pub(crate) sockets: usize,
    /// Bytes of each socket's receive buffer, at most [`Limits::MAX_RECEIVE`].
    pub(crate) receive: usize,
    /// Bytes of each socket's transmit buffer.
    pub(crate) transmit: usize,
    /// A connection without progress for this long is aborted.
    pub(crate) idle: Duration,
}

impl Limits {
    /// The largest receive buffer. From 64 KiB on smoltcp 0.14 scales windows,
    /// also the one of its SYN, which the client must not and does not scale
    /// (RFC 7323, 2.2): a client that sends more than that window then writes
    /// past the buffer's end, which ends in an assertion.
    pub(crate) const MAX_RECEIVE: usize = 65_535;
}

struct Connection<T> {
    socket: SocketHandle,
    state: T,
    /// When it last made progress: data came, or the client acknowledged some.
    active: Instant,
    /// Bytes in the transmit buffer after the service last saw it.
    queued: usize,
}

/// See the module.
pub(crate) struct Pool<C> {
    limits: Limits,
    listener: Option<SocketHandle>,
    connections: Vec<Connection<C>>,
    /// Sockets out of use.
    spare: Vec<tcp::Socket<'static>>,
}

impl<C: Default> Pool<C> {
    pub(crate) fn new(limits: Limits) -> Self {
        assert!(limits.receive <= Limits::MAX_RECEIVE);
        let socket = || {
            let mut socket = tcp::Socket::new(
                tcp::SocketBuffer::new(vec![0; limits.receive]),
                tcp::SocketBuffer::new(vec![0; limits.transmit]),
            );
            // Answers go out as they are written; no service writes in crumbs.
            socket.set_nagle_enabled(false);
            socket
        };
        Self {
            listener: None,
            connections: Vec::with_capacity(limits.sockets),
            spare: (0..limits.sockets).map(|_| socket()).collect(),
            limits,
        }
    }

    /// Sees to it that a socket listens, if any can. Cheap when one does.
    #[inline]
    pub(crate) fn listen(&mut self, now: Instant, sockets: &mut SocketSet<'static>) {
        if let Some(listener) = self.listener
            && sockets.get::<tcp::Socket>(listener).is_listening()
        {
            return;
        }
        self.replace_listener(now, sockets);
    }

    #[cold]
    fn replace_listener(&mut self, now: Instant, sockets: &mut SocketSet<'static>) {
        if let Some(socket) = self.listener.take() {
            self.connections.push(Connection {
                socket,
                state: C::default(),
                active: now,
                queued: 0,
            });
        }
        if self.spare.is_empty() {
            self.make_room(now, sockets);
        }
        let Some(mut socket) = self.spare.pop() else {
            return;
        };
        // A closed socket listens at any port but 0.
        let listening = socket.listen(self.limits.port);
        debug_assert_eq!(listening, Ok(()));
        let listener = sockets.add(socket);
        self.listener = Some(self.put_behind_connections(listener, sockets));
    }

    /// smoltcp offers a segment to the sockets in the order of their set, and one
    /// that listens takes any SYN: also that of a connection behind it, sent
    /// again by a client that waited for the answer in vain. Returns where the
    /// listener is, having changed places with the last connection if need be.
    fn put_behind_connections(
        &mut self,
        listener: SocketHandle,
        sockets: &mut SocketSet<'static>,
    ) -> SocketHandle {
        let last = self.connections.iter_mut().max_by_key(|c| c.socket);
        let Some(last) = last.filter(|last| last.socket > listener) else {
            return listener;
        };
        let mut both = sockets
            .iter_mut()
            .filter(|(handle, _)| [listener, last.socket].contains(handle));
        if let (Some((_, first)), Some((_, second))) = (both.next(), both.next()) {
            mem::swap(first, second);
        }
        mem::replace(&mut last.socket, listener)
    }

    /// Takes a socket back from a connection that is over, or else ends the one
    /// that has been idle longest; its socket comes back when its RST is out.
    fn make_room(&mut self, now: Instant, sockets: &mut SocketSet<'static>) {
        if let Some(over) = self.connections.iter().position(|connection| {
            sockets.get::<tcp::Socket>(connection.socket).state() == tcp::State::TimeWait
        }) {
            self.release(over, sockets);
            return;
        }
        let being_ended = |connection: &Connection<_>| {
            sockets.get::<tcp::Socket>(connection.socket).state() == tcp::State::Closed
        };
        if self.connections.iter().any(being_ended) {
            return;
        }
        if let Some(idlest) = self.connections.iter_mut().min_by_key(|c| c.active)
            && now >= idlest.active + EVICTABLE_AFTER
        {
            idlest.active = now;
            sockets.get_mut::<tcp::Socket>(idlest.socket).abort();
        }
    }

    /// Takes the socket of a connection out of use.
    fn release(&mut self, index: usize, sockets: &mut SocketSet<'static>) {
        let connection = self.connections.swap_remove(index);
        if let smoltcp::socket::Socket::Tcp(mut socket) = sockets.remove(connection.socket) {
            socket.abort();
            self.spare.push(socket);
        }
    }

    /// Serves every connection. Returns when to call again even if no frame
    /// comes.
    pub(crate) fn serve<S: Service<Connection = C>>(
        &mut self,
        now: Instant,
        service: &mut S,
        sockets: &mut SocketSet<'static>,
    ) -> Option<Instant> {
        let mut due: Option<Instant> = None;
        let mut index = 0;
        while index < self.connections.len() {
            let connection = &mut self.connections[index];
            let socket = sockets.get_mut::<tcp::Socket>(connection.socket);
            if is_over(now, socket, connection.active) {
                self.release(index, sockets);
                continue;
            }
            let received = socket.recv_queue();
            if received > 0 || socket.send_queue() < connection.queued {
                connection.active = now;
            }
            let idle_at = connection.active + self.limits.idle;
            if now >= idle_at && socket.is_open() {
                socket.abort();
                connection.active = now;
            }
            if socket.state() != tcp::State::SynReceived {
                service.serve(now, socket, &mut connection.state);
            }
            connection.queued = socket.send_queue();
            let next = match socket.state() {
                tcp::State::Closed => connection.active + RESET_TIMEOUT,
                _ => idle_at,
            };
            due = earlier(due, Some(next));
            due = earlier(due, S::deadline(&connection.state));
            index += 1;
        }
        self.listen(now, sockets);
        if self.listener.is_none() {
            let evictable = self.connections.iter().map(|c| c.active + EVICTABLE_AFTER);
            due = earlier(due, evictable.min());
        }
        due
    }
}

/// Whether a connection's socket can be used again. One that was aborted still
/// has an RST to send, and gets a moment to do so; one that was reset in its
/// handshake listens again, which is the pool's affair.
fn is_over(now: Instant, socket: &tcp::Socket<'_>, active: Instant) -> bool {
    match socket.state() {
        tcp::State::Closed => socket.remote_endpoint().is_none() || now >= active + RESET_TIMEOUT,
        tcp::State::Listen => true,
        _ => false,
    }
}

/// The earlier of two times, either of which may be never.
pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}
