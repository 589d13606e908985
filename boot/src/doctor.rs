//! What this machine has for Kickpath and what it lacks, what each thing would
//! give, and how to get it. Looks only; changes nothing.

mod probe;
mod vmms;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::install::{self, Host, Requirement};
use crate::toolchain::{self, Choice, Survey};

pub use vmms::FoundVmm;

pub use probe::{KvmState, QemuVersion, cpu_is_emulated, qemu_version};

/// The oldest QEMU with `-netdev dgram`, which the runner's own network needs.
pub const OLDEST_QEMU: QemuVersion = QemuVersion {
    major: 7,
    minor: 2,
    micro: 0,
};

/// The finding about the emulator.
const QEMU_NAME: &str = "QEMU";

/// How far something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It can be used.
    Good,
    /// It can be used, but not for everything.
    Limited,
    /// It is missing, or may not be used.
    Missing,
}

/// One thing that was looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is.
    pub name: &'static str,
    /// How far it is there.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What it is good for.
    pub gives: &'static str,
    /// Whether `kickpath run` needs it.
    pub required: bool,
    /// What to do to get it, where something is missing.
    pub remedy: Option<String>,
}

/// The QEMU that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Qemu {
    /// The program.
    pub path: PathBuf,
    /// Its version, where it told one.
    pub version: Option<QemuVersion>,
}

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether `kickpath run` has all it needs without installing anything.
    pub ready: bool,
    /// The emulator.
    pub qemu: Option<Qemu>,
    /// The state of KVM.
    pub kvm: KvmState,
    /// The toolchain for the guest.
    pub toolchain: Option<Survey>,
    /// Everything, in the order in which it matters.
    pub findings: Vec<Finding>,
    /// VMMs, QEMU first, and what each gives here.
    pub vmms: Vec<FoundVmm>,
}

/// Looks at this machine. `qemu` is the program to look at instead of the
/// `qemu-system-x86_64` on the path.
pub fn examine(qemu: Option<&Path>) -> Report {
    examine_host(
        &Host::detect(),
        qemu,
        toolchain::survey(Choice::from_env().unwrap_or_default()).ok(),
    )
}

/// The state of KVM on this machine.
pub fn kvm() -> KvmState {
    probe::kvm(&Host::detect())
}

fn examine_host(host: &Host, qemu: Option<&Path>, survey: Option<Survey>) -> Report {
    let is_named = qemu.is_some();
    let qemu = match qemu {
        Some(named) => Some(host.find_named(named).unwrap_or_else(|| named.to_owned())),
        None => host.find(&install::QEMU),
    };
    let qemu = qemu.map(|path| Qemu {
        version: probe::qemu_version(&path),
        path,
    });
    let kvm = probe::kvm(host);
    let mut findings = vec![
        qemu_finding(host, qemu.as_ref(), is_named),
        toolchain_finding(survey.as_ref()),
        kvm_finding(&kvm),
        probe::tap(host),
        probe::tracefs(host),
    ];
    let programs = [
        ("OVMF", install::OVMF, "boots UEFI images"),
        (
            "ping",
            install::PING,
            "pings the guest from a real Linux stack",
        ),
        (
            "curl",
            install::CURL,
            "fetches the guest's pages from a real Linux stack",
        ),
    ];
    for (name, requirement, gives) in programs {
        findings.push(program_finding(host, name, &requirement, gives));
    }
    let is_good = |name| {
        let mut named = findings.iter().filter(|finding| finding.name == name);
        named.all(|finding| finding.state == State::Good)
    };
    let needs = [("KVM", kvm.opens()), ("root for a tap", is_good("tap"))];
    let needs = needs.into_iter().filter(|(_, is_there)| !is_there);
    let needs: Vec<_> = needs.map(|(name, _)| name).collect();
    Report {
        vmms: vmms::vmms(host, qemu.as_ref(), &needs),
        ready: findings
            .iter()
            .all(|finding| !finding.required || finding.state == State::Good),
        qemu,
        kvm,
        toolchain: survey,
        findings,
    }
}

