//! The two guests as tables.

use std::io::{self, Write};

use kickpath_abi::config::Transport;

use super::Spread;
use super::count::{Cost, Row};
use super::pairs::{Pair, Times};
use crate::bench::table::number;
use crate::terminal::Story;

pub(super) fn counts<W: Write>(
    story: &mut Story<W>,
    release: &str,
    transport: Transport,
    rows: &[Row],
) -> io::Result<()> {
    story.section(&format!(
        "Beside Linux {release}, interface {}",
        transport.word()
    ))?;
    story.row(
        "Method",
        "a tap with QEMU's default offers; instructions by a plugin of QEMU under -icount shift=0, \
         kicks and interrupts by its trace events, of both guests alike. Each is the difference \
         between a work and one twice as long: the median of several, with the least and the most.",
    )?;
    story.line(&format!("  {:14}{:>30}{:>34}", "", "Kickpath", "Linux"))?;
    for row in rows {
        story.line(&format!("  {}", row.what.name()))?;
        for (name, of) in [
            (
                "instructions",
                (|cost| cost.instructions) as fn(&Cost) -> Spread,
            ),
            ("kicks", |cost| cost.kicks),
            ("interrupts", |cost| cost.interrupts),
        ] {
            let [ours, linux] = [&row.kickpath, &row.linux].map(|cost| text(&of(cost)));
            story.line(&format!("    {name:12}{ours:>30}{linux:>34}"))?;
        }
    }
    Ok(())
}

pub(super) fn times<W: Write>(story: &mut Story<W>, times: &Times) -> io::Result<()> {
    story.section(&format!(
        "TCP in time: {} MiB, in pairs, by {}",
        times.mib, times.accelerator
    ))?;
    story.line(&format!(
        "  {:10}{:>18}{:>15}{:>34}",
        "MiB/s", "Kickpath", "Linux", "Kickpath by Linux"
    ))?;
    for timed in &times.ways {
        let median =
            |of: fn(&Pair) -> f64| number(Spread::of(timed.pairs.iter().map(of)).median.round());
        let (ours, linux) = (median(|pair| pair.kickpath), median(|pair| pair.linux));
        let way = timed.way.word();
        let ratio = text(&timed.ratio);
        story.line(&format!("  {way:10}{ours:>18}{linux:>15}{ratio:>34}"))?;
    }
    Ok(())
}

/// `2,252 (2,240 to 2,261)`.
fn text(spread: &Spread) -> String {
    let [median, least, most] = [spread.median, spread.least, spread.most].map(short);
    format!("{median} ({least} to {most})")
}

/// With as many digits as say something. A difference of nearly nothing may be below 0.
fn short(value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "" };
    let value = value.abs();
    let digits = match value {
        100.0.. => 1.0,
        10.0.. => 10.0,
        1.0.. => 100.0,
        _ => 10_000.0,
    };
    format!("{sign}{}", number((value * digits).round() / digits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::linux::Way;
    use crate::bench::linux::count::What;
    use crate::bench::linux::pairs::Timed;
    use crate::terminal::WIDTH;

    #[test]
    fn the_tables_fit_into_the_width() {
        let spread = Spread {
            median: 123_456.7,
            least: 120_000.0,
            most: 200_000.0,
        };
        let cost = Cost {
            instructions: spread,
            kicks: Spread::of([0.041_26, -0.000_1, 0.5]),
            interrupts: spread,
        };
        let row = Row {
            what: What::Http,
            kickpath: cost,
            linux: cost,
        };
        let timed = Timed {
            way: Way::In,
            pairs: vec![Pair {
                kickpath: 1234.5,
                linux: 1234.4,
            }],
            ratio: Spread::of([1.234_56, 0.9, 1.3]),
        };
        let all = Times {
            accelerator: "tcg",
            reason: String::new(),
            mib: 64,
            ways: vec![timed],
        };
        let mut bytes = Vec::new();
        let mut story = Story::new(&mut bytes);
        counts(
            &mut story,
            "6.1.0-48-cloud-amd64",
            Transport::Modern,
            &[row],
        )
        .unwrap();
        times(&mut story, &all).unwrap();
        let text = anstream::adapter::strip_str(&String::from_utf8(bytes).unwrap()).to_string();
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        for part in [
            "Linux 6.1.0-48-cloud-amd64",
            "0.0413 (-0.0001 to 0.5)",
            "123,457 (120,000 to 200,000)",
            "1.23 (0.9 to 1.3)",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
