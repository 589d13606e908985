//! What is kept of the frames on a wire: all of them in a file that Wireshark
//! opens, the last few in memory for the report of a failure.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};
use smoltcp::wire::{EthernetFrame, PrettyPrinter};

use super::MAX_FRAME;

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
    file: Option<Mutex<PcapFile>>,
    /// The same moment on the clock of the calendar and on the steady one.
    epoch: (Duration, Instant),
}

struct PcapFile {
    writer: PcapWriter<File>,
    /// The first error; nothing is written after it.
    failed: Option<PcapError>,
}

impl Recorder {
    /// Remembers the last frames, and writes all into `pcap` if one is named
    /// (what the file held before is lost).
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn new(pcap: Option<&Path>) -> io::Result<Self> {
        let file = pcap.map(PcapFile::create).transpose()?;
        let calendar = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            log: FrameLog::new(),
            file: file.map(Mutex::new),
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
        if let Some(file) = &self.file {
            let (calendar, steady) = self.epoch;
            let time = calendar + at.saturating_duration_since(steady);
            file.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write(time, bytes);
        }
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl PcapFile {
    fn create(path: &Path) -> io::Result<Self> {
        let header = PcapHeader {
            snaplen: MAX_FRAME as u32,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            endianness: Endianness::native(),
            ..PcapHeader::default()
        };
        // Without a buffer: a run that is killed leaves all that it recorded.
        let writer =
            PcapWriter::with_header(File::create(path)?, header).map_err(io::Error::other)?;
        Ok(Self {
            writer,
            failed: None,
        })
    }

    fn write(&mut self, time: Duration, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let packet = PcapPacket::new(time, length, bytes);
        if let Err(error) = self.writer.write_packet(&packet) {
            log::warn!("the frame record ends here: {error}");
            self.failed = Some(error);
        }
    }
}
