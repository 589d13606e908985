//! The blocks of text in documents that are of a recorded run. Each stands between two lines,
//! `<!-- recorded: NAME -->` and `<!-- end -->`.

use std::ops::Range;

use anyhow::{Context, Result};
use kickpath::lang::Lang;
use kickpath::terminal::{Story, wrap};
use kickpath::trace::timeline::{Delta, Layer, Phase, Step};
use kickpath::trace::{Timeline, glossary, text};

use super::{Runs, document, translation, vmms};

/// The documents with blocks, or made as a whole.
const WITH_BLOCKS: [&str; 5] = [
    "README.md",
    "README.zh.md",
    "docs/kick-path.md",
    "docs/kick-path.zh.md",
    "docs/vmm.md",
];
const GLOSSARIES: [(&str, Lang); 2] = [
    ("docs/glossary.md", Lang::En),
    ("docs/glossary.zh.md", Lang::Zh),
];
/// Documents with tables that are made, and their Chinese editions.
pub const TRANSLATED: [(&str, &str); 3] = [
    ("docs/robustness.md", "docs/robustness.zh.md"),
    ("docs/vmm.md", "docs/vmm.zh.md"),
    ("docs/features.md", "docs/features.zh.md"),
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
    for (name, chinese) in TRANSLATED {
        let english = match made.iter().find(|(made, _)| *made == name) {
            Some((_, text)) => text.clone(),
            None => document(name)?,
        };
        let text = translation::fill(&document(chinese)?, &english);
        made.push((chinese, text.with_context(|| chinese.to_owned())?));
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
    if let Some(block) = vmms::block(name, &runs.vmms) {
        return block;
    }
    let trace = &runs.trace;
    let file = "docs/recorded/trace.json";
    let lines = match name {
        "run" => {
            return Ok(format!(
                "Recorded by {}: `{file}`. Listings of other commands are of runs beside it.\n",
                runs.told(Lang::En)
            ));
        }
        "run in Chinese" => {
            return Ok(format!(
                "录自 {}：`{file}`。其他命令的输出录自同一目录中的运行。\n",
                runs.told(Lang::Zh)
            ));
        }
        "guest" => guest(trace)?,
        "QEMU" => transmit(trace)
            .filter(|step| !matches!(step.layer, Layer::Guest))
            .map(line)
            .collect(),
        "ladder" => ladder(runs.of("microvm")?),
        "doorbell" => doorbell(trace)?,
        "KVM" => kick_in_kvm(runs.of("kvm")?),
        "nested" => kick_in_kvm(runs.of("nested")?),
        "vCPU thread" => behind_doorbell(runs.of("vcpu")?)
            .take_while(|step| step.event != "virtqueue_fill")
            .flat_map(told)
            .collect(),
        "main loop" => behind_doorbell(trace).take(2).flat_map(told).collect(),
        "calls in the vCPU thread" => calls(runs.of("vcpu")?)?,
        "calls in the main loop" => calls(trace)?,
        "decisions" => decisions(trace)?,
        "Linux" => linux(runs.of("linux")?),
        "compare" => ways(runs.output("compare")?),
        "output" => sections(runs.output("run")?, &["Device", "Traffic"]),
        "cable" => sections(
            runs.output("bench")?,
            &["Driver alone", "UDP from", "UDP echo", "A tracepoint"],
        ),
        "packed" => sections(runs.output("packed")?, &["Driver alone"]),
        "tap" => sections(runs.output("bench")?, &["At a tap"]),
        _ => anyhow::bail!("no such block"),
    };
    anyhow::ensure!(!lines.is_empty(), "the run has nothing of it");
    let text: String = lines
        .iter()
        .map(|line| format!("    {}\n", line.trim_end()))
        .collect();
    Ok(text.replace("    \n", "\n"))
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
    // Of the host's kernel the event, if that is not what is named.
    let place = match step.layer {
        Layer::Kvm if step.function.is_some() => &step.event,
        _ => file,
    };
    let number = step.number + 1;
    format!(
        "{number:>2} {layer:<5}{since:>13}  {:<27}{place}",
        name(step)
    )
}

/// Where what is said of a step stands.
const MARGIN: usize = 23;

/// Lines of this text below a step.
fn below(text: &str) -> impl Iterator<Item = String> {
    let lines = wrap(text, COLUMNS - 4 - MARGIN).into_iter();
    lines.map(|line| format!("{:MARGIN$}{line}", ""))
}

/// A step with what is said of it.
fn told(step: &Step) -> Vec<String> {
    [line(step)]
        .into_iter()
        .chain(below(&step.sentence))
        .collect()
}

/// How the notify hook of the transmit queue was attached, a rung after the other.
fn ladder(trace: &Timeline) -> Vec<String> {
    let rungs = trace.phase(Phase::Attach).filter(|step| {
        let is_of_it = step.queue.is_none_or(|queue| queue == 1);
        step.layer == Layer::Guest && is_of_it
    });
    let rows = rungs.flat_map(|step| {
        // Then comes what is told of every rung.
        let said = step
            .sentence
            .split_once(". ")
            .map(|(said, _)| format!("{said}."));
        [line(step)]
            .into_iter()
            .chain(below(&said.unwrap_or_else(|| step.sentence.clone())))
            .collect::<Vec<_>>()
    });
    rows.collect()
}

/// What follows the doorbell of the datagram that goes out.
fn behind_doorbell(trace: &Timeline) -> impl Iterator<Item = &Step> {
    let steps = transmit(trace).skip_while(|step| step.instruction.is_none());
    steps.skip(1)
}

/// What KVM does at the doorbell, until the guest runs again.
fn kick_in_kvm(trace: &Timeline) -> Vec<String> {
    let steps = behind_doorbell(trace).take_while(|step| step.layer != Layer::Guest);
    let steps = steps.filter(|step| step.layer == Layer::Kvm);
    let rows = steps.flat_map(|step| {
        let mut lines = told(step);
        if !step.stack.is_empty() {
            lines.extend(below(&format!("host kernel: {}", step.stack.join(" <- "))));
        }
        lines
    });
    rows.collect()
}

/// QEMU's call chain where it hears of the kick.
fn calls(trace: &Timeline) -> Result<Vec<String>> {
    let heard = transmit(trace).find(|step| step.event == "virtio_queue_notify");
    let heard = heard.context("QEMU hears of no kick")?;
    anyhow::ensure!(!heard.stack.is_empty(), "gdb was not there");
    let chain = heard.stack.join(" <- ");
    Ok(wrap(
        &format!("QEMU, at the next kick of this queue: {chain}"),
        COLUMNS - 4,
    ))
}

/// A datagram's way out of Linux, by the events with which a trace of our guest tells of the same.
fn linux(trace: &Timeline) -> Vec<String> {
    const SHOWN: [&str; 15] = [
        "SocketSend",
        "TxTokenConsume",
        "StartXmit",
        "Add",
        "KickPrepare",
        "Notify",
        "DoorbellRing",
        "DoorbellRang",
        "virtio_queue_notify",
        "virtqueue_pop",
        "frame received",
        "InterruptVector",
        "VringInterrupt",
        "Poll",
        "PopUsed",
    ];
    let phases = [Phase::Transmit, Phase::Return].into_iter();
    let steps = phases.flat_map(|phase| trace.phase(phase));
    let steps = steps.filter(|step| SHOWN.contains(&step.event.as_str()) && !step.aside);
    let rows = steps.flat_map(|step| {
        // The frame, which is the same from the socket's end to its being freed.
        let buffer = step.values.iter().find(|value| {
            ["skb", "data", "returned"].contains(&value.name.as_str())
                && value.value.starts_with("0xffff")
        });
        let buffer = buffer.map_or(String::new(), |buffer| format!("sk_buff {}", buffer.value));
        let mut lines = vec![line(step) + &buffer];
        if let Some(kick) = &step.instruction {
            lines.extend(below(&format!(
                "{}: {} in {}",
                kick.meaning, kick.bytes, kick.symbol
            )));
        }
        if step.layer == Layer::Guest && !step.stack.is_empty() {
            lines.extend(below(&step.stack.join(" <- ")));
        }
        lines
    });
    rows.collect()
}

/// The table of the ways to kick with EVENT_IDX: each with many frames on their way, and the first
/// with one.
fn ways(text: &str) -> Vec<String> {
    let mut lines = text
        .lines()
        .skip_while(|line| !line.trim_start().starts_with("way to kick"));
    let head = lines.next();
    let mut is_first = true;
    let rows = lines.filter(|line| {
        let column = |columns: Range<usize>| line.get(columns).unwrap_or_default().trim();
        let many = column(36..42) == "32";
        column(26..36) == "on" && (many || std::mem::take(&mut is_first))
    });
    head.into_iter().chain(rows).map(str::to_owned).collect()
}

/// These sections of what a command printed.
fn sections(text: &str, titles: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    for title in titles {
        let section = text.lines().skip_while(|line| !line.starts_with(title));
        let section = section.take_while(|line| !line.is_empty());
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.extend(section.map(str::to_owned));
    }
    lines
}

/// What the guest does, to the doorbell.
fn guest(trace: &Timeline) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for step in transmit(trace).filter(|step| step.layer == Layer::Guest) {
        lines.push(line(step));
        let Some(instruction) = &step.instruction else {
            continue;
        };
        let margin = " ".repeat(MARGIN);
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
