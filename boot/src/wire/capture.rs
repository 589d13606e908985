//! A file of all frames (pcap), which Wireshark opens: ours frame by frame, or QEMU's record.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};

use super::dump::FILE_HEADER;
use super::{MAX_FRAME, dump};
use crate::output::{Output, OutputError};

/// Whose frames are in the file.
#[derive(Clone, Copy, Debug)]
enum Writer {
    /// This process.
    Us,
    /// QEMU (`filter-dump`), until it ends.
    Qemu {
        /// The guest's hardware address, where a header stands before each frame.
        tap: Option<[u8; 6]>,
    },
}

#[derive(Debug)]
struct State {
    target: PathBuf,
    writer: Writer,
    output: Option<Output>,
    /// The first error; nothing is written after it.
    failed: Option<OutputError>,
}

/// A file of frames in the making. Clones are the same file. It takes its name when it is kept,
/// or when the last of them is dropped; only a file that misses frames never does.
#[derive(Clone, Debug)]
pub struct Capture(Arc<Mutex<State>>);

impl Capture {
    /// Names a file; nothing is made yet.
    pub fn at(target: &Path) -> Self {
        Self(Arc::new(Mutex::new(State {
            target: target.to_owned(),
            writer: Writer::Us,
            output: None,
            failed: None,
        })))
    }

    /// Makes the file, where it is not made yet.
    ///
    /// # Errors
    /// It cannot be.
    pub fn open(&self) -> Result<(), OutputError> {
        self.lock().open().map(drop)
    }

    /// Where QEMU writes its record: the file in the making, or the file as it was named where
    /// nothing is made. With `tap` the record is of a tap device.
    pub fn for_qemu(&self, tap: Option<[u8; 6]>) -> PathBuf {
        let mut state = self.lock();
        state.writer = Writer::Qemu { tap };
        match &state.output {
            Some(output) => output.path().to_owned(),
            None => state.target.clone(),
        }
    }

    /// Begins a record of our own, with nothing in it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn begin(&self) -> Result<(), OutputError> {
        match encode(None) {
            Ok(header) => self.fill(&header),
            Err(source) => Err(self.lock().open()?.error(source)),
        }
    }

    /// Takes over a whole record that somebody else has made.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn fill(&self, record: &[u8]) -> Result<(), OutputError> {
        let mut state = self.lock();
        state.writer = Writer::Us;
        let output = state.open()?;
        let fill = || -> io::Result<()> {
            let mut file = output.file();
            if output.is_file() {
                file.seek(SeekFrom::Start(0))?;
                file.set_len(0)?;
            }
            file.write_all(record)
        };
        fill().map_err(|source| output.error(source))
    }

    /// Adds a frame. An error is said at once, and is that of [`Capture::keep`].
    pub(super) fn write(&self, time: Duration, frame: &[u8]) {
        let mut state = self.lock();
        let (None, Some(output)) = (&state.failed, &state.output) else {
            return;
        };
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let packet = PcapPacket::new(time, length, frame);
        // In one piece: a run that is killed leaves whole records.
        let written = encode(Some(&packet)).and_then(|bytes| {
            let record = bytes.get(FILE_HEADER..).unwrap_or_default();
            output.file().write_all(record)
        });
        if let Err(source) = written {
            let error = output.error(source);
            log::warn!("{error}; no more frames are recorded");
            state.failed = Some(error);
        }
    }

    /// Ends the record. Where QEMU wrote it, QEMU has ended.
    ///
    /// # Errors
    /// It misses frames, and what was there before is still there. Said once.
    pub fn keep(&self) -> Result<(), OutputError> {
        self.lock().keep()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn open(&mut self) -> Result<&Output, OutputError> {
        match &mut self.output {
            Some(output) => Ok(output),
            none => Ok(none.insert(Output::create(&self.target)?)),
        }
    }

    fn keep(&mut self) -> Result<(), OutputError> {
        let Some(output) = self.output.take() else {
            return Ok(());
        };
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if let Writer::Qemu { tap } = self.writer
            && output.is_file()
        {
            let checked = dump::complete(output.path(), tap);
            checked.map_err(|source| output.error(source))?;
        }
        output.keep()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Err(error) = self.keep() {
            log::warn!("{error}");
        }
    }
}

/// A file's header, and the record of one frame behind it.
fn encode(packet: Option<&PcapPacket<'_>>) -> io::Result<Vec<u8>> {
    let header = PcapHeader {
        snaplen: MAX_FRAME as u32,
        datalink: DataLink::ETHERNET,
        ts_resolution: TsResolution::NanoSecond,
        endianness: Endianness::native(),
        ..PcapHeader::default()
    };
    let encode = || -> Result<Vec<u8>, PcapError> {
        let mut writer = PcapWriter::with_header(Vec::new(), header)?;
        if let Some(packet) = packet {
            writer.write_packet(packet)?;
        }
        Ok(writer.into_writer())
    };
    encode().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_misses_frames_never_takes_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("run.pcap");
        std::fs::write(&file, "old").unwrap();
        let capture = Capture::at(&file);
        // Nothing is made before it is asked for.
        capture.keep().unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"old");
        capture.begin().unwrap();
        capture.write(Duration::ZERO, &[1; 60]);
        let failed = capture
            .lock()
            .output
            .as_ref()
            .unwrap()
            .error(io::ErrorKind::StorageFull.into());
        capture.lock().failed = Some(failed);
        capture.write(Duration::ZERO, &[2; 60]);
        let error = capture.keep().unwrap_err().to_string();
        assert!(error.contains("run.pcap"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_device_that_is_full_is_an_error() {
        let capture = Capture::at(Path::new("/dev/full"));
        let error = capture.begin().unwrap_err().to_string();
        assert!(
            error.contains("cannot write /dev/full: No space left"),
            "{error}"
        );
    }

    #[test]
    fn the_last_clone_keeps_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("run.pcap");
        let capture = Capture::at(&file);
        let clone = capture.clone();
        capture.begin().unwrap();
        drop(capture);
        clone.write(Duration::from_secs(1), &[1; 60]);
        assert!(!file.exists());
        drop(clone);
        assert_eq!(std::fs::metadata(&file).unwrap().len(), 24 + 16 + 60);
    }
}
