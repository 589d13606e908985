//! A host on smoltcp at the far end of a datagram cable: it answers ARP,
//! neighbour discovery, pings, DHCP and router solicitations all the time, and
//! runs one operation after the other against the guest.

mod flood;
mod icmp;
mod resolve;
mod servers;
mod stack;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{io, net::Ipv4Addr};

pub use flood::{Flood, FloodReport};
pub use servers::PeerOptions;
pub use stack::PEER_MAC;
use stack::Stack;
pub use tcp::Connection;
pub use udp::Datagram;

use super::dgram::Transmit;
use super::http::Response;
use super::{Dgram, Echo, FarEnd, Frame, FrameLog, PingReport, Plan, WireCounters, WireError};

#[derive(Debug)]
struct Shared {
    stack: Mutex<Stack>,
    /// Callers that have, or want, the stack. While there are any, the thread
    /// of the peer keeps away from it.
    users: AtomicUsize,
    released: Condvar,
    closed: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The host at the far end. Operations may be called from several threads;
/// they take turns.
#[derive(Debug)]
pub struct Peer {
    shared: Arc<Shared>,
    transmit: Transmit,
    frame_log: FrameLog,
    plan: Plan,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Puts a host at the end of this cable.
    ///
    /// # Errors
    /// Its thread cannot be started.
    pub fn new(wire: Dgram, plan: Plan, options: PeerOptions) -> io::Result<Self> {
        let transmit = wire.transmit();
        let frame_log = wire.frame_log();
        let shared = Arc::new(Shared {
            stack: Mutex::new(Stack::new(wire, plan, options)),
            users: AtomicUsize::new(0),
            released: Condvar::new(),
            closed: AtomicBool::new(false),
        });
        let thread = thread::Builder::new().name("peer".into()).spawn({
            let shared = Arc::clone(&shared);
            move || serve(&shared)
        })?;
        Ok(Self {
            shared,
            transmit,
            frame_log,
            plan,
            thread: Some(thread),
        })
    }

    /// The addresses on the cable.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// What the cable has carried.
    pub fn counters(&self) -> WireCounters {
        self.transmit.counters()
    }

    /// The last frames on the cable.
    pub fn frame_log(&self) -> FrameLog {
        self.frame_log.clone()
    }

    /// Puts a frame of the caller's making on the cable, as it is.
    pub fn send_frame(&self, frame: &[u8]) {
        self.transmit.send(frame);
    }

    /// From now on keeps a copy of the last `limit` frames from the guest for
    /// [`Peer::recv_frame`]; 0 ends that. Frames kept before are forgotten.
    pub fn capture(&self, limit: usize) {
        self.with(|stack| stack.capture(limit));
    }

    /// The next captured frame (see [`Peer::capture`]), if one comes within
    /// `bound`.
    pub fn recv_frame(&self, bound: Duration) -> Option<Frame> {
        let wait = |stack: &mut Stack| stack.run("a frame", bound, Stack::captured);
        self.with(wait).ok()
    }

    /// The hardware address that answers ARP for this address.
    ///
    /// # Errors
    /// Nobody answers within `bound`.
    pub fn resolve(&self, guest: Ipv4Addr, bound: Duration) -> Result<[u8; 6], WireError> {
        self.with(|stack| stack.resolve(guest, bound))
            .map(|mac| mac.0)
    }

    /// Sends one datagram and waits for one back from the same address.
    ///
    /// # Errors
    /// No answer within `bound`, or a payload that no datagram can hold.
    pub fn udp_exchange(
        &self,
        to: std::net::SocketAddr,
        payload: &[u8],
        bound: Duration,
    ) -> Result<Datagram, WireError> {
        self.with(|stack| stack.udp_exchange(to, payload, bound))
    }

    /// Sends many UDP echo requests, several outstanding at a time, and checks
    /// every answer.
    ///
    /// # Errors
    /// The description is out of range, or nobody has the address. Lost
    /// requests are no error: they are in the report.
    pub fn udp_echo_flood(&self, guest: Ipv4Addr, flood: Flood) -> Result<FloodReport, WireError> {
        self.with(|stack| stack.udp_echo_flood(guest, flood))
    }

    /// Opens a TCP connection that stays open until it is closed.
    ///
    /// # Errors
    /// The guest refuses, or does not answer within `bound`.
    pub fn tcp_connect(
        &self,
        to: std::net::SocketAddr,
        bound: Duration,
    ) -> Result<Connection, WireError> {
        self.with(|stack| stack.tcp_connect(to, bound))
    }

    /// Sends all of `data` (into the guest's window; not until it is
    /// acknowledged).
    ///
    /// # Errors
    /// The connection is broken, or the guest does not take all in `bound`.
    pub fn tcp_send(
        &self,
        connection: &Connection,
        data: &[u8],
        bound: Duration,
    ) -> Result<(), WireError> {
        self.with(|stack| stack.tcp_send(connection, data, bound))
    }

    /// Waits for bytes; 0 means that the guest has ended its side.
    ///
    /// # Errors
    /// The connection is broken, or nothing comes within `bound`.
    pub fn tcp_recv(
        &self,
        connection: &Connection,
        buffer: &mut [u8],
        bound: Duration,
    ) -> Result<usize, WireError> {
        self.with(|stack| stack.tcp_recv(connection, buffer, bound))
    }

    /// Ends our side in good order; the rest happens in the background.
    pub fn tcp_close(&self, connection: Connection) {
        self.with(|stack| stack.tcp_close(connection));
    }

    /// Breaks a connection off (RST).
    pub fn tcp_abort(&self, connection: Connection) {
        self.with(|stack| stack.tcp_abort(connection));
    }

    fn with<T>(&self, operation: impl FnOnce(&mut Stack) -> T) -> T {
        struct User<'a>(&'a Shared);
        impl Drop for User<'_> {
            fn drop(&mut self) {
                self.0.users.fetch_sub(1, Ordering::SeqCst);
                self.0.released.notify_one();
            }
        }
        self.shared.users.fetch_add(1, Ordering::SeqCst);
        // Dropped last, after the lock.
        let _user = User(&self.shared);
        self.transmit.wake_receiver();
        let mut stack = self.shared.lock();
        operation(&mut stack)
    }
}

impl FarEnd for Peer {
    fn ping(
        &self,
        guest: IpAddr,
        count: u32,
        size: usize,
        bound: Duration,
    ) -> Result<PingReport, WireError> {
        self.with(|stack| stack.ping(guest, count, size, bound))
    }

    fn udp_echo(&self, guest: IpAddr, size: usize, bound: Duration) -> Result<Echo, WireError> {
        self.with(|stack| stack.udp_echo(guest, size, bound))
    }

    fn tcp_echo(&self, guest: IpAddr, size: usize, bound: Duration) -> Result<Echo, WireError> {
        self.with(|stack| stack.tcp_echo(guest, size, bound))
    }

    fn http_get(&self, guest: IpAddr, path: &str, bound: Duration) -> Result<Response, WireError> {
        self.with(|stack| stack.http_get(guest, path, bound))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.transmit.wake_receiver();
        self.shared.released.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Keeps the host alive while no operation runs.
fn serve(shared: &Shared) {
    const SLICE: Duration = Duration::from_millis(100);
    let mut stack = shared.lock();
    while !shared.closed.load(Ordering::SeqCst) {
        if shared.users.load(Ordering::SeqCst) > 0 {
            stack = shared
                .released
                .wait_timeout(stack, SLICE)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        } else {
            stack.step(SLICE);
        }
    }
}
