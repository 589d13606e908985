//! The sockets of this machine as the far end: by forwarded ports of 127.0.0.1
//! (`-netdev user`), or from inside a network namespace (a tap).

mod flood;

pub use flood::{BURST, Bursts};

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, Ipv4Packet, Ipv6Address};
use socket2::{Domain, Protocol, Socket, Type};

use super::far_end::{check_datagram, check_pattern, fill_pattern};
use super::http::{self, Response};
use super::namespace::{DEVICE, enter};
use super::{
    CHARGEN_PORT, DISCARD_PORT, ECHO_PORT, Echo, FarEnd, HTTP_PORT, PingReport, WireError, left,
};
use crate::interrupt;
use crate::qemu::{self, Forward};

/// The identifier of our ICMP echo requests.
const IDENT: u16 = 0x4b51;

/// How long one system call may wait, so that Ctrl-C is seen.
const SLICE: Duration = Duration::from_millis(100);

/// Where the sockets are.
#[derive(Clone, Debug)]
enum Place {
    /// This process's network; the guest is behind these ports.
    Forwarded(Vec<Forward>),
    /// The namespace of this file; the guest is on its link.
    Namespace(PathBuf),
}

/// This machine's sockets as the far end of a cable.
#[derive(Clone, Debug)]
pub struct HostSockets {
    place: Place,
}

impl HostSockets {
    /// A guest behind forwarded ports.
    pub fn forwarded(forwards: Vec<Forward>) -> Self {
        Self {
            place: Place::Forwarded(forwards),
        }
    }

    /// A guest on a link of the network namespace with this file.
    pub fn in_namespace(file: impl Into<PathBuf>) -> Self {
        Self {
            place: Place::Namespace(file.into()),
        }
    }

    /// Where to connect to reach this port of the guest.
    fn target(
        &self,
        guest: IpAddr,
        protocol: qemu::Protocol,
        port: u16,
    ) -> Result<SocketAddr, WireError> {
        match &self.place {
            Place::Namespace(_) => Ok(SocketAddr::new(guest, port)),
            Place::Forwarded(forwards) => forwards
                .iter()
                .find(|f| f.protocol == protocol && f.guest_port == port)
                .map(|f| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), f.host_port))
                .ok_or(WireError::NotPossible(
                    "this port of the guest is not forwarded",
                )),
        }
    }

    /// Runs `work` on a thread whose sockets are at the right place.
    fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, WireError> + Send,
    ) -> Result<T, WireError> {
        match &self.place {
            Place::Forwarded(_) => work(),
            Place::Namespace(file) => thread::scope(|scope| {
                let thread = scope.spawn(|| {
                    enter(file).map_err(|source| WireError::System {
                        what: format!("enter the network namespace {}", file.display()),
                        source,
                    })?;
                    work()
                });
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }),
        }
    }
}

fn system(what: &str) -> impl Fn(io::Error) -> WireError {
    move |source| WireError::System {
        what: what.to_owned(),
        source,
    }
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

/// Repeats `attempt`, which waits for at most [`SLICE`], until it succeeds.
fn patiently<T>(
    what: &str,
    bound: Duration,
    deadline: Instant,
    mut attempt: impl FnMut() -> io::Result<Option<T>>,
) -> Result<T, WireError> {
    loop {
        match attempt() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) if is_timeout(&error) => {}
            Err(source) => return Err(system(what)(source)),
        }
        if interrupt::requested() {
            return Err(WireError::Interrupted);
        }
        if left(deadline).is_zero() {
            let what = what.to_owned();
            return Err(WireError::Timeout { what, bound });
        }
    }
}

/// With the interface that a link-local address is on (RFC 4007, 11): in the
/// namespace in which this thread is, the tap.
fn with_scope(to: SocketAddr) -> Result<SocketAddr, WireError> {
    match to {
        SocketAddr::V6(mut v6) if v6.ip().is_unicast_link_local() => {
            let index = if_nametoindex(DEVICE)
                .map_err(io::Error::from)
                .map_err(system("find the tap"))?;
            v6.set_scope_id(index);
            Ok(v6.into())
        }
        other => Ok(other),
    }
}

