//! The path that is measured, with a device that allocates nothing: an echo
//! allocates nothing either.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use etherparse::PacketBuilder;
use kickpath_abi::{config::Config, status::Status};
use kickpath_services::{Stack, StatusSource};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::{Duration, Instant};

struct Counting;

std::thread_local! {
    /// Of this thread: the test harness has others.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A device that receives one frame `left` times and keeps the last one sent.
struct Wire {
    frame: Vec<u8>,
    left: u32,
    sent: u32,
    last: [u8; 1514],
}

struct Received<'a>(&'a [u8]);

struct Sending<'a> {
    sent: &'a mut u32,
    last: &'a mut [u8; 1514],
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        *self.sent += 1;
        f(&mut self.last[..len])
    }
}

impl Device for Wire {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        self.left = self.left.checked_sub(1)?;
        let sending = Sending {
            sent: &mut self.sent,
            last: &mut self.last,
        };
        Some((Received(&self.frame), sending))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        Some(Sending {
            sent: &mut self.sent,
            last: &mut self.last,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl StatusSource for Wire {
    fn status(&self) -> Status {
        Status::default()
    }
}

const HOST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

#[test]
fn an_echo_allocates_nothing() {
    let mut arp = vec![];
    arp.extend([0xff; 6]);
    arp.extend(HOST);
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend(HOST);
    arp.extend([10, 0, 2, 2]);
    arp.extend([0; 6]);
    arp.extend([10, 0, 2, 15]);
    let mut wire = Wire {
        frame: arp,
        left: 1,
        sent: 0,
        last: [0; 1514],
    };
    let config = Config::parse("ip=10.0.2.15/24", |error| panic!("{error}"));
    let mut now = Instant::from_secs(1);
    let mut stack = Stack::new(&config, GUEST, &mut wire, now, 1);
    while stack.poll(now, &mut wire) {}

    let echoes: u32 = std::env::var("ECHOES").map_or(32_000, |n| n.parse().unwrap());
    for (size, ipv6) in [(64, false), (1400, false), (64, true)] {
        let builder = PacketBuilder::ethernet2(HOST, GUEST);
        let mut frame = vec![];
        let payload = vec![0x42; size];
        if ipv6 {
            let guest = [
                0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0, 0xff, 0xfe, 0x12, 0x34, 0x56,
            ];
            let host = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
            // A neighbour solicitation makes the address known.
            let mut body = vec![];
            body.extend(guest);
            body.extend([1, 1]);
            body.extend(HOST);
            let mut solicitation = vec![];
            PacketBuilder::ethernet2(HOST, GUEST)
                .ipv6(host, guest, 255)
                .icmpv6_raw(135, 0, [0; 4])
                .write(&mut solicitation, &body)
                .unwrap();
            (wire.frame, wire.left) = (solicitation, 1);
            while stack.poll(now, &mut wire) {}
            let builder = builder.ipv6(host, guest, 64).udp(1000, 7);
            builder.write(&mut frame, &payload).unwrap();
        } else {
            let builder = builder.ipv4([10, 0, 2, 2], [10, 0, 2, 15], 64).udp(1000, 7);
            builder.write(&mut frame, &payload).unwrap();
        }
        // The first one proves the sender; from then on it is the fast path.
        (wire.frame, wire.left) = (frame, 1);
        while stack.poll(now, &mut wire) {}
        wire.sent = 0;
        let before = ALLOCATIONS.get();
        for _ in 0..echoes / 32 {
            wire.left = 32;
            while stack.poll(now, &mut wire) {}
            now += Duration::from_micros(1);
        }
        let allocations = ALLOCATIONS.get() - before;
        assert_eq!(wire.sent, echoes / 32 * 32);
        let header = if ipv6 { 62 } else { 42 };
        assert_eq!(wire.last[header..header + size], payload);
        assert_eq!(allocations, 0, "{size} bytes, IPv6 {ipv6}");
    }
}
