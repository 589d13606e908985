//! `kickpath gallery DIR`: a static site of what this machine records, for any web server.
//!
//! A trace for each way to kick, some of them side by side, the comparison of all, and the
//! laboratory. What the machine cannot record is in it with the reason. The directory appears
//! when all of it is whole.

mod files;
mod index;
mod site;
mod ways;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::accel::AccelChoice;
use crate::command::{Progress, Sink};
use crate::lab::{self, LabError};
use crate::lang::Lang;
use crate::nested::{self, NestedError};
use crate::session::{NetChoice, SessionError, Settings};
use crate::terminal::Story;
use crate::trace::{self, Timeline};
use crate::{compare, interrupt, publish};
use files::{Files, file_of};
use index::Index;
use site::Site;
use ways::PAIRS;
pub use ways::{WAYS, Way};

/// The page of the comparison, for `--only` too.
const COMPARE: &str = "compare";

/// The page of the laboratory.
const LAB: &str = "lab";

/// The page with a ring to be worked by hand.
const RING: &str = "ring";

/// UDP echoes a row of the comparison.
const ECHOES: u64 = 500;

/// Why there is no gallery.
#[derive(Debug, thiserror::Error)]
pub enum GalleryError {
    /// The directory is somebody else's.
    #[error("{} holds something else than a gallery; name a new directory", .0.display())]
    Occupied(PathBuf),
    /// The system refuses.
    #[error("cannot write {}: {source}", file.display())]
    Write {
        /// What.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such part.
    #[error("--only {0}: there is {all}", all = parts().join(", "))]
    Unknown(String),
    /// What every part needs is missing.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A page cannot be made.
    #[error("a page cannot be made: {0}")]
    Page(#[from] serde_json::Error),
    /// Somebody asked us to end (see [`interrupt`]).
    #[error("interrupted: nothing was written")]
    Interrupted,
}

/// What `--only` can name.
pub fn parts() -> Vec<&'static str> {
    let ways = WAYS.iter().map(|way| way.name);
    ways.chain([COMPARE, LAB, RING]).collect()
}

/// What became of a part.
enum Shown {
    /// Its trace.
    Recorded(Box<Timeline>),
    /// It has a page.
    Page,
    /// This machine cannot record it, for this reason.
    Absent(String),
    /// It should have been recorded, and was not.
    Failed(String),
}

/// A way to kick, and what became of it.
struct Exhibit {
    way: &'static Way,
    shown: Shown,
}

/// Two traces side by side.
struct Pair {
    name: String,
    title: &'static str,
}

/// What the command tells of the site.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The files, in the order in which they were made.
    pub files: Vec<String>,
    /// What this machine cannot record, and why.
    pub absent: Vec<(String, String)>,
    /// What should have been recorded, and why it was not.
    pub failed: Vec<(String, String)>,
    /// Whether nothing of it failed.
    pub ok: bool,
}

/// The first line of an error: the rest is for a terminal, not for a public page.
fn reason(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    publish::shorten(text.lines().next().unwrap_or_default())
}

