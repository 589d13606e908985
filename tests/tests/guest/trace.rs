//! `kickpath trace` on real runs: every machine, transport and rung tells a
//! whole journey whose layers fit together.

use anyhow::{Context, Result, ensure};
use kickpath::install::GDB;
use kickpath::trace::Timeline;
use kickpath::trace::timeline::{Comparison, Delta, Layer, Part, Phase, RingMemory, Verdict};
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

/// What QEMU does with a chain. Of a packed ring it may log no flush.
const CHAIN: [&str; 3] = ["virtqueue_pop", "virtqueue_fill", "virtqueue_flush"];

fn chain(timeline: &Timeline) -> &'static [&'static str] {
    let mut features = timeline.run.device.features.iter();
    match features.any(|feature| feature == "RING_PACKED") {
        true => &CHAIN[..2],
        false => &CHAIN,
    }
}

pub fn add(suite: &mut Suite) {
    let machines: [(&str, &[&str]); 17] = [
        ("pc", &[]),
        ("two_cpus", &["--smp", "2"]),
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
        ("packed", &["--transport", "modern", "--layout", "packed"]),
        (
            "packed_intx_without_ioeventfd",
            &[
                "--transport",
                "modern",
                "--layout",
                "packed",
                "--irq",
                "intx",
                "--ioeventfd",
                "off",
            ],
        ),
        (
            "packed_polling",
            &[
                "--transport",
                "modern",
                "--layout",
                "packed",
                "--irq",
                "poll",
            ],
        ),
        (
            "packed_flags",
            &[
                "--transport",
                "modern",
                "--layout",
                "packed",
                "--features=-event_idx",
            ],
        ),
        (
            "packed_microvm",
            &["--machine", "microvm", "--layout", "packed"],
        ),
        (
            "microvm_without_ioeventfd",
            &["--machine", "microvm", "--ioeventfd", "off"],
        ),
    ];
    for (name, options) in machines {
        suite.test(&format!("trace::{name}_tells_a_whole_journey"), move || {
            let timeline = trace(options)?;
            whole(&timeline)?;
            // Before 10.0 virtio-mmio had an ioeventfd on KVM only.
            let no_ioeventfd = options.contains(&"microvm") && !setup::qemu_is_at_least(10, 0)?;
            let without = options.contains(&"off") || no_ioeventfd;
            let handler = match without {
                true => Layer::QemuVcpu,
                false => Layer::QemuMain,
            };
            handled_by(&timeline, handler)?;
            qemu_tells_its_way(&timeline, without)?;
            ensure!(!timeline.run.real_exits);
            ensure!(
                timeline.absent.iter().any(|a| a.what == "KVM's events"),
                "TCG has no VM exits, and the trace says so: {:?}",
                timeline.absent
            );
            Ok(())
        });
    }
    suite.needs(setup::lacks_tap(), |suite| {
        suite.test("trace::two_cpus_at_a_tap_have_a_pair_of_queues_each", tap);
    });
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
            "Between the two records of the doorbell",
            "kicks of this queue",
            "net_device_ops.ndo_start_xmit",
            "VIRTIO_PCI_QUEUE_NOTIFY",
            "main_loop_wait",
            "counts of one layer fit those of another; 2 of 2 frames are the same",
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
    suite.test("trace::every_way_on_tcg", || every_way("tcg"));
    suite.needs(setup::kvm().err(), |suite| {
        suite.test("trace::every_way_on_kvm", || every_way("kvm"));
        suite.test("trace::kvm_shows_the_exit_and_its_call_chain", kvm);
    });
}

fn trace(options: &[&str]) -> Result<Timeline> {
    setup::require(&[GDB])?;
    let text = run(&[&["trace", "--json", "-"], options].concat())?;
    serde_json::from_str(&text).context(text)
}

