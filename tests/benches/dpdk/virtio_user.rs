//! DPDK's own guest driver: `peer.c`, compiled here.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kickpath::install::{Check, Requirement};
use kickpath_tests::setup;

use super::{Case, Direction, SAMPLE};

/// What DPDK's driver is compiled with.
const LIBDPDK: Requirement = Requirement {
    check: Check::AnyFile(&["/usr/include/dpdk/rte_ethdev.h"]),
    purpose: "compile the program that measures DPDK's driver",
    apt: "libdpdk-dev",
    dnf: "dpdk-devel",
    pacman: "dpdk",
    zypper: "dpdk-devel",
    brew: "",
};

const PKG_CONFIG: Requirement = Requirement {
    check: Check::Program("pkg-config"),
    purpose: "compile the program that measures DPDK's driver",
    apt: "pkg-config",
    dnf: "pkgconf-pkg-config",
    pacman: "pkgconf",
    zypper: "pkg-config",
    brew: "",
};

/// Compiles the program, and returns where it is.
///
/// # Errors
/// What it needs cannot be had, or the compiler refuses it.
pub fn build() -> Result<PathBuf> {
    setup::require(&[LIBDPDK, PKG_CONFIG])?;
    let flags = Command::new("pkg-config")
        .args(["--cflags", "--libs", "libdpdk"])
        .output()?;
    ensure!(flags.status.success(), "pkg-config knows no libdpdk");
    let flags = String::from_utf8(flags.stdout)?;
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dpdk-peer");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(&compiler)
        .args(["-O3", "-o"])
        .arg(&program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/dpdk/peer.c"))
        .args(flags.split_whitespace())
        .status()
        .with_context(|| compiler.clone())?;
    ensure!(status.success(), "{compiler}: {status}");
    Ok(program)
}

/// Cycles a frame.
///
/// # Errors
/// The program fails.
pub fn measure(program: &Path, socket: &Path, case: Case, frames: u64) -> Result<f64> {
    let way = match case.direction {
        Direction::Transmit => "tx",
        Direction::Receive => "rx",
    };
    let output = Command::new(program)
        .args(["--no-huge", "--no-shconf", "--no-telemetry", "-m", "128"])
        .args(["--no-pci", "--lcores", "0@1"])
        .arg(format!(
            "--vdev=net_virtio_user0,path={},queues=1,queue_size=256,packed_vq={}",
            socket.display(),
            u8::from(case.packed)
        ))
        .args(["--", way])
        .args([case.burst.to_string(), frames.to_string()])
        .output()
        .with_context(|| program.display().to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let measured = text.lines().find_map(|line| {
        let cycles = line.strip_prefix("measured ")?.split(' ').next()?;
        Some(cycles.parse::<f64>().ok()? / f64::from(SAMPLE))
    });
    ensure!(
        output.status.success(),
        "DPDK's driver: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    measured.with_context(|| format!("DPDK's driver said no figures:\n{text}"))
}
