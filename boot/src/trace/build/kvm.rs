//! KVM's part of the journey: which of its events belong to the datagram, and
//! whether its clock is the guest's.

use kickpath_trace::Event;

use super::super::explain;
use super::super::kvm::parse::{KvmRecord, parse};
use super::super::recording::Recording;
use super::super::timeline::{Absent, Clock, Join, Layer, Phase, Verdict};
use super::draft::{Draft, Drafts};
use super::{Builder, position, step};

/// More events of KVM than one datagram makes.
const MOST: usize = 200;

/// KVM's events of the window.
#[derive(Clone, Debug, Default)]
pub struct Kvm {
    pub records: Vec<KvmRecord>,
    /// The writes to the doorbell, by place in `records`.
    pub doorbells: Vec<usize>,
    /// What is added to a time of KVM to have the guest's; only where that was
    /// found to be true at every doorbell.
    pub offset: Option<i64>,
    pub absent: Vec<Absent>,
}

impl Kvm {
    /// Reads them. `rings` are the guest's times just before and just behind
    /// each doorbell write of `queue`.
    pub fn new(recording: &Recording, queue: u16, rings: &[(u64, Option<u64>)]) -> Self {
        let Some(trace) = &recording.kvm else {
            return Self::default();
        };
        let mut kvm = Self {
            records: parse(&trace.text)
                .into_iter()
                .filter(|record| !record.event.starts_with("sys_"))
                .collect(),
            ..Self::default()
        };
        if trace.lost > 0 {
            kvm.note_absent(
                "some of KVM's events",
                format!("its buffers had no room for {} of them", trace.lost),
            );
        }
        for (event, what) in [
            ("kvm_exit", "the exits themselves (kvm_exit)"),
            ("kvm_entry", "the guest's entries (kvm_entry)"),
        ] {
            let asked = trace.events.iter().any(|name| name == event);
            let fired = kvm.records.iter().any(|record| record.event == event);
            if !fired {
                kvm.note_absent(
                    what,
                    match asked {
                        true => "asked for, and this kind of KVM left no record of it",
                        false => "this kernel has no such event",
                    }
                    .to_owned(),
                );
            }
        }
        if let Some(address) = recording.doorbell_address {
            let rings = |record: &KvmRecord| {
                record.write().is_some_and(|(to, what)| {
                    to == address && what.is_none_or(|what| what == u64::from(queue))
                })
            };
            let places = kvm.records.iter().enumerate();
            kvm.doorbells = places
                .filter(|(_, record)| rings(record))
                .map(|(place, _)| place)
                .collect();
        }
        if !trace.tsc_clock {
            kvm.note_absent(
                "KVM's time on the guest's clock",
                "this kernel has no trace clock x86-tsc".to_owned(),
            );
            return kvm;
        }
        let Some(offset) = trace.tsc_offset else {
            kvm.note_absent(
                "KVM's time on the guest's clock",
                "debugfs does not tell the virtual CPU's TSC offset, or its rate is scaled"
                    .to_owned(),
            );
            return kvm;
        };
        // The write happened between two readings of the guest.
        let fits = kvm.doorbells.iter().zip(rings).all(|(place, ring)| {
            let at = kvm.records[*place].time.wrapping_add_signed(offset);
            ring.0 <= at && ring.1.is_none_or(|after| at <= after)
        });
        let counted = kvm.doorbells.len() == rings.len() && !rings.is_empty();
        if fits && counted {
            kvm.offset = Some(offset);
        } else {
            kvm.note_absent(
                "KVM's time on the guest's clock",
                format!(
                    "with the TSC offset {offset} that debugfs tells, KVM's doorbell writes do \
                     not lie between the guest's readings before and behind them"
                ),
            );
        }
        kvm
    }

    fn note_absent(&mut self, what: &str, reason: String) {
        self.absent.push(Absent {
            what: what.to_owned(),
            reason,
            enable: None,
        });
    }

    /// Whether KVM returned to QEMU because of the doorbell write at `place`:
    /// that is so if it did before the guest went on, at `behind` on its clock.
    /// `None` where the clocks cannot tell.
    pub(super) fn returned(&self, place: usize, behind: Option<u64>) -> Option<bool> {
        let (offset, behind) = (self.offset?, behind?);
        let thread = self.records[place].thread;
        let later = self.records[place + 1..].iter();
        let mut later = later
            .take_while(|record| record.time.wrapping_add_signed(offset) <= behind)
            .filter(|record| record.thread == thread);
        // A signal for the thread, or another device's end of interrupt, returns too.
        let of_access = |reason| matches!(reason, Some("KVM_EXIT_IO" | "KVM_EXIT_MMIO"));
        Some(
            later.any(|record| {
                record.event == "kvm_userspace_exit" && of_access(record.text("reason"))
            }),
        )
    }

