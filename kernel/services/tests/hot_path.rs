//! What memory the guest takes while it serves. On the path that is measured, with a
//! device that allocates nothing, an echo allocates nothing either; and connections
//! that are over leave nothing behind.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::*;
use kickpath_abi::config::Config;
use kickpath_services::{NetworkDevice, Stack};
use smoltcp::phy::{self, Device, DeviceCapabilities};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{Icmpv6Repr, NdiscRepr, RawHardwareAddress};

struct Counting;

std::thread_local! {
    /// Of this thread: the test harness has others.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// Bytes that are allocated.
    static IN_USE: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        IN_USE.set(IN_USE.get().wrapping_add(layout.size()));
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.set(IN_USE.get().wrapping_sub(layout.size()));
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

/// What is counted, and where the frame is put.
struct Sending<'a>(&'a mut u32, &'a mut [u8; 1514]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        *self.0 += 1;
        f(&mut self.1[..len])
    }
}

impl Device for Wire {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        self.left = self.left.checked_sub(1)?;
        let sending = Sending(&mut self.sent, &mut self.last);
        Some((Received(&self.frame), sending))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.sent, &mut self.last))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        plain_capabilities()
    }
}

impl NetworkDevice for Wire {}

#[test]
fn an_echo_allocates_nothing() {
    let mut wire = Wire {
        frame: arp_request(),
        left: 1,
        sent: 0,
        last: [0; 1514],
    };
    let config = Config::parse("ip=10.0.2.15/24", |error| panic!("{error}"));
    let mut now = Instant::from_secs(1);
    let mut stack = Stack::new(&config, GUEST_MAC, &mut wire, now, 1);
    while stack.poll(now, &mut wire) {}

    let echoes: u32 = std::env::var("ECHOES").map_or(32_000, |n| n.parse().unwrap());
    for (size, ipv6) in [(64, false), (1400, false), (64, true)] {
        let payload = vec![0x42; size];
        let frame = if ipv6 {
            let host = "fe80::2".parse().unwrap();
            // A neighbour solicitation makes the address known.
            let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
                target_addr: GUEST6,
                lladdr: Some(RawHardwareAddress::from_bytes(&HOST_MAC)),
            });
            let solicitation = icmpv6(255, [host, GUEST6], [HOST_MAC, GUEST_MAC], &icmp);
            (wire.frame, wire.left) = (solicitation, 1);
            while stack.poll(now, &mut wire) {}
            datagram(HOST_MAC, host, GUEST6, [1000, 7], &payload)
        } else {
            datagram(HOST_MAC, HOST4, GUEST4, [1000, 7], &payload)
        };
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

#[test]
fn connections_that_are_over_take_no_memory() {
    let mut world = World::greeted();
    let mut come_and_go = || {
        for port in 10_000..20_000 {
            let syn = packet(HOST_MAC, HOST4, GUEST4).tcp(port, 80, 1, 1000).syn();
            let answers = world.answers_to(frame(|f| syn.write(f, &[])));
            let flags = answers.last().map(|frame| frame[47]);
            assert_eq!(flags, Some(0x12), "SYN and ACK");
            let reset = packet(HOST_MAC, HOST4, GUEST4).tcp(port, 80, 2, 1000).rst();
            world.answers_to(frame(|f| reset.write(f, &[])));
        }
        IN_USE.get()
    };
    assert_eq!(come_and_go(), come_and_go());
}
