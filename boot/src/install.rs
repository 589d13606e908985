//! Gets the programs that a task needs: says what is missing and why, installs
//! it where that is allowed and possible, and otherwise gives the exact command.
//!
//! Only apt, as root, installs by itself; of every other package manager the
//! command is printed. Nothing that is installed is taken away without need:
//! the transaction is simulated first, and one that would remove anything but
//! QEMU's own packages (which replace each other) is refused.

mod apt;

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;

use crate::command::{CommandError, Progress, Sink};
use crate::interrupt;

/// Whether anything may be installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Install what is missing, where possible.
    #[default]
    Install,
    /// Install nothing (`--no-install`): say what is missing.
    Forbid,
}

/// How to tell that a requirement is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// A program on the path.
    Program(&'static str),
    /// One of these programs on the path; the first is what our packages bring.
    AnyProgram(&'static [&'static str]),
    /// One of these files.
    AnyFile(&'static [&'static str]),
}

/// A program or file that a task needs, and the packages that bring it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// How to tell that it is there.
    pub check: Check,
    /// What it is good for, to complete "... is needed to".
    pub purpose: &'static str,
    /// Its package on Debian and Ubuntu.
    pub apt: &'static str,
    /// Its package on Fedora.
    pub dnf: &'static str,
    /// Its package on Arch.
    pub pacman: &'static str,
    /// Its package on openSUSE.
    pub zypper: &'static str,
    /// Its package in Homebrew; empty where there is none.
    pub brew: &'static str,
}

/// Generates the requirements, a line each.
macro_rules! requirements {
    ($($(#[$meta:meta])* $name:ident = $check:expr, $purpose:literal,
        $apt:literal $dnf:literal $pacman:literal $zypper:literal $brew:literal;)+) => {
        $($(#[$meta])* pub const $name: Requirement = Requirement {
            check: $check, purpose: $purpose,
            apt: $apt, dnf: $dnf, pacman: $pacman, zypper: $zypper, brew: $brew,
        };)+
    };
}

requirements! {
    /// The emulator.
    QEMU = Check::Program("qemu-system-x86_64"), "boot the guest",
        "qemu-system-x86" "qemu-system-x86-core" "qemu-system-x86" "qemu-x86" "qemu";
    /// A debugger.
    GDB = Check::Program("gdb"), "look at QEMU's call chain at a kick",
        "gdb" "gdb" "gdb" "gdb" "";
    /// For changes of the sources.
    PATCH = Check::Program("patch"), "apply a change to a copy of the sources",
        "patch" "patch" "patch" "patch" "gpatch";
    /// The emulator of 64-bit ARM.
    QEMU_AARCH64 = Check::Program("qemu-system-aarch64"), "boot the example for aarch64",
        "qemu-system-arm" "qemu-system-aarch64-core" "qemu-system-aarch64" "qemu-arm" "qemu";
    /// The emulator of 64-bit RISC-V.
    QEMU_RISCV64 = Check::Program("qemu-system-riscv64"), "boot the example for riscv64",
        "qemu-system-misc" "qemu-system-riscv-core" "qemu-system-riscv" "qemu-extra" "qemu";
    /// UEFI firmware for QEMU.
    OVMF = Check::AnyFile(OVMF_FILES), "boot a UEFI image in QEMU",
        "ovmf" "edk2-ovmf" "edk2-ovmf" "qemu-ovmf-x86_64" "qemu";
    /// Ping of a real network stack.
    PING = Check::Program("ping"), "ping the guest from Linux",
        "iputils-ping" "iputils" "iputils" "iputils" "";
    /// An HTTP client.
    CURL = Check::Program("curl"), "fetch the guest's pages from Linux",
        "curl" "curl" "curl" "curl" "curl";
    /// A load generator for HTTP.
    AB = Check::Program("ab"), "ask the guest for pages over many connections",
        "apache2-utils" "httpd-tools" "apache" "apache2-utils" "httpd";
    /// A load generator for HTTP that keeps connections open.
    WRK = Check::Program("wrk"), "ask the guest for pages over many open connections",
        "wrk" "wrk" "wrk" "wrk" "wrk";
    /// A DHCP server.
    DNSMASQ = Check::Program("dnsmasq"), "lease the guest an address",
        "dnsmasq-base" "dnsmasq" "dnsmasq" "dnsmasq" "";
    /// Advertises routers of IPv6.
    RADVD = Check::Program("radvd"), "advertise a router to the guest",
        "radvd" "radvd" "radvd" "radvd" "";
    /// Linux's network configuration.
    IPROUTE2 = Check::Program("ip"), "make a network namespace with a tap device",
        "iproute2" "iproute" "iproute2" "iproute2" "";
    /// A packet sniffer.
    TCPDUMP = Check::Program("tcpdump"), "read captured packets",
        "tcpdump" "tcpdump" "tcpdump" "tcpdump" "tcpdump";
    /// Offload settings of a network device.
    ETHTOOL = Check::Program("ethtool"), "set the offloads of a tap device",
        "ethtool" "ethtool" "ethtool" "ethtool" "";
    /// QEMU's network without QEMU: sockets of an ordinary user.
    PASST = Check::Program("passt"), "be the far end of the guest's cable",
        "passt" "passt" "passt" "passt" "";
    /// DPDK's test application.
    TESTPMD = Check::Program("dpdk-testpmd"), "be a device by vhost-user",
        "dpdk-dev" "dpdk-tools" "dpdk" "dpdk-tools" "";
    /// A browser that can be driven without a screen.
    CHROMIUM = Check::AnyProgram(&["chromium", "chromium-browser", "google-chrome"]),
        "look at the page of a trace as a reader does",
        "chromium" "chromium" "chromium" "chromium" "";
}

/// Where distributions put the firmware image of OVMF (code only, or both).
pub const OVMF_FILES: &[&str] = &[
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/OVMF/OVMF_CODE.fd",
    "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
    "/usr/share/edk2/ovmf/OVMF_CODE.fd",
    "/usr/share/qemu/ovmf-x86_64-code.bin",
    "/usr/share/ovmf/OVMF.fd",
    "/opt/homebrew/share/qemu/edk2-x86_64-code.fd",
    "/usr/local/share/qemu/edk2-x86_64-code.fd",
];

/// A program that installs packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Manager {
    /// Debian, Ubuntu.
    Apt,
    /// Fedora.
    Dnf,
    /// Arch.
    Pacman,
    /// openSUSE.
    Zypper,
    /// Homebrew.
    Brew,
}

