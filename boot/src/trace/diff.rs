//! `trace --diff`: two recorded traces side by side.
//!
//! Steps are of one kind when they tell of the same event (see
//! [`Step::event`](super::timeline::Step::event)) at the same queue, whoever took them and in
//! whichever guest. Those of both traces are aligned so that as many as possible stand
//! beside each other and both keep their order; what has no counterpart stands alone.

mod html;
mod measures;
mod read;
mod text;

use std::path::Path;

use serde::Serialize;

pub use html::page;
pub use measures::{Measure, Unit};
pub use read::{DiffError, read};
pub use text::print;

use super::timeline::{Layer, Phase, Step, Timeline};

/// Two traces, compared; `--json` prints it. Steps are named by their numbers in the traces'
/// own files.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diff {
    /// The first trace.
    pub a: Side,
    /// The second.
    pub b: Side,
    /// In what the two machines differ: name, and each one's value.
    pub setup: Vec<Setting>,
    /// Numbers, by layer.
    pub measures: Vec<Measure>,
    /// The steps, aligned.
    pub rows: Vec<Row>,
}

/// One of the two.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Side {
    /// The file.
    pub file: String,
    /// The machine in a few words.
    pub machine: String,
    /// Steps that are left out: they are not about the packet that is followed.
    pub asides: usize,
    /// Whether every check of the trace holds.
    pub sound: bool,
}

/// Something about the machine that is not the same in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// What.
    pub name: &'static str,
    /// In the first.
    pub a: String,
    /// In the second.
    pub b: String,
}

/// Two steps of one kind, or one that the other trace has no counterpart for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The kind.
    pub event: String,
    /// The queue's index, if the kind is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<u16>,
    /// The step of the first trace.
    pub a: Option<usize>,
    /// That of the second.
    pub b: Option<usize>,
    /// Whether both have it, in one layer, by a function of one name, with one sentence.
    pub same: bool,
}

/// Compares two traces; `a` and `b` are their files.
///
/// # Errors
/// They have more steps than can be aligned.
pub fn diff(a: (&Path, &Timeline), b: (&Path, &Timeline)) -> Result<Diff, DiffError> {
    for (file, timeline) in [a, b] {
        read::check_length(file, timeline)?;
    }
    let (first, second) = (a.1, b.1);
    let mut rows = Vec::new();
    for attach in [true, false] {
        let [left, right] = [first, second].map(|timeline| followed(timeline, attach));
        align(&left, &right, &mut rows);
    }
    Ok(Diff {
        a: side(a),
        b: side(b),
        setup: setup(first, second),
        measures: measures::measures(first, second),
        rows,
    })
}

/// The steps of the packet, of the part before the window or of the window.
fn followed(timeline: &Timeline, attach: bool) -> Vec<&Step> {
    let steps = timeline.steps.iter();
    steps
        .filter(|step| !step.aside && (step.phase == Phase::Attach) == attach)
        .collect()
}

fn side((file, timeline): (&Path, &Timeline)) -> Side {
    let run = &timeline.run;
    let guest = run.guest.as_deref().unwrap_or("Kickpath");
    Side {
        file: file.display().to_string(),
        machine: format!(
            "{guest} on {}, {}, {} virtio-net",
            run.accelerator.to_uppercase(),
            run.machine,
            run.device.transport
        ),
        asides: timeline.steps.iter().filter(|step| step.aside).count(),
        sound: timeline.is_sound(),
    }
}

