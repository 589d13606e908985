//! Makes the timeline of a recording: chooses the records of the one datagram
//! in every layer, puts them into the order of cause and effect, and measures
//! between those whose clocks can be compared.

mod draft;
mod frames;
mod kvm;
mod order;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use kickpath_trace::Event;

use super::explain::{self, Context};
use super::join::{self, QueueWindow};
use super::journey::{self, Journey};
use super::qemu::{self, QemuRecord};
use super::queues::{self, Queues, Touched};
use super::recording::{Recording, WireFrame};
use super::timeline::{
    Absent, Clock, Delta, Direction, Layer, Phase, SCHEMA, Source, Step, Timeline,
};
use crate::wire::ECHO_PORT;
use draft::{Draft, Drafts};
use kvm::Kvm;

/// A recording that does not tell of the datagram.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest's records do not tell of the datagram of {bytes} bytes")]
pub struct NoJourney {
    /// Its content in bytes.
    pub bytes: usize,
}

/// Makes the timeline of a recording.
///
/// # Errors
/// The guest's records do not have the datagram.
pub fn build(recording: &Recording) -> Result<Timeline, NoJourney> {
    let bytes = recording.probe.bytes;
    let journey = journey::find(&recording.guest, recording.window.guest, bytes);
    let journey = journey.ok_or(NoJourney { bytes })?;
    let builder = Builder::new(recording, journey);
    Ok(builder.build())
}

struct Builder<'a> {
    recording: &'a Recording,
    journey: Journey,
    /// QEMU's events, and the place of the window's first.
    log: Vec<QemuRecord>,
    log_window: usize,
    windows: BTreeMap<u16, QueueWindow>,
    /// The guest's records that become steps, by place.
    shown: BTreeSet<usize>,
    touched: Touched,
    context: Context,
    kvm: Kvm,
    /// The guest's times before and behind each kick of the sent frame's queue.
    rings: Vec<(u64, Option<u64>)>,
}

impl<'a> Builder<'a> {
    fn new(recording: &'a Recording, journey: Journey) -> Self {
        let records = &recording.guest;
        let split = recording.window.qemu.min(recording.qemu_log.len());
        // The offset is where a line began; a log that was cut there may not
        // be text.
        let (before, after) = recording
            .qemu_log
            .split_at_checked(split)
            .unwrap_or((&recording.qemu_log, ""));
        let mut log = qemu::parse(before).records;
        let log_window = log.len();
        log.extend(qemu::parse(after).records);
        let addresses = join::queue_addresses(&log);
        let first = recording.window.guest.min(records.len());
        let windows = join::windows(
            (&records[first..], first),
            (&log[log_window..], log_window),
            &addresses,
            &recording.threads,
        );
        let attach = (0..first).filter(|&place| is_attaching(records[place].event));
        let shown: BTreeSet<usize> = attach
            .chain(journey.awake.clone())
            .chain(journey.reclaim)
            .collect();
        let touched = queues::touched(records, &shown);
        let queue = records[journey.start_xmit].queue.unwrap_or_default();
        let rings = rings(recording, queue);
        let kvm = Kvm::new(recording, queue, &rings);
        Self {
            recording,
            journey,
            log,
            log_window,
            windows,
            shown,
            touched,
            context: Context::new(records, &recording.run.device.transport),
            kvm,
            rings,
        }
    }

