//! The TCP services: echo (RFC 862), discard (RFC 863), chargen (RFC 864).

use alloc::boxed::Box;
use alloc::vec;

use smoltcp::socket::tcp;
use smoltcp::time::Instant;

use crate::chargen::Pattern;
use crate::pool::Service;

/// Sends back what it receives, and closes when the client has.
pub(crate) struct Echo {
    /// smoltcp lends only one of a socket's buffers at a time.
    scratch: Box<[u8]>,
}

impl Echo {
    pub(crate) fn new() -> Self {
        Self {
            scratch: vec![0; 4096].into_boxed_slice(),
        }
    }
}

impl Service for Echo {
    type Connection = ();

    fn serve(&mut self, _now: Instant, socket: &mut tcp::Socket<'static>, (): &mut ()) {
        while socket.can_recv() && socket.can_send() {
            let room = socket.send_capacity() - socket.send_queue();
            let length = room.min(self.scratch.len());
            let piece = &mut self.scratch[..length];
            let Ok(received) = socket.recv_slice(piece) else {
                break;
            };
            // There is room for all of it.
            let sent = socket.send_slice(&piece[..received]);
            debug_assert_eq!(sent, Ok(received));
        }
        close_after_client(socket);
    }
}

/// Reads and forgets.
pub(crate) struct Discard;

impl Service for Discard {
    type Connection = ();

    fn serve(&mut self, _now: Instant, socket: &mut tcp::Socket<'static>, (): &mut ()) {
        discard(socket);
        close_after_client(socket);
    }
}

/// Sends characters until the client closes; what it sends is thrown away.
pub(crate) struct Chargen;

impl Service for Chargen {
    type Connection = Pattern;

    fn serve(&mut self, _now: Instant, socket: &mut tcp::Socket<'static>, pattern: &mut Pattern) {
        discard(socket);
        // Twice, because the free part of a ring may come in two pieces.
        for _ in 0..2 {
            // Fails only when nothing can be sent in this state.
            let _ = socket.send(|buffer| {
                pattern.fill(buffer);
                (buffer.len(), ())
            });
        }
        close_after_client(socket);
    }
}

/// Throws away what has been received.
pub(crate) fn discard(socket: &mut tcp::Socket<'_>) {
    while socket.can_recv() {
        if socket.recv(|data| (data.len(), ())).is_err() {
            break;
        }
    }
}

/// Closes our half once the client has closed its own and all it sent is read.
fn close_after_client(socket: &mut tcp::Socket<'_>) {
    if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
        socket.close();
    }
}
