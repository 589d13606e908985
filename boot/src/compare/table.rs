//! The rows for a terminal.

use std::io::{self, Write};

use super::{Report, Row};
use crate::terminal::Story;

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
    story.line(&line([
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
    ]))
}

pub(super) fn rows<W: Write>(story: &mut Story<W>, rows: &[Row]) -> io::Result<()> {
    rows.iter().try_for_each(|row| story.line(&text(row)))?;
    story.line("")
}

pub(super) fn conclusion<W: Write>(story: &mut Story<W>, report: &Report) -> io::Result<()> {
    story.row("Handled", &format!("as on {}", report.accelerator))?;
    for absent in &report.absent {
        story.row("Not recorded", absent)?;
    }
    Ok(())
}

fn text(row: &Row) -> String {
    let on = |on: bool| if on { "on" } else { "off" };
    line([
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
    ])
}

fn line([way, rest @ ..]: [&str; 10]) -> String {
    const WIDTHS: [usize; 9] = [10, 10, 6, 7, 7, 6, 10, 7, 7];
    let mut line = format!("  {way:14}");
    for (cell, width) in rest.into_iter().zip(WIDTHS) {
        line += &format!("{cell:>width$}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Handler, Way};
    use crate::terminal::WIDTH;

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
            accelerator: "a ".repeat(90),
            absent: vec!["b ".repeat(90)],
            ..Report::default()
        };
        let mut bytes = Vec::new();
        let mut story = Story::new(&mut bytes);
        introduction(&mut story).unwrap();
        rows(&mut story, &[row]).unwrap();
        conclusion(&mut story, &report).unwrap();
        let text = anstream::adapter::strip_str(&String::from_utf8(bytes).unwrap()).to_string();
        assert!(text.contains("1234.5   3.00  1.00 main loop"), "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
    }
}
