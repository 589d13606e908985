//! The driver on other CPUs than x86: it compiles there without a warning, and the
//! example kernels serve over every transport, with interrupts and by polling. And on
//! every CPU its barriers are executed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kickpath::qemu::Accel;
use kickpath_tests::bare::{self, Bare, Cpu};
use kickpath_tests::{Lab, Spec, Suite, memory};

/// Without an operating system, and the last one without atomics of 64 bits.
const TARGETS: [&str; 4] = [
    "x86_64-unknown-none",
    "aarch64-unknown-none",
    "riscv64gc-unknown-none-elf",
    "riscv32imac-unknown-none-elf",
];

/// What the kernel calls the way, QEMU's device, and what goes with it.
const WAYS: [(&str, &str, &str, &[&str]); 5] = [
    (
        "mmio_v1",
        "virtio-mmio",
        "virtio-net-device",
        &["-global", "virtio-mmio.force-legacy=on"],
    ),
    (
        "mmio_v2",
        "virtio-mmio",
        "virtio-net-device",
        &["-global", "virtio-mmio.force-legacy=off"],
    ),
    (
        "modern",
        "PCI",
        "virtio-net-pci,disable-legacy=on,romfile=",
        &[],
    ),
    // Ports are a window here: memory is what is kicked.
    (
        "modern_port_notify",
        "PCI",
        "virtio-net-pci,disable-legacy=on,modern-pio-notify=on,romfile=",
        &[],
    ),
    (
        "legacy_in_a_window",
        "PCI",
        "virtio-net-pci,disable-modern=on,disable-legacy=off,romfile=",
        &[],
    ),
];

pub fn add(suite: &mut Suite) {
    for target in TARGETS {
        suite.test(&format!("any_cpu::compiles_for_{target}"), move || {
            compiles(target)
        });
    }
    suite.test("any_cpu::barriers_are_executed_on_x86_64", || {
        are_executed(|options| {
            let spec = Spec::pc().accel(Accel::Tcg).extra(options);
            Lab::launch(spec)?.wait_until_up()
        })
    });
    for cpu in Cpu::ALL {
        let name = format!("any_cpu::barriers_are_executed_on_{}", cpu.name);
        suite.test(&name, move || {
            are_executed(|options| {
                let mut kernel = Bare::launch(cpu, "virtio-net-device", options, "")?;
                kernel.wait_for("INFO  up").map(drop)
            })
        });
        let name = format!("any_cpu::{}_repeats_a_lost_kick", cpu.name);
        suite.test(&name, move || lost_kick(cpu));
        for (way, bus, device, more) in WAYS {
            for (rung, words, shown) in [("intx", "", "INTx"), ("poll", "poll", "polling")] {
                let name = format!("any_cpu::{}_over_{way}_with_{rung}", cpu.name);
                suite.test(&name, move || {
                    let mut kernel = Bare::launch(cpu, device, more, words)?;
                    kernel.wait_for("INFO  up")?;
                    let line = kernel.wait_for("10.0.2.15")?;
                    ensure!(line.contains(bus) && line.contains(shown), "{line}");
                    kernel.check()?;
                    if words.is_empty() {
                        kernel.wait_for("interrupts come")?;
                    }
                    Ok(())
                });
            }
        }
    }
}

/// The device says that it needs no kick for the next 16384 frames, and sleeps.
fn lost_kick(cpu: Cpu) -> Result<()> {
    // With an ioeventfd QEMU kicks itself when the machine goes on after a stop.
    let options = ["-global", "virtio-mmio.ioeventfd=off"];
    let mut kernel = Bare::launch(cpu, "virtio-net-device", &options, "")?;
    kernel.wait_for("INFO  up")?;
    for _ in 0..20 {
        // Its answer may have QEMU look at the queue once more: then nothing is lost.
        kernel.ping(1, 56)?;
        memory::hide_kicks(&kernel, 1, false)?;
        kernel.ping(1, 56)?;
        if kernel.said().contains("do not move; notified again") {
            return kernel.check();
        }
    }
    bail!("no kick was lost: {}", kernel.said())
}

/// Whether TCG makes operations of the guest's barriers. `boot` has a guest open its
/// device, with these further options of QEMU.
fn are_executed(boot: impl FnOnce(&[&str]) -> Result<()>) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("log");
    boot(&["-d", "op", "-D", path(&log)?])?;
    let log = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let mut lines = log.lines();
    let barrier = lines.any(|line| line.trim_start().starts_with("mb "));
    ensure!(barrier, "no barrier in {} bytes", log.len());
    Ok(())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not text")
}

fn compiles(target: &str) -> Result<()> {
    for features in ["", "trace"] {
        let package = "kickpath-virtio-net";
        let arguments = [
            "check",
            "--locked",
            "--package",
            package,
            "--features",
            features,
        ];
        bare::build(target, "", &arguments, "-Dwarnings")?;
    }
    Ok(())
}
