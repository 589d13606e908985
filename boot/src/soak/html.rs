//! A soak as a page: the verdict, the work, and what the guest counted over the time. It needs no
//! server and loads nothing.

use std::fmt::Write;

use super::report::Report;
use super::sample::Sample;
use crate::html::{STYLE, escape};
use crate::terminal::thousands;

/// A figure of a sample.
type Figure = fn(&Sample) -> u64;

/// What is drawn, and whether the rate is meant, a second.
const PLOTS: [(&str, bool, Figure); 7] = [
    ("Bytes of heap in use", false, |sample| sample.heap),
    ("TCP connections", false, |sample| sample.connections),
    ("Frames received a second", true, |sample| sample.rx),
    ("Frames sent a second", true, |sample| sample.tx),
    ("Kicks a second", true, |sample| sample.kicks),
    ("Interrupts a second", true, |sample| sample.interrupts),
    (
        "Bytes echoed on the connection that stays open",
        false,
        |sample| sample.connection,
    ),
];

/// The page of a report.
pub fn page(report: &Report) -> String {
    let mut page = String::new();
    let verdict = match report.deviations_in_all {
        0 => "nothing deviated".to_owned(),
        1 => "1 deviation".to_owned(),
        n => format!("{n} deviations"),
    };
    let class = if report.ok { "good" } else { "bad" };
    // Writing to a string does not fail.
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" \
         content=\"light dark\"><title>Kickpath soak: {verdict}</title><style>{STYLE}</style><main><h1>Soak: <span class=\"{class}\">{verdict}</span></h1>\
         <p>{}</p><p>{:.1} of {:.1} minutes, {} rounds.</p>",
        escape(&report.machine),
        report.elapsed_s / 60.0,
        report.asked_s / 60.0,
        report.rounds
    );
    if !report.deviations.is_empty() {
        page += "<section><h2>Not as it should be</h2><ul class=\"bad\">";
        for deviation in &report.deviations {
            let _ = write!(page, "<li>{}</li>", escape(deviation));
        }
        page += "</ul></section>";
    }
    page += "<section><h2>Work</h2><div class=\"scroll\" tabindex=\"0\" role=\"group\" aria-label=\"Work\">\
             <table><tr><th scope=\"col\">what</th><th scope=\"col\">times</th>\
             <th scope=\"col\">bytes, frames or times</th><th scope=\"col\">failed</th></tr>";
    for tally in &report.work {
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&tally.name),
            thousands(tally.done),
            thousands(tally.amount),
            thousands(tally.failed)
        );
    }
    page += "</table></div></section>";
    for (title, rate, figure) in PLOTS {
        let points = match rate {
            true => rates(&report.samples, figure),
            false => {
                let points = report.samples.iter();
                points
                    .map(|sample| (sample.at_s, figure(sample) as f64))
                    .collect()
            }
        };
        plot(&mut page, title, &points);
    }
    page += "</main></html>\n";
    page
}

/// What a figure grew by, a second.
fn rates(samples: &[Sample], figure: Figure) -> Vec<(f64, f64)> {
    let pairs = samples.windows(2);
    let rate = |pair: &[Sample]| {
        let time = (pair[1].at_s - pair[0].at_s).max(f64::EPSILON);
        let grown = figure(&pair[1]).saturating_sub(figure(&pair[0]));
        (pair[1].at_s, grown as f64 / time)
    };
    pairs.map(rate).collect()
}

/// A line over the time, from 0 on.
fn plot(page: &mut String, title: &str, points: &[(f64, f64)]) {
    const WIDTH: f64 = 900.0;
    const HEIGHT: f64 = 120.0;
    let end = points.last().map_or(0.0, |point| point.0).max(1.0);
    let most = points.iter().fold(0.0_f64, |most, point| most.max(point.1));
    let _ = write!(
        page,
        "<section><h2>{}</h2><p class=\"quiet\">At most {}.</p><svg class=\"plot\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"{}\"><polyline points=\"",
        escape(title),
        thousands(most as u64),
        escape(title)
    );
    for (at, value) in points {
        let (x, y) = (
            at / end * WIDTH,
            HEIGHT - value / most.max(1.0) * (HEIGHT - 4.0) - 2.0,
        );
        let _ = write!(page, "{x:.1},{y:.1} ");
    }
    *page += "\"/></svg></section>";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_and_nothing_is_loaded() {
        let sample = |at_s, rx| Sample {
            at_s,
            rx,
            heap: 1000,
            ..Sample::default()
        };
        let report = Report {
            deviations: vec!["</ul><b>\"".to_owned()],
            deviations_in_all: 1,
            samples: vec![sample(0.0, 0), sample(2.0, 100)],
            ..Report::default()
        };
        let page = page(&report);
        assert!(page.contains("&lt;/ul>&lt;b>&quot;") && !page.contains("<b>"));
        assert!(!page.contains("http://") && !page.contains("https://"));
        assert_eq!(rates(&report.samples, |sample| sample.rx), [(2.0, 50.0)]);
        assert!(page.contains("At most 1,000.") && page.contains("At most 50."));
    }
}
