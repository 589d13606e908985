//! The VMM's process: started, read, reaped.

use std::fs::{self, File};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::Shared;
use super::lines::read_lines;
use crate::command::end_with_us;
use crate::qemu::{Machine, Net, Vmm};
use crate::vmm;

/// The process and the threads that belong to it.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    shared: Arc<Shared>,
    reaper: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts the VMM, which may have files in `directory`; its output goes into `shared`.
    pub fn spawn(
        machine: &Machine,
        directory: &Path,
        shared: &Arc<Shared>,
        launched: Instant,
    ) -> io::Result<Self> {
        let invocation = vmm::invocation(machine, directory);
        if let Some((file, text)) = invocation.file {
            fs::write(file, text)?;
        }
        let mut command = Command::new(&machine.program);
        if machine.vmm == Vmm::Kvmtool {
            // It leaves a socket there.
            command.env("HOME", directory);
        }
        command
            .args(invocation.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Not in the terminal's foreground group: Ctrl-C reaches the
            // runner alone, which then ends the VMM in its own order.
            .process_group(0);
        let (mut inherited, mut namespace) = (Vec::new(), None);
        match machine.nic.as_ref().map(|nic| &nic.net) {
            Some(Net::TapFds(queues)) => inherited.clone_from(queues),
            Some(Net::TapName {
                namespace: Some(file),
                ..
            }) => namespace = Some(File::open(file)?),
            _ => {}
        }
        end_with_us(&mut command, Signal::SIGKILL);
        // SAFETY: the closure runs in the forked child and makes system calls
        // that are async-signal-safe; it neither allocates nor takes a lock
        // (`io::Error` from an `Errno` holds a number only).
        unsafe {
            command.pre_exec(move || inherit(&inherited, namespace.as_ref()));
        }

        let (sender, receiver) = mpsc::channel();
        let state = Arc::clone(shared);
        // The signal of a parent's death comes when the *thread* that forked
        // dies, so that thread must live as long as the VMM: it is the reaper.
        let reaper =
            thread::Builder::new()
                .name("vmm-reaper".into())
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
            .map_err(|_| io::Error::other("the thread that starts the VMM has died"))??;
        Ok(Self {
            pid,
            shared: Arc::clone(shared),
            reaper: Some(reaper),
        })
    }

    pub fn id(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Kills the VMM, if it still runs, and waits until it is reaped.
    pub fn kill(&mut self) {
        {
            // Under the lock `exit` is set together with the reaping, so that
            // the id cannot belong to another process here.
            let state = self.shared.lock();
            if state.exit.is_none() {
                // The whole group: `--qemu` may name a script. The
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
fn inherit(inherited: &[RawFd], namespace: Option<&File>) -> io::Result<()> {
    if let Some(namespace) = namespace {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
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

/// Reads what the VMM prints until it ends, and reaps it.
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
