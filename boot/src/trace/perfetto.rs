//! The timeline in Chrome's trace event format, which the Perfetto UI and
//! `chrome://tracing` load: a track a layer, flow arrows from cause to effect,
//! and a counter of what the device holds.
//!
//! Only a slice can have an arrow. A record is a moment; its slice lasts until
//! the next record of its layer, and is as short as can be where there is none
//! (`args.measured` tells which). Times are whole nanoseconds, written so that
//! slices of a track do not overlap in a reader that rounds to nanoseconds, in
//! one that cuts off, nor in one that adds microseconds.
//!
//! Clocks that cannot be compared do not share an axis: each has a process of
//! its own, and no arrow leads from one to the other (`args` names the cause).
//!
//! The format: "Trace Event Format", Google, the JSON object form.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::timeline::{Clock, Layer, Phase, Step, Timeline};

/// The trace as a JSON document.
pub fn render(timeline: &Timeline) -> Value {
    let mut processes: BTreeMap<Axis, Vec<&Step>> = BTreeMap::new();
    for step in &timeline.steps {
        processes
            .entry(Axis::of(step, timeline))
            .or_default()
            .push(step);
    }
    let several = processes.keys().any(|axis| axis.clock != 0);
    let mut events = Vec::new();
    for (axis, steps) in &processes {
        let slices = slices(steps);
        axis.describe(several, timeline, &mut events);
        draw(*axis, &slices, timeline, &mut events);
        counters(*axis, &slices, &mut events);
        flows(*axis, &slices, &mut events);
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
            "conclusion": timeline.conclusion(),
            "joins": timeline.joins,
            "absent": timeline.absent,
            "clocks": timeline.clocks,
        },
        "traceEvents": events,
    })
}

/// Steps whose times can be compared are a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Axis {
    attach: bool,
    /// As [`ClockInfo::axis`](super::timeline::ClockInfo::axis).
    clock: u8,
}

impl Axis {
    fn of(step: &Step, timeline: &Timeline) -> Self {
        let clock = step.time.map(|time| time.clock);
        let mut clocks = timeline.clocks.iter();
        let info = clocks.find(|info| Some(info.clock) == clock);
        Self {
            attach: step.phase == Phase::Attach,
            // A clock of which nothing is known cannot be compared.
            clock: match clock {
                None | Some(Clock::GuestTsc) => 0,
                Some(_) => info.map_or(1, |info| info.axis),
            },
        }
    }

    fn process(self) -> usize {
        1 + usize::from(self.clock) + 2 * usize::from(self.attach)
    }

    /// Names of the process and of its tracks, and their order. `several` is
    /// whether there are clocks that cannot be compared.
    fn describe(self, several: bool, timeline: &Timeline, events: &mut Vec<Value>) {
        let what = match self.attach {
            false => "The journey of a packet",
            true => "How the hook was attached (a time axis of its own)",
        };
        let name = match (several, self.clock) {
            (false, _) => what.to_owned(),
            (true, 0) => format!("{what}, on the guest's clock"),
            (true, _) => {
                format!("{what}, on the host's clock: not comparable with the guest's")
            }
        };
        let process = self.process();
        let mut say = |what: &str, thread: usize, args: Value| {
            events.push(json!({
                "ph": "M", "name": what, "pid": process, "tid": thread, "args": args,
            }));
        };
        say("process_name", 0, json!({ "name": name }));
        say("process_sort_index", 0, json!({ "sort_index": process }));
        for layer in timeline.run.layers() {
            let thread = track(layer);
            say(
                "thread_name",
                thread,
                json!({ "name": timeline.run.title(layer) }),
            );
            say("thread_sort_index", thread, json!({ "sort_index": thread }));
        }
    }
}

/// The thread that stands for a layer, from 1.
fn track(layer: Layer) -> usize {
    match layer {
        Layer::Guest => 1,
        Layer::Kvm => 2,
        Layer::QemuVcpu | Layer::VmmVcpu => 3,
        Layer::QemuMain | Layer::VmmOther => 4,
        Layer::Wire => 5,
    }
}

