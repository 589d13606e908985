//! The rows for a terminal.

use std::io::{self, Write};

use super::vmm_row::{ECHOES, Taken, VmmReport, VmmRow};
use super::{Report, Row};
use crate::lang::Lang;
use crate::terminal::{Story, pad, pad_left};

pub(super) fn introduction<W: Write>(story: &mut Story<W>) -> io::Result<()> {
    story.section("The ways to kick")?;
    story.row(
        "The kick",
        "instr: guest instructions from the decision to the doorbell's end; access: device \
         registers a kick; exits: of them to QEMU; handled: by which of QEMU's threads.",
    )?;
    story.row(
        "In traffic",
        "kicks and interrupts (irqs) a packet of a UDP echo with so many on their way.",
    )?;
    story.line("")?;
    let heads = [
        "way to kick",
        "ioeventfd",
        "event_idx",
        "burst",
        "instr",
        "access",
        "exits",
        "handled",
        "kicks",
        "irqs",
    ];
    story.line(&line(story.lang(), heads))
}

pub(super) fn rows<W: Write>(story: &mut Story<W>, rows: &[Row]) -> io::Result<()> {
    let lang = story.lang();
    rows.iter()
        .try_for_each(|row| story.line(&text(lang, row)))?;
    story.line("")
}

pub(super) fn conclusion<W: Write>(story: &mut Story<W>, report: &Report) -> io::Result<()> {
    let (name, why) = report.accelerator.split_once(": ").unwrap_or_default();
    story.row("Handled", &format!("as on {name}: {why}"))?;
    for absent in &report.absent {
        story.row("Not recorded", absent)?;
    }
    Ok(())
}

/// What the columns of the VMMs' table mean, and their heads.
pub(super) fn vmm_introduction<W: Write>(story: &mut Story<W>) -> io::Result<()> {
    story.section("A kick on each VMM")?;
    story.row(
        "Taken",
        "what KVM does with the write to the doorbell: it signals an eventfd and the guest goes \
         on, or returns to user space. Then the threads that learn of it and send the frame.",
    )?;
    story.row(
        "An echo",
        &format!(
            "kicks, interrupts (irqs), accesses to registers that leave the guest (access) and \
             returns of KVM to the VMM (exits), over {ECHOES} UDP echoes, one at a time."
        ),
    )?;
    story.line("")?;
    let heads = [
        "VMM",
        "transport",
        "taken",
        "heard by",
        "sent by",
        "kicks",
        "irqs",
        "access",
        "exits",
    ];
    story.line(&vmm_line(story.lang(), heads))
}

pub(super) fn vmm_row<W: Write>(story: &mut Story<W>, row: &VmmRow) -> io::Result<()> {
    let figure =
        |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.2}"));
    let cells = [
        row.vmm.as_str(),
        &row.transport,
        row.taken.map_or("-", Taken::title),
        row.heard_by.as_deref().unwrap_or("-"),
        row.sent_by.as_deref().unwrap_or("-"),
        &figure(Some(row.kicks_per_echo)),
        &figure(Some(row.interrupts_per_echo)),
        &figure(row.accesses_per_echo),
        &figure(row.userspace_exits_per_echo),
    ];
    story.line(&vmm_line(story.lang(), cells))
}

pub(super) fn vmm_conclusion<W: Write>(story: &mut Story<W>, report: &VmmReport) -> io::Result<()> {
    story.line("")?;
    for absent in &report.absent {
        // A failure may be a report of many lines.
        let first = absent.lines().next().unwrap_or_default();
        story.row("Not there", first)?;
    }
    story.row(
        "Not counted",
        "guest instructions: only QEMU's TCG counts them (`bench`, `compare` without --vmm)",
    )
}

fn vmm_line(lang: Lang, cells: [&str; 9]) -> String {
    // Texts, and behind them figures.
    const WIDTHS: [usize; 5] = [17, 10, 11, 16, 16];
    let mut line = "  ".to_owned();
    for (place, cell) in cells.into_iter().enumerate() {
        let cell = lang.say(cell);
        line += &match WIDTHS.get(place) {
            Some(width) => pad(&cell, *width),
            None => pad_left(&cell, 7),
        };
    }
    line
}

