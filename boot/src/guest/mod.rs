//! A running guest: QEMU's process, the guest's console, QEMU's monitor.
//!
//! A [`Guest`] never outlives its handle: dropping it (also by a panic that
//! unwinds) kills and reaps QEMU, and the kernel kills QEMU when the runner
//! itself dies by `SIGKILL`. Every wait has a bound, and ends early when QEMU
//! ends, when QEMU pauses the guest after an internal error, when the guest
//! panics, and when the user presses Ctrl-C.

mod exit;
mod failure;
mod lines;
mod monitor;
mod process;
pub mod qmp;

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub use exit::Exit;
pub use failure::{Cause, Failure};
pub use lines::Line;

use crate::interrupt;
use crate::qemu::Machine;
use crate::wire::FrameLog;
use lines::Log;
use monitor::Monitor;
use process::Process;

/// How long a wait sleeps before it looks for Ctrl-C again.
const SLICE: Duration = Duration::from_millis(50);

/// How long QEMU may take to connect its monitor or to answer a command.
const MONITOR_BOUND: Duration = Duration::from_secs(10);

/// Result of what is done with a guest.
pub type Result<T> = std::result::Result<T, Box<Failure>>;

/// What is known about the machine. Threads write it, waits read it.
#[derive(Debug, Default)]
struct State {
    console: Log,
    messages: Log,
    exit: Option<std::process::ExitStatus>,
    monitor: monitor::State,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked while it held the lock left whole values
        // behind: each change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// A guest in QEMU.
#[derive(Debug)]
pub struct Guest {
    shared: Arc<Shared>,
    process: Process,
    monitor: Monitor,
    launched: Instant,
    command: String,
    trace: Option<PathBuf>,
    frames: Option<FrameLog>,
    /// Holds the monitor's socket; goes with the guest.
    _directory: TempDir,
}

impl Guest {
    /// Starts QEMU with this machine (whose `qmp` is set here) and connects
    /// its monitor, unless the guest is done before that.
    ///
    /// # Errors
    /// QEMU cannot be started, or gives up or stays silent before its monitor
    /// is connected: the failure holds what QEMU said.
    pub fn launch(machine: &Machine) -> Result<Self> {
        let mut machine = machine.clone();
        let early = |cause: Cause, machine: &Machine| {
            Box::new(Failure::before_launch(
                cause,
                machine.to_paste().command_line(),
            ))
        };
        let directory = match tempfile::Builder::new().prefix("kickpath-qmp-").tempdir() {
            Ok(directory) => directory,
            Err(source) => return Err(early(Cause::System("make a directory", source), &machine)),
        };
        let socket = directory.path().join("qmp.sock");
        machine.qmp = Some(socket.clone());
        let listener = match monitor::listen(&socket) {
            Ok(listener) => listener,
            Err(source) => {
                return Err(early(
                    Cause::System("listen for QEMU's monitor", source),
                    &machine,
                ));
            }
        };
        let shared = Arc::new(Shared::default());
        let launched = Instant::now();
        let process = match Process::spawn(&machine, &shared, launched) {
            Ok(process) => process,
            Err(source) => {
                let program = machine.qemu.clone();
                return Err(early(Cause::Spawn { program, source }, &machine));
            }
        };
        let guest = Self {
            monitor: Monitor::start(listener, &shared),
            shared,
            process,
            launched,
            command: machine.to_paste().command_line(),
            trace: machine.trace.map(|trace| trace.file),
            frames: None,
            _directory: directory,
        };
        guest.wait("QEMU's monitor", MONITOR_BOUND, |state| {
            // On a busy machine a short guest is quicker than we are.
            let is_done = matches!(state.ended(), Some(Exit::Guest(_) | Exit::Orderly));
            (state.monitor.connected || is_done).then_some(())
        })?;
        Ok(guest)
    }

