//! The report as metrics: which figure has which name, and which labels.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};
use core::fmt::Display;
use core::slice;

use kickpath_abi::status::{Counters, CpuLoad, Device, Pair, Queue, Status};

use super::prometheus::{Seconds, Text};

/// A family of samples: its name, its help, and the value of each item that has
/// one.
type Family<T> = (&'static str, &'static str, fn(&T) -> u64);

/// As [`Family`], of what is counted when frames are received, and when they are
/// sent.
type ByDirection = (&'static str, &'static str, [Option<Field>; 2]);
type Field = fn(&Counters) -> u64;

type Labels = Vec<(&'static str, String)>;

/// Families of what the fields of an item say: a name, its help, the field.
macro_rules! families {
    ($($name:literal $help:literal $($field:ident).+;)+) => {
        &[$(($name, $help, |item| u64::from(item.$($field).+)),)+]
    };
}

/// Families by direction: a name, its help, the fields of both; `-` for none.
macro_rules! by_direction {
    ($($name:literal $help:literal $receive:tt $transmit:tt;)+) => {
        &[$(($name, $help, [by_direction!(@ $receive), by_direction!(@ $transmit)]),)+]
    };
    (@ -) => { None };
    (@ $field:ident) => { Some(|counters| counters.$field) };
}

const TRAFFIC: &[ByDirection] = by_direction! {
    "packets_total" "Frames since the device was opened." rx_packets tx_packets;
    "bytes_total" "Bytes of those frames, with Ethernet header." rx_bytes tx_bytes;
    "errors_total" "Used buffers with an impossible id or length." rx_errors tx_errors;
    "dropped_total" "Frames that the device gave and the guest did not take." rx_dropped -;
    "waited_total" "Frames that waited because the queue was full." - tx_waited;
    "checksums_offloaded_total" "Frames whose checksum the device verified or filled in."
        rx_checksum_valid tx_checksum_offloaded;
    "hashed_total" "Frames for which the device reported a hash." rx_hashed -;
    "merged_total" "Frames that lay in several buffers." rx_merged -;
    "segmented_total" "Frames that the device cut into segments." - tx_segmented;
    "coalesced_total" "Of those, the ones that the driver has put together of segments."
        - tx_coalesced;
};

const COUNTERS: &[Family<Status>] = families! {
    "kicks_total" "Doorbell writes, each one VM exit." counters.kicks;
    "kicks_suppressed_total" "Kicks that kick_prepare found unnecessary."
        counters.kicks_suppressed;
    "interrupts_total" "Interrupts that were the device's." counters.interrupts;
    "interrupts_spurious_total" "INTx interrupts beside those, whose ISR status was 0."
        counters.interrupts_spurious;
    "kicks_lost_total" "Frames that moved only when the device was notified again."
        counters.kicks_lost;
    "interrupts_lost_total" "Used buffers that no interrupt told of." counters.interrupts_lost;
    "stuck_total" "Times that a queue was given up because the device gave nothing back."
        counters.stuck;
    "recoveries_total" "Times that the device was reset and opened again." outages.recovered;
    "outage_frames_lost_total" "Frames that the device had to send when it was." outages.frames_lost;
    "register_accesses_total" "Accesses to device registers since boot, kicks included."
        counters.register_accesses;
    "impossible_sources_total" "Packets dropped because of where they claim to be from."
        network.impossible_sources;
    "cpu_cycles_total" "TSC cycles since boot." cpu.cycles;
    "cpu_idle_cycles_total" "TSC cycles spent in hlt." cpu.idle_cycles;
    "heap_allocations_total" "Heap allocations since boot." cpu.heap_allocations;
};

/// What belongs to one of a pair's queues.
const PAIR_TRAFFIC: &[ByDirection] = by_direction! {
    "pair_packets_total" "Frames of a queue." rx_packets tx_packets;
    "pair_bytes_total" "Bytes of those frames, with Ethernet header." rx_bytes tx_bytes;
    "pair_errors_total" "Used buffers of a queue with an impossible id or length."
        rx_errors tx_errors;
    "pair_dropped_total" "Frames of a queue that the guest did not take." rx_dropped -;
    "pair_waited_total" "Frames that waited because the queue was full." - tx_waited;
};

const OF_PAIRS: &[Family<Pair>] = families! {
    "pair_kicks_total" "Doorbell writes for a pair's queues, each one VM exit." counters.kicks;
    "pair_kicks_suppressed_total" "Kicks of a pair that kick_prepare found unnecessary."
        counters.kicks_suppressed;
    "pair_interrupts_total" "Interrupts taken by a pair's CPU." counters.interrupts;
    "pair_mail_lost_total" "Messages of other CPUs that found no room in this one's box."
        mail_lost;
};

const OF_CPUS: &[Family<CpuLoad>] = families! {
    "each_cpu_idle_cycles_total" "TSC cycles that a CPU spent in hlt." idle_cycles;
};

const SIZES: &[Family<Status>] = families! {
    "tcp_connections" "TCP connections of the CPU that reports." network.tcp_connections;
    "heap_used_bytes" "Heap in use." cpu.heap_used;
    "heap_size_bytes" "Heap in all." cpu.heap_size;
    "memory_bytes" "Usable memory." boot.memory_bytes;
    "tsc_hertz" "Frequency of the TSC." boot.tsc_hz;
};

const OF_QUEUES: &[Family<Queue>] = families! {
    "queue_size" "Descriptors of the virtqueue." size;
    "queue_free_descriptors" "Descriptors not in use." free;
    "queue_avail_index" "Free-running index of the available ring." avail_idx;
    "queue_used_index" "Free-running index of the used ring." used_idx;
    "queue_last_used_index" "How far the driver has consumed the used ring." last_used_idx;
    "queue_kicks_total" "Doorbell writes since the device was opened." kicks;
    "queue_kicks_suppressed_total"
        "Kicks that kick_prepare found unnecessary since the device was opened."
        kicks_suppressed;
};

/// Writes every figure of the report, and its names as labels.
pub(super) fn write(status: &Status) -> String {
    let mut text = Text::with_capacity(8 * 1024);
    let report = slice::from_ref(status);
    write_info(&mut text, status);
    write_link(&mut text, &status.device);
    let directions = ["receive", "transmit"].map(|queue| vec![("queue", queue.to_string())]);
    write_by_direction(&mut text, TRAFFIC, &[(&status.counters, directions)]);
    write_each(&mut text, COUNTERS, report, |_| vec![]);
    let outages = Seconds(status.outages.total_us);
    let help = "Time without service until it was.";
    write_one(&mut text, "outage_seconds_total", help, outages);
    if !status.pairs.is_empty() {
        write_pairs(&mut text, &status.pairs);
        write_each(&mut text, OF_CPUS, &status.cpus, |cpu| {
            vec![("cpu", cpu.number.to_string())]
        });
    }
    let uptime = Seconds(status.cpu.uptime_us);
    write_one(&mut text, "uptime_seconds", "Time since boot.", uptime);
    write_each(&mut text, SIZES, report, |_| vec![]);
    write_each(&mut text, OF_QUEUES, &status.queues, |queue| {
        let index = ("index", queue.index.to_string());
        vec![("queue", queue.name.clone()), index]
    });
    write_stages(&mut text, status);
    text.finish()
}

/// A family of one sample without labels.
fn write_one(text: &mut Text, name: &str, help: &str, value: impl Display) {
    text.family(name, help);
    text.sample::<&str>(name, &[], value);
}

/// Families with a sample for each item.
fn write_each<T>(
    text: &mut Text,
    families: &[Family<T>],
    items: &[T],
    labels: impl Fn(&T) -> Labels,
) {
    for (name, help, value) in families {
        text.family(name, help);
        for item in items {
            text.sample(name, &labels(item), value(item));
        }
    }
}

/// Families with a sample for each direction, each of which has its labels.
fn write_by_direction(
    text: &mut Text,
    families: &[ByDirection],
    sources: &[(&Counters, [Labels; 2])],
) {
    for (name, help, fields) in families {
        text.family(name, help);
        for (counters, directions) in sources {
            for (field, labels) in fields.iter().zip(directions) {
                if let Some(field) = field {
                    text.sample(name, labels, field(counters));
                }
            }
        }
    }
}

fn write_info(text: &mut Text, status: &Status) {
    let (boot, device) = (&status.boot, &status.device);
    let labels = [
        ("version", &status.version),
        ("boot", &boot.protocol),
        ("hypervisor", &boot.hypervisor),
        ("device", &device.id),
        ("location", &device.location),
        ("transport", &device.transport),
        ("interrupts", &status.interrupts.rung),
        ("mac", &device.mac),
    ];
    text.family("info", "What runs here; the value is 1.");
    text.sample("info", &labels, 1);
}

fn write_link(text: &mut Text, device: &Device) {
    let is_up = u8::from(device.link_up);
    write_one(text, "link_up", "Whether the link is up.", is_up);
    if let Some(speed) = device.speed_mbps {
        let help = "Speed of the link in bits a second.";
        let speed = u64::from(speed) * 1_000_000;
        write_one(text, "link_speed_bits_per_second", help, speed);
    }
    write_one(text, "mtu_bytes", "Largest IP packet.", device.mtu);
}

/// What has been counted of each pair since boot: what belongs to one of its
/// queues with the queue's name, the rest with the pair's number.
fn write_pairs(text: &mut Text, pairs: &[Pair]) {
    let cpu = |pair: &Pair| ("cpu", pair.cpu.to_string());
    let sources = pairs.iter().map(|pair| {
        let name = |queue| ("queue", format!("{queue}{}", pair.number));
        let labels = ["rx", "tx"].map(|queue| vec![name(queue), cpu(pair)]);
        (&pair.counters, labels)
    });
    let sources: Vec<_> = sources.collect();
    write_by_direction(text, PAIR_TRAFFIC, &sources);
    write_each(text, OF_PAIRS, pairs, |pair| {
        vec![("pair", pair.number.to_string()), cpu(pair)]
    });
}

fn write_stages(text: &mut Text, status: &Status) {
    let help = "When a stage of the boot ended, since the first instruction.";
    text.family("boot_stage_end_seconds", help);
    for stage in &status.boot.stages {
        let labels = [("stage", &stage.name)];
        text.sample("boot_stage_end_seconds", &labels, Seconds(stage.end_us));
    }
}
