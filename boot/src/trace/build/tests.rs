//! Timelines of recorded runs, and of such runs with records lost, doubled and
//! out of order.

use super::super::text;
use super::super::timeline::{Comparison, Verdict};
use super::*;
use crate::terminal::{Story, WIDTH};
use crate::trace::qemu::stack::QemuStack;
use crate::trace::records::GuestRecord;

pub fn recording(name: &str) -> Recording {
    let text = match name {
        // TCG, pc, MSI-X, ioeventfd.
        "tcg" => include_str!("../fixtures/tcg.json"),
        // TCG, pc, INTx, ioeventfd=off.
        "intx" => include_str!("../fixtures/intx.json"),
        // Software KVM, microvm.
        "kvm" => include_str!("../fixtures/kvm.json"),
        // TCG, pc, Linux 6.1 in the guest; of its boot only what attaches the hook.
        "linux" => include_str!("../fixtures/linux.json"),
        // Software KVM, Firecracker, modern virtio-pci.
        "firecracker" => include_str!("../fixtures/firecracker.json"),
        _ => unreachable!(),
    };
    serde_json::from_str(text).unwrap()
}

/// Layer and event of every step of a phase.
fn events(timeline: &Timeline, phase: Phase) -> Vec<String> {
    let steps = timeline.phase(phase);
    steps
        .map(|step| format!("{:?} {}", step.layer, step.event))
        .collect()
}

fn verdict(timeline: &Timeline, what: &str) -> Verdict {
    let join = timeline.joins.iter().find(|join| join.what.contains(what));
    join.unwrap_or_else(|| panic!("no join {what}: {:?}", timeline.joins))
        .verdict
}

/// The lines of QEMU's log in the window, changed by `change`.
fn with_log(recording: &Recording, change: impl FnOnce(&mut Vec<String>)) -> Recording {
    let (before, after) = recording.qemu_log.split_at(recording.window.qemu);
    let mut lines: Vec<String> = after.lines().map(str::to_owned).collect();
    change(&mut lines);
    Recording {
        qemu_log: format!("{before}{}\n", lines.join("\n")),
        ..recording.clone()
    }
}

fn position_of(lines: &[String], part: &str) -> usize {
    lines.iter().position(|line| line.contains(part)).unwrap()
}

#[test]
fn tcg_has_this_structure() {
    let timeline = build(&recording("tcg")).unwrap();
    assert_eq!(
        events(&timeline, Phase::Attach),
        [
            "Guest FindVqsTry",
            "Guest SetupQueue",
            "Guest AttachDoorbell",
            "Guest SetupQueue",
            "Guest AttachDoorbell",
            // The control queue.
            "Guest SetupQueue",
            "Guest AttachDoorbell",
            "Guest FindVqsResult",
            "QemuVcpu virtio_set_status",
        ]
    );
    assert_eq!(
        events(&timeline, Phase::Receive),
        [
            "Wire frame sent",
            "QemuMain virtqueue_pop",
            "QemuMain virtqueue_fill",
            "QemuMain virtqueue_flush",
            "QemuMain virtio_notify",
            "QemuMain memory_region_ops_write",
            "QemuMain apic_deliver_irq",
            "Guest InterruptVector",
            "Guest VringInterrupt",
            "Guest Poll",
            "Guest DisableInterrupts",
            "Guest PopUsed",
            "Guest RxTokenConsume",
            "Guest SocketReceive",
        ]
    );
    let transmit = events(&timeline, Phase::Transmit);
    let guest: Vec<&str> = transmit
        .iter()
        .filter_map(|event| event.strip_prefix("Guest "))
        .take(9)
        .collect();
    assert_eq!(
        guest,
        [
            "SocketSend",
            "TxTokenConsume",
            "StartXmit",
            "Add",
            "Add",
            "Publish",
            "KickPrepare",
            "Notify",
            "DoorbellRing",
        ]
    );
    let host: Vec<&String> = transmit
        .iter()
        .filter(|event| !event.starts_with("Guest"))
        .collect();
    assert_eq!(host[0], "QemuMain virtio_queue_notify");
    assert_eq!(host[1], "QemuMain virtqueue_pop");
    assert_eq!(host.len(), 5, "and fill, flush and the wire: {host:?}");
    let names = timeline.phase(Phase::Attach);
    let names: Vec<&str> = names
        .filter(|step| step.event == "SetupQueue")
        .filter_map(|step| step.snapshot.as_ref().map(|queue| queue.name.as_str()))
        .collect();
    assert_eq!(names, ["receive", "transmit", "control"]);
    assert!(timeline.is_sound(), "{:?}", timeline.joins);
    assert!(
        timeline
            .frames
            .iter()
            .all(|frame| frame.comparison == Comparison::Equal)
    );
    assert_eq!(timeline.frames.len(), 2);
}

