//! The timeline in Chrome's trace event format, which the Perfetto UI and
//! `chrome://tracing` load: a track a layer, flow arrows from cause to effect,
//! and a counter of what the device holds.
//!
//! Only a slice can have an arrow. A record is a moment; its slice lasts until
//! the next record of its layer where that was measured, and is as short as
//! can be where it was not. `args.measured` tells which.
//!
//! The format: "Trace Event Format", Google, the JSON object form.

use serde_json::{Value, json};

use super::timeline::{Delta, Layer, Phase, Step, Timeline};

/// How long a slice is whose end was not measured, in nanoseconds.
const MOMENT: f64 = 1.0;

/// The trace as a JSON document.
pub fn render(timeline: &Timeline) -> Value {
    let mut events = Vec::new();
    for axis in Axis::ALL {
        let steps: Vec<_> = timeline
            .steps
            .iter()
            .filter(|step| Axis::of(step.phase) == axis)
            .collect();
        if steps.is_empty() {
            continue;
        }
        axis.describe(&mut events);
        slices(axis, &steps, &mut events);
        counters(axis, &steps, &mut events);
        flows(axis, &steps, timeline, &mut events);
    }
    json!({
        "displayTimeUnit": "ns",
        "otherData": {
            "made by": concat!("kickpath ", env!("CARGO_PKG_VERSION")),
            "accelerator": timeline.run.accelerator,
            "machine": timeline.run.machine,
            "transport": timeline.run.device.transport,
            "real exits": timeline.run.real_exits,
            "sound": timeline.is_sound(),
            "joins": timeline.joins,
            "absent": timeline.absent,
            "clocks": timeline.clocks,
        },
        "traceEvents": events,
    })
}

/// Steps that share an axis of time ([`Step::drawn_at_ns`]) are a process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Axis {
    Journey = 1,
    Attach = 2,
}

impl Axis {
    const ALL: [Self; 2] = [Self::Journey, Self::Attach];

    fn of(phase: Phase) -> Self {
        match phase {
            Phase::Attach => Self::Attach,
            Phase::Receive | Phase::Transmit | Phase::Return => Self::Journey,
        }
    }

    /// Names of the process and of its tracks, and their order.
    fn describe(self, events: &mut Vec<Value>) {
        let name = match self {
            Self::Journey => "The journey of a packet",
            Self::Attach => "How the hook was attached (a time axis of its own)",
        };
        let mut say = |what: &str, thread: usize, args: Value| {
            events.push(json!({
                "ph": "M", "name": what, "pid": self as u32, "tid": thread, "args": args,
            }));
        };
        say("process_name", 0, json!({ "name": name }));
        say(
            "process_sort_index",
            0,
            json!({ "sort_index": self as u32 }),
        );
        for layer in Layer::ALL {
            let thread = track(layer);
            say("thread_name", thread, json!({ "name": layer.title() }));
            say("thread_sort_index", thread, json!({ "sort_index": thread }));
        }
    }
}

/// The thread that stands for a layer, from 1.
fn track(layer: Layer) -> usize {
    match layer {
        Layer::Guest => 1,
        Layer::Kvm => 2,
        Layer::QemuVcpu => 3,
        Layer::QemuMain => 4,
        Layer::Wire => 5,
    }
}

/// Nanoseconds as the format's microseconds.
fn microseconds(ns: f64) -> f64 {
    ns / 1000.0
}

/// One slice a step.
fn slices(axis: Axis, steps: &[&Step], events: &mut Vec<Value>) {
    for (place, step) in steps.iter().enumerate() {
        let length = length(step, &steps[place + 1..]);
        let mut args = json!({
            "step": step.number + 1,
            "phase": step.phase.title(),
            "event": step.event,
            "sentence": step.sentence,
            "measured": length.is_some(),
        });
        if let Value::Object(args) = &mut args {
            let mut put = |key: &str, value: Option<String>| {
                if let Some(value) = value {
                    args.insert(key.to_owned(), value.into());
                }
            };
            put(
                "source",
                step.source
                    .as_ref()
                    .map(|s| format!("{}:{}", s.file, s.line)),
            );
            put("CPU", step.cpu.map(|cpu| cpu.to_string()));
            put("linux", step.linux.clone());
            put("specification", step.section.clone());
            put(
                "instruction",
                step.instruction
                    .as_ref()
                    .map(|i| format!("{} ({}) at {:#x}", i.text, i.bytes, i.address)),
            );
            if let Delta::Causal { rule, .. } = &step.delta {
                put("placed by", Some(rule.clone()));
            }
            for value in &step.values {
                put(&format!("value: {}", value.name), Some(value.value.clone()));
            }
            if !step.stack.is_empty() {
                args.insert("stack".to_owned(), json!(step.stack));
            }
        }
        events.push(json!({
            "ph": "X",
            "name": step.function.as_deref().unwrap_or(&step.event),
            "cat": step.layer.title(),
            "pid": axis as u32,
            "tid": track(step.layer),
            "ts": microseconds(step.drawn_at_ns),
            "dur": microseconds(length.unwrap_or(MOMENT)),
            "args": args,
        }));
    }
}

