//! Many UDP echoes with several outstanding, from one or many addresses of this
//! machine, by the system's network stack.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};

use super::{HostSockets, system};
use crate::interrupt;
use crate::wire::far_end::fill_pattern;
use crate::wire::peer::{Flood, FloodReport};
use crate::wire::{CHARGEN_PORT, DISCARD_PORT, ECHO_PORT, WireError, left};

/// How long one call waits for an answer.
const SLICE: Duration = Duration::from_millis(20);

impl HostSockets {
    /// Sends echo requests to the guest from these addresses in turn.
    ///
    /// # Errors
    /// The sockets fail, or a wrong argument.
    pub fn udp_echo_flood(
        &self,
        guest: Ipv4Addr,
        senders: &[Ipv4Addr],
        flood: Flood,
    ) -> Result<FloodReport, WireError> {
        if flood.size < 8 || flood.outstanding == 0 || senders.is_empty() {
            let text = "an echo has 8 bytes at least, and a sender".to_owned();
            return Err(WireError::Argument(text));
        }
        self.run(|| run(SocketAddrV4::new(guest, ECHO_PORT), senders, flood))
    }
}

/// Datagrams of a burst.
pub const BURST: u64 = 32;

/// Which way the datagrams of a burst go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bursts {
    /// To the guest, which discards them: of so many content bytes. An echo behind them says when
    /// it has come so far.
    In(usize),
    /// From the guest's character generator, which an empty datagram asks for each.
    Out,
}

impl HostSockets {
    /// Moves so many datagrams, [`BURST`] at a time. Returns how many answers did not come in
    /// `patience` each.
    ///
    /// # Errors
    /// The sockets fail.
    pub fn udp_bursts(
        &self,
        guest: Ipv4Addr,
        way: Bursts,
        count: u64,
        patience: Duration,
    ) -> Result<u64, WireError> {
        self.run(|| bursts(guest, way, count, patience))
    }
}

fn bursts(guest: Ipv4Addr, way: Bursts, count: u64, patience: Duration) -> Result<u64, WireError> {
    let what = "UDP datagrams";
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(system(what))?;
    socket.set_read_timeout(Some(SLICE)).map_err(system(what))?;
    let mut answer = [0; 2048];
    let (mut moved, mut lost) = (0, 0);
    while moved < count {
        let burst = BURST.min(count - moved);
        let send = |bytes: &[u8], port: u16| socket.send_to(bytes, (guest, port));
        for _ in 0..burst {
            match way {
                Bursts::In(size) => send(&vec![0x5a; size], DISCARD_PORT),
                Bursts::Out => send(&[], CHARGEN_PORT),
            }
            .map_err(system(what))?;
        }
        let mut awaited = burst;
        if let Bursts::In(_) = way {
            send(&moved.to_be_bytes(), ECHO_PORT).map_err(system(what))?;
            awaited = 1;
        }
        moved += burst;
        let deadline = Instant::now() + patience;
        while awaited > 0 && !left(deadline).is_zero() {
            if interrupt::requested() {
                return Err(WireError::Interrupted);
            }
            match socket.recv_from(&mut answer) {
                Ok((_, from)) if from.ip() == IpAddr::V4(guest) => awaited -= 1,
                Ok(_) => {}
                Err(error) if super::is_timeout(&error) => {}
                Err(error) => return Err(system(what)(error)),
            }
        }
        lost += awaited;
    }
    Ok(lost)
}

fn run(to: SocketAddrV4, senders: &[Ipv4Addr], flood: Flood) -> Result<FloodReport, WireError> {
    let what = "UDP echoes";
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(system(what))?;
    socket.set_read_timeout(Some(SLICE)).map_err(system(what))?;
    let start = Instant::now();
    let deadline = start + flood.bound;
    let mut report = FloodReport::default();
    // When each request was sent; `None` once it is answered or given up.
    let mut sent_at: Vec<Option<Instant>> = Vec::new();
    let (mut waiting, mut oldest) = (0, 0);
    let mut payload = vec![0; flood.size];
    let mut answer = vec![0; flood.size + 1];
    let mut last = start;
    while report.sent < flood.count || waiting > 0 {
        if interrupt::requested() {
            return Err(WireError::Interrupted);
        }
        if left(deadline).is_zero() {
            report.cut_short = true;
            break;
        }
        while waiting < flood.outstanding && report.sent < flood.count {
            content(report.sent, &mut payload);
            let sender = senders[report.sent as usize % senders.len()];
            send(&socket, sender, to, &payload).map_err(system(what))?;
            sent_at.push(Some(Instant::now()));
            report.sent += 1;
            waiting += 1;
        }
        // Takes all that has come before it sends again, as a network driver
        // does: one wake-up, many frames.
        let mut wait = true;
        while waiting > 0 {
            socket.set_nonblocking(!wait).map_err(system(what))?;
            wait = false;
            let length = match socket.recv_from(&mut answer) {
                Ok((length, from)) if from.ip() == IpAddr::V4(*to.ip()) => length,
                Ok(_) => continue,
                Err(error) if super::is_timeout(&error) => break,
                Err(error) => return Err(system(what)(error)),
            };
            let received = &answer[..length];
            let number = received.first_chunk().map(|n| u64::from_be_bytes(*n));
            let number = number.filter(|number| *number < report.sent);
            let Some(number) = number else {
                report.corrupted += 1;
                continue;
            };
            content(number, &mut payload);
            if received != payload {
                report.corrupted += 1;
            } else if sent_at[number as usize].take().is_some() {
                report.received += 1;
                waiting -= 1;
                last = Instant::now();
            } else {
                report.unexpected += 1;
            }
        }
        while let Some(&request) = sent_at.get(oldest) {
            if let Some(at) = request {
                if at.elapsed() < flood.patience {
                    break;
                }
                sent_at[oldest] = None;
                report.lost += 1;
                waiting -= 1;
            }
            oldest += 1;
        }
    }
    report.lost += waiting as u64;
    report.elapsed = last.saturating_duration_since(start);
    Ok(report)
}

/// The content of a request: its number, and a pattern.
fn content(number: u64, payload: &mut [u8]) {
    if let Some((head, rest)) = payload.split_first_chunk_mut() {
        *head = number.to_be_bytes();
        fill_pattern(0, 0, rest);
    }
}

/// Sends a datagram from one of this machine's addresses.
fn send(socket: &UdpSocket, from: Ipv4Addr, to: SocketAddrV4, payload: &[u8]) -> io::Result<()> {
    let source = in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: in_addr {
            s_addr: u32::from_ne_bytes(from.octets()),
        },
        ipi_addr: in_addr { s_addr: 0 },
    };
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(payload)],
        &[ControlMessage::Ipv4PacketInfo(&source)],
        MsgFlags::empty(),
        Some(&SockaddrIn::from(to)),
    )?;
    Ok(())
}