/// Nanoseconds as the format's microseconds: a reader that cuts off what is
/// below a nanosecond has the same number.
fn microseconds(ns: u64) -> f64 {
    let us = ns as f64 / 1000.0;
    match us * 1000.0 < ns as f64 {
        true => us.next_up(),
        false => us,
    }
}

/// The length of a slice: its start and this, added, are not beyond its end.
fn length(slice: &Slice) -> f64 {
    let [start, end] = [slice.start, slice.end].map(microseconds);
    let exact = (slice.end - slice.start) as f64 / 1000.0;
    let lengths = [exact, end - start];
    let fits = lengths.into_iter().find(|length| start + length <= end);
    fits.unwrap_or((end - start).next_down())
}

/// A step with its place, in whole nanoseconds.
struct Slice<'a> {
    step: &'a Step,
    start: u64,
    /// At least one more.
    end: u64,
    /// Whether it lasts until the next record of its layer.
    measured: bool,
}

/// The slices of a process: no two of a track overlap.
fn slices<'a>(steps: &[&'a Step]) -> Vec<Slice<'a>> {
    // On the process's own clock, unless a step has no reading.
    let timed = steps.iter().all(|step| step.time.is_some());
    let at = |step: &Step| match step.time.filter(|_| timed) {
        Some(time) => time.ns,
        None => step.drawn_at_ns,
    };
    let zero = steps.iter().map(|step| at(step)).fold(f64::MAX, f64::min);
    let mut slices: Vec<Slice> = Vec::new();
    for layer in Layer::ALL {
        let mine = steps.iter().filter(|step| step.layer == layer);
        let mut mine: Vec<(u64, &Step)> = mine
            .map(|step| ((at(step) - zero).round() as u64, *step))
            .collect();
        mine.sort_by_key(|(at, _)| *at);
        let mut free = 0;
        for (place, (at, step)) in mine.iter().enumerate() {
            let start = free.max(*at);
            let next = mine.get(place + 1).map(|(at, _)| *at).filter(|_| timed);
            let end = next.unwrap_or(start).max(start.saturating_add(1));
            slices.push(Slice {
                step,
                start,
                end,
                measured: next.is_some(),
            });
            free = end;
        }
    }
    slices
}

