//! The result of a trace, as `--json` prints it and as every rendering takes
//! it. The fields below are the documented schema: what is `None` is left out
//! of the JSON, and so are empty lists.
//!
//! [`Timeline::steps`] is the journey in the order of cause and effect. A
//! reader who wants to draw it to scale takes [`Step::drawn_at_ns`], and marks
//! the steps whose [`Delta`] is not measured.

mod rings;

pub use rings::{
    AvailEntry, AvailRing, ChainProgress, Descriptor, EventSuppression, PackedDescriptor, Part,
    QueueSnapshot, RingMemory, RingPlace, UsedEntry, UsedRing,
};

use serde::{Deserialize, Serialize};

/// Version of the schema. It grows with every change that an old reader could
/// misunderstand.
pub const SCHEMA: u32 = 3;

/// One traced run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The machine that was traced.
    pub run: Run,
    /// The clocks that times were read from.
    pub clocks: Vec<ClockInfo>,
    /// The steps. A step's number is its place in this list.
    pub steps: Vec<Step>,
    /// The frames, as they were meant and as they arrived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frames: Vec<Frame>,
    /// How records of different layers were joined, and whether it worked out.
    pub joins: Vec<Join>,
    /// Whether nothing was on its way where the window begins and ends. If
    /// not, what is counted may be off by what was.
    #[serde(default)]
    pub quiet: bool,
    /// What stands between the two records of the followed doorbell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kicks: Option<Kicks>,
    /// The way of the kick in the words of Linux's and QEMU's source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<SourceCall>,
    /// What could not be recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub absent: Vec<Absent>,
    /// The guest's ring of records.
    pub ring: RingUse,
}

/// The machine that was traced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Why this one, for a person.
    pub accelerator_reason: String,
    /// Whether a VM exit of this run is one: on TCG the guest's access is
    /// translated into a call inside of QEMU, which stands for the exit.
    pub real_exits: bool,
    /// What was booted, if it was not this project's guest: `Linux` and its release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
    /// The machine type, such as `pc`.
    pub machine: String,
    /// QEMU's version; empty where another VMM ran the guest.
    pub qemu: String,
    /// The VMM that ran the guest, if it was not QEMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<OtherVmm>,
    /// The VMM's command line, to be pasted in the project's directory; directories that are
    /// this machine's business are shortened.
    pub command_line: String,
    /// The host's kernel release, such as `6.1.0`.
    pub host_kernel: String,
    /// What the guest reports of its device.
    pub device: Device,
}

/// A VMM that is not QEMU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherVmm {
    /// Its name, such as `Firecracker`.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Run {
    /// The name of what ran the guest.
    pub fn vmm_name(&self) -> &str {
        self.vmm.as_ref().map_or("QEMU", |vmm| &vmm.name)
    }

    /// What ran the guest, with its version; of QEMU with the machine type as well.
    pub fn vmm_text(&self) -> String {
        match &self.vmm {
            Some(vmm) => format!("{} {}", vmm.name, vmm.version),
            None => format!("{}, QEMU {}", self.machine, self.qemu),
        }
    }

    /// The layers that this run can have, in the order of the way out.
    pub fn layers(&self) -> impl Iterator<Item = Layer> {
        let is_qemu = self.vmm.is_none();
        Layer::ALL.into_iter().filter(move |layer| match layer {
            Layer::QemuVcpu | Layer::QemuMain => is_qemu,
            Layer::VmmVcpu | Layer::VmmOther => !is_qemu,
            Layer::Guest | Layer::Kvm | Layer::Wire => true,
        })
    }

    /// A layer's name in this run, for a heading.
    pub fn title(&self, layer: Layer) -> String {
        match layer {
            Layer::VmmVcpu => format!("{} vCPU thread", self.vmm_name()),
            Layer::VmmOther => format!("{}, other threads", self.vmm_name()),
            layer => layer.title().to_owned(),
        }
    }
}

