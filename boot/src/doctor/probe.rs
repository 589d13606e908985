//! The looks themselves: devices, capabilities, versions.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::libc;
use serde::Serialize;

use super::{Finding, State};
use crate::command;
use crate::install::Host;

/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` of capabilities(7), as bit numbers.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// The only version of KVM's interface since Linux 2.6.22.
const KVM_API_VERSION: i32 = 12;

nix::ioctl_write_int_bad!(
    /// `KVM_GET_API_VERSION`: `_IO(KVMIO, 0x00)`; its argument must be zero.
    kvm_get_api_version,
    nix::request_code_none!(0xae, 0x00)
);

/// What KVM is on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum KvmState {
    /// `/dev/kvm` opens and the CPU offers VMX or SVM.
    Hardware,
    /// `/dev/kvm` opens, but the CPU offers neither: guest code is emulated in
    /// the host's kernel, slower than by TCG.
    Software,
    /// `/dev/kvm` may not be opened by this user.
    NoPermission,
    /// There is no `/dev/kvm`.
    Absent,
    /// `/dev/kvm` opens or fails in an unexpected way.
    Unusable {
        /// What happened.
        reason: String,
    },
}

impl KvmState {
    /// Whether it is faster than TCG, so that `--accel auto` takes it.
    pub fn is_hardware(&self) -> bool {
        matches!(self, Self::Hardware)
    }

    /// Whether `--accel kvm` can work at all.
    pub fn opens(&self) -> bool {
        matches!(self, Self::Hardware | Self::Software)
    }
}

impl fmt::Display for KvmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hardware => "/dev/kvm opens and the CPU offers vmx or svm",
            Self::Software => {
                "/dev/kvm opens, but the CPU offers neither vmx nor svm: a software KVM, slower than TCG"
            }
            Self::NoPermission => "/dev/kvm may not be opened by this user",
            Self::Absent => "there is no /dev/kvm",
            Self::Unusable { reason } => reason,
        })
    }
}

/// The state of KVM.
pub(super) fn kvm(host: &Host) -> KvmState {
    let device = match open(&host.path("/dev/kvm")) {
        Ok(device) => device,
        Err(error) => {
            return match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => KvmState::Absent,
                Some(libc::EACCES | libc::EPERM) => KvmState::NoPermission,
                _ => KvmState::Unusable {
                    reason: format!("/dev/kvm does not open: {error}"),
                },
            };
        }
    };
    // SAFETY: the request takes an integer by value and writes no memory of
    // ours; the descriptor is open as long as `device` lives.
    match unsafe { kvm_get_api_version(device.as_raw_fd(), 0) } {
        Ok(KVM_API_VERSION) => {}
        Ok(version) => {
            return KvmState::Unusable {
                reason: format!("/dev/kvm has interface version {version}, not {KVM_API_VERSION}"),
            };
        }
        Err(error) => {
            return KvmState::Unusable {
                reason: format!("/dev/kvm does not tell its interface version: {error}"),
            };
        }
    }
    let cpuinfo = fs::read_to_string(host.path("/proc/cpuinfo")).unwrap_or_default();
    if offers_virtualization(&cpuinfo) {
        KvmState::Hardware
    } else {
        KvmState::Software
    }
}

/// Whether the CPU is one that QEMU's translator emulates: the signature of the
/// hypervisor's leaves (QEMU, `target/i386/cpu.c`).
pub fn cpu_is_emulated() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        // Leaf 1, ECX bit 31: there are leaves of a hypervisor.
        if __cpuid(1).ecx & 1 << 31 == 0 {
            return false;
        }
        let leaf = __cpuid(0x4000_0000);
        let signature = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes);
        signature.as_flattened() == b"TCGTCGTCGTCG"
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether a CPU in `/proc/cpuinfo` has the flag `vmx` or `svm`.
pub(super) fn offers_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() == "flags")
        .flat_map(|(_, flags)| flags.split_whitespace())
        .any(|flag| matches!(flag, "vmx" | "svm"))
}

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct QemuVersion {
    /// Major.
    pub major: u16,
    /// Minor.
    pub minor: u16,
    /// Micro: 50 and above are development versions.
    pub micro: u16,
}

impl QemuVersion {
    /// Reads the output of `qemu-system-x86_64 --version`, such as
    /// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`.
    pub fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("QEMU emulator version ")?;
        let number = rest.split_whitespace().next()?;
        // `10.0.2-rc1`
        let number = number.split('-').next()?;
        let mut parts = number.split('.').map(|part| part.parse().ok());
        Some(Self {
            major: parts.next()??,
            minor: parts.next()??,
            micro: parts.next()??,
        })
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// The version of the QEMU at `path`; `None` when it does not tell.
pub fn qemu_version(path: &Path) -> Option<QemuVersion> {
    let mut command = Command::new(path);
    let text = command::output(command.arg("--version"), Duration::from_secs(30)).ok()?;
    QemuVersion::parse(&text)
}

