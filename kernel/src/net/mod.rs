//! The network of this kernel: the device, the stack on it, and the loop that
//! drives both.

mod bench;
mod cores;
mod device;
mod idle;
mod interrupts;
mod netconsole;
mod probe;
mod report;
mod serve;
mod trace_cost;
mod vlan;
mod wishes;

use core::fmt;

use kickpath_abi::config::{self, Config};
use kickpath_abi::status::Boot;
use kickpath_trace::RING;
use virtio_net::net::{Features, NetError};
use virtio_net::vectors::Rung;

use crate::stages;
use interrupts::Controller;
use probe::Found;
use report::Fixed;
use serve::Host;

/// Why there is no network.
#[derive(Debug)]
pub enum NetworkError {
    /// No virtio network device was found.
    NoDevice,
    /// Every one that was found is unusable; each was reported.
    NoUsableDevice,
    /// No device offers the transport that was asked for.
    NoTransport(config::Transport),
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
            Self::Bench(error) => error.fmt(f),
        }
    }
}

/// Finds the device, brings it up and runs the measurement or the services
/// that `config` names. Returns when the measurement is over or when there is
/// no network to be had.
pub fn run(config: &Config, boot: Boot) -> Result<(), NetworkError> {
    if config.trace {
        // SAFETY: the other CPUs have no job yet, and so no tracepoint.
        unsafe { RING.start() };
    }
    let mut host = probe::probe(config, refused_features(config), |found| {
        stages::ended("device probed");
        open(config, &boot, found)
    })?;
    stages::ended("device open");
    for attempt in host.nic.attempts() {
        match attempt.result {
            Ok(()) => log::info!("interrupts: {}", attempt.rung),
            Err(error) => log::info!("interrupts: not {}: {error}", attempt.rung),
        }
    }
    match config.bench {
        config::Bench::Off => serve::serve(config, host),
        config::Bench::Tx => bench::transmit(host.nic).map_err(NetworkError::Bench),
        config::Bench::Udp => {
            let (nic, fixed) = host.parts();
            bench::datagrams(nic, fixed).map_err(NetworkError::Bench)
        }
        config::Bench::Kick => bench::kick(host.nic).map_err(NetworkError::Bench),
        config::Bench::Trace => {
            trace_cost::measure();
            Ok(())
        }
    }
}

/// Brings a device up as `config` says.
fn open(config: &Config, boot: &Boot, found: Found) -> Result<Host, NetError> {
    let fixed = Fixed::new(boot.clone(), &found);
    let controller = Controller::new(found.device.clone());
    let mut host = Host::new(found.nic, controller, top_rung(config.irq), fixed);
    if let Some(mtu) = config.mtu
        && let Err(error) = host.nic.change_mtu(mtu)
    {
        log::error!("mtu: {error}");
    }
    if let Some(size) = config.queue_size {
        host.nic.set_queue_size(size);
    }
    host.nic.set_hash_check(config.hash_check);
    if config.bench == config::Bench::Off {
        host.nic.set_queue_pairs(cores::wanted_pairs(config));
    }
    host.open()?;
    Ok(host)
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
