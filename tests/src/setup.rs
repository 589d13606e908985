//! Makes the machine ready for the tests, and finds out what it lacks.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use kickpath::command::{self, Progress};
use kickpath::doctor::{self, KvmState, QemuVersion};
use kickpath::install::{self, Host, Policy, Requirement};
use kickpath::qemu::Accel;
use kickpath::toolchain::{self, BuildOptions, Kernel};
use nix::unistd::geteuid;

/// Environment variable that forbids installing anything, when it is set to
/// something else than nothing or `0`.
pub const NO_INSTALL_VARIABLE: &str = "KICKPATH_NO_INSTALL";

/// Environment variable that names an ELF file to test instead of a fresh build
/// (the command knows it, too).
pub const KERNEL_VARIABLE: &str = "KICKPATH_KERNEL";

/// What every guest test needs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// QEMU for x86-64.
    pub qemu: PathBuf,
    /// Its version.
    pub version: QemuVersion,
    /// The guest's ELF file.
    pub kernel: PathBuf,
}

/// Installs QEMU where it is missing (unless [`install::QEMU_VARIABLE`] names one) and builds the guest, once; progress goes
/// to the standard error.
///
/// # Errors
/// Something is missing and cannot be had: the message says how to get it.
pub fn setup() -> Result<&'static Setup> {
    static SETUP: OnceLock<std::result::Result<Setup, String>> = OnceLock::new();
    static TOLD: AtomicBool = AtomicBool::new(false);
    SETUP
        .get_or_init(|| prepare().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| {
            if TOLD.swap(true, Ordering::Relaxed) {
                anyhow!("the set-up of the guest tests failed, as reported for another test")
            } else {
                anyhow!("the set-up of the guest tests failed: {error}")
            }
        })
}

fn prepare() -> Result<Setup> {
    let qemu = install::qemu(policy(), &mut show)?;
    let version = doctor::qemu_version(&qemu)
        .with_context(|| format!("{} does not tell its version", qemu.display()))?;
    let options = BuildOptions::from_env(policy())?;
    let kernel = match std::env::var_os(KERNEL_VARIABLE) {
        Some(kernel) => kernel.into(),
        None => toolchain::build_kernel(Kernel::Plain, &options, &mut show)?,
    };
    Ok(Setup {
        version,
        qemu,
        kernel,
    })
}

/// Builds the guest with the network driver of `virtio-drivers` beside its own, by the
/// compiler of this version.
///
/// # Errors
/// As [`setup`].
pub fn kernel_with_peer() -> Result<(PathBuf, String)> {
    let options = BuildOptions::from_env(policy())?;
    let kernel = toolchain::build_kernel(Kernel::WithPeer, &options, &mut show)?;
    let version = toolchain::complete(&options, &mut show)?.version;
    Ok((kernel, version.to_string()))
}

/// Whether the QEMU that is tested is this version or a later one.
///
/// # Errors
/// As [`setup`].
pub fn qemu_is_at_least(major: u16, minor: u16) -> Result<bool> {
    let version = setup()?.version;
    Ok((version.major, version.minor) >= (major, minor))
}

/// Whether a device of the QEMU that is tested has this property.
///
/// # Errors
/// As [`setup`], or QEMU has no such device.
pub fn qemu_has_property(device: &str, property: &str) -> Result<bool> {
    let mut help = Command::new(&setup()?.qemu);
    help.args(["-device", &format!("{device},help")]);
    let text = command::output(&mut help, Duration::from_secs(20))?;
    let names = text.lines().filter_map(|line| line.split_once('='));
    Ok(names.into_iter().any(|(name, _)| name.trim() == property))
}

/// Makes sure that these programs are there, installing them where that is
/// possible and not forbidden by [`NO_INSTALL_VARIABLE`].
///
/// # Errors
/// What is missing, and the command that brings it.
pub fn require(requirements: &[Requirement]) -> Result<()> {
    // One at a time: two tests may need the same.
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Host::detect().ensure(requirements, policy(), &mut show)?)
}

/// Whether missing programs may be installed.
pub fn policy() -> Policy {
    match std::env::var_os(NO_INSTALL_VARIABLE) {
        Some(value) if !value.is_empty() && value != "0" => Policy::Forbid,
        _ => Policy::Install,
    }
}

/// Shows what the set-up does.
pub fn show(progress: Progress<'_>) {
    match progress {
        Progress::Step(step) => eprintln!("kickpath-tests: {step}"),
        Progress::Line(line) => eprintln!("    {line}"),
    }
}

/// Why no tap device in a namespace of its own can be made here, if so.
pub fn lacks_tap() -> Option<String> {
    if !geteuid().is_root() {
        return Some("a tap device in a network namespace needs root".into());
    }
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    tun.err()
        .map(|error| format!("cannot open /dev/net/tun: {error}"))
}

/// KVM on this machine, or why it cannot be used.
///
/// # Errors
/// The reason.
pub fn kvm() -> std::result::Result<Accel, String> {
    match doctor::kvm() {
        KvmState::Hardware => Ok(Accel::Kvm { emulated: false }),
        KvmState::Software => Ok(Accel::Kvm { emulated: true }),
        other => Err(other.to_string()),
    }
}