/// Whether a tap device can be made.
pub(super) fn tap(host: &Host) -> Finding {
    let opened = open(&host.path("/dev/net/tun"));
    let admin = has_capability(host, CAP_NET_ADMIN);
    let (state, detail, remedy) = match (&opened, admin) {
        (Ok(_), true) => (
            State::Good,
            "/dev/net/tun opens and CAP_NET_ADMIN is held".to_owned(),
            None,
        ),
        (Ok(_), false) => (
            State::Missing,
            "/dev/net/tun opens, but CAP_NET_ADMIN is not held".to_owned(),
            Some("run as root"),
        ),
        (Err(error), _) => (
            State::Missing,
            format!("/dev/net/tun does not open: {error}"),
            Some(if error.kind() == io::ErrorKind::PermissionDenied {
                "run as root"
            } else {
                "sudo modprobe tun"
            }),
        ),
    };
    Finding {
        name: "tap",
        state,
        detail,
        gives: "the host's own network stack at the other end of the cable (--net tap)",
        required: false,
        remedy: remedy.map(str::to_owned),
    }
}

/// Whether the kernel's KVM events can be read.
pub(super) fn tracefs(host: &Host) -> Finding {
    const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

    let mounted = PLACES
        .into_iter()
        .find(|place| host.path(place).join("trace_clock").exists());
    let known = fs::read_to_string(host.path("/proc/filesystems"))
        .is_ok_and(|list| list.lines().any(|line| line.ends_with("\ttracefs")));
    let admin = has_capability(host, CAP_SYS_ADMIN);
    let (state, detail, remedy) = match mounted {
        Some(place) if host.path(place).join("events/kvm").is_dir() => (
            State::Good,
            format!("mounted at {place}, with KVM's events"),
            None,
        ),
        Some(place) => (
            State::Limited,
            format!("mounted at {place}, without KVM's events"),
            Some("load the kvm module"),
        ),
        None if !known => (
            State::Missing,
            "this kernel was built without tracefs".to_owned(),
            None,
        ),
        None if admin => (
            State::Limited,
            "not mounted".to_owned(),
            Some("mount -t tracefs tracefs /sys/kernel/tracing"),
        ),
        None => (
            State::Missing,
            "not accessible to this user".to_owned(),
            Some("run as root"),
        ),
    };
    Finding {
        name: "tracefs",
        state,
        detail,
        gives: "the host kernel's side of every kick: KVM's own trace events",
        required: false,
        remedy: remedy.map(str::to_owned),
    }
}

/// Whether this process holds a capability (`CapEff` of proc(5)).
fn has_capability(host: &Host, bit: u32) -> bool {
    fs::read_to_string(host.path("/proc/self/status"))
        .ok()
        .and_then(|status| effective_capabilities(&status))
        .is_some_and(|mask| mask & (1 << bit) != 0)
}

/// The mask of the line `CapEff:` in `/proc/self/status`.
pub(super) fn effective_capabilities(status: &str) -> Option<u64> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}
