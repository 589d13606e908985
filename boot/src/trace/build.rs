//! Makes the timeline of a recording: chooses the records of the one datagram
//! in every layer, puts them into the order of cause and effect, and measures
//! between those whose clocks can be compared.

mod absent;
mod draft;
mod frames;
mod kicks;
mod kvm;
mod order;
mod rings;
#[cfg(test)]
mod tests;
mod vmm;

use std::collections::{BTreeMap, BTreeSet};

use kickpath_trace::Event;

use super::explain::{self, Context};
use super::join::{self, QueueWindow};
use super::journey::{self, Journey};
use super::qemu::{self, QemuRecord};
use super::recording::{Recording, WireFrame};
use super::timeline::{Clock, Delta, Direction, Layer, Phase, SCHEMA, Source, Step, Timeline};
use crate::wire::ECHO_PORT;
use draft::{Draft, Drafts, Origin};
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
    /// Lines of QEMU's log that are not events.
    unread: Vec<String>,
    windows: BTreeMap<u16, QueueWindow>,
    /// The guest's records that become steps, by place.
    shown: BTreeSet<usize>,
    context: Context,
    /// Which queue QEMU means by an address of its own.
    addresses: BTreeMap<u64, u16>,
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
        let qemu::QemuLog {
            records: mut log,
            mut unread,
        } = qemu::parse(before);
        let log_window = log.len();
        let window = qemu::parse(after);
        log.extend(window.records);
        unread.extend(window.unread);
        let context = Context::new(records, &log, &recording.run.device);
        let addresses = join::queue_addresses(&log);
        let first = recording.window.guest.min(records.len());
        let windows = join::windows(
            (&records[first..], first),
            (&log[log_window..], log_window),
            &addresses,
            &recording.threads,
            context.fill_is_flush,
        );
        let attach = (0..first).filter(|&place| is_attaching(records[place].event));
        let shown: BTreeSet<usize> = attach
            .chain(journey.awake.clone())
            .chain(journey.back.clone())
            .collect();
        let queue = records[journey.start_xmit].queue.unwrap_or_default();
        let rings = rings(recording, queue);
        let kvm = Kvm::new(recording, queue, &rings);
        Self {
            recording,
            journey,
            log,
            log_window,
            unread,
            windows,
            shown,
            context,
            addresses,
            kvm,
            rings,
        }
    }

    fn build(&self) -> Timeline {
        let mut drafts = Drafts::default();
        self.attach(&mut drafts);
        let raised = self.receive(&mut drafts);
        let sent = self.transmit(&mut drafts);
        self.give_back(&mut drafts);
        drafts.link_interrupt(raised);
        if self.recording.is_of_linux() {
            drafts.link_interrupt(sent);
        }
        self.kvm_by_time(&mut drafts);
        self.vmm_by_time(&mut drafts);
        let start = self.journey.awake.start;
        let (mut steps, origins, clocks) =
            order::finish(self.recording, self.kvm.offset, drafts, start);
        let replay = rings::Replay {
            guest: &self.recording.guest,
            log: &self.log,
            window: (self.recording.window.guest, self.log_window),
            addresses: &self.addresses,
            context: self.context,
        };
        self.attach_qemu_stack(&mut steps);
        // What is in Linux's rings no record tells.
        if !self.recording.is_of_linux() {
            replay.attach(&mut steps, &origins);
        }
        let used = |clock| {
            steps
                .iter()
                .any(|step| step.time.is_some_and(|time| time.clock == clock))
        };
        let mut joins = match self.recording.run.vmm {
            None => join::joins(&self.windows, self.context, self.handled()),
            Some(_) => self.vmm_joins(),
        };
        if self.recording.kvm.is_some() && self.journey.doorbell.is_some() {
            let queue = self.recording.guest[self.journey.start_xmit].queue;
            let window = queue.and_then(|queue| self.windows.get(&queue));
            joins.push(
                self.kvm
                    .join(window.map_or(0, |window| window.doorbells.len())),
            );
        }
        let frames = frames::frames(self.recording, &self.journey, &steps);
        let kicks = self.journey.doorbell.and_then(|followed| {
            let kvm = self
                .kvm
                .offset
                .map(|offset| (&self.kvm.records[..], offset));
            let hz = self.recording.clocks.guest_hz;
            kicks::kicks(&self.recording.guest, followed, kvm, hz)
        });
        let calls = explain::calls(&self.recording.run, &steps);
        let mut timeline = Timeline {
            schema: SCHEMA,
            quiet: self.recording.window.quiet,
            kicks,
            calls,
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

    /// Says at the step in which QEMU hears of the kick by what way it got there: that of the
    /// next kick of the queue, in the same thread.
    fn attach_qemu_stack(&self, steps: &mut [Step]) {
        let threads = &self.recording.threads;
        let Some(stack) = &self.recording.qemu_stack else {
            return;
        };
        let of_main = stack.thread == threads.main;
        let mut steps = steps.iter_mut();
        if let Some(step) = steps.find(|step| {
            step.phase == Phase::Transmit
                && step.event == "virtio_queue_notify"
                && step.queue == Some(stack.queue)
                && (step.layer == Layer::QemuMain) == of_main
        }) {
            step.stack.clone_from(&stack.functions);
        }
    }

    /// Interrupts of the device that the guest's handlers saw in the window.
    fn handled(&self) -> Option<usize> {
        if self.recording.run.device.interrupts == "poll" {
            return None;
        }
        let window = self.recording.guest.iter();
        let window = window.skip(self.recording.window.guest);
        // Linux's vring_interrupt is called for each queue that shares an interrupt.
        let of_queue = match self.recording.is_of_linux() {
            false => Event::VringInterrupt,
            true => Event::InterruptVector,
        };
        let intx = self.recording.run.device.interrupts == "intx";
        Some(
            window
                .filter(|record| match record.event {
                    Event::IntxInterrupt => record.a & 1 != 0,
                    event => event == of_queue && !(self.recording.is_of_linux() && intx),
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
        let ready = before.iter().enumerate();
        for (place, record) in ready.skip(reset.map_or(0, |place| place + 1)) {
            let shown = match record.event.as_str() {
                // DRIVER_OK.
                "virtio_set_status" => record.number("val").is_some_and(|val| val & 4 != 0),
                "kvm_set_ioeventfd_pio" | "kvm_set_ioeventfd_mmio" => {
                    record.number("assign") == Some(1)
                }
                _ => false,
            };
            if shown {
                let draft = self.qemu(place, Phase::Attach, None);
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
                let draft = self.qemu(place, phase, receive).caused_by(cause);
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

    /// From the socket to the wire, until the guest sleeps. Returns the place of the step that
    /// raised the interrupt for the sent frame, or would have.
    fn transmit(&self, drafts: &mut Drafts) -> Option<usize> {
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
        let mut raised = None;
        let notify_later = notify.filter(|n| !is_vcpu(*n));
        for place in rest {
            if place > hand_over && !handed_over && self.is_interrupt_of(place, queue) {
                // It came before the write returned; what raised it had come before.
                handed_over = true;
                raised = self.device(drafts, window, notify_later, ring);
            }
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
                    let draft = self.qemu(place, phase, Some(queue));
                    let draft = draft.caused_by(ring.filter(|_| drafts.last() == ring));
                    drafts.push(draft.rule("the guest's write is carried out before it goes on"));
                }
            }
            let returned = place > hand_over || self.journey.doorbell.is_none();
            // Not behind what another CPU does meanwhile.
            let returned = returned && records[place].cpu == records[hand_over].cpu;
            if place >= hand_over && returned && !handed_over {
                handed_over = true;
                raised = self.device(drafts, window, notify_later, ring);
            }
        }
        raised
    }

    /// Whether the record is an interrupt that leads to this queue's handler.
    fn is_interrupt_of(&self, place: usize, queue: u16) -> bool {
        let records = &self.recording.guest[place..];
        // Those of one CPU.
        let mut records = records.iter().filter(|record| record.cpu == records[0].cpu);
        let first = records.next();
        first.is_some_and(|record| record.event == Event::InterruptVector)
            && records.next().is_some_and(|handler| {
                handler.event == Event::VringInterrupt && handler.queue == Some(queue)
            })
    }

    /// What QEMU's main loop does with the chain. Returns the place of its last step.
    fn device(
        &self,
        drafts: &mut Drafts,
        window: Option<&QueueWindow>,
        notify: Option<usize>,
        ring: Option<usize>,
    ) -> Option<usize> {
        let phase = Phase::Transmit;
        let queue = self.recording.guest[self.journey.start_xmit].queue;
        let mut cause = ring;
        if let Some(notify) = notify {
            let draft = self.qemu(notify, phase, None).caused_by(cause.take());
            drafts.push(draft.rule("the n-th write to a doorbell is its n-th notification"));
        }
        let pop = window.and_then(|window| {
            let number = position(&window.adds, self.journey.add)?;
            window.pops.get(number).copied()
        });
        if self.recording.run.vmm.is_some()
            && let Some(frame) = self.wire_frame(Direction::Out)
        {
            let draft = self.wire(frame, phase).caused_by(cause.take());
            drafts.push(draft.rule("the VMM sends what it has taken"));
        }
        let mut popped = None;
        let mut last = None;
        for place in pop.map(|pop| self.group(pop)).unwrap_or_default() {
            let draft = self.qemu(place, phase, queue).caused_by(cause.take());
            let number = drafts.push(draft.rule("the n-th chain added is the n-th taken"));
            last = Some(number);
            if popped.is_none() {
                popped = Some(number);
                if let Some(frame) = self.wire_frame(Direction::Out) {
                    let draft = self.wire(frame, phase).caused_by(popped);
                    drafts.push(draft.rule("QEMU sends what it has taken"));
                }
            }
        }
        last
    }

    /// The sent buffer, taken back.
    fn give_back(&self, drafts: &mut Drafts) {
        for place in self.journey.back.clone() {
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
        let implicit = self.context.fill_is_flush;
        let mut flushed = false;
        for (place, record) in self.log.iter().enumerate().skip(pop + 1) {
            if record.thread != thread {
                continue;
            }
            let goes_on = match record.event.as_str() {
                "virtqueue_pop" | "virtio_queue_notify" => false,
                "virtqueue_fill" if implicit => !flushed || record.number("idx") != Some(0),
                "virtqueue_fill" | "virtqueue_flush" => !flushed,
                // What raises the interrupt, and only that.
                _ => flushed,
            };
            if !goes_on || group.len() == LONGEST {
                break;
            }
            flushed |=
                record.event == "virtqueue_flush" || implicit && record.event == "virtqueue_fill";
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
        let explanation = match &record.linux {
            Some(linux) => explain::linux(record, linux, self.context),
            None => explain::guest(record, self.context),
        };
        let mut step = step(phase, Layer::Guest, record.event.name(), explanation);
        match &record.linux {
            Some(linux) => {
                step.function = Some(linux.function.clone());
                step.stack.clone_from(&linux.stack);
            }
            None => {
                step.source = Some(Source {
                    file: record.file.clone(),
                    line: record.line,
                    module: record.module.clone(),
                    excerpt: None,
                });
            }
        }
        step.queue = record.queue;
        step.aside = phase != Phase::Attach && self.is_aside(place);
        let several = self.recording.guest.iter().any(|record| record.cpu != 0);
        step.cpu = several.then_some(record.cpu);
        if Some(place) == self.journey.doorbell {
            step.instruction.clone_from(&self.recording.instruction);
        }
        Draft::new(step, Clock::GuestTsc, record.tsc).of(Origin::Guest(place))
    }

    /// Whether the guest did this for another chain than the packet's, or another of
    /// its CPUs did it meanwhile.
    fn is_aside(&self, place: usize) -> bool {
        let record = &self.recording.guest[place];
        let journey = &self.journey;
        let packet = &self.recording.guest[journey.start_xmit];
        if record.cpu != packet.cpu {
            return true;
        }
        let sends = record.queue == packet.queue;
        match record.event {
            Event::Descriptor | Event::Add => {
                !(sends && (journey.start_xmit..=journey.add).contains(&place))
            }
            Event::PopUsed => place != journey.pop_received && Some(place) != journey.reclaim,
            Event::Publish
            | Event::KickPrepare
            | Event::Notify
            | Event::DoorbellRing
            | Event::DoorbellRang => !sends,
            Event::OtherInterrupt | Event::OtherInterruptEnd => true,
            _ => false,
        }
    }

    /// A record of QEMU's log. One that names no virtqueue is about `queue`.
    fn qemu(&self, place: usize, phase: Phase, queue: Option<u16>) -> Draft {
        let record = &self.log[place];
        let layer = match self.recording.threads.vcpus.contains(&record.thread) {
            true => Layer::QemuVcpu,
            false => Layer::QemuMain,
        };
        let explanation = explain::qemu(record, self.context, self.recording.run.real_exits);
        let mut step = step(phase, layer, &record.event, explanation);
        step.thread = Some(record.thread);
        let named = record.number("vq");
        step.queue = named
            .and_then(|vq| self.addresses.get(&vq).copied())
            .or(queue);
        Draft::new(step, Clock::QemuLog, record.micros).of(Origin::Log(place))
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
}

/// Characters of a line of QEMU's log that are shown.
const LONGEST_LINE: usize = 200;

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
        aside: false,
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
