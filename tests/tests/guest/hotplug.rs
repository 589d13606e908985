//! A network device that is taken out and plugged in again, and one that
//! disappears.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kickpath::qemu::Kind;
use kickpath_tests::{Lab, Spec, Suite};
use serde_json::{Value, json};

use crate::devices::behind;

const BOUND: Duration = Duration::from_secs(120);
/// QEMU's own way for these slots, instead of ACPI's.
const NATIVE: [&str; 2] = [
    "-global",
    "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
];

pub fn add(suite: &mut Suite) {
    for (name, properties) in [("", ",id=nic0"), ("_packed", ",id=nic0,packed=on")] {
        let spec = Spec::new(Kind::Q35)
            .bound(BOUND)
            .extra(&NATIVE)
            .edit(move |machine| {
                let port = "pcie-root-port,id=bridge,chassis=1,slot=1";
                behind(machine, port, 0, properties);
            });
        suite.guest(
            &format!("hotplug::taken_out_and_plugged_in{name}"),
            spec,
            move |lab| {
                for _ in 0..3 {
                    unplug_and_plug(lab, !name.is_empty())?;
                }
                Ok(())
            },
        );
    }
    let spec = Spec::new(Kind::Q35).edit(|machine| {
        let port = "pcie-root-port,id=bridge,chassis=1,slot=1";
        behind(machine, port, 0, ",id=nic0");
    });
    suite.guest("hotplug::asked_for_by_acpi", spec, stays);
    let spec = Spec::pc().bound(BOUND).property("addr", "9");
    suite.guest("hotplug::a_device_that_disappears", spec, disappear);
}

/// The number of the next line of the console.
fn next_line(lab: &Lab) -> u64 {
    let lines = lab.guest.console_since(0);
    lines.last().map_or(0, |line| line.number + 1)
}

fn unplug_and_plug(lab: &mut Lab, packed: bool) -> Result<()> {
    let before = lab.status()?;
    let from = next_line(lab);
    lab.guest.qmp("device_del", json!({ "id": "nic0" }))?;
    let bound = lab.soon();
    lab.guest
        .wait_for_line(from, "the device is asked for", bound)?;
    // It is gone when QEMU knows of no such device any more.
    lab.eventually("the device is taken out", || {
        let peripherals = lab
            .guest
            .qmp("qom-list", json!({ "path": "/machine/peripheral" }))?;
        let list = peripherals.as_array().context("a list")?;
        let is_there = list.iter().any(|item| item["name"] == "nic0");
        ensure!(!is_there, "{peripherals}");
        Ok(())
    })?;
    let from = next_line(lab);
    let mut device = json!({
        "driver": "virtio-net-pci", "id": "nic0", "netdev": "net0", "bus": "bridge",
        "romfile": "", "mac": "52:54:00:4b:50:01", "disable-legacy": "off",
    });
    if packed && let Value::Object(device) = &mut device {
        device.insert("packed".into(), true.into());
    }
    lab.guest.qmp("device_add", device)?;
    lab.guest
        .wait_for_line(from, "the device was reset and opened again", bound)?;
    lab.eventually("service", || lab.check_services())?;
    let after = lab.status()?;
    ensure!(after.network == before.network, "{:?}", after.network);
    ensure!(after.device == before.device, "{:?}", after.device);
    lab.echo_flood(1000, 64)
}

/// QEMU asks by ACPI, if it is not told otherwise: that is not heard, as the guest has
/// said, and the device stays and serves.
fn stays(lab: &mut Lab) -> Result<()> {
    let said = "is plugged by ACPI, and stays";
    lab.guest.wait_for_console(said, lab.soon())?;
    let before = lab.status()?;
    for _ in 0..2 {
        lab.guest.qmp("device_del", json!({ "id": "nic0" })).ok();
        lab.echo_flood(1000, 64)?;
        lab.check_services()?;
    }
    let peripherals = lab
        .guest
        .qmp("qom-list", json!({ "path": "/machine/peripheral" }))?;
    ensure!(peripherals.to_string().contains("nic0"), "{peripherals}");
    let after = lab.status()?;
    ensure!(after.network == before.network, "{:?}", after.network);
    ensure!(after.device == before.device, "{:?}", after.device);
    lab.check_health()
}

/// The device stops to decode its addresses, as one does that is torn out: all its
/// registers read as ones. Then it is back.
fn disappear(lab: &mut Lab) -> Result<()> {
    if !lab.status()?.device.location.starts_with("PCI") {
        return Ok(());
    }
    let command = |value: u8| {
        // Bus 0, device 9, function 0: the command register.
        for line in [
            "o/w 0xcf8 0x80004804".to_owned(),
            format!("o/h 0xcfc {value}"),
        ] {
            let arguments = json!({ "command-line": line });
            let said = lab.guest.qmp("human-monitor-command", arguments)?;
            ensure!(said.as_str().is_none_or(str::is_empty), "{said}");
        }
        anyhow::Ok(())
    };
    let from = next_line(lab);
    command(0)?;
    let gone = "the device is gone: its registers read as all ones";
    let gone = lab
        .guest
        .wait_for_line(from, gone, Duration::from_secs(60))?;
    // It waits in silence.
    std::thread::sleep(Duration::from_secs(3));
    let said = lab.guest.console_since(gone.number + 1);
    ensure!(
        said.iter()
            .filter(|line| line.text.contains("gone"))
            .count()
            <= 1,
        "{said:?}"
    );
    command(7)?;
    lab.guest.wait_for_line(
        gone.number,
        "the device was reset and opened again",
        lab.soon(),
    )?;
    lab.eventually("service", || lab.check_services())?;
    lab.check_services()
}
