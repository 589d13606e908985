//! `kickpath compare`: the ways to kick, measured in one run.
//!
//! For each way, with the ioeventfd on and off and with `EVENT_IDX` on and off:
//!
//! - the kick alone, by the guest itself (`bench=kick`), under `-icount
//!   shift=0`, where the time stamp counter counts instructions exactly;
//! - the same on the accelerator that was asked for, where the counter counts
//!   time: how often it leaves the guest and who handles it, but no times, which
//!   one run cannot tell from the noise of its host;
//! - the kick in traffic: UDP echoes, one at a time and 32 at a time, whose
//!   kicks and interrupts follow from what device and driver ask of each other.

pub mod html;
mod measure;
mod table;
mod vmm_row;
pub mod vmms;

use std::io::Write;

use kickpath_abi::config::{LogLevel, Transport};
use serde::Serialize;

use crate::command::{Progress, Sink};
use crate::qemu::Kind;
use crate::session::{Mismatch, SessionError, Settings};
use crate::terminal::Story;

/// Frames a kick: one at a time, and in bursts.
pub const BURSTS: [u16; 2] = [1, 32];

/// A way to kick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The legacy interface's QUEUE_NOTIFY port.
    LegacyPort,
    /// The modern interface's notification structure in memory.
    ModernMemory,
    /// The modern interface's notification structure in ports
    /// (`modern-pio-notify=on`).
    ModernPort,
    /// virtio-mmio's QueueNotify register.
    Mmio,
    /// The same register of version 1, the legacy one.
    MmioLegacy,
}

impl Way {
    /// Every way, in the order of the table.
    pub const ALL: [Self; 5] = [
        Self::LegacyPort,
        Self::ModernMemory,
        Self::ModernPort,
        Self::Mmio,
        Self::MmioLegacy,
    ];

    /// For a table.
    pub const fn title(self) -> &'static str {
        match self {
            Self::LegacyPort => "legacy port",
            Self::ModernMemory => "modern memory",
            Self::ModernPort => "modern port",
            Self::Mmio => "virtio-mmio",
            Self::MmioLegacy => "virtio-mmio v1",
        }
    }

    const fn transport(self) -> Transport {
        match self {
            Self::LegacyPort => Transport::Legacy,
            Self::ModernMemory | Self::ModernPort => Transport::Modern,
            Self::Mmio | Self::MmioLegacy => Transport::Mmio,
        }
    }

    /// The machine to measure on; virtio-mmio is microvm's.
    const fn kind(self, asked: Kind) -> Kind {
        match (self, asked) {
            (Self::Mmio | Self::MmioLegacy, _) => Kind::Microvm,
            (_, Kind::Microvm) => Kind::Pc,
            (_, kind) => kind,
        }
    }
}

/// Who handles a kick in QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Handler {
    /// The thread of the virtual CPU that kicked.
    VcpuThread,
    /// The main loop, told by the ioeventfd.
    MainLoop,
    /// Now the one, now the other.
    Both,
}

impl Handler {
    /// For a table.
    pub const fn title(self) -> &'static str {
        match self {
            Self::VcpuThread => "vCPU",
            Self::MainLoop => "main loop",
            Self::Both => "both",
        }
    }
}

/// One row: a way to kick under one set of conditions.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The way.
    pub way: Way,
    /// The access, such as `outw 1 -> port 0xc010`, as the guest reports it.
    pub access: String,
    /// Whether QEMU was told to take kicks by an ioeventfd.
    pub ioeventfd: bool,
    /// Whether `EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// Frames a burst.
    pub burst: u16,
    /// Guest instructions from the decision to the end of the doorbell, a
    /// kick.
    pub instructions_per_kick: f64,
    /// Guest instructions of the driver a packet: add, kick, reclaim.
    pub instructions_per_packet: f64,
    /// Accesses to device registers a kick, counted by the guest.
    pub accesses_per_kick: f64,
    /// Kicks a packet, in traffic.
    pub kicks_per_packet: f64,
    /// Interrupts a packet, in traffic.
    pub interrupts_per_packet: f64,
    /// Exits to QEMU a kick, where KVM's events could be recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userspace_exits_per_kick: Option<f64>,
    /// Who handled the kicks, as QEMU's trace tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler: Option<Handler>,
}

/// What `--json` prints.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// What executed the guest where time was measured.
    pub accelerator: String,
    /// The rows.
    pub rows: Vec<Row>,
    /// Values that are absent from every row, and why.
    pub absent: Vec<String>,
    /// A command line of QEMU for each way.
    pub command_lines: Vec<String>,
}

