//! The driver under smoltcp, which makes its own segments over IPv6, and
//! another smoltcp at the far end, which verifies every checksum.

use std::cell::RefCell;
use std::collections::VecDeque;

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};
use virtio_net::net::Changes;
use virtio_net::smoltcp::{Phy, RxToken, TxToken};

use crate::support::memory::GuestHal;
use crate::support::net::{Machine, feature, pattern};
use crate::support::segments::{Segment, wire};
use crate::support::transport::Bell;

/// The driver as smoltcp's device; keeps every frame that smoltcp writes.
struct Driver<'n> {
    phy: Phy<'n, GuestHal, Bell>,
    written: &'n RefCell<Vec<Vec<u8>>>,
}

/// The cable's far end.
#[derive(Default)]
struct Cable {
    from: VecDeque<Vec<u8>>,
    to: RefCell<Vec<Vec<u8>>>,
}

struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sender<'d>(TxToken<'d, GuestHal, Bell>, &'d RefCell<Vec<Vec<u8>>>);

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        self.0.consume(length, |frame| {
            let result = f(frame);
            self.1.borrow_mut().push(frame.to_vec());
            result
        })
    }
}

struct Plain<'d>(&'d RefCell<Vec<Vec<u8>>>);

impl phy::TxToken for Plain<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.borrow_mut().push(frame);
        result
    }
}

fn ethernet() -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ethernet;
    capabilities.max_transmission_unit = 1514;
    capabilities
}

impl Device for Driver<'_> {
    type RxToken<'a>
        = RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Sender<'a>
    where
        Self: 'a;

    fn receive(&mut self, now: Instant) -> Option<(RxToken<'_>, Sender<'_>)> {
        let (received, token) = self.phy.receive(now)?;
        Some((received, Sender(token, self.written)))
    }

    fn transmit(&mut self, now: Instant) -> Option<Sender<'_>> {
        Some(Sender(self.phy.transmit(now)?, self.written))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.phy.capabilities()
    }
}

impl Device for Cable {
    type RxToken<'a> = Received;
    type TxToken<'a> = Plain<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Plain<'_>)> {
        let frame = self.from.pop_front()?;
        Some((Received(frame), Plain(&self.to)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Plain<'_>> {
        Some(Plain(&self.to))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        ethernet()
    }
}

fn interface(device: &mut impl Device, number: u8) -> Interface {
    let mac = EthernetAddress([2, 0, 0, 0, 0, number]);
    let mut config = Config::new(HardwareAddress::Ethernet(mac));
    config.random_seed = number.into();
    let mut interface = Interface::new(config, device, Instant::ZERO);
    let address = IpAddress::v6(0xfe80, 0, 0, 0, 0, 0, 0, number.into());
    interface.update_ip_addrs(|all| all.push(IpCidr::new(address, 64)).unwrap());
    interface
}

fn socket(receive: usize, send: usize, time_stamps: bool) -> tcp::Socket<'static> {
    let buffer = |length| tcp::SocketBuffer::new(vec![0; length]);
    let mut socket = tcp::Socket::new(buffer(receive), buffer(send));
    if time_stamps {
        socket.set_tsval_generator(Some(|| 4711));
    }
    socket
}

/// `count` connections on which the driver's side sends `length` bytes each.
/// Returns how many segments with data smoltcp wrote, and in how many frames
/// they left.
fn transfer(offered: u32, count: u16, length: usize, time_stamps: bool) -> (usize, usize) {
    let mut machine = Machine::new(offered, 256);
    let mut net = machine.open();
    let log = RefCell::default();
    let mut cable = Cable::default();
    let mut near = interface(&mut Phy::of(&mut net), 1);
    let mut far = interface(&mut cable, 2);
    let (mut near_sockets, mut far_sockets) = (SocketSet::new(vec![]), SocketSet::new(vec![]));
    let mut connections = Vec::new();
    for port in 1..=count {
        let mut server = socket(1000, 40_000, time_stamps);
        server.listen(port).unwrap();
        let mut client = socket(60_000, 1000, time_stamps);
        let remote = (IpAddress::v6(0xfe80, 0, 0, 0, 0, 0, 0, 1), port);
        client.connect(far.context(), remote, 1000 + port).unwrap();
        let content = pattern(port.into(), length);
        connections.push((
            near_sockets.add(server),
            far_sockets.add(client),
            content,
            0,
            Vec::new(),
        ));
    }
    let (mut segments, mut frames) = (0, 0);
    for turn in 0..20_000 {
        let now = Instant::from_millis(turn);
        let mut is_done = true;
        for (server, client, content, sent, got) in &mut connections {
            let server = near_sockets.get_mut::<tcp::Socket>(*server);
            while server.can_send() && *sent < content.len() {
                *sent += server.send_slice(&content[*sent..]).unwrap();
            }
            if *sent == content.len() {
                server.close();
            }
            let client = far_sockets.get_mut::<tcp::Socket>(*client);
            while client.can_recv() {
                client
                    .recv(|bytes| {
                        got.extend_from_slice(bytes);
                        (bytes.len(), ())
                    })
                    .unwrap();
            }
            is_done &= got.len() == content.len();
        }
        if is_done {
            break;
        }
        assert_eq!(net.poll(), Ok(Changes::empty()));
        let mut driver = Driver {
            phy: Phy::of(&mut net),
            written: &log,
        };
        near.poll(now, &mut driver, &mut near_sockets);
        drop(driver);
        net.kick();
        machine.deliver();
        let sent = machine.transmit(usize::MAX);
        let left: Vec<_> = sent.iter().flat_map(wire).collect();
        // What smoltcp wrote has no checksums yet; the order is that of each
        // connection.
        let complete = |frame: &Vec<u8>| Segment::parse(frame).map(|segment| segment.frame());
        let mut written: Vec<_> = log.take().iter().filter_map(complete).collect();
        let mut left_of_tcp: Vec<_> = left.iter().filter_map(complete).collect();
        let is_data = |frame: &&Vec<u8>| !Segment::parse(frame).unwrap().payload.is_empty();
        segments += written.iter().filter(is_data).count();
        frames += sent
            .iter()
            .filter(|sent| Segment::parse(&sent.frame).is_some_and(|s| !s.payload.is_empty()))
            .count();
        let of = |frame: &Vec<u8>| Segment::parse(frame).unwrap().tcp.source_port;
        written.sort_by_key(of);
        left_of_tcp.sort_by_key(of);
        assert!(written == left_of_tcp, "turn {turn}");
        cable.from.extend(left);
        far.poll(now, &mut cable, &mut far_sockets);
        for frame in cable.to.take() {
            assert!(machine.receive(&frame));
        }
        machine.deliver();
    }
    for (_, _, content, _, got) in &connections {
        assert!(got == content, "{} bytes of {length}", got.len());
    }
    machine.assert_no_violation();
    drop(net);
    machine.assert_nothing_left();
    (segments, frames)
}

#[test]
fn what_smoltcp_writes_leaves_the_device() {
    for time_stamps in [false, true] {
        for (count, times) in [(1, 12), (3, 12), (6, 2)] {
            let (segments, frames) = transfer(feature::HOST, count, 300_000, time_stamps);
            assert!(segments >= 208 * usize::from(count));
            assert!(
                segments > frames * times,
                "{count} connections: {segments} segments in {frames} frames"
            );
        }
    }
}

#[test]
fn without_the_feature_every_segment_is_a_frame() {
    let (segments, frames) = transfer(feature::CSUM | feature::HOST_TSO4, 3, 100_000, false);
    assert_eq!(segments, frames);
}
