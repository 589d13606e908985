//! Which network device is found, and what is said when none can be used.

use std::time::Duration;

use anyhow::{Result, ensure};
use kickpath::qemu::{Kind, Machine, Net, Nic, NicTransport};
use kickpath_abi::config::Transport;
use kickpath_tests::{Lab, Skip, Spec, Suite, setup};
use serde_json::json;

use crate::faults::{expect_failure, expect_on_console};

/// Places that a device can have on a PCI bus.
pub fn add_places(suite: &mut Suite) {
    for kind in [Kind::Pc, Kind::Q35] {
        // Both on the cable would be two hosts of one address; the second one
        // has a cable of its own, that leads nowhere.
        let two = Spec::new(kind).extra(&[
            "-netdev",
            "hubport,id=second,hubid=1",
            "-device",
            "virtio-net-pci,netdev=second,romfile=,mac=52:54:00:4b:50:99",
        ]);
        suite.guest(&format!("devices::{kind}_with_two"), two, |lab| {
            expect_on_console(lab, &["2 network devices"])?;
            ensure!(
                lab.status()?.device.mac == "52:54:00:4b:50:01",
                "the second one was taken"
            );
            lab.check_services()
        });
        let function = Spec::new(kind)
            .extra(&["-device", "virtio-rng-pci,addr=8.0,multifunction=on"])
            .property("addr", "8.3");
        suite.guest(
            &format!("devices::{kind}_in_a_later_function"),
            function,
            |lab| check_location(lab, "00:08.3"),
        );
    }
    let bridge =
        Spec::pc().edit(|machine| behind(machine, "pci-bridge,id=bridge,chassis_nr=1", 5, ""));
    suite.guest("devices::pc_behind_a_bridge", bridge, |lab| {
        check_location(lab, "01:05.0")
    });
    let bridge =
        Spec::new(Kind::Q35).edit(|machine| behind(machine, "pcie-pci-bridge,id=bridge", 5, ""));
    suite.guest("devices::q35_behind_a_bridge", bridge, |lab| {
        check_location(lab, "01:05.0")
    });
}

pub fn add(suite: &mut Suite) {
    for kind in [Kind::Pc, Kind::Q35] {
        let none = Spec::new(kind).edit(|machine| machine.nic = None);
        suite.launch(&format!("devices::{kind}_without_one"), none, |lab| {
            expect_failure(lab, &["no virtio network device"])
        });
        let modern = Spec::new(kind).nic(|nic| nic.transport = NicTransport::Modern);
        suite.guest(
            &format!("devices::{kind}_with_a_modern_one_only"),
            modern,
            |lab| {
                let device = lab.status()?.device;
                ensure!(device.id == "1af4:1041", "{device:?}");
                ensure!(device.transport == "modern", "{device:?}");
                ensure!(device.transport_alternatives.is_empty(), "{device:?}");
                lab.check_services()
            },
        );
        let legacy = Spec::new(kind).nic(|nic| nic.transport = NicTransport::Legacy);
        suite.guest(
            &format!("devices::{kind}_with_a_legacy_one_only"),
            legacy,
            |lab| {
                let device = lab.status()?.device;
                ensure!(device.transport_alternatives.is_empty(), "{device:?}");
                lab.check_services()
            },
        );
        // The first one in the order of the bus does not offer what is wanted.
        let second = Spec::new(kind)
            .config(|config| config.transport = Transport::Legacy)
            .property("addr", "9")
            .extra(&[
                "-netdev",
                "hubport,id=first,hubid=1",
                "-device",
                "virtio-net-pci,netdev=first,romfile=,addr=8,disable-legacy=on",
            ]);
        suite.guest(
            &format!("devices::{kind}_whose_first_is_modern_only"),
            second,
            |lab| {
                expect_on_console(lab, &["2 network devices"])?;
                check_location(lab, "00:09.0")
            },
        );
    }
    // The first one has frames that do not fit this little memory.
    let too_large = Spec::pc()
        .edit(|machine| machine.memory = "16M".parse().expect("an amount"))
        .config(|config| config.features_off = "mrg_rxbuf".into())
        .property("addr", "9")
        .extra(&[
            "-netdev",
            "hubport,id=first,hubid=1",
            "-device",
            "virtio-net-pci,netdev=first,romfile=,addr=8,host_mtu=65000",
        ]);
    suite.guest(
        "devices::pc_whose_first_cannot_be_opened",
        too_large,
        |lab| {
            expect_on_console(lab, &["2 network devices", "00:08.0", "no memory for"])?;
            let location = lab.status()?.device.location;
            ensure!(location.contains("00:09.0"), "{location}");
            lab.check_services()
        },
    );
    unassigned(suite);

    let mmio = Spec::pc().config(|config| config.transport = Transport::Mmio);
    suite.launch("devices::pc_has_no_virtio_mmio", mmio, |lab| {
        expect_failure(lab, &["no virtio network device offers transport=mmio"])
    });
    let modern = Spec::pc()
        .config(|config| config.transport = Transport::Modern)
        .nic(|nic| nic.transport = NicTransport::Legacy);
    suite.launch("devices::modern_is_not_offered", modern, |lab| {
        expect_failure(lab, &["no virtio network device offers transport=modern"])
    });
    let legacy = Spec::pc()
        .config(|config| config.transport = Transport::Legacy)
        .nic(|nic| nic.transport = NicTransport::Modern);
    suite.launch("devices::legacy_is_not_offered", legacy, |lab| {
        expect_failure(lab, &["no virtio network device offers transport=legacy"])
    });
}

