//! The UDP services: echo (RFC 862), discard (RFC 863), chargen (RFC 864). What
//! they say is here; how a datagram comes to them is the affair of `udp.rs`, by
//! sockets, and of `in_place.rs`, without.

use crate::chargen::Pattern;
use crate::{CHARGEN_PORT, DISCARD_PORT, ECHO_PORT};

/// The largest answer of chargen (RFC 864: "between 0 and 512").
const CHARGEN_PAYLOAD: usize = 512;

/// A service that has at most one answer to a datagram, and has it at once.
pub(crate) trait DatagramService {
    const PORT: u16;

    /// Bytes of its answer; `None` if it has none.
    fn length(&self, _request: &[u8]) -> Option<usize> {
        None
    }

    /// Writes the answer, of just that length.
    fn answer(&mut self, _request: &[u8], _answer: &mut [u8]) {}
}

/// Says what it is told.
pub(crate) struct Echo;

impl DatagramService for Echo {
    const PORT: u16 = ECHO_PORT;

    #[inline]
    fn length(&self, request: &[u8]) -> Option<usize> {
        Some(request.len())
    }

    #[inline]
    fn answer(&mut self, request: &[u8], answer: &mut [u8]) {
        if answer.len() == request.len() {
            answer.copy_from_slice(request);
        }
    }
}

pub(crate) struct Discard;

impl DatagramService for Discard {
    const PORT: u16 = DISCARD_PORT;
}

/// Says what comes next in an endless text.
#[derive(Default)]
pub(crate) struct Chargen(Pattern);

impl DatagramService for Chargen {
    const PORT: u16 = CHARGEN_PORT;

    fn length(&self, _request: &[u8]) -> Option<usize> {
        Some(CHARGEN_PAYLOAD)
    }

    fn answer(&mut self, _request: &[u8], answer: &mut [u8]) {
        self.0.fill(answer);
    }
}

/// Whether an answerer of everything may have sent a datagram from this port:
/// two of those would talk to each other for ever.
#[inline]
pub(crate) fn is_answerer(port: u16) -> bool {
    const ANSWERERS: [u16; 6] = [ECHO_PORT, DISCARD_PORT, 13, 17, CHARGEN_PORT, 37];
    port <= 37 && (port == 0 || ANSWERERS.contains(&port))
}
