//! A device that does not hear, one that does not call, and one that takes frames
//! and gives none back: the watchdog finds out which, and there is service again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use etherparse::PacketBuilder;
use kickpath::guest::{Cause, Guest};
use kickpath::qemu::GUEST_MAC;
use kickpath::wire::peer::PEER_MAC;
use kickpath_tests::frames::{self, Route};
use kickpath_tests::memory::{self, queue_status};
use kickpath_tests::{Lab, RawWire, Skip, Spec, Suite, UP, Way};

/// The watchdog takes 10 s for what it is sure of.
const BOUND: Duration = Duration::from_secs(60);

pub fn add(suite: &mut Suite) {
    // With an ioeventfd QEMU kicks itself when the machine goes on after a stop.
    let spec = Spec::pc().nic(|nic| nic.ioeventfd = Some(false));
    suite.guest("watchdog::a_lost_kick_is_repeated", spec, lost_kick);
    if matches!(suite.way(), Way::Legacy | Way::Modern) {
        let spec = Spec::pc().bound(Duration::from_secs(120));
        suite.guest("watchdog::lost_interrupts_are_found", spec, lost_interrupt);
        let way = suite.way();
        let mut add = |name: &str, body: fn(&RawWire, &Guest, &Route) -> Result<()>| {
            suite.test(&format!("watchdog::{name}"), move || raw(way, body));
        };
        add("a_stuck_device_is_opened_again", stuck);
        add("a_back_end_that_pauses_is_waited_for", pause);
    }
}

/// With a cable whose far end reads when the test does.
fn raw(way: Way, body: fn(&RawWire, &Guest, &Route) -> Result<()>) -> Result<()> {
    let wire = RawWire::new()?;
    let (guest, plan) = Spec::pc().over(way).launch_on(wire.net())?;
    let route = Route {
        from: [0x02, 0x4b, 0x50, 0, 0, 3],
        from_ipv4: plan.host,
        from_ipv6: "fe80::3".parse()?,
        to: GUEST_MAC,
        to_ipv4: plan.guest.address,
        to_ipv6: "fe80::5054:ff:fe4b:5001".parse()?,
    };
    body(&wire, &guest, &route).map_err(|error| match error.is::<Skip>() {
        true => error,
        false => anyhow!("{}", guest.failure(Cause::Other(format!("{error:#}")))),
    })
}

fn request(lab: &Lab, number: u16) -> Result<Vec<u8>> {
    let route = Route {
        from: PEER_MAC,
        from_ipv4: lab.peer.plan().host,
        from_ipv6: "fe80::4b:50ff:fe00:2".parse()?,
        to: GUEST_MAC,
        to_ipv4: lab.ipv4(),
        to_ipv6: "fe80::5054:ff:fe4b:5001".parse()?,
    };
    Ok(route.udp4(number, b"is this heard?"))
}

/// Waits until this request is answered.
fn wait_for_answer(lab: &Lab, number: u16) -> Result<()> {
    loop {
        let frame = lab.peer.recv_frame(lab.soon());
        let frame = frame.with_context(|| format!("no answer to {number}"))?;
        if frames::answered(&frame.bytes) == Some(number) {
            return Ok(());
        }
    }
}

/// The device says that it needs no kick for the next 16384 frames, and sleeps.
fn lost_kick(lab: &mut Lab) -> Result<()> {
    lab.ping(lab.address(), 1, 56)?;
    lab.wait_until_quiet(Duration::from_secs(1))?;
    memory::hide_kicks(&lab.guest, 1, false)?;
    lab.peer.capture(256);
    lab.peer.send_frame(&request(lab, 77)?);
    lab.guest
        .wait_for_console("do not move; notified again", lab.soon())?;
    wait_for_answer(lab, 77)?;
    lab.eventually("the kick is counted", || {
        let counters = lab.status()?.counters;
        ensure!(counters.kicks_lost == 1, "{counters:?}");
        ensure!(counters.stuck == 0, "{counters:?}");
        Ok(())
    })?;
    let metrics = lab.get("/metrics")?;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    ensure!(metrics.contains("kicks_lost_total 1"), "{metrics}");
    lab.check_services()?;
    lab.check_health()
}

