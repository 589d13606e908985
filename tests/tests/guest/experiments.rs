//! `kickpath lab`: what each mistake comes to, that the fix which is shown puts it right,
//! and that no other guest has any of it.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail, ensure};
use kickpath::lab::{self, EXPERIMENTS, Experiment, Kernel, Options, Outcome, Report};
use kickpath_tests::program::command;
use kickpath_tests::{Suite, setup};

use crate::compiled;

pub fn add(suite: &mut Suite) {
    suite.test("experiments::the_fixes_put_it_right", fixes);
    suite.test("experiments::no_other_guest_has_them", no_other_guest);
    for experiment in EXPERIMENTS {
        let name = format!("experiments::{}", experiment.name);
        suite.test(&name, move || outcome(experiment));
    }
    suite.test("experiments::check_tells_a_student", check_tells);
}

fn options() -> Result<Options> {
    Ok(Options {
        qemu: Some(setup::setup()?.qemu.clone()),
        policy: setup::policy(),
    })
}

/// The guest with the mistakes as they are.
fn kernel() -> Result<&'static Kernel> {
    static KERNEL: OnceLock<std::result::Result<Kernel, String>> = OnceLock::new();
    let build = || lab::build(None, setup::policy(), &mut setup::show);
    let kernel = KERNEL.get_or_init(|| build().map_err(|error| error.to_string()));
    kernel.as_ref().map_err(|error| anyhow!("{error}"))
}

fn outcome(experiment: &'static Experiment) -> Result<()> {
    let kernel = kernel()?;
    let report = lab::run(
        experiment,
        None,
        &kernel.file,
        &options()?,
        &mut setup::show,
    )?;
    let expected = match experiment.name {
        "no-kick" | "no-barrier" | "index-wrap" | "no-second-look" => Outcome::Late,
        "wrong-queue" | "not-recycled" | "lying-device" => Outcome::Lost,
        "index-first" | "short-descriptor" | "no-header" => Outcome::Damaged,
        "kick-always" => Outcome::Costs,
        other => bail!("what is expected of {other}?"),
    };
    ensure!(report.outcome == expected, "{report:#?}");
    ensure!(report.right.outcome() == experiment.right, "{report:#?}");
    ensure!(left_its_mark(&report), "{report:#?}");
    Ok(())
}

/// Whether the records show the mistake itself, and not only that something is wrong.
fn left_its_mark(report: &Report) -> bool {
    let (right, wrong) = (&report.right, &report.wrong);
    let stalled = wrong.stalled.unwrap_or_default();
    let waits = stalled.avail_idx != stalled.last_avail_idx;
    match report.experiment.name {
        // But for QEMU's own at each start, and the watchdog's.
        "no-kick" => waits && wrong.wanted > 0 && wrong.heard_transmit <= 1 + wrong.prods,
        "wrong-queue" => waits && wrong.kicks > 0 && wrong.heard_transmit <= 1 + wrong.reopened,
        "no-barrier" => waits && stalled.avail_event == stalled.last_avail_idx,
        "index-wrap" => waits && stalled.avail_idx < 100 && stalled.avail_event > 65_000,
        "kick-always" => {
            let is_told_more = wrong.heard_transmit > 2 * right.heard_transmit;
            right.needless == 0 && wrong.kicks > wrong.wanted && is_told_more
        }
        "no-second-look" => wrong.interrupts_missed > 1 && right.interrupts_missed < 2,
        "not-recycled" => wrong.taken_back == 0 && !waits && stalled.used_idx == stalled.size,
        "lying-device" => right.prods == 0 && right.answered == right.asked && wrong.prods > 0,
        "index-first" | "short-descriptor" | "no-header" => wrong.damage.is_some(),
        _ => false,
    }
}

/// The guest with every fix as it is shown: each experiment works. (That none does without
/// is what [`outcome`] shows.)
fn fixes() -> Result<()> {
    let all: String = EXPERIMENTS
        .iter()
        .map(|experiment| experiment.fix)
        .collect();
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), all)?;
    let kernel = lab::build(Some(file.path()), setup::policy(), &mut setup::show)?;
    for experiment in EXPERIMENTS {
        let checked = lab::check(experiment, &kernel.file, &options()?, &mut setup::show)?;
        ensure!(checked.ok, "{}: {checked:#?}", experiment.name);
    }
    Ok(())
}

/// As a person runs it: without a change, with one that is no change of these sources.
fn check_tells() -> Result<()> {
    let output = command(&["lab", "check", "kick-always"])?.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success(), "{text}");
    ensure!(text.contains("Experiment 6 does not work yet"), "{text}");
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), EXPERIMENTS[0].fix.replace("wanted", "wished"))?;
    let path = file.path().to_str().context("not UTF-8")?;
    let output = command(&["lab", "check", "1", "--patch", path])?.output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "{text}");
    ensure!(text.contains("does not fit the sources"), "{text}");
    Ok(())
}

/// Without the feature the compiler makes of every function of the driver what it makes of
/// it when every line of the feature has been taken out of the sources: its intermediate
/// code, from which all machine code comes, is the same, byte for byte.
fn no_other_guest() -> Result<()> {
    let directory = tempfile::tempdir()?;
    lab::copy_sources(directory.path())?;
    let normal = intermediate(directory.path(), "smoltcp,trace")?;
    ensure!(
        normal.contains("fn ") && normal.contains("start_xmit"),
        "{normal}"
    );
    let faulty = intermediate(directory.path(), "smoltcp,trace,faults")?;
    strip(&directory.path().join("kernel"))?;
    let stripped = intermediate(directory.path(), "smoltcp,trace")?;
    let pairs = normal.lines().zip(stripped.lines());
    let differs = pairs
        .into_iter()
        .find(|(normal, stripped)| normal != stripped);
    ensure!(normal == stripped, "the normal build differs: {differs:?}");
    ensure!(faulty != normal, "no difference is found");
    Ok(())
}

/// The compiler's intermediate code of the driver.
fn intermediate(tree: &Path, features: &str) -> Result<String> {
    compiled::driver(tree, features, "mir", &[], &[])
}

/// Takes what has the feature out of every source below a directory. The lines stay, empty,
/// because messages have their numbers.
fn strip(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.ends_with("virtio-net/lab") {
            fs::remove_dir_all(&path)?;
        } else if path.is_dir() {
            strip(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let without = without_feature(&text);
            let is_left = ["crate::faults::", "virtio_net::faults::"];
            let is_left = is_left.iter().any(|name| without.contains(name));
            ensure!(!is_left, "{} has more of it", path.display());
            if without != text {
                fs::write(&path, without)?;
            }
        } else if path.ends_with("virtio-net/Cargo.toml") || path.ends_with("kernel/Cargo.toml") {
            let text = fs::read_to_string(&path)?;
            let lines = text.lines().filter(|line| !line.starts_with("faults = "));
            fs::write(
                &path,
                lines.map(|line| format!("{line}\n")).collect::<String>(),
            )?;
        }
    }
    Ok(())
}

/// A source without the items and statements that have the feature.
fn without_feature(text: &str) -> String {
    let (mut kept, mut inside, mut depth) = (String::new(), false, 0);
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed == "#[cfg(feature = \"faults\")]" {
            inside = true;
        } else if inside {
            let count = |brackets: [char; 3]| trimmed.matches(brackets).count() as i32;
            depth += count(['(', '{', '[']) - count([')', '}', ']']);
            inside = depth > 0 || trimmed.starts_with("#[") || !trimmed.ends_with([';', '}']);
        } else {
            kept += line;
        }
        kept.push('\n');
    }
    kept
}