/// Nanoseconds until the next record of the step's layer, where measured, cut
/// so that slices of one track do not overlap.
fn length(step: &Step, later: &[&Step]) -> Option<f64> {
    let next = later.iter().position(|next| next.layer == step.layer)?;
    let room = (later[next].drawn_at_ns - step.drawn_at_ns).max(0.0);
    match &later[next].delta {
        Delta::Causal {
            since: Some(since), ..
        } if since.step == step.number => Some(since.ns.min(room)),
        _ => later[..=next]
            .iter()
            .all(|step| matches!(step.delta, Delta::Measured { .. }))
            .then_some(room),
    }
}

/// How many chains the device holds, whenever a record tells.
fn counters(axis: Axis, steps: &[&Step], events: &mut Vec<Value>) {
    for step in steps {
        let Some(snapshot) = &step.snapshot else {
            continue;
        };
        if let Some(outstanding) = snapshot.outstanding {
            events.push(json!({
                "ph": "C",
                "name": format!("{} queue: chains with the device", snapshot.name),
                "pid": axis as u32,
                "tid": 0,
                "ts": microseconds(step.drawn_at_ns),
                "args": { "chains": outstanding },
            }));
        }
    }
}

/// An arrow from what made a step happen.
fn flows(axis: Axis, steps: &[&Step], timeline: &Timeline, events: &mut Vec<Value>) {
    for step in steps {
        let Some(cause) = step
            .caused_by
            .and_then(|number| timeline.steps.get(number))
            .filter(|cause| Axis::of(cause.phase) == axis)
        else {
            continue;
        };
        let mut end = |phase: &str, at: &Step| {
            let mut event = json!({
                "ph": phase,
                "id": step.number,
                "name": "causes",
                "cat": "cause",
                "pid": axis as u32,
                "tid": track(at.layer),
                "ts": microseconds(at.drawn_at_ns),
            });
            if phase == "f" {
                // The arrow ends at the slice around it, not at the next one.
                event["bp"] = "e".into();
            }
            events.push(event);
        };
        end("s", cause);
        end("f", step);
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn events(trace: &Value) -> &Vec<Value> {
        trace["traceEvents"].as_array().unwrap()
    }
    fn of_kind<'a>(trace: &'a Value, kind: &str) -> Vec<&'a Value> {
        events(trace).iter().filter(|e| e["ph"] == kind).collect()
    }
    fn start(event: &Value) -> f64 {
        event["ts"].as_f64().unwrap()
    }
    fn end(event: &Value) -> f64 {
        start(event) + event["dur"].as_f64().unwrap()
    }

    #[test]
    fn every_event_has_what_the_format_demands() {
        let trace = render(&sample::timeline());
        for event in events(&trace) {
            let kind = event["ph"].as_str().unwrap();
            assert!(event["name"].is_string(), "{event}");
            assert!(event["pid"].is_u64() && event["tid"].is_u64(), "{event}");
            match kind {
                "M" => assert!(event["args"].is_object(), "{event}"),
                "X" => assert!(start(event) >= 0.0 && end(event) > start(event), "{event}"),
                "C" => assert!(event["args"]["chains"].is_u64(), "{event}"),
                "s" => assert!(event["id"].is_u64(), "{event}"),
                "f" => assert!(event["id"].is_u64() && event["bp"] == "e", "{event}"),
                _ => panic!("{event}"),
            }
        }
        assert_eq!(of_kind(&trace, "X").len(), sample::timeline().steps.len());
    }

    #[test]
    fn each_layer_has_a_named_track() {
        let trace = render(&sample::timeline());
        let slices = of_kind(&trace, "X");
        let names = of_kind(&trace, "M");
        for slice in slices {
            let name = names
                .iter()
                .find(|m| {
                    m["name"] == "thread_name"
                        && m["pid"] == slice["pid"]
                        && m["tid"] == slice["tid"]
                })
                .unwrap();
            assert_eq!(name["args"]["name"], slice["cat"]);
        }
    }

    #[test]
    fn slices_of_a_track_do_not_overlap() {
        let trace = render(&sample::timeline());
        let slices = of_kind(&trace, "X");
        for (place, one) in slices.iter().enumerate() {
            for other in &slices[place + 1..] {
                if one["pid"] == other["pid"] && one["tid"] == other["tid"] {
                    // A moment may reach into the next one by its own length.
                    assert!(end(one) <= start(other) + 0.0011, "{one} {other}");
                }
            }
        }
    }

    #[test]
    fn an_arrow_begins_and_ends_at_slices() {
        let trace = render(&sample::timeline());
        let (starts, ends) = (of_kind(&trace, "s"), of_kind(&trace, "f"));
        assert!(!starts.is_empty());
        assert_eq!(starts.len(), ends.len());
        for (from, to) in starts.iter().zip(&ends) {
            assert_eq!(from["id"], to["id"]);
            assert!(start(from) <= start(to));
            for arrow in [from, to] {
                let bound = of_kind(&trace, "X").into_iter().any(|slice| {
                    slice["pid"] == arrow["pid"]
                        && slice["tid"] == arrow["tid"]
                        && start(slice) <= start(arrow)
                        && start(arrow) <= end(slice)
                });
                assert!(bound, "{arrow}");
            }
        }
    }

    #[test]
    fn what_was_not_measured_is_not_drawn_as_long() {
        let trace = render(&sample::timeline());
        for slice in of_kind(&trace, "X") {
            if slice["args"]["measured"] == false {
                assert_eq!(slice["dur"].as_f64().unwrap(), MOMENT / 1000.0);
            }
        }
    }
}
