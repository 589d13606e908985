//! A device that rewrites, at any moment, everything that the protocol lets it
//! write, under the driver and the network stack on it: nothing panics, and once
//! it is honest again and was reset, there is service again.
//!
//! A second thread writes rings, event words, receive buffers and the control
//! queue's memory, and changes what status and configuration read as, while real
//! frames go both ways. The device's end of the rings is rust-vmm's
//! `virtio-queue`, as in the driver's own tests. `KICKPATH_SEED` repeats a run, as
//! far as two threads can; `KICKPATH_ROUNDS` makes it longer.

mod scribbler;

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code)] // The driver's own tests use the rest.
#[path = "../../../virtio-net/tests/driver/support/mod.rs"]
mod support;

use common::{Frames, GUEST, GUEST_MAC, GUEST4, Port, World, arp, arp_request};
use kickpath_services::NetworkDevice;
use scribbler::{Scribbler, Target};
use smoltcp::iface::{self, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use support::blind::BlindDevice;
use support::control::Behaviour;
use support::device::status::NEEDS_RESET;
use support::memory::GuestHal;
use support::net::{Machine, Net, feature, high};
use support::transport::Bell;
use virtio_net::net::{NetError, RxMode};
use virtio_net::smoltcp::{Phy, RxToken, TxToken};
use virtio_net::vectors::Rung;

/// Rounds for each device, one for each target, if `KICKPATH_ROUNDS` does not say
/// more.
const ROUNDS: usize = Target::ALL.len();
/// Milliseconds of simulated time that a round has.
const TURNS: usize = 100;
/// Writes of the other thread that the guest waits for in each of them.
const WRITES: u64 = 100;
/// Whom frames ask for that do not lie in the queue's own buffers; nobody.
const OWNED: [u8; 4] = [10, 0, 2, 99];

/// The driver as the network stack's device, and what is beyond its rings.
struct Nic {
    machine: Machine,
    net: Net,
    /// From the host, and to it.
    inbox: Frames,
    outbox: Frames,
    device: BlindDevice,
    /// Frames to [`OWNED`] that were sent.
    owned: u64,
    /// Errors for which the device was opened again.
    opened_again: u64,
}

impl NetworkDevice for Nic {
    fn is_verified(token: &RxToken<'_>) -> bool {
        token.is_verified()
    }
}

impl Device for Nic {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a, GuestHal, Bell>;

    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'_>, TxToken<'_, GuestHal, Bell>)> {
        self.turn();
        let (rx, tx) = self.net.queues().ok()?;
        if !tx.has_room() {
            return None;
        }
        let segment_size = None;
        Some((RxToken::new(rx.receive()?), TxToken { tx, segment_size }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_, GuestHal, Bell>> {
        let (_, tx) = self.net.queues().ok()?;
        let segment_size = None;
        tx.has_large_room().then_some(TxToken { tx, segment_size })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        common::plain_capabilities()
    }
}

impl Nic {
    /// As the kernel's loop: the device is looked after, and told of what is to
    /// be sent; then it does what there is to do.
    fn turn(&mut self) {
        if let Err(error) = self.net.poll() {
            self.opened_again += u64::from(error != NetError::NotOpen);
            let _ = self.reopen();
        }
        // What grows is sent by the end of a poll.
        drop(Phy::of(&mut self.net));
        self.net.kick();
        if self.net.rung().is_some() {
            while let Some(frame) = self.device.send() {
                self.owned += u64::from(frame.ends_with(&OWNED));
                self.outbox.borrow_mut().push_back(frame);
            }
            let mut inbox = self.inbox.borrow_mut();
            let mut is_taken = |frame: &mut Vec<u8>| self.device.receive(frame);
            while inbox.pop_front_if(&mut is_taken).is_some() {}
        }
        self.machine.deliver();
    }

    /// It may fail, as long as the device lies.
    fn reopen(&mut self) -> Result<(), NetError> {
        let controller = &mut self.machine.controller;
        let opened = self.net.open(controller, Rung::MsixPerQueue);
        self.device.find_rings();
        opened
    }

    /// A thread that writes from now on.
    fn scribble(&self, target: Target, seed: u64) -> Scribbler {
        let mut device = self.machine.device();
        device.control.behaviour = Behaviour::Silent;
        let lies = device.lies.clone();
        drop(device);
        let (writable, hot) = (self.device.writable.clone(), self.device.hot());
        Scribbler::start(target, seed, writable, lies, hot)
    }

    /// The device is honest from here on, and was reset.
    fn begin_again(&mut self, what: &str) {
        {
            let mut device = self.machine.device();
            device.lies.end();
            device.status &= !NEEDS_RESET;
            device.control.behaviour = Behaviour::Honest;
        }
        assert_eq!(self.reopen(), Ok(()), "{what}");
        self.machine.device().violations.clear();
        // A frame that was changed on its way may have told either end that the other
        // one is elsewhere: ARP is like that, until the host asks for something.
        self.inbox.borrow_mut().push_back(arp_request());
    }

    /// Frames that are not in the queue's own buffers: one in a buffer that is the
    /// sender's until then, and one in the sender's memory.
    fn send_owned(&mut self) {
        let Ok((_, tx)) = self.net.queues() else {
            return;
        };
        let frame = arp(1, GUEST_MAC, GUEST4, OWNED);
        if let Some(mut buffer) = tx.take_buffer() {
            buffer.frame_mut(frame.len()).copy_from_slice(&frame);
            let _ = tx.xmit_buffer(buffer, frame.len(), None);
        }
        let memory = [vec![0; tx.headroom()], frame].concat();
        let _ = tx.xmit_shared(memory.into(), None);
    }
}

fn world(offered: u32, offered_high: u32) -> World<Nic> {
    let mut machine = Machine::new(offered, 64);
    machine.device().offered_high = offered_high;
    let mut net = machine.open();
    // A device that does not answer is given up soon.
    net.set_control_patience(20);
    let device = BlindDevice::new(&machine.device);
    let (inbox, outbox) = (Frames::default(), Frames::default());
    let host = Port::new(&outbox, &inbox, 1024);
    let nic = Nic {
        machine,
        net,
        inbox,
        outbox,
        device,
        owned: 0,
        opened_again: 0,
    };
    World::between("ip=10.0.2.15/24 gateway=10.0.2.2", nic, host)
}

/// Pings, datagrams and connections while the other thread writes.
fn traffic(world: &mut World<Nic>, scribbler: &Scribbler) {
    let udp = world.udp();
    let mut tcp = Vec::new();
    for turn in 0..TURNS {
        scribbler.wait_for(WRITES);
        for port in [7, 9, 19] {
            let text = [turn as u8; 300];
            let socket = world.sockets.get_mut::<smoltcp::socket::udp::Socket>(udp);
            let _ = socket.send_slice(&text[..turn], (GUEST, port));
        }
        if turn % 8 == 0 {
            let port = [7, 80, 19][turn / 8 % 3];
            tcp.push(world.tcp((GUEST, port)));
        }
        for &socket in &tcp {
            let socket = world.tcp_socket(socket);
            if socket.can_send() {
                let _ = socket.send_slice(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            }
        }
        world.guest.send_owned();
        if turn % 20 == 0 {
            let _ = world.guest.net.set_rx_mode(RxMode::default());
        }
        world.step();
        for &socket in &tcp {
            world.take(socket);
        }
        while world.udp_receive(udp).is_some() {}
    }
    world.sockets.remove(udp);
    for socket in tcp {
        world.sockets.remove(socket);
    }
}

/// Once the device is honest again there is service.
fn assert_service(world: &mut World<Nic>, what: &str) {
    world.guest.begin_again(what);
    world.run(3000);
    world.assert_echo();
    let page = world.converse(80, b"GET /stats.json HTTP/1.0\r\n\r\n", 20);
    assert!(page.starts_with(b"HTTP/1.1 200"), "{what}: {page:?}");
    world.guest.machine.assert_no_violation();
}

fn scribbled(name: &str, offered: u32, offered_high: u32) {
    let seed = scribbler::seed();
    println!("{name}: KICKPATH_SEED={seed}");
    let mut world = world(offered, offered_high);
    world.assert_echo();
    let rounds = match std::env::var("KICKPATH_ROUNDS") {
        Ok(rounds) => rounds.parse().expect("KICKPATH_ROUNDS is no number"),
        Err(_) => ROUNDS,
    };
    for round in 0..rounds {
        let target = Target::ALL[round % Target::ALL.len()];
        let scribbler = world.guest.scribble(target, seed ^ round as u64);
        traffic(&mut world, &scribbler);
        let writes = scribbler.stop();
        let what = format!("{name}, KICKPATH_SEED={seed}, round {round}, {target:?}");
        assert_service(&mut world, &what);
        let opened_again = world.guest.opened_again;
        println!("{what}: {writes} writes, opened again {opened_again} times so far");
    }
    let stats = world.guest.net.stats();
    // Something has come through.
    assert!(stats.rx_packets > 200 * rounds as u64, "{stats:?}");
    assert!(world.guest.owned > 2 * rounds as u64);
    // What is aimed at breaks queues, so that the test is one.
    assert!(world.guest.opened_again > 0);
}

#[test]
fn without_offloads() {
    scribbled("without offloads", feature::ALL, 0);
}

#[test]
fn with_every_feature() {
    scribbled("every feature", feature::IMPLEMENTED, high::VERSION_1);
}

#[test]
fn with_headers_apart_and_no_event_index() {
    let offered = feature::MAC | feature::STATUS | feature::CTRL_VQ | feature::CTRL_RX;
    scribbled("headers apart", offered, 0);
}

#[test]
fn in_order() {
    let offered = feature::ALL | feature::MRG_RXBUF | feature::GUEST_CSUM;
    scribbled("in order", offered, high::VERSION_1 | high::IN_ORDER);
}

#[test]
fn packed_rings() {
    let offered = feature::ALL | feature::HOST | feature::MRG_RXBUF | feature::GUEST_CSUM;
    scribbled("packed", offered, high::VERSION_1 | high::RING_PACKED);
}

/// An echo by smoltcp's own sockets over the ready device, without our network stack.
struct Echo {
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
}

impl Echo {
    fn new(world: &mut World<Nic>) -> Self {
        let mac = HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC));
        let device = &mut Phy::of(&mut world.guest.net);
        let mut interface = Interface::new(iface::Config::new(mac), device, world.now);
        interface.update_ip_addrs(|own| own.push(IpCidr::new(GUEST, 24)).unwrap());
        let mut sockets = SocketSet::new(vec![]);
        let buffer = || tcp::SocketBuffer::new(vec![0; 65535]);
        let socket = sockets.add(tcp::Socket::new(buffer(), buffer()));
        Self {
            interface,
            sockets,
            socket,
        }
    }

    /// Both ends work, and a millisecond passes.
    fn step(&mut self, world: &mut World<Nic>) {
        let socket = self.sockets.get_mut::<tcp::Socket>(self.socket);
        if !socket.is_open() {
            socket.listen(7).unwrap();
        }
        while socket.can_recv() && socket.can_send() {
            let received = socket.recv(|data| (data.len(), data.to_vec())).unwrap();
            socket.send_slice(&received).unwrap();
        }
        let nic = &mut world.guest;
        nic.turn();
        let mut device = Phy::of(&mut nic.net);
        self.interface
            .poll(world.now, &mut device, &mut self.sockets);
        drop(device);
        nic.turn();
        world.turn_host();
        world.now += Duration::from_millis(1);
    }
}

#[test]
fn under_smoltcp_alone() {
    let seed = scribbler::seed();
    let mut world = world(feature::IMPLEMENTED, high::VERSION_1);
    let mut echo = Echo::new(&mut world);
    for (round, target) in (0..).zip(Target::ALL) {
        let what = format!("smoltcp alone, KICKPATH_SEED={seed}, {target:?}");
        println!("{what}");
        for wild in [true, false] {
            let scribbler = wild.then(|| world.guest.scribble(target, seed ^ round));
            if !wild {
                world.guest.begin_again(&what);
            }
            echo.sockets.get_mut::<tcp::Socket>(echo.socket).abort();
            let asking = world.tcp((GUEST, 7));
            let mut answer = Vec::new();
            for _ in 0..if wild { TURNS } else { 10_000 } {
                if let Some(scribbler) = &scribbler {
                    scribbler.wait_for(WRITES);
                }
                if world.tcp_socket(asking).can_send() && answer.len() < 100_000 {
                    let _ = world.tcp_socket(asking).send_slice(&[0x42; 5000]);
                }
                echo.step(&mut world);
                answer.extend(world.take(asking));
                if !wild && answer.len() > 50_000 {
                    break;
                }
            }
            world.sockets.remove(asking);
            match scribbler {
                Some(scribbler) => assert!(scribbler.stop() > 0),
                None => assert!(answer.len() > 50_000, "{what}: {}", answer.len()),
            }
        }
    }
}
