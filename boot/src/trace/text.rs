//! A timeline for a terminal: at most 100 columns, in colour only where the
//! terminal wants it.

use std::borrow::Cow;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

use super::timeline::{
    Comparison, Delta, Direction, Frame, Kicks, Layer, Phase, RingUse, SourceCall, Step, Timeline,
    Verdict,
};
use crate::terminal::{BAD, FAINT, GOOD, Story, TITLE, WIDTH, pad, pad_left, wrap};

/// Columns before the text of a step: number, layer, distance.
const MARGIN: usize = 25;

/// Prints the whole journey.
///
/// # Errors
/// The output is closed.
pub fn print<W: Write>(story: &mut Story<W>, timeline: &Timeline) -> io::Result<()> {
    machine(story, timeline)?;
    for phase in Phase::ALL {
        let steps: Vec<&Step> = timeline.phase(phase).collect();
        if steps.is_empty() {
            continue;
        }
        story.section(phase.title())?;
        for step in steps {
            print_step(story, step)?;
        }
    }
    kicks(story, timeline.kicks.as_ref())?;
    calls(story, timeline)?;
    frames(story, &timeline.frames)?;
    trust(story, timeline)?;
    let sound = timeline.is_sound();
    story.conclusion(sound, &timeline.conclusion())
}

fn machine<W: Write>(story: &mut Story<W>, timeline: &Timeline) -> io::Result<()> {
    let run = &timeline.run;
    story.section("Machine")?;
    story.row(
        "Accelerator",
        &format!(
            "{}{}{}",
            run.accelerator.to_uppercase(),
            story.say(": "),
            story.say(&run.accelerator_reason)
        ),
    )?;
    story.row("Hardware", &run.vmm_text())?;
    if let Some(guest) = &run.guest {
        story.row("Guest", guest)?;
    }
    let device = &run.device;
    story.row(
        "Device",
        &format!(
            "{}, {}; kick: {}; interrupts: {}",
            device.location, device.transport, device.doorbell, device.interrupts
        ),
    )?;
    story.row("Features", &device.features.join(" "))?;
    if !run.real_exits {
        story.row(
            "VM exits",
            "none: TCG translates the guest's code, and a call of QEMU's device code stands for \
             the exit",
        )?;
    }
    Ok(())
}

pub(super) fn style(layer: Layer) -> Style {
    match layer {
        Layer::Guest => AnsiColor::Green,
        Layer::Kvm => AnsiColor::Red,
        Layer::QemuVcpu | Layer::VmmVcpu => AnsiColor::Magenta,
        Layer::QemuMain | Layer::VmmOther => AnsiColor::Blue,
        Layer::Wire => AnsiColor::Yellow,
    }
    .on_default()
    .bold()
}

/// Five columns at most, six on a CPU with two digits.
pub(super) fn lane(step: &Step) -> Cow<'static, str> {
    match (step.layer, step.cpu) {
        (Layer::Guest, Some(cpu)) => format!("CPU {cpu}").into(),
        (layer, _) => short(layer).into(),
    }
}

/// Five columns at most.
const fn short(layer: Layer) -> &'static str {
    match layer {
        Layer::Guest => "guest",
        Layer::Kvm => "KVM",
        Layer::QemuVcpu | Layer::VmmVcpu => "vCPU",
        Layer::QemuMain => "QEMU",
        Layer::VmmOther => "VMM",
        Layer::Wire => "wire",
    }
}

