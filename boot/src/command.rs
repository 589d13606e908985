//! Runs another program, passes on what it prints line by line, and never
//! waits for it longer than allowed.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, getpid, getppid};
use thiserror::Error;

use crate::interrupt;

/// What a long task says while it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// What is about to be done, and why.
    Step(&'a str),
    /// A line that a program started by the task printed.
    Line(&'a str),
}

/// Receives the progress of a task.
pub type Sink<'a> = dyn FnMut(Progress<'_>) + 'a;

/// How many of the last lines of a program are kept for its error.
const TAIL_LINES: usize = 60;
/// A longer line is cut into pieces of this many bytes.
const LINE_BYTES: usize = 8 * 1024;
/// How often a silent program is checked for having ended.
const POLL: Duration = Duration::from_millis(100);

/// A program did not do its job.
#[derive(Debug, Error)]
pub enum CommandError {
    /// It could not be started, or not be waited for.
    #[error("cannot run `{command}`: {cause}")]
    Start {
        /// The command line.
        command: String,
        /// What the operating system said.
        cause: io::Error,
    },
    /// It ended with a failure.
    #[error("`{command}` failed ({status}):\n{tail}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it printed.
        tail: String,
    },
    /// Somebody asked us to end (see [`interrupt`]), and it was told to as well.
    #[error("`{command}` was interrupted")]
    Interrupted {
        /// The command line.
        command: String,
    },
    /// It took too long and was stopped.
    #[error("`{command}` was stopped after {} s without success:\n{tail}", limit.as_secs())]
    TimedOut {
        /// The command line.
        command: String,
        /// The time that it was given.
        limit: Duration,
        /// The last lines that it printed.
        tail: String,
    },
}

impl CommandError {
    /// The last lines that the program printed; empty if it never started.
    pub fn tail(&self) -> &str {
        match self {
            Self::Start { .. } | Self::Interrupted { .. } => "",
            Self::Failed { tail, .. } | Self::TimedOut { tail, .. } => tail,
        }
    }
}

/// The command line of `command`, quoted so that it can be pasted in a shell.
pub fn command_line(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    // Only a zero byte cannot be quoted, and no argument can hold one.
    shlex::try_join(words.iter().map(|word| word.as_ref())).unwrap_or_else(|_| words.join(" "))
}

/// Runs `command` to its end without input; each line of its output and errors
/// goes to `sink`. Returns all that it printed.
///
/// # Errors
/// [`CommandError`] when it cannot be started, fails, or is still running after
/// `limit` (it is killed then). When we are asked to end, it and all that it has
/// started get `SIGTERM`, and it is waited for. After that nothing is started
/// any more.
pub fn run(
    command: &mut Command,
    limit: Option<Duration>,
    sink: &mut Sink<'_>,
) -> Result<(), CommandError> {
    run_whole(command, limit, sink, true)
}

/// As [`run`], for a package manager: it alone gets `SIGTERM`, and what it has
/// started does not stop halfway.
///
/// # Errors
/// As [`run`].
pub fn run_unbroken(
    command: &mut Command,
    limit: Option<Duration>,
    sink: &mut Sink<'_>,
) -> Result<(), CommandError> {
    run_whole(command, limit, sink, false)
}

/// Has a program that is about to be started end with us, by this signal, if we
/// are killed. The thread that starts it must live as long as it does: it is
/// that thread's death which the kernel tells of.
pub(crate) fn end_with_us(command: &mut Command, signal: Signal) {
    let parent = getpid();
    // SAFETY: the closure runs in the forked child and makes system calls that
    // are async-signal-safe; it neither allocates nor takes a lock (`io::Error`
    // from an `Errno` or a number holds that only).
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(signal)?;
            // The parent may have died before that line.
            match getppid() == parent {
                true => Ok(()),
                false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            }
        });
    }
}