/// Another CPU wakes, is interrupted and sleeps before each record of the window.
#[test]
fn what_another_cpu_does_meanwhile_is_told_aside() {
    let mut recording = recording("tcg");
    let alone = build(&recording).unwrap();
    let window = recording.guest.split_off(recording.window.guest);
    let mut number = 0;
    for record in window {
        for event in [Event::OtherInterrupt, Event::InterruptVector, Event::Idle] {
            number += 1;
            recording.guest.push(GuestRecord {
                event,
                queue: None,
                cpu: 1,
                a: 0xf1,
                ..record.clone()
            });
        }
        recording.guest.push(record);
    }
    assert!(number > 30, "{number}");
    let timeline = build(&recording).unwrap();
    let own = timeline.steps.iter().filter(|step| step.cpu != Some(1));
    let told = |step: &Step| (step.layer, step.event.clone(), step.aside, step.queue);
    let own: Vec<_> = own.map(told).collect();
    assert_eq!(own, alone.steps.iter().map(told).collect::<Vec<_>>());
    let mut others = timeline.steps.iter().filter(|step| step.cpu == Some(1));
    assert!(others.all(|step| step.aside));
    assert_eq!(timeline.kicks, alone.kicks);
    assert_eq!(timeline.joins, alone.joins);
}

#[test]
fn every_step_is_explained_numbered_and_drawn_forward() {
    for name in ["tcg", "intx", "kvm", "linux", "firecracker"] {
        let timeline = build(&recording(name)).unwrap();
        let mut drawn = [f64::MIN; 2];
        for (number, step) in timeline.steps.iter().enumerate() {
            assert_eq!(step.number, number);
            assert!(step.sentence.ends_with('.'), "{}", step.sentence);
            assert!(!step.sentence.contains('?'), "{}", step.sentence);
            assert!(step.caused_by.is_none_or(|cause| cause < number), "{name}");
            let axis = &mut drawn[usize::from(step.phase == Phase::Attach)];
            assert!(step.drawn_at_ns >= *axis, "{name}: step {number}");
            *axis = step.drawn_at_ns;
            if step.layer == Layer::Guest && name == "linux" {
                assert!(step.function.is_some() && step.linux.is_none() && step.source.is_none());
            } else if step.layer == Layer::Guest {
                let source = step.source.as_ref().unwrap();
                assert!(source.file.starts_with("kernel/") && source.line > 0);
                assert!(step.function.is_some());
                // Linux has no ladder on virtio-mmio.
                assert!(step.linux.is_some() || step.event.starts_with("FindVqs"));
            }
            if let Delta::Measured { ns } = step.delta {
                assert!(ns >= 0.0);
            }
        }
        let doorbell = timeline.steps.iter().find(|s| s.instruction.is_some());
        let instruction = doorbell.unwrap().instruction.as_ref().unwrap();
        assert!(!instruction.bytes.is_empty());
        // It is what `--json` prints, and reads back to the same.
        let json = serde_json::to_string(&timeline).unwrap();
        assert_eq!(serde_json::from_str::<Timeline>(&json).unwrap(), timeline);
    }
}

#[test]
fn the_text_is_at_most_100_columns_wide_and_tells_the_kick() {
    for (name, doorbell) in [
        ("tcg", "Doorbell::ring"),
        ("intx", "Doorbell::ring"),
        ("kvm", "Doorbell::ring"),
        ("firecracker", "Doorbell::ring"),
        ("linux", "vp_notify  DoorbellRing"),
    ] {
        let timeline = build(&recording(name)).unwrap();
        let mut bytes = Vec::new();
        text::print(&mut Story::new(&mut bytes), &timeline).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let text = anstream::adapter::strip_str(&text).to_string();
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{name}: {line}");
        }
        assert!(text.contains(doorbell), "{text}");
        let frames = match name {
            "linux" => "no record of the guest was lost",
            _ => "2 of 2 frames",
        };
        let checked = format!("counts of one layer fit those of another; {frames}");
        assert!(text.contains(&checked), "{text}");
    }
}