/// One step: who, when and where; then what it answers to, and what happened.
pub fn print_step<W: Write>(story: &mut Story<W>, step: &Step) -> io::Result<()> {
    let paint = style(step.layer);
    let number = step.number + 1;
    // In Chinese a column wider, and the distance is no wider than what is left.
    let lane = pad(&story.say(&lane(step)), 6);
    let distance = match &step.delta {
        Delta::First => String::new(),
        Delta::Measured { ns } => format!("+{}", duration(*ns)),
        Delta::Causal { .. } => "by cause".to_owned(),
    };
    let distance = pad_left(&story.say(&distance), 12);
    let name = story.say(step.function.as_deref().unwrap_or(&step.event));
    let place = match &step.source {
        Some(source) => format!("{}:{}", source.file, source.line),
        None if step.function.is_some() => step.event.clone(),
        None => String::new(),
    };
    story.line(&format!(
        "{number:>4} {paint}{lane}{paint:#}{FAINT}{distance}{FAINT:#}  \
         {TITLE}{name}{TITLE:#}  {FAINT}{place}{FAINT:#}"
    ))?;
    let lang = story.lang();
    let mut below = |text: &str, style: Style| -> io::Result<()> {
        for line in wrap(&story.say(text), WIDTH - MARGIN) {
            story.line(&format!("{:MARGIN$}{style}{line}{style:#}", ""))?;
        }
        Ok(())
    };
    below(&step.sentence, Style::new())?;
    let linux = step.linux.as_deref();
    let linux = linux.map(|linux| format!("Linux: {}", lang.say(linux)));
    let origin: Vec<String> = linux.into_iter().chain(step.section.clone()).collect();
    if !origin.is_empty() {
        below(&origin.join("; "), FAINT)?;
    }
    if let Some(instruction) = &step.instruction {
        below(&instruction.meaning, style(step.layer))?;
        let text = format!(
            "{:#x} <{}>:  {}  {}",
            instruction.address, instruction.symbol, instruction.bytes, instruction.text
        );
        below(&text, Style::new())?;
    }
    if !step.stack.is_empty() {
        let whose = match step.layer {
            Layer::Guest => "guest's kernel",
            Layer::QemuVcpu | Layer::QemuMain => "QEMU, at the next kick of this queue",
            Layer::Kvm | Layer::VmmVcpu | Layer::VmmOther | Layer::Wire => "host kernel",
        };
        let chain = step.stack.join(" <- ");
        below(
            &format!("{}{}{chain}", lang.say(whose), lang.say(": ")),
            FAINT,
        )?;
    }
    if let Delta::Causal { rule, since } = &step.delta {
        let rule = Some(rule).filter(|rule| !rule.is_empty());
        let rule = rule.map(|rule| format!("here because {rule}"));
        let own = since.map(|since| {
            let (ns, step) = (duration(since.ns), since.step + 1);
            format!("{ns} after step {step} by their own clock")
        });
        let told: Vec<String> = rule.into_iter().chain(own).collect();
        if !told.is_empty() {
            let told: Vec<_> = told.iter().map(|text| lang.say(text)).collect();
            below(&told.join(&lang.say("; ")), FAINT)?;
        }
    }
    Ok(())
}

