//! The network of this kernel: the device, the stack on it, and the loop that
//! drives both.

mod bench;
mod device;
mod interrupts;
mod probe;
mod report;

use core::fmt;

use kickpath_abi::config::{self, Config};
use kickpath_abi::status::Boot;
use kickpath_services::Stack;
use kickpath_trace::{Event, NO_QUEUE, RING, tracepoint_unless_repeated};
use smoltcp::time::Instant;
use virtio_net::net::{Changes, Features, NetError};
use virtio_net::vectors::Rung;
use x86_64::instructions::interrupts as interrupts_at_cpu;

use crate::arch::{self, time};
use crate::stages;
use device::{Nic, PhyDevice};
use interrupts::Controller;
use report::Fixed;

/// A device that broke is opened again at most this often, in microseconds:
/// one that breaks at once must not keep the CPU busy.
const REOPEN_INTERVAL_US: u64 = 1_000_000;

/// Without interrupts, how long the loop looks for work before it sleeps, in
/// microseconds.
const POLL_SPIN_US: u64 = 200;
/// Without interrupts, how long it then sleeps, in microseconds.
const POLL_SLEEP_US: u64 = 1_000;

/// Without interrupts, how often the loop asks the device whether its
/// configuration has changed, in microseconds. Each time costs exits.
const CONFIG_INTERVAL_US: u64 = 100_000;

/// Why there is no network.
#[derive(Debug)]
pub enum NetworkError {
    /// No virtio network device was found.
    NoDevice,
    /// Every one that was found is unusable; each was reported.
    NoUsableDevice,
    /// No device offers the transport that was asked for.
    NoTransport(config::Transport),
    /// The device failed.
    Device(NetError),
    /// The measurement failed.
    Bench(bench::BenchError),
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => f.write_str("there is no virtio network device"),
            Self::NoUsableDevice => f.write_str("no virtio network device is usable"),
            Self::NoTransport(transport) => {
                write!(f, "no virtio network device offers transport={transport}")
            }
            Self::Device(error) => error.fmt(f),
            Self::Bench(error) => error.fmt(f),
        }
    }
}

impl From<NetError> for NetworkError {
    fn from(error: NetError) -> Self {
        Self::Device(error)
    }
}

/// The device together with what it takes to open it again.
struct Host {
    nic: Nic,
    controller: Controller,
    top: Rung,
    fixed: Fixed,
    reopen_at: u64,
    /// When to look at the device's configuration next, without interrupts.
    look_at_config_at: u64,
}

/// Finds the device, brings it up and runs the measurement or the services
/// that `config` names. Returns when the measurement is over or when there is
/// no network to be had.
pub fn run(config: &Config, boot: Boot) -> Result<(), NetworkError> {
    if config.trace {
        // SAFETY: the other CPUs have no job yet, and so no tracepoint.
        unsafe { RING.start() };
    }
    let found = probe::probe(config, refused_features(config))?;
    stages::ended("device probed");
    let mut host = Host {
        controller: Controller::new(found.device.line()),
        top: top_rung(config.irq),
        fixed: Fixed::new(boot, &found),
        nic: found.nic,
        reopen_at: 0,
        look_at_config_at: 0,
    };
    host.nic.open(&mut host.controller, host.top)?;
    stages::ended("device open");
    for attempt in host.nic.attempts() {
        match attempt.result {
            Ok(()) => log::info!("interrupts: {}", attempt.rung),
            Err(error) => log::info!("interrupts: not {}: {error}", attempt.rung),
        }
    }
    match config.bench {
        config::Bench::Off => serve(config, host),
        config::Bench::Tx => bench::transmit(&mut host.nic).map_err(NetworkError::Bench),
    }
}

fn refused_features(config: &Config) -> Features {
    config
        .features_off
        .split(',')
        .filter(|name| !name.is_empty())
        .filter_map(|name| {
            let feature = Features::by_name(name);
            if feature.is_none() {
                log::warn!("configuration features: there is no feature '{name}'");
            }
            feature
        })
        .collect()
}

/// The rung from which the ladder is climbed down.
fn top_rung(irq: config::Irq) -> Rung {
    match irq {
        config::Irq::Auto | config::Irq::Msix => Rung::MsixPerQueue,
        config::Irq::MsixShared => Rung::MsixShared,
        config::Irq::Intx => Rung::Intx,
        config::Irq::Poll => Rung::Polling,
    }
}

