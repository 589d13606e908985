//! What is kept of the frames on a wire: all of them in a file that Wireshark
//! opens, the last few in memory for the report of a failure.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use smoltcp::wire::{EthernetFrame, PrettyPrinter};

use super::Capture;
use crate::output::OutputError;

/// How many frames are remembered.
const KEPT: usize = 12;

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    FromGuest,
    ToGuest,
}

#[derive(Debug)]
struct Kept {
    at: Instant,
    direction: Direction,
    bytes: Vec<u8>,
}

/// A frame that was on a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedFrame {
    /// When it was read from the wire, or was about to be sent.
    pub at: Instant,
    /// Whether the guest sent it.
    pub from_guest: bool,
    /// From the destination address on.
    pub bytes: Vec<u8>,
}

/// The last frames on a wire. Clones share them.
#[derive(Clone, Debug)]
pub struct FrameLog {
    start: Instant,
    frames: Arc<Mutex<VecDeque<Kept>>>,
}

impl FrameLog {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            frames: Arc::default(),
        }
    }

    /// One line a frame, the oldest first: time since the wire was opened,
    /// direction, length and headers.
    pub fn describe(&self) -> Vec<String> {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.iter().map(|kept| self.line(kept)).collect()
    }

    /// The frames, the oldest first.
    pub fn frames(&self) -> Vec<LoggedFrame> {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let logged = |kept: &Kept| LoggedFrame {
            at: kept.at,
            from_guest: kept.direction == Direction::FromGuest,
            bytes: kept.bytes.clone(),
        };
        frames.iter().map(logged).collect()
    }

    fn line(&self, kept: &Kept) -> String {
        let at = kept.at.saturating_duration_since(self.start).as_secs_f64();
        let arrow = match kept.direction {
            Direction::FromGuest => "guest ->",
            Direction::ToGuest => "-> guest",
        };
        let headers = PrettyPrinter::<EthernetFrame<&'static [u8]>>::new("", &kept.bytes);
        let headers = headers.to_string().replace('\n', " ");
        format!("{at:10.6} {arrow} {:5} bytes {headers}", kept.bytes.len())
    }
}

/// Takes note of every frame on a wire.
pub struct Recorder {
    log: FrameLog,
    capture: Option<Capture>,
    /// The same moment on the clock of the calendar and on the steady one.
    epoch: (Duration, Instant),
}

impl Recorder {
    /// Remembers the last frames, and writes all into `capture` if there is one (what it holds
    /// is lost).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(capture: Option<Capture>) -> Result<Self, OutputError> {
        if let Some(capture) = &capture {
            capture.begin()?;
        }
        let calendar = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            log: FrameLog::new(),
            capture,
            epoch: (calendar.unwrap_or_default(), Instant::now()),
        })
    }

    /// The last frames.
    pub fn log(&self) -> FrameLog {
        self.log.clone()
    }

    pub(super) fn record(&self, direction: Direction, at: Instant, bytes: &[u8]) {
        {
            let mut frames = self
                .log
                .frames
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            // A full list gives its oldest buffer to the new frame.
            let mut kept = if frames.len() == KEPT {
                frames.pop_front()
            } else {
                None
            }
            .unwrap_or_else(|| Kept {
                at,
                direction,
                bytes: Vec::new(),
            });
            kept.at = at;
            kept.direction = direction;
            kept.bytes.clear();
            kept.bytes.extend_from_slice(bytes);
            frames.push_back(kept);
        }
        if let Some(capture) = &self.capture {
            let (calendar, steady) = self.epoch;
            let time = calendar + at.saturating_duration_since(steady);
            capture.write(time, bytes);
        }
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}