fn draw(axis: Axis, slices: &[Slice], timeline: &Timeline, events: &mut Vec<Value>) {
    for slice in slices {
        let step = slice.step;
        let mut args = json!({
            "step": step.number + 1,
            "phase": step.phase.title(),
            "event": step.event,
            "sentence": step.sentence,
            "measured": slice.measured,
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
            put("queue", step.queue.map(|queue| queue.to_string()));
            put("linux", step.linux.clone());
            put("specification", step.section.clone());
            put(
                "instruction",
                step.instruction
                    .as_ref()
                    .map(|i| format!("{} ({}) at {:#x}", i.text, i.bytes, i.address)),
            );
            let cause = step.caused_by.and_then(|cause| timeline.steps.get(cause));
            put(
                "caused by",
                cause.map(|cause| format!("step {}, {}", cause.number + 1, name(cause))),
            );
            for value in &step.values {
                put(&format!("value: {}", value.name), Some(value.value.clone()));
            }
            if !step.stack.is_empty() {
                args.insert("stack".to_owned(), json!(step.stack));
            }
        }
        events.push(json!({
            "ph": "X",
            "name": name(step),
            "cat": step.layer.title(),
            "pid": axis.process(),
            "tid": track(step.layer),
            "ts": microseconds(slice.start),
            "dur": length(slice),
            "args": args,
        }));
    }
}

fn name(step: &Step) -> &str {
    step.function.as_deref().unwrap_or(&step.event)
}

/// How many chains the device holds, whenever a record tells.
fn counters(axis: Axis, slices: &[Slice], events: &mut Vec<Value>) {
    for slice in slices {
        let Some(snapshot) = &slice.step.snapshot else {
            continue;
        };
        if let Some(outstanding) = snapshot.outstanding {
            events.push(json!({
                "ph": "C",
                "name": format!("{} queue: chains with the device", snapshot.name),
                "pid": axis.process(),
                "tid": 0,
                "ts": microseconds(slice.start),
                "args": { "chains": outstanding },
            }));
        }
    }
}

/// An arrow from what made a step happen, on the same clock.
fn flows(axis: Axis, slices: &[Slice], events: &mut Vec<Value>) {
    for slice in slices {
        let cause = slice.step.caused_by.and_then(|number| {
            let mut slices = slices.iter();
            slices.find(|cause| cause.step.number == number)
        });
        // Less than the clock of one of them can tell.
        let Some(cause) = cause.filter(|cause| cause.start <= slice.start) else {
            continue;
        };
        let mut end = |phase: &str, at: &Slice| {
            let mut event = json!({
                "ph": phase,
                "id": slice.step.number,
                "name": "causes",
                "cat": "cause",
                "pid": axis.process(),
                "tid": track(at.step.layer),
                "ts": microseconds(at.start),
            });
            if phase == "f" {
                // The arrow ends at the slice around it, not at the next one.
                event["bp"] = "e".into();
            }
            events.push(event);
        };
        end("s", cause);
        end("f", slice);
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

    /// Its habit, and what it makes of times in microseconds, and of lengths.
    type Reader = (&'static str, fn(f64) -> f64);
    const READERS: [Reader; 3] = [
        ("rounds to nanoseconds", |us| (us * 1000.0).round()),
        ("cuts nanoseconds off", |us| (us * 1000.0).trunc()),
        ("stays with microseconds", |us| us),
    ];

    #[test]
    fn slices_of_a_track_do_not_overlap() {
        let trace = render(&sample::timeline());
        let slices = of_kind(&trace, "X");
        for (place, one) in slices.iter().enumerate() {
            for other in &slices[place + 1..] {
                if one["pid"] == other["pid"] && one["tid"] == other["tid"] {
                    for (reader, read) in READERS {
                        let [from, to] = [one, other].map(|slice| read(start(slice)));
                        let lengths = [one, other].map(|s| read(s["dur"].as_f64().unwrap()));
                        let apart = from + lengths[0] <= to || to + lengths[1] <= from;
                        assert!(apart, "one that {reader}: {one} {other}");
                    }
                }
            }
        }
    }

    #[test]
    fn no_reader_sees_neighbours_overlap() {
        let step = &sample::timeline().steps[0];
        for start in 0..20_000 {
            let middle = start + 1 + start * 7919 % 5000;
            let one = Slice {
                step,
                start,
                end: middle,
                measured: true,
            };
            for (reader, read) in READERS {
                let end = read(microseconds(start)) + read(length(&one));
                assert!(
                    end <= read(microseconds(middle)),
                    "one that {reader}: {start} {middle}"
                );
            }
            assert_eq!((microseconds(start) * 1000.0) as u64, start);
            assert_eq!((length(&one) * 1000.0).round() as u64, middle - start);
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
                assert_eq!((slice["dur"].as_f64().unwrap() * 1000.0).round(), 1.0);
            }
        }
    }

    #[test]
    fn clocks_that_cannot_be_compared_have_processes_of_their_own() {
        let mut timeline = sample::timeline();
        for joined in [false, true] {
            for info in &mut timeline.clocks {
                info.axis = u8::from(!joined && info.clock != Clock::GuestTsc);
            }
            let trace = render(&timeline);
            let mut processes: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
            for slice in of_kind(&trace, "X") {
                let layer = slice["cat"].as_str().unwrap();
                let process = processes.entry(slice["pid"].as_u64().unwrap());
                process.or_default().push(layer);
            }
            for layers in processes.values() {
                let guests = layers.iter().filter(|layer| **layer == "guest").count();
                let alone = guests == 0 || guests == layers.len();
                assert!(joined || alone, "{layers:?}");
            }
            let names: Vec<_> = of_kind(&trace, "M")
                .into_iter()
                .filter(|event| event["name"] == "process_name")
                .map(|event| event["args"]["name"].as_str().unwrap())
                .collect();
            assert_eq!(names.iter().any(|n| n.contains("not comparable")), !joined);
            let starts = of_kind(&trace, "X").into_iter().map(start);
            assert!(starts.fold(f64::MAX, f64::min) == 0.0);
        }
    }
}
