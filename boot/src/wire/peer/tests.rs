//! The peer against the guest's own network stack, without QEMU between them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use kickpath_abi::config::{Config, Ipv4Config, parse_ipv4};
use kickpath_abi::status::Status;
use kickpath_services::{NetworkDevice, Stack as GuestStack};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time;

use super::*;

const BOUND: Duration = Duration::from_secs(60);
const MAC: [u8; 6] = crate::qemu::GUEST_MAC;

/// What goes wrong on the guest's end: it sees every frame it sends.
type Fault = fn(u64, Vec<u8>) -> Vec<Vec<u8>>;

fn none(_: u64, frame: Vec<u8>) -> Vec<Vec<u8>> {
    vec![frame]
}

struct Nic {
    wire: Dgram,
    received: Option<Frame>,
    sent: u64,
    fault: Fault,
}

struct Sender<'a>(&'a Transmit, &'a mut u64, Fault);

struct Receiver(Vec<u8>);

impl phy::RxToken for Receiver {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        *self.1 += 1;
        for frame in (self.2)(*self.1, frame) {
            self.0.send(&frame);
        }
        result
    }
}

struct Guest {
    nic: Nic,
    transmit: Transmit,
}

impl Device for Guest {
    type RxToken<'a> = Receiver;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: time::Instant) -> Option<(Receiver, Sender<'_>)> {
        let frame = match self.nic.received.take() {
            Some(frame) => frame,
            None => self.nic.wire.receive(Duration::ZERO)?,
        };
        let sender = Sender(&self.transmit, &mut self.nic.sent, self.nic.fault);
        Some((Receiver(frame.bytes), sender))
    }

    fn transmit(&mut self, _: time::Instant) -> Option<Sender<'_>> {
        Some(Sender(&self.transmit, &mut self.nic.sent, self.nic.fault))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl NetworkDevice for Guest {}

