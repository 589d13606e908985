//! The experiments as text.

use std::io::{self, BufRead, Write};

use super::evidence::{Evidence, Outcome, Ring};
use super::experiments::{EXPERIMENTS, Experiment};
use super::{LabError, Report};
use crate::lang::Lang;
use crate::terminal::{Story, pad, pad_left, thousands};

/// Lists the experiments.
///
/// # Errors
/// The output is closed.
pub fn list<W: Write>(story: &mut Story<W>) -> io::Result<()> {
    story.section("Experiments")?;
    for experiment in EXPERIMENTS {
        let label = format!("{:2}", experiment.number);
        let text = named(story.lang(), experiment.name, experiment.question);
        story.row(&label, &text)?;
    }
    story.section("Next")?;
    story.row(
        "lab run 1",
        "boots the guest with the mistake, and shows what comes of it",
    )?;
    story.row("lab check 1", "whether your change of kernel/virtio-net/lab/experiments.rs, or --patch FILE, puts it right")?;
    story.row(
        "lab ring",
        "with --html FILE: a page on which you work both ends of a ring by hand",
    )
}

/// A text with the name of what it tells of, in a language.
fn named(lang: Lang, name: &str, text: &str) -> String {
    format!("{name}{}{}", lang.say(": "), lang.say(text))
}

/// States the question of an experiment and the outcomes among which to choose.
///
/// # Errors
/// The output is closed.
fn state<W: Write>(story: &mut Story<W>, experiment: &Experiment) -> io::Result<()> {
    story.section(&format!(
        "Experiment {}: {}",
        experiment.number, experiment.name
    ))?;
    story.row("Question", experiment.question)
}

/// States the question and has the student choose an outcome; an empty line or the end of
/// the input chooses none.
///
/// # Errors
/// The input or the output fails.
pub fn ask<W: Write>(
    story: &mut Story<W>,
    experiment: &Experiment,
    input: &mut impl BufRead,
) -> Result<Option<Outcome>, LabError> {
    state(story, experiment)?;
    for outcome in Outcome::ALL {
        let sentence = story.say(outcome.sentence());
        story.row("", &format!("{:8} {sentence}", outcome.word()))?;
    }
    loop {
        let question = story.say("What do you expect? (a word, or nothing to go on)");
        story.line(&question)?;
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(None);
        }
        match line.trim().parse() {
            Ok(outcome) => return Ok(Some(outcome)),
            Err(expected) => story.line(&expected)?,
        }
    }
}

/// Tells what an experiment came to.
///
/// # Errors
/// The output is closed.
pub fn tell<W: Write>(story: &mut Story<W>, report: &Report) -> io::Result<()> {
    let experiment = report.experiment;
    state(story, experiment)?;
    let lang = story.lang();
    let told = |outcome: Outcome| named(lang, outcome.word(), outcome.sentence());
    story.row("Outcome", &told(report.outcome))?;
    match report.predicted {
        Some(predicted) if predicted == report.outcome => {
            story.row("You expected", "just that")?;
        }
        Some(predicted) => {
            story.row("You expected", &told(predicted))?;
        }
        None => {}
    }
    story.section("What happened, with the mistake")?;
    for (number, step) in (1..).zip(&report.wrong.steps) {
        let (event, sentence) = parts(step);
        story.row(&format!("record {number}"), &named(lang, event, sentence))?;
    }
    for line in &report.wrong.said {
        story.row("guest's log", line)?;
    }
    for line in facts(&report.wrong) {
        story.row("", &line)?;
    }
    numbers(story, &[("right", &report.right), ("wrong", &report.wrong)])?;
    story.section("Why")?;
    story.row("", experiment.explanation)?;
    story.row("Section", &format!("{} (virtio 1.2)", experiment.section))?;
    story.row("Done right in", experiment.place)?;
    story.section("The fix")?;
    for line in experiment.fix.lines() {
        story.line(line)?;
    }
    story.faint(&format!(
        "\nPut it right yourself: kernel/virtio-net/lab/experiments.rs, then `cargo run -- lab check {}`.",
        experiment.number
    ))
}

/// A record's event, and what it tells.
pub(super) fn parts(step: &str) -> (&str, &str) {
    step.split_once(": ").unwrap_or(("", step))
}

