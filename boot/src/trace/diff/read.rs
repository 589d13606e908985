//! Reads a trace from its file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::trace::timeline::{SCHEMA, Timeline};

/// Longest file that is read, in bytes.
const LONGEST: u64 = 64 << 20;

/// More steps than a packet makes.
const MOST_STEPS: usize = 4000;

/// Why two traces cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// The file cannot be read.
    #[error("{}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is too long to be a trace.
    #[error("{}: it has more than {LONGEST} bytes, and no trace has", file.display())]
    TooLong {
        /// The file.
        file: PathBuf,
    },
    /// It is not what `trace --json` writes.
    #[error("{}:{line}:{column}: not what trace --json writes: {why}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Where, from 1.
        line: usize,
        /// Where in the line, from 1.
        column: usize,
        /// What is wrong, with the field's name.
        why: String,
    },
    /// It is of another version.
    #[error("{}: its field schema is {found}, and this program reads {SCHEMA}", file.display())]
    Schema {
        /// The file.
        file: PathBuf,
        /// The version.
        found: u64,
    },
    /// A field has a value that no trace has.
    #[error("{}: {field}: {why}", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The field, such as `steps[3].number`.
        field: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Reads a trace that `trace --json` wrote.
///
/// # Errors
/// It cannot be read, or is something else.
pub fn read(file: &Path) -> Result<Timeline, DiffError> {
    let failed = |source| DiffError::Read {
        file: file.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let open = File::open(file).map_err(failed)?;
    open.take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > LONGEST {
        let file = file.to_owned();
        return Err(DiffError::TooLong { file });
    }
    parse(file, &bytes)
}

/// What every version of the schema has.
#[derive(Deserialize)]
struct Head {
    schema: u64,
}

fn parse(file: &Path, bytes: &[u8]) -> Result<Timeline, DiffError> {
    let syntax = |error: serde_json::Error| {
        let text = error.to_string();
        let why = text.rsplit_once(" at line ").map_or(&*text, |(why, _)| why);
        DiffError::Syntax {
            file: file.to_owned(),
            line: error.line(),
            column: error.column(),
            why: why.to_owned(),
        }
    };
    let head: Head = serde_json::from_slice(bytes).map_err(syntax)?;
    if head.schema != u64::from(SCHEMA) {
        return Err(DiffError::Schema {
            file: file.to_owned(),
            found: head.schema,
        });
    }
    let timeline: Timeline = serde_json::from_slice(bytes).map_err(syntax)?;
    check_length(file, &timeline)?;
    for (place, step) in timeline.steps.iter().enumerate() {
        if step.number != place {
            return Err(DiffError::Field {
                file: file.to_owned(),
                field: format!("steps[{place}].number"),
                why: format!("it is {}, and the step's place is {place}", step.number),
            });
        }
    }
    Ok(timeline)
}

/// Whether it has no more steps than can be aligned.
///
/// # Errors
/// It has.
pub(super) fn check_length(file: &Path, timeline: &Timeline) -> Result<(), DiffError> {
    match timeline.steps.len() {
        0..=MOST_STEPS => Ok(()),
        many => Err(DiffError::Field {
            file: file.to_owned(),
            field: "steps".to_owned(),
            why: format!("there are {many}, and one packet has {MOST_STEPS} at most"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(Path::new("a.json"), text.as_bytes())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        let good = include_str!("../sample.json");
        let file = Path::new("a.json");
        assert!(parse(file, good.as_bytes()).is_ok());
        for (text, said) in [
            ("", "a.json:1:0: "),
            ("[", "a.json:1:1: "),
            ("{}", "missing field `schema`"),
            ("{\n \"schema\": \"x\"}", "a.json:2:"),
            (
                "{\"schema\": 1}",
                "its field schema is 1, and this program reads 3",
            ),
            ("{\"schema\": 3}", "missing field `run`"),
        ] {
            let error = error(text);
            assert!(error.contains(said), "{text}: {error}");
        }
        let renumbered = good.replacen("\"number\": 3", "\"number\": 4", 1);
        let error_text = error(&renumbered);
        assert!(
            error_text.contains("a.json: steps[3].number: it is 4"),
            "{error_text}"
        );
        let layer = good.replacen("\"layer\": \"guest\"", "\"layer\": \"ghost\"", 1);
        let error_text = error(&layer);
        assert!(
            error_text.contains("ghost") && error_text.starts_with("a.json:"),
            "{error_text}"
        );
        for length in (0..good.len()).step_by(97) {
            assert!(parse(file, &good.as_bytes()[..length]).is_err());
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("/nowhere/a.json")).unwrap_err();
        assert!(matches!(error, DiffError::Read { .. }));
        assert!(
            error.to_string().starts_with("/nowhere/a.json: "),
            "{error}"
        );
    }

    #[test]
    fn more_steps_than_a_packet_has_are_refused() {
        let mut timeline = crate::trace::sample::timeline();
        let step = timeline.steps[0].clone();
        timeline.steps.resize(MOST_STEPS + 1, step);
        let error = check_length(Path::new("a.json"), &timeline).unwrap_err();
        assert!(error.to_string().contains("4001"), "{error}");
    }
}
