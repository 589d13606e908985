//! The guest's report on itself, as `/stats.json` serves it and the runner
//! reads it back. Fields are only ever added.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// The whole report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the guest's kernel.
    pub version: String,
    /// How the guest came up.
    pub boot: Boot,
    /// The network device and what was agreed with it.
    pub device: Device,
    /// The interrupt ladder (Linux `vp_find_vqs`).
    pub interrupts: Interrupts,
    /// The virtqueues as the driver sees them now.
    pub queues: Vec<Queue>,
    /// The IP configuration.
    pub network: Network,
    /// What has been counted since [`Device`] was opened.
    pub counters: Counters,
    /// When there was no service, because the device broke or was taken out.
    #[serde(default)]
    pub outages: Outages,
    /// The queue pairs where there are several, each with its part of
    /// `counters`.
    #[serde(default)]
    pub pairs: Vec<Pair>,
    /// How the device hashes what it receives, where it does.
    #[serde(default)]
    pub rss: Option<Rss>,
    /// What the CPU that booted has done since then.
    pub cpu: Cpu,
    /// All CPUs, where there are several queue pairs.
    #[serde(default)]
    pub cpus: Vec<CpuLoad>,
}

/// How the guest came up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    /// `PVH`, `bzImage`, `BIOS` or `UEFI`.
    pub protocol: String,
    /// The hypervisor's CPUID signature (leaf 0x4000_0000), such as `KVMKVMKVM`
    /// or `TCGTCGTCGTCG`; empty when there is none.
    pub hypervisor: String,
    /// The configuration words that were in force.
    pub configuration: String,
    /// Stages in the order in which they ended.
    pub stages: Vec<Stage>,
    /// Frequency of the time stamp counter in Hz.
    pub tsc_hz: u64,
    /// What told the frequency, such as `KVM leaf` or `PIT`.
    pub tsc_source: String,
    /// Bytes of usable memory in the firmware's map.
    pub memory_bytes: u64,
}

/// A stage of the boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// What was done.
    pub name: String,
    /// When it ended, in microseconds since the kernel's first instruction.
    pub end_us: u64,
}

/// The network device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Where it was found, such as `PCI 00:02.0`.
    pub location: String,
    /// Vendor and device id, such as `1af4:1000`.
    pub id: String,
    /// `legacy`, `modern` or `mmio` (the words of `transport=`).
    pub transport: String,
    /// Other transports that the device offers.
    pub transport_alternatives: Vec<String>,
    /// Where the registers are, such as `ports from 0xc040 (BAR 0)`.
    #[serde(default)]
    pub transport_place: String,
    /// What a kick would be by each of the other transports, such as `modern:
    /// movw to 0xfe003000 (BAR 4)`.
    #[serde(default)]
    pub alternative_kicks: Vec<String>,
    /// The one access that a kick of the transmit queue is, such as
    /// `outw 1 -> port 0xc010`.
    pub doorbell: String,
    /// Hardware address, `xx:xx:xx:xx:xx:xx`.
    pub mac: String,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Whether the link is up; `true` when the device cannot tell.
    pub link_up: bool,
    /// Speed of the link in Mbit/s; `None` when the device does not tell.
    #[serde(default)]
    pub speed_mbps: Option<u32>,
    /// `half` or `full`; empty when the device does not tell.
    #[serde(default)]
    pub duplex: String,
    /// Names of the features that the device offers.
    pub features_offered: Vec<String>,
    /// Names of the features that driver and device agreed on.
    pub features_negotiated: Vec<String>,
}

/// The interrupt ladder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interrupts {
    /// The rung taken: a word of `irq=`.
    pub rung: String,
    /// Every rung that was tried, in order, the one taken last.
    pub attempts: Vec<Attempt>,
}

/// A rung that was tried.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// A word of `irq=`.
    pub rung: String,
    /// `taken`, or why it failed.
    pub outcome: String,
}

/// A virtqueue as the driver sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Queue {
    /// `receive`, `transmit` or `control`.
    pub name: String,
    /// Index of the queue at the device.
    pub index: u16,
    /// Number of descriptors.
    pub size: u16,
    /// The driver's free-running index of the available ring.
    pub avail_idx: u16,
    /// The device's free-running index of the used ring.
    pub used_idx: u16,
    /// How far the driver has consumed the used ring.
    pub last_used_idx: u16,
    /// Chains that can be added; to the control queue one at a time.
    pub free: u16,
    /// Doorbell writes, each one VM exit.
    #[serde(default)]
    pub kicks: u64,
    /// Kicks that `kick_prepare` found unnecessary.
    #[serde(default)]
    pub kicks_suppressed: u64,
}

/// The IP configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// IPv4 addresses with prefix.
    pub ipv4: Vec<String>,
    /// IPv6 addresses with prefix.
    pub ipv6: Vec<String>,
    /// Default IPv4 gateway, empty when none.
    pub gateway: String,
    /// Where the IPv4 address came from: `static`, `dhcp`, `fallback`.
    pub ipv4_source: String,
    /// Packets dropped because of where they claim to be from: an address that no
    /// host has, or ours.
    #[serde(default)]
    pub impossible_sources: u64,
    /// TCP connections of the CPU that reports, half-open ones and that of the report
    /// included.
    #[serde(default)]
    pub tcp_connections: u64,
}