fn connect(to: SocketAddr, bound: Duration, deadline: Instant) -> Result<TcpStream, WireError> {
    let to = with_scope(to)?;
    let what = format!("TCP connection to {to}");
    let stream = patiently(&what, bound, deadline, || {
        let wait = left(deadline).max(Duration::from_millis(1));
        TcpStream::connect_timeout(&to, wait).map(Some)
    })?;
    stream
        .set_read_timeout(Some(SLICE))
        .and_then(|()| stream.set_write_timeout(Some(SLICE)))
        .and_then(|()| stream.set_nodelay(true))
        .map_err(system(&what))?;
    Ok(stream)
}

/// A byte of the character generator's text (RFC 864): lines of 72 of the 95 printable
/// characters, each beginning one further on.
pub(crate) fn chargen(position: usize) -> u8 {
    let (line, column) = (position / 74, position % 74);
    match column {
        72 => b'\r',
        73 => b'\n',
        // Below 127.
        _ => b' ' + ((line + column) % 95) as u8,
    }
}

/// Bytes after which the text begins anew.
pub(crate) const CHARGEN_PERIOD: usize = 95 * 74;

/// Where the first byte is that is not the text's. `read` begins at this position.
fn differs(position: usize, read: &[u8]) -> Option<usize> {
    static TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| (0..CHARGEN_PERIOD).map(chargen).collect());
    let (mut at, mut rest) = (position, read);
    while !rest.is_empty() {
        let text = &TEXT[at % CHARGEN_PERIOD..];
        let length = text.len().min(rest.len());
        let (piece, behind) = rest.split_at(length);
        // A whole piece at a time: this is as fast as memory is.
        if piece != &text[..length] {
            return (at..)
                .zip(piece)
                .find(|(at, byte)| chargen(*at) != **byte)
                .map(|(at, _)| at);
        }
        (at, rest) = (at + length, behind);
    }
    None
}

impl HostSockets {
    /// Reads so many bytes from the guest's character generator, and compares them.
    ///
    /// # Errors
    /// The guest closes before, does not send them in time, or sends others.
    pub fn tcp_read(&self, guest: IpAddr, bytes: usize, bound: Duration) -> Result<(), WireError> {
        let to = self.target(guest, qemu::Protocol::Tcp, CHARGEN_PORT)?;
        let what = format!("{bytes} bytes from {to}");
        self.run(|| {
            let deadline = Instant::now() + bound;
            let mut stream = connect(to, bound, deadline)?;
            let mut buffer = vec![0; 256 * 1024];
            let mut after = 0;
            while after < bytes {
                let more = patiently(&what, bound, deadline, || {
                    stream.read(&mut buffer).map(Some)
                })?;
                if more == 0 {
                    let what = what.clone();
                    return Err(WireError::Closed { what, after });
                }
                if let Some(at) = differs(after, &buffer[..more]) {
                    let difference = format!("byte {at} is not of RFC 864's text");
                    let what = what.clone();
                    return Err(WireError::Content { what, difference });
                }
                after += more;
            }
            Ok(())
        })
    }

    /// Sends so many bytes to be discarded, and waits until the guest has taken
    /// them.
    ///
    /// # Errors
    /// The guest does not take them in time.
    pub fn tcp_write(&self, guest: IpAddr, bytes: usize, bound: Duration) -> Result<(), WireError> {
        let to = self.target(guest, qemu::Protocol::Tcp, DISCARD_PORT)?;
        let what = format!("{bytes} bytes to {to}");
        self.run(|| {
            let deadline = Instant::now() + bound;
            let mut stream = connect(to, bound, deadline)?;
            send_pattern(&stream, &what, 0, bytes, bound, deadline)?;
            stream.shutdown(Shutdown::Write).map_err(system(&what))?;
            // The guest closes when it has read all.
            let mut rest = [0; 64];
            while patiently(&what, bound, deadline, || stream.read(&mut rest).map(Some))? > 0 {}
            Ok(())
        })
    }
}

impl FarEnd for HostSockets {
    fn ping(
        &self,
        guest: IpAddr,
        count: u32,
        size: usize,
        bound: Duration,
    ) -> Result<PingReport, WireError> {
        if matches!(self.place, Place::Forwarded(_)) {
            return Err(WireError::NotPossible(
                "QEMU's user network forwards TCP and UDP, no ping",
            ));
        }
        if size > 65_535 - 28 {
            return Err(WireError::Argument(format!(
                "a ping of {size} bytes does not fit into a packet"
            )));
        }
        self.run(|| ping(guest, count, size, bound))
    }