    fn build(&self) -> Timeline {
        let mut drafts = Drafts::default();
        self.attach(&mut drafts);
        let raised = self.receive(&mut drafts);
        self.transmit(&mut drafts);
        self.give_back(&mut drafts);
        drafts.link_interrupt(raised);
        self.kvm_by_time(&mut drafts);
        let start = self.journey.awake.start;
        let (steps, clocks) = order::finish(self.recording, self.kvm.offset, drafts, start);
        let used = |clock| {
            steps
                .iter()
                .any(|step| step.time.is_some_and(|time| time.clock == clock))
        };
        let mut joins = join::joins(&self.windows, self.context, self.handled());
        if self.recording.kvm.is_some() && self.journey.doorbell.is_some() {
            let queue = self.recording.guest[self.journey.start_xmit].queue;
            let window = queue.and_then(|queue| self.windows.get(&queue));
            joins.push(
                self.kvm
                    .join(window.map_or(0, |window| window.doorbells.len())),
            );
        }
        if !self.recording.window.quiet {
            for join in &mut joins {
                join.detail += "; the machine was never quiet, so counts at the ends may be off";
            }
        }
        let frames = frames::frames(self.recording, &self.journey, &steps);
        let mut timeline = Timeline {
            schema: SCHEMA,
            run: self.recording.run.clone(),
            clocks: clocks.describe(used, self.recording.run.real_exits),
            steps,
            frames,
            joins,
            absent: [&self.recording.absent[..], &self.kvm.absent].concat(),
            ring: self.recording.ring,
        };
        self.note_absent(&mut timeline);
        timeline
    }

    /// Interrupts of the device that the guest's handlers saw in the window.
    fn handled(&self) -> Option<usize> {
        if self.recording.run.device.interrupts == "poll" {
            return None;
        }
        let window = self.recording.guest.iter();
        let window = window.skip(self.recording.window.guest);
        Some(
            window
                .filter(|record| match record.event {
                    Event::VringInterrupt => true,
                    Event::IntxInterrupt => record.a & 1 != 0,
                    _ => false,
                })
                .count(),
        )
    }

    /// How the hook was attached: the guest's own records, and what QEMU did
    /// when the driver was ready.
    fn attach(&self, drafts: &mut Drafts) {
        let first = self.recording.window.guest;
        let places = self.shown.iter().filter(|place| **place < first);
        for &place in places {
            drafts.push(self.guest(place, Phase::Attach));
        }
        let before = &self.log[..self.log_window];
        let reset = before
            .iter()
            .rposition(|r| r.event == "virtio_set_status" && r.number("val") == Some(0));
        for record in &before[reset.map_or(0, |place| place + 1)..] {
            let shown = match record.event.as_str() {
                // DRIVER_OK.
                "virtio_set_status" => record.number("val").is_some_and(|val| val & 4 != 0),
                "kvm_set_ioeventfd_pio" | "kvm_set_ioeventfd_mmio" => {
                    record.number("assign") == Some(1)
                }
                _ => false,
            };
            if shown {
                let draft = self.qemu(record, Phase::Attach);
                drafts.push(draft.rule("QEMU does this when the driver sets DRIVER_OK"));
            }
        }
    }

    /// From the wire to the socket. Returns the place of the step that raised
    /// the interrupt.
    fn receive(&self, drafts: &mut Drafts) -> Option<usize> {
        let phase = Phase::Receive;
        if let Some(frame) = self.wire_frame(Direction::In) {
            drafts.push(self.wire(frame, phase));
        }
        let receive = self.recording.guest[self.journey.pop_received].queue;
        let window = receive.and_then(|queue| self.windows.get(&queue));
        let mut raised = None;
        if let Some(window) = window
            && let Some(number) = position(&window.pops_used, self.journey.pop_received)
            && let Some(&pop) = window.pops.get(number)
        {
            let mut cause = drafts.last();
            for place in self.group(pop) {
                let draft = self.qemu(&self.log[place], phase).caused_by(cause);
                let draft = draft.rule("the n-th chain that QEMU fills is the n-th popped");
                let number = drafts.push(draft);
                raised = Some(number);
                cause = None;
            }
        }
        for place in self.journey.awake.start..=self.journey.socket_receive {
            let draft = self.guest(place, phase);
            drafts.push(draft.rule("the guest wakes for what the device gave back"));
        }
        raised
    }

