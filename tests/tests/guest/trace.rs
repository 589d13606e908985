//! `kickpath trace` on real runs: every machine, transport and rung tells a
//! whole journey whose layers fit together.

use anyhow::{Context, Result, ensure};
use kickpath::trace::Timeline;
use kickpath::trace::timeline::{Comparison, Delta, Layer, Phase, Verdict};
use kickpath_tests::program::run;
use kickpath_tests::{Suite, setup};

/// What the guest does from the socket to the doorbell, in this order; other
/// steps may lie between.
const WAY_OUT: [&str; 10] = [
    "SocketReceive",
    "SocketSend",
    "TxTokenConsume",
    "StartXmit",
    "Add",
    "Publish",
    "KickPrepare",
    "Notify",
    "DoorbellRing",
    "DoorbellRang",
];

/// What QEMU does with a chain.
const CHAIN: [&str; 3] = ["virtqueue_pop", "virtqueue_fill", "virtqueue_flush"];

pub fn add(suite: &mut Suite) {
    let machines: [(&str, &[&str]); 10] = [
        ("pc", &[]),
        ("pc_without_ioeventfd", &["--ioeventfd", "off"]),
        ("q35_intx", &["--machine", "q35", "--irq", "intx"]),
        ("pc_msix_shared", &["--irq", "msix-shared"]),
        ("pc_polling", &["--irq", "poll"]),
        ("pc_flags", &["--features=-event_idx,-any_layout"]),
        ("q35_modern", &["--machine", "q35", "--transport", "modern"]),
        (
            "modern_without_ioeventfd",
            &["--transport", "modern", "--ioeventfd", "off"],
        ),
        (
            "modern_port_notify",
            &["--transport", "modern", "--pio-notify"],
        ),
        ("microvm", &["--machine", "microvm"]),
    ];
    for (name, options) in machines {
        suite.test(&format!("trace::{name}_tells_a_whole_journey"), move || {
            let timeline = trace(options)?;
            whole(&timeline)?;
            let without = options.contains(&"off") || options.contains(&"microvm");
            let handler = match without {
                true => Layer::QemuVcpu,
                false => Layer::QemuMain,
            };
            handled_by(&timeline, handler)?;
            ensure!(!timeline.run.real_exits);
            ensure!(
                timeline.absent.iter().any(|a| a.what == "KVM's events"),
                "TCG has no VM exits, and the trace says so: {:?}",
                timeline.absent
            );
            Ok(())
        });
    }
    suite.test("trace::the_text_fits_a_terminal", || {
        let text = run(&["trace"])?;
        for line in text.lines() {
            ensure!(line.chars().count() <= 100, "too long: {line}");
        }
        for word in [
            "How the hook was attached",
            "One datagram comes in",
            "One datagram goes out",
            "outw $1, BAR0+0x10",
            "66 ef",
            "vp_notify",
            "virtqueue_kick_prepare",
            "the same on the wire and in the guest's buffer",
            "Every layer tells the same story.",
        ] {
            ensure!(text.contains(word), "'{word}' is missing:\n{text}");
        }
        Ok(())
    });
    suite.test("trace::run_ends_with_a_kick", || {
        let story = run(&["run"])?;
        for word in [
            "How the last datagram left",
            "Doorbell::ring",
            "frame received",
        ] {
            ensure!(story.contains(word), "'{word}' is missing:\n{story}");
        }
        Ok(())
    });
    suite.needs(setup::kvm().err(), |suite| {
        suite.test("trace::kvm_shows_the_exit_and_its_call_chain", kvm);
    });
}

fn trace(options: &[&str]) -> Result<Timeline> {
    let text = run(&[&["trace", "--json", "-"], options].concat())?;
    serde_json::from_str(&text).context(text)
}

