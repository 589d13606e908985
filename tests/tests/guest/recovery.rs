//! How long there is no service when the device breaks, by the guest's own clock: QEMU has it
//! count instructions, so that it does not matter how fast the host is.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use kickpath::wire::{ECHO_PORT, FarEnd};
use kickpath_abi::status::Outages;
use kickpath_tests::{Lab, Spec, Suite, memory};
use serde_json::json;

pub fn add(suite: &mut Suite) {
    let exact = || {
        let spec = Spec::pc().edit(|machine| machine.icount = Some(0));
        // With one the guest counts instructions while it waits for QEMU's main loop.
        spec.nic(|nic| nic.ioeventfd = Some(false))
    };
    suite.launch("recovery::of_a_ring_that_lies", exact(), |lab| {
        recover(lab, |lab| lie(lab, false))
    });
    if suite.way().is_version_1() {
        let spec = exact().property("packed", "on");
        suite.launch("recovery::of_a_packed_ring_that_lies", spec, |lab| {
            recover(lab, |lab| lie(lab, true))
        });
        suite.launch("recovery::of_a_device_that_asks_for_it", exact(), |lab| {
            recover(lab, ask_for_a_reset)
        });
    }
}

/// The receive queue is said to be used beyond what is in it, and the guest looks.
fn lie(lab: &Lab, is_packed: bool) -> Result<()> {
    memory::lie_of_use(&lab.guest, 0, is_packed)?;
    for up in [false, true] {
        let arguments = json!({ "name": "net0", "up": up });
        lab.guest.qmp("set_link", arguments)?;
    }
    lab.guest
        .wait_for_console("queue 0 is broken", lab.soon())?;
    Ok(())
}

/// QEMU finds a buffer of no bytes, for which it takes the driver to be at fault.
fn ask_for_a_reset(lab: &Lab) -> Result<()> {
    memory::offer_nothing(&lab.guest, 0)?;
    // It is not answered: it finds no buffer.
    let asked = lab
        .peer
        .ping(lab.address(), 1, 56, Duration::from_millis(100))?;
    ensure!(asked.received == 0, "{asked:?}");
    lab.guest
        .wait_for_console("the device asks to be reset", lab.soon())?;
    Ok(())
}

/// An open connection goes on behind what is done to the device, and the guest says what it
/// has cost.
fn recover(lab: &mut Lab, harm: fn(&Lab) -> Result<()>) -> Result<()> {
    lab.wait_until_up()?;
    let echo = SocketAddr::new(lab.address(), ECHO_PORT);
    let connection = lab.peer.tcp_connect(echo, lab.soon())?;
    let exchange = |byte| -> Result<()> {
        let sent = [byte; 1000];
        lab.peer.tcp_send(&connection, &sent, lab.soon())?;
        let (mut echoed, mut length) = ([0; 1000], 0);
        while length < echoed.len() {
            let room = &mut echoed[length..];
            let read = lab.peer.tcp_recv(&connection, room, lab.soon())?;
            ensure!(read > 0, "the connection has ended");
            length += read;
        }
        ensure!(echoed == sent, "other bytes came back");
        Ok(())
    };
    exchange(1)?;
    lab.wait_until_quiet(Duration::from_millis(300))?;
    ensure!(lab.status()?.outages == Outages::default());
    lab.wait_until_quiet(Duration::from_millis(300))?;
    harm(lab)?;
    let opened = "the device was reset and opened again";
    lab.guest.wait_for_console(opened, lab.soon())?;
    exchange(2)?;
    lab.check_services()?;
    let outages = lab.status()?.outages;
    ensure!(outages.recovered == 1, "{outages:?}");
    ensure!(outages.total_us == outages.last_us, "{outages:?}");
    ensure!(
        (1..=Outages::RESET_US).contains(&outages.last_us),
        "{outages:?}"
    );
    ensure!(outages.frames_lost == 0, "{outages:?}");
    let metrics = lab.get("/metrics")?;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let seconds = format!("kickpath_outage_seconds_total 0.{:06}", outages.total_us);
    for line in ["kickpath_recoveries_total 1", &seconds] {
        ensure!(metrics.lines().any(|found| found == line), "{metrics}");
    }
    Ok(())
}
