//! The device stopped and opened again under traffic, and what it counted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use kickpath::qemu::GUEST_MAC;
use kickpath::wire::peer::PEER_MAC;
use kickpath_tests::{Lab, Spec, Suite};
use serde_json::json;

pub fn add(suite: &mut Suite) {
    let thousand = Spec::pc()
        .config(|config| config.reopen = 1000)
        .bound(Duration::from_secs(120));
    suite.guest("reopen::a_thousand_times", thousand, |lab| {
        reopen(lab, 1000)
    });
    for &irq in suite.way().rungs() {
        let spec = Spec::pc().config(move |config| config.irq = irq);
        a_hundred_times(suite, &irq.word().replace('-', "_"), spec);
    }
    let few = Spec::pc().config(|c| c.features_off = "mrg_rxbuf,event_idx".into());
    a_hundred_times(suite, "without_mrg_rxbuf", few);
    if suite.way().is_version_1() {
        let packed = Spec::pc().property("packed", "on");
        a_hundred_times(suite, "packed", packed);
    }
    // With the filter off the guest counts what the host does.
    let all = Spec::pc().config(|config| config.features_off = "ctrl_rx".into());
    suite.launch("reopen::counters_are_the_far_ends", all, counters);
}

fn a_hundred_times(suite: &mut Suite, name: &str, spec: Spec) {
    let spec = spec
        .config(|config| config.reopen = 100)
        .bound(Duration::from_secs(120));
    suite.guest(&format!("reopen::a_hundred_times_{name}"), spec, |lab| {
        reopen(lab, 100)
    });
}

/// Sends echo requests all the time, until the guest has done it.
pub fn reopen(lab: &mut Lab, times: u32) -> Result<()> {
    let mut request = Vec::new();
    PacketBuilder::ethernet2(PEER_MAC, GUEST_MAC)
        .ipv4([10, 0, 2, 2], lab.ipv4().octets(), 64)
        .udp(4321, 7)
        .write(&mut request, &[0x5a; 400])?;
    let done = format!("kickpath: reopened {times} times");
    let line = loop {
        for _ in 0..32 {
            lab.peer.send_frame(&request);
        }
        let found = lab
            .guest
            .console_since(0)
            .into_iter()
            .find(|line| line.text.contains(&done));
        if let Some(line) = found {
            break line;
        }
        lab.guest.check()?;
        ensure!(!lab.left().is_zero(), "it has not come to an end");
    };
    // Not a page and not a byte more than before.
    let (_, figures) = line.text.split_once("before: ").context("figures")?;
    let (before, after) = figures.split_once("; after: ").context("figures")?;
    ensure!(before == after, "leaked: {}", line.text);
    ensure!(!before.starts_with("0 "), "{}", line.text);
    let faults = ["error:", "warning:"];
    for line in lab.guest.console_since(0) {
        ensure!(
            !faults.iter().any(|word| line.text.contains(word)),
            "{}",
            line.text
        );
    }
    // As good as new.
    let interrupts = lab.status()?.interrupts;
    ensure!(interrupts.attempts.len() <= 4, "{interrupts:?}");
    lab.check_services()?;
    lab.echo_flood(3000, 64)?;
    for address in lab.ipv6()? {
        lab.ping(address, 1, 56)?;
    }
    lab.check_health()
}

/// Frames and bytes, both ways, from the first one on.
fn counters(lab: &mut Lab) -> Result<()> {
    lab.wait_until_up()?;
    lab.check_services()?;
    lab.echo_flood(3000, 64)?;
    lab.echo_flood(300, 1400)?;
    kickpath::wire::FarEnd::tcp_echo(&lab.peer, lab.address(), 1 << 20, lab.soon())?;
    // Nothing is on its way any more.
    let quiet = Duration::from_millis(700);
    let (mut last, mut since) = (lab.peer.counters(), Instant::now());
    while since.elapsed() < quiet {
        ensure!(!lab.left().is_zero(), "the cable is never quiet");
        std::thread::sleep(Duration::from_millis(20));
        let now = lab.peer.counters();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    lab.guest
        .qmp("set_link", json!({ "name": "net0", "up": false }))?;
    let line = lab
        .guest
        .wait_for_console("the link is down", lab.soon())?
        .text;
    let expected = format!(
        "received {} frames, {} bytes; sent {} frames, {} bytes",
        last.to_guest, last.to_guest_bytes, last.from_guest, last.from_guest_bytes
    );
    ensure!(
        last.from_guest_dropped == 0 && last.to_guest_dropped == 0,
        "the cable lost frames: {last:?}"
    );
    ensure!(line.contains(&expected), "'{line}', not '{expected}'");
    Ok(())
}
