//! The host's network stack: smoltcp over the cable.

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time;
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint, Ipv4Address, Ipv6Address,
};

use super::servers::{PeerOptions, Servers};
use crate::interrupt;
use crate::wire::dgram::Transmit;
use crate::wire::plan::ULA_PREFIX_LEN;
use crate::wire::{Dgram, Frame, Plan, WireError, left};

/// The hardware address of the far end: a locally administered one.
pub const PEER_MAC: [u8; 6] = [0x02, 0x4b, 0x50, 0x00, 0x00, 0x02];

/// Bytes of an IP packet that the cable carries.
const MTU: usize = 1500;

/// Largest IPv4 packet that smoltcp can send in fragments: its feature
/// `fragmentation-buffer-size-16384`.
pub(super) const MAX_PACKET: usize = 16 * 1024;

/// Ports for our own side, RFC 6335.
const FIRST_PORT: u16 = 49_152;

/// How long a wait sleeps before it looks for Ctrl-C again.
const SLICE: Duration = Duration::from_millis(50);

/// The cable as a device of smoltcp, one received frame at a time.
struct Port {
    received: Option<Frame>,
    transmit: Transmit,
}

impl Device for Port {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: time::Instant) -> Option<(RxToken, TxToken<'_>)> {
        let frame = self.received.take()?;
        Some((RxToken(frame.bytes), TxToken(&self.transmit)))
    }

    fn transmit(&mut self, _: time::Instant) -> Option<TxToken<'_>> {
        Some(TxToken(&self.transmit))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        // smoltcp counts the Ethernet header in.
        capabilities.max_transmission_unit = MTU + 14;
        capabilities
    }
}

struct RxToken(Vec<u8>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct TxToken<'a>(&'a Transmit);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(&frame);
        result
    }
}

pub(super) struct Stack {
    // Dropped first: its thread uses the cable.
    wire: Dgram,
    port: Port,
    // Its buffers for fragments are large.
    interface: Box<Interface>,
    pub sockets: SocketSet<'static>,
    /// Connections that end in the background.
    pub closing: Vec<SocketHandle>,
    servers: Servers,
    capture: (usize, VecDeque<Frame>),
    start: Instant,
    next_port: u16,
    /// When the last frame came.
    pub last_frame: Instant,
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack").finish_non_exhaustive()
    }
}

impl Stack {
    pub fn new(wire: Dgram, plan: Plan, options: PeerOptions) -> Self {
        let start = Instant::now();
        let mut port = Port {
            received: None,
            transmit: wire.transmit(),
        };
        let mac = EthernetAddress(PEER_MAC);
        let mut config = Config::new(HardwareAddress::Ethernet(mac));
        config.random_seed = start_seed();
        let mut interface = Interface::new(config, &mut port, time::Instant::ZERO);
        let link_local = link_local(mac);
        interface.update_ip_addrs(|addresses| {
            for cidr in [
                IpCidr::new(IpAddress::Ipv4(plan.host), plan.guest.prefix),
                IpCidr::new(IpAddress::Ipv6(link_local), 64),
                IpCidr::new(IpAddress::Ipv6(plan.host_ula()), ULA_PREFIX_LEN),
            ] {
                // The feature `iface-max-addr-count-6` of smoltcp has room.
                let _ = addresses.push(cidr);
            }
        });
        Self {
            servers: Servers::new(plan, options, mac, link_local),
            wire,
            port,
            interface: Box::new(interface),
            sockets: SocketSet::new(Vec::new()),
            closing: Vec::new(),
            capture: (0, VecDeque::new()),
            start,
            next_port: FIRST_PORT,
            last_frame: start,
        }
    }

    pub fn mac(&self) -> EthernetAddress {
        EthernetAddress(PEER_MAC)
    }

    /// A port of our own that was not used for a while.
    pub fn ephemeral_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
        port
    }

    /// The address from which we talk to `guest`.
    pub fn source_for(&self, guest: Ipv4Address) -> Ipv4Address {
        let source = self.interface.get_source_address_ipv4(&guest);
        source.unwrap_or(Ipv4Address::UNSPECIFIED)
    }

    pub fn send(&self, frame: &[u8]) {
        self.port.transmit.send(frame);
    }

    /// The next frame from the guest, past the stack: whoever takes it must
    /// give what is not its own to [`Stack::ingest`].
    pub fn next_frame(&mut self, bound: Duration) -> Option<Frame> {
        self.wire.receive(bound)
    }

    /// Sends what is due, then waits up to `bound` for one frame or timer.
    pub fn step(&mut self, bound: Duration) {
        self.poll();
        let now = self.now();
        let delay = self.interface.poll_delay(now, &self.sockets);
        let delay = delay.map_or(bound, |delay| bound.min(delay.into()));
        if let Some(frame) = self.wire.receive(delay) {
            self.ingest(frame);
        }
    }

    /// Gives a frame to everybody who may want it.
    pub fn ingest(&mut self, frame: Frame) {
        self.last_frame = frame.at;
        let (limit, captured) = &mut self.capture;
        if *limit > 0 {
            if captured.len() == *limit {
                captured.pop_front();
            }
            captured.push_back(frame.clone());
        }
        if let Some(answer) = self.servers.answer(&frame.bytes) {
            self.port.transmit.send(&answer);
        }
        self.port.received = Some(frame);
        self.poll();
    }

    pub fn poll(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.port, &mut self.sockets);
        let sockets = &mut self.sockets;
        self.closing.retain(|&handle| {
            let ended = matches!(
                sockets.get::<tcp::Socket>(handle).state(),
                tcp::State::Closed | tcp::State::TimeWait
            );
            if ended {
                sockets.remove(handle);
            }
            !ended
        });
    }

    fn now(&self) -> time::Instant {
        let elapsed = self.start.elapsed().as_micros();
        time::Instant::from_micros(i64::try_from(elapsed).unwrap_or(i64::MAX))
    }

    /// Runs the stack until `look` finds something.
    pub fn run<T>(
        &mut self,
        what: &str,
        bound: Duration,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<T, WireError> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            if interrupt::requested() {
                return Err(WireError::Interrupted);
            }
            let left = left(deadline);
            if left.is_zero() {
                let what = what.to_owned();
                return Err(WireError::Timeout { what, bound });
            }
            self.step(left.min(SLICE));
        }
    }

    pub fn capture(&mut self, limit: usize) {
        self.capture = (limit, VecDeque::new());
    }

    pub fn captured(&mut self) -> Option<Frame> {
        self.capture.1.pop_front()
    }

    /// The parts of the stack that a TCP `connect` needs.
    pub fn connect(
        &mut self,
        handle: SocketHandle,
        to: IpEndpoint,
    ) -> Result<(), tcp::ConnectError> {
        let port = self.ephemeral_port();
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket.connect(self.interface.context(), to, port)
    }
}

/// The link-local address that belongs to a hardware address (RFC 4291,
/// appendix A).
fn link_local(mac: EthernetAddress) -> Ipv6Address {
    let [a, b, c, d, e, f] = mac.0;
    let word = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Address::new(
        0xfe80,
        0,
        0,
        0,
        word(a ^ 2, b),
        word(c, 0xff),
        word(0xfe, d),
        word(e, f),
    )
}

/// A seed that differs from run to run, for TCP's initial sequence numbers.
fn start_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// smoltcp's form of an address.
pub(super) fn endpoint(address: IpAddr, port: u16) -> IpEndpoint {
    IpEndpoint::new(address.into(), port)
}