#[test]
fn without_ioeventfd_the_write_is_handled_in_the_vcpu_thread() {
    let timeline = build(&recording("intx")).unwrap();
    let transmit = events(&timeline, Phase::Transmit);
    let ring = transmit.iter().position(|e| e == "Guest DoorbellRing");
    let behind = &transmit[ring.unwrap() + 1..];
    assert_eq!(
        behind[..3],
        [
            "QemuVcpu memory_region_ops_write",
            "QemuVcpu virtio_queue_notify",
            "Guest DoorbellRang"
        ]
    );
    let receive = events(&timeline, Phase::Receive);
    assert!(receive.contains(&"Guest IntxInterrupt".to_owned()));
    assert!(receive.contains(&"QemuMain ioapic_set_irq".to_owned()));
    assert!(timeline.is_sound(), "{:?}", timeline.joins);
}

/// The functions of the guest's steps of a phase.
fn functions(timeline: &Timeline, phase: Phase) -> Vec<&str> {
    let steps = timeline.phase(phase);
    let guest = steps.filter(|step| step.layer == Layer::Guest);
    guest.filter_map(|step| step.function.as_deref()).collect()
}

#[test]
fn linux_is_told_by_its_own_functions() {
    let recorded = recording("linux");
    let timeline = build(&recorded).unwrap();
    assert!(timeline.is_sound(), "{:#?}", timeline.joins);
    assert_eq!(timeline.joins.len(), 4);
    assert_eq!(verdict(&timeline, "doorbell"), Verdict::Matched);
    assert_eq!(
        functions(&timeline, Phase::Transmit),
        [
            "udp_sendmsg",
            "net_dev_start_xmit",
            "start_xmit",
            "virtqueue_disable_cb",
            "virtqueue_enable_cb_delayed",
            "virtqueue_add_outbuf",
            "virtqueue_kick_prepare",
            "virtqueue_notify",
            "vp_notify",
            "vp_notify",
            "cpu_idle",
        ]
    );
    // The device's interrupt for the sent frame, up to the buffer.
    let back = [
        "irq_handler_entry",
        "vring_interrupt",
        "virtqueue_disable_cb",
        "virtqueue_disable_cb",
        "virtnet_poll_tx",
        "virtqueue_disable_cb",
        "virtqueue_get_buf",
    ];
    assert_eq!(functions(&timeline, Phase::Return), back);
    let woken = timeline.phase(Phase::Return).next().unwrap();
    let raised = &timeline.steps[woken.caused_by.unwrap()];
    assert_eq!((raised.layer, raised.queue), (Layer::QemuMain, Some(1)));
    // Nothing is drawn or compared that was not recorded.
    assert!(timeline.steps.iter().all(|step| step.snapshot.is_none()));
    for frame in &timeline.frames {
        assert!(matches!(frame.comparison, Comparison::NotCompared { .. }));
    }
    let ring = timeline.steps.iter().find(|s| s.instruction.is_some());
    assert_eq!(ring.unwrap().function.as_deref(), Some("vp_notify"));

    // An interrupt within vp_notify is told behind what raised it.
    let mut early = recorded.clone();
    let place = |event, queue: Option<u16>| {
        let mut records = early.guest.iter();
        records.rposition(|r| r.event == event && (queue.is_none() || r.queue == queue))
    };
    let first = early.window.guest;
    let rang = early.guest[first..]
        .iter()
        .position(|r| r.event == Event::DoorbellRang);
    let rang = first + rang.unwrap();
    let handler = place(Event::VringInterrupt, Some(1)).unwrap();
    let interrupt = early.guest[handler - 1..=handler].to_vec();
    let tsc = early.guest[rang].tsc;
    early.guest.splice(
        rang..rang,
        interrupt.into_iter().map(|r| GuestRecord { tsc, ..r }),
    );
    let timeline = build(&early).unwrap();
    let sent = events(&timeline, Phase::Transmit);
    let order = [
        "DoorbellRing",
        "virtqueue_pop",
        "InterruptVector",
        "DoorbellRang",
    ];
    let places = order.map(|event| position_of(&sent, event));
    assert!(places.is_sorted(), "{sent:#?}");
}

