//! QEMU's process: started, read, reaped.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpid, getppid};

use super::Shared;
use super::lines::read_lines;
use crate::qemu::{Machine, Net};

/// The process and the threads that belong to it.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    shared: Arc<Shared>,
    reaper: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts QEMU; its output goes into `shared`.
    pub fn spawn(machine: &Machine, shared: &Arc<Shared>, launched: Instant) -> io::Result<Self> {
        let mut command = Command::new(&machine.qemu);
        command
            .args(machine.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Not in the terminal's foreground group: Ctrl-C reaches the
            // runner alone, which then ends QEMU in its own order.
            .process_group(0);
        let inherited = match machine.nic.as_ref().map(|nic| &nic.net) {
            Some(Net::TapFds(queues)) => queues.clone(),
            _ => Vec::new(),
        };
        let parent = getpid();
        // SAFETY: the closure runs in the forked child and makes system calls
        // that are async-signal-safe; it neither allocates nor takes a lock
        // (`io::Error` from an `Errno` holds a number only).
        unsafe {
            command.pre_exec(move || in_child(parent, &inherited));
        }

        let (sender, receiver) = mpsc::channel();
        let state = Arc::clone(shared);
        // The signal of a parent's death comes when the *thread* that forked
        // dies, so that thread must live as long as QEMU: it is the reaper.
        let reaper =
            thread::Builder::new()
                .name("qemu-reaper".into())
                .spawn(move || match command.spawn() {
                    Ok(child) => {
                        let pid = Pid::from_raw(child.id().cast_signed());
                        // The receiver waits for exactly this message.
                        let _ = sender.send(Ok(pid));
                        attend(child, pid, &state, launched);
                    }
                    Err(error) => {
                        let _ = sender.send(Err(error));
                    }
                })?;
        let pid = receiver
            .recv()
            .map_err(|_| io::Error::other("the thread that starts QEMU has died"))??;
        Ok(Self {
            pid,
            shared: Arc::clone(shared),
            reaper: Some(reaper),
        })
    }

    pub fn id(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Kills QEMU, if it still runs, and waits until it is reaped.
    pub fn kill(&mut self) {
        {
            // Under the lock `exit` is set together with the reaping, so that
            // the id cannot belong to another process here.
            let state = self.shared.lock();
            if state.exit.is_none() {
                // The whole group: `--qemu` may name a script around QEMU. The
                // group exists: the only error left is "no permission", and
                // then there is nothing that we could do.
                let _ = killpg(self.pid, Signal::SIGKILL);
            }
        }
        if let Some(reaper) = self.reaper.take() {
            // A panic of the reaper was printed when it happened.
            let _ = reaper.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs in the child between fork and exec.
fn in_child(parent: Pid, inherited: &[RawFd]) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before that line.
    if getppid() != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    for &fd in inherited {
        // SAFETY: plain system call on a number; a closed descriptor is an
        // error, not undefined behaviour.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        // SAFETY: as above.
        if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFD, flags & !libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reads what QEMU prints until it ends, and reaps it.
fn attend(mut child: Child, pid: Pid, shared: &Arc<Shared>, launched: Instant) {
    let console = child.stdout.take();
    let messages = child.stderr.take();
    thread::scope(|scope| {
        scope.spawn(|| {
            if let Some(console) = console {
                read_lines(console, |text| {
                    shared.update(|state| state.console.push(launched.elapsed(), text));
                });
            }
            shared.update(|state| state.console.closed = true);
        });
        scope.spawn(|| {
            if let Some(messages) = messages {
                read_lines(messages, |text| {
                    shared.update(|state| state.messages.push(launched.elapsed(), text));
                });
            }
            shared.update(|state| state.messages.closed = true);
        });
        // Wait without reaping, then reap under the lock, see `kill`.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid), flags) == Err(nix::errno::Errno::EINTR) {}
        shared.update(|state| {
            state.exit = Some(child.wait().unwrap_or_default());
        });
    });
}