/// Every part is there, in order, and every layer agrees.
pub fn whole(timeline: &Timeline) -> Result<()> {
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
        in_order(&main, chain(timeline))?;
        let wire = timeline.phase(phase).filter(|s| s.layer == Layer::Wire);
        ensure!(wire.count() == 1, "one frame on the wire in {phase:?}");
    }
    let mut sent = timeline.phase(Phase::Transmit);
    let sent = sent.find(|step| step.event == "StartXmit");
    let sent = sent.context("a frame")?.queue;
    let back = timeline
        .steps
        .iter()
        .any(|s| s.event == "PopUsed" && s.queue == sent);
    // A guest that polls takes buffers back when it needs them or its watchdog
    // looks, and the trace says if it did not.
    let absent = timeline
        .absent
        .iter()
        .any(|absent| absent.what == "the sent buffer's way back");
    let polling = timeline.run.device.interrupts == "poll";
    ensure!(back != absent && (back || polling), "{:?}", timeline.absent);

    ensure!(timeline.frames.len() == 2);
    for frame in &timeline.frames {
        ensure!(frame.comparison == Comparison::Equal, "{frame:?}");
        ensure!(frame.guest.as_ref() == Some(&frame.wire), "{frame:?}");
    }
    let ring = timeline.steps.iter().find(|s| s.event == "DoorbellRing");
    let ring = ring.context("a doorbell")?;
    let instruction = ring.instruction.as_ref();
    let instruction = instruction.context("the doorbell's instruction")?;
    let written = instruction.source.as_ref();
    ensure!(
        written.is_some_and(|source| source.excerpt.is_some()),
        "where it is written: {instruction:?}"
    );
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
        .find(|s| s.event == "Publish" && s.queue == sent)
        .context("an index")?;
    let queue = publish.snapshot.as_ref().context("a queue")?;
    match &queue.memory {
        RingMemory::Split {
            descriptors, avail, ..
        } => ensure!(avail.idx.is_some() && !descriptors.is_empty()),
        RingMemory::Packed {
            descriptors,
            next_avail,
            ..
        } => {
            // Of the descriptor its flags, and its id if that is another one.
            let changed = &queue.changed;
            ensure!(
                next_avail.is_some()
                    && changed
                        .iter()
                        .any(|part| matches!(part, Part::DescriptorFlags(_)))
                    && changed.iter().all(|part| matches!(
                        part,
                        Part::DescriptorFlags(_) | Part::DescriptorId(_) | Part::NextAvail
                    )),
                "{queue:?}"
            );
            ensure!(descriptors.iter().any(|d| d.avail.is_some()), "{queue:?}");
        }
    }
    let mut steps = timeline.steps.iter();
    let flushes = steps.any(|step| step.event == "virtqueue_flush");
    let mut absent = timeline.absent.iter();
    let said = absent.any(|absent| absent.what.contains("virtqueue_flush"));
    ensure!(
        flushes != said,
        "what QEMU does not log is said: {:?}",
        timeline.absent
    );
    rings(timeline)?;
    concluded(timeline)?;
    Ok(())
}

/// Every layout, transport, rung and way to handle a kick, on one accelerator.
fn every_way(accel: &str) -> Result<()> {
    let mmio: [&[&str]; 2] = [
        &["--machine", "microvm"],
        &["--machine", "microvm", "--layout", "packed"],
    ];
    let pci: [&[&str]; 3] = [
        &["--transport", "legacy"],
        &["--transport", "modern"],
        &["--transport", "modern", "--layout", "packed"],
    ];
    // A KVM that emulates every instruction takes long for a PC's firmware.
    let transports = match accel {
        "kvm" => mmio.to_vec(),
        _ => [&mmio[..], &pci].concat(),
    };
    let mut told = 0;
    for transport in transports {
        let pci = transport.contains(&"--transport");
        let rungs: &[&str] = match pci {
            true => &["msix", "msix-shared", "intx", "poll"],
            false => &["intx", "poll"],
        };
        for rung in rungs {
            for ioeventfd in ["on", "off"] {
                let mut options = [transport, &["--irq", rung, "--accel", accel]].concat();
                // virtio-mmio has the option on some versions only.
                if pci {
                    options.extend(["--ioeventfd", ioeventfd]);
                } else if ioeventfd == "off" {
                    continue;
                }
                let what = options.join(" ");
                println!("{what}");
                let timeline = trace(&options).context(what.clone())?;
                whole(&timeline).context(what)?;
                told += 1;
            }
        }
    }
    let expected = if accel == "kvm" { 4 } else { 28 };
    ensure!(told == expected, "{told} ways");
    Ok(())
}

/// What is concluded follows from what was checked.
fn concluded(timeline: &Timeline) -> Result<()> {
    let text = timeline.conclusion();
    let joins = format!("{} counts of one layer fit", timeline.joins.len());
    ensure!(text.contains(&joins), "{text}");
    ensure!(text.contains("never quiet") != timeline.quiet, "{text}");
    let kicks = timeline.kicks.as_ref().context("kicks")?;
    let [min, median, max] = kicks.spread_ns.context("a spread")?;
    // With several pairs a hash of its port decides whose a datagram is.
    let has_pairs = timeline.run.device.features.iter().any(|name| name == "MQ");
    let least = if has_pairs { 1 } else { 10 };
    ensure!(kicks.counted + kicks.interrupted >= least, "{kicks:?}");
    ensure!(0.0 < min && min <= median && median <= max, "{kicks:?}");
    for name in [
        "ndo_start_xmit",
        "virtqueue_kick_prepare",
        "QUEUE_NOTIFY",
        "main_loop_wait",
    ] {
        let mut calls = timeline.calls.iter();
        let modern = timeline.run.device.transport == "modern" && name == "QUEUE_NOTIFY";
        let told = calls.any(|call| call.words.contains(name));
        ensure!(told != modern, "{name} in {:#?}", timeline.calls);
    }
    let followed = timeline
        .steps
        .iter()
        .filter(|step| step.event == "Add" && !step.aside);
    ensure!(followed.count() == 1, "one chain is the packet's");
    Ok(())
}