/// What the driver has said about interrupts is overwritten while it sleeps: the
/// next frame comes without one.
fn lost_interrupt(lab: &mut Lab) -> Result<()> {
    // For the discard service: an answer would have the peer say more.
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(PEER_MAC, GUEST_MAC)
        .ipv4([10, 0, 2, 2], lab.ipv4().octets(), 64)
        .udp(4321, 9)
        .write(&mut frame, b"is this heard?")?;
    for _ in 0..20 {
        lab.wait_until_quiet(Duration::from_millis(2500))?;
        if lab.status()?.counters.interrupts_lost > 0 {
            lab.check_services()?;
            return lab.check_health();
        }
        lab.wait_until_quiet(Duration::from_millis(300))?;
        let queue = queue_status(&lab.guest, 0)?;
        let used_event = queue.vring_avail + 4 + 2 * u64::from(queue.vring_num);
        let far = queue.used_idx.wrapping_add(0x4000);
        memory::write(&lab.guest, used_event, &far.to_le_bytes())?;
        lab.peer.send_frame(&frame);
    }
    Err(anyhow!("no interrupt was missed"))
}

/// Sends until nothing that the guest sends finds a place; returns the line of the console by
/// which it says so, 4 s later.
fn fill(wire: &RawWire, guest: &Guest, route: &Route) -> Result<u64> {
    guest.wait_for_console(UP, BOUND)?;
    echo(wire, route, 100)?;
    for number in 1000..20_000 {
        // A QEMU that waits for a CPU does not read either: so many fit for certain.
        let patience = match number >= 1100 {
            true => Duration::from_millis(500),
            false => BOUND,
        };
        if !wire.send(&route.udp4(number, &[number as u8; 1000]), patience)? {
            break;
        }
    }
    let notified = guest.wait_for_console("do not move; notified again", BOUND)?;
    Ok(notified.number)
}

/// Nobody reads what the guest sends for 8 s, which is no reason to give the device up.
fn pause(wire: &RawWire, guest: &Guest, route: &Route) -> Result<()> {
    fill(wire, guest, route)?;
    let told = Instant::now();
    std::thread::sleep(Duration::from_secs(4));
    let took = told.elapsed();
    echo(wire, route, 101)?;
    let lines = guest.console_since(0);
    let given_up = lines.iter().find(|line| line.text.contains("is broken"));
    match given_up {
        Some(_) if took > Duration::from_secs(5) => {
            Err(Skip(format!("4 s took {took:?} on this machine")).into())
        }
        Some(line) => Err(anyhow!("{}", line.text)),
        None => echo(wire, route, 102),
    }
}

/// Nobody reads what the guest sends, for longer than a back end may take.
fn stuck(wire: &RawWire, guest: &Guest, route: &Route) -> Result<()> {
    let notified = fill(wire, guest, route)?;
    let gave_up = "queue 1 is broken: the device has";
    let gave_up = guest.wait_for_line(notified, gave_up, BOUND)?;
    ensure!(
        gave_up.text.contains("gave none back for 10 s"),
        "{}",
        gave_up.text
    );
    let opened = "the device was reset and opened again";
    let opened = guest.wait_for_line(gave_up.number, opened, BOUND)?;
    let (outage, lost) = cost(&opened.text).with_context(|| opened.text.clone())?;
    // The looks at which nothing moved, and then no more than it takes to open a device.
    ensure!(outage >= Duration::from_secs(10), "{}", opened.text);
    // All that the cable had no room for, and no more than the queue has descriptors.
    ensure!((1..=1024).contains(&lost), "{}", opened.text);
    echo(wire, route, 101)
}

/// How long there was no service, and how many frames it cost.
fn cost(line: &str) -> Option<(Duration, u64)> {
    let (_, cost) = line.split_once(" after ")?;
    let (outage, lost) = cost.split_once(" us; ")?;
    let (lost, _) = lost.split_once(' ')?;
    Some((
        Duration::from_micros(outage.parse().ok()?),
        lost.parse().ok()?,
    ))
}

/// One echo, behind what is on the cable still; answers the guest's question for
/// our hardware address.
fn echo(wire: &RawWire, route: &Route, number: u16) -> Result<()> {
    // Room for the request there is only when what fills the cable is read.
    let request = route.udp4(number, b"first");
    while !wire.send(&request, Duration::from_millis(1))? {
        wire.receive(BOUND)?
            .context("QEMU neither reads nor writes")?;
    }
    wire.receive_until("an echo", BOUND, |frame| {
        if let Some(reply) = frames::arp_reply(frame, route.from_ipv4, route.from) {
            // A reply that QEMU does not take shows as a missing echo.
            let _ = wire.send(&reply, BOUND);
        }
        (frames::answered(frame) == Some(number)).then_some(())
    })
}