/// What the guest reports of its device (`/stats.json`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// `legacy`, `modern` or `mmio`.
    pub transport: String,
    /// Where the device was found, such as `PCI 00:02.0`.
    pub location: String,
    /// What a kick is, such as `outw 1 -> port 0xc010`.
    pub doorbell: String,
    /// The rung of the interrupt ladder: `msix`, `msix-shared`, `intx` or
    /// `poll`.
    pub interrupts: String,
    /// Negotiated features.
    pub features: Vec<String>,
    /// Whether the host was told to take kicks by an ioeventfd; QEMU's default
    /// if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ioeventfd: Option<bool>,
}

/// Who took a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// The guest: this project's kernel and driver, or the Linux of [`Run::guest`].
    Guest,
    /// The host's kernel.
    Kvm,
    /// QEMU's thread that runs the virtual CPU.
    QemuVcpu,
    /// QEMU's main loop.
    QemuMain,
    /// The thread of another VMM that runs the virtual CPU.
    VmmVcpu,
    /// Any other thread of another VMM.
    VmmOther,
    /// The host's end of the cable.
    Wire,
}

impl Layer {
    /// Every layer, in the order of the way out.
    pub const ALL: [Self; 7] = [
        Self::Guest,
        Self::Kvm,
        Self::QemuVcpu,
        Self::QemuMain,
        Self::VmmVcpu,
        Self::VmmOther,
        Self::Wire,
    ];

    /// For a heading (see [`Run::title`]).
    pub const fn title(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Kvm => "KVM",
            Self::QemuVcpu => "QEMU vCPU thread",
            Self::QemuMain => "QEMU main loop",
            Self::VmmVcpu => "VMM vCPU thread",
            Self::VmmOther => "VMM, other threads",
            Self::Wire => "wire",
        }
    }
}

/// The part of the journey that a step belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// How the notify hook and the interrupts were attached, at boot.
    Attach,
    /// A datagram comes in: from the wire to the socket.
    Receive,
    /// A datagram goes out: from the socket to the wire.
    Transmit,
    /// The device gives the sent buffer back: from QEMU's used ring to the
    /// driver.
    Return,
}

impl Phase {
    /// Every phase, in the order of the steps.
    pub const ALL: [Self; 4] = [Self::Attach, Self::Receive, Self::Transmit, Self::Return];

    /// For a heading.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Attach => "How the hook was attached",
            Self::Receive => "One datagram comes in",
            Self::Transmit => "One datagram goes out",
            Self::Return => "The sent buffer comes back",
        }
    }
}

/// One step of the journey.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its place in [`Timeline::steps`], from 0.
    pub number: usize,
    /// The part of the journey.
    pub phase: Phase,
    /// Who took it.
    pub layer: Layer,
    /// The record's own name: a guest [`kickpath_trace::Event`], a trace event
    /// of QEMU or of the host's kernel. A step of a Linux guest has the name of
    /// the event with which our guest tells of the same.
    pub event: String,
    /// The function that took the step, such as `Virtqueue::kick_prepare`; of a
    /// Linux guest, the function or trace event of its kernel that was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// Where in this project's source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The Linux function that does this in a Linux guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linux: Option<String>,
    /// Section of the virtio specification 1.2 with its number and title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section: Option<String>,
    /// What happened, in one plain sentence.
    pub sentence: String,
    /// The queue's index, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<u16>,
    /// Whether it is not about the packet that is followed, but about another
    /// chain, or something else that happened meanwhile.
    #[serde(default, skip_serializing_if = "is_false")]
    pub aside: bool,
    /// The number of the guest's CPU, if several left records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u8>,
    /// What was recorded, by name, as text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<NamedValue>,
    /// The record's own time stamp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// How this step follows the one before.
    pub delta: Delta,
    /// Where to draw it, in nanoseconds. [`Phase::Attach`] has an axis of its
    /// own, from its first step; the other phases share one, from the first
    /// step of theirs. It never goes back on an axis. Exact where `delta` is
    /// measured, else somewhere between its neighbours.
    pub drawn_at_ns: f64,
    /// The earlier step of another layer that made this one happen; an arrow
    /// from there to here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caused_by: Option<usize>,
    /// The host's thread that was running, for host layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread: Option<u32>,
    /// The instruction that causes the VM exit, at the doorbell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<Instruction>,
    /// The call chain, innermost first: at an exit the host kernel's, at a step of a Linux
    /// guest that of its kernel, where QEMU hears of the kick QEMU's, taken at the next kick
    /// of the queue.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stack: Vec<String>,
    /// The queue after this step, for a step that is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<QueueSnapshot>,
}