fn text(lang: Lang, row: &Row) -> String {
    let on = |on: bool| if on { "on" } else { "off" };
    let cells = [
        row.way.title(),
        on(row.ioeventfd),
        on(row.event_idx),
        &row.burst.to_string(),
        &format!("{:.1}", row.instructions_per_kick),
        &format!("{:.2}", row.accesses_per_kick),
        &row.userspace_exits_per_kick
            .map_or_else(|| "-".to_owned(), |exits| format!("{exits:.2}")),
        row.handler.map_or("-", super::Handler::title),
        &format!("{:.3}", row.kicks_per_packet),
        &format!("{:.3}", row.interrupts_per_packet),
    ];
    line(lang, cells)
}

fn line(lang: Lang, [way, rest @ ..]: [&str; 10]) -> String {
    const WIDTHS: [usize; 9] = [10, 10, 6, 7, 7, 6, 10, 7, 7];
    let mut line = format!("  {}", pad(&lang.say(way), 14));
    for (cell, width) in rest.into_iter().zip(WIDTHS) {
        line += &pad_left(&lang.say(cell), width);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Handler, Way};
    use crate::terminal::WIDTH;
    use textwrap::core::display_width;

    #[test]
    fn the_table_fits_into_the_width() {
        let row = Row {
            way: Way::ModernMemory,
            access: "movw 1 -> 0xfebc1004".to_owned(),
            ioeventfd: false,
            event_idx: false,
            burst: 32,
            instructions_per_kick: 1234.5,
            instructions_per_packet: 56.0,
            accesses_per_kick: 3.0,
            kicks_per_packet: 1.0,
            interrupts_per_packet: 1.0,
            userspace_exits_per_kick: Some(1.0),
            handler: Some(Handler::MainLoop),
        };
        let report = Report {
            accelerator: format!("TCG: {}", "a ".repeat(90)),
            absent: vec!["b ".repeat(90)],
            ..Report::default()
        };
        for (lang, cells) in [
            (Lang::En, "1234.5   3.00  1.00 main loop"),
            (Lang::Zh, "1234.5   3.00  1.00    主循环"),
        ] {
            let text = told(lang, |story| {
                introduction(story).unwrap();
                rows(story, std::slice::from_ref(&row)).unwrap();
                conclusion(story, &report)
            });
            assert!(text.contains(cells), "{text}");
        }
    }

    /// What a story says, which fits a terminal.
    fn told(lang: Lang, tell: impl FnOnce(&mut Story<&mut Vec<u8>>) -> io::Result<()>) -> String {
        let mut bytes = Vec::new();
        tell(&mut Story::new(&mut bytes).in_language(lang)).unwrap();
        let text = anstream::adapter::strip_str(&String::from_utf8(bytes).unwrap()).to_string();
        for line in text.lines() {
            assert!(display_width(line) <= WIDTH, "{line}");
        }
        text
    }

    #[test]
    fn the_vmms_table_fits_into_the_width() {
        let row = VmmRow {
            vmm: "Cloud Hypervisor".to_owned(),
            version: "v54.0".to_owned(),
            transport: "modern".to_owned(),
            access: "movw 1 -> 0xfebc1004".to_owned(),
            interrupts: "msix".to_owned(),
            taken: Some(Taken::UserSpace),
            // As long as a thread's name can be (`prctl`, PR_SET_NAME).
            heard_by: Some("ioeventfd-worke".to_owned()),
            sent_by: None,
            raised_by: None,
            kicks_per_echo: 2.0,
            interrupts_per_echo: 1.0,
            accesses_per_echo: Some(12.5),
            userspace_exits_per_echo: None,
        };
        let report = VmmReport {
            absent: vec!["b ".repeat(90) + "\nsecond"],
            ..VmmReport::default()
        };
        for (lang, cells) in [
            (Lang::En, "user space ioeventfd-worke -"),
            (Lang::Zh, "用户空间   ioeventfd-worke -"),
        ] {
            let text = told(lang, |story| {
                vmm_introduction(story).unwrap();
                vmm_row(story, &row).unwrap();
                vmm_conclusion(story, &report)
            });
            assert!(text.contains(cells), "{text}");
            assert!(text.contains("2.00   1.00  12.50      -"), "{text}");
            assert!(!text.contains("second"), "{text}");
        }
    }
}
