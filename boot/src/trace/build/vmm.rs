//! What a VMM without a trace of its own did for the datagram, by its system calls.

use kickpath_trace::Event;

use super::super::explain;
use super::super::kvm::calls::{Call, What, calls};
use super::super::kvm::parse::parse;
use super::super::timeline::{Absent, Clock, Join, Layer, Phase, Verdict};
use super::draft::{Draft, Drafts};
use super::{Builder, step};

/// More calls than one datagram makes.
const MOST: usize = 100;

/// The calls that moved the datagram, by place.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    taken: Option<usize>,
    interrupt: Option<usize>,
    left: Option<usize>,
    heard: Option<usize>,
    given: Option<usize>,
}

impl Own {
    fn has(self, place: usize) -> bool {
        let all = [
            self.taken,
            self.interrupt,
            self.left,
            self.heard,
            self.given,
        ];
        all.contains(&Some(place))
    }
}

/// When a call did what it is about, on the trace's clock.
fn time(call: &Call) -> u64 {
    match (call.what, call.entered) {
        // What it changes it changes before it comes back.
        (What::GivesFrame(_) | What::Signals | What::Interrupts(_), Some(entered)) => entered,
        _ => call.returned,
    }
}

impl Builder<'_> {
    /// All calls of the window.
    fn vmm_calls(&self) -> Vec<Call> {
        let recording = self.recording;
        match (&recording.kvm, &recording.run.vmm) {
            (Some(trace), Some(_)) => calls(&parse(&trace.text), trace),
            _ => Vec::new(),
        }
    }

    /// The VMM's calls, put among the others by time, where KVM's clock is the guest's: until
    /// the guest sleeps and the frame is out.
    pub(super) fn vmm_by_time(&self, drafts: &mut Drafts) {
        let Some(offset) = self.kvm.offset else {
            return;
        };
        let calls = self.vmm_calls();
        let own = self.own_calls(&calls, offset);
        let guest = &self.recording.guest;
        let at = |call: &Call| time(call).wrapping_add_signed(offset);
        let sleep = guest[self.journey.awake.end - 1].tsc;
        let out = own.given.map(|place| at(&calls[place]));
        let end = out.map_or(sleep, |out| out.max(sleep));
        let socket = guest[self.journey.socket_receive].tsc;
        let mut numbers = vec![None; calls.len()];
        let mine = calls.iter().enumerate();
        for (place, call) in mine.filter(|(_, call)| at(call) <= end).take(MOST) {
            let phase = match at(call) <= socket {
                true => Phase::Receive,
                false => Phase::Transmit,
            };
            let mut draft = self.vmm(call, phase, own.has(place));
            draft.step.aside = !own.has(place);
            numbers[place] = Some(drafts.push(draft));
        }
        let number = |place: Option<usize>| place.and_then(|place| numbers[place]);
        let find = |layer: Layer, events: &[&str]| {
            drafts.0.iter().position(|draft| {
                draft.step.layer == layer && events.contains(&draft.step.event.as_str())
            })
        };
        let kick = drafts.0.iter().position(|draft| {
            // No other event of KVM is about a queue.
            draft.step.layer == Layer::Kvm && draft.step.queue.is_some()
        });
        // The first interrupt of the window is the received frame's.
        let raised = find(Layer::Kvm, &["kvm_msi_set_irq", "kvm_set_irq"]);
        let raised = raised.or_else(|| find(Layer::Guest, &[Event::InterruptVector.name()]));
        let links = [
            (number(own.taken), find(Layer::Wire, &["frame sent"])),
            (raised, number(own.interrupt)),
            (number(own.heard).or(number(own.left)), kick),
            (find(Layer::Wire, &["frame received"]), number(own.given)),
        ];
        for (effect, cause) in links {
            if let (Some(effect), Some(cause)) = (effect, cause) {
                drafts.0[effect].cause = Some(cause);
            }
        }
    }

    /// Which calls moved the datagram: those that fit the guest's own records in time.
    fn own_calls(&self, calls: &[Call], offset: i64) -> Own {
        let guest = &self.recording.guest;
        let at = |place: usize| time(&calls[place]).wrapping_add_signed(offset);
        let last = |wanted: &dyn Fn(&Call) -> bool, from: u64, to: u64| {
            (0..calls.len())
                .rev()
                .find(|place| (from..=to).contains(&at(*place)) && wanted(&calls[*place]))
        };
        let first = |wanted: &dyn Fn(&Call) -> bool, from: u64, to: u64| {
            (0..calls.len())
                .find(|place| (from..=to).contains(&at(*place)) && wanted(&calls[*place]))
        };
        let popped = guest[self.journey.pop_received].tsc;
        let taken = last(&|call| matches!(call.what, What::TakesFrame(_)), 0, popped);
        let raises = |call: &Call| matches!(call.what, What::Signals | What::Interrupts(_));
        let mut awake = guest[self.journey.awake.clone()].iter();
        let woken = awake.find(|record| record.event == Event::InterruptVector);
        let interrupt = taken.zip(woken).and_then(|(taken, woken)| {
            let same = |call: &Call| raises(call) && call.thread == calls[taken].thread;
            let from = at(taken);
            first(&same, from, woken.tsc).or_else(|| first(&raises, from, woken.tsc))
        });
        let added = guest[self.journey.add].tsc;
        let given = first(
            &|call| matches!(call.what, What::GivesFrame(_)),
            added,
            u64::MAX,
        );
        let kick = self.kvm_doorbell().map(|place| &self.kvm.records[place]);
        let (heard, left) = match (kick, given) {
            (Some(kick), Some(given)) => {
                let from = kick.time.wrapping_add_signed(offset);
                let to = at(given);
                let sender = calls[given].thread;
                let heard = [What::Hears, What::Wakes].into_iter().find_map(|what| {
                    let hears = |call: &Call| call.what == what;
                    let same = |call: &Call| hears(call) && call.thread == sender;
                    last(&same, from, to).or_else(|| first(&hears, from, to))
                });
                let back = self.journey.doorbell.and_then(|doorbell| {
                    let rang = guest[doorbell + 1..].iter();
                    let mut rang = rang.filter(|record| record.event == Event::DoorbellRang);
                    rang.next().map(|record| record.tsc)
                });
                let leaves = |call: &Call| call.what == What::Leaves && call.thread == kick.thread;
                let place = self.kvm_doorbell().unwrap_or_default();
                let handed = self.kvm.returned(place, back) == Some(true);
                let back = back.filter(|_| handed);
                (heard, back.and_then(|back| first(&leaves, from, back)))
            }
            _ => (None, None),
        };
        Own {
            taken,
            interrupt,
            left,
            heard,
            given,
        }
    }

    fn vmm(&self, call: &Call, phase: Phase, own: bool) -> Draft {
        let threads = &self.recording.threads;
        let layer = match threads.vcpus.contains(&call.thread) {
            true => Layer::VmmVcpu,
            false => Layer::VmmOther,
        };
        let name = threads.names.get(&call.thread).map_or("?", String::as_str);
        let explanation = explain::vmm(call, self.recording.run.vmm_name(), name, own);
        let mut step = step(phase, layer, call.what.function(), explanation);
        step.thread = Some(call.thread);
        Draft::new(step, Clock::HostTsc, time(call))
    }

    /// How frames that the VMM moved fit the chains that the driver gave and got: what can be
    /// counted where the VMM keeps no records.
    pub(super) fn vmm_joins(&self) -> Vec<Join> {
        let calls = self.vmm_calls();
        let count = |wanted: fn(What) -> bool| {
            let calls = calls.iter();
            calls.filter(|call| wanted(call.what)).count()
        };
        let taken = count(|what| matches!(what, What::TakesFrame(_)));
        let given = count(|what| matches!(what, What::GivesFrame(_)));
        if taken + given == 0 {
            return Vec::new();
        }
        let chains = |receive: bool| {
            let mut chains = 0;
            for (&queue, window) in &self.windows {
                let is_control = Some(queue) == self.context.control;
                if !is_control && self.context.is_receive(queue) == receive {
                    chains += match receive {
                        true => window.pops_used.len(),
                        false => window.adds.len(),
                    };
                }
            }
            chains
        };
        let vmm = self.recording.run.vmm_name();
        let join = |what: &str, method: &str, left: usize, right: usize, detail: String| Join {
            what: what.to_owned(),
            method: method.to_owned(),
            left,
            right,
            verdict: match left == right {
                true => Verdict::Matched,
                false => Verdict::Failed,
            },
            detail,
        };
        let (out, back) = (chains(false), chains(true));
        vec![
            join(
                "add -> write(tap), transmit queue",
                "order: the n-th chain added is the n-th frame given to the tap device",
                out,
                given,
                match out == given {
                    true => format!("{vmm} sent every frame that the driver added"),
                    false => format!("{out} chains were added and {given} frames sent"),
                },
            ),
            join(
                "read(tap) -> pop_used, receive queue",
                "order: the n-th frame taken from the tap device is the n-th popped",
                taken,
                back,
                match taken == back {
                    true => format!("the driver popped every frame that {vmm} took"),
                    false => format!("{taken} frames were taken and {back} chains popped"),
                },
            ),
        ]
    }

    /// What is missing of the VMM's own steps, and why.
    pub(super) fn vmm_absent(&self, is_there: bool) -> Option<Absent> {
        let name = &self.recording.run.vmm.as_ref()?.name;
        let absent = |reason: &str| Absent {
            what: format!("{name}'s own steps"),
            reason: reason.to_owned(),
            enable: None,
        };
        let trace = self.recording.kvm.as_ref();
        let asked = trace.is_some_and(|trace| trace.events.iter().any(|e| e == "sys_exit"));
        Some(match (asked, is_there, self.kvm.offset) {
            (false, _, _) => {
                absent("it keeps no trace, and the host's kernel recorded none of its system calls")
            }
            (true, false, None) => absent(
                "it keeps no trace, and the times of its system calls cannot be compared with \
                 the guest's",
            ),
            (true, false, Some(_)) => {
                absent("it keeps no trace, and none of its system calls moved the datagram")
            }
            (true, true, _) => Absent {
                what: format!("what {name} does between its system calls"),
                ..absent(
                    "it keeps no trace: when it reads a ring and writes one, which is memory, \
                     no record tells",
                )
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::text;
    use super::super::super::timeline::{Step, Timeline};
    use super::super::build;
    use super::super::tests::recording;
    use super::*;
    use crate::terminal::Story;

    /// The steps of the VMM that moved the packet.
    fn own(timeline: &Timeline) -> Vec<&Step> {
        let steps = timeline.steps.iter();
        let of_vmm = |step: &&Step| matches!(step.layer, Layer::VmmVcpu | Layer::VmmOther);
        steps.filter(of_vmm).filter(|step| !step.aside).collect()
    }

    #[test]
    fn firecrackers_calls_stand_between_the_kick_and_the_wire() {
        let timeline = build(&recording("firecracker")).unwrap();
        assert!(timeline.is_sound(), "{:?}", timeline.joins);
        let own = own(&timeline);
        let told: Vec<(&str, Layer)> = own.iter().map(|s| (&*s.event, s.layer)).collect();
        let expected = ["read(tap)", "write(eventfd)", "read(eventfd)", "write(tap)"];
        assert_eq!(told, expected.map(|event| (event, Layer::VmmOther)));
        let [taken, interrupt, heard, given] = own[..] else {
            unreachable!()
        };
        let find = |layer: Layer, event: &str| {
            let mut steps = timeline.steps.iter();
            steps.find(|step| step.layer == layer && step.event == event)
        };
        let number = |layer, event| find(layer, event).unwrap().number;
        assert_eq!(taken.caused_by, Some(number(Layer::Wire, "frame sent")));
        let raised = find(Layer::Kvm, "kvm_msi_set_irq").unwrap();
        assert_eq!(raised.caused_by, Some(interrupt.number));
        let kick = &timeline.steps[heard.caused_by.unwrap()];
        assert!(
            kick.sentence.contains("does not return to Firecracker"),
            "{kick:?}"
        );
        let received = find(Layer::Wire, "frame received").unwrap();
        assert_eq!(received.caused_by, Some(given.number));
        assert!(given.sentence.contains("thread 'firecracker'"), "{given:?}");
        let joins: Vec<&str> = timeline.joins.iter().map(|join| &*join.what).collect();
        let expected = [
            "add -> write(tap), transmit queue",
            "read(tap) -> pop_used, receive queue",
            "doorbell -> VM exit",
        ];
        assert_eq!(joins, expected);
    }

    #[test]
    fn a_return_for_another_reason_does_not_hand_the_kick_over() {
        let kick = " kvm_mmio: mmio write len 2 gpa 0x4000006004";
        for (reason, told) in [
            ("KVM_EXIT_IOAPIC_EOI (26)", "does not return to Firecracker"),
            ("restart (4)", "does not return to Firecracker"),
            ("KVM_EXIT_MMIO (6)", "hands it to"),
        ] {
            let mut recording = recording("firecracker");
            let text = &mut recording.kvm.as_mut().unwrap().text;
            let from = text.find(kick).unwrap();
            let line = text[..from].rfind('\n').unwrap() + 1;
            // Behind the kick's call chain, before the guest goes on.
            let last = "entry_SYSCALL_64_after_hwframe\n";
            let behind = from + text[from..].find(last).unwrap() + last.len();
            let task = text[line..from].replace("70521831040169", "70521831115986");
            text.insert_str(
                behind,
                &format!("{task} kvm_userspace_exit: reason {reason}\n"),
            );
            let timeline = build(&recording).unwrap();
            let mut steps = timeline.steps.iter();
            let kick = steps.find(|s| s.layer == Layer::Kvm && s.queue.is_some());
            let kick = kick.unwrap();
            assert!(kick.sentence.contains(told), "{reason}: {kick:?}");
        }
    }

    #[test]
    fn no_text_speaks_of_qemu() {
        let timeline = build(&recording("firecracker")).unwrap();
        let mut bytes = Vec::new();
        text::print(&mut Story::new(&mut bytes), &timeline).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("Firecracker v1.17"), "{text}");
        assert!(!text.contains("QEMU"), "{text}");
        let json = serde_json::to_string(&timeline).unwrap();
        let json = json.replace("\"qemu\":\"\"", "");
        assert!(!json.to_lowercase().contains("qemu"), "{json}");
    }

    #[test]
    fn a_frame_that_is_not_accounted_for_fails_the_join() {
        let mut lost = recording("firecracker");
        let trace = lost.kvm.as_mut().unwrap();
        // writev.
        let at = trace.text.find("sys_exit: NR 20 = ").unwrap();
        trace.text.replace_range(at..at + 16, "sys_exit: NR 9 =");
        let timeline = build(&lost).unwrap();
        assert!(!timeline.is_sound());
    }

    #[test]
    fn what_the_host_did_not_record_is_said() {
        let mut without = recording("firecracker");
        let trace = without.kvm.as_mut().unwrap();
        trace.text = trace
            .text
            .lines()
            .filter(|line| !line.contains("sys_"))
            .collect::<Vec<_>>()
            .join("\n");
        trace.events.retain(|event| !event.starts_with("sys_"));
        let timeline = build(&without).unwrap();
        assert!(own(&timeline).is_empty());
        let absent = timeline
            .absent
            .iter()
            .find(|a| a.what == "Firecracker's own steps");
        assert!(absent.unwrap().reason.contains("none of its system calls"));
        assert!(timeline.is_sound(), "{:?}", timeline.joins);
        // Without the guest's clock they have no place.
        let mut wrong = recording("firecracker");
        wrong.kvm.as_mut().unwrap().tsc_offset = Some(1_000_000_000);
        let timeline = build(&wrong).unwrap();
        assert!(own(&timeline).is_empty());
        let absent = timeline
            .absent
            .iter()
            .find(|a| a.what == "Firecracker's own steps");
        assert!(absent.unwrap().reason.contains("cannot be compared"));
    }
}