impl Manager {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Apt, "apt-get"),
        (Self::Dnf, "dnf"),
        (Self::Pacman, "pacman"),
        (Self::Zypper, "zypper"),
        (Self::Brew, "brew"),
    ];

    /// The name of the package that meets `requirement`, if there is one.
    fn package(self, requirement: &Requirement) -> Option<&'static str> {
        let name = match self {
            Self::Apt => requirement.apt,
            Self::Dnf => requirement.dnf,
            Self::Pacman => requirement.pacman,
            Self::Zypper => requirement.zypper,
            Self::Brew => requirement.brew,
        };
        (!name.is_empty()).then_some(name)
    }

    /// The command that installs `packages`, for a person to paste.
    fn command(self, packages: &[&str], root: bool) -> String {
        let sudo = if root { "" } else { "sudo " };
        let list = packages.join(" ");
        match self {
            Self::Apt => format!(
                "{sudo}apt-get update && {sudo}apt-get install --no-install-recommends {list}"
            ),
            Self::Dnf => format!("{sudo}dnf install {list}"),
            Self::Pacman => format!("{sudo}pacman -S --needed {list}"),
            Self::Zypper => format!("{sudo}zypper install {list}"),
            // Homebrew refuses to run as root.
            Self::Brew => format!("brew install {list}"),
        }
    }
}

