//! `--accel nested`: KVM's own exits, in a Linux on an emulated CPU with SVM. It
//! is also what tests the way of hardware KVM on machines that have none.

use anyhow::{Context, Result, ensure};
use kickpath::linux::{self, Linux};
use kickpath::trace::Timeline;
use kickpath::trace::timeline::{Delta, Layer, Step};
use kickpath_tests::program::run;
use kickpath_tests::{Skip, Suite, setup};

use crate::trace::whole;

pub fn add(suite: &mut Suite) {
    let missing = (!cfg!(target_arch = "x86_64")).then(|| "a host of x86-64 is needed".to_owned());
    suite.needs(missing, |suite| {
        suite.test("nested::trace_shows_the_exit_of_the_kick", trace);
    });
}

/// Skips the test where Debian's packages cannot be had.
pub fn require(choice: linux::Choice) -> Result<()> {
    match Linux::get(choice, setup::policy(), &mut setup::show) {
        Err(error) if error.is_unavailable() => {
            let reason = error.to_string();
            let first = reason.lines().next().unwrap_or_default();
            Err(Skip(first.to_owned()).into())
        }
        got => Ok(got.map(drop)?),
    }
}

fn trace() -> Result<()> {
    require(linux::BETWEEN)?;
    let directory = tempfile::tempdir()?;
    let frames = directory.path().join("frames.pcap");
    let name = frames.to_str().context("a path of UTF-8")?;
    let words = ["trace", "--accel", "nested", "--json", "-", "--pcap", name];
    let text = run(&words)?;
    let timeline: Timeline = serde_json::from_str(&text).context(text)?;
    let told = &timeline.run;
    ensure!(told.real_exits && told.accelerator == "kvm", "{told:?}");
    let reason = &told.accelerator_reason;
    ensure!(
        reason.contains("svm") && reason.contains("emulated by QEMU's TCG"),
        "{reason}"
    );
    whole(&timeline)?;
    let joined = timeline.joins.iter().find(|j| j.what.contains("VM exit"));
    let joined = joined.context("the join of doorbells and exits")?;
    ensure!(joined.method.starts_with("time"), "{joined:?}");

    // The guest's write, the exit for it, what KVM makes of it, and back.
    let guest = |event: &str| {
        let mut steps = timeline.steps.iter();
        let found = steps.find(|step| step.layer == Layer::Guest && step.event == event);
        found.with_context(|| format!("no {event}"))
    };
    let (ring, rang) = (guest("DoorbellRing")?, guest("DoorbellRang")?);
    let between = ring.number..rang.number;
    let kvm: Vec<&Step> = timeline
        .steps
        .iter()
        .filter(|step| step.layer == Layer::Kvm && between.contains(&step.number))
        .collect();
    let of = |event: &str| {
        let found = kvm.iter().find(|step| step.event == event && !step.aside);
        found.with_context(|| format!("no {event} in {kvm:#?}"))
    };
    let (exit, access, entry) = (of("kvm_exit")?, of("kvm_pio")?, of("kvm_entry")?);
    ensure!(exit.number < access.number && access.number < entry.number);
    ensure!(exit.sentence.contains("(io)"), "{exit:?}");
    ensure!(access.caused_by == Some(ring.number), "{access:?}");
    ensure!(matches!(access.delta, Delta::Measured { .. }), "{access:?}");
    let mut chain = access.stack.iter();
    for function in ["kvm_fast_pio", "kvm_arch_vcpu_ioctl_run", "kvm_vcpu_ioctl"] {
        ensure!(
            chain.any(|found| found.starts_with(function)),
            "no {function} in {:?}",
            access.stack
        );
    }
    // And it sleeps by an exit, too.
    let last = timeline.steps.iter().rev();
    let mut exits = last.filter(|step| step.layer == Layer::Kvm && step.event == "kvm_exit");
    let sleep = exits.next().context("an exit")?;
    ensure!(
        sleep.sentence.contains("(hlt)") && !sleep.aside,
        "{sleep:?}"
    );
    let recorded = std::fs::metadata(&frames)?.len();
    ensure!(recorded > 1000, "{recorded} bytes of frames");
    Ok(())
}
