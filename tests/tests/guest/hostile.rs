//! A network that sends what no honest host would send.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use kickpath::qemu::{GUEST_MAC, Kind};
use kickpath::wire::FarEnd;
use kickpath::wire::peer::PEER_MAC;
use kickpath_tests::frames::{self, Flood, Route};
use kickpath_tests::{Lab, Spec, Suite, setup};

use crate::packet_socket::PacketSocket;
use crate::site::{BOUND, GUEST, LINK_LOCAL, Site};
use crate::smp::machine;

/// The number of an honest request behind those that are looked at.
const FENCE: u16 = 0xc000;

pub fn add(suite: &mut Suite) {
    suite.guest("hostile::honest_requests_are_answered", Spec::pc(), |lab| {
        // Else the next test would say nothing.
        let route = from_peer(lab)?;
        let mut no_checksum = route.udp4(5, b"x");
        no_checksum[frames::IPV4_PAYLOAD + 6..][..2].fill(0);
        let mut padded = route.udp4(6, b"x");
        padded.extend([0xee; 17]);
        let requests = [
            route.udp4(0, b"x"),
            route.udp6(1, b"x"),
            route.ping4(2, b"x"),
            route.ping6(3, b"x"),
            route.syn(4),
            no_checksum,
            padded,
        ];
        // No answer can go to port 0.
        let requests = requests.iter().skip(1).map(Vec::as_slice);
        let answers = answers(lab, &route, requests)?;
        ensure!(
            answers == BTreeSet::from([1, 2, 3, 4, 5, 6]),
            "answers to {answers:?}"
        );
        Ok(())
    });
    suite.guest(
        "hostile::wrong_requests_are_not_answered",
        Spec::pc(),
        |lab| {
            let route = from_peer(lab)?;
            let requests = frames::forbidden(&route);
            let bytes = requests.iter().map(|request| request.bytes.as_slice());
            let answers = answers(lab, &route, bytes)?;
            let wrong: Vec<&str> = requests
                .iter()
                .filter(|request| answers.contains(&request.number))
                .map(|request| request.what)
                .collect();
            ensure!(wrong.is_empty(), "answered: {wrong:?}");
            lab.check_services()
        },
    );
    suite.guest(
        "hostile::junk_leaves_the_guest_answering",
        Spec::pc(),
        |lab| {
            // Until then who claims its IPv6 address has it (RFC 4862, 5.4).
            lab.eventually("an address that is the guest's own", || {
                let uptime = lab.status()?.cpu.uptime_us;
                ensure!(uptime > 3_000_000, "up for {uptime} us");
                Ok(())
            })?;
            let junk = frames::junk(&from_stranger(lab)?);
            for (index, frame) in junk.iter().enumerate() {
                lab.peer.send_frame(frame);
                if index % 100 == 99 {
                    let (first, last) = (index - 99, index);
                    lab.ping(lab.address(), 1, 56)
                        .with_context(|| format!("after the frames {first} to {last} of junk"))?;
                }
            }
            check_everything(lab)
        },
    );
    let spec = Spec::pc().bound(Duration::from_secs(120));
    suite.guest(
        "hostile::20000_random_frames_leave_the_guest_answering",
        spec,
        |lab| {
            let route = from_stranger(lab)?;
            let seed = seed()?;
            let mut source = Rng::with_seed(seed);
            for thousand in 0..20 {
                for _ in 0..1000 {
                    lab.peer.send_frame(&frames::random(&route, &mut source));
                }
                lab.ping(lab.address(), 1, 56).with_context(|| {
                    format!("seed {seed}, within {thousand}000 and the next 1000")
                })?;
            }
            let lost = lab.peer.counters().to_guest_dropped;
            ensure!(lost == 0, "QEMU did not take {lost} of the frames");
            check_everything(lab).with_context(|| format!("seed {seed}"))
        },
    );
}

/// What does not depend on the transport.
pub fn add_floods(suite: &mut Suite) {
    let spec = Spec::pc().bound(Duration::from_secs(300));
    suite.guest("hostile::a_flood_that_the_cable_carries", spec, carried);
    suite.needs(setup::lacks_tap(), |suite| {
        suite.test("hostile::a_flood_at_full_rate_on_two_cpus", full_rate);
    });
}

