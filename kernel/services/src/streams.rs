//! What echo (RFC 862), discard (RFC 863) and chargen (RFC 864) do with the bytes
//! of a TCP connection.

use smoltcp::socket::tcp;

use crate::chargen::Pattern;

/// Sends back what it receives. smoltcp lends only one of a socket's buffers at
/// a time, hence `scratch`.
pub(crate) fn echo(socket: &mut tcp::Socket<'static>, scratch: &mut [u8]) {
    while socket.can_recv() && socket.can_send() {
        let room = socket.send_capacity() - socket.send_queue();
        let length = room.min(scratch.len());
        let piece = &mut scratch[..length];
        let Ok(received) = socket.recv_slice(piece) else {
            break;
        };
        // There is room for all of it.
        let sent = socket.send_slice(&piece[..received]);
        debug_assert_eq!(sent, Ok(received));
    }
}

/// Sends characters until the client closes; what it sends is thrown away.
pub(crate) fn chargen(socket: &mut tcp::Socket<'static>, pattern: &mut Pattern) {
    discard(socket);
    // Twice, because the free part of a ring may come in two pieces.
    for _ in 0..2 {
        // Fails only when nothing can be sent in this state.
        let _ = socket.send(|buffer| {
            pattern.fill(buffer);
            (buffer.len(), ())
        });
    }
}

pub(crate) fn discard(socket: &mut tcp::Socket<'_>) {
    while socket.can_recv() {
        if socket.recv(|data| (data.len(), ())).is_err() {
            break;
        }
    }
}
