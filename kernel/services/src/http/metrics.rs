//! The report in Prometheus' text format, version 0.0.4.

use alloc::format;
use alloc::string::String;
use core::fmt::{Display, Write};

use kickpath_abi::status::{Counters, Pair, Queue, Status};

/// Labels of a sample.
type Labels<'a> = &'a [(&'a str, &'a str)];

struct Metrics {
    text: String,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Never goes back; the name ends in `_total`.
    Counter,
    Gauge,
}

/// Microseconds, written as seconds.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

impl Metrics {
    /// Opens a family of samples.
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.line(format_args!("# HELP kickpath_{name} {help}"));
        self.line(format_args!("# TYPE kickpath_{name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.text.push_str("kickpath_");
        self.text.push_str(name);
        let mut separator = '{';
        for (label, value) in labels {
            self.text.push(separator);
            self.text.push_str(label);
            self.text.push_str("=\"");
            for character in value.chars() {
                match character {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
            separator = ',';
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        self.line(format_args!(" {value}"));
    }

    /// A family of one sample without labels.
    fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// A counter with a sample for each direction of the traffic.
    fn by_queue(&mut self, name: &str, help: &str, samples: &[(&str, u64)]) {
        self.family(name, Kind::Counter, help);
        for (queue, value) in samples {
            self.sample(name, &[("queue", queue)], value);
        }
    }

    fn line(&mut self, line: core::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{line}");
    }
}

/// Writes what has been counted of each pair since boot: what belongs to one of
/// its queues with the queue's name, the rest with the pair's number.
fn write_pairs(m: &mut Metrics, pairs: &[Pair]) {
    type Field = fn(&Counters) -> u64;
    let of_queues: [(&str, &str, [Option<Field>; 2]); 5] = [
        (
            "pair_packets_total",
            "Frames of a queue.",
            [Some(|c| c.rx_packets), Some(|c| c.tx_packets)],
        ),
        (
            "pair_bytes_total",
            "Bytes of those frames, with Ethernet header.",
            [Some(|c| c.rx_bytes), Some(|c| c.tx_bytes)],
        ),
        (
            "pair_errors_total",
            "Used buffers of a queue with an impossible id or length.",
            [Some(|c| c.rx_errors), Some(|c| c.tx_errors)],
        ),
        (
            "pair_dropped_total",
            "Frames of a queue that the guest did not take.",
            [Some(|c| c.rx_dropped), None],
        ),
        (
            "pair_waited_total",
            "Frames that waited because the queue was full.",
            [None, Some(|c| c.tx_waited)],
        ),
    ];
    for (name, help, fields) in of_queues {
        m.family(name, Kind::Counter, help);
        for pair in pairs {
            for (queue, field) in ["rx", "tx"].into_iter().zip(fields) {
                let Some(field) = field else { continue };
                let queue = format!("{queue}{}", pair.number);
                let cpu = format!("{}", pair.cpu);
                let labels = [("queue", &*queue), ("cpu", &*cpu)];
                m.sample(name, &labels, field(&pair.counters));
            }
        }
    }
    type PairField = fn(&Pair) -> u64;
    let of_pairs: [(&str, &str, PairField); 4] = [
        (
            "pair_kicks_total",
            "Doorbell writes for a pair's queues, each one VM exit.",
            |pair| pair.counters.kicks,
        ),
        (
            "pair_kicks_suppressed_total",
            "Kicks of a pair that kick_prepare found unnecessary.",
            |pair| pair.counters.kicks_suppressed,
        ),
        (
            "pair_interrupts_total",
            "Interrupts taken by a pair's CPU.",
            |pair| pair.counters.interrupts,
        ),
        (
            "pair_mail_lost_total",
            "Messages of other CPUs that found no room in this one's box.",
            |pair| pair.mail_lost,
        ),
    ];
    for (name, help, field) in of_pairs {
        m.family(name, Kind::Counter, help);
        for pair in pairs {
            let (number, cpu) = (format!("{}", pair.number), format!("{}", pair.cpu));
            m.sample(name, &[("pair", &number), ("cpu", &cpu)], field(pair));
        }
    }
}

/// Writes every figure of the report, and its names as labels.
pub(super) fn write(status: &Status) -> String {
    use Kind::{Counter, Gauge};
    let mut metrics = Metrics {
        text: String::with_capacity(8 * 1024),
    };
    let m = &mut metrics;
    let (device, counters, cpu) = (&status.device, &status.counters, &status.cpu);

    m.family("info", Gauge, "What runs here; the value is 1.");
    let labels = [
        ("version", &*status.version),
        ("boot", &*status.boot.protocol),
        ("hypervisor", &*status.boot.hypervisor),
        ("device", &*device.id),
        ("location", &*device.location),
        ("transport", &*device.transport),
        ("interrupts", &*status.interrupts.rung),
        ("mac", &*device.mac),
    ];
    m.sample("info", &labels, 1);

    m.single(
        "link_up",
        Gauge,
        "Whether the link is up.",
        u8::from(device.link_up),
    );
    if let Some(speed) = device.speed_mbps {
        let help = "Speed of the link in bits a second.";
        let speed = u64::from(speed) * 1_000_000;
        m.single("link_speed_bits_per_second", Gauge, help, speed);
    }
    m.single("mtu_bytes", Gauge, "Largest IP packet.", device.mtu);

    m.by_queue(
        "packets_total",
        "Frames since the device was opened.",
        &[
            ("receive", counters.rx_packets),
            ("transmit", counters.tx_packets),
        ],
    );
    m.by_queue(
        "bytes_total",
        "Bytes of those frames, with Ethernet header.",
        &[
            ("receive", counters.rx_bytes),
            ("transmit", counters.tx_bytes),
        ],
    );
    m.by_queue(
        "errors_total",
        "Used buffers with an impossible id or length.",
        &[
            ("receive", counters.rx_errors),
            ("transmit", counters.tx_errors),
        ],
    );
    m.by_queue(
        "dropped_total",
        "Frames that the device gave and the guest did not take.",
        &[("receive", counters.rx_dropped)],
    );
    m.by_queue(
        "waited_total",
        "Frames that waited because the queue was full.",
        &[("transmit", counters.tx_waited)],
    );
    m.by_queue(
        "checksums_offloaded_total",
        "Frames whose checksum the device verified or filled in.",
        &[
            ("receive", counters.rx_checksum_valid),
            ("transmit", counters.tx_checksum_offloaded),
        ],
    );
    m.by_queue(
        "hashed_total",
        "Frames for which the device reported a hash.",
        &[("receive", counters.rx_hashed)],
    );
    m.by_queue(
        "merged_total",
        "Frames that lay in several buffers.",
        &[("receive", counters.rx_merged)],
    );
    m.by_queue(
        "segmented_total",
        "Frames that the device cut into segments.",
        &[("transmit", counters.tx_segmented)],
    );
    m.by_queue(
        "coalesced_total",
        "Of those, the ones that the driver has put together of segments.",
        &[("transmit", counters.tx_coalesced)],
    );
    let single = [
        (
            "kicks_total",
            "Doorbell writes, each one VM exit.",
            counters.kicks,
        ),
        (
            "kicks_suppressed_total",
            "Kicks that kick_prepare found unnecessary.",
            counters.kicks_suppressed,
        ),
        (
            "interrupts_total",
            "Interrupts that were the device's.",
            counters.interrupts,
        ),
        (
            "interrupts_spurious_total",
            "INTx interrupts beside those, whose ISR status was 0.",
            counters.interrupts_spurious,
        ),
        (
            "register_accesses_total",
            "Accesses to device registers since boot, kicks included.",
            counters.register_accesses,
        ),
        ("cpu_cycles_total", "TSC cycles since boot.", cpu.cycles),
        (
            "cpu_idle_cycles_total",
            "TSC cycles spent in hlt.",
            cpu.idle_cycles,
        ),
        (
            "heap_allocations_total",
            "Heap allocations since boot.",
            cpu.heap_allocations,
        ),
    ];
    for (name, help, value) in single {
        m.single(name, Counter, help, value);
    }

    if !status.pairs.is_empty() {
        write_pairs(m, &status.pairs);
        m.family(
            "each_cpu_idle_cycles_total",
            Counter,
            "TSC cycles that a CPU spent in hlt.",
        );
        for cpu in &status.cpus {
            let number = format!("{}", cpu.number);
            m.sample(
                "each_cpu_idle_cycles_total",
                &[("cpu", &number)],
                cpu.idle_cycles,
            );
        }
    }

    m.single(
        "uptime_seconds",
        Gauge,
        "Time since boot.",
        Seconds(cpu.uptime_us),
    );
    m.single("heap_used_bytes", Gauge, "Heap in use.", cpu.heap_used);
    m.single("heap_size_bytes", Gauge, "Heap in all.", cpu.heap_size);
    m.single(
        "memory_bytes",
        Gauge,
        "Usable memory.",
        status.boot.memory_bytes,
    );
    m.single(
        "tsc_hertz",
        Gauge,
        "Frequency of the TSC.",
        status.boot.tsc_hz,
    );

    type Field = fn(&Queue) -> u64;
    let queue_figures: [(&str, Kind, &str, Field); 7] = [
        (
            "queue_size",
            Gauge,
            "Descriptors of the virtqueue.",
            |queue| queue.size.into(),
        ),
        (
            "queue_free_descriptors",
            Gauge,
            "Descriptors not in use.",
            |queue| queue.free.into(),
        ),
        (
            "queue_avail_index",
            Gauge,
            "Free-running index of the available ring.",
            |queue| queue.avail_idx.into(),
        ),
        (
            "queue_used_index",
            Gauge,
            "Free-running index of the used ring.",
            |queue| queue.used_idx.into(),
        ),
        (
            "queue_last_used_index",
            Gauge,
            "How far the driver has consumed the used ring.",
            |queue| queue.last_used_idx.into(),
        ),
        (
            "queue_kicks_total",
            Counter,
            "Doorbell writes since the device was opened.",
            |queue| queue.kicks,
        ),
        (
            "queue_kicks_suppressed_total",
            Counter,
            "Kicks that kick_prepare found unnecessary since the device was opened.",
            |queue| queue.kicks_suppressed,
        ),
    ];
    for (name, kind, help, field) in queue_figures {
        m.family(name, kind, help);
        for queue in &status.queues {
            let index = format!("{}", queue.index);
            m.sample(
                name,
                &[("queue", &queue.name), ("index", &index)],
                field(queue),
            );
        }
    }

    m.family(
        "boot_stage_end_seconds",
        Gauge,
        "When a stage of the boot ended, since the first instruction.",
    );
    for stage in &status.boot.stages {
        let labels = [("stage", &*stage.name)];
        m.sample("boot_stage_end_seconds", &labels, Seconds(stage.end_us));
    }
    metrics.text
}