/// How many frames of a flood: `KICKPATH_FLOOD`, or as many.
fn flood_length(otherwise: usize) -> Result<usize> {
    match std::env::var("KICKPATH_FLOOD") {
        Ok(length) => Ok(length.parse().context("KICKPATH_FLOOD")?),
        Err(_) => Ok(otherwise),
    }
}

/// The frames of a flood: every kind in turn.
fn flood(route: Route, length: usize) -> Result<impl Iterator<Item = Vec<u8>>> {
    let flood = Flood::new(route);
    let mut rng = Rng::with_seed(seed()?);
    Ok((0..length).map(move |at| (frames::KINDS[at % frames::KINDS.len()].1)(&flood, &mut rng)))
}

/// QEMU takes every frame, as the sender waits until it does; an honest client has all that it
/// asks for meanwhile. What a frame left behind would be more after every quarter. A table that
/// has grown, as more connections were half open at a time than before, stays as large, but does
/// not grow in each.
fn carried(lab: &mut Lab) -> Result<()> {
    let quarter = flood_length(60_000)? / 4;
    let mut frames = flood(from_stranger(lab)?, 4 * quarter)?;
    let mut heaps = Vec::new();
    for _ in 0..4 {
        served_while(lab, frames.by_ref().take(quarter))?;
        heaps.push(settled_heap(lab)?);
    }
    let growth = heaps.windows(2).map(|two| two[1].saturating_sub(two[0]));
    ensure!(
        growth.min() <= Some(KEPT),
        "bytes of heap in use after each quarter: {heaps:?}"
    );
    let lost = lab.peer.counters().to_guest_dropped;
    ensure!(lost == 0, "QEMU did not take {lost} of the frames");
    let counters = lab.status()?.counters;
    ensure!(counters.rx_packets >= 4 * quarter as u64, "{counters:?}");
    lab.check_services()
}

/// Has the guest serve while these come.
fn served_while(lab: &Lab, frames: impl Iterator<Item = Vec<u8>> + Send) -> Result<()> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            frames.for_each(|frame| lab.peer.send_frame(&frame));
            done.store(true, Ordering::Release);
        });
        loop {
            lab.check_services()?;
            lab.get("/")?;
            if done.load(Ordering::Acquire) {
                return Ok(());
            }
        }
    })
}

