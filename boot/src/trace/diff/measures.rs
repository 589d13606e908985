//! Numbers of a trace, by layer: what can be counted, and times by one clock each.

use serde::Serialize;

use crate::trace::timeline::{Direction, Layer, Phase, Step, Timeline};

/// A number of both traces. What one did not record is left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measure {
    /// Whose, or `None` for the whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<Layer>,
    /// What is counted or measured.
    pub what: &'static str,
    /// In what.
    pub unit: Unit,
    /// In the first trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub a: Option<f64>,
    /// In the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b: Option<f64>,
}

/// What a number is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// It is counted.
    Count,
    /// Nanoseconds.
    Ns,
    /// Bytes.
    Bytes,
}

/// A row before both sides are known.
type Row = (Option<Layer>, &'static str, Unit, Option<f64>);

/// The numbers of both; a row that neither has is left out.
pub fn measures(a: &Timeline, b: &Timeline) -> Vec<Measure> {
    let rows = of(a).into_iter().zip(of(b));
    rows.map(|((layer, what, unit, a), (.., b))| Measure {
        layer,
        what,
        unit,
        a,
        b,
    })
    .filter(|measure| measure.a.is_some() || measure.b.is_some())
    .collect()
}

fn of(timeline: &Timeline) -> Vec<Row> {
    let steps: Vec<&Step> = {
        let all = timeline.steps.iter();
        all.filter(|step| !step.aside && step.phase != Phase::Attach)
            .collect()
    };
    let count = |wanted: &dyn Fn(&Step) -> bool| {
        let count = steps.iter().filter(|step| wanted(step)).count();
        (count > 0).then_some(count as f64)
    };
    let named = |names: &'static [&str]| count(&|step| names.contains(&&*step.event));
    // By the clock that stamped both.
    let between = |from: &str, to: &[&str]| {
        let start = steps.iter().position(|step| step.event == from)?;
        let end = steps[start..]
            .iter()
            .find(|step| to.contains(&&*step.event))?;
        let (start, end) = (steps[start].time?, end.time?);
        (start.clock == end.clock).then_some(end.ns - start.ns)
    };
    let sent = |to: &[&str]| {
        let out = steps.iter().filter(|step| step.phase != Phase::Receive);
        let start = out
            .clone()
            .find(|step| step.event == "virtio_queue_notify")?;
        let mut later = out.filter(|step| step.number > start.number && step.queue == start.queue);
        let end = later.find(|step| to.contains(&&*step.event))?;
        let (start, end) = (start.time?, end.time?);
        (start.clock == end.clock).then_some(end.ns - start.ns)
    };
    let kicks = timeline.kicks.as_ref();
    let guest = Some(Layer::Guest);
    let mut frames = timeline.frames.iter();
    let out = frames.find(|frame| frame.direction == Direction::Out);
    let mut rows = vec![
        (
            guest,
            "steps",
            Unit::Count,
            count(&|s| s.layer == Layer::Guest),
        ),
        (
            guest,
            "from the socket to the doorbell",
            Unit::Ns,
            between("SocketSend", &["DoorbellRing"]),
        ),
        (
            guest,
            "between the doorbell's two records",
            Unit::Ns,
            kicks.map(|kicks| kicks.ns),
        ),
        (
            guest,
            "the same, median of the run's kicks",
            Unit::Ns,
            kicks
                .and_then(|kicks| kicks.spread_ns)
                .map(|[_, median, _]| median),
        ),
        (
            guest,
            "interrupts that a handler took",
            Unit::Count,
            named(&["VringInterrupt", "IntxInterrupt"]),
        ),
    ];
    for layer in Layer::ALL {
        let is_host = !matches!(layer, Layer::Guest | Layer::Wire);
        if !is_host {
            continue;
        }
        rows.push((
            Some(layer),
            "steps",
            Unit::Count,
            count(&|s| s.layer == layer),
        ));
        if layer == Layer::Kvm {
            rows.push((
                Some(layer),
                "exits (kvm_exit)",
                Unit::Count,
                named(&["kvm_exit"]),
            ));
        }
    }
    let device = Some(Layer::QemuMain);
    rows.extend([
        (
            device,
            "interrupts raised",
            Unit::Count,
            named(&[
                "virtio_notify",
                "virtio_notify_irqfd",
                "virtio_notify_irqfd_deferred_fn",
            ]),
        ),
        (
            device,
            "from the notification to the chain taken",
            Unit::Ns,
            sent(&["virtqueue_pop"]),
        ),
        (
            device,
            "from the notification to the chain given back",
            Unit::Ns,
            sent(&["virtqueue_flush", "virtqueue_fill"]),
        ),
        (
            Some(Layer::Wire),
            "bytes of the frame out",
            Unit::Bytes,
            out.map(|frame| (frame.wire.len() / 2) as f64),
        ),
        (
            Some(Layer::Wire),
            "from the frame in to the frame out",
            Unit::Ns,
            between("frame sent", &["frame received"]),
        ),
    ]);
    rows
}
