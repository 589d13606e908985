//! Two traces for a terminal: at most 100 columns.

use std::io::{self, Write};

use super::measures::Unit;
use super::{Diff, conclusion, layer_title, name};
use crate::lang::Lang;
use crate::terminal::{FAINT, Story, TITLE, pad, pad_left};
use crate::trace::text::{duration, lane, style};
use crate::trace::timeline::{Delta, Step, Timeline};

/// Columns of a step's name.
const NAME: usize = 25;

/// Columns of each trace.
const SIDE: usize = 48;

/// Prints both.
///
/// # Errors
/// The output is closed.
pub fn print<W: Write>(
    story: &mut Story<W>,
    diff: &Diff,
    a: &Timeline,
    b: &Timeline,
) -> io::Result<()> {
    let lang = story.lang();
    story.section("Two traces")?;
    for (label, side) in [("A", &diff.a), ("B", &diff.b)] {
        let aside = match side.asides {
            0 => String::new(),
            n => format!("; {n} steps about other packets are left out"),
        };
        let verdict = if side.sound {
            ""
        } else {
            "; a check of it FAILED"
        };
        let machine = lang.say(&side.machine);
        let [colon, aside, verdict] = [": ", &aside, verdict].map(|text| lang.say(text));
        story.row(
            label,
            &format!("{}{colon}{machine}{aside}{verdict}", side.file),
        )?;
    }
    if !diff.setup.is_empty() {
        story.section("In what they differ")?;
        for setting in &diff.setup {
            let or_none = |text: &str| {
                if text.is_empty() {
                    "-".to_owned()
                } else {
                    text.to_owned()
                }
            };
            let (a, b) = (or_none(&setting.a), or_none(&setting.b));
            story.row(setting.name, &format!("A: {a}; B: {b}"))?;
        }
    }
    story.section("Numbers, by layer")?;
    story.line(&format!(
        "  {FAINT}{:<17}{:<48}{:>13}{:>13}{FAINT:#}",
        "", "", "A", "B"
    ))?;
    for measure in &diff.measures {
        let [a, b] = [measure.a, measure.b].map(|value| number(value, measure.unit));
        story.line(&format!(
            "  {}{}{a:>13}{b:>13}",
            pad(&lang.say(layer_title(measure.layer)), 17),
            pad(&lang.say(measure.what), 48)
        ))?;
    }
    story.faint("  Times are by one clock each. Of TCG, or of a Linux whose functions are watched, they are")?;
    story.faint(
        "  not those of a machine that is left alone: counts compare, times only roughly.",
    )?;
    story.section("Step by step")?;
    story.line(&format!("  {TITLE}{:<SIDE$}  {}{TITLE:#}", "A", "B"))?;
    for row in &diff.rows {
        let mark = match (row.a, row.b) {
            (Some(_), Some(_)) if row.same => "=",
            (Some(_), Some(_)) => "~",
            (Some(_), None) => "<",
            _ => ">",
        };
        let of = |timeline: &Timeline, number: Option<usize>| {
            number.and_then(|number| timeline.steps.get(number).map(|step| side(lang, step)))
        };
        let (left, right) = (of(a, row.a), of(b, row.b));
        let line = format!(
            "{mark} {}  {}",
            left.unwrap_or_else(|| " ".repeat(SIDE)),
            right.unwrap_or_default()
        );
        story.line(line.trim_end())?;
    }
    story.faint("  = the same, ~ of one kind but not the same, < in A only, > in B only")?;
    story.conclusion(true, &conclusion(diff))
}

/// A step in [`SIDE`] columns: number, lane, name, time.
fn side(lang: Lang, step: &Step) -> String {
    let distance = match &step.delta {
        Delta::First => String::new(),
        Delta::Measured { ns } => format!("+{}", duration(*ns)),
        Delta::Causal { .. } => "by cause".to_owned(),
    };
    let mut function: String = name(step).chars().take(NAME).collect();
    if name(step).chars().count() > NAME {
        function.pop();
        function.push('~');
    }
    let paint = style(step.layer);
    format!(
        "{:>4} {paint}{}{paint:#} {function:<NAME$}{FAINT}{}{FAINT:#}",
        step.number + 1,
        pad(&lang.say(&lane(step)), 6),
        pad_left(&lang.say(&distance), 11)
    )
}

/// A number in its unit.
pub(super) fn number(value: Option<f64>, unit: Unit) -> String {
    match (value, unit) {
        (None, _) => "-".to_owned(),
        (Some(ns), Unit::Ns) => duration(ns),
        (Some(count), Unit::Count) => format!("{count:.0}"),
        (Some(bytes), Unit::Bytes) => format!("{bytes:.0} B"),
    }
}