fn qemu_finding(host: &Host, qemu: Option<&Qemu>, is_named: bool) -> Finding {
    let (state, detail) = match qemu {
        None => (
            State::Missing,
            "qemu-system-x86_64 is not on the path".to_owned(),
        ),
        Some(Qemu { path, version }) => match version {
            Some(version) if *version >= OLDEST_QEMU => {
                (State::Good, format!("{version}, {}", path.display()))
            }
            Some(version) => (
                State::Limited,
                format!("{version}, {}: older than {OLDEST_QEMU}", path.display()),
            ),
            None if !path.is_file() => {
                let detail = format!("--qemu {}: there is no such file", path.display());
                (State::Missing, detail)
            }
            None => (
                State::Missing,
                format!("{} does not tell its version", path.display()),
            ),
        },
    };
    Finding {
        name: QEMU_NAME,
        state,
        detail,
        gives: "the machine that the guest boots on",
        required: true,
        remedy: match (state, is_named) {
            (State::Good, _) => None,
            (_, true) => Some("leave --qemu out: the one on the path is taken".to_owned()),
            (_, false) => host.command(&[install::QEMU]),
        },
    }
}

fn toolchain_finding(survey: Option<&Survey>) -> Finding {
    let toolchain = survey.and_then(|survey| survey.toolchain.as_ref());
    Finding {
        name: "toolchain",
        state: if toolchain.is_some() {
            State::Good
        } else {
            State::Missing
        },
        detail: match (toolchain, survey) {
            (Some(toolchain), _) => toolchain.to_string(),
            (None, Some(survey)) => survey.tried.join("; "),
            (None, None) => "the guest's sources are not here".to_owned(),
        },
        gives: "builds the guest",
        required: true,
        remedy: survey.and_then(|survey| survey.remedy.clone()),
    }
}

fn kvm_finding(kvm: &KvmState) -> Finding {
    let (state, remedy) = match kvm {
        KvmState::Hardware => (State::Good, None),
        KvmState::Software => (
            State::Limited,
            Some("nothing to install; `--accel kvm` forces it".to_owned()),
        ),
        KvmState::NoPermission => (
            State::Missing,
            Some("sudo usermod -aG kvm $USER, then log in again".to_owned()),
        ),
        KvmState::Absent => (
            State::Missing,
            Some("enable virtualization in the firmware, or nested virtualization, and load the kvm module".to_owned()),
        ),
        KvmState::Unusable { .. } => (State::Missing, None),
    };
    Finding {
        name: "KVM",
        state,
        detail: kvm.to_string(),
        gives: "runs the guest at the speed of the CPU (else QEMU's TCG emulates it)",
        required: false,
        remedy,
    }
}

fn program_finding(
    host: &Host,
    name: &'static str,
    requirement: &Requirement,
    gives: &'static str,
) -> Finding {
    let path = host.find(requirement);
    Finding {
        name,
        state: if path.is_some() {
            State::Good
        } else {
            State::Missing
        },
        detail: path
            .as_ref()
            .map_or_else(|| "not found".to_owned(), |path| path.display().to_string()),
        gives,
        required: false,
        remedy: if path.is_none() {
            host.command(&[*requirement])
        } else {
            None
        },
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let mark = match finding.state {
                State::Good => "ok ",
                State::Limited => " ~ ",
                State::Missing => "-- ",
            };
            writeln!(f, "{mark} {:<10} {}", finding.name, finding.detail)?;
            if finding.state != State::Good {
                writeln!(f, "               gives: {}", finding.gives)?;
                if let Some(remedy) = &finding.remedy {
                    writeln!(f, "               how:   {remedy}")?;
                }
            }
        }
        writeln!(
            f,
            "\nVMMs that the guest boots on (bench counts instructions on QEMU alone):"
        )?;
        for vmm in &self.vmms {
            write!(f, "{vmm}")?;
        }
        let lacks = |finding: &Finding| finding.required && finding.state != State::Good;
        // One that is there is not replaced.
        let bad_qemu = self.qemu.is_some();
        let installs = |finding: &Finding| !(finding.name == QEMU_NAME && bad_qemu);
        f.write_str(if self.ready {
            "\n`kickpath run` has all it needs.\n"
        } else if self.findings.iter().filter(|f| lacks(f)).all(installs) {
            "\n`kickpath run` lacks something; as root it installs that by itself.\n"
        } else {
            "\n`kickpath run` lacks something that it does not install.\n"
        })
    }
}

#[cfg(test)]
mod tests;
