//! The network of this kernel: the device, the stack on it, and the loop that
//! drives both.

mod bench;
mod control_steps;
mod cores;
mod device;
mod extras;
mod first;
pub mod gateway;
mod host;
mod idle;
mod interrupts;
mod netconsole;
mod presence;
mod report;
mod select;
mod serve;
mod trace_cost;
mod watch;

use kickpath_abi::config::{self, Config};
use kickpath_abi::status::Boot;
use kickpath_trace::RING;
use virtio_net::net::{Features, NetError, Options};
use virtio_net::vectors::Rung;

use crate::arch::time;
use crate::memory::heap;
use crate::stages;
use host::Host;
use interrupts::Controller;
use presence::Presence;
use select::{Found, SelectError};

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    Select(#[from] SelectError),
    #[error(transparent)]
    Bench(#[from] bench::BenchError),
    #[error("bench=peer: this kernel is built without the feature `peer`")]
    NoPeer,
}

/// Finds the device, brings it up and runs the measurement or the services
/// that `config` names. Returns when the measurement is over or when there is
/// no network to be had.
pub fn run(config: &Config, boot: Boot) -> Result<(), NetworkError> {
    if config.trace {
        // SAFETY: the other CPUs have no job yet, and so no tracepoint.
        unsafe { RING.start(time::cycles) };
    }
    #[cfg(feature = "peer")]
    if config.bench == config::Bench::Peer {
        return Ok(bench::peer(config)?);
    }
    if !config.fault.is_empty() {
        start_fault(&config.fault);
    }
    // The network stack serves all.
    let options = Options::serving(Features::OPT_IN).refusing(refused_features(config));
    let host = select::select(config, options, |found| {
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
        config::Bench::Off => first::serve(config, host),
        config::Bench::Tx => bench::transmit(host.nic)?,
        config::Bench::Rx => bench::receive(host.nic, config)?,
        config::Bench::Udp => bench::datagrams(host.nic)?,
        config::Bench::Kick => bench::kick(host.nic)?,
        config::Bench::Trace => trace_cost::measure(),
        config::Bench::Peer => return Err(NetworkError::NoPeer),
    }
    Ok(())
}

/// Begins an experiment of `kickpath lab`, of which a kernel in use has none.
fn start_fault(words: &str) {
    #[cfg(feature = "faults")]
    if virtio_net::faults::start(words) {
        return log::info!("lab: experiment {words}");
    }
    log::error!("lab: this kernel has no experiment {words}");
}

/// Brings a device up as `config` says.
fn open(config: &Config, boot: &Boot, found: Found) -> Result<Host, NetError> {
    let fixed = found.fixed(boot.clone());
    let presence = Presence::of(&found.device);
    let controller = Controller::new(found.device.clone());
    let mut host = Host::new(found.nic, controller, top_rung(config.irq), fixed, presence);
    if let Some(mtu) = config.mtu
        && let Err(error) = host.nic.change_mtu(mtu)
    {
        log::error!("mtu: {error}");
    }
    let mut pairs = 1;
    if config.bench == config::Bench::Off {
        pairs = cores::wanted_pairs(config);
        host.nic.set_queue_pairs(pairs);
    }
    let affordable = || affordable_queue_size(heap::stats().size, pairs);
    let size = config.queue_size.unwrap_or_else(affordable);
    host.nic.set_queue_size(size);
    host.nic.set_hash_check(config.hash_check);
    host.open()?;
    Ok(host)
}

/// Descriptors of a queue, a power of two, whose buffers of 2 KiB take at most three quarters
/// of so much memory, in bytes, with so many pairs of queues.
fn affordable_queue_size(memory: u64, pairs: u16) -> u16 {
    let each = 2 * 2048 * u64::from(pairs.max(1));
    let most = (memory / 4 * 3 / each).max(1).ilog2();
    1 << most.min(15)
}

/// Features not to accept: what the configuration says, and segments for the device to cut
/// where so little memory has no room for their 8 buffers of 64 KiB.
fn refused_features(config: &Config) -> Features {
    const ENOUGH: u64 = 2 << 20;
    let no_room = match heap::stats().size {
        ENOUGH.. => Features::empty(),
        _ => Features::HOST_TSO4 | Features::HOST_TSO6,
    };
    let named = config
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
        .collect::<Features>();
    named | no_room
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
