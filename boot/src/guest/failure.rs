//! What a failed run tells its reader.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Exit;
use super::qmp::CommandError;
use crate::qemu::{Trace, Vmm};
use crate::scratch::ScratchError;

/// How many of the guest's last console lines a report shows.
pub(super) const CONSOLE_LINES: usize = 40;

/// How many of QEMU's own last messages a report shows.
pub(super) const MESSAGE_LINES: usize = 10;

/// How much of a trace file a report shows, in bytes.
const TRACE_BYTES: u64 = 2048;

/// Why a guest could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The VMM could not be started.
    #[error("cannot start {}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
    /// There is no directory for the VMM's files.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The VMM ended.
    #[error("{exit}{} while waiting for {waiting_for}", cause_of_end(reason.as_deref()))]
    Ended {
        /// How.
        exit: Exit,
        /// QEMU's reason, such as `guest-reset`, if it gave one.
        reason: Option<String>,
        /// What the runner waited for.
        waiting_for: String,
    },
    /// QEMU stopped the guest and will not let it go on.
    #[error("QEMU has stopped the guest ({reason}) while waiting for {waiting_for}")]
    Paused {
        /// QEMU's run state, such as `internal-error`.
        reason: String,
        /// What the runner waited for.
        waiting_for: String,
    },
    /// The bound of a wait.
    #[error("waited {:.1} s in vain for {waiting_for}", bound.as_secs_f64())]
    Timeout {
        /// What the runner waited for.
        waiting_for: String,
        /// How long.
        bound: Duration,
    },
    /// QEMU's monitor refused a command.
    #[error("QEMU refuses the command '{command}': {source}")]
    Command {
        /// The command.
        command: String,
        /// Why.
        source: CommandError,
    },
    /// Something outside of QEMU: the far end of the cable, a wrong answer.
    #[error("{0}")]
    Other(String),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

fn cause_of_end(reason: Option<&str>) -> String {
    match reason {
        Some("guest-reset") => " after a reset of the guest (a triple fault?)".to_owned(),
        Some(reason) => format!(" ({reason})"),
        None => String::new(),
    }
}

/// A cause, and all that helps to find what is behind it.
#[derive(Debug)]
pub struct Failure {
    /// What ran the guest.
    pub vmm: Vmm,
    /// What went wrong.
    pub cause: Cause,
    /// The command line of the VMM, ready to paste.
    pub command: String,
    /// The last lines of the guest's console.
    pub console: Vec<String>,
    /// The last lines that the VMM itself printed.
    pub messages: Vec<String>,
    /// The ends of QEMU's trace files, if those were asked for.
    pub trace: Option<Vec<String>>,
    /// The last frames on the wire, if there is one.
    pub frames: Option<Vec<String>>,
}

impl Failure {
    /// Whether QEMU did not start because a port that it should forward was
    /// taken.
    pub fn is_port_taken(&self) -> bool {
        const SAYS: &str = "Could not set up host forwarding rule";
        matches!(
            self.cause,
            Cause::Ended {
                exit: Exit::Failed(_),
                ..
            }
        ) && self.messages.iter().any(|line| line.contains(SAYS))
    }

    pub(super) fn before_launch(vmm: Vmm, cause: Cause, command: String) -> Self {
        Self {
            vmm,
            cause,
            command,
            console: Vec::new(),
            messages: Vec::new(),
            trace: None,
            frames: None,
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.source()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)?;
        if matches!(self.cause, Cause::Interrupted) {
            return Ok(());
        }
        let mut section = |title: &str, lines: &[String], none: &str| {
            write!(f, "\n\n{title}:")?;
            if lines.is_empty() {
                return write!(f, " {none}");
            }
            lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
        };
        if !self.messages.is_empty() {
            section(&format!("{} says", self.vmm), &self.messages, "")?;
        }
        section(
            "End of the guest's console",
            &self.console,
            "it printed nothing",
        )?;
        if let Some(frames) = &self.frames {
            section("Last frames on the wire", frames, "there were none")?;
        }
        if let Some(trace) = &self.trace {
            section("End of QEMU's trace", trace, "it is empty")?;
        }
        let command: Vec<String> = self.command.lines().map(str::to_owned).collect();
        let title = format!("{}'s command line, ready to paste", self.vmm);
        section(&title, &command, "")
    }
}

/// The last lines of each log in a directory.
pub(super) fn tails_of_logs(directory: &Path) -> Vec<String> {
    let files = Trace::files(directory).unwrap_or_default().into_iter();
    let tails = files.flat_map(|(thread, file)| {
        let title = format!("thread {thread}:");
        std::iter::once(title).chain(tail_of_file(&file))
    });
    tails.collect()
}

/// The last whole lines of a file; none when it cannot be read.
fn tail_of_file(path: &Path) -> Vec<String> {
    let read = || -> io::Result<(bool, Vec<u8>)> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let start = length.saturating_sub(TRACE_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TRACE_BYTES).read_to_end(&mut bytes)?;
        Ok((start > 0, bytes))
    };
    let (cut, bytes) = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(|line| line.escape_debug().to_string());
    lines.skip(usize::from(cut)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_holds_what_its_reader_needs() {
        let failure = Failure {
            vmm: Vmm::Qemu,
            cause: Cause::Ended {
                exit: Exit::Orderly,
                reason: Some("guest-reset".into()),
                waiting_for: "'kickpath: up' on the console".into(),
            },
            command: "qemu \\\n  -nodefaults".into(),
            console: vec!["last words".into()],
            messages: Vec::new(),
            trace: None,
            frames: Some(Vec::new()),
        };
        assert_eq!(
            failure.to_string(),
            "the VMM ended in good order (status 0) after a reset of the guest (a triple fault?) \
             while waiting for 'kickpath: up' on the console\n\n\
             End of the guest's console:\n  last words\n\n\
             Last frames on the wire: there were none\n\n\
             QEMU's command line, ready to paste:\n  qemu \\\n    -nodefaults"
        );
    }

    #[test]
    fn the_tail_of_a_file_starts_with_a_whole_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text: String = (0..1000).map(|n| format!("event {n}\n")).collect();
        std::fs::write(file.path(), text).unwrap();
        let lines = tail_of_file(file.path());
        assert_eq!(lines.last().unwrap(), "event 999");
        assert!(lines[0].starts_with("event "));
        assert!(tail_of_file(Path::new("/does/not/exist")).is_empty());
    }
}