    /// From the socket to the wire, until the guest sleeps.
    fn transmit(&self, drafts: &mut Drafts) {
        let phase = Phase::Transmit;
        let records = &self.recording.guest;
        let rest = self.journey.socket_receive + 1..self.journey.awake.end;
        // Without a doorbell the device finds the chain by itself.
        let hand_over = self.journey.doorbell.unwrap_or_else(|| {
            let mut later = rest.clone().skip_while(|place| *place < self.journey.add);
            let shown = later.find(|place| records[*place].event == Event::KickPrepare);
            shown.unwrap_or(self.journey.add)
        });
        let queue = records[self.journey.start_xmit].queue.unwrap_or_default();
        let window = self.windows.get(&queue);
        let notify = self.journey.doorbell.and_then(|doorbell| {
            let window = window?;
            let number = window.doorbells.iter().position(|(p, _)| *p == doorbell)?;
            window.notify_of(number)
        });
        let is_vcpu = |place: usize| {
            let thread = self.log[place].thread;
            self.recording.threads.vcpus.contains(&thread)
        };
        let synchronous = notify.filter(|place| is_vcpu(*place));

        let mut ring = None;
        let mut handed_over = false;
        for place in rest {
            let draft = self.guest(place, phase);
            let draft = match handed_over {
                true => draft.rule("the guest's own order"),
                false => draft.rule("the guest goes on by itself"),
            };
            let number = drafts.push(draft);
            if place == hand_over {
                ring = Some(number);
                self.kvm_by_order(drafts, ring);
                for place in synchronous.map(|n| self.access(n)).unwrap_or_default() {
                    let draft = self.qemu(&self.log[place], phase);
                    let draft = draft.caused_by(ring.filter(|_| drafts.last() == ring));
                    drafts.push(draft.rule("the guest's write is carried out before it goes on"));
                }
            }
            let returned = place > hand_over || self.journey.doorbell.is_none();
            if place >= hand_over && returned && !handed_over {
                handed_over = true;
                self.device(drafts, window, notify.filter(|n| !is_vcpu(*n)), ring);
            }
        }
    }

    /// What QEMU's main loop does with the chain.
    fn device(
        &self,
        drafts: &mut Drafts,
        window: Option<&QueueWindow>,
        notify: Option<usize>,
        ring: Option<usize>,
    ) {
        let phase = Phase::Transmit;
        let mut cause = ring;
        if let Some(notify) = notify {
            let draft = self.qemu(&self.log[notify], phase).caused_by(cause.take());
            drafts.push(draft.rule("the n-th write to a doorbell is its n-th notification"));
        }
        let pop = window.and_then(|window| {
            let number = position(&window.adds, self.journey.add)?;
            window.pops.get(number).copied()
        });
        let mut popped = None;
        for place in pop.map(|pop| self.group(pop)).unwrap_or_default() {
            let draft = self.qemu(&self.log[place], phase).caused_by(cause.take());
            let number = drafts.push(draft.rule("the n-th chain added is the n-th taken"));
            if popped.is_none() {
                popped = Some(number);
                if let Some(frame) = self.wire_frame(Direction::Out) {
                    let draft = self.wire(frame, phase).caused_by(popped);
                    drafts.push(draft.rule("QEMU sends what it has taken"));
                }
            }
        }
    }

    /// The sent buffer, taken back.
    fn give_back(&self, drafts: &mut Drafts) {
        if let Some(place) = self.journey.reclaim
            && !self.journey.awake.contains(&place)
        {
            let draft = self.guest(place, Phase::Return);
            drafts.push(draft.rule("the guest's own order"));
        }
    }

    /// A chain's events in QEMU: its pop and what the same thread does after
    /// it, until it turns to another chain.
    fn group(&self, pop: usize) -> Vec<usize> {
        const LONGEST: usize = 12;
        let thread = self.log[pop].thread;
        let mut group = vec![pop];
        let mut flushed = false;
        for (place, record) in self.log.iter().enumerate().skip(pop + 1) {
            if record.thread != thread {
                continue;
            }
            let goes_on = match record.event.as_str() {
                "virtqueue_pop" | "virtio_queue_notify" => false,
                "virtqueue_fill" | "virtqueue_flush" => !flushed,
                // What raises the interrupt, and only that.
                _ => flushed,
            };
            if !goes_on || group.len() == LONGEST {
                break;
            }
            flushed |= record.event == "virtqueue_flush";
            group.push(place);
        }
        group
    }

