//! All that was recorded of a run, as it was recorded: what a
//! [`Timeline`](super::Timeline) is made of. It can be written to a file and
//! read again, which is how the tests of the joins have theirs.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::qemu::stack::QemuStack;
use super::records::GuestRecord;
use super::timeline::{Absent, Direction, Instruction, RingUse, Run};

/// A run as it was recorded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// The machine.
    pub run: Run,
    /// The guest's records, from its boot on.
    pub guest: Vec<GuestRecord>,
    /// The guest's ring.
    pub ring: RingUse,
    /// The log of QEMU's events, as it is.
    pub qemu_log: String,
    /// QEMU's threads.
    pub threads: Threads,
    /// What the host's kernel recorded of KVM, if it could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm: Option<KvmRecording>,
    /// Frames on the cable.
    pub frames: Vec<WireFrame>,
    /// Where the window begins, in each record.
    pub window: Window,
    /// The datagram of the window.
    pub probe: Probe,
    /// The clocks.
    pub clocks: Clocks,
    /// The guest's buffers of the two frames, read after the window.
    pub memory: Vec<Memory>,
    /// The instruction of the doorbell that the window's kick used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<Instruction>,
    /// Where that instruction writes, as the device sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doorbell_address: Option<u64>,
    /// The device's address ranges, as QEMU knows them.
    #[serde(default)]
    pub regions: Vec<Region>,
    /// QEMU's call chain at the kick after the window's, if it could be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_stack: Option<QemuStack>,
    /// What could not be recorded.
    #[serde(default)]
    pub absent: Vec<Absent>,
}

/// The VMM's threads, by the host's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threads {
    /// The main loop's; of another VMM than QEMU its first one, whose number is the process's.
    pub main: u32,
    /// Those that run virtual CPUs.
    pub vcpus: Vec<u32>,
    /// The names of all threads of another VMM than QEMU.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<u32, String>,
}

/// What the host's kernel recorded of KVM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmRecording {
    /// The trace, as it is.
    pub text: String,
    /// The events that were asked for, of those that the kernel has.
    #[serde(default)]
    pub events: Vec<String>,
    /// Events that there was no room for.
    pub lost: u64,
    /// What is added to the host's time stamp counter to have the virtual
    /// CPU's, if the host's kernel says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tsc_offset: Option<i64>,
    /// Whether times are the host's time stamp counter.
    pub tsc_clock: bool,
    /// What the descriptors of a VMM other than QEMU are, whose system calls are in the trace:
    /// devices and anonymous files, as the host's kernel names them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<u64, String>,
    /// The calls in which its threads waited when the window began: number and arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub waiting: BTreeMap<u32, Vec<u64>>,
}

/// A frame on the cable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireFrame {
    /// Which way.
    pub direction: Direction,
    /// Nanoseconds on the steady clock, from [`Clocks`]' zero. A frame out is
    /// stamped when the host's end has read it, a frame in before it is sent.
    pub at: i64,
    /// Its bytes.
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
}

/// Where the window begins: at a moment when nothing was on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Number of the first record of the guest.
    pub guest: usize,
    /// Offset in QEMU's log, in bytes.
    pub qemu: usize,
    /// Whether the machine was quiet there. If not, records of before may be
    /// counted on one side only.
    pub quiet: bool,
}

/// The datagram of the window: it goes in, and its echo comes out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Bytes of content.
    pub bytes: usize,
}

/// The guest's memory at an address as the device sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The address.
    pub address: u64,
    /// What is there.
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
}

/// A range of addresses of the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Such as `BAR0`.
    pub name: String,
    /// First address.
    pub address: u64,
    /// Length in bytes.
    pub size: u64,
    /// Whether it is of ports, not of memory.
    pub ports: bool,
}

/// What is known of the clocks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Clocks {
    /// The guest's time stamp counter, in Hz, as the guest measured it.
    pub guest_hz: u64,
    /// Readings of the host's clocks at one moment each.
    pub samples: Vec<Sample>,
}

/// The host's clocks at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The calendar, in nanoseconds since 1970.
    pub calendar: i64,
    /// The steady clock, in nanoseconds since its zero.
    pub steady: i64,
    /// The time stamp counter, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tsc: Option<u64>,
    /// How far apart the readings may be, in nanoseconds.
    pub uncertainty: i64,
}

impl Recording {
    /// Whether the guest is a Linux, whose records have less than ours.
    pub fn is_of_linux(&self) -> bool {
        self.run.guest.is_some()
    }
}

impl Sample {
    /// Reads the clocks, several times, and keeps the closest readings.
    pub fn take(zero: Instant) -> Self {
        let once = || {
            let before = nanoseconds(zero);
            let calendar = SystemTime::now().duration_since(UNIX_EPOCH);
            let tsc = tsc();
            let after = nanoseconds(zero);
            Self {
                calendar: calendar.map_or(0, |time| time.as_nanos() as i64),
                steady: before + (after - before) / 2,
                tsc,
                uncertainty: after - before,
            }
        };
        let tries = std::iter::repeat_with(once).take(32);
        tries
            .min_by_key(|sample| sample.uncertainty)
            .unwrap_or_default()
    }
}

/// Nanoseconds from `zero` until now.
fn nanoseconds(zero: Instant) -> i64 {
    zero.elapsed().as_nanos() as i64
}

#[cfg(target_arch = "x86_64")]
fn tsc() -> Option<u64> {
    // SAFETY: every x86-64 CPU has the counter, and reading it has no effect.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn tsc() -> Option<u64> {
    None
}

/// Bytes as hexadecimal text.
pub(super) mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Two digits a byte.
    pub fn encode(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if !rest.is_empty() {
            return Err(de::Error::custom("an odd number of digits"));
        }
        let byte = |pair: &[u8; 2]| {
            let text = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(text, 16).ok()
        };
        pairs
            .iter()
            .map(|pair| byte(pair).ok_or_else(|| de::Error::custom("not a hexadecimal digit")))
            .collect()
    }
}