    /// The wire whose last frames belong into a report of a failure.
    pub fn attach_frames(&mut self, frames: FrameLog) {
        self.frames = Some(frames);
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// When QEMU was started.
    pub fn launched(&self) -> Instant {
        self.launched
    }

    /// The command line, ready to paste (see [`Machine::to_paste`]).
    pub fn command_line(&self) -> &str {
        &self.command
    }

    /// Waits for a console line numbered `from` or later that contains
    /// `pattern`. Lines that were printed before the call count.
    ///
    /// # Errors
    /// No such line within `bound`, or the guest came to an end before it.
    pub fn wait_for_line(&self, from: u64, pattern: &str, bound: Duration) -> Result<Line> {
        self.wait(&format!("'{pattern}' on the console"), bound, |state| {
            state
                .console
                .since(from)
                .find(|line| line.text.contains(pattern))
                .cloned()
        })
    }

    /// [`Guest::wait_for_line`] from the first line on.
    ///
    /// # Errors
    /// As [`Guest::wait_for_line`].
    pub fn wait_for_console(&self, pattern: &str, bound: Duration) -> Result<Line> {
        self.wait_for_line(0, pattern, bound)
    }

    /// The console lines numbered `from` or later that are still kept (the
    /// last 4096).
    pub fn console_since(&self, from: u64) -> Vec<Line> {
        self.shared.lock().console.since(from).cloned().collect()
    }

    /// Waits up to `bound` for console lines numbered `from` or later; an
    /// empty answer means that none came.
    ///
    /// # Errors
    /// The guest came to an end and has no more lines.
    pub fn next_lines(&self, from: u64, bound: Duration) -> Result<Vec<Line>> {
        let lines = self.wait("more console lines", bound, |state| {
            let lines: Vec<Line> = state.console.since(from).cloned().collect();
            (!lines.is_empty()).then_some(lines)
        });
        match lines {
            Err(failure) if matches!(failure.cause, Cause::Timeout { .. }) => Ok(Vec::new()),
            other => other,
        }
    }

    /// Waits for QEMU's end.
    ///
    /// # Errors
    /// QEMU still runs after `bound`, or has paused the guest for ever.
    pub fn wait_for_exit(&self, bound: Duration) -> Result<Exit> {
        self.wait("QEMU to end", bound, |state| state.ended())
    }

    /// Fails if the guest has come to an end or stands still.
    ///
    /// # Errors
    /// Why it does not run.
    pub fn check(&self) -> Result<()> {
        match self.wait("the next operation", Duration::ZERO, |_| None::<()>) {
            Err(failure) if !matches!(failure.cause, Cause::Timeout { .. }) => Err(failure),
            _ => Ok(()),
        }
    }

    /// Whether QEMU has ended, and how.
    pub fn exit(&self) -> Option<Exit> {
        self.shared.lock().ended()
    }

    /// Runs a command of QEMU's monitor.
    ///
    /// # Errors
    /// QEMU refuses the command or does not answer.
    pub fn qmp(&self, name: &str, arguments: Value) -> Result<Value> {
        let id = self.monitor.send(&self.shared, name, arguments);
        let id =
            id.map_err(|source| self.failure(Cause::System("write to QEMU's monitor", source)))?;
        let what = format!("QEMU's answer to '{name}'");
        let reply = self.wait_even_if_stopped(&what, MONITOR_BOUND, |state| {
            state.monitor.replies.remove(&id)
        })?;
        reply.map_err(|source| {
            let command = name.to_owned();
            self.failure(Cause::Command { command, source })
        })
    }

    /// Kills QEMU and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// A failure report of this guest as it is now.
    pub fn failure(&self, cause: Cause) -> Box<Failure> {
        let state = self.shared.lock();
        Box::new(Failure {
            cause,
            command: self.command.clone(),
            console: state.console.tail(failure::CONSOLE_LINES),
            messages: state.messages.tail(failure::MESSAGE_LINES),
            trace: self.trace.as_deref().map(failure::tail_of_file),
            frames: self.frames.as_ref().map(FrameLog::describe),
        })
    }

    /// Waits until `look` finds something; what stops the guest ends the wait.
    fn wait<T>(
        &self,
        what: &str,
        bound: Duration,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T> {
        let stopped = |state: &State, waiting_for: String| {
            let exit = state
                .ended()
                .map(|exit| (exit, state.monitor.shutdown.clone()));
            match (exit, &state.monitor.stopped) {
                (Some((exit, reason)), _) => Some(Cause::Ended {
                    exit,
                    reason,
                    waiting_for,
                }),
                (None, Some(reason)) => Some(Cause::Paused {
                    reason: reason.clone(),
                    waiting_for,
                }),
                (None, None) => None,
            }
        };
        self.wait_inner(what, bound, &mut look, stopped)
    }

    /// Like `wait`, but a paused guest does not end it: for the monitor.
    fn wait_even_if_stopped<T>(
        &self,
        what: &str,
        bound: Duration,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T> {
        self.wait_inner(what, bound, &mut look, |state, waiting_for| {
            Some(Cause::Ended {
                exit: state.ended()?,
                reason: state.monitor.shutdown.clone(),
                waiting_for,
            })
        })
    }

    fn wait_inner<T>(
        &self,
        what: &str,
        bound: Duration,
        look: &mut dyn FnMut(&mut State) -> Option<T>,
        stopped: impl Fn(&State, String) -> Option<Cause>,
    ) -> Result<T> {
        let start = Instant::now();
        let mut state = self.shared.lock();
        let cause = loop {
            if let Some(found) = look(&mut state) {
                return Ok(found);
            }
            if let Some(cause) = stopped(&state, what.to_owned()) {
                break cause;
            }
            if interrupt::requested() {
                break Cause::Interrupted;
            }
            let left = bound.saturating_sub(start.elapsed());
            if left.is_zero() {
                break Cause::Timeout {
                    waiting_for: what.to_owned(),
                    bound,
                };
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left.min(SLICE))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        };
        drop(state);
        Err(self.failure(cause))
    }
}

impl State {
    /// QEMU's end, once everything that it printed has been read.
    fn ended(&self) -> Option<Exit> {
        let status = self.exit?;
        (self.console.closed && self.messages.closed)
            .then(|| Exit::decode(status, !self.messages.is_empty()))
    }
}
