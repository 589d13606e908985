//! The report in Prometheus' text format, version 0.0.4.

use alloc::string::String;
use core::fmt::{Display, Write};

use kickpath_abi::status::{Queue, Status};

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

    type Field = fn(&Queue) -> u16;
    let queue_gauges: [(&str, &str, Field); 5] = [
        ("queue_size", "Descriptors of the virtqueue.", |q| q.size),
        ("queue_free_descriptors", "Descriptors not in use.", |q| {
            q.free
        }),
        (
            "queue_avail_index",
            "Free-running index of the available ring.",
            |q| q.avail_idx,
        ),
        (
            "queue_used_index",
            "Free-running index of the used ring.",
            |q| q.used_idx,
        ),
        (
            "queue_last_used_index",
            "How far the driver has consumed the used ring.",
            |q| q.last_used_idx,
        ),
    ];
    for (name, help, field) in queue_gauges {
        m.family(name, Gauge, help);
        for queue in &status.queues {
            let index = alloc::format!("{}", queue.index);
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