/// Why something that is needed could not be had.
#[derive(Debug, Error)]
pub enum InstallError {
    /// Installing is forbidden.
    #[error(
        "missing: {missing}\n--no-install forbids installing; to do it yourself:\n    {command}"
    )]
    Forbidden {
        /// What is missing, and what for.
        missing: String,
        /// The command that would bring it.
        command: String,
    },
    /// Only root may install, and we are not.
    #[error("missing: {missing}\nInstalling needs root; run this, then try again:\n    {command}")]
    NotRoot {
        /// What is missing, and what for.
        missing: String,
        /// The command that would bring it.
        command: String,
    },
    /// A package manager that we leave to its owner.
    #[error("missing: {missing}\nInstall it with this, then try again:\n    {command}")]
    ByHand {
        /// What is missing, and what for.
        missing: String,
        /// The command that would bring it.
        command: String,
    },
    /// No package manager that we know, or none that has it.
    #[error("missing: {missing}\nNo package manager known to Kickpath offers it on this machine")]
    NoPackage {
        /// What is missing, and what for.
        missing: String,
    },
    /// The transaction would remove packages that have nothing to do with it.
    #[error(
        "installing {packages} would remove {removed}; that is not for Kickpath to decide. \
         If you agree, run this, then try again:\n    {command}"
    )]
    WouldRemove {
        /// What was to be installed.
        packages: String,
        /// What would go.
        removed: String,
        /// The command that does it.
        command: String,
    },
    /// The package manager failed.
    #[error("cannot install {packages}: {cause}\nTo try it yourself:\n    {command}")]
    Failed {
        /// What was to be installed.
        packages: String,
        /// What the package manager said.
        cause: CommandError,
        /// The command to try by hand.
        command: String,
    },
    /// The package is there, but what it should bring is not.
    #[error("{packages} installed without an error, but still missing: {missing}")]
    StillMissing {
        /// What was installed.
        packages: String,
        /// What is missing.
        missing: String,
    },
    /// A package cannot be downloaded.
    #[error("cannot download {package}: {cause}")]
    Download {
        /// The package.
        package: String,
        /// What the package manager said.
        cause: CommandError,
    },
    /// The package manager says that it did, and there is no package.
    #[error("{0} was downloaded without an error, but there is no file of it")]
    NotDownloaded(String),
    /// Only apt downloads a package without installing it.
    #[error("{0} is a package of Debian, and this machine has no apt-get to download it")]
    NoApt(String),
    /// Another Kickpath has been installing for too long.
    #[error("another process has been installing for {} s (lock {})", waited.as_secs(), path.display())]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// How long we waited.
        waited: Duration,
    },
    /// [`QEMU_VARIABLE`] names nothing.
    #[error("{QEMU_VARIABLE} is {}: there is no such file", .0.display())]
    NoSuchQemu(PathBuf),
    /// Somebody asked us to end (see [`interrupt`]) before anything was done.
    #[error("interrupted; nothing was installed")]
    Interrupted,
    /// The lock file cannot be used.
    #[error("cannot lock {}: {cause}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
}

/// Environment variable that names the QEMU program to use instead of the one on the path; the
/// commands and all tests know it.
pub const QEMU_VARIABLE: &str = "KICKPATH_QEMU";

/// The QEMU program: the one that [`QEMU_VARIABLE`] names, else the one on the path, installed
/// where that is missing.
///
/// # Errors
/// There is none.
pub fn qemu(policy: Policy, sink: &mut Sink<'_>) -> Result<PathBuf, InstallError> {
    let host = Host::detect();
    if let Some(named) = env::var_os(QEMU_VARIABLE).filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        let found = host.find_named(&named);
        return found.ok_or(InstallError::NoSuchQemu(named));
    }
    host.ensure(&[QEMU], policy, sink)?;
    Ok(host
        .find(&QEMU)
        .unwrap_or_else(|| "qemu-system-x86_64".into()))
}

/// The machine as the installer sees it: everything that a test replaces.
#[derive(Clone, Debug)]
pub struct Host {
    /// Directories that are searched for programs, in order.
    pub search_path: Vec<PathBuf>,
    /// Put before every absolute path that is looked at; `/` but in tests.
    pub prefix: PathBuf,
    /// Whether we may write to the system.
    pub root: bool,
    /// How long to wait for another installer to finish.
    pub patience: Duration,
}

