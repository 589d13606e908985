//! `kickpath bench` where KVM runs the guest: on VMMs other than QEMU, and on QEMU with
//! `--accel kvm`. Nothing counts the guest's instructions there. What can be counted on every VMM
//! is what its device asks of the guest: kicks, interrupts, accesses to registers, by the guest's
//! own counters, and how often KVM returned to the VMM, by KVM's events.

use std::io::{self, Write};

use kickpath_abi::status::Status;
use serde::Serialize;

use super::baseline::{Comparison, Count, Counted};
use super::load::{Loaded, Measured, SIZE};
use super::table::{self, number};
use super::tap::What;
use crate::command::{Progress, Sink};
use crate::install::IPROUTE2;
use crate::session::{Mismatch, NetChoice, SessionError, Settings, require};
use crate::terminal::Story;
use crate::trace::kvm::HostTrace;
use crate::trace::recording::Threads;
use crate::wire::Bursts;

use super::BenchOptions;

/// What there is no way to count.
const NOT_COUNTED: &str =
    "guest instructions: only QEMU's TCG counts them (`bench` without --vmm and --accel kvm)";
/// Echoes for one KiB by TCP, and KiB for one HTTP request: KVM may emulate every instruction.
const ECHOES_A_KIB: u64 = 4;
const KIB_A_REQUEST: u64 = 4;
/// KiB at least.
const MIN_KIB: u64 = 16;
/// Times fewer echoes than where QEMU counts instructions.
const FEWER: u64 = 100;

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was done.
    pub what: What,
    /// The same in words.
    pub name: String,
    /// How often.
    pub units: u64,
    /// Kicks of all queues, per echo, datagram, KiB or request; so are the following.
    pub kicks: f64,
    /// Interrupts of the device that the guest took.
    pub interrupts: f64,
    /// Accesses to registers of the device, kicks included, as the guest counts them.
    pub register_accesses: f64,
    /// Returns of KVM to the VMM, where KVM's events were recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub returns_to_vmm: Option<f64>,
    /// Frames that the guest sent for each kick of a transmit queue, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames_a_kick: Option<f64>,
    /// Frames that the guest received for each interrupt, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames_an_interrupt: Option<f64>,
}

/// What `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing is in `missed`.
    pub ok: bool,
    /// What was lost or damaged, and errors that the guest has counted of its device.
    pub missed: Vec<String>,
    /// What is not counted, and why.
    pub absent: Vec<String>,
    /// The VMM.
    pub vmm: String,
    /// Its version, where it tells one.
    pub vmm_version: Option<String>,
    /// Its command line.
    pub command_line: String,
    /// The transport of the device.
    pub transport: String,
    /// The kick, such as `movw 1 -> 0xfebc1004`.
    pub doorbell: String,
    /// The rung of the interrupt ladder.
    pub interrupts: String,
    /// What was counted.
    pub rows: Vec<Row>,
    /// Beside another run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Comparison>,
}

/// Whether the VMM can do what was asked for.
pub(super) fn check(settings: &Settings) -> Result<(), Mismatch> {
    settings.check_with(NetChoice::Tap)
}

/// Whether these options are for what is counted here.
fn check_options(options: &BenchOptions) -> Result<(), Mismatch> {
    let given = [
        ("--profile", options.profile),
        ("--peer-kernel", options.peer_kernel.is_some()),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        Some((option, _)) => {
            let why = "it counts instructions, which TCG alone can";
            Err(Mismatch::Decided { option, why })
        }
        None => Ok(()),
    }
}

