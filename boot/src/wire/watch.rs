//! What passes a tap device, as a packet socket in its namespace sees it (packet(7)).

use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::ReceiveTimestampns;
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, Socket, Type};

use super::MAX_FRAME;
use super::namespace::{DEVICE, enter};
use super::record::{Direction, FrameLog, Recorder};

/// How long one reading may wait, so that the end is seen.
const SLICE: Duration = Duration::from_millis(100);

/// Takes note of the frames of a tap device until it is dropped.
#[derive(Debug)]
pub struct Watch {
    log: FrameLog,
    closed: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches the tap device in the network namespace with this file.
    ///
    /// # Errors
    /// The system has no packet sockets, or refuses one.
    pub(super) fn new(namespace: &Path) -> io::Result<Self> {
        let opened = thread::scope(|scope| {
            let opener = scope.spawn(|| open(namespace));
            let joined = opener.join();
            joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let (socket, device) = opened?;
        let recorder = Recorder::new(None).map_err(io::Error::other)?;
        let closed = Arc::new(AtomicBool::new(false));
        Ok(Self {
            log: recorder.log(),
            closed: Arc::clone(&closed),
            reader: Some(thread::spawn(move || {
                read(&socket, device, &recorder, &closed);
            })),
        })
    }

    /// The last frames.
    pub fn frame_log(&self) -> FrameLog {
        self.log.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// A socket is of the namespace of the thread that opens it.
fn open(namespace: &Path) -> io::Result<(Socket, usize)> {
    enter(namespace)?;
    let device = if_nametoindex(DEVICE)? as usize;
    let every = i32::from((libc::ETH_P_ALL as u16).to_be());
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(every)))?;
    socket.set_read_timeout(Some(SLICE))?;
    setsockopt(&socket, ReceiveTimestampns, &true)?;
    Ok((socket, device))
}

fn read(socket: &Socket, device: usize, recorder: &Recorder, closed: &AtomicBool) {
    let mut buffer = vec![0; MAX_FRAME];
    while !closed.load(Ordering::Relaxed) {
        let (length, from, at) = match receive(socket, &mut buffer) {
            Ok((length, Some(from), at)) if from.ifindex() == device => (length, from, at),
            // The namespace has a loopback device too.
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => {
                log::warn!("the tap's frames cannot be read: {error}");
                return;
            }
        };
        // What leaves Linux goes to the guest.
        let direction = match from.pkttype() {
            libc::PACKET_OUTGOING => Direction::ToGuest,
            _ => Direction::FromGuest,
        };
        recorder.record(direction, at, &buffer[..length.min(MAX_FRAME)]);
    }
}

/// A frame's length, device and time. That is Linux's own: we may come to read it when the
/// guest has long answered.
fn receive(socket: &Socket, buffer: &mut [u8]) -> nix::Result<(usize, Option<LinkAddr>, Instant)> {
    let mut control = nix::cmsg_space!(TimeSpec);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<LinkAddr>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let now = (Instant::now(), SystemTime::now());
    let stamp = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
        _ => None,
    });
    let age = stamp.and_then(|stamp| now.1.duration_since(UNIX_EPOCH + stamp).ok());
    let at = age.and_then(|age| now.0.checked_sub(age));
    Ok((message.bytes, message.address, at.unwrap_or(now.0)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;

    use kickpath_abi::config::Ipv4Config;

    use super::*;
    use crate::install::{self, Policy};
    use crate::qemu::Net;
    use crate::wire::{FarEnd, Plan, Tap};

    #[test]
    fn what_passes_a_tap_is_seen_both_ways() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        install::ensure(&[install::IPROUTE2], Policy::Install, &mut |_| ()).unwrap();
        let tap = Tap::new(&Plan::new(Ipv4Config::Dhcp).unwrap(), 1).unwrap();
        let watch = tap.watch().unwrap();
        let late = thread::scope(|scope| {
            let opener = scope.spawn(|| open(&tap.file()).unwrap());
            opener.join().unwrap()
        });
        // A guest's frame behind the 10 bytes of a `virtio_net_hdr`.
        let mut frame = vec![0xff; 6];
        frame.extend([0x52, 0x54, 0, 0x4b, 0x50, 1, 0x88, 0xb5]);
        frame.resize(60, 0x5a);
        let packet = [vec![0; 10], frame.clone()].concat();
        let Net::TapFds(queues) = tap.net() else {
            panic!("it was not handed over");
        };
        // SAFETY: the descriptor is open as long as the tap.
        let queue = unsafe { BorrowedFd::borrow_raw(queues[0]) };
        nix::unistd::write(queue, &packet).unwrap();
        let mut written = Instant::now();
        // Linux asks who has the address, which nobody answers.
        let far = tap.sockets();
        let bound = Duration::from_millis(300);
        FarEnd::udp_echo(&far, [10, 0, 2, 15].into(), 8, bound).unwrap_err();
        let deadline = Instant::now() + Duration::from_secs(20);
        let log = watch.frame_log();
        let seen = |from_guest, wanted: &dyn Fn(&[u8]) -> bool| {
            let mut frames = log.frames().into_iter();
            frames.any(|logged| logged.from_guest == from_guest && wanted(&logged.bytes))
        };
        let is_arp = |bytes: &[u8]| bytes.get(12..14) == Some(&[8, 6]);
        while !(seen(true, &|bytes| bytes == frame) && seen(false, &is_arp)) {
            assert!(Instant::now() < deadline, "{:#?}", log.describe());
            thread::sleep(Duration::from_millis(10));
        }
        assert!(!seen(false, &|bytes| bytes == frame));
        // Who reads it late is told when it passed. Linux begins to note that only some time
        // after the first socket wants it (`net_enable_timestamp`), so more frames may have to.
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            let (length, from, at) = receive(&late.0, &mut buffer).unwrap();
            let is_ours = from.is_some_and(|from| from.ifindex() == late.1);
            if !is_ours || buffer[..length] != frame {
                continue;
            }
            if at <= written {
                break;
            }
            let after = at - written;
            assert!(Instant::now() < deadline, "{after:?} after it was written");
            nix::unistd::write(queue, &packet).unwrap();
            written = Instant::now();
            thread::sleep(Duration::from_millis(10));
        }
    }
}
