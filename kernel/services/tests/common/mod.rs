//! A guest's [`Stack`] and a host's smoltcp interface at the two ends of a cable
//! of two queues, in simulated time.
#![allow(dead_code)] // Each test program uses its part.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{IpAddr as Address, Ipv6Addr};
use std::rc::Rc;

use etherparse::err::packet::BuildWriteError;
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use kickpath_abi::config::{Config, UdpWay};
use kickpath_abi::status::{Attempt, CpuLoad, Pair, Queue, Stage, Status};
use kickpath_services::{NetworkDevice, Stack};
use smoltcp::iface::{self, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::*;

pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
pub const HOST_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
pub const GUEST4: [u8; 4] = [10, 0, 2, 15];
pub const HOST4: [u8; 4] = [10, 0, 2, 2];
/// Link-local addresses, from the MACs by EUI-64.
pub const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3456);
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe00, 1);
pub const GUEST: IpAddress = IpAddress::v4(10, 0, 2, 15);
pub const HOST: IpAddress = IpAddress::v4(10, 0, 2, 2);
pub const GUEST_V6: IpAddress = IpAddress::Ipv6(GUEST6);
pub const HOST_V6: IpAddress = IpAddress::Ipv6(HOST6);

pub type Frames = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// One end of the cable.
pub struct Port {
    pub inbox: Frames,
    pub outbox: Frames,
    /// Frames that the outbox holds before this end must wait.
    pub room: usize,
}

pub struct Received(pub Vec<u8>);
pub struct Sending(Frames);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Sending {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        // What a ring's buffer holds before it is written is anything.
        let mut frame = vec![0xaa; len];
        let result = f(&mut frame);
        assert!(len <= 1514, "a frame of {len} bytes");
        self.0.borrow_mut().push_back(frame);
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending;

    fn receive(&mut self, now: Instant) -> Option<(Received, Sending)> {
        let sending = self.transmit(now)?;
        Some((Received(self.inbox.borrow_mut().pop_front()?), sending))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending> {
        (self.outbox.borrow().len() < self.room).then(|| Sending(self.outbox.clone()))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        plain_capabilities()
    }
}

impl NetworkDevice for Port {}

impl Port {
    pub fn new(inbox: &Frames, outbox: &Frames, room: usize) -> Self {
        Self {
            inbox: inbox.clone(),
            outbox: outbox.clone(),
            room,
        }
    }
}

/// Those of a device without offloads.
pub fn plain_capabilities() -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ethernet;
    capabilities.max_transmission_unit = 1514;
    capabilities
}

/// The frame that `write` writes.
pub fn frame(
    write: impl FnOnce(&mut Vec<u8>) -> core::result::Result<(), BuildWriteError>,
) -> Vec<u8> {
    let mut frame = vec![];
    write(&mut frame).unwrap();
    frame
}

/// A message of ARP to everybody: operation 1 asks, 2 answers.
pub fn arp(operation: u8, mac: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let head = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
    let everybody = [0xff; 6];
    [&everybody, &mac, &head[..], &mac, &sender, &[0; 6], &target].concat()
}

/// The host asks where the guest is, so that each knows the other.
pub fn arp_request() -> Vec<u8> {
    arp(1, HOST_MAC, HOST4, GUEST4)
}

