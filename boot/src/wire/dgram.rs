//! Ethernet over a pair of Unix datagram sockets (`-netdev dgram`): one frame
//! a datagram, nothing around it.
//!
//! A Unix datagram socket queues 10 datagrams (`net.unix.max_dgram_qlen`);
//! then the sender has to wait, and a guest's transmit queue stands still. So
//! a thread of its own reads, and hands the frames on through a longer queue.
//!
//! A cable can end in a VLAN, as at a port of a switch: what we send gets the
//! tag there, and what comes without it is not for us.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::record::{Direction, FrameLog, Recorder};
use super::{Frame, MAX_FRAME};
use crate::qemu::Net;
use crate::scratch::Scratch;

/// Frames that wait for a slow receiver; more are dropped, and counted.
const QUEUE: usize = 16 * 1024;

/// How long a frame to the guest may wait for room in QEMU's socket. A guest
/// that takes no frames for so long loses them, as on a real cable.
const SEND_BOUND: Duration = Duration::from_secs(3);

/// How often the reader looks whether the wire is closed.
const READ_SLICE: Duration = Duration::from_millis(200);

/// What a wire has carried and lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireCounters {
    /// Frames from the guest, those dropped included.
    pub from_guest: u64,
    /// Frames to the guest that QEMU took.
    pub to_guest: u64,
    /// Bytes of the frames from the guest.
    pub from_guest_bytes: u64,
    /// Bytes of the frames to the guest that QEMU took.
    pub to_guest_bytes: u64,
    /// Frames from the guest for which nobody came.
    pub from_guest_dropped: u64,
    /// Frames to the guest that QEMU did not take in time, or was not there
    /// to take.
    pub to_guest_dropped: u64,
}

#[derive(Debug, Default)]
struct Counters {
    from_guest: AtomicU64,
    to_guest: AtomicU64,
    from_guest_bytes: AtomicU64,
    to_guest_bytes: AtomicU64,
    from_guest_dropped: AtomicU64,
    to_guest_dropped: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    socket: UnixDatagram,
    /// Where the other end is; `None` on a connected socket.
    remote: Option<PathBuf>,
    /// The VLAN in which the other end is.
    vlan: Option<u16>,
    recorder: Recorder,
    counters: Counters,
    closed: AtomicBool,
    /// The reader's queue, for [`Transmit::wake_receiver`].
    queue: SyncSender<Frame>,
}

/// The sending half of a wire. Clones send into the same cable.
#[derive(Clone, Debug)]
pub(super) struct Transmit(Arc<Shared>);

