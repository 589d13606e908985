//! The device stopped and opened again under traffic, and what it counted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use kickpath::qemu::GUEST_MAC;
use kickpath::wire::FarEnd;
use kickpath::wire::peer::PEER_MAC;
use kickpath_abi::config::{RxMode, VlanId};
use kickpath_abi::steps::Steps;
use kickpath_tests::{Lab, Spec, Suite, setup};
use serde_json::json;

use crate::control::{MDNS, STRANGER, mac_text, received_of, rx_filter};
use crate::site::{BOUND, Site};

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
    // What the device was told by the control queue it is told again.
    let told = Spec::pc().config(|config| {
        config.mac = Some(MAC);
        config.unicast = vec![UNICAST];
        config.groups = 3;
        config.rx_mode = Steps::parse::<RxMode>("allmulti").unwrap_or_default();
        config.vlans = Steps::parse::<VlanId>("5,6").unwrap_or_default();
    });
    let told = told
        .config(|config| config.reopen = 50)
        .bound(Duration::from_secs(120));
    suite.guest("reopen::the_device_is_told_again", told, told_again);
    // With the filter off the guest counts what the host does.
    let all = Spec::pc().config(|config| config.features_off = "ctrl_rx".into());
    suite.launch("reopen::counters_are_the_far_ends", all, counters);
    if suite.way().is_version_1() {
        let packed = Spec::pc().property("packed", "on");
        let all = packed.config(|config| config.features_off = "ctrl_rx".into());
        suite.launch("reopen::counters_are_the_far_ends_packed", all, counters);
    }
    suite.needs(setup::lacks_tap(), |suite| {
        let spec = Spec::pc().config(|config| config.reopen = 10);
        let name = "reopen::with_large_frames_under_way";
        Site::test(suite, name, spec, large_frames);
    });
}

/// An address for the guest that is not QEMU's.
const MAC: [u8; 6] = [0x02, 0x4b, 0x50, 0x00, 0x00, 0x79];
/// One more.
const UNICAST: [u8; 6] = [0x02, 0x4b, 0x50, 0x00, 0x00, 0x7a];

fn told_again(lab: &mut Lab) -> Result<()> {
    reopen_to(lab, MAC, 50)?;
    let filter = rx_filter(lab)?;
    ensure!(filter["main-mac"] == json!(mac_text(MAC)), "{filter}");
    ensure!(
        filter["unicast-table"] == json!([mac_text(UNICAST)]),
        "{filter}"
    );
    ensure!(filter["multicast"] == json!("all"), "{filter}");
    ensure!(filter["promiscuous"] == json!(false), "{filter}");
    let groups = filter["multicast-table"].as_array().context("a table")?;
    // Three more than the network stack's.
    ensure!(groups.len() == 6, "{filter}");
    let mut vlans: Vec<u16> = serde_json::from_value(filter["vlan-table"].clone())?;
    vlans.sort_unstable();
    ensure!(vlans == [0, 5, 6], "{filter}");
    for (address, passed) in [
        (MAC, true),
        (UNICAST, true),
        (MDNS, true),
        (STRANGER, false),
    ] {
        let received = received_of(lab, address, &[], 100)?;
        ensure!((received >= 100) == passed, "{received} for {address:02x?}");
    }
    Ok(())
}

/// TCP in large pieces into the guest, each over several buffers, while it is
/// done; not a byte is lost to the connection.
fn large_frames(site: &Site) -> Result<()> {
    let negotiated = site.status()?.device.features_negotiated;
    for name in ["MRG_RXBUF", "GUEST_TSO4"] {
        ensure!(
            negotiated.iter().any(|it| it == name),
            "{name}: {negotiated:?}"
        );
    }
    // Each time costs TCP a timeout.
    let done = "kickpath: reopened 10 times";
    let start = Instant::now();
    loop {
        site.sockets.tcp_echo(site.address(), 1 << 20, BOUND)?;
        let lines = site.guest.console_since(0);
        if let Some(line) = lines.iter().find(|line| line.text.contains(done)) {
            let [pages, bytes] = in_use(&line.text)?;
            // A connection has its buffers on the heap while it is open, and for a
            // while after.
            let grown = bytes[1].saturating_sub(bytes[0]);
            ensure!(
                pages[0] == pages[1] && grown < CONNECTIONS,
                "leaked: {}",
                line.text
            );
            break;
        }
        ensure!(start.elapsed() < 2 * BOUND, "it has not come to an end");
    }
    site.sockets.tcp_echo(site.address(), 4 << 20, BOUND)?;
    let counters = site.status()?.counters;
    ensure!(counters.rx_merged > 0, "{counters:?}");
    ensure!(counters.rx_errors + counters.tx_errors == 0, "{counters:?}");
    Ok(())
}

/// Pages for DMA and bytes of heap, each before and after.
fn in_use(line: &str) -> Result<[[u64; 2]; 2]> {
    let (_, figures) = line.split_once("before: ").context("figures")?;
    let (before, after) = figures.split_once("; after: ").context("figures")?;
    let read = |text: &str| -> Result<[u64; 2]> {
        let (pages, rest) = text.split_once(" DMA pages, ").context("pages")?;
        let (bytes, _) = rest.split_once(" bytes").context("bytes")?;
        Ok([pages.parse()?, bytes.parse()?])
    };
    let ([pages, bytes], [pages_after, bytes_after]) = (read(before)?, read(after)?);
    ensure!(pages > 0, "{line}");
    Ok([[pages, pages_after], [bytes, bytes_after]])
}

/// Room for some connections, in bytes of heap.
const CONNECTIONS: u64 = 1 << 20;
/// Room for the packets that may wait until their sender is heard, in bytes of
/// heap: as many as a stack keeps (`MAX_FRAMES` of `kernel/services`), of the length
/// sent here.
const KEPT: u64 = 64 * 512;

/// Not a page more than before, and less than a byte each time beside the packets
/// that wait: the question for their sender may be lost when the device is opened
/// again. In the meantime a router may have given the guest an address, which takes
/// a multicast group in a table.
///
/// What leaks only 100 times hides behind those packets; a thousand times it does
/// not.
fn check_leaks(line: &str, times: u32) -> Result<()> {
    let [pages, bytes] = in_use(line)?;
    let grown = bytes[1].saturating_sub(bytes[0]);
    ensure!(
        pages[0] == pages[1] && grown < KEPT + u64::from(times),
        "leaked: {line}"
    );
    Ok(())
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
    reopen_to(lab, GUEST_MAC, times)
}

/// The same for a guest of this hardware address.
fn reopen_to(lab: &mut Lab, mac: [u8; 6], times: u32) -> Result<()> {
    let mut request = Vec::new();
    PacketBuilder::ethernet2(PEER_MAC, mac)
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
    check_leaks(&line.text, times)?;
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
    lab.peer.tcp_echo(lab.address(), 1 << 20, lab.soon())?;
    // Nothing is on its way any more.
    lab.wait_until_quiet(Duration::from_millis(700))?;
    lab.guest
        .qmp("set_link", json!({ "name": "net0", "up": false }))?;
    let line = lab
        .guest
        .wait_for_console("the link is down", lab.soon())?
        .text;
    // Nor is what the guest sent before it knew.
    let last = lab.wait_until_quiet(Duration::from_millis(300))?;
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