/// Counts; tells `story`, where there is one, the results.
///
/// # Errors
/// The guest does not come up, or stops. What was lost is not an error here but in the report.
pub fn bench<W: Write>(
    settings: &Settings,
    options: &BenchOptions,
    mut story: Option<&mut Story<W>>,
    sink: &mut Sink<'_>,
) -> Result<Report, SessionError> {
    check_options(options)?;
    check(settings)?;
    require(&[IPROUTE2], settings.policy, sink)?;
    let mut absent = vec![NOT_COUNTED.to_owned()];
    let own = Threads {
        main: std::process::id(),
        ..Threads::default()
    };
    if let Err(error) = HostTrace::counting(&own) {
        absent.push(format!("returns to the VMM: {error}"));
    }
    if let Some(story) = &mut story {
        introduction(story, &absent)?;
    }
    let guest = Loaded::start(settings, 1, false, sink)?;
    let first = guest.status()?;
    let mut report = Report {
        ok: false,
        missed: Vec::new(),
        absent,
        vmm: settings.vmm.to_string(),
        vmm_version: settings.vmm.version(&guest.program),
        command_line: guest.guest.command_line().to_owned(),
        transport: first.device.transport.clone(),
        doorbell: first.device.doorbell.clone(),
        interrupts: first.interrupts.rung.clone(),
        rows: Vec::new(),
        baseline: None,
    };
    if let Some(story) = &mut story {
        heading(story, &report)?;
    }
    let mut put = |report: &mut Report, row: Row| {
        if let Some(story) = &mut story {
            story.line(&line(&row))?;
        }
        report.rows.push(row);
        Ok::<_, io::Error>(())
    };
    put(&mut report, Row::boot(&first))?;
    let count = (options.echoes / FEWER).max(1);
    for outstanding in [1, 32] {
        sink(Progress::Step("Counting at UDP echoes"));
        let (measured, flood) = guest.echoes(count, outstanding, 1)?;
        if flood.corrupted + flood.unexpected > 0 {
            report.missed.push(format!(
                "UDP echo: {} damaged, {} repeated",
                flood.corrupted, flood.unexpected
            ));
        }
        let what = What::Echo {
            way: settings.udp.word(),
            outstanding,
            senders: 1,
            lost: flood.lost,
        };
        put(&mut report, Row::new(what, count, &measured))?;
    }
    sink(Progress::Step("Counting at datagrams one way"));
    let (measured, lost) = guest.bursts(Bursts::In(SIZE), count)?;
    let what = What::DatagramsIn {
        size: SIZE,
        lost: lost + measured.since(|status| status.counters.rx_dropped),
    };
    put(&mut report, Row::new(what, count, &measured))?;
    let (measured, lost) = guest.bursts(Bursts::Out, count)?;
    let what = What::DatagramsOut { lost };
    put(&mut report, Row::new(what, count, &measured))?;
    sink(Progress::Step("Counting at TCP"));
    let kib = (count / ECHOES_A_KIB).max(MIN_KIB);
    let bytes = (kib << 10) as usize;
    let out = guest.tcp_out(bytes)?;
    put(
        &mut report,
        Row::new(What::TcpOut { offloads: true }, kib, &out),
    )?;
    let into = guest.tcp_in(bytes)?;
    put(
        &mut report,
        Row::new(What::TcpIn { offloads: true }, kib, &into),
    )?;
    let echo = guest.tcp_echo(bytes)?;
    put(&mut report, Row::new(What::TcpEcho, kib, &echo))?;
    let (path, requests) = ("/", kib / KIB_A_REQUEST);
    let http = guest.http(path, requests)?;
    put(&mut report, Row::new(What::Http { path }, requests, &http))?;
    report.judge(&guest.status()?);
    if let Some(story) = &mut story {
        table::conclusion(story, &report.missed)?;
    }
    Ok(report)
}

impl Row {
    fn new(what: What, units: u64, measured: &Measured) -> Self {
        let since = |counter: fn(&Status) -> u64| measured.since(counter);
        let returns = measured.exits.map(|exits| exits.to_vmm);
        Self::of(what, units, since, returns)
    }

    /// Until the first report.
    fn boot(first: &Status) -> Self {
        Self::of(What::Boot, 1, |counter| counter(first), None)
    }

