//! What can be asked of the host's end of a cable, whoever is there.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::http::{HttpError, Response};

/// Why the far end did not get what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// No answer in time.
    #[error("{what}: no answer within {:.1} s", bound.as_secs_f64())]
    Timeout {
        /// What was asked.
        what: String,
        /// How long the answer was waited for.
        bound: Duration,
    },
    /// An answer came, and it is not what was sent.
    #[error("{what}: the answer differs from what was sent: {difference}")]
    Content {
        /// What was asked.
        what: String,
        /// Where, and how.
        difference: String,
    },
    /// The guest refused a connection, or broke it off.
    #[error("{what}: the guest refused or broke off the connection ({after} bytes came)")]
    Closed {
        /// What was asked.
        what: String,
        /// Bytes received before that.
        after: usize,
    },
    /// The answer is not HTTP.
    #[error("http://{host}{path}: {source}")]
    Http {
        /// The guest.
        host: IpAddr,
        /// The path.
        path: String,
        /// Why.
        source: HttpError,
    },
    /// The system refuses.
    #[error("cannot {what}: {source}")]
    System {
        /// What.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// This end of the cable cannot do that.
    #[error("{0}")]
    NotPossible(&'static str),
    /// An argument is out of its range.
    #[error("{0}")]
    Argument(String),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// What a series of ICMP echoes gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u32,
    /// Replies that came in time with the content of their request.
    pub received: u32,
    /// Replies with another content.
    pub corrupted: u32,
    /// Shortest round trip.
    #[serde(rename = "rtt_min_us", serialize_with = "microseconds")]
    pub min: Duration,
    /// Sum of all round trips, for [`PingReport::average`].
    #[serde(rename = "rtt_total_us", serialize_with = "microseconds")]
    pub total: Duration,
    /// Longest round trip.
    #[serde(rename = "rtt_max_us", serialize_with = "microseconds")]
    pub max: Duration,
}

/// Serialises a duration as microseconds with a fraction.
pub(crate) fn microseconds<S: serde::Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(d.as_nanos() as f64 / 1000.0)
}

impl PingReport {
    /// Requests without an intact reply.
    pub fn lost(&self) -> u32 {
        self.sent - self.received
    }

    /// Mean round trip; zero when no reply came.
    pub fn average(&self) -> Duration {
        self.total.checked_div(self.received).unwrap_or_default()
    }

    pub(super) fn add(&mut self, rtt: Duration) {
        self.min = if self.received == 0 {
            rtt
        } else {
            self.min.min(rtt)
        };
        self.max = self.max.max(rtt);
        self.total += rtt;
        self.received += 1;
    }
}

/// An echo that came back intact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Echo {
    /// Bytes there and back.
    pub bytes: usize,
    /// How long it took.
    #[serde(rename = "elapsed_us", serialize_with = "microseconds")]
    pub elapsed: Duration,
}

/// The host's end of the cable.
pub trait FarEnd {
    /// Sends `count` ICMP echo requests of `size` content bytes, one after the
    /// other; each reply has `bound` to come.
    ///
    /// # Errors
    /// This end cannot ping, or the size is not possible. Requests without a
    /// reply are no error: they are in the report.
    fn ping(
        &self,
        guest: IpAddr,
        count: u32,
        size: usize,
        bound: Duration,
    ) -> Result<PingReport, WireError>;

    /// Has the guest echo one UDP datagram of `size` content bytes.
    ///
    /// # Errors
    /// No answer in time, or another one.
    fn udp_echo(&self, guest: IpAddr, size: usize, bound: Duration) -> Result<Echo, WireError>;

    /// Has the guest echo a TCP stream of `size` bytes, all in `bound`.
    ///
    /// # Errors
    /// No connection, not everything in time, or another content.
    fn tcp_echo(&self, guest: IpAddr, size: usize, bound: Duration) -> Result<Echo, WireError>;

    /// Fetches a path from the guest's web server.
    ///
    /// # Errors
    /// No connection, no complete answer in time, or no HTTP.
    fn http_get(&self, guest: IpAddr, path: &str, bound: Duration) -> Result<Response, WireError>;
}

/// Fills `out` with the bytes from `offset` on of an endless stream in which
/// every 8 bytes differ (splitmix64 of their number): whatever is lost,
/// repeated, shifted or mixed up shows.
pub(super) fn fill_pattern(seed: u64, offset: usize, out: &mut [u8]) {
    let mut position = offset as u64;
    let mut rest = out;
    while !rest.is_empty() {
        let skip = (position % 8) as usize;
        let mut word = seed.wrapping_add((position / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bytes = (word ^ (word >> 31)).to_le_bytes();
        let take = rest.len().min(8 - skip);
        let (now, later) = rest.split_at_mut(take);
        now.copy_from_slice(&bytes[skip..skip + take]);
        position += take as u64;
        rest = later;
    }
}

/// Compares an answer that starts at `offset` with the pattern.
pub(super) fn check_pattern(
    what: &str,
    seed: u64,
    offset: usize,
    got: &[u8],
) -> Result<(), WireError> {
    let mut expected = vec![0; got.len()];
    fill_pattern(seed, offset, &mut expected);
    match got.iter().zip(&expected).position(|(g, e)| g != e) {
        None => Ok(()),
        Some(at) => Err(WireError::Content {
            what: what.to_owned(),
            difference: format!(
                "byte {} is {:#04x} instead of {:#04x}",
                offset + at,
                got[at],
                expected[at]
            ),
        }),
    }
}

/// Compares a whole answer with the pattern.
pub(super) fn check_datagram(
    what: &str,
    seed: u64,
    size: usize,
    got: &[u8],
) -> Result<(), WireError> {
    if got.len() != size {
        return Err(WireError::Content {
            what: what.to_owned(),
            difference: format!("{} bytes instead of {size}", got.len()),
        });
    }
    check_pattern(what, seed, 0, got)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_does_not_depend_on_how_it_is_cut() {
        let mut whole = [0; 100];
        fill_pattern(7, 3, &mut whole);
        for cut in 0..100 {
            let mut parts = [0; 100];
            let (a, b) = parts.split_at_mut(cut);
            fill_pattern(7, 3, a);
            fill_pattern(7, 3 + cut, b);
            assert_eq!(parts, whole);
        }
    }

    #[test]
    fn a_wrong_byte_is_named() {
        let mut bytes = [0; 32];
        fill_pattern(1, 0, &mut bytes);
        assert!(check_datagram("x", 1, 32, &bytes).is_ok());
        assert!(check_datagram("x", 1, 33, &bytes).is_err());
        assert!(check_datagram("x", 2, 32, &bytes).is_err());
        bytes[17] ^= 1;
        let error = check_pattern("x", 1, 0, &bytes).unwrap_err().to_string();
        assert!(error.contains("byte 17 is"), "{error}");
        bytes.rotate_left(8);
        assert!(check_pattern("x", 1, 0, &bytes).is_err());
    }
}
