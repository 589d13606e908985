//! The outcomes as one page: it needs no server and loads nothing.

use std::fmt::Write;

use super::Report;
use super::evidence::Evidence;
use super::text::{FIGURES, OWN, facts, parts};
use crate::html::{STYLE, escape};
use crate::terminal::thousands;

/// The page of these experiments.
pub fn page(reports: &[Report]) -> String {
    let mut page = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" \
         content=\"light dark\"><title>Kickpath lab</title><style>{STYLE}</style><main>\
         <h1>Break it</h1><p>The driver of a virtio-net device, with one deliberate mistake at a \
         time. Every number was recorded in a run of the guest under QEMU: in the column \
         \u{201c}right\u{201d} without the mistake, in the column \u{201c}wrong\u{201d} with it.</p><ol>"
    );
    for Report { experiment, .. } in reports {
        let (number, name) = (experiment.number, experiment.name);
        let _ = write!(
            page,
            "<li value=\"{number}\"><a href=\"#e{number}\">{name}</a></li>"
        );
    }
    page += "</ol>";
    for report in reports {
        section(&mut page, report);
    }
    page += "</main></html>\n";
    page
}

fn section(page: &mut String, report: &Report) {
    let experiment = report.experiment;
    let _ = write!(
        page,
        "<section id=\"e{0}\"><h2>{0}. {1}</h2><p>{2}</p><details><summary>What do you expect? \
         Then look.</summary><p class=\"outcome\"><strong>{3}</strong>: {4}.</p>",
        experiment.number,
        experiment.name,
        escape(experiment.question),
        report.outcome.word(),
        report.outcome.sentence()
    );
    if let Some(predicted) = report.predicted {
        let _ = write!(
            page,
            "<p>You expected: <strong>{}</strong>.</p>",
            predicted.word()
        );
    }
    page.push_str("<h3>What happened, with the mistake</h3>");
    let step = |step: &String| {
        let (event, sentence) = parts(step);
        format!(
            "<code>{}</code>: <span>{}</span>",
            escape(event),
            escape(sentence)
        )
    };
    let line = |line: &String| format!("<code>{}</code>", escape(line));
    let fact = |fact: &String| escape(fact);
    list(page, &report.wrong.steps, "The guest's records", step);
    list(page, &report.wrong.said, "The guest's log", line);
    list(page, &facts(&report.wrong), "The ring and the cable", fact);
    numbers(page, &report.right, &report.wrong);
    let _ = write!(
        page,
        "<h3>Why</h3><p>{}</p><p>Section {} of the specification (virtio 1.2). Done right in {}.</p>\
         <h3>The fix</h3><pre tabindex=\"0\">",
        escape(experiment.explanation),
        escape(experiment.section),
        escape(experiment.place)
    );
    for line in experiment.fix.lines() {
        let class = match line.as_bytes().first() {
            Some(b'+') => "add",
            Some(b'-') => "del",
            _ => "",
        };
        let _ = writeln!(page, "<span class=\"{class}\">{}</span>", escape(line));
    }
    let _ = write!(
        page,
        "</pre><p>Put it right yourself in <code>kernel/virtio-net/lab/experiments.rs</code>, then \
         <code>cargo run -- lab check {}</code>.</p></details></section>",
        experiment.number
    );
}

fn list(page: &mut String, lines: &[String], title: &str, item: impl Fn(&String) -> String) {
    if lines.is_empty() {
        return;
    }
    let _ = write!(page, "<h4>{title}</h4><ul>");
    for line in lines {
        let _ = write!(page, "<li>{}</li>", item(line));
    }
    page.push_str("</ul>");
}

fn numbers(page: &mut String, right: &Evidence, wrong: &Evidence) {
    page.push_str(
        "<h3>Numbers</h3><div class=\"scroll\" tabindex=\"0\" role=\"group\" aria-label=\"Numbers\"><table><tr><th scope=\"col\">of the whole run</th>\
         <th scope=\"col\">right</th><th scope=\"col\">wrong</th></tr>",
    );
    for (label, figure) in FIGURES {
        let (right, wrong) = (figure(right), figure(wrong));
        let class = if right == wrong { "" } else { "differs" };
        let _ = write!(
            page,
            "<tr><td>{label}</td><td>{}</td><td class=\"{class}\">{}</td></tr>",
            thousands(right),
            thousands(wrong)
        );
    }
    let _ = write!(page, "</table></div><p class=\"quiet\">* {OWN}</p>");
    if right.records_lost + wrong.records_lost > 0 {
        let _ = write!(
            page,
            "<p>The guest's records end after {}: what is published, asked for and kicked is of \
             those; QEMU's numbers are of the whole run.</p>",
            thousands(right.records.max(wrong.records))
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{EXPERIMENTS, Outcome};

    #[test]
    fn text_stays_text_and_nothing_is_loaded() {
        let evidence = |asked| Evidence {
            asked,
            said: vec!["</ul><b>\"".to_owned()],
            ..Evidence::default()
        };
        let report = |experiment| Report {
            experiment,
            predicted: Some(Outcome::Caught),
            outcome: Outcome::Late,
            right: evidence(1000),
            wrong: evidence(2000),
        };
        let reports: Vec<_> = EXPERIMENTS.iter().map(report).collect();
        let page = page(&reports);
        assert!(page.contains("&lt;/ul>&lt;b>&quot;") && !page.contains("<b>"));
        assert!(!page.contains("http://") && !page.contains("https://"));
        assert!(page.contains("1,000") && page.contains("2,000") && page.contains("caught"));
        for experiment in EXPERIMENTS {
            assert!(page.contains(&format!("id=\"e{}\"", experiment.number)));
        }
    }
}