/// A packet to the guest's hardware address from this one.
pub fn packet(
    mac: [u8; 6],
    from: impl Into<Address>,
    to: impl Into<Address>,
) -> PacketBuilderStep<IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(mac, GUEST_MAC);
    match (from.into(), to.into()) {
        (Address::V4(from), Address::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (Address::V6(from), Address::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        ends => panic!("{ends:?}"),
    }
}

/// A datagram to the guest's hardware address from this one; the ports are those of
/// the sender and of whom it is to.
pub fn datagram(
    mac: [u8; 6],
    from: impl Into<Address>,
    to: impl Into<Address>,
    [from_port, to_port]: [u16; 2],
    payload: &[u8],
) -> Vec<u8> {
    let builder = packet(mac, from, to).udp(from_port, to_port);
    frame(|f| builder.write(f, payload))
}

/// A ping to the guest's hardware address from this one.
pub fn ping(
    mac: [u8; 6],
    from: impl Into<Address>,
    to: impl Into<Address>,
    sequence: u16,
    data: &[u8],
) -> Vec<u8> {
    let from = from.into();
    let builder = packet(mac, from, to);
    frame(|f| match from.is_ipv4() {
        true => builder.icmpv4_echo_request(1, sequence).write(f, data),
        false => builder.icmpv6_echo_request(1, sequence).write(f, data),
    })
}

/// A message of ICMPv6 from and to these hardware addresses.
pub fn icmpv6(
    hop_limit: u8,
    [source, destination]: [Ipv6Address; 2],
    [from, to]: [[u8; 6]; 2],
    icmp: &Icmpv6Repr<'_>,
) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let mut bytes = vec![0; icmp.buffer_len()];
    let mut message = Icmpv6Packet::new_unchecked(&mut bytes[..]);
    icmp.emit(&source, &destination, &mut message, &checksums);
    let [high, low] = (bytes.len() as u16).to_be_bytes();
    let head = [0x86, 0xdd, 0x60, 0, 0, 0, high, low, 58, hop_limit];
    let ends = [source.octets(), destination.octets()].concat();
    [&to[..], &from, &head, &ends, &bytes].concat()
}

/// A report with something in every field.
pub fn status() -> Status {
    let mut status = Status {
        version: "0.1.0".into(),
        ..Status::default()
    };
    status.boot.stages = vec![Stage {
        name: "quote \" backslash \\ newline \n".into(),
        end_us: 1_234_567,
    }];
    status.interrupts.rung = "msix".into();
    status.interrupts.attempts = vec![Attempt {
        rung: "msix".into(),
        outcome: "taken".into(),
    }];
    let queues = ["receive", "transmit"].into_iter().zip(0..);
    let queues = queues.map(|(name, index)| Queue {
        name: name.into(),
        index,
        size: 256,
        avail_idx: 65535,
        used_idx: 3,
        last_used_idx: 2,
        free: 9,
        kicks: 5,
        kicks_suppressed: 6,
    });
    status.queues = queues.collect();
    status.counters.rx_packets = 42;
    for number in 0..2 {
        let mut pair = Pair {
            number,
            cpu: number,
            mail_lost: 1,
            ..Pair::default()
        };
        pair.counters.rx_packets = 20 + u64::from(number);
        pair.counters.tx_bytes = 1000 * u64::from(number);
        pair.counters.kicks = 30 + u64::from(number);
        status.pairs.push(pair);
        status.cpus.push(CpuLoad {
            number,
            apic_id: number.into(),
            idle_cycles: 77,
        });
    }
    status
}

/// The two ends; the guest's device is a [`Port`], or another one that leads to
/// the host's.
pub struct World<G = Port> {
    pub now: Instant,
    pub guest: G,
    pub stack: Stack,
    pub host: Port,
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    port: u16,
}

impl World {
    /// A guest with a static address.
    pub fn new() -> Self {
        Self::with("ip=10.0.2.15/24 gateway=10.0.2.2")
    }

    /// One that the host has spoken with.
    pub fn greeted() -> Self {
        let mut world = Self::new();
        world.assert_echo();
        world
    }

    pub fn with(config: &str) -> Self {
        let (to_guest, to_host) = (Frames::default(), Frames::default());
        let guest = Port::new(&to_guest, &to_host, 256);
        Self::between(config, guest, Port::new(&to_host, &to_guest, 1024))
    }

    /// Sends a frame to the guest.
    pub fn inject(&mut self, frame: impl Into<Vec<u8>>) {
        self.guest.inbox.borrow_mut().push_back(frame.into());
    }