    /// The guest's access that led to this notification in its own thread.
    fn access(&self, notify: usize) -> Vec<usize> {
        let thread = self.log[notify].thread;
        let mut access = vec![notify];
        let before = self.log[self.log_window..notify].iter().enumerate().rev();
        let mut carried_out = false;
        for (offset, record) in before.filter(|(_, record)| record.thread == thread) {
            match record.event.as_str() {
                "virtio_pci_notify_write" | "virtio_pci_notify_write_pio" if !carried_out => {}
                "memory_region_ops_write" if !carried_out => carried_out = true,
                "kvm_run_exit" => {
                    access.push(self.log_window + offset);
                    break;
                }
                _ => break,
            }
            access.push(self.log_window + offset);
        }
        access.reverse();
        access
    }

    /// The frame of the window on the wire: an Ethernet frame with a UDP
    /// datagram over IPv4 of the echo service and the probe's length.
    fn wire_frame(&self, direction: Direction) -> Option<&WireFrame> {
        let frames = self.recording.frames.iter().rev();
        let mut frames = frames.filter(|frame| frame.direction == direction);
        frames.find(|frame| frames::is_probe(&frame.bytes, self.recording.probe, direction))
    }

    fn guest(&self, place: usize, phase: Phase) -> Draft {
        let record = &self.recording.guest[place];
        let mut step = step(
            phase,
            Layer::Guest,
            record.event.name(),
            explain::guest(record, self.context),
        );
        step.source = Some(Source {
            file: record.file.clone(),
            line: record.line,
            module: record.module.clone(),
            excerpt: None,
        });
        step.queue = record.queue;
        let several = self.recording.guest.iter().any(|record| record.cpu != 0);
        step.cpu = several.then_some(record.cpu);
        if let Some(queue) = record.queue {
            let mut queues = Queues::default();
            for record in &self.recording.guest[..place] {
                queues.apply(record);
            }
            let changed = queues.apply(record);
            // The words of a packed ring have another meaning.
            step.snapshot = queues
                .snapshot(queue, &self.touched, self.context, changed)
                .filter(|_| !explain::is_packed(record));
        }
        if Some(place) == self.journey.doorbell {
            step.instruction.clone_from(&self.recording.instruction);
        }
        Draft::new(step, Clock::GuestTsc, record.tsc)
    }

    fn qemu(&self, record: &QemuRecord, phase: Phase) -> Draft {
        let layer = match self.recording.threads.vcpus.contains(&record.thread) {
            true => Layer::QemuVcpu,
            false => Layer::QemuMain,
        };
        let explanation = explain::qemu(record, self.recording.run.real_exits);
        let mut step = step(phase, layer, &record.event, explanation);
        step.thread = Some(record.thread);
        Draft::new(step, Clock::QemuLog, record.micros)
    }

    fn wire(&self, frame: &WireFrame, phase: Phase) -> Draft {
        let (event, sentence) = match frame.direction {
            Direction::In => (
                "frame sent",
                format!(
                    "The host's end of the cable sends a frame of {} bytes.",
                    frame.bytes.len()
                ),
            ),
            Direction::Out => (
                "frame received",
                format!(
                    "The host's end of the cable has the frame: {} bytes.",
                    frame.bytes.len()
                ),
            ),
        };
        let explanation = explain::Explanation {
            sentence,
            values: vec![explain::value("bytes", frame.bytes.len())],
            ..explain::Explanation::default()
        };
        let step = step(phase, Layer::Wire, event, explanation);
        Draft::new(step, Clock::Monotonic, frame.at.cast_unsigned())
    }

