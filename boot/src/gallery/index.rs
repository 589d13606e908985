//! The first page of the gallery.

use std::fmt::Write;

use super::files::{file_of, to_other};
use super::{Exhibit, Pair, Shown};
use crate::html::escape;
use crate::lang::Lang;
use crate::trace::Timeline;
use crate::trace::timeline::{Phase, Step};

const PAGE: &str = include_str!("index.html");

/// What the page tells of.
pub(super) struct Index<'a> {
    /// The ways to kick.
    pub(super) ways: &'a [Exhibit],
    /// Traces side by side.
    pub(super) pairs: &'a [Pair],
    /// The page of the comparison.
    pub(super) compare: Option<&'a Shown>,
    /// The page of the laboratory, with what each experiment came to.
    pub(super) lab: Option<&'a (Shown, Vec<(&'static str, &'static str)>)>,
    /// The page with a ring to be worked by hand.
    pub(super) ring: Option<&'a Shown>,
    /// The command that made it.
    pub(super) command: &'a str,
}

/// The page, in English, for the pages of a language.
pub(super) fn page(index: &Index<'_>, lang: Lang) -> String {
    let mut ways = String::new();
    for exhibit in index.ways {
        way(&mut ways, exhibit, lang);
    }
    let parts = [
        ("{{mark}}", super::site::MARK.to_owned()),
        ("{{other}}", to_other("index", lang)),
        ("{{ways}}", ways),
        ("{{beside}}", beside(index, lang)),
        ("{{lab}}", laboratory(index, lang)),
        ("{{command}}", escape(index.command)),
        ("{{version}}", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    let mut page = String::with_capacity(2 * PAGE.len());
    let mut rest = PAGE;
    for (place, content) in parts {
        if let Some((before, after)) = rest.split_once(place) {
            page.push_str(before);
            page.push_str(&content);
            rest = after;
        }
    }
    page + rest
}

/// The doorbell of the datagram that goes out.
fn bell(trace: &Timeline) -> Option<&Step> {
    let mut out = trace.phase(Phase::Transmit);
    out.find(|step| step.instruction.is_some())
}

// Writing to a string does not fail: what it says is dropped below.
fn way(page: &mut String, exhibit: &Exhibit, lang: Lang) {
    let way = exhibit.way;
    let title = escape(way.title);
    let text = escape(way.text);
    let command = escape(&way.command());
    match &exhibit.shown {
        Shown::Recorded(trace) => {
            let kick = bell(trace).and_then(|step| step.instruction.as_ref());
            let (bytes, words) = match kick {
                Some(kick) => (kick.bytes.as_str(), kick.text.as_str()),
                None => ("", trace.run.device.doorbell.as_str()),
            };
            let sound = trace.is_sound();
            let _ = write!(
                page,
                "<li><article><h3><a href=\"{file}\">{title}</a></h3>\
                 <p class=\"kick\"><b>{bytes}</b> <code>{words}</code></p><p>{text}</p>\
                 <p class=\"facts\"><span class=\"{class}\">{verdict}</span> \
                 {steps} steps, {accelerator}, {machine}, QEMU {qemu}, interrupts: {rung}</p>\
                 <p class=\"facts\"><code>{command}</code> \
                 <a href=\"{name}.json\">its trace as JSON</a></p></article></li>",
                name = way.name,
                file = file_of(way.name, lang),
                bytes = escape(bytes),
                words = escape(words),
                class = if sound { "good" } else { "bad" },
                verdict = match sound {
                    true => "What was checked holds.",
                    false => "A check failed.",
                },
                steps = trace.steps.len(),
                accelerator = escape(&trace.run.accelerator.to_uppercase()),
                machine = escape(&trace.run.machine),
                qemu = escape(&trace.run.qemu),
                rung = escape(&trace.run.device.interrupts),
            );
        }
        Shown::Page => {}
        Shown::Absent(reason) | Shown::Failed(reason) => {
            let _ = write!(
                page,
                "<li class=\"absent\"><article><h3>{title}</h3><p>{text}</p><p class=\"facts\"><b>Not \
                 recorded here:</b> {}</p><p class=\"facts\"><code>{command}</code></p></article></li>",
                escape(reason)
            );
        }
    }
}

/// One line of a list: a page, or why there is none.
fn line(page: &mut String, file: &str, title: &str, text: &str, shown: &Shown) {
    let (title, text) = (escape(title), escape(text));
    let _ = match shown {
        Shown::Absent(reason) | Shown::Failed(reason) => write!(
            page,
            "<li class=\"absent\"><b>{title}</b>: <span>{text}</span> <b>Not recorded here:</b> {}</li>",
            escape(reason)
        ),
        Shown::Recorded(_) | Shown::Page => {
            write!(
                page,
                "<li><a href=\"{file}\">{title}</a>: <span>{text}</span></li>"
            )
        }
    };
}

/// What lays several ways side by side.
fn beside(index: &Index<'_>, lang: Lang) -> String {
    let mut lines = String::new();
    if let Some(shown) = index.compare {
        let text = "Instructions, accesses, kicks and interrupts of every way, with ioeventfd and \
                    EVENT_IDX and without.";
        line(
            &mut lines,
            &file_of(super::COMPARE, lang),
            "All ways in one table",
            text,
            shown,
        );
    }
    for pair in index.pairs {
        let _ = write!(
            lines,
            "<li><a href=\"{}\">{}</a>: <span>Two traces, step beside step.</span></li>",
            file_of(&pair.name, lang),
            escape(pair.title),
        );
    }
    section("beside", "Side by side", &lines)
}

fn laboratory(index: &Index<'_>, lang: Lang) -> String {
    let mut lines = String::new();
    if let Some(shown) = index.ring {
        let text = "Add, publish, kick, let the device run, wrap the index: the driver's own code, in \
                    the browser.";
        line(
            &mut lines,
            &file_of(super::RING, lang),
            "Both ends of a ring, by hand",
            text,
            shown,
        );
    }
    if let Some((shown, asked)) = index.lab {
        let text = "The driver with one deliberate mistake at a time: predict what comes of it, then \
                    look at what was recorded.";
        let file = file_of(super::LAB, lang);
        line(&mut lines, &file, "The experiments", text, shown);
        // Without the outcomes: they are to be predicted.
        for (number, (name, question)) in (1..).zip(asked) {
            let _ = write!(
                lines,
                "<li><a href=\"{file}#e{number}\">{}</a>: <span>{}</span></li>",
                escape(name),
                escape(question)
            );
        }
    }
    section("break", "Hands on", &lines)
}

fn section(id: &str, title: &str, lines: &str) -> String {
    match lines {
        "" => String::new(),
        _ => format!(
            "<section aria-labelledby=\"{id}\"><h2 id=\"{id}\">{title}</h2><ul class=\"lines\">{lines}</ul></section>"
        ),
    }
}