/// What has been counted. All counters start at 0 and never go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Frames received and handed to the network stack.
    pub rx_packets: u64,
    /// Bytes of those frames, Ethernet header included, checksum not.
    pub rx_bytes: u64,
    /// Frames that the device gave us and we did not take.
    pub rx_dropped: u64,
    /// Used buffers with an impossible id or length.
    pub rx_errors: u64,
    /// Frames put into the transmit queue.
    pub tx_packets: u64,
    /// Bytes of those frames, Ethernet header included, checksum not.
    pub tx_bytes: u64,
    /// Frames that waited because the transmit queue was full.
    pub tx_waited: u64,
    /// Used transmit buffers with an impossible id.
    pub tx_errors: u64,
    /// Received frames that lay in several buffers.
    pub rx_merged: u64,
    /// Received frames whose checksum the device vouched for.
    pub rx_checksum_valid: u64,
    /// Received frames for which the device reported a hash.
    pub rx_hashed: u64,
    /// Of those that were verified, frames with a wrong hash or a wrong type of
    /// it (`hash-check=on`).
    pub rx_hash_wrong: u64,
    /// Of those that were verified, frames that came to another pair than the
    /// table of RSS says.
    pub rx_missteered: u64,
    /// Sent frames whose checksum the device filled in.
    pub tx_checksum_offloaded: u64,
    /// Sent frames that the device cut into segments.
    pub tx_segmented: u64,
    /// Of those, the ones that the driver has put together of segments over
    /// IPv6.
    pub tx_coalesced: u64,
    /// Frames that moved only when the watchdog had the device notified again.
    pub kicks_lost: u64,
    /// Used buffers that no interrupt told of; the watchdog found them.
    pub interrupts_lost: u64,
    /// Times that the watchdog gave a queue up because the device gave nothing
    /// back.
    pub stuck: u64,
    /// Kicks: doorbell writes, each one VM exit.
    pub kicks: u64,
    /// Kicks that `kick_prepare` found unnecessary.
    pub kicks_suppressed: u64,
    /// Interrupts that were the device's.
    pub interrupts: u64,
    /// INTx interrupts beside those, whose ISR status was 0: the line is
    /// shared, or came twice.
    pub interrupts_spurious: u64,
    /// Accesses to device registers since boot, kicks included.
    pub register_accesses: u64,
}

/// What it has cost that the device had to be reset and opened again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outages {
    /// Times that it was.
    pub recovered: u64,
    /// Microseconds without service, of all of them: from when it was found, or the
    /// first look of the watchdog that found nothing moved, until it was open.
    pub total_us: u64,
    /// Of these, the last one's.
    pub last_us: u64,
    /// Frames that the device had to send and had not given back.
    pub frames_lost: u64,
}

impl Outages {
    /// The guest resets its device and opens it again within so many microseconds of its own
    /// clock, when an instruction takes it 1 ns. A test holds it to that over each transport.
    pub const RESET_US: u64 = 1000;
}

/// A pair of queues, and the CPU that works with it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Its number, from 0.
    pub number: u16,
    /// The CPU's number, from 0.
    pub cpu: u16,
    /// Entries of the table of RSS that lead to it; 0 without RSS.
    #[serde(default)]
    pub rss_entries: u16,
    /// What has been counted of it, not interrupts that were not the device's.
    pub counters: Counters,
    /// Messages of other CPUs that found no room in this one's box.
    pub mail_lost: u64,
}

/// Receive-side scaling: how the device hashes received packets, and where each
/// hash leads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rss {
    /// Names of the types of packets that it hashes, such as `TCPV4`.
    pub hash_types: Vec<String>,
    /// The key of the Toeplitz hash in hexadecimal digits.
    pub key: String,
    /// The number of the pair for each value of the hash's last bits; empty
    /// where hashes are only reported.
    pub table: Vec<u16>,
}

/// How busy a CPU is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuLoad {
    /// Its number, from 0: the CPU that booted.
    pub number: u16,
    /// The number of its local interrupt controller.
    pub apic_id: u32,
    /// TSC cycles since boot that it spent waiting in `hlt`; it started
    /// some milliseconds later than the one that booted.
    pub idle_cycles: u64,
}

/// What the CPU has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Microseconds since the kernel's first instruction.
    pub uptime_us: u64,
    /// TSC cycles since the kernel's first instruction.
    pub cycles: u64,
    /// Of those, cycles spent waiting for an interrupt in `hlt`. Under QEMU's
    /// `-icount shift=0` the difference is the number of instructions executed.
    pub idle_cycles: u64,
    /// Heap allocations since boot.
    pub heap_allocations: u64,
    /// Bytes of heap in use.
    pub heap_used: u64,
    /// Bytes of heap in all.
    pub heap_size: u64,
}
