//! What the user asked for, and a machine made of it.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use kickpath_abi::config::{Config, ConfigError, Ipv4Config, Irq, LogLevel, Transport};

use super::Prepared;
use crate::accel::{AccelChoice, Decision, NoKvm};
use crate::command::{Progress, Sink};
use crate::doctor;
use crate::guest::Failure;
use crate::install::{self, Host, InstallError, Policy, Requirement};
use crate::qemu::{Boot, DiskImage, FirmwareError, Kind, Machine, Memory};
use crate::toolchain::{self, BuildOptions, ToolchainError};
use crate::wire::{Plan, PlanError, TapError};

/// Which end of the cable is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetChoice {
    /// A host of our own behind a pair of datagram sockets.
    #[default]
    Dgram,
    /// QEMU's user network with forwarded ports.
    User,
    /// A tap device in a network namespace.
    Tap,
}

impl FromStr for NetChoice {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "dgram" => Ok(Self::Dgram),
            "user" => Ok(Self::User),
            "tap" => Ok(Self::Tap),
            _ => Err("expected dgram, user or tap".into()),
        }
    }
}

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The accelerator.
    pub accel: AccelChoice,
    /// The machine type.
    pub kind: Kind,
    /// How the guest reaches the device's registers.
    pub transport: Transport,
    /// The rung of the interrupt ladder.
    pub irq: Irq,
    /// Memory.
    pub memory: Memory,
    /// Virtual CPUs, 1 to 64.
    pub cpus: u8,
    /// The QEMU program, if not the one on the path.
    pub qemu: Option<PathBuf>,
    /// The guest's address.
    pub ipv4: Ipv4Config,
    /// A file for all frames.
    pub pcap: Option<PathBuf>,
    /// How much the guest prints.
    pub log: LogLevel,
    /// Features not to accept: the value of the guest's `features=`.
    pub features: Option<String>,
    /// An ELF file to boot instead of a fresh build.
    pub kernel: Option<PathBuf>,
    /// A disk image to boot instead.
    pub image: Option<PathBuf>,
    /// Whether anything may be installed.
    pub policy: Policy,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The guest of this version cannot do it.
    #[error(transparent)]
    NotBuilt(#[from] NotBuilt),
    /// The guest's configuration.
    #[error("--features: {0}")]
    Features(String),
    /// The addresses.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The accelerator.
    #[error(transparent)]
    Accel(#[from] NoKvm),
    /// A program is missing.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The guest cannot be built.
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    /// The disk image.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// The tap device.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The guest.
    #[error(transparent)]
    Guest(#[from] Box<Failure>),
    /// A file that was named is not there.
    #[error("{option} {}: there is no such file", file.display())]
    NoFile {
        /// The option that names it.
        option: &'static str,
        /// The file.
        file: PathBuf,
    },
    /// The system refuses.
    #[error("cannot {what}: {source}")]
    System {
        /// What.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// No port of the loopback interface is free.
    #[error("no port of 127.0.0.1 from {first} to {last} is free")]
    NoPort {
        /// The first that was tried.
        first: u16,
        /// The last that was tried.
        last: u16,
    },
    /// The output is closed.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

/// What the guest of this version cannot do yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotBuilt {
    /// No such transport.
    #[error(
        "--transport {0} is not built yet: this version has the legacy port-I/O transport \
         (--transport legacy, or auto)"
    )]
    Transport(Transport),
    /// No such machine.
    #[error(
        "--machine {0} is not built yet: it has virtio-mmio only, and this version has the \
         legacy port-I/O transport (--machine pc or q35)"
    )]
    Machine(Kind),
}

/// The one place that says what the guest of this version cannot do.
///
/// # Errors
/// What is missing.
pub fn check_built(kind: Kind, transport: Transport) -> Result<(), NotBuilt> {
    match (kind, transport) {
        (_, Transport::Modern | Transport::Mmio) => Err(NotBuilt::Transport(transport)),
        (Kind::Microvm, _) => Err(NotBuilt::Machine(kind)),
        (Kind::Pc | Kind::Q35, Transport::Auto | Transport::Legacy) => Ok(()),
    }
}