    pub fn inject_all(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) {
        self.guest.inbox.borrow_mut().extend(frames);
    }

    /// What the guest says to that, and what else it has sent since the last call.
    pub fn answers_to(&mut self, frame: impl Into<Vec<u8>>) -> Vec<Vec<u8>> {
        self.inject(frame);
        self.sent()
    }

    /// The frames that the guest has sent since the last call.
    pub fn sent(&mut self) -> Vec<Vec<u8>> {
        self.turn_guest();
        self.guest.outbox.borrow_mut().drain(..).collect()
    }
}

impl<G: NetworkDevice> World<G> {
    /// A guest on the device `guest`, whose cable ends at `host`.
    pub fn between(config: &str, mut guest: G, mut host: Port) -> Self {
        let now = Instant::from_secs(1);
        let config = Config::parse(config, |error| panic!("{error}"));
        let stack = Stack::new(&config, GUEST_MAC, &mut guest, now, 1);
        let mac = HardwareAddress::Ethernet(EthernetAddress(HOST_MAC));
        let mut settings = iface::Config::new(mac);
        settings.random_seed = 2;
        let mut interface = Interface::new(settings, &mut host, now);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(HOST, 24)).unwrap();
            addresses.push(IpCidr::new(HOST_V6, 64)).unwrap();
        });
        Self {
            now,
            guest,
            stack,
            host,
            interface,
            sockets: SocketSet::new(vec![]),
            port: 0xc000,
        }
    }

    /// Lets the guest work until it has nothing more to do now.
    pub fn turn_guest(&mut self) {
        for _ in 0..10_000 {
            let busy = self.stack.poll(self.now, &mut self.guest);
            if self.stack.wants_status() {
                self.stack.set_status(status());
            }
            if !busy {
                return;
            }
        }
        panic!("the guest does not come to rest");
    }

    /// Lets the host work once.
    pub fn turn_host(&mut self) -> PollResult {
        self.interface
            .poll(self.now, &mut self.host, &mut self.sockets)
    }

    /// Both ends work, and a millisecond passes.
    pub fn step(&mut self) {
        self.turn_guest();
        self.turn_host();
        self.turn_guest();
        self.now += Duration::from_millis(1);
    }

    pub fn run(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds {
            self.step();
        }
    }

    /// Steps until `done`; panics after `seconds` of simulated time.
    pub fn until<T>(&mut self, seconds: u64, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        for _ in 0..seconds * 1000 {
            if let Some(result) = done(self) {
                return result;
            }
            self.step();
        }
        panic!("not done after {seconds} s");
    }

    /// Steps until this is so; panics after `seconds` of simulated time.
    pub fn wait(&mut self, seconds: u64, mut is_so: impl FnMut(&mut Self) -> bool) {
        self.until(seconds, |w| is_so(w).then_some(()));
    }

    pub fn udp(&mut self) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 64 * 2048]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(self.next_port()).unwrap();
        self.sockets.add(socket)
    }

    pub fn udp_send(&mut self, socket: SocketHandle, to: impl Into<IpEndpoint>, data: &[u8]) {
        let socket = self.sockets.get_mut::<udp::Socket>(socket);
        socket.send_slice(data, to.into()).unwrap();
    }

    pub fn udp_receive(&mut self, socket: SocketHandle) -> Option<Vec<u8>> {
        let socket = self.sockets.get_mut::<udp::Socket>(socket);
        socket.recv().ok().map(|(data, _)| data.to_vec())
    }

    /// Sends a datagram and waits for the answer.
    pub fn udp_ask(
        &mut self,
        socket: SocketHandle,
        to: impl Into<IpEndpoint>,
        data: &[u8],
    ) -> Vec<u8> {
        self.udp_send(socket, to, data);
        self.until(5, |w| w.udp_receive(socket))
    }

    /// The UDP echo answers a fresh socket.
    pub fn assert_echo(&mut self) {
        let socket = self.udp();
        for text in [&b"still there?"[..], &b"and on the fast path?"[..]] {
            assert_eq!(self.udp_ask(socket, (GUEST, 7), text), text);
        }
        self.sockets.remove(socket);
    }

    /// The next of the ports from 0xc000 on.
    pub fn next_port(&mut self) -> u16 {
        self.port = self.port.wrapping_add(1) | 0xc000;
        self.port
    }

    /// Starts to connect.
    pub fn tcp(&mut self, to: impl Into<IpEndpoint>) -> SocketHandle {
        self.tcp_with(to, 65535)
    }

    /// As [`Self::tcp`], with buffers of so many bytes.
    pub fn tcp_with(&mut self, to: impl Into<IpEndpoint>, bytes: usize) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; bytes]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let (local, context) = (self.next_port(), self.interface.context());
        socket.connect(context, to.into(), local).unwrap();
        self.sockets.add(socket)
    }

    pub fn tcp_socket(&mut self, socket: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(socket)
    }

    /// Connects.
    pub fn connect(&mut self, to: impl Into<IpEndpoint>) -> SocketHandle {
        let socket = self.tcp(to);
        self.wait(5, |w| {
            let state = w.tcp_socket(socket).state();
            assert_ne!(state, tcp::State::Closed, "refused");
            state == tcp::State::Established
        });
        socket
    }

    /// Sends what the socket takes, which must be all.
    pub fn send(&mut self, socket: SocketHandle, data: &[u8]) {
        assert_eq!(self.tcp_socket(socket).send_slice(data), Ok(data.len()));
    }

    /// Waits for so many bytes.
    pub fn receive(&mut self, socket: SocketHandle, length: usize) -> Vec<u8> {
        self.wait(5, |w| w.tcp_socket(socket).recv_queue() >= length);
        self.take(socket)
    }

    /// What comes until the guest closes.
    pub fn read_to_end(&mut self, socket: SocketHandle, seconds: u64) -> Vec<u8> {
        let mut data = vec![];
        self.wait(seconds, |w| {
            data.extend(w.take(socket));
            !w.tcp_socket(socket).may_recv()
        });
        data
    }

    /// Takes what has been received.
    pub fn take(&mut self, socket: SocketHandle) -> Vec<u8> {
        let socket = self.tcp_socket(socket);
        let mut data = vec![0; socket.recv_queue()];
        // Fails only where there is nothing any more.
        let length = socket.recv_slice(&mut data).unwrap_or(0);
        assert_eq!(length, data.len());
        data
    }

    /// Connects, sends, reads until the guest closes.
    pub fn converse(&mut self, port: u16, data: &[u8], seconds: u64) -> Vec<u8> {
        let socket = self.connect((GUEST, port));
        self.send(socket, data);
        let answer = self.read_to_end(socket, seconds);
        self.tcp_socket(socket).close();
        self.run(5);
        self.sockets.remove(socket);
        answer
    }
}

/// Whole lines of chargen, and the beginning of one (RFC 864).
pub fn assert_chargen(text: &[u8]) {
    let lines: Vec<_> = text.split(|&b| b == b'\n').collect();
    let whole = &lines[..lines.len() - 1];
    let is_line = |line: &&[u8]| line.len() == 73 && line[72] == b'\r';
    assert!(whole.iter().all(is_line));
    assert!(whole.windows(2).all(|pair| pair[0][1..72] == pair[1][..71]));
}

/// A second stack of the guest's device, behind a queue of its own.
pub fn second(world: &World) -> World {
    let (mut other, now) = (World::new(), world.now);
    other.now = now;
    other.stack = Stack::following(UdpWay::Sockets, GUEST_MAC, &mut other.guest, now, 2);
    other.stack.follow_ipv4(now, world.stack.ipv4());
    other.sent();
    other
}
