//! `trace --guest linux`: the same packet through Linux's own virtio_net.

use anyhow::{Context, Result, ensure};
use kickpath::linux::{BETWEEN, GUEST};
use kickpath::trace::Timeline;
use kickpath::trace::timeline::{Comparison, Layer, Phase, Step, Verdict};
use kickpath_tests::Suite;
use kickpath_tests::program::command;

use crate::nested::require;

/// Functions and trace events of the guest's kernel from the device's interrupt to the return of
/// the kick, in this order; others may lie between.
const CHAIN: [&str; 13] = [
    "irq_handler_entry",
    "vring_interrupt",
    "virtnet_poll",
    "virtqueue_get_buf_ctx",
    "netif_receive_skb",
    "udp_recvmsg",
    "udp_sendmsg",
    "start_xmit",
    "virtqueue_add_outbuf",
    "virtqueue_kick_prepare",
    "virtqueue_notify",
    "vp_notify",
    "vp_notify",
];

/// The transmit queue.
const TX: Option<u16> = Some(1);

pub fn add(suite: &mut Suite) {
    let missing = (!cfg!(target_arch = "x86_64")).then(|| "a host of x86-64 is needed".to_owned());
    suite.needs(missing, |suite| {
        suite.test("linux_guest::modern", || {
            let timeline = trace(&[])?;
            chain(&timeline, "66 89 3e", Layer::QemuMain)
        });
        suite.test("linux_guest::legacy_without_ioeventfd", || {
            let timeline = trace(&["--transport", "legacy", "--ioeventfd", "off"])?;
            chain(&timeline, "66 ef", Layer::QemuVcpu)
        });
        suite.test("linux_guest::intx", || {
            let timeline = trace(&["--machine", "q35", "--irq", "intx"])?;
            let handler = timeline.steps.iter().any(|s| called(s, "vp_interrupt"));
            ensure!(handler && timeline.run.device.interrupts == "intx");
            joined(&timeline)
        });
        suite.test("linux_guest::nested", nested);
        suite.test("linux_guest::options_of_our_guest_are_refused", || {
            for options in [["--irq", "poll"], ["--machine", "microvm"], ["--smp", "2"]] {
                let output = run(&options)?;
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                ensure!(
                    !output.status.success() && said.contains(options[0]),
                    "{said}"
                );
            }
            Ok(())
        });
    });
}

fn run(options: &[&str]) -> Result<std::process::Output> {
    let words = [&["trace", "--guest", "linux", "--json", "-"], options].concat();
    Ok(command(&words)?.output()?)
}

fn trace(options: &[&str]) -> Result<Timeline> {
    require(GUEST)?;
    let output = run(options)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}\n{errors}{text}", output.status);
    serde_json::from_str(&text).context(text.into_owned())
}

fn called(step: &Step, function: &str) -> bool {
    step.layer == Layer::Guest && step.function.as_deref() == Some(function)
}

/// The layers fit together.
fn joined(timeline: &Timeline) -> Result<()> {
    let guest = timeline.run.guest.as_deref().context("the guest's name")?;
    ensure!(guest.starts_with("Linux "), "{guest}");
    ensure!(timeline.is_sound(), "{:#?}", timeline.joins);
    for what in [
        "doorbell -> virtio_queue_notify, transmit queue",
        "add -> virtqueue_pop, transmit queue",
        "virtqueue_flush -> pop_used, receive queue",
        "virtio_notify -> interrupt handler",
    ] {
        let join = timeline.joins.iter().find(|join| join.what == what);
        let join = join.with_context(|| format!("{what} in {:#?}", timeline.joins))?;
        let fits = matches!(join.verdict, Verdict::Matched | Verdict::Coalesced);
        ensure!(fits && join.left > 0, "{join:?}");
    }
    Ok(())
}