/// The heap in use when it is the same for longer than a half-open connection lives, or one in
/// TIME-WAIT: 10 seconds each (`HANDSHAKE` and `TIME_WAIT` of `kernel/services`).
fn settled_heap(lab: &Lab) -> Result<u64> {
    const LONGER: Duration = Duration::from_secs(12);
    let (mut last, mut since) = (0, Instant::now());
    while since.elapsed() < LONGER {
        ensure!(!lab.left().is_zero(), "the heap in use does not settle");
        thread::sleep(Duration::from_secs(1));
        let now = lab.status()?.cpu.heap_used;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

/// Heap in packets that wait until it is known where somebody is (`waiting` of
/// `kernel/services`).
const KEPT: u64 = 64 * (1514 + 64);

/// The tap drops what the guest is too slow for, also of what an honest client sends. It is
/// served as before when the flood is over.
fn full_rate() -> Result<()> {
    let spec = machine(Kind::Pc, 2);
    Site::with_queues(spec, 2)?.run(|site| {
        let address: IpAddr = GUEST.parse()?;
        let check = || -> Result<()> {
            site.sockets.udp_echo(address, 1000, BOUND)?;
            site.sockets.tcp_echo(address, 64 << 10, BOUND)?;
            site.ping(&["-c", "3", GUEST])
        };
        check()?;
        let before = site.status()?;
        let IpAddr::V4(to_ipv4) = address else {
            bail!("not IPv4");
        };
        let route = Route {
            from: STRANGER,
            from_ipv4: [10, 0, 2, 0x5d].into(),
            from_ipv6: "fe80::aaaa:aaaa:aaaa:aaaa".parse()?,
            to: GUEST_MAC,
            to_ipv4,
            to_ipv6: LINK_LOCAL.parse()?,
        };
        let length = flood_length(200_000)?;
        let mut frames = flood(route, length)?;
        site.inside(|| {
            let socket = PacketSocket::bind(c"tap0")?;
            // No room is what a flood meets, and a frame too short no frame.
            frames.by_ref().for_each(|frame| drop(socket.send(&frame)));
            Ok(())
        })?;
        let over = Instant::now();
        // The tap is full of the flood still, and drops what comes.
        site.patiently(|| site.ping(&["-c", "1", "-W", "1", GUEST]))?;
        site.sockets.udp_echo(address, 1000, BOUND)?;
        site.sockets.tcp_echo(address, 64 << 10, BOUND)?;
        let after = site.status()?;
        eprintln!(
            "hostile: ping, UDP, TCP and HTTP were answered {} ms after {length} frames at full rate",
            over.elapsed().as_millis()
        );
        check()?;
        let received = after.counters.rx_packets - before.counters.rx_packets;
        ensure!(received >= 10_000, "{received} frames of the flood came");
        for pair in &after.pairs {
            ensure!(pair.counters.rx_packets > 0, "{:?}", after.pairs);
        }
        Ok(())
    })
}

/// `KICKPATH_SEED`, or the same as always: a failure must be seen again.
fn seed() -> Result<u64> {
    match std::env::var("KICKPATH_SEED") {
        Ok(seed) => Ok(seed.parse().context("KICKPATH_SEED")?),
        Err(_) => Ok(0x6b69_636b),
    }
}

/// Frames that come from the peer itself.
fn from_peer(lab: &Lab) -> Result<Route> {
    let from_ipv6: IpAddr = "fe80::4b:50ff:fe00:2".parse()?;
    let to_ipv6: IpAddr = "fe80::5054:ff:fe4b:5001".parse()?;
    let (IpAddr::V6(from_ipv6), IpAddr::V6(to_ipv6)) = (from_ipv6, to_ipv6) else {
        bail!("not IPv6");
    };
    Ok(Route {
        from: PEER_MAC,
        from_ipv4: lab.peer.plan().host,
        from_ipv6,
        to: GUEST_MAC,
        to_ipv4: lab.ipv4(),
        to_ipv6,
    })
}

/// A hardware address that nobody has.
const STRANGER: [u8; 6] = [0x02, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa];

/// Frames from somebody who is not there: what they do to the guest's tables
/// of neighbours must not cut it off from the peer.
fn from_stranger(lab: &Lab) -> Result<Route> {
    Ok(Route {
        from: STRANGER,
        from_ipv4: [10, 0, 2, 0x5d].into(),
        from_ipv6: "fe80::aaaa:aaaa:aaaa:aaaa".parse()?,
        ..from_peer(lab)?
    })
}

/// Sends the requests, then honest ones of each kind, and returns the numbers
/// of all requests that were answered before those were.
fn answers<'a>(
    lab: &Lab,
    route: &Route,
    requests: impl Iterator<Item = &'a [u8]>,
) -> Result<BTreeSet<u16>> {
    // The guest knows the peer's hardware addresses from here on.
    lab.ping(route.to_ipv4.into(), 1, 8)?;
    lab.ping(route.to_ipv6.into(), 1, 8)?;
    lab.peer.capture(4096);
    for request in requests {
        lab.peer.send_frame(request);
    }
    let fences = [
        route.udp4(FENCE, b"fence"),
        route.udp6(FENCE + 1, b"fence"),
        route.ping4(FENCE + 2, b"fence"),
        route.ping6(FENCE + 3, b"fence"),
        route.syn(FENCE + 4),
    ];
    for fence in &fences {
        lab.peer.send_frame(fence);
    }
    let mut open: BTreeSet<u16> = (FENCE..).take(fences.len()).collect();
    let mut answered = BTreeSet::new();
    while !open.is_empty() {
        let frame = lab.peer.recv_frame(lab.soon());
        let frame = frame.with_context(|| format!("no answer to the fences {open:x?}"))?;
        if let Some(number) = frames::answered(&frame.bytes)
            && !open.remove(&number)
        {
            answered.insert(number);
        }
    }
    Ok(answered)
}

/// Half-open connections of strangers may hold the TCP services for a moment.
fn check_everything(lab: &Lab) -> Result<()> {
    let to_ipv6 = from_peer(lab)?.to_ipv6;
    lab.ping(lab.address(), 1, 56)?;
    lab.ping(to_ipv6.into(), 1, 56)?;
    lab.eventually("after the frames", || lab.check_services())?;
    lab.ping(to_ipv6.into(), 3, 56)?;
    lab.eventually("the report after the frames", || lab.status())?;
    Ok(())
}