/// Serves the network for ever.
fn serve(config: &Config, mut host: Host) -> ! {
    let mut stack = {
        let mac = host.nic.info().mac;
        let mut device = PhyDevice {
            nic: &mut host.nic,
            fixed: &host.fixed,
        };
        Stack::new(config, mac, &mut device, now(), time::cycles())
    };
    stages::ended("network up");
    host.fixed.boot.stages = stages::report();
    let mut announced = false;
    let mut last_work = time::now();
    loop {
        host.look_after_device();
        let time = now();
        let mut device = PhyDevice {
            nic: &mut host.nic,
            fixed: &host.fixed,
        };
        let busy = stack.poll(time, &mut device);
        host.nic.kick();
        if !announced {
            announced = announce(&stack);
        }
        if busy {
            last_work = time::now();
            continue;
        }
        let deadline = stack
            .poll_at(time)
            .map(|at| u64::try_from(at.total_micros()).unwrap_or(0));
        host.idle(deadline, last_work);
    }
}

/// Prints the line that the runner waits for, once there is an IPv4 address.
fn announce(stack: &Stack) -> bool {
    let network = stack.network();
    let Some(ipv4) = network.ipv4.first() else {
        return false;
    };
    log::info!("kickpath: up ipv4={ipv4}");
    true
}

fn now() -> Instant {
    Instant::from_micros(i64::try_from(time::now()).unwrap_or(i64::MAX))
}

impl Host {
    /// Begins a poll of the device, and opens it again when it broke.
    fn look_after_device(&mut self) {
        let mut result = self.nic.poll();
        if result == Ok(Changes::empty()) && self.nic.rung() == Some(Rung::Polling) {
            result = self.look_at_config_now_and_then();
        }
        match result {
            Ok(changes) if changes.is_empty() => (),
            Ok(changes) => self.changed(changes),
            Err(NetError::NotOpen) if time::now() < self.reopen_at => (),
            Err(error) => self.reopen(&error),
        }
    }

    fn look_at_config_now_and_then(&mut self) -> Result<Changes, NetError> {
        let now = time::now();
        if now < self.look_at_config_at {
            return Ok(Changes::empty());
        }
        self.look_at_config_at = now + CONFIG_INTERVAL_US;
        self.nic.look_at_config()
    }

    #[cold]
    fn changed(&self, changes: Changes) {
        if changes.contains(Changes::LINK) {
            let up = self.nic.info().link_up;
            log::info!("the link is {}", if up { "up" } else { "down" });
        }
    }

    #[cold]
    fn reopen(&mut self, error: &NetError) {
        log::error!("{error}");
        let now = time::now();
        if now < self.reopen_at {
            // It broke again within the interval: wait it out, closed.
            self.nic.stop(&mut self.controller);
            return;
        }
        self.reopen_at = now + REOPEN_INTERVAL_US;
        match self.nic.open(&mut self.controller, self.top) {
            Ok(()) => log::info!("the device was reset and opened again"),
            Err(error) => log::error!("the device could not be opened again: {error}"),
        }
    }

    /// Sleeps until there may be something to do: an interrupt, or `deadline`
    /// in microseconds since boot.
    fn idle(&mut self, deadline: Option<u64>, last_work: u64) {
        let now = time::now();
        let mut deadline = deadline.unwrap_or(u64::MAX);
        match self.nic.rung() {
            Some(Rung::Polling) if now < last_work + POLL_SPIN_US => {
                core::hint::spin_loop();
                return;
            }
            Some(Rung::Polling) => deadline = deadline.min(now + POLL_SLEEP_US),
            Some(_) => (),
            None => deadline = deadline.min(self.reopen_at),
        }
        interrupts_at_cpu::disable();
        // From here an interrupt waits until the CPU sleeps, and wakes it.
        let work = match self.nic.rung() {
            Some(Rung::Polling) | None => self.nic.has_work(),
            Some(_) => self.nic.enable_interrupts(),
        };
        if !work && deadline > now {
            tracepoint_unless_repeated!(Event::Idle, NO_QUEUE);
            arch::idle_until((deadline != u64::MAX).then_some(deadline));
        }
        interrupts_at_cpu::enable();
    }
}