/// Makes the site at `directory`; `only` names its parts, all where it is empty.
///
/// # Errors
/// The directory is somebody else's, nothing can be recorded at all, or somebody asked us to end.
/// A part that fails is in the report.
pub fn make(
    directory: &Path,
    only: &[String],
    settings: &Settings,
    sink: &mut Sink<'_>,
) -> Result<Report, GalleryError> {
    if let Some(unknown) = only.iter().find(|name| !parts().contains(&name.as_str())) {
        return Err(GalleryError::Unknown(unknown.clone()));
    }
    let wanted = |name: &str| only.is_empty() || only.iter().any(|one| one == name);
    let site = Site::begin(directory)?;
    // Without these nothing comes of any part.
    settings.prepare(false, sink)?;
    let mut report = Report::default();
    let mut note = |name: &str, shown: &Shown| match shown {
        Shown::Absent(why) => report.absent.push((name.to_owned(), why.clone())),
        Shown::Failed(why) => report.failed.push((name.to_owned(), why.clone())),
        Shown::Recorded(_) | Shown::Page => {}
    };
    let mut files = Files::new(&site);

    let chosen: Vec<&'static Way> = WAYS.iter().filter(|way| wanted(way.name)).collect();
    let mut exhibits = Vec::new();
    for (at, way) in chosen.iter().copied().enumerate() {
        let (number, all) = (at + 1, chosen.len());
        sink(Progress::Step(&format!(
            "Trace {number} of {all}: {}",
            way.title
        )));
        let shown = record(way, settings, sink);
        check_interrupt()?;
        if let Shown::Recorded(trace) = &shown {
            let page = trace::html::render(trace, &format!("{} --html FILE", way.command()))?;
            files.page(way.name, &page)?;
            let trace = serde_json::to_string(trace)?;
            files.write(format!("{}.json", way.name), &trace)?;
        }
        if let Shown::Absent(why) | Shown::Failed(why) = &shown {
            sink(Progress::Step(&format!("Not recorded here: {why}")));
        }
        note(way.name, &shown);
        exhibits.push(Exhibit { way, shown });
    }
    let mut pairs = Vec::new();
    for (first, second, title) in PAIRS {
        let (Some(a), Some(b)) = (trace_of(&exhibits, first), trace_of(&exhibits, second)) else {
            continue;
        };
        let names = [first, second].map(|name| PathBuf::from(format!("{name}.json")));
        let command = format!("cargo run -- trace --diff {first}.json {second}.json --html FILE");
        match trace::diff::diff((&names[0], a), (&names[1], b)) {
            Ok(diff) => {
                let name = format!("{first}-and-{second}");
                let page = trace::diff::page(&diff, a, b, &command);
                files.page(&name, &page)?;
                pairs.push(Pair { name, title });
            }
            Err(error) => note(title, &Shown::Failed(reason(&error))),
        }
    }
    let mut compared = None;
    if wanted(COMPARE) {
        sink(Progress::Step("Comparing the ways to kick"));
        let shown = match compare::compare(settings, ECHOES, None::<&mut Story<io::Sink>>, sink) {
            Ok(report) => {
                files.page(COMPARE, &compare::html::page(&report)?)?;
                Shown::Page
            }
            Err(error) => Shown::Failed(reason(&error)),
        };
        check_interrupt()?;
        note(COMPARE, &shown);
        compared = Some(shown);
    }
    let mut laboratory = None;
    if wanted(LAB) {
        let reports = experiments(settings, sink);
        check_interrupt()?;
        let (shown, asked) = match reports {
            Ok(reports) => {
                files.page(LAB, &lab::page(&reports))?;
                let asked = reports.iter().map(|report| report.experiment);
                (
                    Shown::Page,
                    asked.map(|one| (one.name, one.question)).collect(),
                )
            }
            Err(error) => (Shown::Failed(reason(&error)), Vec::new()),
        };
        note(LAB, &shown);
        laboratory = Some((shown, asked));
    }
    let mut by_hand = None;
    if wanted(RING) {
        let module = lab::ring::module(settings.policy, sink);
        check_interrupt()?;
        let shown = match module {
            Ok(module) => {
                let page = lab::ring::page(&module, "cargo run -- lab ring --html FILE");
                files.page(RING, &page)?;
                Shown::Page
            }
            Err(error) => Shown::Failed(reason(&error)),
        };
        note(RING, &shown);
        by_hand = Some(shown);
    }
    let mut command = "cargo run -- gallery DIR".to_owned();
    if !only.is_empty() {
        command += &format!(" --only {}", only.join(","));
    }
    let index = Index {
        ways: &exhibits,
        pairs: &pairs,
        compare: compared.as_ref(),
        lab: laboratory.as_ref(),
        ring: by_hand.as_ref(),
        command: &command,
    };
    for lang in Lang::ALL {
        let page = lang.page(index::page(&index, lang));
        files.write(file_of("index", lang), &page)?;
    }
    report.files = files.names;
    site.publish()?;
    report.ok = report.failed.is_empty();
    Ok(report)
}

