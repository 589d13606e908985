//! A running guest: the VMM's process, the guest's console, QEMU's monitor.
//!
//! A [`Guest`] never outlives its handle: dropping it (also by a panic that
//! unwinds) kills and reaps QEMU, and the kernel kills QEMU when the runner
//! itself dies by `SIGKILL`. Every wait has a bound, and ends early when QEMU
//! ends, when QEMU pauses the guest after an internal error, when the guest
//! panics, and when the user presses Ctrl-C.

mod exit;
mod failure;
pub mod gdb;
mod lines;
pub mod memory;
pub mod migration;
mod monitor;
mod process;
pub mod qmp;

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use exit::Exit;
pub use failure::{Cause, Failure};
pub use lines::Line;

use crate::interrupt;
use crate::qemu::{Machine, Vmm};
use crate::scratch::Scratch;
use crate::vmm;
use crate::wire::FrameLog;
use lines::Log;
use monitor::Monitor;
use process::Process;

/// How long a wait sleeps before it looks for Ctrl-C again.
const SLICE: Duration = Duration::from_millis(50);

/// How long QEMU may take to connect its monitor or to answer a command.
const MONITOR_BOUND: Duration = Duration::from_secs(120);

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

/// A guest in QEMU, or in another VMM, which has no monitor.
#[derive(Debug)]
pub struct Guest {
    shared: Arc<Shared>,
    vmm: Vmm,
    process: Process,
    monitor: Option<Monitor>,
    launched: Instant,
    command: String,
    trace: Option<PathBuf>,
    frames: Option<FrameLog>,
    /// Holds the monitor's socket, or a file of the VMM's; goes with the guest.
    _directory: Scratch,
}

impl Guest {
    /// Starts this machine's VMM. QEMU is waited for until its monitor (`qmp` is set here) is
    /// connected, unless the guest is done before that.
    ///
    /// # Errors
    /// The VMM cannot be started, or QEMU gives up or stays silent before its monitor is
    /// connected: the failure holds what it said.
    pub fn launch(machine: &Machine) -> Result<Self> {
        let mut machine = machine.clone();
        let command = vmm::command_line(&machine);
        let vmm = machine.vmm;
        let early = |cause: Cause| Box::new(Failure::before_launch(vmm, cause, command.clone()));
        let directory = Scratch::new("vmm").map_err(|error| early(error.into()))?;
        let socket = directory.socket("qmp.sock");
        let socket = socket.map_err(|error| early(error.into()))?;
        let listener = (vmm == Vmm::Qemu).then(|| monitor::listen(&socket));
        let listener = listener
            .transpose()
            .map_err(|source| early(directory.refuses(source).into()))?;
        machine.qmp = listener.is_some().then_some(socket);
        let shared = Arc::new(Shared::default());
        let launched = Instant::now();
        let process = Process::spawn(&machine, directory.path(), &shared, launched);
        let process = process.map_err(|source| {
            let program = machine.program.clone();
            early(Cause::Spawn { program, source })
        })?;
        let guest = Self {
            vmm,
            monitor: listener.map(|listener| Monitor::start(listener, &shared)),
            shared,
            process,
            launched,
            command,
            trace: machine.trace.map(|trace| trace.directory),
            frames: None,
            _directory: directory,
        };
        if guest.monitor.is_none() {
            return Ok(guest);
        }
        guest.wait("QEMU's monitor", MONITOR_BOUND, |state| {
            // On a busy machine a short guest is quicker than we are.
            let is_done = matches!(state.ended(Vmm::Qemu), Some(Exit::Guest(_) | Exit::Orderly));
            (state.monitor.connected || is_done).then_some(())
        })?;
        Ok(guest)
    }

    /// The wire whose last frames belong into a report of a failure.
    pub fn attach_frames(&mut self, frames: FrameLog) {
        self.frames = Some(frames);
    }

    /// The VMM's process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// When the VMM was started.
    pub fn launched(&self) -> Instant {
        self.launched
    }

    /// The command line, ready to paste (see [`vmm::command_line`]).
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

    /// What the VMM itself has printed, such as why it refuses to start.
    pub fn messages(&self) -> Vec<String> {
        let state = self.shared.lock();
        state
            .messages
            .since(0)
            .map(|line| line.text.clone())
            .collect()
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

    /// Waits for the VMM's end.
    ///
    /// # Errors
    /// It still runs after `bound`, or has paused the guest for ever.
    pub fn wait_for_exit(&self, bound: Duration) -> Result<Exit> {
        self.wait("the VMM to end", bound, |state| state.ended(self.vmm))
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

    /// Whether the VMM has ended, and how.
    pub fn exit(&self) -> Option<Exit> {
        self.shared.lock().ended(self.vmm)
    }

    /// Runs a command of QEMU's monitor.
    ///
    /// # Errors
    /// QEMU refuses the command or does not answer, or this is another VMM.
    pub fn qmp(&self, name: &str, arguments: Value) -> Result<Value> {
        let Some(monitor) = &self.monitor else {
            let text = format!("{} has no monitor that takes '{name}'", self.vmm);
            return Err(self.failure(Cause::Other(text)));
        };
        let id = monitor.send(&self.shared, name, arguments);
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

    /// Kills the VMM and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// A failure report of this guest as it is now.
    pub fn failure(&self, cause: Cause) -> Box<Failure> {
        let state = self.shared.lock();
        Box::new(Failure {
            vmm: self.vmm,
            cause,
            command: self.command.clone(),
            console: state.console.tail(failure::CONSOLE_LINES),
            messages: state.messages.tail(failure::MESSAGE_LINES),
            trace: self.trace.as_deref().map(failure::tails_of_logs),
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
                .ended(self.vmm)
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
                exit: state.ended(self.vmm)?,
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

impl qmp::Monitored for Guest {
    fn qmp(&self, name: &str, arguments: Value) -> anyhow::Result<Value> {
        Ok(self.qmp(name, arguments)?)
    }
}

impl State {
    /// The VMM's end, once everything that it printed and answered has been read.
    fn ended(&self, vmm: Vmm) -> Option<Exit> {
        let status = self.exit?;
        (self.console.closed && self.messages.closed && !self.monitor.open)
            .then(|| Exit::decode(vmm, status, !self.messages.is_empty()))
    }
}