/// Devices whose BARs firmware left unassigned.
fn unassigned(suite: &mut Suite) {
    for kind in [Kind::Pc, Kind::Q35] {
        // This firmware leaves them to the operating system.
        let spec = Spec::new(kind)
            .property("addr", "8")
            .extra(&["-bios", "qboot.rom"]);
        suite.launch(
            &format!("devices::{kind}_with_a_firmware_that_assigns_no_bar"),
            spec,
            |lab| {
                let texts = [
                    "00:08.0 1af4:1000 class 0200: BAR 0 was left unassigned by the firmware",
                    "BAR 4 was left unassigned",
                    "ignored: it has no usable BAR",
                    "no virtio network device",
                ];
                expect_failure(lab, &texts)
            },
        );
    }
    // The first one comes after the firmware has looked for devices: it waits
    // for a key, longer than this test takes.
    let spec = Spec::pc().property("addr", "9").extra(&[
        "-boot",
        "menu=on,splash-time=60000",
        "-netdev",
        "hubport,id=first,hubid=1",
    ]);
    suite.launch("devices::pc_whose_first_has_no_bars", spec, |lab| {
        lab.eventually("BARs of the second device", || {
            let buses = lab.guest.qmp("query-pci", json!({}))?;
            let device = buses[0]["devices"]
                .as_array()
                .and_then(|devices| devices.iter().find(|device| device["slot"] == 9));
            let bar = device.and_then(|device| device["regions"][0]["address"].as_i64());
            ensure!(bar.is_some_and(|address| address > 0), "{device:?}");
            Ok(())
        })?;
        let device = json!({
            "driver": "virtio-net-pci", "netdev": "first", "addr": "8", "romfile": "",
        });
        lab.guest.qmp("device_add", device)?;
        lab.eventually("the kernel", || {
            let key = json!({ "keys": [{ "type": "qcode", "data": "spc" }] });
            lab.guest.qmp("send-key", key)?;
            let bound = Duration::from_millis(100);
            lab.guest.wait_for_console("Kickpath", bound)?;
            Ok(())
        })?;
        lab.wait_until_up()?;
        expect_on_console(lab, &["00:08.0 1af4:1000 class 0200 ignored: it has no"])?;
        check_location(lab, "00:09.0")
    });
    physical_function(suite);
    // The port BAR's place in the bridge's window is a window that is closed.
    let closed = Spec::new(Kind::Q35).edit(|machine| {
        behind(machine, "pcie-root-port,id=bridge,io-reserve=0", 0, "");
    });
    suite.guest(
        "devices::q35_behind_a_port_without_io_takes_the_modern_interface",
        closed,
        |lab| {
            expect_on_console(lab, &["legacy PCI: the device is gone"])?;
            let device = lab.status()?.device;
            ensure!(device.transport == "modern", "{device:?}");
            lab.check_services()
        },
    );
}

/// A device with virtual ones beside it: it offers `SR_IOV`, which the driver refuses,
/// and the virtual ones, which nobody has turned on, are not seen.
fn physical_function(suite: &mut Suite) {
    let spec = Spec::new(Kind::Q35).edit(|machine| {
        machine.config.transport = Transport::Modern;
        behind(machine, "pcie-root-port,id=bridge", 0, ",id=physical");
        let virtual_one = [
            "-netdev",
            "hubport,id=virtual,hubid=1",
            "-device",
            "virtio-net-pci,netdev=virtual,bus=bridge,addr=0x0.0x1,sriov-pf=physical",
        ];
        // QEMU wants them first.
        let device = machine.extra.len() - 2;
        let virtual_one = virtual_one.map(Into::into);
        machine.extra.splice(device..device, virtual_one);
    });
    suite.test("devices::q35_physical_function", move || {
        if !setup::qemu_has_property("virtio-net-pci", "sriov-pf")? {
            return Err(Skip("this QEMU's virtio-net has no virtual functions".into()).into());
        }
        let mut lab = Lab::launch(spec)?;
        let check = |lab: &mut Lab| {
            lab.wait_until_up()?;
            let device = lab.status()?.device;
            let has = |names: &[String]| names.iter().any(|name| name == "SR_IOV");
            ensure!(
                has(&device.features_offered) && !has(&device.features_negotiated),
                "{device:?}"
            );
            check_location(lab, "01:00.0")
        };
        check(&mut lab).map_err(|error| lab.report(&error))
    });
}

/// Moves the network device behind a bridge with the id `bridge`, to this slot.
pub fn behind(machine: &mut Machine, bridge: &str, slot: u8, properties: &str) {
    // QEMU makes devices in the order of its command line, the bridge first.
    let Some(Nic {
        net: Net::Dgram { qemu, host },
        pio_notify,
        ..
    }) = machine.nic.take()
    else {
        return;
    };
    let netdev = format!(
        "dgram,id=net0,local.type=unix,local.path={},remote.type=unix,remote.path={}",
        qemu.display(),
        host.display()
    );
    let port = if pio_notify { "on" } else { "off" };
    let nic = format!(
        "virtio-net-pci,netdev=net0,romfile=,bus=bridge,addr={slot},mac=52:54:00:4b:50:01,\
         disable-legacy=off,modern-pio-notify={port}{properties}"
    );
    let arguments = ["-device", bridge, "-netdev", &netdev, "-device", &nic];
    machine.extra.extend(arguments.map(Into::into));
}

fn check_location(lab: &Lab, place: &str) -> Result<()> {
    let status = lab.status()?;
    ensure!(
        status.device.location.contains(place),
        "{} instead of {place}",
        status.device.location
    );
    ensure!(status.interrupts.rung == "msix", "{:?}", status.interrupts);
    lab.check_services()
}