/// Tells what was made.
///
/// # Errors
/// The output is closed.
pub fn tell<W: Write>(story: &mut Story<W>, directory: &Path, report: &Report) -> io::Result<()> {
    story.section("Gallery")?;
    for (name, why) in &report.absent {
        story.row("Not here", &format!("{name}: {why}"))?;
    }
    for (name, why) in &report.failed {
        story.verdict("Failed", false, &format!("{name}: {why}"))?;
    }
    let (count, index) = (report.files.len(), directory.join("index.html"));
    let conclusion = format!("{count} files; open {}.", index.display());
    story.conclusion(report.ok, &conclusion)
}

fn check_interrupt() -> Result<(), GalleryError> {
    match interrupt::requested() {
        true => Err(GalleryError::Interrupted),
        false => Ok(()),
    }
}

fn trace_of<'a>(exhibits: &'a [Exhibit], name: &str) -> Option<&'a Timeline> {
    let exhibit = exhibits.iter().find(|exhibit| exhibit.way.name == name)?;
    match &exhibit.shown {
        Shown::Recorded(trace) => Some(trace),
        _ => None,
    }
}

/// Records one way.
fn record(way: &Way, base: &Settings, sink: &mut Sink<'_>) -> Shown {
    let settings = way.settings(base);
    let recorded = match settings.accel {
        AccelChoice::Nested => {
            let words = ["trace"].into_iter().chain(way.words.split_whitespace());
            let words: Vec<OsString> = words.map(OsString::from).collect();
            match nested::record(&settings, NetChoice::Dgram, None, &words, sink) {
                Ok(recorded) => Ok(recorded),
                Err(NestedError::Session(error)) => Err(error),
                Err(error @ (NestedError::Architecture | NestedError::Linux(_))) => {
                    return Shown::Absent(reason(&error));
                }
                Err(error) => return Shown::Failed(reason(&error)),
            }
        }
        _ if way.is_linux => trace::linux::record(&settings, sink)
            .map(|(prepared, recording)| (prepared.machine.boot, recording)),
        _ => trace::record(&settings, NetChoice::Dgram, sink)
            .map(|(prepared, recording)| (prepared.machine.boot, recording)),
    };
    let timeline = recorded.and_then(|(boot, recording)| {
        trace::timeline(&boot, &recording).map_err(SessionError::from)
    });
    match timeline {
        Ok(timeline) => Shown::Recorded(Box::new(timeline)),
        Err(
            error @ (SessionError::Accel(_) | SessionError::Linux(_) | SessionError::Mismatch(_)),
        ) => Shown::Absent(reason(&error)),
        Err(error) => Shown::Failed(reason(&error)),
    }
}

/// Runs every experiment of the laboratory.
fn experiments(settings: &Settings, sink: &mut Sink<'_>) -> Result<Vec<lab::Report>, LabError> {
    let options = lab::Options {
        qemu: settings.qemu.clone(),
        policy: settings.policy,
    };
    let kernel = lab::build(None, options.policy, sink)?;
    let all = lab::EXPERIMENTS.iter();
    all.map(|experiment| lab::run(experiment, None, &kernel.file, &options, sink))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_of_ways_and_names_differ() {
        let mut names = parts();
        for (first, second, _) in PAIRS {
            assert!(names.contains(&first) && names.contains(&second));
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), parts().len());
    }

    #[test]
    fn the_index_keeps_text_as_text_and_links_only_what_is_there() {
        let evil = "<script>\"&";
        let ways: Vec<Exhibit> = WAYS
            .iter()
            .map(|way| Exhibit {
                way,
                shown: Shown::Absent(evil.into()),
            })
            .collect();
        let index = Index {
            ways: &ways,
            pairs: &[],
            compare: Some(&Shown::Failed(evil.into())),
            lab: None,
            ring: None,
            command: evil,
        };
        let page = index::page(&index, Lang::En);
        assert!(!page.contains("<script") && !page.contains("{{") && !page.contains("href=\"http"));
        assert!(page.contains("&lt;script>&quot;&amp;") && page.contains(site::MARK));
        let links = page.matches("href=").count() - page.matches("href=\"data:").count();
        assert_eq!(links, 1, "to the other language: {page}");
    }
}
