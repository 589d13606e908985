//! Makes the machine ready for the tests, and finds out what it lacks.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow};
use kickpath::command::Progress;
use kickpath::doctor::{self, KvmState};
use kickpath::install::{Host, Policy, QEMU, Requirement};
use kickpath::qemu::{Accel, Kind, Machine, Nic};
use kickpath::toolchain::{self, BuildOptions};
use kickpath_abi::config::Transport;
use nix::unistd::geteuid;

/// Environment variable that forbids installing anything, when it is set to
/// something else than nothing or `0`.
pub const NO_INSTALL_VARIABLE: &str = "KICKPATH_NO_INSTALL";

/// Environment variable that names an ELF file to test instead of a fresh build
/// (the command knows it, too).
pub const KERNEL_VARIABLE: &str = "KICKPATH_KERNEL";

/// Environment variable that runs the tests over another transport than the
/// default one: `modern`, `modern-port`, `mmio` or `mmio-legacy`. Tests that
/// say themselves which device they want, or what they expect of it, are not
/// for this; `services::`, `http::`, `hostile::`, `connections::`, `link::`,
/// `dhcp::` and `transmit_queue::` are.
pub const TRANSPORT_VARIABLE: &str = "KICKPATH_TEST_TRANSPORT";

/// What [`TRANSPORT_VARIABLE`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestTransport {
    /// The guest's own choice: legacy port I/O.
    Default,
    /// The modern interface of virtio-pci.
    Modern,
    /// The same, kicked by a port.
    ModernPort,
    /// virtio-mmio version 2, on microvm instead of the PC.
    Mmio,
    /// virtio-mmio version 1.
    MmioLegacy,
}

/// Over which transport the tests run.
///
/// # Errors
/// [`TRANSPORT_VARIABLE`] has a value that it cannot have.
pub fn transport() -> Result<TestTransport> {
    let Some(value) = std::env::var_os(TRANSPORT_VARIABLE) else {
        return Ok(TestTransport::Default);
    };
    match value.to_str() {
        Some("") => Ok(TestTransport::Default),
        Some("modern") => Ok(TestTransport::Modern),
        Some("modern-port") => Ok(TestTransport::ModernPort),
        Some("mmio") => Ok(TestTransport::Mmio),
        Some("mmio-legacy") => Ok(TestTransport::MmioLegacy),
        _ => Err(anyhow!(
            "{TRANSPORT_VARIABLE}={}: expected modern, modern-port, mmio or mmio-legacy",
            value.display()
        )),
    }
}

impl TestTransport {
    /// Changes a machine that is about to be described further.
    pub fn apply(self, machine: &mut Machine, nic: &mut Nic) {
        match self {
            Self::Default => {}
            Self::Modern | Self::ModernPort if machine.kind != Kind::Microvm => {
                machine.config.transport = Transport::Modern;
                nic.pio_notify = self == Self::ModernPort;
            }
            Self::Mmio | Self::MmioLegacy if machine.kind == Kind::Pc => {
                machine.kind = Kind::Microvm;
                nic.mmio_legacy = self == Self::MmioLegacy;
            }
            _ => {}
        }
    }
}

/// What every guest test needs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// QEMU for x86-64.
    pub qemu: PathBuf,
    /// The guest's ELF file.
    pub kernel: PathBuf,
}

/// Installs QEMU where it is missing and builds the guest, once; progress goes
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
    require(&[QEMU])?;
    let qemu = Host::detect()
        .find(&QEMU)
        .context("QEMU was installed and is not found")?;
    let options = BuildOptions::from_env(policy())?;
    let kernel = match std::env::var_os(KERNEL_VARIABLE) {
        Some(kernel) => kernel.into(),
        None => toolchain::build_kernel(&options, &mut show)?,
    };
    Ok(Setup { qemu, kernel })
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