    fn of(
        what: What,
        units: u64,
        since: impl Fn(fn(&Status) -> u64) -> u64,
        returns: Option<u64>,
    ) -> Self {
        let each = |count: u64| count as f64 / units.max(1) as f64;
        let batch = |frames: u64, of: u64| (of > 0).then(|| frames as f64 / of as f64);
        let interrupts = since(|status| status.counters.interrupts);
        Self {
            name: what.name(),
            what,
            units,
            kicks: each(since(|status| status.counters.kicks)),
            interrupts: each(interrupts),
            register_accesses: each(since(|status| status.counters.register_accesses)),
            returns_to_vmm: returns.map(each),
            frames_a_kick: batch(
                since(|status| status.counters.tx_packets),
                since(transmit_kicks),
            ),
            frames_an_interrupt: batch(since(|status| status.counters.rx_packets), interrupts),
        }
    }
}

fn transmit_kicks(status: &Status) -> u64 {
    let queues = status.queues.iter();
    let transmit = queues.filter(|queue| queue.name == "transmit");
    transmit.map(|queue| queue.kicks).sum()
}

impl Report {
    /// Whether nothing was lost, and the device did nothing wrong.
    fn judge(&mut self, last: &Status) {
        for row in &self.rows {
            if let Some(lost @ 1..) = row.what.lost() {
                let text = format!("{}: {lost} of {} lost", row.name, row.units);
                self.missed.push(text);
            }
        }
        let counters = &last.counters;
        for (count, what) in [
            (counters.rx_errors, "used receive buffers that cannot be"),
            (counters.tx_errors, "used transmit buffers that cannot be"),
            (counters.kicks_lost, "kicks that the device did not hear"),
            (
                counters.interrupts_lost,
                "used buffers without an interrupt",
            ),
        ] {
            if count > 0 {
                self.missed
                    .push(format!("the guest counted {count} {what}"));
            }
        }
        self.ok = self.missed.is_empty();
    }
}

impl Counted for Report {
    const WHAT: &'static str = "Kicks, interrupts, register accesses and returns to the VMM";

    fn counts(&self) -> Vec<Count> {
        let counts = self.rows.iter().flat_map(|row| {
            let name = &row.name;
            [
                ("kicks", Some(row.kicks)),
                ("interrupts", Some(row.interrupts)),
                ("register accesses", Some(row.register_accesses)),
                ("returns to the VMM", row.returns_to_vmm),
            ]
            .map(|(what, count)| {
                Some(Count {
                    name: format!("{name}: {what}"),
                    // How often the guest finds work without being told varies.
                    is_exact: false,
                    count: count?,
                })
            })
        });
        counts.flatten().collect()
    }

    fn is_ok(&self) -> bool {
        self.ok
    }

    fn put_beside(&mut self, comparison: Comparison) {
        self.ok &= comparison.missed().is_empty();
        self.baseline = Some(comparison);
    }
}

/// What is said before anything starts.
fn introduction<W: Write>(story: &mut Story<W>, absent: &[String]) -> io::Result<()> {
    story.section("Bench on KVM")?;
    story.row(
        "Counted",
        "kicks, interrupts and accesses to the device's registers, by the guest; returns of KVM \
         to the VMM, by KVM's events; frames sent a kick, and received an interrupt. All but \
         losses vary with the host's scheduling.",
    )?;
    absent
        .iter()
        .try_for_each(|absent| story.row("Not counted", absent))
}

fn heading<W: Write>(story: &mut Story<W>, report: &Report) -> io::Result<()> {
    let version = report.vmm_version.as_deref();
    let version = version.unwrap_or("of unknown version");
    story.row("VMM", &format!("{} {version}", report.vmm))?;
    let device = format!(
        "{}: {}; interrupts: {}",
        report.transport, report.doorbell, report.interrupts
    );
    story.row("Device", &device)?;
    story.section("Per echo, datagram, KiB or request")?;
    let heads = [
        "kicks", "irqs", "access", "returns", "fr/kick", "fr/irq", "lost",
    ];
    story.line(&columns("", heads))
}