/// Every part is there, in order, and every layer agrees.
fn whole(timeline: &Timeline) -> Result<()> {
    ensure!(timeline.is_sound(), "{:#?}", timeline.joins);
    ensure!(
        timeline.joins.iter().all(|j| j.verdict == Verdict::Matched),
        "{:#?}",
        timeline.joins
    );
    let attach: Vec<&str> = timeline
        .phase(Phase::Attach)
        .filter(|step| step.layer == Layer::Guest)
        .map(|step| step.event.as_str())
        .collect();
    ensure!(attach.first() == Some(&"FindVqsTry"), "{attach:?}");
    ensure!(attach.last() == Some(&"FindVqsResult"), "{attach:?}");
    for event in ["SetupQueue", "AttachDoorbell"] {
        let count = attach.iter().filter(|e| **e == event).count();
        ensure!(count >= 2, "both queues: {attach:?}");
    }
    let guest = timeline.steps.iter().filter(|s| s.layer == Layer::Guest);
    let guest: Vec<&str> = guest.map(|step| step.event.as_str()).collect();
    in_order(&guest, &WAY_OUT)?;
    for phase in [Phase::Receive, Phase::Transmit] {
        let main: Vec<&str> = timeline
            .phase(phase)
            .filter(|step| step.layer == Layer::QemuMain)
            .map(|step| step.event.as_str())
            .collect();
        in_order(&main, &CHAIN)?;
        let wire = timeline.phase(phase).filter(|s| s.layer == Layer::Wire);
        ensure!(wire.count() == 1, "one frame on the wire in {phase:?}");
    }
    let back = timeline
        .steps
        .iter()
        .any(|s| s.event == "PopUsed" && s.queue == Some(1));
    // A guest that polls takes buffers back when it needs them, and the trace
    // says that it did not.
    let absent = timeline
        .absent
        .iter()
        .any(|absent| absent.what == "the sent buffer's way back");
    let polling = timeline.run.device.interrupts == "poll";
    ensure!(back != absent && back != polling, "{:?}", timeline.absent);

    ensure!(timeline.frames.len() == 2);
    for frame in &timeline.frames {
        ensure!(frame.comparison == Comparison::Equal, "{frame:?}");
        ensure!(frame.guest.as_ref() == Some(&frame.wire), "{frame:?}");
    }
    let ring = timeline.steps.iter().find(|s| s.event == "DoorbellRing");
    let ring = ring.context("a doorbell")?;
    ensure!(ring.instruction.is_some(), "{ring:?}");
    let source = ring.source.as_ref().context("a source")?;
    let excerpt = source.excerpt.as_ref().context("its lines")?;
    let line = excerpt.lines.get((source.line - excerpt.first) as usize);
    ensure!(
        line.is_some_and(|line| line.contains("tracepoint!")),
        "{source:?}"
    );
    // What the device was shown is what the guest meant.
    let publish = timeline
        .phase(Phase::Transmit)
        .find(|s| s.event == "Publish" && s.queue == Some(1))
        .context("an index")?;
    let queue = publish.snapshot.as_ref().context("a queue")?;
    ensure!(queue.avail.idx.is_some() && !queue.descriptors.is_empty());
    Ok(())
}

fn in_order(events: &[&str], wanted: &[&str]) -> Result<()> {
    let mut rest = events.iter();
    for event in wanted {
        ensure!(
            rest.any(|e| e == event),
            "{event} is not where it should be in {events:?}"
        );
    }
    Ok(())
}

/// Who in QEMU heard of the kick.
fn handled_by(timeline: &Timeline, layer: Layer) -> Result<()> {
    let notify = timeline
        .phase(Phase::Transmit)
        .find(|step| step.event == "virtio_queue_notify")
        .context("a notification")?;
    ensure!(notify.layer == layer, "{notify:?}");
    Ok(())
}

fn kvm() -> Result<()> {
    let timeline = trace(&["--accel", "kvm", "--machine", "microvm"])?;
    ensure!(timeline.is_sound(), "{:#?}", timeline.joins);
    ensure!(timeline.run.real_exits);
    if let Some(absent) = timeline.absent.iter().find(|a| a.what.contains("KVM's")) {
        // The journey is told all the same.
        println!("without KVM's events: {}", absent.reason);
        return whole(&timeline);
    }
    let step = |layer: Layer, event: &str| {
        timeline
            .phase(Phase::Transmit)
            .find(|step| step.layer == layer && step.event == event)
            .with_context(|| format!("no {event} in {:#?}", timeline.steps))
    };
    let ring = step(Layer::Guest, "DoorbellRing")?;
    let exit = timeline
        .phase(Phase::Transmit)
        .find(|step| step.layer == Layer::Kvm && step.caused_by == Some(ring.number))
        .context("the doorbell's exit")?;
    ensure!(
        exit.stack
            .iter()
            .any(|function| function == "kvm_vcpu_ioctl"),
        "{exit:?}"
    );
    ensure!(matches!(exit.delta, Delta::Measured { .. }), "{exit:?}");
    let rang = step(Layer::Guest, "DoorbellRang")?;
    ensure!(exit.number < rang.number);
    let main = timeline.steps.iter();
    let main: Vec<&str> = main
        .filter(|step| step.layer == Layer::QemuMain)
        .map(|step| step.event.as_str())
        .collect();
    in_order(&main, &CHAIN)
}
