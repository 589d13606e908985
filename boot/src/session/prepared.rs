//! A machine made of what the user asked for, and its far end.

use std::fs;
use std::path::{Path, PathBuf};

use kickpath_abi::config::{Config, ConfigError};

use super::error::SessionError;
use super::settings::{Layout, Settings};
use crate::accel::Decision;
use crate::command::{Progress, Sink};
use crate::doctor;
use crate::guest::Guest;
use crate::image;
use crate::install::{self, Host, Policy, Requirement};
use crate::output::Output;
use crate::ports::Services;
use crate::qemu::{Accel, Boot, DiskImage, FirmwareError, GUEST_MAC, Machine, Net, Nic, Vmm};
use crate::toolchain::{self, BuildOptions, Kernel};
use crate::wire::peer::PeerOptions;
use crate::wire::{Capture, Dgram, Peer, Plan, Recorder, Tap};

/// A machine that is ready to start, but for its network.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The machine, with a network device only after `connect`.
    pub machine: Machine,
    /// The accelerator, and why.
    pub decision: Decision,
    /// The addresses.
    pub plan: Plan,
    /// The executable that the machine's bzImage was made of.
    executable: Option<PathBuf>,
    pcap: Option<Capture>,
    device: Device,
}

/// What the user asked for of the network device.
#[derive(Clone, Copy, Debug)]
struct Device {
    mmio_legacy: bool,
    pio_notify: bool,
    ioeventfd: Option<bool>,
    mtu: Option<u16>,
    rx_queue_size: Option<u16>,
    layout: Layout,
    rss: bool,
}