impl Transmit {
    /// Puts a frame on the cable. A frame that the other end does not take in
    /// time is dropped and counted.
    pub fn send(&self, frame: &[u8]) {
        let Shared {
            socket,
            remote,
            vlan,
            recorder,
            counters,
            ..
        } = &*self.0;
        let tagged = vlan.map(|id| tag(frame, id));
        let frame = tagged.as_deref().unwrap_or(frame);
        recorder.record(Direction::ToGuest, Instant::now(), frame);
        let sent = match remote {
            Some(path) => socket.send_to(frame, path),
            None => socket.send(frame),
        };
        let counter = if sent.is_ok() {
            let length = frame.len() as u64;
            counters.to_guest_bytes.fetch_add(length, Ordering::Relaxed);
            &counters.to_guest
        } else {
            &counters.to_guest_dropped
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes a [`Dgram::receive`] that waits return at once, with nothing.
    pub fn wake_receiver(&self) {
        // A full queue wakes the receiver as well.
        let _ = self.0.queue.try_send(Frame {
            at: Instant::now(),
            bytes: Vec::new(),
        });
    }

    pub fn counters(&self) -> WireCounters {
        let counters = &self.0.counters;
        WireCounters {
            from_guest: counters.from_guest.load(Ordering::Relaxed),
            to_guest: counters.to_guest.load(Ordering::Relaxed),
            from_guest_bytes: counters.from_guest_bytes.load(Ordering::Relaxed),
            to_guest_bytes: counters.to_guest_bytes.load(Ordering::Relaxed),
            from_guest_dropped: counters.from_guest_dropped.load(Ordering::Relaxed),
            to_guest_dropped: counters.to_guest_dropped.load(Ordering::Relaxed),
        }
    }
}

/// A cable between QEMU and this process.
#[derive(Debug)]
pub struct Dgram {
    shared: Arc<Shared>,
    frames: Receiver<Frame>,
    reader: Option<JoinHandle<()>>,
    paths: Option<(Scratch, PathBuf, PathBuf)>,
}

impl Dgram {
    /// A cable for a QEMU that will be started with [`Dgram::net`].
    ///
    /// # Errors
    /// The directory or the socket cannot be made.
    pub fn new(recorder: Recorder) -> io::Result<Self> {
        Self::in_vlan(recorder, None)
    }

    /// As [`Dgram::new`], with this end in a VLAN (1 to 4094), if in any.
    ///
    /// # Errors
    /// The directory or the socket cannot be made.
    pub fn in_vlan(recorder: Recorder, vlan: Option<u16>) -> io::Result<Self> {
        let directory = Scratch::new("wire")?;
        let host = directory.socket("host.sock")?;
        let qemu = directory.socket("qemu.sock")?;
        let socket = UnixDatagram::bind(&host).map_err(|source| directory.refuses(source))?;
        let mut wire = Self::start(socket, Some(qemu.clone()), vlan, recorder)?;
        wire.paths = Some((directory, qemu, host));
        Ok(wire)
    }

    /// Two ends of one cable in this process, for tests without a guest.
    ///
    /// # Errors
    /// The sockets cannot be made.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = UnixDatagram::pair()?;
        Ok((
            Self::start(
                a,
                None,
                None,
                Recorder::new(None).map_err(io::Error::other)?,
            )?,
            Self::start(
                b,
                None,
                None,
                Recorder::new(None).map_err(io::Error::other)?,
            )?,
        ))
    }

    fn start(
        socket: UnixDatagram,
        remote: Option<PathBuf>,
        vlan: Option<u16>,
        recorder: Recorder,
    ) -> io::Result<Self> {
        socket.set_read_timeout(Some(READ_SLICE))?;
        socket.set_write_timeout(Some(SEND_BOUND))?;
        let (queue, frames) = sync_channel(QUEUE);
        let shared = Arc::new(Shared {
            socket,
            remote,
            vlan,
            recorder,
            counters: Counters::default(),
            closed: AtomicBool::new(false),
            queue,
        });
        let reader = thread::Builder::new().name("wire-reader".into()).spawn({
            let shared = Arc::clone(&shared);
            move || read(&shared)
        })?;
        Ok(Self {
            shared,
            frames,
            reader: Some(reader),
            paths: None,
        })
    }

    /// QEMU's half of the description of this cable.
    ///
    /// # Panics
    /// On a [`Dgram::pair`], which has no path.
    pub fn net(&self) -> Net {
        let (_, qemu, host) = self.paths.as_ref().expect("a pair is not for QEMU");
        Net::Dgram {
            qemu: qemu.clone(),
            host: host.clone(),
        }
    }

    /// Puts a frame on the cable.
    pub fn send(&self, frame: &[u8]) {
        self.transmit().send(frame);
    }

    /// The next frame from the other end, if one comes within `bound`.
    pub fn receive(&self, bound: Duration) -> Option<Frame> {
        match self.frames.recv_timeout(bound) {
            // An empty frame is `wake_receiver`'s.
            Ok(frame) => Some(frame).filter(|frame| !frame.bytes.is_empty()),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                // The reader has died; a caller in a loop must not spin.
                thread::sleep(bound);
                None
            }
        }
    }

    /// What the cable has carried.
    pub fn counters(&self) -> WireCounters {
        self.transmit().counters()
    }

    /// The last frames.
    pub fn frame_log(&self) -> FrameLog {
        self.shared.recorder.log()
    }

    pub(super) fn transmit(&self) -> Transmit {
        Transmit(Arc::clone(&self.shared))
    }
}

