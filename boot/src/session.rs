//! From what the user asked for to a running guest with a far end.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kickpath_abi::config::{Config, ConfigError, Ipv4Cidr, Ipv4Config, Irq, LogLevel, Transport};
use kickpath_abi::status::Status;

use crate::accel::{AccelChoice, Decision, NoKvm};
use crate::command::Sink;
use crate::doctor;
use crate::guest::{Cause, Failure, Guest, Line};
use crate::install::{self, Host, InstallError, Policy, Requirement};
use crate::ports::Services;
use crate::qemu::{
    Accel, Boot, DiskImage, FirmwareError, Kind, Machine, Memory, Net, Nic, NicTransport,
};
use crate::toolchain::{self, BuildOptions, ToolchainError};
use crate::wire::peer::PeerOptions;
use crate::wire::{Dgram, FarEnd, Peer, Plan, PlanError, Recorder, Tap, TapError, WireError};

/// What the guest prints, once, when its network is ready; ` ipv4=` and its
/// address with prefix follow.
pub const UP: &str = "kickpath: up";

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

/// A machine that is ready to start, but for its network.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The machine, with a network device only after `connect`.
    pub machine: Machine,
    /// The accelerator, and why.
    pub decision: Decision,
    /// The addresses.
    pub plan: Plan,
    pcap: Option<PathBuf>,
    transport: Transport,
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
                Boot::Kernel(toolchain::build_kernel(&options, sink)?)
            }
        };
        let mut machine = Machine::new(qemu, self.kind, decision.accel, boot);
        machine.memory = self.memory;
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

impl Prepared {
    /// Puts a network device on this cable into the machine.
    pub fn attach(&mut self, net: Net) {
        let in_process = matches!(net, Net::Dgram { .. });
        let mut nic = Nic::new(net);
        nic.transport = match self.transport {
            Transport::Legacy => NicTransport::Legacy,
            Transport::Modern => NicTransport::Modern,
            Transport::Auto | Transport::Mmio => NicTransport::Transitional,
        };
        if !in_process {
            nic.dump.clone_from(&self.pcap);
        }
        self.machine.nic = Some(nic);
    }

    /// A host of our own at the far end.
    ///
    /// # Errors
    /// The sockets or the file for frames cannot be made.
    pub fn connect_peer(&mut self) -> Result<Peer, SessionError> {
        let wire = self.wire()?;
        self.attach(wire.net());
        let peer = Peer::new(wire, self.plan, PeerOptions::of(&self.plan));
        peer.map_err(system("start the host's end of the cable"))
    }

    /// A bare datagram cable.
    ///
    /// # Errors
    /// As [`Prepared::connect_peer`].
    pub fn wire(&self) -> Result<Dgram, SessionError> {
        let recorder = Recorder::new(self.pcap.as_deref());
        let recorder = recorder.map_err(|source| SessionError::System {
            what: format!("write {}", shown(self.pcap.as_deref())),
            source,
        })?;
        Dgram::new(recorder).map_err(system("make the host's end of the cable"))
    }

    /// A tap device at the far end.
    ///
    /// # Errors
    /// No rights, or no such device.
    pub fn connect_tap(&mut self) -> Result<Tap, SessionError> {
        let tap = Tap::new(&self.plan)?;
        self.attach(tap.net());
        Ok(tap)
    }

    /// Starts QEMU.
    ///
    /// # Errors
    /// It does not start.
    pub fn launch(&self) -> Result<Guest, SessionError> {
        Ok(Guest::launch(&self.machine)?)
    }

    /// Starts QEMU with its user network; its services are forwarded from the
    /// first free ports.
    ///
    /// # Errors
    /// It does not start, or no port is free.
    pub fn launch_forwarded(
        &mut self,
        (http, echo): (u16, u16),
    ) -> Result<(Guest, Services), SessionError> {
        // Between our look and QEMU's bind another program may take a port:
        // then there is a next one.
        let mut tries = 5;
        loop {
            let services = Services::find(http, echo)?;
            self.attach(self.user_net(services));
            tries -= 1;
            match self.launch() {
                Err(SessionError::Guest(failure)) if tries > 0 && failure.is_port_taken() => {}
                other => return Ok((other?, services)),
            }
        }
    }

    /// QEMU's user network with these forwards.
    pub fn user_net(&self, services: Services) -> Net {
        Net::User {
            guest: self.plan.guest,
            gateway: self.plan.host,
            forwards: services.forwards(),
        }
    }

    /// Waits until the guest serves, and returns its address.
    ///
    /// # Errors
    /// It does not get there in time.
    pub fn wait_until_up(&self, guest: &Guest) -> Result<Up, SessionError> {
        let line = guest.wait_for_console(UP, self.accel().boot_bound())?;
        let address = address_of(&line.text).ok_or_else(|| {
            let text = format!("the guest's line '{}' names no IPv4 address", line.text);
            guest.failure(Cause::Other(text))
        })?;
        Ok(Up { line, address })
    }

    /// The accelerator.
    pub fn accel(&self) -> Accel {
        self.decision.accel
    }
}

fn shown(path: Option<&Path>) -> String {
    path.map(|path| path.display().to_string())
        .unwrap_or_default()
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> SessionError {
    move |source| SessionError::System {
        what: what.to_owned(),
        source,
    }
}

/// A guest that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Up {
    /// The line that says so.
    pub line: Line,
    /// The guest's address.
    pub address: Ipv4Cidr,
}

impl Up {
    /// The guest's address without prefix.
    pub fn ip(&self) -> IpAddr {
        self.address.address.into()
    }
}

/// Reads the address in a line such as `kickpath: up ipv4=10.0.2.15/24`.
fn address_of(line: &str) -> Option<Ipv4Cidr> {
    let (_, words) = line.split_once(UP)?;
    let mut words = words.split_ascii_whitespace();
    let value = words.find_map(|word| word.strip_prefix("ipv4="))?;
    let (address, prefix) = value.split_once('/')?;
    let address: Ipv4Addr = address.parse().ok()?;
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
    Some(Ipv4Cidr { address, prefix })
}

/// Fetches the guest's report on itself.
///
/// # Errors
/// No answer, or not the report.
pub fn fetch_status(
    far: &dyn FarEnd,
    ip: IpAddr,
    bound: std::time::Duration,
) -> Result<Status, StatusError> {
    let page = far.http_get(ip, "/stats.json", bound)?;
    if page.status != 200 {
        return Err(StatusError::Code(page.status));
    }
    Ok(serde_json::from_slice(&page.body)?)
}

/// Why there is no report of the guest.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The far end got no answer.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The guest refused.
    #[error("GET /stats.json: status {0} instead of 200")]
    Code(u16),
    /// The answer is something else.
    #[error("GET /stats.json: {0}")]
    Json(#[from] serde_json::Error),
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

    #[test]
    fn the_address_is_read_from_the_guests_line() {
        let line = "[info] kickpath: up ipv4=192.0.2.7/28 ipv6=fe80::1/64";
        let address = address_of(line).unwrap();
        assert_eq!(address.address, Ipv4Addr::new(192, 0, 2, 7));
        assert_eq!(address.prefix, 28);
        for line in [
            "kickpath: up",
            "kickpath: up ipv4=none",
            "kickpath: up ipv4=1.2.3.4/33",
            "ipv4=1.2.3.4/24",
        ] {
            assert_eq!(address_of(line), None, "{line}");
        }
    }
}