fn line(row: &Row) -> String {
    let optional = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), short);
    let lost = row.what.lost().map(|lost| number(lost as f64));
    columns(
        &row.name,
        [
            &short(row.kicks),
            &short(row.interrupts),
            &short(row.register_accesses),
            &optional(row.returns_to_vmm),
            &optional(row.frames_a_kick),
            &optional(row.frames_an_interrupt),
            lost.as_deref().unwrap_or("-"),
        ],
    )
}

/// Two digits behind the point are what repeats.
fn short(value: f64) -> String {
    number((value * 100.0).round() / 100.0)
}

fn columns(name: &str, cells: [&str; 7]) -> String {
    let mut line = format!("  {name:42}");
    for cell in cells {
        line += &format!("{cell:>8}");
    }
    line
}

#[cfg(test)]
mod tests {
    use kickpath_abi::status::Queue;

    use super::*;

    fn status(kicks: u64, frames: u64) -> Status {
        let mut status = Status::default();
        status.counters.kicks = 2 * kicks;
        status.counters.interrupts = kicks;
        status.counters.rx_packets = frames;
        status.counters.tx_packets = frames;
        for (name, kicks) in [("receive", 7), ("transmit", kicks)] {
            status.queues.push(Queue {
                name: name.to_owned(),
                kicks,
                ..Queue::default()
            });
        }
        status
    }

    fn report() -> Report {
        Report {
            ok: false,
            missed: Vec::new(),
            absent: vec![NOT_COUNTED.to_owned()],
            vmm: "Cloud Hypervisor".to_owned(),
            vmm_version: None,
            command_line: String::new(),
            transport: "modern".to_owned(),
            doorbell: "movw 1 -> 0xfebc1004".to_owned(),
            interrupts: "msix".to_owned(),
            rows: vec![Row::boot(&status(4, 10)), Row::boot(&status(0, 1_234_567))],
            baseline: None,
        }
    }

    #[test]
    fn a_row_has_batches_where_there_were_kicks() {
        let [row, none] = &report().rows[..] else {
            panic!("two rows");
        };
        assert_eq!((row.kicks, row.interrupts), (8.0, 4.0));
        assert_eq!(row.frames_a_kick, Some(2.5));
        assert_eq!(row.frames_an_interrupt, Some(2.5));
        assert_eq!((none.frames_a_kick, none.frames_an_interrupt), (None, None));
    }

    #[test]
    fn what_was_lost_is_named_and_nothing_is_counted_that_was_not() {
        let mut report = report();
        report.judge(&Status::default());
        assert!(report.ok, "{:?}", report.missed);
        let text = serde_json::to_string(&report.rows).unwrap();
        for absent in ["instructions", "returns_to_vmm"] {
            assert!(!text.contains(absent), "{text}");
        }
        assert_eq!(report.counts().len(), 6);
        report.rows[0].what = What::DatagramsOut { lost: 2 };
        report.rows[0].name = "datagrams".to_owned();
        let mut last = Status::default();
        last.counters.interrupts_lost = 3;
        report.judge(&last);
        assert!(!report.ok);
        assert_eq!(
            report.missed,
            [
                "datagrams: 2 of 1 lost",
                "the guest counted 3 used buffers without an interrupt"
            ]
        );
    }

    #[test]
    fn the_table_fits_into_the_width() {
        let report = report();
        let mut bytes = Vec::new();
        let mut story = Story::new(&mut bytes);
        introduction(&mut story, &report.absent).unwrap();
        heading(&mut story, &report).unwrap();
        for row in &report.rows {
            story.line(&line(row)).unwrap();
        }
        let text = anstream::adapter::strip_str(&String::from_utf8(bytes).unwrap()).to_string();
        for line in text.lines() {
            assert!(line.chars().count() <= crate::terminal::WIDTH, "{line}");
        }
        let row = text.lines().find(|line| line.contains("boot")).unwrap();
        let cells: Vec<_> = row.split_whitespace().skip(5).collect();
        assert_eq!(cells, ["8", "4", "0", "-", "2.5", "2.5", "-"], "{text}");
    }
}
