//! What the user asked for, and a machine made of it.

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kickpath_abi::config::{Config, ConfigError, Ipv4Config, Irq, LogLevel, Transport};

use super::{Device, Prepared};
use crate::accel::{AccelChoice, Decision, NoKvm};
use crate::command::{Progress, Sink};
use crate::doctor;
use crate::guest::Failure;
use crate::install::{self, Host, InstallError, Policy, Requirement};
use crate::qemu::{Boot, DiskImage, FirmwareError, Kind, Machine, Memory};
use crate::toolchain::{self, BuildOptions, ToolchainError};
use crate::trace::capture::TraceError;
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

/// The form of a virtqueue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Three areas (specification 2.7).
    #[default]
    Split,
    /// One ring (specification 2.8).
    Packed,
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
    /// virtio-mmio version 1 instead of 2, on microvm.
    pub mmio_legacy: bool,
    /// A port for the kicks of a modern PCI device.
    pub pio_notify: bool,
    /// Whether a kick is handled by QEMU's main loop (`true`, QEMU's default)
    /// or where it is made.
    pub ioeventfd: Option<bool>,
    /// The form of the queues.
    pub layout: Layout,
    /// Descriptors of a receive or transmit queue at most, 1 to 32768, where
    /// the interface leaves the driver a choice.
    pub queue_size: Option<u16>,
    /// Descriptors of the device's receive queue: 256, 512 or 1024.
    pub rx_queue_size: Option<u16>,
    /// Whether the device offers receive-side scaling and hash reports.
    pub rss: bool,
    /// The VLAN that the guest and the far end are in, 1 to 4094.
    pub vlan: Option<u16>,
    /// The MTU that the device tells, 68 to 65535 bytes.
    pub mtu: Option<u16>,
    /// Where the guest sends its log.
    pub netconsole: Option<SocketAddrV4>,
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
    /// Options that do not go together.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
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
    /// The trace.
    #[error("cannot trace: {0}")]
    Trace(TraceError),
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

impl From<TraceError> for SessionError {
    fn from(error: TraceError) -> Self {
        match error {
            TraceError::Guest(failure) => Self::Guest(failure),
            other => Self::Trace(other),
        }
    }
}

/// Options that do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The machine has no bus for this transport.
    #[error("--machine {machine} has no {transport} devices: {hint}")]
    Transport {
        /// The machine type.
        machine: Kind,
        /// What it has not.
        transport: Transport,
        /// What to say instead.
        hint: &'static str,
    },
    /// The machine cannot start disk images.
    #[error(
        "--image with --machine microvm: it has no disk that its firmware could start from \
         (--machine pc or q35)"
    )]
    Image,
    /// An option of virtio-mmio on a machine without.
    #[error("--mmio-legacy is for --machine microvm: {0} has no virtio-mmio")]
    MmioLegacy(Kind),
    /// An option of virtio-pci on a machine without.
    #[error("--pio-notify is for --machine pc and q35: {0} has no PCI")]
    PioNotify(Kind),
    /// Packed rings by a legacy interface.
    #[error("--layout packed: legacy interfaces have split rings only ({hint})")]
    Packed {
        /// What to say instead.
        hint: &'static str,
    },
    /// A choice that legacy virtio-pci does not leave.
    #[error(
        "--queue-size: the legacy interface of virtio-pci dictates its queues' sizes \
         (--transport modern, or --rx-queue-size for another device)"
    )]
    QueueSize,
    /// Receive-side scaling by a legacy interface.
    #[error("--rss: legacy interfaces do not have it (--transport modern, no --mmio-legacy)")]
    Rss,
    /// Receive-side scaling at a far end with one queue.
    #[error("--rss: this far end has one queue and no hashes (--net tap has both)")]
    RssFarEnd,
    /// An option for what a measurement decides by itself.
    #[error("{option}: {why}")]
    Decided {
        /// The option.
        option: &'static str,
        /// Why it is not the user's.
        why: &'static str,
    },
    /// A VLAN at a far end that knows none.
    #[error("--vlan: this far end knows no VLANs (--net dgram of `run` does, `trace` too)")]
    Vlan,
}

impl Settings {
    /// Whether the options go together.
    ///
    /// # Errors
    /// Those that do not.
    pub fn check(&self) -> Result<(), Mismatch> {
        let (machine, transport) = (self.kind, self.transport);
        let hint = match (machine, transport) {
            (Kind::Microvm, Transport::Legacy) => {
                Some("it has virtio-mmio only (--mmio-legacy for its legacy version)")
            }
            (Kind::Microvm, Transport::Modern) => Some("it has virtio-mmio only"),
            (Kind::Pc | Kind::Q35, Transport::Mmio) => Some("--machine microvm has them"),
            _ => None,
        };
        if let Some(hint) = hint {
            return Err(Mismatch::Transport {
                machine,
                transport,
                hint,
            });
        }
        let is_legacy_pci = machine != Kind::Microvm && transport != Transport::Modern;
        if self.layout == Layout::Packed && (is_legacy_pci || self.mmio_legacy) {
            let hint = match is_legacy_pci {
                true => "--transport modern",
                false => "without --mmio-legacy",
            };
            return Err(Mismatch::Packed { hint });
        }
        if self.queue_size.is_some() && is_legacy_pci {
            return Err(Mismatch::QueueSize);
        }
        if self.rss && (is_legacy_pci || self.mmio_legacy) {
            return Err(Mismatch::Rss);
        }
        match machine {
            Kind::Microvm if self.image.is_some() => Err(Mismatch::Image),
            Kind::Microvm if self.pio_notify => Err(Mismatch::PioNotify(machine)),
            Kind::Pc | Kind::Q35 if self.mmio_legacy => Err(Mismatch::MmioLegacy(machine)),
            _ => Ok(()),
        }
    }

    /// Whether the options go together, and with this far end.
    ///
    /// # Errors
    /// Those that do not.
    pub fn check_with(&self, net: NetChoice) -> Result<(), Mismatch> {
        if self.vlan.is_some() && net != NetChoice::Dgram {
            return Err(Mismatch::Vlan);
        }
        if self.rss && net != NetChoice::Tap {
            self.check()?;
            return Err(Mismatch::RssFarEnd);
        }
        self.check()
    }

    /// The guest's configuration on a network with these addresses.
    fn config(&self, plan: &Plan) -> Result<Config, SessionError> {
        let mut config = Config {
            log: self.log,
            transport: self.transport,
            irq: self.irq,
            vlan: self.vlan,
            queue_size: self.queue_size,
            netconsole: self.netconsole,
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
        self.check()?;
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
            device: Device {
                mmio_legacy: self.mmio_legacy,
                pio_notify: self.pio_notify,
                ioeventfd: self.ioeventfd,
                mtu: self.mtu,
                rx_queue_size: self.rx_queue_size,
                layout: self.layout,
                rss: self.rss,
            },
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
            Some(named) => {
                let found = Host::detect().find_named(named);
                found.ok_or_else(|| SessionError::NoFile {
                    option: "--qemu",
                    file: named.clone(),
                })
            }
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