/// A time in the unit that suits it.
pub fn duration(ns: f64) -> String {
    match ns {
        ns if ns > 0.0 && ns < 1.0 => format!("{ns:.1} ns"),
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.2} us", ns / 1e3),
        ns if ns < 1e9 => format!("{:.2} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}

/// What stands between the doorbell's two records, here and at other kicks.
fn kicks<W: Write>(story: &mut Story<W>, kicks: Option<&Kicks>) -> io::Result<()> {
    let Some(kicks) = kicks else {
        return Ok(());
    };
    story.section("Between the two records of the doorbell")?;
    let inside = match &kicks.interrupts[..] {
        [] => "no interrupt was recorded inside".to_owned(),
        taken => format!("with an interrupt inside: {}", taken.join(", ")),
    };
    let lang = story.lang();
    let inside = lang.say(", ") + lang.say(&inside);
    story.row("This kick", &format!("{}{inside}", duration(kicks.ns)))?;
    if let Some([min, median, max]) = kicks.spread_ns.map(|spread| spread.map(duration)) {
        let others = match kicks.interrupted {
            0 => String::new(),
            left_out => format!("; {left_out} more had an interrupt inside and are left out"),
        };
        let text = format!(
            "{min} to {max}, median {median}, over {} kicks of this queue{others}",
            kicks.counted
        );
        story.row("All kicks", &text)?;
    }
    story.row(
        "",
        "That is the exit and whatever else the host ran meanwhile. In the guest an interrupt of \
         a device, of its timer or of another CPU would have left a record.",
    )
}

/// The way of the kick for a reader who comes from the sources.
fn calls<W: Write>(story: &mut Story<W>, timeline: &Timeline) -> io::Result<()> {
    let calls: &[SourceCall] = &timeline.calls;
    if calls.is_empty() {
        return Ok(());
    }
    story.section(match timeline.run.vmm {
        None => "The same way in Linux's and QEMU's own words",
        Some(_) => "The same way in Linux's own words",
    })?;
    for call in calls {
        let paint = style(call.layer);
        let step = match call.step {
            Some(step) => format!("step {}", step + 1),
            None => String::new(),
        };
        for (number, line) in wrap(&story.say(&call.words), WIDTH - MARGIN)
            .iter()
            .enumerate()
        {
            let (lane, step) = match number {
                0 => (short(call.layer), step.as_str()),
                _ => ("", ""),
            };
            let lane = pad(&story.say(lane), 6);
            let step = pad_left(&story.say(step), 12);
            story.line(&format!(
                "     {paint}{lane}{paint:#}{FAINT}{step}{FAINT:#}  {line}"
            ))?;
        }
    }
    Ok(())
}

fn frames<W: Write>(story: &mut Story<W>, frames: &[Frame]) -> io::Result<()> {
    if frames.is_empty() {
        return Ok(());
    }
    story.section("The frames, byte for byte")?;
    for frame in frames {
        let label = match frame.direction {
            Direction::In => "In",
            Direction::Out => "Out",
        };
        let bytes = frame.wire.len() / 2;
        let (good, verdict) = match &frame.comparison {
            Comparison::Equal => (
                true,
                format!("{bytes} bytes, the same on the wire and in the guest's buffer"),
            ),
            Comparison::Differs { how, .. } => (false, format!("{bytes} bytes; {how}")),
            Comparison::NotCompared { reason } => {
                (true, format!("{bytes} bytes; not compared: {reason}"))
            }
        };
        story.verdict(label, good, &verdict)?;
        for header in &frame.headers {
            story.row("", header.trim())?;
        }
    }
    Ok(())
}

/// How far the above can be trusted.
fn trust<W: Write>(story: &mut Story<W>, timeline: &Timeline) -> io::Result<()> {
    story.section("How the layers were joined")?;
    for join in &timeline.joins {
        let (style, verdict) = match join.verdict {
            Verdict::Matched => (GOOD, "matched"),
            Verdict::Coalesced => (GOOD, "coalesced"),
            Verdict::Failed => (BAD, "FAILED"),
        };
        let verdict = pad(&story.say(verdict), 10);
        let what = story.say(&join.what);
        let counts = format!(": {} to {}", join.left, join.right);
        let counts = story.say(&counts);
        story.line(&format!("  {style}{verdict}{style:#} {what}{counts}"))?;
        for line in wrap(&story.say(&join.detail), WIDTH - 13) {
            story.line(&format!("{:13}{FAINT}{line}{FAINT:#}", ""))?;
        }
    }
    for clock in &timeline.clocks {
        let name = match clock.clock {
            super::timeline::Clock::GuestTsc => "Guest TSC",
            super::timeline::Clock::HostTsc => "Host TSC",
            super::timeline::Clock::QemuLog => "QEMU's log",
            super::timeline::Clock::Monotonic => "This program",
        };
        story.row(
            name,
            &format!("to {}; {}", duration(clock.resolution_ns), clock.how),
        )?;
    }
    let ring = timeline.ring;
    let lost = match ring {
        RingUse {
            capacity: 0,
            recorded,
            lost,
        } => {
            format!("{recorded} records of the guest, {lost} lost")
        }
        RingUse {
            capacity,
            recorded,
            lost,
        } => {
            format!("{recorded} records of the guest, room for {capacity}, {lost} lost")
        }
    };
    story.verdict("Ring", ring.lost == 0, &lost)?;
    if timeline.absent.is_empty() {
        return Ok(());
    }
    story.section("Not recorded")?;
    for absent in &timeline.absent {
        let style = Style::new().bold();
        let (what, reason) = (story.say(&absent.what), story.say(&absent.reason));
        let text = format!("{what}{}{reason}", story.say(": "));
        for (number, line) in wrap(&text, WIDTH - 4).iter().enumerate() {
            let indent = if number == 0 { 2 } else { 4 };
            story.line(&format!("{:indent$}{line}", ""))?;
        }
        if let Some(enable) = &absent.enable {
            let how = story.say("to have it: ");
            story.line(&format!("    {how}{style}{enable}{style:#}"))?;
        }
    }
    Ok(())
}