/// With `breakable`, what the program has started ends with it, and it with us.
fn run_whole(
    command: &mut Command,
    limit: Option<Duration>,
    sink: &mut Sink<'_>,
    breakable: bool,
) -> Result<(), CommandError> {
    let line = command_line(command);
    let start = |cause| CommandError::Start {
        command: line.clone(),
        cause,
    };
    if interrupt::requested() {
        return Err(CommandError::Interrupted { command: line });
    }
    let (reader, writer) = io::pipe().map_err(start)?;
    if breakable {
        end_with_us(command, Signal::SIGTERM);
    }
    let mut child = command
        // A terminal's Ctrl-C reaches us alone, and we pass it on in our order.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(start)?)
        .stderr(writer)
        .spawn()
        .map_err(start)?;
    // `command` still holds the pipe's writing ends; drop them, or the reader
    // would never see its end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (lines, received) = mpsc::channel();
    // Not joined: a grandchild that outlives the program may keep the pipe
    // open. The thread ends with it.
    thread::spawn(move || {
        split_lines(reader, |line| lines.send(line.to_owned()).is_ok());
    });

    let started = Instant::now();
    let mut tail = Tail::default();
    let mut ended: Option<(ExitStatus, Instant)> = None;
    let mut interrupted = false;
    let check = |child: &mut Child| -> Result<_, CommandError> {
        Ok(child
            .try_wait()
            .map_err(start)?
            .map(|status| (status, Instant::now())))
    };
    loop {
        match received.recv_timeout(POLL) {
            Ok(text) => {
                sink(Progress::Line(&text));
                tail.push(text);
            }
            Err(RecvTimeoutError::Timeout) if ended.is_some() => break,
            Err(RecvTimeoutError::Timeout) => {
                ended = check(&mut child)?;
            }
            Err(RecvTimeoutError::Disconnected) if ended.is_some() => break,
            Err(RecvTimeoutError::Disconnected) => {
                ended = check(&mut child)?;
                thread::sleep(POLL / 10);
            }
        }
        if !interrupted && interrupt::requested() {
            interrupted = true;
            if ended.is_none()
                && let Ok(pid) = i32::try_from(child.id())
            {
                // Fails only if the program has just ended, which is as good.
                let _ = match breakable {
                    true => signal::killpg(Pid::from_raw(pid), Signal::SIGTERM),
                    false => signal::kill(Pid::from_raw(pid), Signal::SIGTERM),
                };
            }
        }
        // A grandchild may go on printing; what it says is no longer ours.
        if ended.is_some_and(|(_, at)| at.elapsed() > 10 * POLL) {
            break;
        }
        if ended.is_none() && limit.is_some_and(|limit| started.elapsed() >= limit) {
            // Fails only if the program has just ended, which is as good.
            let _ = child.kill();
            child.wait().map_err(start)?;
            return Err(CommandError::TimedOut {
                command: line,
                limit: limit.unwrap_or_default(),
                tail: tail.text(),
            });
        }
    }
    match ended {
        _ if interrupted => Err(CommandError::Interrupted { command: line }),
        Some((status, _)) if status.success() => Ok(()),
        Some((status, _)) => Err(CommandError::Failed {
            command: line,
            status,
            tail: tail.text(),
        }),
        None => unreachable!("the loop ends only after the program has"),
    }
}

/// Runs `command` quietly within `limit` and returns what it printed.
///
/// # Errors
/// As [`run`].
pub fn output(command: &mut Command, limit: Duration) -> Result<String, CommandError> {
    let mut text = String::new();
    run(command, Some(limit), &mut |progress| {
        if let Progress::Line(line) = progress {
            text.push_str(line);
            text.push('\n');
        }
    })?;
    Ok(text)
}

/// The last lines of an output.
#[derive(Default)]
struct Tail(VecDeque<String>);

impl Tail {
    fn push(&mut self, line: String) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    fn text(&self) -> String {
        self.0
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Calls `line` for each line of `reader` (a carriage return ends one too, as
/// progress bars use it) until it returns `false`.
fn split_lines(mut reader: impl Read, mut line: impl FnMut(&str) -> bool) {
    let mut pending = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let length = match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for &byte in &chunk[..length] {
            let end = matches!(byte, b'\n' | b'\r');
            if !end {
                pending.push(byte);
            }
            if (end && !pending.is_empty()) || pending.len() == LINE_BYTES {
                if !line(&String::from_utf8_lossy(&pending)) {
                    return;
                }
                pending.clear();
            }
        }
    }
    if !pending.is_empty() {
        line(&String::from_utf8_lossy(&pending));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn passes_on_lines_of_both_streams() {
        let mut lines = Vec::new();
        run(
            &mut shell("echo one; echo two >&2; printf three"),
            None,
            &mut |p| {
                if let Progress::Line(line) = p {
                    lines.push(line.to_owned());
                }
            },
        )
        .unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
    }

    #[test]
    fn failure_carries_status_and_last_lines() {
        let error = output(
            &mut shell("seq 100; echo why; exit 7"),
            Duration::from_secs(20),
        )
        .unwrap_err();
        let CommandError::Failed { status, tail, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(status.code(), Some(7));
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("100\nwhy"));
    }

    #[test]
    fn a_program_that_hangs_is_stopped() {
        let started = Instant::now();
        let error = output(
            &mut shell("echo begun; exec sleep 60"),
            Duration::from_millis(300),
        )
        .unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
        assert_eq!(error.tail(), "begun");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_grandchild_that_keeps_the_pipe_open_does_not_delay_us() {
        let started = Instant::now();
        let text = output(
            &mut shell("sleep 30 & echo $!; exit 0"),
            Duration::from_secs(20),
        )
        .unwrap();
        assert!(started.elapsed() < Duration::from_secs(15));
        let pid: i32 = text.trim().parse().unwrap();
        // SAFETY: kill(2) takes no pointer; the process is our own grandchild.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = output(
            &mut Command::new("/nonexistent/program"),
            Duration::from_secs(1),
        )
        .unwrap_err();
        assert!(error.to_string().contains("/nonexistent/program"));
    }

    #[test]
    fn carriage_returns_and_long_lines_are_split() {
        let mut input = b"10%\r20%\n\n".to_vec();
        input.extend(vec![b'x'; LINE_BYTES + 1]);
        let mut lines = Vec::new();
        split_lines(&input[..], |line| {
            lines.push(line.len());
            true
        });
        assert_eq!(lines, [3, 3, LINE_BYTES, 1]);
    }

    #[test]
    fn command_lines_can_be_pasted() {
        let mut command = Command::new("apt-get");
        command.args(["install", "-y", "a b", "it's", ""]);
        assert_eq!(
            command_line(&command),
            "apt-get install -y 'a b' \"it's\" ''"
        );
    }
}
