//! The blocks of text in documents that are of a recorded run. Each stands between two lines,
//! `<!-- recorded: NAME -->` and `<!-- end -->`.

use anyhow::{Context, Result};
use kickpath::lang::Lang;
use kickpath::terminal::{Story, wrap};
use kickpath::trace::timeline::{Delta, Layer, Phase, Step};
use kickpath::trace::{Timeline, glossary, text};

use super::{Runs, TRACE, document};

/// The documents with blocks, or made as a whole.
const WITH_BLOCKS: [&str; 4] = [
    "README.md",
    "README.zh.md",
    "docs/kick-path.md",
    "docs/kick-path.zh.md",
];
const GLOSSARIES: [(&str, Lang); 2] = [
    ("docs/glossary.md", Lang::En),
    ("docs/glossary.zh.md", Lang::Zh),
];

/// Columns of what a document shows of a run.
const COLUMNS: usize = 96;

/// Every document that is made here, as it should be.
///
/// # Errors
/// A document cannot be read, or has a block of an unknown name; the run lacks what one shows.
pub fn documents(runs: &Runs) -> Result<Vec<(&'static str, String)>> {
    let mut made: Vec<_> = GLOSSARIES
        .map(|(name, lang)| (name, glossary::document(lang)))
        .into();
    for name in WITH_BLOCKS {
        let text = fill(&document(name)?, runs).with_context(|| name.to_owned())?;
        made.push((name, text));
    }
    Ok(made)
}

/// `text` with what is in its blocks made anew.
fn fill(text: &str, runs: &Runs) -> Result<String> {
    const BEGIN: &str = "<!-- recorded: ";
    const END: &str = "<!-- end -->";
    let mut parts = text.split(BEGIN);
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once(" -->").context("a block has no name")?;
        let (_, after) = rest
            .split_once(END)
            .with_context(|| format!("the block {name} has no end"))?;
        let block = block(name, runs).with_context(|| format!("the block {name}"))?;
        filled += &format!("{BEGIN}{name} -->\n\n{block}\n{END}{after}");
    }
    Ok(filled)
}

fn block(name: &str, runs: &Runs) -> Result<String> {
    let trace = &runs.trace;
    let lines = match name {
        "run" => {
            return Ok(format!(
                "Recorded by {}: `docs/recorded/{TRACE}`.\n",
                runs.told(Lang::En)
            ));
        }
        "run in Chinese" => {
            let told = runs.told(Lang::Zh);
            return Ok(format!("录自 {told}：`docs/recorded/{TRACE}`。\n"));
        }
        "guest" => guest(trace)?,
        "QEMU" => transmit(trace)
            .filter(|step| !matches!(step.layer, Layer::Guest))
            .map(line)
            .collect(),
        "doorbell" => doorbell(trace)?,
        "decisions" => decisions(trace)?,
        _ => anyhow::bail!("no such block"),
    };
    anyhow::ensure!(!lines.is_empty(), "the run has nothing of it");
    Ok(lines
        .iter()
        .map(|line| format!("    {}\n", line.trim_end()))
        .collect())
}

/// The steps of the datagram that goes out.
fn transmit(trace: &Timeline) -> impl Iterator<Item = &Step> {
    trace.phase(Phase::Transmit).filter(|step| !step.aside)
}

fn name(step: &Step) -> &str {
    step.function.as_deref().unwrap_or(&step.event)
}

/// One step on one line.
fn line(step: &Step) -> String {
    let layer = match step.layer {
        Layer::Guest => "guest",
        Layer::Kvm => "KVM",
        Layer::QemuVcpu => "vCPU",
        Layer::QemuMain => "QEMU",
        Layer::VmmVcpu | Layer::VmmOther => "VMM",
        Layer::Wire => "wire",
    };
    let since = match &step.delta {
        Delta::First => String::new(),
        Delta::Measured { ns } => format!("+{}", text::duration(*ns)),
        Delta::Causal { .. } => "by cause".to_owned(),
    };
    let file = step.source.as_ref().map_or("", |source| &source.file);
    let number = step.number + 1;
    format!(
        "{number:>2} {layer:<5}{since:>13}  {:<27}{file}",
        name(step)
    )
}

/// What the guest does, to the doorbell.
fn guest(trace: &Timeline) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for step in transmit(trace).filter(|step| step.layer == Layer::Guest) {
        lines.push(line(step));
        let Some(instruction) = &step.instruction else {
            continue;
        };
        let margin = " ".repeat(23);
        let (address, symbol) = (instruction.address, &instruction.symbol);
        let (bytes, words) = (&instruction.bytes, &instruction.text);
        lines.push(format!("{margin}{}", instruction.meaning));
        lines.push(format!(
            "{margin}{address:#x} <{symbol}>:  {bytes}  {words}"
        ));
        return Ok(lines);
    }
    anyhow::bail!("no instruction was recorded")
}

/// What the command says of the time between the doorbell's records.
fn doorbell(trace: &Timeline) -> Result<Vec<String>> {
    let mut printed = Vec::new();
    text::print(&mut Story::new(&mut printed), trace)?;
    let printed = anstream::adapter::strip_str(std::str::from_utf8(&printed)?).to_string();
    let lines = printed.lines().map(str::to_owned);
    let lines = lines.skip_while(|line| !line.starts_with("Between the two records"));
    // Then comes what the document itself explains.
    Ok(lines
        .take_while(|line| !line.trim_start().starts_with("That is the exit"))
        .collect())
}

/// The looks at the device's wish: one that led to a kick, one that did not.
fn decisions(trace: &Timeline) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for end in ["a kick is needed.", "the kick is saved."] {
        let decided = |step: &&Step| step.event == "KickPrepare" && step.sentence.ends_with(end);
        let step = trace.steps.iter().rev().find(decided);
        let step = step.with_context(|| format!("no step says that {end}"))?;
        let head = format!("{:>2} kick_prepare  ", step.number + 1);
        let width = COLUMNS - 4 - head.len();
        for (at, text) in wrap(&step.sentence, width).into_iter().enumerate() {
            let head = if at == 0 { &head } else { "" };
            lines.push(format!("{head:<17}{text}"));
        }
    }
    Ok(lines)
}
