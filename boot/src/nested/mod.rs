//! `--accel nested`: a real KVM on a machine whose CPU runs no guests.
//!
//! QEMU's translator emulates AMD's SVM with nested paging. So Debian's kernel, in
//! a QEMU of that kind, has a `/dev/kvm` of the real kvm_amd, and in it the same
//! command runs with `--accel kvm`, as on hardware: with its exits and their
//! reasons. It sees the root directory of this machine, read-only with a memory
//! laid over it, so that QEMU, its firmware, the guest and its sources are where
//! they are outside; its results come by a second directory.

mod machine;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::accel::AccelChoice;
use crate::command::{Progress, Sink};
use crate::install::IPROUTE2;
use crate::linux::{self, Linux, LinuxError};
use crate::qemu::{Boot, Memory, Vmm};
use crate::session::{NetChoice, SessionError, Settings, require};
use crate::trace::recording::Recording;
use machine::{Between, Job, MEMORY, RESULTS};

/// Memory that the guest may have, in MiB: the Linux between needs the rest.
const GUEST_MEMORY: u32 = MEMORY / 2;

/// Options with a value that are told anew to the command inside, or are for
/// what is done outside.
const OWN_OPTIONS: [&str; 8] = [
    "--accel",
    "--qemu",
    "--kernel",
    "--pcap",
    "--html",
    "--perfetto",
    "--recording",
    "--json",
];

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum NestedError {
    /// The CPU that is emulated must run the programs of this machine.
    #[error("--accel nested needs a host whose programs are for x86-64")]
    Architecture,
    /// More than there is in the machine between.
    #[error("--accel nested: a guest there has {GUEST_MEMORY}M at most; --memory asks for {}M", .0.as_mebibytes())]
    Memory(Memory),
    /// A VMM that needs a KVM of this machine.
    #[error("--vmm {}: --accel nested boots its guest in QEMU", .0.word())]
    Vmm(Vmm),
    /// Nothing is started that could be printed before.
    #[error("--dry-run: with --accel nested QEMU's command line is made inside")]
    DryRun,
    /// The Linux between.
    #[error(transparent)]
    Linux(#[from] LinuxError),
    /// The system refuses.
    #[error("cannot {what} {}: {source}", file.display())]
    System {
        /// What.
        what: &'static str,
        /// The file or program.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An argument that no command line can hold.
    #[error("an argument holds a zero byte or is no UTF-8")]
    ZeroByte,
    /// What can be prepared outside.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The machine between takes too long.
    #[error("the Linux between was not done after {} s; its console's end:\n{console}", limit.as_secs())]
    TimedOut {
        /// The time that it was given.
        limit: Duration,
        /// The last lines.
        console: String,
    },
    /// The machine between ends too early.
    #[error("the Linux between ended without a result ({status}):\n{console}")]
    Ended {
        /// QEMU's exit status.
        status: ExitStatus,
        /// What QEMU said, and the last lines of the console.
        console: String,
    },
    /// The command inside fails.
    #[error("{}", .0.trim_start_matches("error: "))]
    Inside(String),
    /// What it left cannot be read.
    #[error("what was recorded inside cannot be read: {0}")]
    Recording(#[from] serde_json::Error),
    /// Somebody asked us to end (see [`crate::interrupt`]).
    #[error("interrupted; the Linux between has ended")]
    Interrupted,
    /// The output is closed.
    #[error("cannot write: {0}")]
    Output(io::Error),
}

impl NestedError {
    fn system(what: &'static str, file: &Path) -> impl FnOnce(io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::System { what, file, source }
    }
}

/// `kickpath run` inside: `words` are its arguments, as they were given outside.
/// What it prints is printed while it does; returns its exit status.
///
/// # Errors
/// It cannot be run, or says why it fails.
pub fn run(
    settings: &Settings,
    net: NetChoice,
    json: bool,
    words: &[OsString],
    sink: &mut Sink<'_>,
) -> Result<u8, NestedError> {
    check(settings, net, sink)?;
    let more: &[&str] = if json { &["--json"] } else { &[] };
    let inside = Inside::new(settings, None, words, more, sink)?;
    let status = inside.between.run(&mut io::stdout(), sink)?;
    inside.keep_frames(settings)?;
    match inside.between.errors() {
        said if status != 0 && !json && !said.is_empty() => Err(NestedError::Inside(said)),
        _ => Ok(status),
    }
}

/// What the far end inside needs of this machine.
fn check(settings: &Settings, net: NetChoice, sink: &mut Sink<'_>) -> Result<(), NestedError> {
    settings.check_with(net).map_err(SessionError::from)?;
    // The Linux between has root of its own, and this machine's programs.
    if net == NetChoice::Tap {
        require(&[IPROUTE2], settings.policy, sink)?;
    }
    Ok(())
}

/// Records a packet inside, as [`crate::trace::record`] does outside, or, where `guest` is a
/// Linux, as [`crate::trace::linux::record`] does; with it what the guest was booted from.
///
/// # Errors
/// It cannot be recorded.
pub fn record(
    settings: &Settings,
    net: NetChoice,
    guest: Option<&Linux>,
    words: &[OsString],
    sink: &mut Sink<'_>,
) -> Result<(Boot, Recording), NestedError> {
    check(settings, net, sink)?;
    let file = format!("{RESULTS}/recording");
    let inside = Inside::new(settings, guest, words, &["--recording", &file], sink)?;
    inside.between.run(&mut io::sink(), sink)?;
    inside.keep_frames(settings)?;
    // A trace whose layers do not fit fails, and is shown all the same.
    let text = fs::read_to_string(inside.between.result("recording"));
    let text = text.map_err(|_| NestedError::Inside(inside.between.errors()))?;
    Ok((inside.boot, serde_json::from_str(&text)?))
}

/// A command that is ready to run inside.
struct Inside {
    between: Between,
    boot: Boot,
}

impl Inside {
    fn new(
        settings: &Settings,
        guest: Option<&Linux>,
        words: &[OsString],
        more: &[&str],
        sink: &mut Sink<'_>,
    ) -> Result<Self, NestedError> {
        if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
            return Err(NestedError::Architecture);
        }
        if settings.vmm != Vmm::Qemu {
            return Err(NestedError::Vmm(settings.vmm));
        }
        if settings.memory.as_mebibytes() > GUEST_MEMORY {
            return Err(NestedError::Memory(settings.memory));
        }
        let linux = Linux::get(linux::BETWEEN, settings.policy, sink)?;
        // QEMU and the guest are made here, where that is fast.
        let outside = Settings {
            accel: AccelChoice::Tcg,
            kernel: guest.map_or(settings.kernel.clone(), |linux| Some(linux.kernel())),
            ..settings.clone()
        };
        let machine = outside.prepare(false, sink)?.machine;
        let directory = env::current_dir();
        let directory = directory.map_err(NestedError::system("find", Path::new(".")))?;
        let program = env::current_exe();
        let program = program.map_err(NestedError::system("find", Path::new("kickpath")))?;
        let mut inside = vec![text(program.as_os_str())?];
        inside.extend(without_own_options(words)?);
        inside.extend(["--accel", "kvm", "--no-install", "--qemu"].map(str::to_owned));
        let qemu = crate::install::Host::detect().find_named(&machine.program);
        let qemu = qemu.unwrap_or(machine.program);
        inside.push(text(qemu.as_os_str())?);
        // A Linux is found where it is outside.
        if let (Boot::Kernel(kernel), None) = (&machine.boot, guest) {
            inside.push("--kernel".into());
            inside.push(text(kernel.as_os_str())?);
        }
        if settings.pcap.is_some() {
            inside.extend(["--pcap".into(), format!("{RESULTS}/frames")]);
        }
        inside.extend(more.iter().map(|word| (*word).to_owned()));
        let job = Job {
            directory,
            environment: environment(),
            words: inside,
        };
        let between = Between::new(&linux, &qemu, &job)?;
        sink(Progress::Step(
            "Booting a Linux on an emulated CPU with SVM, and running this command in it \
             (about a minute)",
        ));
        Ok(Self {
            between,
            boot: machine.boot,
        })
    }

    /// Puts the recorded frames where they are wanted.
    fn keep_frames(&self, settings: &Settings) -> Result<(), NestedError> {
        let frames = self.between.result("frames");
        if let Some(pcap) = &settings.pcap
            && frames.is_file()
        {
            let bytes = fs::read(&frames).map_err(NestedError::system("read", &frames))?;
            pcap.fill(&bytes).map_err(SessionError::from)?;
        }
        Ok(())
    }
}

/// What the command inside finds in its environment.
fn environment() -> Vec<(String, String)> {
    let mut environment: Vec<(String, String)> = Vec::new();
    for name in [
        "PATH",
        "HOME",
        "XDG_CACHE_HOME",
        "LANG",
        "NO_COLOR",
        "RUST_BACKTRACE",
    ] {
        if let Ok(value) = env::var(name) {
            environment.push((name.into(), value));
        }
    }
    // What it prints goes through a file to where this program prints.
    if io::stdout().is_terminal() {
        environment.push(("CLICOLOR_FORCE".into(), "1".into()));
    }
    environment
}

/// The arguments without those that the command inside gets anew.
fn without_own_options(words: &[OsString]) -> Result<Vec<String>, NestedError> {
    let mut kept = Vec::new();
    // `--json` of `run` has no value.
    let is_trace = words.iter().any(|word| word == "trace");
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let word = text(word)?;
        let name = word.split('=').next().unwrap_or_default();
        if word == "--no-install" || name == "--json" && !is_trace {
            continue;
        }
        if !OWN_OPTIONS.contains(&name) {
            kept.push(word);
        } else if name == word {
            words.next();
        }
    }
    Ok(kept)
}

fn text(word: &OsStr) -> Result<String, NestedError> {
    word.to_str()
        .map(str::to_owned)
        .ok_or(NestedError::ZeroByte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_outside_is_not_told_inside() {
        for (outside, inside) in [
            ("--accel nested --json", ""),
            (
                "run --accel=nested --irq intx --json --memory 64M",
                "run --irq intx --memory 64M",
            ),
            (
                "trace --accel nested --json - --html=x.html --features=-mac --pcap y",
                "trace --features=-mac",
            ),
            (
                "trace --no-install --kernel k --qemu=q --vlan 5 --accel nested",
                "trace --vlan 5",
            ),
        ] {
            let words: Vec<OsString> = outside.split(' ').map(OsString::from).collect();
            let kept = without_own_options(&words).unwrap();
            assert_eq!(kept.join(" "), inside, "{outside}");
        }
    }
}