impl Drop for Dgram {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        // Wakes the reader; where the system refuses, its slice ends soon.
        let _ = self.shared.socket.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn read(shared: &Shared) {
    let mut buffer = vec![0; MAX_FRAME];
    while !shared.closed.load(Ordering::Relaxed) {
        let length = match shared.socket.recv(&mut buffer) {
            // Also what a socket that was shut down gives.
            Ok(0) => continue,
            Ok(length) => length,
            Err(error) if is_timeout(&error) => continue,
            Err(error) => {
                log::warn!("the wire cannot be read: {error}");
                return;
            }
        };
        let at = Instant::now();
        let bytes = &buffer[..length];
        shared.recorder.record(Direction::FromGuest, at, bytes);
        let counters = &shared.counters;
        counters.from_guest.fetch_add(1, Ordering::Relaxed);
        counters
            .from_guest_bytes
            .fetch_add(length as u64, Ordering::Relaxed);
        let bytes = match shared.vlan {
            Some(id) => untag(bytes, id),
            None => Some(bytes.to_vec()),
        };
        let Some(bytes) = bytes else { continue };
        let frame = Frame { at, bytes };
        match shared.queue.try_send(frame) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                shared
                    .counters
                    .from_guest_dropped
                    .fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

/// Bytes of an Ethernet header's two addresses, behind which the tag stands.
const ADDRESSES: usize = 12;
/// EtherType of an 802.1Q tag.
const TAGGED: [u8; 2] = [0x81, 0x00];
/// The VLAN in a tag; the other bits are priority and drop eligibility.
const VLAN_ID: u16 = 0x0fff;

/// The frame with a tag (IEEE 802.1Q, 9.6).
fn tag(frame: &[u8], id: u16) -> Vec<u8> {
    match frame.split_at_checked(ADDRESSES) {
        Some((addresses, rest)) => [addresses, &TAGGED, &id.to_be_bytes(), rest].concat(),
        None => frame.to_vec(),
    }
}

/// The frame without its tag, if that is of this VLAN.
fn untag(frame: &[u8], id: u16) -> Option<Vec<u8>> {
    let (addresses, rest) = frame.split_at_checked(ADDRESSES)?;
    let (tag, rest) = rest.split_first_chunk::<4>()?;
    let [a, b, c, d] = *tag;
    let is_ours = [a, b] == TAGGED && u16::from_be_bytes([c, d]) & VLAN_ID == id;
    is_ours.then(|| [addresses, rest].concat())
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionReset, Interrupted, TimedOut, WouldBlock};
    matches!(
        error.kind(),
        WouldBlock | TimedOut | Interrupted | ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::wire::Capture;

    const BOUND: Duration = Duration::from_secs(60);

    #[test]
    fn a_tag_is_added_and_taken_away() {
        let frame: Vec<u8> = (0..64).collect();
        let tagged = tag(&frame, 5);
        assert_eq!(tagged.len(), 68);
        assert_eq!(tagged[12..16], [0x81, 0x00, 0, 5]);
        assert_eq!(untag(&tagged, 5), Some(frame.clone()));
        assert_eq!(untag(&tagged, 6), None);
        assert_eq!(untag(&frame, 5), None);
        // With a priority.
        let mut urgent = tagged.clone();
        urgent[14] |= 0xe0;
        assert_eq!(untag(&urgent, 5), Some(frame.clone()));
        for length in 0..16 {
            assert_eq!(untag(&tagged[..length], 5), None);
        }
        assert_eq!(tag(&frame[..11], 5), frame[..11]);
    }

    #[test]
    fn frames_cross_whole_and_in_order() {
        let (a, b) = Dgram::pair().unwrap();
        for n in 0..1000u32 {
            let mut frame = vec![n as u8; 14 + n as usize];
            frame[..4].copy_from_slice(&n.to_be_bytes());
            a.send(&frame);
        }
        for n in 0..1000u32 {
            let frame = b.receive(BOUND).unwrap();
            assert_eq!(frame.bytes.len(), 14 + n as usize);
            assert_eq!(frame.bytes[..4], n.to_be_bytes());
        }
        assert_eq!(a.counters().to_guest, 1000);
        assert_eq!(b.counters().from_guest, 1000);
    }

    #[test]
    fn a_queue_that_nobody_empties_is_limited_and_counted() {
        let (a, b) = Dgram::pair().unwrap();
        let extra = 100;
        for _ in 0..QUEUE + extra {
            a.send(&[0; 60]);
        }
        let deadline = Instant::now() + BOUND;
        while b.counters().from_guest < (QUEUE + extra) as u64 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(b.counters().from_guest_dropped, extra as u64);
        assert_eq!(a.counters().to_guest_dropped, 0);
    }

    #[test]
    fn a_frame_that_nobody_takes_is_dropped_in_time() {
        let wire = Dgram::new(Recorder::new(None).unwrap()).unwrap();
        let Net::Dgram { qemu, .. } = wire.net() else {
            panic!("not a datagram wire");
        };
        // Nobody there.
        wire.send(&[0; 60]);
        assert_eq!(wire.counters().to_guest_dropped, 1);
        // Somebody who never reads.
        let _silent = UnixDatagram::bind(qemu).unwrap();
        let start = Instant::now();
        while wire.counters().to_guest_dropped == 1 {
            wire.send(&[0; 60]);
            assert!(wire.counters().to_guest < 10_000);
        }
        assert!(start.elapsed() >= SEND_BOUND);
    }

    #[test]
    fn the_record_opens_as_a_pcap_file_with_both_directions() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("run.pcap");
        let capture = Capture::at(&file);
        let wire = Dgram::new(Recorder::new(Some(capture.clone())).unwrap()).unwrap();
        let Net::Dgram { qemu, host } = wire.net() else {
            panic!("not a datagram wire");
        };
        let guest = UnixDatagram::bind(qemu).unwrap();
        wire.send(&[1; 60]);
        guest.send_to(&[2; 1514], host).unwrap();
        assert_eq!(wire.receive(BOUND).unwrap().bytes, [2; 1514]);

        capture.keep().unwrap();
        let file = std::fs::File::open(file).unwrap();
        let mut reader = pcap_file::pcap::PcapReader::new(file).unwrap();
        let mut frames = Vec::new();
        while let Some(packet) = reader.next_packet() {
            frames.push(packet.unwrap().into_owned());
        }
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0].data[..], [1; 60]);
        assert_eq!(frames[1].data[..], [2; 1514]);
        assert!(frames[0].timestamp <= frames[1].timestamp);
        let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        assert!(age.unwrap() - frames[0].timestamp < Duration::from_secs(60));

        let lines = wire.frame_log().describe();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains("-> guest    60 bytes"), "{}", lines[0]);
        assert!(lines[1].contains("guest ->  1514 bytes"), "{}", lines[1]);
    }
}