/// A guest's network on a thread.
struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(wire: Dgram, config: &str, fault: Fault) -> Self {
        let config = Config::parse(config, |error| panic!("{error}"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let start = Instant::now();
            let now = || time::Instant::from_micros(start.elapsed().as_micros() as i64);
            let transmit = wire.transmit();
            let nic = Nic {
                wire,
                received: None,
                sent: 0,
                fault,
            };
            let mut guest = Guest { nic, transmit };
            let mut stack = GuestStack::new(&config, MAC, &mut guest, now(), 1);
            while !stopped.load(Ordering::Relaxed) {
                while stack.poll(now(), &mut guest) {
                    if stack.wants_status() {
                        let mut status = Status::default();
                        status.counters.tx_packets = guest.nic.sent;
                        stack.set_status(status);
                    }
                }
                guest.nic.received = guest.nic.wire.receive(Duration::from_millis(1));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the guest's thread");
        }
    }
}

fn plan(ip: &str) -> Plan {
    Plan::new(parse_ipv4(ip).unwrap()).unwrap()
}

/// Without a router: when smoltcp's address changes it forgets its neighbours,
/// and the answer that was due then is lost.
fn network(fault: Fault) -> (Peer, Running, Ipv4Addr) {
    network_with(fault, false)
}

fn network_with(fault: Fault, router: bool) -> (Peer, Running, Ipv4Addr) {
    let (ours, theirs) = Dgram::pair().unwrap();
    let plan = plan("10.0.2.15/24");
    let mut config = Config::default();
    plan.configure(&mut config);
    let guest = Running::start(theirs, &config.to_string(), fault);
    let options = PeerOptions {
        dhcp: false,
        router,
    };
    let peer = Peer::new(ours, plan, options).unwrap();
    (peer, guest, plan.guest.address)
}

#[test]
fn pings_of_every_kind_come_back() {
    let (peer, _guest, guest) = network(none);
    for size in [0, 1, 56, 1472] {
        let report = peer.ping(guest.into(), 3, size, BOUND).unwrap();
        assert_eq!(
            (report.sent, report.received, report.corrupted),
            (3, 3, 0),
            "{:#?}",
            peer.frame_log().describe()
        );
        assert!(report.min <= report.average() && report.average() <= report.max);
        assert!(report.max < BOUND && report.min > Duration::ZERO);
    }
    let nobody: IpAddr = "10.0.2.99".parse().unwrap();
    let report = peer.ping(nobody, 2, 8, Duration::from_millis(50)).unwrap();
    assert_eq!((report.sent, report.received, report.lost()), (2, 0, 2));
    assert_eq!(report.average(), Duration::ZERO);
    assert!(matches!(
        peer.ping(guest.into(), 1, 16_357, BOUND),
        Err(WireError::Argument(_))
    ));
}

#[test]
fn ipv6_pings_the_link_local_and_the_advertised_address() {
    let (peer, _guest, guest) = network_with(none, true);
    // TCP sends again what is lost while the guest forms its address.
    let ula = "fd6b:6963:6b70:0:5054:ff:fe4b:5001";
    let deadline = Instant::now() + BOUND;
    loop {
        let page = peer.http_get(guest.into(), "/stats.json", BOUND).unwrap();
        let status: Status = serde_json::from_slice(&page.body).unwrap();
        if status
            .network
            .ipv6
            .iter()
            .any(|a| a.starts_with("fd6b:6963:6b70:"))
        {
            break;
        }
        assert!(Instant::now() < deadline, "{:?}", status.network);
    }
    for address in ["fe80::5054:ff:fe4b:5001", ula] {
        let report = peer.ping(address.parse().unwrap(), 3, 64, BOUND).unwrap();
        assert_eq!(
            report.received,
            3,
            "{address} {:#?}",
            peer.frame_log().describe()
        );
    }
}

#[test]
fn udp_comes_back_in_every_size_also_in_fragments() {
    let (peer, _guest, guest) = network(none);
    for size in [0, 1, 63, 64, 65, 512, 1471, 1472, 1473, 4000] {
        let echo = peer.udp_echo(guest.into(), size, BOUND).unwrap();
        assert_eq!(echo.bytes, size);
    }
    let closed = SocketAddr::new(guest.into(), 4);
    let error = peer.udp_exchange(closed, b"x", Duration::from_millis(50));
    assert!(matches!(error, Err(WireError::Timeout { .. })));
    let error = peer.udp_exchange(closed, &[0; 16_357], BOUND);
    assert!(matches!(error, Err(WireError::Argument(_))));
}

#[test]
fn a_tcp_stream_longer_than_all_buffers_comes_back() {
    let (peer, _guest, guest) = network(none);
    let echo = peer.tcp_echo(guest.into(), 3_000_001, BOUND * 3).unwrap();
    assert_eq!(echo.bytes, 3_000_001);
    // Nothing stays behind.
    thread::sleep(Duration::from_millis(100));
    assert_eq!(peer.with(|stack| stack.sockets.iter().count()), 0);
}

#[test]
fn connections_can_be_kept_closed_and_refused() {
    let (peer, _guest, guest) = network(none);
    let echo = SocketAddr::new(guest.into(), 7);
    let connections: Vec<_> = (0..4)
        .map(|_| peer.tcp_connect(echo, BOUND).unwrap())
        .collect();
    let mut buffer = [0; 100];
    for (n, connection) in connections.iter().enumerate() {
        peer.tcp_send(connection, &[n as u8; 10], BOUND).unwrap();
    }
    for (n, connection) in connections.into_iter().enumerate() {
        let mut got = Vec::new();
        while got.len() < 10 {
            let more = peer.tcp_recv(&connection, &mut buffer, BOUND).unwrap();
            got.extend_from_slice(&buffer[..more]);
        }
        assert_eq!(got, [n as u8; 10]);
        if n % 2 == 0 {
            peer.tcp_close(connection);
        } else {
            peer.tcp_abort(connection);
        }
    }
    let refused = peer.tcp_connect(SocketAddr::new(guest.into(), 4), BOUND);
    assert!(
        matches!(refused, Err(WireError::Closed { .. })),
        "{refused:?}"
    );
    let nobody = SocketAddr::new("10.0.2.99".parse().unwrap(), 7);
    let silent = peer.tcp_connect(nobody, Duration::from_millis(100));
    assert!(
        matches!(silent, Err(WireError::Timeout { .. })),
        "{silent:?}"
    );
}

#[test]
fn the_status_page_is_fetched() {
    let (peer, _guest, guest) = network(none);
    let page = peer.http_get(guest.into(), "/stats.json", BOUND).unwrap();
    assert_eq!(page.status, 200);
    let status: Status = serde_json::from_slice(&page.body).unwrap();
    assert_eq!(status.network.ipv4, ["10.0.2.15/24"]);
    let missing = peer.http_get(guest.into(), "/none", BOUND).unwrap();
    assert_eq!(missing.status, 404);
}

#[test]
fn a_flood_of_echoes_loses_nothing() {
    let (peer, _guest, guest) = network(none);
    let flood = Flood {
        count: 5000,
        size: 64,
        outstanding: 32,
        patience: BOUND,
        bound: BOUND * 3,
    };
    let report = peer.udp_echo_flood(guest, flood).unwrap();
    let expected = FloodReport {
        sent: 5000,
        received: 5000,
        elapsed: report.elapsed,
        ..FloodReport::default()
    };
    assert_eq!(report, expected);
    for flood in [
        Flood { size: 7, ..flood },
        Flood {
            size: 1473,
            ..flood
        },
        Flood {
            outstanding: 0,
            ..flood
        },
    ] {
        let error = peer.udp_echo_flood(guest, flood);
        assert!(matches!(error, Err(WireError::Argument(_))), "{error:?}");
    }
}

/// Only for frames as long as the echoes below: 64 bytes of content.
fn drop_corrupt_or_repeat(number: u64, mut frame: Vec<u8>) -> Vec<Vec<u8>> {
    if frame.len() != 14 + 20 + 8 + 64 {
        return vec![frame];
    }
    match number % 50 {
        10 => vec![],
        20 => {
            frame[80] ^= 0x10;
            vec![frame]
        }
        30 => vec![frame.clone(), frame],
        _ => vec![frame],
    }
}

#[test]
fn a_flood_counts_what_is_lost_damaged_and_repeated() {
    let (peer, _guest, guest) = network(drop_corrupt_or_repeat);
    let flood = Flood {
        count: 500,
        size: 64,
        outstanding: 8,
        patience: Duration::from_secs(1),
        bound: BOUND,
    };
    let report = peer.udp_echo_flood(guest, flood).unwrap();
    assert_eq!(report.sent, 500);
    assert_eq!(report.received + report.lost, 500);
    assert!((8..=12).contains(&report.corrupted), "{report:?}");
    assert!((8..=12).contains(&report.unexpected), "{report:?}");
    // A damaged answer is no answer.
    assert!((16..=24).contains(&report.lost), "{report:?}");
    assert!(!report.cut_short);

    let short = Flood {
        bound: Duration::from_millis(1),
        count: 1 << 40,
        ..flood
    };
    assert!(peer.udp_echo_flood(guest, short).unwrap().cut_short);
}

#[test]
fn an_address_is_given_by_dhcp() {
    let (ours, theirs) = Dgram::pair().unwrap();
    let plan = plan("dhcp");
    let peer = Peer::new(ours, plan, PeerOptions::of(&plan)).unwrap();
    let _guest = Running::start(theirs, "", none);
    let deadline = Instant::now() + BOUND;
    let address = Ipv4Config::FALLBACK.address;
    while peer
        .ping(address.into(), 1, 8, Duration::from_millis(200))
        .unwrap()
        .received
        == 0
    {
        assert!(
            Instant::now() < deadline,
            "{:#?}",
            peer.frame_log().describe()
        );
    }
    let page = peer.http_get(address.into(), "/stats.json", BOUND).unwrap();
    let status: Status = serde_json::from_slice(&page.body).unwrap();
    assert_eq!(status.network.ipv4_source, "dhcp");
    assert_eq!(status.network.gateway, "10.0.2.2");
}

#[test]
fn frames_of_ones_own_making_go_out_and_come_in() {
    let (peer, _guest, guest) = network(none);
    assert_eq!(peer.resolve(guest, BOUND).unwrap(), MAC);
    peer.capture(16);
    peer.send_frame(&[0xff; 7]);
    peer.send_frame(&[0; 1514]);
    assert_eq!(peer.ping(guest.into(), 1, 100, BOUND).unwrap().received, 1);
    let mut lengths = Vec::new();
    while let Some(frame) = peer.recv_frame(Duration::from_millis(50)) {
        lengths.push(frame.bytes.len());
    }
    assert!(lengths.contains(&(14 + 20 + 8 + 100)), "{lengths:?}");
    peer.capture(0);
    assert!(peer.ping(guest.into(), 1, 100, BOUND).unwrap().received == 1);
    assert!(peer.recv_frame(Duration::from_millis(10)).is_none());
}

#[test]
fn an_answer_that_comes_late_is_seen() {
    let (ours, theirs) = Dgram::pair().unwrap();
    let plan = plan("dhcp");
    let peer = Peer::new(ours, plan, PeerOptions::of(&plan)).unwrap();
    let guest = plan.guest.address;
    let is_done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while !is_done.load(Ordering::Relaxed) {
                let Some(Frame { bytes, .. }) = theirs.receive(Duration::from_millis(10)) else {
                    continue;
                };
                // An ARP request for the guest (RFC 826).
                if bytes[12..14] == [8, 6]
                    && bytes[20..22] == [0, 1]
                    && bytes[38..] == guest.octets()
                {
                    std::thread::sleep(Duration::from_millis(30));
                    let (asker, target) = (&bytes[22..32], &bytes[38..42]);
                    let parts = [
                        &bytes[6..12],
                        &MAC,
                        &bytes[12..21],
                        &[2],
                        &MAC,
                        target,
                        asker,
                    ];
                    theirs.send(&parts.concat());
                }
            }
        });
        let answer = peer.resolve(guest, BOUND);
        is_done.store(true, Ordering::Relaxed);
        assert_eq!(answer.unwrap(), MAC);
    });
}

