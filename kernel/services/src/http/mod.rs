//! The status page, its data and metrics by HTTP/1.1 (RFC 9110, RFC 9112).
//!
//! Connections are kept open and requests may be pipelined. A request must be
//! complete within [`REQUEST_TIMEOUT`] and [`MAX_REQUEST`] bytes; a request
//! with content is answered, and then the connection closes, for the content is
//! not read.

mod metrics;
mod prometheus;
mod request;
mod response;
mod status_code;

use alloc::vec::Vec;

use kickpath_abi::status::Status;
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};

use crate::streams::discard;
use response::{Answer, Response, Unreported};
use status_code::StatusCode;

/// Bytes of a request's line and fields; a longer one is answered by 431.
const MAX_REQUEST: usize = 8 * 1024;
/// How long a request may take from its first byte to its last.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is kept open between requests.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long a client that has all of the last answer may go on sending.
const LINGER: Duration = Duration::from_secs(5);

/// The report, which is handed down when somebody has asked for it.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) is_wanted: bool,
    status: Option<Status>,
}

impl Report {
    /// The report; who gets none is to ask again in the next turn.
    fn get(&mut self) -> Option<&Status> {
        self.is_wanted |= self.status.is_none();
        self.status.as_ref()
    }

    pub(crate) fn set(&mut self, status: Status) {
        self.is_wanted = false;
        self.status = Some(status);
    }

    /// The turn is over for which it was made.
    #[inline]
    pub(crate) fn forget(&mut self) {
        if self.status.is_some() {
            self.status = None;
        }
    }
}

#[derive(Default)]
pub(crate) struct Connection {
    state: State,
    /// What has been received of this request and those behind it.
    input: Vec<u8>,
    /// Whether `input` begins with what was behind the last request, unread.
    leftover: bool,
    /// Until when the request must be complete, or must have begun, or the
    /// client must have closed its half.
    pub(crate) deadline: Option<Instant>,
}

#[derive(Default)]
enum State {
    #[default]
    Receiving,
    /// The answer needs the report.
    Reporting(Unreported),
    Sending(Response),
    /// We have closed our half. What still comes is thrown away, so that the
    /// client gets to read the answer before it hears of a closed port.
    Closing,
}

impl Connection {
    /// Reads, answers and closes, as far as that goes now.
    pub(crate) fn serve(
        &mut self,
        now: Instant,
        socket: &mut tcp::Socket<'static>,
        report: &mut Report,
    ) {
        // Ends when input is missing or the transmit buffer is full.
        loop {
            match &mut self.state {
                State::Receiving => match self.receive(now, socket) {
                    Some(state) => self.state = state,
                    None => return,
                },
                State::Reporting(unreported) => match report.get() {
                    Some(status) => self.state = State::Sending(unreported.answer(status)),
                    None => return,
                },
                State::Sending(response) => {
                    if !response.send(socket) {
                        return;
                    }
                    if !response.keep_alive {
                        socket.close();
                        self.state = State::Closing;
                        self.deadline = None;
                    } else {
                        self.state = State::Receiving;
                        self.deadline = Some(now + KEEP_ALIVE);
                    }
                }
                State::Closing => {
                    self.input = Vec::new();
                    discard(socket);
                    // Not before: what was sent last may still be on its way.
                    if socket.state() == tcp::State::FinWait2 {
                        let end = *self.deadline.get_or_insert(now + LINGER);
                        if now >= end {
                            self.deadline = None;
                            socket.abort();
                        }
                    }
                    return;
                }
            }
        }
    }

    pub(crate) fn waits_for_report(&self) -> bool {
        matches!(self.state, State::Reporting(_))
    }

    /// Reads on; returns the next state once it is known.
    fn receive(&mut self, now: Instant, socket: &mut tcp::Socket<'static>) -> Option<State> {
        let deadline = *self.deadline.get_or_insert(now + REQUEST_TIMEOUT);
        let begun = !self.input.is_empty();
        let (mut news, mut ends_line) = (false, false);
        while self.input.len() < MAX_REQUEST && socket.can_recv() {
            let room = MAX_REQUEST - self.input.len();
            let taken = socket.recv(|data| {
                let data = &data[..data.len().min(room)];
                self.input.extend_from_slice(data);
                news = true;
                ends_line |= data.contains(&b'\n');
                (data.len(), ())
            });
            if taken.is_err() {
                break;
            }
        }
        if news && !begun {
            self.deadline = Some(now + REQUEST_TIMEOUT);
        }
        // Parsing starts over each time, so it waits for a reason: junk shows in
        // the first bytes, and only a line end can complete a request. After an
        // answer, the next request may be in the buffer already.
        let leftover = core::mem::take(&mut self.leftover);
        let full = self.input.len() == MAX_REQUEST;
        if ends_line || (news && !begun) || leftover || full {
            match request::parse(&self.input) {
                Ok(Some((length, request))) => {
                    let answer = response::answer(&request);
                    self.input.drain(..length);
                    self.leftover = !self.input.is_empty();
                    self.deadline = None;
                    return Some(match answer {
                        Answer::Response(response) => State::Sending(response),
                        Answer::Unreported(unreported) => State::Reporting(unreported),
                    });
                }
                Err(status) => return Some(self.refuse(status)),
                Ok(None) if full => return Some(self.refuse(StatusCode::FIELDS_TOO_LARGE)),
                Ok(None) => {}
            }
        }
        if !socket.may_recv() || (now >= deadline && self.input.is_empty()) {
            // The client has closed, or has kept us waiting between requests.
            socket.close();
            self.deadline = None;
            return Some(State::Closing);
        }
        if now >= deadline {
            return Some(self.refuse(StatusCode::REQUEST_TIMEOUT));
        }
        None
    }

    /// Answers with an error and gives the connection up.
    fn refuse(&mut self, status: StatusCode) -> State {
        self.input = Vec::new();
        self.deadline = None;
        State::Sending(Response::error(status, false, false))
    }
}