#[test]
fn qemus_way_to_the_kick_is_at_its_notification() {
    let mut recording = recording("tcg");
    let taken = QemuStack {
        queue: 1,
        thread: recording.threads.main,
        functions: vec![
            "virtio_queue_host_notifier_read".into(),
            "main_loop_wait".into(),
        ],
    };
    recording.qemu_stack = Some(taken.clone());
    let timeline = build(&recording).unwrap();
    let with: Vec<_> = timeline
        .steps
        .iter()
        .filter(|step| !step.stack.is_empty())
        .collect();
    assert_eq!(with.len(), 1, "{with:#?}");
    assert_eq!(with[0].event, "virtio_queue_notify");
    assert_eq!(with[0].stack, taken.functions);

    // That of another queue, or of another thread, is not this kick's.
    let vcpu = recording.threads.vcpus[0];
    for other in [
        QemuStack {
            queue: 0,
            ..taken.clone()
        },
        QemuStack {
            thread: vcpu,
            ..taken.clone()
        },
    ] {
        recording.qemu_stack = Some(other);
        let timeline = build(&recording).unwrap();
        assert!(timeline.steps.iter().all(|step| step.stack.is_empty()));
        let absent = timeline.absent.iter();
        assert!(
            absent
                .clone()
                .any(|absent| absent.what.contains("call chain")),
            "{absent:?}"
        );
    }
}

#[test]
fn kvm_is_on_the_guests_clock() {
    let timeline = build(&recording("kvm")).unwrap();
    assert!(timeline.is_sound(), "{:?}", timeline.joins);
    assert!(timeline.clocks.iter().all(|clock| clock.joined));
    let place = |layer: Layer, event: &str| {
        let found = timeline
            .phase(Phase::Transmit)
            .find(|step| step.layer == layer && step.event == event);
        found.unwrap()
    };
    let ring = place(Layer::Guest, "DoorbellRing");
    let exit = place(Layer::Kvm, "kvm_mmio");
    let rang = place(Layer::Guest, "DoorbellRang");
    assert!(ring.number < exit.number && exit.number < rang.number);
    assert_eq!(exit.caused_by, Some(ring.number));
    assert!(exit.stack.contains(&"kvm_vcpu_ioctl".to_owned()));
    assert!(matches!(exit.delta, Delta::Measured { .. }));
    assert_eq!(verdict(&timeline, "VM exit"), Verdict::Matched);

    // It leaves no record of the exits: asked for or not, that is said.
    for (events, reason) in [(vec![], "no such event"), (vec!["kvm_exit"], "asked for")] {
        let mut silent = recording("kvm");
        silent.kvm.as_mut().unwrap().events = events.into_iter().map(str::to_owned).collect();
        let absent = build(&silent).unwrap().absent;
        let told = absent.iter().find(|a| a.what.contains("kvm_exit")).unwrap();
        assert!(told.reason.contains(reason), "{told:?}");
    }

    // A wrong offset is not believed: the clocks are then not joined.
    let mut wrong = recording("kvm");
    wrong.kvm.as_mut().unwrap().tsc_offset = Some(1_000_000_000);
    let timeline = build(&wrong).unwrap();
    assert!(timeline.clocks.iter().any(|clock| !clock.joined));
    assert!(timeline.absent.iter().any(|a| a.reason.contains("offset")));
    let exit = timeline
        .steps
        .iter()
        .find(|s| s.event == "kvm_mmio")
        .unwrap();
    assert!(matches!(exit.delta, Delta::Causal { .. }));
}

#[test]
fn a_lost_notification_is_coalescing_only_where_an_eventfd_is() {
    // Two writes, one notification: an eventfd does that.
    let lost = with_log(&recording("tcg"), |lines| {
        let place = position_of(lines, "virtio_queue_notify");
        lines.remove(place);
    });
    let timeline = build(&lost).unwrap();
    assert_eq!(verdict(&timeline, "doorbell ->"), Verdict::Coalesced);
    // Handled where they are made, two writes cannot become one.
    let lost = with_log(&recording("intx"), |lines| {
        let place = position_of(lines, "virtio_queue_notify");
        lines.remove(place);
    });
    let timeline = build(&lost).unwrap();
    assert_eq!(verdict(&timeline, "doorbell ->"), Verdict::Failed);
    assert!(!timeline.is_sound());
}

#[test]
fn records_that_do_not_fit_fail_the_join() {
    let recorded = recording("tcg");
    let doubled = with_log(&recorded, |lines| {
        let place = position_of(lines, "virtio_queue_notify");
        lines.insert(place, lines[place].clone());
    });
    assert_eq!(
        verdict(&build(&doubled).unwrap(), "doorbell ->"),
        Verdict::Failed
    );
    let none = with_log(&recorded, |lines| {
        lines.retain(|line| !line.contains("virtio_queue_notify"));
    });
    assert_eq!(
        verdict(&build(&none).unwrap(), "doorbell ->"),
        Verdict::Failed
    );
    let pop_lost = with_log(&recorded, |lines| {
        let place = position_of(lines, "in_num 0 out_num 1");
        lines.remove(place);
    });
    assert_eq!(
        verdict(&build(&pop_lost).unwrap(), "add ->"),
        Verdict::Failed
    );
    let flush_lost = with_log(&recorded, |lines| {
        let place = position_of(lines, "virtqueue_flush");
        lines.remove(place);
    });
    assert_eq!(
        verdict(&build(&flush_lost).unwrap(), "virtqueue_flush ->"),
        Verdict::Failed
    );
    // The guest's side of it.
    let mut rang_unheard = recorded.clone();
    let doorbell = rang_unheard
        .guest
        .iter()
        .rposition(|record| record.event == Event::DoorbellRing)
        .unwrap();
    rang_unheard.guest.remove(doorbell);
    assert_eq!(
        verdict(&build(&rang_unheard).unwrap(), "doorbell ->"),
        Verdict::Failed
    );
}