/// What the ring and the cable say, in sentences.
pub(super) fn facts(evidence: &Evidence) -> Vec<String> {
    let mut facts = Vec::new();
    let ring = |ring: &Ring, when: &str| {
        let waiting = ring.avail_idx.wrapping_sub(ring.last_avail_idx);
        let unclaimed = ring.used_idx.wrapping_sub(ring.last_avail_idx);
        debug_assert!(unclaimed == 0 || waiting < u16::MAX);
        format!(
            "The transmit queue {when}: the driver's avail_idx {}, the device has taken {} ({waiting} \
             wait) and used {}; it wants to be told at {}.",
            ring.avail_idx, ring.last_avail_idx, ring.used_idx, ring.avail_event
        )
    };
    if let Some(stalled) = &evidence.stalled {
        facts.push(ring(stalled, "while nothing moved"));
    }
    if let Some(end) = &evidence.end {
        facts.push(ring(end, "at the end"));
    }
    if let Some(damage) = &evidence.damage {
        facts.push(format!("The first wrong frame on the cable: {damage}."));
    }
    facts
}

/// What is to be known of some numbers.
pub(super) const OWN: &str = "One at each start of the device is QEMU's own.";

/// A number of a run, and what it is of.
type Figure = (&'static str, fn(&Evidence) -> u64);

/// The numbers of a run.
pub(super) const FIGURES: [Figure; 14] = [
    ("datagrams sent in", |e| e.asked),
    ("answered intact", |e| e.answered),
    ("sent again after a reset", |e| e.asked_again),
    ("frames out of the guest", |e| e.frames),
    ("of them damaged", |e| e.damaged),
    ("times published", |e| e.published),
    ("kicks the device asked for", |e| e.wanted),
    ("kicks made", |e| e.kicks),
    ("of them not asked for", |e| e.needless),
    ("QEMU notified*: transmit", |e| e.heard_transmit),
    ("QEMU notified*: receive", |e| e.heard_receive),
    ("sent buffers taken back", |e| e.taken_back),
    ("interrupts that were missed", |e| e.interrupts_missed),
    ("watchdog: told again", |e| e.prods),
];

/// A table of the numbers of one run or two.
pub(super) fn numbers<W: Write>(
    story: &mut Story<W>,
    runs: &[(&str, &Evidence)],
) -> io::Result<()> {
    story.section("Numbers")?;
    let lang = story.lang();
    let row = |label: &str, cells: &mut dyn Iterator<Item = String>| {
        cells.fold(pad(&lang.say(label), 30), |line, cell| {
            line + &pad_left(&lang.say(&cell), 12)
        })
    };
    story.columns(
        "",
        &row("", &mut runs.iter().map(|(name, _)| (*name).to_owned())),
    )?;
    let reopened: Figure = ("device reset and opened again", |e| e.reopened);
    for (label, figure) in FIGURES.into_iter().chain([reopened]) {
        let mut cells = runs.iter().map(|(_, evidence)| thousands(figure(evidence)));
        story.columns("", &row(label, &mut cells))?;
    }
    story.row("", &format!("* {OWN}"))?;
    if let Some(evidence) = runs.iter().map(|(_, e)| e).find(|e| e.records_lost > 0) {
        let text = format!(
            "The guest's records end after {}: what is published, asked for and kicked is of those; \
             QEMU's numbers are of the whole run.",
            thousands(evidence.records)
        );
        story.row("", &text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_student_is_asked_until_it_is_a_word() {
        let answer = |typed: &str| {
            let mut story = Story::new(Vec::new());
            ask(&mut story, &EXPERIMENTS[0], &mut typed.as_bytes()).unwrap()
        };
        assert_eq!(answer("never\n late \n"), Some(Outcome::Late));
        assert_eq!(answer("\n"), None);
        assert_eq!(answer("what"), None);
    }

    #[test]
    fn all_are_listed() {
        let mut text = Vec::new();
        list(&mut Story::new(&mut text)).unwrap();
        let text = String::from_utf8(text).unwrap();
        for experiment in EXPERIMENTS {
            assert!(text.contains(experiment.name), "{text}");
        }
    }
}