/// At every step the ring is what the records make it, on both sides.
fn rings(timeline: &Timeline) -> Result<()> {
    let packed = timeline
        .run
        .device
        .features
        .iter()
        .any(|f| f == "RING_PACKED");
    for step in &timeline.steps {
        let of_qemu = matches!(step.layer, Layer::QemuMain | Layer::QemuVcpu);
        ensure!(
            step.queue.is_some() || !of_qemu || step.phase == Phase::Attach,
            "no queue's number at {step:?}"
        );
        let Some(queue) = &step.snapshot else {
            ensure!(step.queue.is_none(), "no ring beside {step:?}");
            continue;
        };
        ensure!(
            step.queue == Some(queue.queue),
            "the wrong ring beside {step:?}"
        );
        let drawn = matches!(queue.memory, RingMemory::Packed { .. });
        ensure!(drawn == packed, "a ring of another layout beside {step:?}");
        let has = |list: &[Part], wanted: &[Part]| wanted.iter().any(|part| list.contains(part));
        let told = match step.event.as_str() {
            "KickPrepare" => {
                let wish = [Part::AvailEvent, Part::UsedFlags, Part::DeviceEvent];
                queue.changed.is_empty() && has(&queue.read, &wish)
            }
            "Publish" => has(&queue.changed, &[Part::AvailIndex, Part::NextAvail]),
            "virtqueue_pop" | "PopUsed" => queue.changed.is_empty() && !queue.read.is_empty(),
            "virtqueue_flush" if !packed => queue.changed == [Part::UsedIndex],
            "virtqueue_fill" if !packed => {
                let parts = [&queue.changed[..], &queue.written].concat();
                matches!(parts[..], [Part::UsedEntry(_)])
            }
            "virtio_notify" => {
                let wish = [Part::UsedEvent, Part::AvailFlags, Part::DriverEvent];
                queue.changed.is_empty() && has(&queue.read, &wish)
            }
            _ => true,
        };
        ensure!(told, "{step:#?}");
        let words = serde_json::to_string(&(&step.section, &step.sentence, &step.values))?;
        let foreign = match packed {
            true => ["available ring", "used ring", "2.7."],
            false => ["wrap counter", "event suppression structure", "2.8."],
        };
        for word in foreign {
            ensure!(!words.contains(word), "{word} of another layout in {words}");
        }
    }
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

/// QEMU's call chain, from its main loop by an eventfd or from the guest's translated code.
fn qemu_tells_its_way(timeline: &Timeline, by_vcpu: bool) -> Result<()> {
    let mut absent = timeline.absent.iter();
    if let Some(absent) = absent.find(|absent| absent.reason.contains("ptrace")) {
        println!("without {}: {}", absent.what, absent.reason);
        return Ok(());
    }
    let mut notified = timeline.phase(Phase::Transmit);
    let notified = notified.find(|step| step.event == "virtio_queue_notify" && !step.aside);
    let stack = &notified.context("a notification")?.stack;
    let wanted = match by_vcpu {
        true => ["virtio_queue_notify", "code_gen_buffer", "cpu_exec"],
        false => [
            "virtio_queue_host_notifier_read",
            "aio_dispatch",
            "main_loop_wait",
        ],
    };
    let names: Vec<&str> = stack
        .iter()
        .filter_map(|name| name.split(' ').next())
        .collect();
    in_order(&names, &wanted).with_context(|| format!("{:?}", timeline.absent))
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

/// Linux at the far end, and whichever pair of queues it sends the datagram to.
fn tap() -> Result<()> {
    let timeline = trace(&["--net", "tap", "--smp", "2", "--transport", "modern"])?;
    whole(&timeline)?;
    let features = &timeline.run.device.features;
    ensure!(features.iter().any(|name| name == "MQ"), "{features:?}");
    let queues = timeline.phase(Phase::Attach);
    let queues = queues.filter(|step| step.event == "SetupQueue").count();
    ensure!(queues == 5, "two pairs and the control queue, not {queues}");
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
    // Without vmx or svm it is a KVM that leaves no record of its exits.
    let software = timeline.run.accelerator_reason.contains("software KVM");
    let mut absent = timeline.absent.iter();
    let silent = absent.find(|absent| absent.what.contains("kvm_exit"));
    ensure!(software == silent.is_some(), "{:?}", timeline.absent);
    ensure!(silent.is_none_or(|silent| silent.reason.contains("asked for")));
    let rang = step(Layer::Guest, "DoorbellRang")?;
    ensure!(exit.number < rang.number);
    qemu_tells_its_way(&timeline, false)?;
    let main = timeline.steps.iter();
    let main: Vec<&str> = main
        .filter(|step| step.layer == Layer::QemuMain)
        .map(|step| step.event.as_str())
        .collect();
    in_order(&main, chain(&timeline))
}
