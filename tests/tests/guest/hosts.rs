//! Machines without QEMU's comforts, as other VMMs have them: no interrupt
//! controllers of the PC, no serial port, no firmware, no way to end that carries a
//! status.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kickpath::qemu::{Accel, Boot, Kind, Machine, Net, Nic};
use kickpath_abi::config::SelfTest;
use kickpath_tests::setup::setup;
use kickpath_tests::{Lab, Spec, Suite};

use crate::faults::expect_on_console;

/// What other VMMs leave out of a PC, but the serial port.
const BARE: &str = "pit=off,pic=off,rtc=off,isa-serial=off";
/// The debug port in its place. QEMU's standard input and output is `serial0`.
const DEBUG_PORT: &str = "isa-debugcon,iobase=0xe9,chardev=serial0";

pub fn add(suite: &mut Suite) {
    for (acpi, cpus) in [("on", 2), ("off", 1)] {
        let machine = format!("{BARE},acpi={acpi}");
        let spec = Spec::new(Kind::Microvm)
            .extra(&["-machine", &machine, "-device", DEBUG_PORT])
            .edit(move |machine| machine.cpus = cpus);
        let name = format!("hosts::microvm_without_pit_pic_rtc_serial_acpi_{acpi}");
        suite.guest(&name, spec, move |lab| {
            if acpi == "on" {
                // Without a table nothing tells of the second CPU.
                expect_on_console(lab, &["2 CPUs"])?;
            }
            check(lab)
        });
    }
    let modern = Spec::new(Kind::Q35).property("disable-legacy", "on");
    suite.guest("hosts::q35_modern_only", modern, check);
    // Its firmware knows no PCI: the guest gives the device its addresses.
    let pcie = Spec::new(Kind::Microvm).edit(on_pcie);
    suite.guest("hosts::microvm_pcie_without_firmware", pcie, |lab| {
        let status = lab.status()?;
        ensure!(status.device.transport == "modern", "{:?}", status.device);
        ensure!(status.interrupts.rung == "msix", "{:?}", status.interrupts);
        check(lab)
    });
    suite.guest("hosts::an_nmi_is_logged_and_survived", Spec::pc(), |lab| {
        lab.guest.qmp("inject-nmi", serde_json::json!({}))?;
        lab.guest
            .wait_for_console("non-maskable interrupts: 1", lab.soon())?;
        check(lab)
    });
    // Each way to end where there is no other: ACPI's ports, its registers in memory,
    // the keyboard controller's reset, and a CPU that shuts down.
    let ways: [(&str, Kind, &[&str]); 4] = [
        ("acpi_ports", Kind::Q35, &[]),
        ("acpi_memory", Kind::Microvm, &["-machine", "acpi=on"]),
        ("i8042", Kind::Pc, &["-machine", "acpi=off"]),
        ("triple_fault", Kind::Microvm, &["-machine", "acpi=off"]),
    ];
    for (way, kind, arguments) in ways {
        for (selftest, verdict) in [
            (SelfTest::Panic, "verdict: failure"),
            (SelfTest::PageFault, "verdict: failure"),
        ] {
            let name = format!("hosts::a_{selftest}_ends_the_machine_by_{way}");
            suite.test(&name, move || ends(kind, arguments, selftest, verdict));
        }
    }
}

fn check(lab: &mut Lab) -> Result<()> {
    lab.check_services()?;
    lab.echo_flood(500, 64)
}

/// Puts the network device of a microvm on PCI.
fn on_pcie(machine: &mut Machine) {
    let Some(Nic {
        net: Net::Dgram { qemu, host },
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
    let nic = "virtio-net-pci,netdev=net0,romfile=,mac=52:54:00:4b:50:01";
    let arguments = ["-machine", "pcie=on", "-netdev", &netdev, "-device", nic];
    machine.extra.extend(arguments.map(Into::into));
}

/// Starts a guest that fails on a machine that cannot hand out a status, and waits
/// for QEMU's end.
fn ends(kind: Kind, arguments: &[&str], selftest: SelfTest, verdict: &str) -> Result<()> {
    let setup = setup()?;
    let kernel = Boot::Kernel(setup.kernel.clone());
    let mut machine = Machine::new(&setup.qemu, kind, Accel::Tcg, kernel);
    machine.config.selftest = selftest;
    machine.extra.extend(arguments.iter().map(Into::into));
    let mut words = machine.arguments();
    let exit = words
        .iter()
        .position(|word| word.to_string_lossy().starts_with("isa-debug-exit"))
        .context("QEMU is started without isa-debug-exit")?;
    words.drain(exit - 1..=exit);
    let mut qemu = Command::new(&machine.program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match qemu.try_wait()? {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => break None,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    if status.is_none() {
        qemu.kill()?;
        qemu.wait()?;
    }
    let mut console = String::new();
    if let Some(mut output) = qemu.stdout.take() {
        output.read_to_string(&mut console)?;
    }
    match status {
        Some(status) if status.success() => {}
        Some(status) => bail!("QEMU: {status}\n{console}"),
        None => bail!("the machine goes on\n{console}"),
    }
    let last = console.lines().last().unwrap_or_default();
    ensure!(last.contains(verdict), "the last line is '{last}'");
    Ok(())
}