    fn udp_echo(&self, guest: IpAddr, size: usize, bound: Duration) -> Result<Echo, WireError> {
        let to = self.target(guest, qemu::Protocol::Udp, ECHO_PORT)?;
        self.run(|| udp_echo(to, size, bound))
    }

    fn tcp_echo(&self, guest: IpAddr, size: usize, bound: Duration) -> Result<Echo, WireError> {
        let to = self.target(guest, qemu::Protocol::Tcp, ECHO_PORT)?;
        self.run(|| tcp_echo(to, size, bound))
    }

    fn http_get(&self, guest: IpAddr, path: &str, bound: Duration) -> Result<Response, WireError> {
        let to = self.target(guest, qemu::Protocol::Tcp, HTTP_PORT)?;
        self.run(|| http_get(to, path, bound))
    }
}

fn udp_echo(to: SocketAddr, size: usize, bound: Duration) -> Result<Echo, WireError> {
    let to = with_scope(to)?;
    let what = format!("UDP echo of {size} bytes");
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Address::UNSPECIFIED.into(),
    };
    let seed = size as u64;
    let mut payload = vec![0; size];
    fill_pattern(seed, 0, &mut payload);
    let socket = UdpSocket::bind((any, 0)).map_err(system(&what))?;
    socket
        .connect(to)
        .and_then(|()| socket.set_read_timeout(Some(SLICE)))
        .map_err(system(&what))?;
    let start = Instant::now();
    socket.send(&payload).map_err(system(&what))?;
    let mut answer = vec![0; 65_536];
    let length = patiently(&what, bound, start + bound, || {
        socket.recv(&mut answer).map(Some)
    })?;
    let elapsed = start.elapsed();
    check_datagram(&what, seed, size, &answer[..length])?;
    Ok(Echo {
        bytes: size,
        elapsed,
    })
}

fn tcp_echo(to: SocketAddr, size: usize, bound: Duration) -> Result<Echo, WireError> {
    let start = Instant::now();
    let deadline = start + bound;
    let what = format!("TCP echo of {size} bytes");
    let stream = connect(to, bound, deadline)?;
    let seed = size as u64;
    thread::scope(|scope| {
        // Sends while we receive: a stream longer than all buffers would stand
        // still otherwise.
        let sender = scope.spawn(|| send_pattern(&stream, &what, seed, size, bound, deadline));
        let mut received = 0;
        let mut buffer = vec![0; 64 * 1024];
        let result = loop {
            if received == size {
                break Ok(());
            }
            let room = buffer.len().min(size - received);
            let more = patiently(&what, bound, deadline, || {
                (&stream).read(&mut buffer[..room]).map(Some)
            });
            match more {
                Ok(0) => {
                    let what = what.clone();
                    break Err(WireError::Closed {
                        what,
                        after: received,
                    });
                }
                Ok(more) => {
                    if let Err(error) = check_pattern(&what, seed, received, &buffer[..more]) {
                        break Err(error);
                    }
                    received += more;
                }
                Err(error) => break Err(error),
            }
        };
        // Ends the sender; the result is ours.
        let _ = stream.shutdown(std::net::Shutdown::Both);
        let sent = sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.and(sent)
    })?;
    Ok(Echo {
        bytes: size,
        elapsed: start.elapsed(),
    })
}

fn send_pattern(
    mut stream: &TcpStream,
    what: &str,
    seed: u64,
    size: usize,
    bound: Duration,
    deadline: Instant,
) -> Result<(), WireError> {
    let mut buffer = vec![0; 64 * 1024];
    let mut sent = 0;
    while sent < size {
        let more = buffer.len().min(size - sent);
        fill_pattern(seed, sent, &mut buffer[..more]);
        sent += patiently(what, bound, deadline, || {
            stream.write(&buffer[..more]).map(Some)
        })?;
    }
    Ok(())
}