/// Every function of the way out and back was recorded, with its queue, and every layer
/// tells the same.
fn chain(timeline: &Timeline, bytes: &str, handler: Layer) -> Result<()> {
    joined(timeline)?;
    let mut steps = timeline.steps.iter().filter(|s| s.phase != Phase::Attach);
    let mut found = Vec::new();
    for function in CHAIN {
        let step = steps.find(|step| called(step, function));
        found.push(step.with_context(|| format!("{function} is not where it should be"))?);
    }
    let of = |function: &str| {
        let place = CHAIN.iter().position(|name| *name == function);
        found[place.expect("a function of the chain")]
    };
    for function in [
        "start_xmit",
        "virtqueue_add_outbuf",
        "virtqueue_notify",
        "vp_notify",
    ] {
        ensure!(of(function).queue == TX, "{:?}", of(function));
    }
    let value = |step: &Step, name: &str| {
        let values = step.values.iter();
        let mut values = values.filter(|value| value.name == name);
        values.next().map(|value| value.value.clone())
    };
    // The queue's name stands beside its index: both are read where they are.
    let add = of("virtqueue_add_outbuf");
    ensure!(value(add, "name").as_deref() == Some("output.0"), "{add:?}");
    let mut caller = of("virtqueue_notify").stack.iter();
    for function in [
        "start_xmit",
        "dev_hard_start_xmit",
        "udp_sendmsg",
        "do_syscall_64",
    ] {
        ensure!(
            caller.any(|name| name.starts_with(function)),
            "no {function} in {:?}",
            of("virtqueue_notify").stack
        );
    }
    let ring = of("vp_notify");
    let instruction = ring.instruction.as_ref().context("an instruction")?;
    ensure!(
        instruction.bytes == bytes && instruction.symbol == "iowrite16",
        "{instruction:?}"
    );

    // QEMU hears of this very kick, takes the frame, and it is on the wire.
    let heard = timeline
        .phase(Phase::Transmit)
        .find(|s| s.event == "virtio_queue_notify");
    let heard = heard.context("a notification")?;
    ensure!(heard.layer == handler && heard.queue == TX, "{heard:?}");
    // Without an ioeventfd QEMU's device code is called by the write itself.
    let mut cause = heard;
    while cause.layer == Layer::QemuVcpu && cause.caused_by.is_none() {
        cause = &timeline.steps[cause.number - 1];
    }
    ensure!(cause.caused_by == Some(ring.number), "{cause:?}");
    let [sent, echoed] = &timeline.frames[..] else {
        anyhow::bail!("{:?}", timeline.frames);
    };
    // Ethernet, IPv4 and UDP headers are 42 bytes.
    let content = |wire: &str| wire.get(84..).map(str::to_owned);
    ensure!(echoed.wire_step.is_some() && sent.wire.len() == 2 * 106);
    ensure!(content(&sent.wire) == content(&echoed.wire), "{echoed:?}");
    ensure!(matches!(sent.comparison, Comparison::NotCompared { .. }));

    // The device's interrupt for it comes, and the very buffer is given back.
    let mut later = timeline.steps.iter().skip(ring.number);
    let handled = later.find(|step| called(step, "vring_interrupt") && step.queue == TX);
    let handled = handled.context("the interrupt of the transmit queue")?;
    let mut later = timeline.steps.iter().skip(handled.number);
    let back = later.find(|step| called(step, "virtqueue_get_buf"));
    let back = back.context("the buffer")?;
    ensure!(value(back, "returned") == value(add, "data"), "{back:?}");

    // What was not recorded is not drawn, but said.
    ensure!(timeline.steps.iter().all(|step| step.snapshot.is_none()));
    ensure!(
        timeline
            .absent
            .iter()
            .any(|absent| absent.what.contains("rings"))
    );
    ensure!(
        timeline.ring.lost == 0 && timeline.ring.recorded > 100,
        "{:?}",
        timeline.ring
    );
    Ok(())
}

/// The same with a real KVM: Linux's own write leaves the CPU.
fn nested() -> Result<()> {
    require(BETWEEN)?;
    let timeline = trace(&["--accel", "nested"])?;
    joined(&timeline)?;
    ensure!(timeline.run.real_exits, "{:?}", timeline.run);
    let ring = timeline
        .steps
        .iter()
        .find(|step| step.event == "DoorbellRing");
    let ring = ring.context("a doorbell")?;
    let exits = timeline
        .steps
        .iter()
        .filter(|step| step.event == "kvm_exit");
    let mut near = exits.filter(|step| step.number > ring.number && !step.aside);
    let exit = near.next().context("the exit")?;
    ensure!(exit.sentence.contains("(npf)"), "{exit:?}");
    let joined = timeline.joins.iter().find(|j| j.what.contains("VM exit"));
    ensure!(
        joined.is_some_and(|join| join.verdict == Verdict::Matched),
        "{joined:?}"
    );
    Ok(())
}