/// QEMU takes the time of an event before it has the log's lock: lines of two
/// threads may change places.
#[test]
fn threads_may_write_out_of_order() {
    let recorded = recording("intx");
    let expected = build(&recorded).unwrap();
    let shuffled = with_log(&recorded, |lines| {
        let thread = |line: &String| line.split('@').next().unwrap().to_owned();
        for place in 1..lines.len() {
            if thread(&lines[place - 1]) != thread(&lines[place]) {
                lines.swap(place - 1, place);
            }
        }
    });
    assert_ne!(shuffled.qemu_log, recorded.qemu_log);
    let timeline = build(&shuffled).unwrap();
    assert!(timeline.is_sound(), "{:?}", timeline.joins);
    for phase in Phase::ALL {
        assert_eq!(events(&timeline, phase), events(&expected, phase));
    }
}

#[test]
fn a_line_that_cannot_be_read_is_told() {
    let told = |change: fn(&mut Vec<String>)| {
        let timeline = build(&with_log(&recording("tcg"), change)).unwrap();
        let lines = timeline
            .absent
            .iter()
            .find(|a| a.what == "lines of QEMU's log");
        let events = timeline.absent.iter().find(|a| a.what == "QEMU's events");
        (
            lines.map(|absent| absent.reason.clone()),
            events.map(|absent| absent.reason.clone()),
        )
    };
    assert_eq!(told(|_| {}), (None, None));
    let one = told(|lines| lines.insert(3, "another\tform".to_owned()));
    let expected = "1 of them are not events; the first: another\\tform";
    assert_eq!(one, (Some(expected.to_owned()), None));
    let (lines, events) = told(|lines| lines.iter_mut().for_each(|line| line.insert(0, 'x')));
    assert!(lines.unwrap().contains("the first: x"));
    assert_eq!(events.unwrap(), "QEMU's log does not tell of the datagram");
}

#[test]
fn a_gap_leaves_the_step_out_and_invents_nothing() {
    // No log at all: the guest and the wire are still told.
    let silent = Recording {
        qemu_log: String::new(),
        window: super::super::recording::Window {
            qemu: 0,
            ..recording("tcg").window
        },
        ..recording("tcg")
    };
    let timeline = build(&silent).unwrap();
    assert!(
        timeline
            .steps
            .iter()
            .all(|step| matches!(step.layer, Layer::Guest | Layer::Wire))
    );
    assert!(timeline.absent.iter().any(|a| a.what == "QEMU's events"));
    assert!(!timeline.is_sound());
    // The ring was full before the datagram.
    let mut full = recording("tcg");
    full.guest.truncate(full.window.guest);
    assert_eq!(build(&full), Err(NoJourney { bytes: 64 }));
    // Offsets that are not those of a line.
    for qemu in [1, usize::MAX] {
        let mut odd = recording("tcg");
        odd.window.qemu = qemu;
        let _ = build(&odd).unwrap();
    }
}

#[test]
fn a_damaged_frame_shows() {
    let mut damaged = recording("tcg");
    for frame in &mut damaged.frames {
        *frame.bytes.last_mut().unwrap() ^= 1;
    }
    let timeline = build(&damaged).unwrap();
    assert_eq!(timeline.frames.len(), 2);
    for frame in &timeline.frames {
        assert!(matches!(
            frame.comparison,
            Comparison::Differs { at: 105, .. }
        ));
    }
    assert!(!timeline.is_sound());
    // A buffer that was not read is not compared, and no failure.
    let mut unread = recording("tcg");
    unread.memory.clear();
    let timeline = build(&unread).unwrap();
    assert!(timeline.is_sound());
    assert!(
        timeline
            .frames
            .iter()
            .all(|frame| matches!(frame.comparison, Comparison::NotCompared { .. }))
    );
}