/// The command line of QEMU for each way, ready to paste.
///
/// # Errors
/// As [`Settings::prepare`].
pub fn dry_run(settings: &Settings, sink: &mut Sink<'_>) -> Result<Vec<String>, SessionError> {
    check(settings)?;
    let mut lines = Vec::new();
    for way in possible(settings) {
        let prepared = settings_for(settings, way).prepare(true, sink)?;
        let usual = measure::Conditions::usual(way);
        lines.push(measure::command_line(&prepared, usual));
    }
    Ok(lines)
}

/// Whether the options leave to the comparison what it compares.
fn check(settings: &Settings) -> Result<(), Mismatch> {
    let refused = settings.features.iter().flat_map(|list| list.split(','));
    let decided = [
        ("--transport", settings.transport != Transport::Auto),
        ("--mmio-legacy", settings.mmio_legacy),
        ("--pio-notify", settings.pio_notify),
        ("--ioeventfd", settings.ioeventfd.is_some()),
        (
            "--features=-event_idx",
            { refused }.any(|name| name == "-event_idx"),
        ),
    ];
    if let Some((option, _)) = decided.into_iter().find(|(_, asked_for)| *asked_for) {
        let why = "compare tries every way to kick, with and without ioeventfd and EVENT_IDX";
        return Err(Mismatch::Decided { option, why });
    }
    if settings.image.is_some() {
        return Err(Mismatch::Image);
    }
    if settings.rss {
        return Err(Mismatch::RssFarEnd);
    }
    Ok(())
}

/// Why there is no such way with these settings, if so.
fn impossible(settings: &Settings, way: Way) -> Option<String> {
    let error = settings_for(settings, way).check().err()?;
    let asked_for = matches!(error, Mismatch::Packed { .. } | Mismatch::QueueSize);
    asked_for.then(|| format!("{}: {error}", way.title()))
}

/// The ways that there are with these settings.
fn possible(settings: &Settings) -> impl Iterator<Item = Way> {
    Way::ALL
        .into_iter()
        .filter(|way| impossible(settings, *way).is_none())
}

fn settings_for(settings: &Settings, way: Way) -> Settings {
    Settings {
        kind: way.kind(settings.kind),
        transport: way.transport(),
        mmio_legacy: way == Way::MmioLegacy,
        // The guest's own results come by its log.
        log: LogLevel::Info,
        ..settings.clone()
    }
}

/// Measures every way; tells `story`, where there is one, the results.
///
/// # Errors
/// A guest does not come up, stops, or reports no numbers.
pub fn compare<W: Write>(
    settings: &Settings,
    echoes: u64,
    mut story: Option<&mut Story<W>>,
    sink: &mut Sink<'_>,
) -> Result<Report, SessionError> {
    check(settings)?;
    let mut report = Report::default();
    for way in Way::ALL {
        if let Some(why) = impossible(settings, way) {
            report.absent.push(why);
        }
    }
    for way in possible(settings) {
        let prepared = settings_for(settings, way).prepare(false, sink)?;
        // What cannot be measured at all is refused before there is a heading.
        if let (Some(story), true) = (&mut story, report.command_lines.is_empty()) {
            table::introduction(story)?;
        }
        report.accelerator = prepared.decision.to_string();
        report.command_lines.push(measure::command_line(
            &prepared,
            measure::Conditions::usual(way),
        ));
        let first = report.rows.len();
        for (ioeventfd, event_idx) in [(true, true), (true, false), (false, true), (false, false)] {
            let conditions = measure::Conditions {
                way,
                ioeventfd,
                event_idx,
            };
            sink(Progress::Step(&format!("Measuring {conditions}")));
            let (rows, absent) = measure::rows(&prepared, conditions, echoes)?;
            for text in absent {
                if !report.absent.contains(&text) {
                    report.absent.push(text);
                }
            }
            report.rows.extend(rows);
        }
        if let Some(story) = &mut story {
            table::rows(story, &report.rows[first..])?;
        }
    }
    let recorded = |row: &Row| row.userspace_exits_per_kick.is_some();
    if !report
        .absent
        .iter()
        .any(|absent| absent.contains("exits to QEMU"))
        && !report.rows.iter().any(recorded)
    {
        report.absent.push(
            "exits to QEMU a kick: on TCG there are none, QEMU translates the access into a call; \
             --accel kvm with KVM's trace events has them"
                .to_owned(),
        );
    }
    if let Some(story) = &mut story {
        table::conclusion(story, &report)?;
    }
    Ok(report)
}