impl Settings {
    /// The guest's configuration on a network with these addresses.
    fn config(&self, plan: &Plan) -> Result<Config, SessionError> {
        let mut config = Config {
            log: self.log,
            transport: self.transport,
            irq: self.irq,
            ..Config::default()
        };
        if let Some(features) = &self.features {
            let mut error = None;
            let word = format!("features={features}");
            // The guest's own parser: it must read what we send.
            let parsed = Config::parse(&word, |e: ConfigError<'_>| error = Some(e.to_string()));
            if let Some(error) = error {
                return Err(SessionError::Features(error));
            }
            config.features_off = parsed.features_off;
        }
        plan.configure(&mut config);
        Ok(config)
    }

    /// Installs and builds what is missing, and describes the machine. With
    /// `dry_run` nothing is installed or built: what is missing is named by
    /// the place where it would be.
    ///
    /// # Errors
    /// What was asked for is not possible, or something is missing and cannot
    /// be had.
    pub fn prepare(&self, dry_run: bool, sink: &mut Sink<'_>) -> Result<Prepared, SessionError> {
        check_built(self.kind, self.transport)?;
        let plan = Plan::new(self.ipv4)?;
        let config = self.config(&plan)?;
        let decision = Decision::new(self.accel, &doctor::kvm())?;
        let qemu = self.qemu(dry_run, sink)?;
        let boot = match (&self.image, &self.kernel) {
            (Some(image), _) => Boot::Disk(self.disk(image, dry_run, sink)?),
            (None, Some(kernel)) if kernel.is_file() => Boot::Kernel(kernel.clone()),
            (None, Some(kernel)) => {
                return Err(SessionError::NoFile {
                    option: "--kernel",
                    file: kernel.clone(),
                });
            }
            (None, None) if dry_run => {
                let target = toolchain::target_directory(&toolchain::workspace()?);
                let directory = target.join("kernel").join(toolchain::TARGET);
                Boot::Kernel(directory.join("guest").join(toolchain::KERNEL))
            }
            (None, None) => {
                let options = BuildOptions::from_env(self.policy)?;
                let kernel = toolchain::build_kernel(&options, sink)?;
                sink(Progress::Step("Starting QEMU"));
                Boot::Kernel(kernel)
            }
        };
        let mut machine = Machine::new(qemu, self.kind, decision.accel, boot);
        machine.memory = self.memory;
        machine.cpus = self.cpus;
        machine.config = config;
        Ok(Prepared {
            machine,
            decision,
            plan,
            pcap: self.pcap.clone(),
            transport: self.transport,
        })
    }

    fn disk(
        &self,
        image: &Path,
        dry_run: bool,
        sink: &mut Sink<'_>,
    ) -> Result<DiskImage, SessionError> {
        match DiskImage::detect(image) {
            Err(FirmwareError::NoOvmf(_)) if !dry_run => {
                require(&[install::OVMF], self.policy, sink)?;
            }
            other => return Ok(other?),
        }
        Ok(DiskImage::detect(image)?)
    }

    fn qemu(&self, dry_run: bool, sink: &mut Sink<'_>) -> Result<PathBuf, SessionError> {
        const PROGRAM: &str = "qemu-system-x86_64";
        match &self.qemu {
            // A name without a slash is looked for on the path, as a shell does.
            Some(named) if named.components().count() == 1 && !named.is_file() => {
                let name = named.to_string_lossy();
                let found = Host::detect().find_program(&name);
                found.ok_or_else(|| SessionError::NoFile {
                    option: "--qemu",
                    file: named.clone(),
                })
            }
            Some(named) if named.is_file() => Ok(named.clone()),
            Some(named) => Err(SessionError::NoFile {
                option: "--qemu",
                file: named.clone(),
            }),
            None if dry_run => Ok(PROGRAM.into()),
            None => {
                require(&[install::QEMU], self.policy, sink)?;
                let found = Host::detect().find(&install::QEMU);
                Ok(found.unwrap_or_else(|| PROGRAM.into()))
            }
        }
    }
}

/// Installs programs that are missing.
///
/// # Errors
/// They may not or cannot be installed; the message says how to.
pub fn require(
    requirements: &[Requirement],
    policy: Policy,
    sink: &mut Sink<'_>,
) -> Result<(), SessionError> {
    Ok(install::ensure(requirements, policy, sink)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_built_is_refused() {
        for transport in [Transport::Auto, Transport::Legacy] {
            assert_eq!(check_built(Kind::Pc, transport), Ok(()));
            assert_eq!(check_built(Kind::Q35, transport), Ok(()));
            let error = check_built(Kind::Microvm, transport).unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with("--machine microvm is not built yet")
            );
        }
        for transport in [Transport::Modern, Transport::Mmio] {
            let error = check_built(Kind::Pc, transport).unwrap_err();
            assert!(error.to_string().contains("is not built yet"), "{error}");
        }
    }
}
