//! The status report: the driver's part of it. The network stack adds the
//! addresses.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use kickpath_abi::config::{self, Mac};
use kickpath_abi::status::{self, Attempt, Counters, Cpu, Device, Interrupts, Queue, Status};
use virtio_net::net::rss::Rss;
use virtio_net::net::{Duplex, Features, QueuePair, QueueRole, QueueSnapshot, Stats};
use virtio_net::transport::BusName;
use virtio_net::vectors::Rung;

use super::device::Nic;
use crate::arch::{self, time};
use crate::memory::{KernelHal, heap};

fn duplex_word(duplex: Duplex) -> &'static str {
    match duplex {
        Duplex::Half => "half",
        Duplex::Full => "full",
    }
}

/// The report's name for a queue.
fn queue_name(role: QueueRole) -> &'static str {
    match role {
        QueueRole::Receive => "receive",
        QueueRole::Transmit => "transmit",
        QueueRole::Control => "control",
    }
}

/// The configuration word for a rung.
pub fn rung_word(rung: Rung) -> &'static str {
    match rung {
        Rung::MsixPerQueue => config::Irq::Msix,
        Rung::MsixShared => config::Irq::MsixShared,
        Rung::Intx => config::Irq::Intx,
        Rung::Polling => config::Irq::Poll,
    }
    .word()
}

/// A queue pair of this kernel's device.
pub type Pair = QueuePair<KernelHal>;

/// The report as of now, without the network stack's part; `fixed` has what did not
/// change since the device was found.
pub fn status(fixed: &Status, nic: &Nic) -> Status {
    let mut queues = nic.snapshots();
    let transmit = queues.find(|queue| queue.role == QueueRole::Transmit);
    let doorbell = transmit.map(|queue| queue.doorbell.to_string());
    let attempts = nic.attempts().iter().map(|attempt| Attempt {
        rung: rung_word(attempt.rung).to_string(),
        outcome: match attempt.result {
            Ok(()) => "taken".to_string(),
            Err(error) => error.to_string(),
        },
    });
    let info = nic.info();
    let fixed = fixed.clone();
    Status {
        device: Device {
            location: BusName(nic.transport()).to_string(),
            doorbell: doorbell.unwrap_or_default(),
            mac: Mac(info.mac).to_string(),
            mtu: u32::from(info.mtu),
            link_up: info.link_up,
            speed_mbps: info.speed,
            duplex: info.duplex.map_or("", duplex_word).to_string(),
            features_offered: names(info.offered),
            features_negotiated: names(info.negotiated),
            ..fixed.device
        },
        interrupts: Interrupts {
            rung: nic.rung().map_or("", rung_word).to_string(),
            attempts: attempts.collect(),
        },
        queues: nic.snapshots().map(|snapshot| queue(&snapshot)).collect(),
        counters: counters(&nic.stats()),
        rss: nic.rss().map(rss),
        cpu: cpu(),
        ..fixed
    }
}

fn rss(rss: &Rss) -> status::Rss {
    let digits = rss.key().iter().map(|byte| format!("{byte:02x}"));
    status::Rss {
        hash_types: rss.types().names().map(String::from).collect(),
        key: digits.collect(),
        table: rss.table().to_vec(),
    }
}

/// A queue as it is reported.
pub fn queue(queue: &QueueSnapshot) -> Queue {
    Queue {
        name: queue_name(queue.role).to_string(),
        index: queue.index,
        size: queue.size,
        avail_idx: queue.avail_idx,
        used_idx: queue.used_idx,
        last_used_idx: queue.last_used_idx,
        free: queue.free,
        kicks: queue.kicks,
        kicks_suppressed: queue.kicks_suppressed,
    }
}

/// The driver's counters.
pub fn counters(stats: &Stats) -> Counters {
    macro_rules! same {
        ($($name:ident)+) => { Counters { $($name: stats.$name,)+ } };
    }
    same! {
        rx_packets rx_bytes rx_dropped rx_errors rx_merged rx_checksum_valid rx_hashed
        rx_hash_wrong rx_missteered tx_packets tx_bytes tx_waited tx_errors tx_segmented
        tx_checksum_offloaded tx_coalesced kicks kicks_suppressed kicks_lost interrupts
        interrupts_lost interrupts_spurious stuck register_accesses
    }
}

/// What the CPU that booted has done, and the heap.
pub fn cpu() -> Cpu {
    let heap = heap::stats();
    let first = arch::percpu::all().first();
    Cpu {
        uptime_us: time::now(),
        cycles: time::uptime_cycles(),
        idle_cycles: first.map_or(0, |cpu| arch::idle_cycles(cpu)),
        heap_allocations: heap.allocations,
        heap_used: heap.used,
        heap_size: heap.size,
    }
}

/// The names of the features, and `bit N` for one without a name.
fn names(features: Features) -> Vec<String> {
    let mut names: Vec<_> = features.names().map(String::from).collect();
    let mut unknown = features.bits() & !Features::all().bits();
    while unknown != 0 {
        names.push(format!("bit {}", unknown.trailing_zeros()));
        unknown &= unknown - 1;
    }
    names
}