    fn note_absent(&self, timeline: &mut Timeline) {
        let mut absent = |what: &str, reason: String, enable: Option<&str>| {
            timeline.absent.push(Absent {
                what: what.to_owned(),
                reason,
                enable: enable.map(str::to_owned),
            });
        };
        if !self.recording.run.real_exits {
            absent(
                "KVM's events",
                "TCG translates the guest's code inside of QEMU: there is no VM exit, and the \
                 call of QEMU's device code stands for it"
                    .to_owned(),
                Some("cargo run -- trace --accel kvm"),
            );
        }
        let layer = |layer| timeline.steps.iter().any(|step| step.layer == layer);
        if !layer(Layer::QemuMain) && !layer(Layer::QemuVcpu) {
            absent(
                "QEMU's events",
                "QEMU's log does not tell of the datagram; this QEMU may be built without the \
                 trace backend 'log'"
                    .to_owned(),
                None,
            );
        }
        if self.journey.doorbell.is_none() {
            absent(
                "the kick",
                "the device did not want to be told: it was still at work on this queue".to_owned(),
                None,
            );
        } else if self.recording.instruction.is_none() {
            absent(
                "the doorbell's instruction",
                "the transport rings by a call, or the executable has no such function".to_owned(),
                None,
            );
        }
        if self.journey.reclaim.is_none() {
            absent(
                "the sent buffer's way back",
                "the driver did not take it back within the window".to_owned(),
                None,
            );
        }
        let queue = self.recording.guest[self.journey.start_xmit].queue;
        let window = queue.and_then(|queue| self.windows.get(&queue));
        if window.is_some_and(|window| window.flushed > 0 && window.interrupts == 0) {
            absent(
                "an interrupt for the sent frame",
                "the driver asks for none: it takes sent buffers back when it wakes for \
                 something else"
                    .to_owned(),
                None,
            );
        }
    }
}

/// A step with its explanation, and nothing else.
fn step(phase: Phase, layer: Layer, event: &str, explanation: explain::Explanation) -> Step {
    Step {
        number: 0,
        phase,
        layer,
        event: event.to_owned(),
        function: explanation.function.map(str::to_owned),
        source: None,
        linux: explanation.linux.map(str::to_owned),
        section: explanation
            .section
            .map(|section| format!("{}, {section}", explain::SPECIFICATION)),
        sentence: explanation.sentence,
        queue: None,
        cpu: None,
        values: explanation.values,
        time: None,
        delta: Delta::First,
        drawn_at_ns: 0.0,
        caused_by: None,
        thread: None,
        instruction: None,
        stack: Vec::new(),
        snapshot: None,
    }
}

/// The guest's times before and behind each write to a queue's doorbell.
fn rings(recording: &Recording, queue: u16) -> Vec<(u64, Option<u64>)> {
    let window = recording.guest.iter().skip(recording.window.guest);
    let mine: Vec<_> = window
        .filter(|record| record.queue == Some(queue))
        .filter(|record| matches!(record.event, Event::DoorbellRing | Event::DoorbellRang))
        .collect();
    let rings = mine.iter().enumerate();
    let rings = rings.filter(|(_, record)| record.event == Event::DoorbellRing);
    rings
        .map(|(place, record)| {
            let next = mine.get(place + 1);
            let rang = next.filter(|next| next.event == Event::DoorbellRang);
            (record.tsc, rang.map(|rang| rang.tsc))
        })
        .collect()
}

fn is_attaching(event: Event) -> bool {
    matches!(
        event,
        Event::FindVqsTry | Event::FindVqsResult | Event::SetupQueue | Event::AttachDoorbell
    )
}

fn position(places: &[usize], place: usize) -> Option<usize> {
    places.iter().position(|p| *p == place)
}

/// The port of the service that the window's datagram goes to.
const PROBE_PORT: u16 = ECHO_PORT;