#[test]
fn junk_from_the_guest_changes_nothing() {
    let (ours, theirs) = Dgram::pair().unwrap();
    let plan = plan("dhcp");
    let peer = Peer::new(ours, plan, PeerOptions::of(&plan)).unwrap();
    // Frames that look like every protocol that is parsed, with random bytes.
    let mut random = 1u64;
    for n in 0..20_000 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let mut frame = vec![0; (random >> 40) as usize % 200];
        far_pattern(random, &mut frame);
        let heads: [&[u8]; 4] = [
            &[0x08, 0x00, 0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17],
            &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, 58, 255],
            &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2],
            &[],
        ];
        let head = heads[n % 4];
        if frame.len() > 12 + head.len() {
            frame[..6].copy_from_slice(&PEER_MAC);
            frame[12..12 + head.len()].copy_from_slice(head);
        }
        theirs.send(&frame);
    }
    let config = format!("ip={}/24", plan.guest.address);
    let _guest = Running::start(theirs, &config, none);
    let guest = plan.guest.address;
    // By then the guest has all its addresses.
    peer.http_get(guest.into(), "/stats.json", BOUND).unwrap();
    assert_eq!(peer.ping(guest.into(), 3, 8, BOUND).unwrap().received, 3);
}

fn far_pattern(seed: u64, out: &mut [u8]) {
    crate::wire::far_end::fill_pattern(seed, 0, out);
}