impl Prepared {
    /// Puts a network device on this cable into the machine.
    pub fn attach(&mut self, net: Net) {
        let mac = self.machine.config.mac.unwrap_or(GUEST_MAC);
        let (in_process, tap) = match net {
            Net::Dgram { .. } => (true, None),
            Net::User { .. } => (false, None),
            Net::TapFds(_) | Net::TapName { .. } => (false, Some(mac)),
        };
        let mut nic = Nic::new(net);
        // A transitional device offers both interfaces; the guest's
        // configuration says which to take.
        nic.mmio_legacy = self.device.mmio_legacy;
        nic.pio_notify = self.device.pio_notify;
        nic.ioeventfd = self.device.ioeventfd;
        nic.mtu = self.device.mtu;
        nic.rx_queue_size = self.device.rx_queue_size;
        nic.packed = self.device.layout == Layout::Packed;
        nic.rss = self.device.rss;
        if !in_process {
            nic.dump = self.pcap.as_ref().map(|pcap| pcap.for_qemu(tap));
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

    /// A bare datagram cable, in the guest's VLAN.
    ///
    /// # Errors
    /// As [`Prepared::connect_peer`].
    pub fn wire(&self) -> Result<Dgram, SessionError> {
        let recorder = Recorder::new(self.pcap.clone())?;
        let wire = Dgram::in_vlan(recorder, self.machine.config.vlan);
        wire.map_err(system("make the host's end of the cable"))
    }

    /// A tap device at the far end, with a queue for each CPU that QEMU has.
    ///
    /// # Errors
    /// No rights, or no such device.
    pub fn connect_tap(&mut self) -> Result<Tap, SessionError> {
        let tap = match self.machine.vmm {
            Vmm::Qemu => Tap::new(&self.plan, self.machine.cpus.into())?,
            _ => {
                let mut tap = Tap::new(&self.plan, 1)?;
                tap.hand_over()?;
                tap
            }
        };
        if let Some(mtu) = self.device.mtu {
            tap.set_mtu(mtu)?;
        }
        self.attach(tap.net());
        Ok(tap)
    }

    /// Starts the VMM.
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

    /// What the machine boots, as the executable that has its symbols.
    pub fn executable(&self) -> Boot {
        match &self.executable {
            Some(executable) => Boot::Kernel(executable.clone()),
            None => self.machine.boot.clone(),
        }
    }

    /// The accelerator.
    pub fn accel(&self) -> Accel {
        self.decision.accel
    }
}

impl Settings {
    /// The guest's configuration on a network with these addresses.
    fn config(&self, plan: &Plan) -> Result<Config, SessionError> {
        let mut config = Config {
            log: self.log,
            transport: self.transport,
            irq: self.irq,
            vlan: self.vlan,
            queue_size: self.queue_size,
            netconsole: self.netconsole,
            udp: self.udp,
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

    /// Ends the record of frames, when all that was started has ended.
    ///
    /// # Errors
    /// That of `result`, or the record misses frames.
    pub fn keep_pcap<T>(&self, result: Result<T, SessionError>) -> Result<T, SessionError> {
        let kept = self.pcap.as_ref().map_or(Ok(()), Capture::keep);
        match (&result, kept) {
            (Ok(_), Err(error)) => Err(error.into()),
            (Err(_), Err(error)) => {
                log::warn!("{error}");
                result
            }
            (_, Ok(())) => result,
        }
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
        if let (Some(pcap), false) = (&self.pcap, dry_run) {
            pcap.open()?;
        }
        let decision = match self.vmm {
            Vmm::Qemu => Decision::new(self.accel, &doctor::kvm())?,
            vmm => Decision::for_vmm(vmm, &doctor::kvm())?,
        };
        let program = self.program(dry_run, sink)?;
        let boot = match (&self.image, &self.kernel) {
            (Some(image), _) => Boot::Disk(self.disk(image, dry_run, sink)?),
            (None, Some(kernel)) => {
                SessionError::check_file("--kernel", kernel)?;
                Boot::Kernel(kernel.clone())
            }
            (None, None) if dry_run => {
                let target = toolchain::target_directory(&toolchain::workspace()?);
                let directory = target.join("kernel").join(toolchain::TARGET);
                Boot::Kernel(directory.join("guest").join(toolchain::KERNEL))
            }
            (None, None) => {
                let options = BuildOptions::from_env(self.policy)?;
                let kernel = toolchain::build_kernel(Kernel::Plain, &options, sink)?;
                sink(Progress::Step(&format!("Starting {}", self.vmm)));
                Boot::Kernel(kernel)
            }
        };
        let (boot, executable) = match boot {
            Boot::Kernel(kernel) if self.vmm.wants_bzimage() => {
                let bzimage = self.bzimage(&kernel, dry_run)?;
                (Boot::Kernel(bzimage), Some(kernel))
            }
            boot => (boot, None),
        };
        let mut machine = Machine::new(program, self.kind, decision.accel, boot);
        machine.vmm = self.vmm;
        machine.memory = self.memory;
        machine.cpus = self.cpus;
        machine.config = config;
        Ok(Prepared {
            machine,
            decision,
            plan,
            executable,
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

    /// The kernel as a bzImage, beside the guests that are built.
    fn bzimage(&self, kernel: &Path, dry_run: bool) -> Result<PathBuf, SessionError> {
        let directory = toolchain::target_directory(&toolchain::workspace()?).join("kernel");
        let file = directory.join("kickpath.bzimage");
        if !dry_run {
            fs::create_dir_all(&directory).map_err(system("make a directory"))?;
            // Another run may just read the one that was there.
            Output::create(&file)?.write(&image::make_bzimage(kernel)?)?;
        }
        Ok(file)
    }

    fn program(&self, dry_run: bool, sink: &mut Sink<'_>) -> Result<PathBuf, SessionError> {
        const PROGRAM: &str = "qemu-system-x86_64";
        if let Some(named) = &self.vmm_path {
            if let Some(found) = Host::detect().find_named(named) {
                return Ok(found);
            }
            SessionError::check_file("--vmm-path", named)?;
            return Ok(named.clone());
        }
        if self.vmm != Vmm::Qemu {
            let found = self.vmm.find(&Host::detect());
            return found.ok_or(SessionError::NoVmm { vmm: self.vmm });
        }
        match &self.qemu {
            Some(named) => {
                if let Some(found) = Host::detect().find_named(named) {
                    return Ok(found);
                }
                SessionError::check_file("--qemu", named)?;
                Ok(named.clone())
            }
            None if dry_run => Ok(PROGRAM.into()),
            None => Ok(install::qemu(self.policy, sink)?),
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

fn system(what: &'static str) -> impl Fn(std::io::Error) -> SessionError {
    move |source| SessionError::System {
        what: what.to_owned(),
        source,
    }
}