/// A place in this project's source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The file, from the workspace's top.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// The module, such as `virtio_net::doorbell`.
    pub module: String,
    /// The lines around it, where the file is the one that was built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<Excerpt>,
}

/// Lines of a source file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excerpt {
    /// Number of the first line, from 1.
    pub first: u32,
    /// The lines, without their ends.
    pub lines: Vec<String>,
}

/// A recorded value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedValue {
    /// What it is.
    pub name: String,
    /// The value as text, numbers of addresses in hexadecimal.
    pub value: String,
}

/// A clock that time stamps were read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// The virtual CPU's time stamp counter.
    GuestTsc,
    /// The host's time stamp counter (KVM's `x86-tsc` trace clock).
    HostTsc,
    /// The host's calendar clock in microseconds, as QEMU's log has it.
    QemuLog,
    /// The steady clock of this program.
    Monotonic,
}

/// What is known of a clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClockInfo {
    /// Which.
    pub clock: Clock,
    /// Its smallest step in nanoseconds, as far as records show it.
    pub resolution_ns: f64,
    /// Clocks of one axis can be compared: their [`Time::ns`] have one zero.
    /// Axis 0 is the guest's.
    #[serde(default)]
    pub axis: u8,
    /// Whether its times can be compared with the guest's: it is of axis 0.
    pub joined: bool,
    /// How it was joined, or why it could not be.
    pub how: String,
}

/// A time stamp.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Time {
    /// Whose.
    pub clock: Clock,
    /// The reading itself, in the clock's own unit.
    pub raw: u64,
    /// Nanoseconds since the window's first time stamp on the clock's axis
    /// (see [`ClockInfo::axis`]); negative before.
    pub ns: f64,
}

/// How a step follows the one before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Delta {
    /// It is the first.
    First,
    /// Measured: nanoseconds since the step before, on clocks that are joined.
    Measured {
        /// Nanoseconds.
        ns: f64,
    },
    /// The clocks of the two cannot be compared: it stands here by cause and
    /// effect.
    Causal {
        /// The rule that put it here.
        rule: String,
        /// Nanoseconds since the last step with the same clock, if there is
        /// one, and the number of that step.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Since>,
    },
}

/// A measured distance to an earlier step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Since {
    /// The earlier step.
    pub step: usize,
    /// Nanoseconds from there.
    pub ns: f64,
}

/// The instruction that causes the VM exit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// Its virtual address in the guest.
    pub address: u64,
    /// Its bytes in hexadecimal, such as `66 ef`.
    pub bytes: String,
    /// As a disassembler writes it, such as `out dx,ax`.
    pub text: String,
    /// With the values of this run, such as `outw $1, $0xc010`.
    pub meaning: String,
    /// The function that holds it.
    pub symbol: String,
    /// Where in this project's source it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Into the guest.
    In,
    /// Out of the guest.
    Out,
}

/// A frame at both ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Which way it went.
    pub direction: Direction,
    /// The step at which it was on the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire_step: Option<usize>,
    /// Its bytes on the wire, in hexadecimal.
    pub wire: String,
    /// Its bytes in the guest's memory, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
    /// Where they are: address as the device sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_address: Option<u64>,
    /// Its headers, one a line.
    pub headers: Vec<String>,
    /// What the comparison of the two gave.
    pub comparison: Comparison,
}

/// Two frames compared byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Comparison {
    /// All bytes are the same.
    Equal,
    /// They differ.
    Differs {
        /// The first byte that does.
        at: usize,
        /// How, for a person.
        how: String,
    },
    /// The guest's memory could not be had.
    NotCompared {
        /// Why.
        reason: String,
    },
}