impl Host {
    /// This machine: `PATH` and the usual directories of system programs.
    pub fn detect() -> Self {
        let mut search_path: Vec<_> = env::var_os("PATH")
            .map(|path| env::split_paths(&path).collect())
            .unwrap_or_default();
        // An ordinary user's path often lacks those with `ip` and `ethtool`.
        for directory in ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"] {
            let directory = PathBuf::from(directory);
            if !search_path.contains(&directory) {
                search_path.push(directory);
            }
        }
        Self {
            search_path,
            prefix: PathBuf::from("/"),
            root: nix::unistd::geteuid().is_root(),
            patience: Duration::from_secs(600),
        }
    }

    /// The first executable file called `program` on the search path.
    pub fn find_program(&self, program: &str) -> Option<PathBuf> {
        self.search_path
            .iter()
            .map(|directory| directory.join(program))
            .find(|path| is_executable(path))
    }

    /// The file that a person means by `named`: a name without a slash is looked
    /// for on the search path, as a shell does, and then in the current directory.
    pub fn find_named(&self, named: &Path) -> Option<PathBuf> {
        let mut parts = named.components();
        let file = match (parts.next(), parts.next()) {
            (Some(Component::Normal(name)), None) => {
                let found = name.to_str().and_then(|name| self.find_program(name));
                // With a slash, or whoever starts it looks on the path again.
                found.unwrap_or_else(|| Path::new(".").join(name))
            }
            _ => named.to_owned(),
        };
        file.is_file().then_some(file)
    }

    /// `path`, an absolute one, below the prefix.
    pub fn path(&self, path: &str) -> PathBuf {
        self.prefix.join(path.trim_start_matches('/'))
    }

    /// The file or program that meets `requirement`.
    pub fn find(&self, requirement: &Requirement) -> Option<PathBuf> {
        match requirement.check {
            Check::Program(program) => self.find_program(program),
            Check::AnyProgram(programs) => programs
                .iter()
                .find_map(|program| self.find_program(program)),
            Check::AnyFile(files) => files
                .iter()
                .map(|file| self.path(file))
                .find(|path| path.is_file()),
        }
    }

    /// The package manager of this machine and its program.
    pub fn manager(&self) -> Option<(Manager, PathBuf)> {
        Manager::ALL
            .iter()
            .find_map(|&(manager, program)| Some((manager, self.find_program(program)?)))
    }

    /// The command that brings `requirements`, or `None` where no package
    /// manager offers them.
    pub fn command(&self, requirements: &[Requirement]) -> Option<String> {
        let (manager, _) = self.manager()?;
        let packages = packages(manager, requirements)?;
        Some(manager.command(&packages, self.root))
    }

    /// Makes sure that every one of `requirements` is met, installing what is
    /// missing where `policy` and the machine permit it.
    ///
    /// # Errors
    /// [`InstallError`]; its text says what is missing and the exact command
    /// that brings it.
    pub fn ensure(
        &self,
        requirements: &[Requirement],
        policy: Policy,
        sink: &mut Sink<'_>,
    ) -> Result<(), InstallError> {
        if self.missing(requirements).is_empty() {
            return Ok(());
        }
        let missing = self.missing(requirements);
        if interrupt::requested() {
            return Err(InstallError::Interrupted);
        }
        let Some((manager, program)) = self.manager() else {
            return Err(InstallError::NoPackage {
                missing: describe(&missing),
            });
        };
        let Some(packages) = packages(manager, &missing) else {
            return Err(InstallError::NoPackage {
                missing: describe(&missing),
            });
        };
        let command = manager.command(&packages, self.root);
        let text = describe(&missing);
        match (policy, manager, self.root) {
            (Policy::Forbid, ..) => Err(InstallError::Forbidden {
                missing: text,
                command,
            }),
            (_, Manager::Apt, true) => self.install_by_apt(&program, requirements, sink),
            (_, Manager::Apt, false) => Err(InstallError::NotRoot {
                missing: text,
                command,
            }),
            _ => Err(InstallError::ByHand {
                missing: text,
                command,
            }),
        }
    }

    fn install_by_apt(
        &self,
        program: &Path,
        requirements: &[Requirement],
        sink: &mut Sink<'_>,
    ) -> Result<(), InstallError> {
        let _lock = self.lock(sink)?;
        // Another process may have installed it while we waited.
        let missing = self.missing(requirements);
        let Some(packages) = packages(Manager::Apt, &missing).filter(|list| !list.is_empty())
        else {
            return Ok(());
        };
        sink(Progress::Step(&format!(
            "Installing {} by apt-get ({})",
            packages.join(" "),
            describe(&missing)
        )));
        apt::Apt::new(program, self).install(&packages, apt::Lists::Fresh, sink)?;
        let missing = self.missing(requirements);
        if missing.is_empty() {
            Ok(())
        } else {
            Err(InstallError::StillMissing {
                packages: packages.join(" "),
                missing: describe(&missing),
            })
        }
    }

    /// Installs the newest packages of `requirements` that new package lists
    /// know, although older ones are there, where `policy` and the machine
    /// permit it; elsewhere it does nothing. Returns whether it did.
    ///
    /// # Errors
    /// [`InstallError`], of apt and its lock.
    pub fn upgrade(
        &self,
        requirements: &[Requirement],
        policy: Policy,
        sink: &mut Sink<'_>,
    ) -> Result<bool, InstallError> {
        let (Policy::Install, true, Some((Manager::Apt, program)), Some(packages)) = (
            policy,
            self.root,
            self.manager(),
            packages(Manager::Apt, requirements),
        ) else {
            return Ok(false);
        };
        let _lock = self.lock(sink)?;
        sink(Progress::Step(&format!(
            "Installing the newest {} by apt-get",
            packages.join(" ")
        )));
        apt::Apt::new(&program, self).install(&packages, apt::Lists::New, sink)?;
        Ok(true)
    }

    /// Downloads a package of Debian into the empty `directory`, and installs
    /// nothing; returns its file. Where `package` only depends on the one that is
    /// meant, that one's name begins with `stem`.
    ///
    /// # Errors
    /// There is no apt, or it cannot.
    pub fn download(
        &self,
        package: &str,
        stem: &str,
        directory: &Path,
        sink: &mut Sink<'_>,
    ) -> Result<PathBuf, InstallError> {
        if interrupt::requested() {
            return Err(InstallError::Interrupted);
        }
        let Some((Manager::Apt, program)) = self.manager() else {
            return Err(InstallError::NoApt(package.to_owned()));
        };
        // Lists are brought up to date by root alone.
        let _lock = self.root.then(|| self.lock(sink)).transpose()?;
        apt::Apt::new(&program, self).download(package, stem, directory, sink)
    }

    /// The requirements that are not met.
    fn missing(&self, requirements: &[Requirement]) -> Vec<Requirement> {
        requirements
            .iter()
            .filter(|requirement| self.find(requirement).is_none())
            .copied()
            .collect()
    }

    /// Waits, within its patience, until no other Kickpath is installing: tests
    /// run in several processes, and apt's own lock does not cover `update`.
    fn lock(&self, sink: &mut Sink<'_>) -> Result<File, InstallError> {
        let path = self.path("/var/lock/kickpath-install.lock");
        let failed = |cause| InstallError::Lock {
            path: path.clone(),
            cause,
        };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let started = Instant::now();
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) => {}
                Err(fs::TryLockError::Error(cause)) => return Err(failed(cause)),
            }
            if interrupt::requested() {
                return Err(InstallError::Interrupted);
            }
            let waited = started.elapsed();
            if waited >= self.patience {
                return Err(InstallError::Busy { path, waited });
            }
            if !told {
                sink(Progress::Step(
                    "Waiting for another Kickpath that is installing",
                ));
                told = true;
            }
            thread::sleep(Duration::from_millis(200).min(self.patience));
        }
    }
}

/// As [`Host::ensure`], on this machine.
///
/// # Errors
/// As [`Host::ensure`].
pub fn ensure(
    requirements: &[Requirement],
    policy: Policy,
    sink: &mut Sink<'_>,
) -> Result<(), InstallError> {
    Host::detect().ensure(requirements, policy, sink)
}

/// Every package of `requirements`, or `None` if one has none.
fn packages(manager: Manager, requirements: &[Requirement]) -> Option<Vec<&'static str>> {
    let mut list = Vec::new();
    for requirement in requirements {
        let package = manager.package(requirement)?;
        if !list.contains(&package) {
            list.push(package);
        }
    }
    Some(list)
}

fn describe(missing: &[Requirement]) -> String {
    missing
        .iter()
        .map(|requirement| {
            let what = match requirement.check {
                Check::Program(program) => program,
                Check::AnyProgram(programs) => programs.first().copied().unwrap_or(requirement.apt),
                Check::AnyFile(files) => files.first().copied().unwrap_or(requirement.apt),
            };
            format!("{what}, needed to {}", requirement.purpose)
        })
        .collect::<Vec<_>>()
        .join("; ")
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
pub(crate) mod tests;
