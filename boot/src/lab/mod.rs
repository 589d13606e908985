//! `kickpath lab`: the guest's driver with one deliberate mistake, what comes of it, and
//! whether a student's change puts it right.
//!
//! The mistakes are a few lines each in `kernel/virtio-net/lab/experiments.rs`, behind a
//! cargo feature that no other guest is built with. Each experiment boots the guest twice,
//! without the mistake and with it, and has it echo datagrams. What is said of a run was
//! recorded in it: by the guest's tracepoints, in QEMU's log, in the ring's memory, on the
//! cable and on the console.

mod build;
mod evidence;
mod experiments;
mod page;
mod probe;
pub mod ring;
mod scene;
mod text;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::command::{Progress, Sink};
use crate::install::Policy;
use crate::session::SessionError;
use crate::terminal::Story;
use crate::toolchain::ToolchainError;

pub use build::{Kernel, build, copy_sources};
pub use evidence::{Evidence, Outcome, Ring};
pub use experiments::{EXPERIMENTS, Experiment};
pub use page::page;
pub use text::{ask, list, tell};

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// No such experiment.
    #[error("there is no experiment '{0}': `lab` lists them; `all` is all of them")]
    Unknown(String),
    /// The change cannot be applied.
    #[error("{} does not fit the sources: {why}", file.display())]
    Change {
        /// The change.
        file: PathBuf,
        /// What `patch` said.
        why: String,
    },
    /// The system refuses.
    #[error("cannot {what}: {source}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The guest does not know the experiment.
    #[error(
        "the guest has not started the experiment ({fault}); was that taken out of its sources?"
    )]
    NotStarted {
        /// The configuration word.
        fault: String,
    },
    /// The guest cannot be built.
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    /// The guest does not run.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The directory for temporary files.
    #[error(transparent)]
    Scratch(#[from] crate::scratch::ScratchError),
}

impl From<io::Error> for LabError {
    fn from(error: io::Error) -> Self {
        Self::Session(error.into())
    }
}

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The QEMU program, if not the one on the path.
    pub qemu: Option<PathBuf>,
    /// Whether anything may be installed.
    pub policy: Policy,
}

/// What an experiment came to.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The experiment.
    pub experiment: &'static Experiment,
    /// What the student expected.
    pub predicted: Option<Outcome>,
    /// How the run with the mistake ended.
    pub outcome: Outcome,
    /// The run without the mistake.
    pub right: Evidence,
    /// The run with it.
    pub wrong: Evidence,
}

/// What came of a student's change.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// The experiment's number.
    pub number: u8,
    /// Whether it works again.
    pub ok: bool,
    /// Why not.
    pub failures: Vec<String>,
    /// How the run ended.
    pub outcome: Outcome,
    /// What the run left behind.
    pub evidence: Evidence,
}

/// The experiments that a word names: a number, a name, or `all`.
///
/// # Errors
/// There is none.
pub fn find(word: &str) -> Result<&'static [Experiment], LabError> {
    if word == "all" {
        return Ok(EXPERIMENTS);
    }
    let is_it =
        |experiment: &Experiment| experiment.name == word || word.parse() == Ok(experiment.number);
    let place = EXPERIMENTS.iter().position(is_it);
    let place = place.ok_or_else(|| LabError::Unknown(word.to_owned()))?;
    Ok(&EXPERIMENTS[place..=place])
}

/// Runs an experiment in this guest.
///
/// # Errors
/// The guest does not run.
pub fn run(
    experiment: &'static Experiment,
    predicted: Option<Outcome>,
    kernel: &Path,
    options: &Options,
    sink: &mut Sink<'_>,
) -> Result<Report, LabError> {
    let number = experiment.number;
    let mut once = |what: &str, fault: String| {
        sink(Progress::Step(&format!("Experiment {number}, {what}")));
        scene::run(&experiment.scene, kernel, fault, options, sink)
    };
    let right = once("as it should be", format!("{number},right"))?;
    let wrong = once("with the mistake", number.to_string())?;
    Ok(Report {
        experiment,
        predicted,
        outcome: wrong.outcome(),
        right,
        wrong,
    })
}

/// Runs an experiment in a guest whose mistake a student has put right, and says whether
/// it is.
///
/// # Errors
/// The guest does not run.
pub fn check(
    experiment: &Experiment,
    kernel: &Path,
    options: &Options,
    sink: &mut Sink<'_>,
) -> Result<Checked, LabError> {
    let number = experiment.number;
    sink(Progress::Step(&format!(
        "Experiment {number} with your change"
    )));
    let evidence = scene::run(&experiment.scene, kernel, number.to_string(), options, sink)?;
    let failures = experiment.failures(&evidence);
    Ok(Checked {
        number,
        ok: failures.is_empty(),
        failures,
        outcome: evidence.outcome(),
        evidence,
    })
}

/// Tells what came of a change.
///
/// # Errors
/// The output is closed.
pub fn tell_check<W: Write>(story: &mut Story<W>, checked: &Checked) -> io::Result<()> {
    text::numbers(story, &[("your change", &checked.evidence)])?;
    for failure in &checked.failures {
        story.verdict("Not yet", false, failure)?;
    }
    let number = checked.number;
    story.conclusion(
        checked.ok,
        &match checked.ok {
            true => format!("Experiment {number} works again."),
            false => format!(
                "Experiment {number} does not work yet: {}.",
                checked.outcome.sentence()
            ),
        },
    )
}