/// What is not the same of the two machines.
fn setup(a: &Timeline, b: &Timeline) -> Vec<Setting> {
    let of = |timeline: &Timeline| {
        let (run, device) = (&timeline.run, &timeline.run.device);
        let ioeventfd = match device.ioeventfd {
            None => "QEMU's default",
            Some(true) => "on",
            Some(false) => "off",
        };
        [
            (
                "Guest",
                run.guest.as_deref().unwrap_or("Kickpath").to_owned(),
            ),
            ("Accelerator", run.accelerator.to_uppercase()),
            ("VMM", run.vmm_text()),
            ("Host kernel", run.host_kernel.clone()),
            (
                "Device",
                format!("{}, {}", device.location, device.transport),
            ),
            ("A kick is", device.doorbell.clone()),
            ("Interrupts", device.interrupts.clone()),
            ("ioeventfd", ioeventfd.to_owned()),
        ]
    };
    let rows = of(a).into_iter().zip(of(b));
    let mut setup: Vec<Setting> = rows
        .map(|((name, a), (_, b))| Setting { name, a, b })
        .filter(|setting| setting.a != setting.b)
        .collect();
    let only = |this: &Timeline, other: &Timeline| {
        let features = this.run.device.features.iter();
        let own = features.filter(|feature| !other.run.device.features.contains(feature));
        own.cloned().collect::<Vec<_>>().join(" ")
    };
    let (in_a, in_b) = (only(a, b), only(b, a));
    if in_a != in_b {
        setup.push(Setting {
            name: "Own features",
            a: in_a,
            b: in_b,
        });
    }
    setup
}

/// Events of the guest that are the same at every queue, or whose queue not every guest
/// records.
const OF_NO_QUEUE: [&str; 9] = [
    "InterruptVector",
    "IntxInterrupt",
    "Poll",
    "RxTokenConsume",
    "SocketReceive",
    "SocketSend",
    "TxTokenConsume",
    "VringInterrupt",
    "Idle",
];

/// What makes two steps of one kind.
fn kind(step: &Step) -> (&str, Option<u16>) {
    let event = match step.event.as_str() {
        // By an eventfd or not, it is the device's interrupt.
        "virtio_notify_irqfd" | "virtio_notify_irqfd_deferred_fn" => "virtio_notify",
        event => event,
    };
    let of_queue = !OF_NO_QUEUE.contains(&event);
    (event, step.queue.filter(|_| of_queue))
}

/// Aligns by the longest common subsequence of kinds.
fn align(a: &[&Step], b: &[&Step], rows: &mut Vec<Row>) {
    let width = b.len() + 1;
    // At (i, j): the length for a[i..] and b[j..].
    let mut longest = vec![0u16; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i * width + j] = match kind(a[i]) == kind(b[j]) {
                true => longest[(i + 1) * width + j + 1] + 1,
                false => longest[(i + 1) * width + j].max(longest[i * width + j + 1]),
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        let both = i < a.len() && j < b.len() && kind(a[i]) == kind(b[j]);
        let first = i < a.len()
            && (j == b.len() || longest[(i + 1) * width + j] >= longest[i * width + j + 1]);
        let pair = match (both, first) {
            (true, _) => (Some(a[i]), Some(b[j])),
            (false, true) => (Some(a[i]), None),
            (false, false) => (None, Some(b[j])),
        };
        i += usize::from(pair.0.is_some());
        j += usize::from(pair.1.is_some());
        rows.extend(row(pair));
    }
}

fn row((a, b): (Option<&Step>, Option<&Step>)) -> Option<Row> {
    let (event, queue) = kind(a.or(b)?);
    let told = |step: &Step| (step.layer, step.function.clone(), step.sentence.clone());
    Some(Row {
        event: event.to_owned(),
        queue,
        a: a.map(|step| step.number),
        b: b.map(|step| step.number),
        same: a.is_some() && a.map(told) == b.map(told),
    })
}

/// The function of a step, or its event.
fn name(step: &Step) -> &str {
    step.function.as_deref().unwrap_or(&step.event)
}

/// Rows that both have, that only one has, and that are the same.
fn counts(diff: &Diff) -> [usize; 4] {
    let count = |wanted: fn(&Row) -> bool| diff.rows.iter().filter(|row| wanted(row)).count();
    [
        count(|row| row.a.is_some() && row.b.is_some()),
        count(|row| row.b.is_none()),
        count(|row| row.a.is_none()),
        count(|row| row.same),
    ]
}

/// What came of it, in a sentence.
pub fn conclusion(diff: &Diff) -> String {
    let [both, a, b, same] = counts(diff);
    format!(
        "{both} steps are of one kind in both traces, {same} of them the same in layer, function \
         and sentence; {a} are in A only, {b} in B only."
    )
}

/// For a heading: the layer, or the whole journey.
fn layer_title(layer: Option<Layer>) -> &'static str {
    layer.map_or("all", Layer::title)
}

#[cfg(test)]
mod tests;
