//! The TCP services: who listens where, with which buffers, and what a connection
//! of theirs remembers.

use alloc::boxed::Box;

use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};

use crate::chargen::Pattern;
use crate::http::{self, Report};
use crate::streams::{chargen, discard, echo};
use crate::{CHARGEN_PORT, DISCARD_PORT, ECHO_PORT, HTTP_PORT};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Echo,
    Discard,
    Chargen,
    Http,
}

pub(crate) struct Limits {
    pub(crate) port: u16,
    /// Bytes of a receive buffer, at most. From 64 KiB on smoltcp 0.14 scales
    /// windows, also the one of its SYN, which the client must not and does not
    /// scale (RFC 7323, 2.2): a client that sends more than that window then
    /// writes past the buffer's end, which ends in an assertion.
    pub(crate) receive: usize,
    /// Bytes of a transmit buffer, at most.
    pub(crate) transmit: usize,
    /// A connection without progress for this long is aborted.
    pub(crate) idle: Duration,
}

impl Service {
    pub(crate) const ALL: [Self; 4] = [Self::Echo, Self::Discard, Self::Chargen, Self::Http];

    pub(crate) fn at(port: u16) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|service| service.limits().port == port)
    }

    pub(crate) fn limits(self) -> Limits {
        let (port, receive, transmit, idle) = match self {
            Self::Echo => (ECHO_PORT, 32 * 1024, 32 * 1024, 60),
            Self::Discard => (DISCARD_PORT, 65_535, 64, 60),
            Self::Chargen => (CHARGEN_PORT, 512, 128 * 1024, 60),
            Self::Http => (HTTP_PORT, 4 * 1024, 32 * 1024, 30),
        };
        Limits {
            port,
            receive,
            transmit,
            idle: Duration::from_secs(idle),
        }
    }

    pub(crate) fn conversation(self) -> Conversation {
        match self {
            Self::Echo => Conversation::Echo,
            Self::Discard => Conversation::Discard,
            Self::Chargen => Conversation::Chargen(Pattern::default()),
            Self::Http => Conversation::Http(Box::default()),
        }
    }
}

pub(crate) enum Conversation {
    Echo,
    Discard,
    Chargen(Pattern),
    Http(Box<http::Connection>),
}

impl Conversation {
    /// Moves bytes, closes or aborts, as far as that goes now. Called when a
    /// segment has come or a time is due; does a bounded amount of work.
    /// `scratch` may hold anything.
    pub(crate) fn serve(
        &mut self,
        now: Instant,
        socket: &mut tcp::Socket<'static>,
        scratch: &mut [u8],
        report: &mut Report,
    ) {
        match self {
            Self::Echo => echo(socket, scratch),
            Self::Discard => discard(socket),
            Self::Chargen(pattern) => chargen(socket, pattern),
            // It closes by itself.
            Self::Http(connection) => return connection.serve(now, socket, report),
        }
        // Our half is closed once the client has closed its own and all it sent
        // is read.
        if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
            socket.close();
        }
    }

    /// The connection that must be served now and then although no segment has come.
    pub(crate) fn http(&self) -> Option<&http::Connection> {
        match self {
            Self::Http(connection) => Some(connection),
            _ => None,
        }
    }
}