    /// How doorbells and exits fit.
    pub fn join(&self, rings: usize) -> Join {
        let exits = self.doorbells.len();
        let good = exits == rings;
        Join {
            what: "doorbell -> VM exit".to_owned(),
            method: match self.offset {
                Some(_) => "time: each exit lies between the guest's readings around its write",
                None => "order: the n-th write is the n-th exit at that address",
            }
            .to_owned(),
            left: rings,
            right: exits,
            verdict: match good {
                true => Verdict::Matched,
                false => Verdict::Failed,
            },
            detail: match good {
                true => "every write to the doorbell is one exit".to_owned(),
                false => format!("{rings} writes to the doorbell cannot be {exits} exits"),
            },
        }
    }
}

impl Builder<'_> {
    /// KVM's events where its clock is the guest's: all from the window's
    /// beginning until the guest sleeps. They are put among the others by time.
    pub(super) fn kvm_by_time(&self, drafts: &mut Drafts) {
        let Some(offset) = self.kvm.offset else {
            return;
        };
        let guest = &self.recording.guest;
        let end = guest[self.journey.awake.end - 1].tsc;
        let sleep = self.sleep(offset);
        let socket = guest[self.journey.socket_receive].tsc;
        let records = self.kvm.records.iter().enumerate();
        let mine = records.filter_map(|(place, record)| {
            let at = record.time.wrapping_add_signed(offset);
            (at <= end || sleep.is_some_and(|sleep| place <= sleep)).then_some((place, at))
        });
        for (place, at) in mine.take(MOST) {
            let phase = match at <= socket {
                true => Phase::Receive,
                false => Phase::Transmit,
            };
            let cause = self.kvm_cause(place, drafts);
            let mut draft = self.kvm(place, phase).caused_by(cause);
            draft.step.aside = !self.kvm_of_packet(place) && sleep != Some(place);
            drafts.push(draft);
        }
        self.link_wake(drafts);
    }

    /// The exit by which the guest sleeps when it is done: the `hlt` behind its last
    /// record, before it records anything again.
    fn sleep(&self, offset: i64) -> Option<usize> {
        let guest = &self.recording.guest;
        let asleep = self.journey.awake.end;
        let (from, awake) = (guest[asleep - 1].tsc, guest.get(asleep).map(|r| r.tsc));
        self.kvm.records.iter().position(|record| {
            let at = record.time.wrapping_add_signed(offset);
            let meanwhile = at > from && awake.is_none_or(|awake| at < awake);
            // As SVM and VMX call it.
            let reason = record.text("reason").filter(|_| record.event == "kvm_exit");
            meanwhile && matches!(reason, Some("hlt" | "HLT" | "EXIT_HLT" | "EXIT_REASON_HLT"))
        })
    }

    /// KVM's events of the kick where the clocks cannot be compared: the exit
    /// and what the same thread does until it enters the guest again.
    pub(super) fn kvm_by_order(&self, drafts: &mut Drafts, ring: Option<usize>) {
        if self.kvm.offset.is_some() {
            return;
        }
        let Some(doorbell) = self.kvm_doorbell() else {
            return;
        };
        let thread = self.kvm.records[doorbell].thread;
        let mut first = doorbell;
        // On hardware the exit itself comes before the access.
        let before = self.kvm.records[..doorbell].iter().enumerate().rev();
        if let Some((place, record)) = before.into_iter().find(|(_, r)| r.thread == thread)
            && record.event == "kvm_exit"
        {
            first = place;
        }
        let rest = self.kvm.records.iter().enumerate().skip(first);
        for (place, record) in rest.filter(|(_, r)| r.thread == thread) {
            let another = place > doorbell
                && matches!(record.event.as_str(), "kvm_exit" | "kvm_pio" | "kvm_mmio");
            if another {
                break;
            }
            let cause = ring.filter(|_| place == first);
            let draft = self.kvm(place, Phase::Transmit).caused_by(cause);
            drafts.push(draft.rule("the n-th write to the doorbell is the n-th exit there"));
            if place > doorbell {
                break;
            }
        }
    }

    /// The exit of the window's kick.
    pub(super) fn kvm_doorbell(&self) -> Option<usize> {
        let doorbell = self.journey.doorbell?;
        let queue = self.recording.guest[doorbell].queue?;
        let window = self.windows.get(&queue)?;
        let number = window.doorbells.iter().position(|(p, _)| *p == doorbell)?;
        self.kvm.doorbells.get(number).copied()
    }

    fn kvm(&self, place: usize, phase: Phase) -> Draft {
        let record = &self.kvm.records[place];
        let kick = position(&self.kvm.doorbells, place).map(|number| {
            let behind = self.rings.get(number).and_then(|(_, behind)| *behind);
            self.kvm.returned(place, behind)
        });
        let mut step = step(
            phase,
            Layer::Kvm,
            &record.event,
            explain::kvm(record, kick, &self.recording.run),
        );
        step.function = record.stack.first().cloned();
        step.stack.clone_from(&record.stack);
        step.queue = kick.and_then(|_| {
            let doorbell = self.journey.doorbell?;
            self.recording.guest[doorbell].queue
        });
        step.thread = Some(record.thread);
        Draft::new(step, Clock::HostTsc, record.time)
    }

    /// Whether the event is the kick's exit, with what the same thread does
    /// around it, or the interrupt of the received frame.
    fn kvm_of_packet(&self, place: usize) -> bool {
        let record = &self.kvm.records[place];
        if let Some(kick) = self.kvm_doorbell() {
            let thread = self.kvm.records[kick].thread;
            let same = |record: &&KvmRecord| record.thread == thread;
            let begins = |record: &&KvmRecord| record.event == "kvm_exit";
            let ends = |record: &&KvmRecord| record.event == "kvm_entry";
            let around = if place <= kick {
                // Nothing but its own exit before it.
                let between = self.kvm.records[place..kick].iter().filter(same);
                place == kick || begins(&record) && between.count() == 1
            } else {
                let mut between = self.kvm.records[kick + 1..place].iter().filter(same);
                !between.any(|r| begins(&r) || ends(&r) || r.write().is_some())
                    && matches!(record.event.as_str(), "kvm_userspace_exit" | "kvm_entry")
            };
            if around && same(&record) {
                return true;
            }
        }
        let woken = self.recording.guest[self.journey.awake.clone()].iter();
        let mut woken = woken.filter(|record| record.event == Event::InterruptVector);
        let vector = woken.next().map(|record| record.a);
        vector.is_some() && record.vector() == vector
    }

    /// The draft that made this event happen, if it is of another layer.
    fn kvm_cause(&self, place: usize, drafts: &Drafts) -> Option<usize> {
        let record = &self.kvm.records[place];
        let step_of = |layer: Layer, event: &str| {
            drafts
                .0
                .iter()
                .position(|draft| draft.step.layer == layer && draft.step.event == event)
        };
        if Some(place) == self.kvm_doorbell() {
            return step_of(Layer::Guest, Event::DoorbellRing.name());
        }
        match record.event.as_str() {
            // The first interrupt of the window is the received frame's.
            "kvm_msi_set_irq" | "kvm_set_irq"
                if !self.kvm.records[..place]
                    .iter()
                    .any(|before| before.event == record.event) =>
            {
                step_of(Layer::QemuMain, "virtio_notify_irqfd_deferred_fn")
                    .or_else(|| step_of(Layer::QemuMain, "virtio_notify_irqfd"))
                    .or_else(|| step_of(Layer::QemuMain, "virtio_notify"))
            }
            _ => None,
        }
    }

    /// The guest's interrupt comes from KVM's last step towards it.
    fn link_wake(&self, drafts: &mut Drafts) {
        let Some(wake) = drafts.0.iter().position(|draft| {
            draft.step.layer == Layer::Guest && draft.step.event == Event::InterruptVector.name()
        }) else {
            return;
        };
        let vector = self.recording.guest[self.journey.awake.clone()]
            .iter()
            .find(|record| record.event == Event::InterruptVector)
            .map(|record| record.a);
        let raised = self.kvm.records.iter().enumerate().filter(|(_, record)| {
            matches!(
                record.event.as_str(),
                "kvm_msi_set_irq" | "kvm_apic_accept_irq" | "kvm_inj_virq"
            ) && record.vector() == vector
        });
        let Some(offset) = self.kvm.offset else {
            return;
        };
        let woken = drafts.0[wake].raw;
        let last = raised
            .map(|(_, record)| record.time)
            .filter(|time| time.wrapping_add_signed(offset) <= woken)
            .max();
        let cause = drafts
            .0
            .iter()
            .position(|draft| draft.step.layer == Layer::Kvm && Some(draft.raw) == last);
        if cause.is_some() {
            drafts.0[wake].cause = cause;
        }
    }
}