/// How records of two layers were joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Such as `doorbell -> virtio_queue_notify, queue 1`.
    pub what: String,
    /// By which rule.
    pub method: String,
    /// Records of the first kind in the window.
    pub left: usize,
    /// Records of the second kind in the window.
    pub right: usize,
    /// Whether it worked out.
    pub verdict: Verdict,
    /// The verdict explained.
    pub detail: String,
}

/// Whether a join worked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// One of the second kind for each of the first.
    Matched,
    /// Fewer of the second kind, as an eventfd allows: writes to one that has
    /// not been read yet become one.
    Coalesced,
    /// Neither: do not trust the order of these layers.
    Failed,
}

/// What stands between the record before a doorbell's instruction and the one
/// behind it: the exit, and whatever else the host ran meanwhile. In the guest an
/// interrupt of a device, of its timer or of another CPU leaves a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kicks {
    /// Nanoseconds at the followed one.
    pub ns: f64,
    /// Interrupts that were recorded in between at the followed one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interrupts: Vec<String>,
    /// Kicks of this queue in the run, without those that had an interrupt.
    pub counted: usize,
    /// Kicks that had one.
    pub interrupted: usize,
    /// Shortest, median and longest of those that are counted, in nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread_ns: Option<[f64; 3]>,
}

/// Functions of Linux's or QEMU's source, in the order of their calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCall {
    /// Whose source.
    pub layer: Layer,
    /// The functions.
    pub words: String,
    /// The step that recorded it, or our own step that does the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
}

/// Something that could not be recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// What is missing.
    pub what: String,
    /// Why.
    pub reason: String,
    /// The command, or the change, that would give it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable: Option<String>,
}

/// The guest's ring of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingUse {
    /// Records that there is room for; 0 in a Linux guest, which counts its room in bytes.
    pub capacity: u64,
    /// Records in it.
    pub recorded: u64,
    /// Records that there was no room for.
    pub lost: u64,
}

impl Timeline {
    /// The steps of a phase.
    pub fn phase(&self, phase: Phase) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(move |step| step.phase == phase)
    }

    /// Whether every join worked out, every frame that could be compared is
    /// equal, and the ring lost nothing.
    pub fn is_sound(&self) -> bool {
        self.ring.lost == 0
            && self
                .joins
                .iter()
                .all(|join| join.verdict != Verdict::Failed)
            && !self
                .frames
                .iter()
                .any(|frame| matches!(frame.comparison, Comparison::Differs { .. }))
    }

    /// What was checked, and what came of it.
    pub fn conclusion(&self) -> String {
        let failed = |join: &&Join| join.verdict == Verdict::Failed;
        let failed = self.joins.iter().filter(failed).count();
        let frames = |wanted: fn(&Comparison) -> bool| {
            let frames = self.frames.iter();
            frames.filter(|frame| wanted(&frame.comparison)).count()
        };
        let equal = frames(|comparison| *comparison == Comparison::Equal);
        let differ = frames(|comparison| matches!(comparison, Comparison::Differs { .. }));
        let mut parts = vec![match (self.joins.len(), failed) {
            (0, _) => "no two layers could be counted against each other".to_owned(),
            (all, 0) => format!("{all} counts of one layer fit those of another"),
            (all, failed) => {
                format!("{failed} of {all} counts of one layer do not fit those of another")
            }
        }];
        if equal > 0 {
            parts.push(format!(
                "{equal} of {} frames are the same on the wire and in the guest, byte for byte",
                self.frames.len()
            ));
        }
        if differ > 0 {
            parts.push(format!("{differ} frames differ"));
        }
        parts.push(match self.ring.lost {
            0 => "no record of the guest was lost".to_owned(),
            lost => format!("{lost} records of the guest were lost"),
        });
        let mut text = format!("Checked: {}.", parts.join("; "));
        if !self.quiet {
            text += " The machine was never quiet, so what was on its way at the window's ends \
                     may be counted on one side only.";
        }
        text
    }
}