fn http_get(to: SocketAddr, path: &str, bound: Duration) -> Result<Response, WireError> {
    let deadline = Instant::now() + bound;
    let what = format!("GET http://{to}{path}");
    let mut stream = connect(to, bound, deadline)?;
    let request = http::request(to.ip(), path);
    let mut sent = 0;
    while sent < request.len() {
        sent += patiently(&what, bound, deadline, || {
            stream.write(&request[sent..]).map(Some)
        })?;
    }
    http::receive(to.ip(), path, |buffer| {
        patiently(&what, bound, deadline, || stream.read(buffer).map(Some))
    })
}

fn ping(guest: IpAddr, count: u32, size: usize, bound: Duration) -> Result<PingReport, WireError> {
    let what = format!("ping of {guest}");
    let (domain, protocol) = match guest {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).map_err(system(&what))?;
    socket
        .set_read_timeout(Some(SLICE))
        .map_err(system(&what))?;
    let mut report = PingReport::default();
    let mut buffer = vec![MaybeUninit::uninit(); 65_536];
    for number in 0..count {
        let sequence = number as u16;
        let mut content = vec![0; size];
        fill_pattern(number.into(), 0, &mut content);
        let request = echo_request(guest, sequence, &content);
        let sent = Instant::now();
        let to = SocketAddr::new(guest, 0).into();
        socket.send_to(&request, &to).map_err(system(&what))?;
        report.sent += 1;
        let reply = patiently(&what, bound, sent + bound, || {
            let (length, from) = socket.recv_from(&mut buffer)?;
            let elapsed = sent.elapsed();
            // SAFETY: `recv_from` has initialised the first `length` bytes.
            let bytes = unsafe { buffer[..length].assume_init_ref() };
            let ours = from.as_socket().is_some_and(|from| from.ip() == guest);
            let content = echo_reply(guest, bytes, sequence).filter(|_| ours);
            Ok(content.map(|content| (elapsed, content.to_vec())))
        });
        match reply {
            Ok((rtt, got)) => match check_datagram(&what, number.into(), size, &got) {
                Ok(()) => report.add(rtt),
                Err(_) => report.corrupted += 1,
            },
            Err(WireError::Timeout { .. }) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(report)
}

fn echo_request(guest: IpAddr, seq_no: u16, data: &[u8]) -> Vec<u8> {
    let caps = ChecksumCapabilities::default();
    let ident = IDENT;
    let mut bytes = vec![0; 8 + data.len()];
    match guest {
        IpAddr::V4(_) => {
            let request = Icmpv4Repr::EchoRequest {
                ident,
                seq_no,
                data,
            };
            request.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &caps);
        }
        IpAddr::V6(guest) => {
            let request = Icmpv6Repr::EchoRequest {
                ident,
                seq_no,
                data,
            };
            // The kernel fills the checksum of ICMPv6 in.
            let mut packet = Icmpv6Packet::new_unchecked(&mut bytes);
            request.emit(&Ipv6Address::UNSPECIFIED, &guest, &mut packet, &caps);
        }
    }
    bytes
}

/// The content of the reply with this number. A raw IPv4 socket gives the IP
/// header as well, a raw IPv6 socket does not.
fn echo_reply(guest: IpAddr, bytes: &[u8], sequence: u16) -> Option<&[u8]> {
    let caps = ChecksumCapabilities::ignored();
    let (ident, seq_no, data) = match guest {
        IpAddr::V4(_) => {
            let header = usize::from(Ipv4Packet::new_checked(bytes).ok()?.header_len());
            let packet = Icmpv4Packet::new_checked(bytes.get(header..)?).ok()?;
            match Icmpv4Repr::parse(&packet, &caps).ok()? {
                Icmpv4Repr::EchoReply {
                    ident,
                    seq_no,
                    data,
                } => (ident, seq_no, data),
                _ => return None,
            }
        }
        IpAddr::V6(guest) => {
            let packet = Icmpv6Packet::new_checked(bytes).ok()?;
            match Icmpv6Repr::parse(&guest, &guest, &packet, &caps).ok()? {
                Icmpv6Repr::EchoReply {
                    ident,
                    seq_no,
                    data,
                } => (ident, seq_no, data),
                _ => return None,
            }
        }
    };
    (ident == IDENT && seq_no == sequence).then_some(data)
}

#[cfg(test)]
mod tests;
