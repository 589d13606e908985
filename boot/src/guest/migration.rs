//! A guest that goes on in another QEMU process: QEMU's state goes by a socket
//! or by a file, and the cable's end in QEMU's place goes to whoever has it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Exit, Guest};
use crate::qemu::{Machine, Net};
use crate::scratch::Scratch;

/// Time for a machine of 128 MiB, of which little is in use.
const BOUND: Duration = Duration::from_secs(60);

/// How often QEMU is asked how far it has come.
const INTERVAL: Duration = Duration::from_millis(10);

/// Where the state of a machine goes on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Straight to the next QEMU, while the guest runs (live migration).
    Live,
    /// Into a file, from which the next QEMU is started when the last is gone.
    File,
}

/// A machine that can move, and the place of its end of the cable.
pub struct Mover {
    machine: Machine,
    /// Where the far end sends its frames to.
    socket: PathBuf,
    directory: Scratch,
    moves: u32,
}

impl Mover {
    /// Moves this machine, whose cable is a [`Net::Dgram`].
    ///
    /// # Errors
    /// It has another cable; a directory cannot be made.
    pub fn new(machine: &Machine) -> Result<Self> {
        let net = machine.nic.as_ref().map(|nic| &nic.net);
        let Some(Net::Dgram { qemu, .. }) = net else {
            bail!("only a datagram cable can be moved");
        };
        Ok(Self {
            socket: qemu.clone(),
            machine: machine.clone(),
            directory: Scratch::new("move")?,
            moves: 0,
        })
    }

    /// Starts a QEMU of the same machine that waits for the state of another,
    /// and the place of its end of the cable.
    ///
    /// # Errors
    /// QEMU does not start.
    fn successor(&mut self) -> Result<(Guest, PathBuf)> {
        self.moves += 1;
        let socket = self.directory.path().join(format!("{}.sock", self.moves));
        let mut machine = self.machine.clone();
        if let Some(Net::Dgram { qemu, .. }) = machine.nic.as_mut().map(|nic| &mut nic.net) {
            qemu.clone_from(&socket);
        }
        machine.extra.extend(["-incoming", "defer"].map(Into::into));
        Ok((Guest::launch(&machine)?, socket))
    }

    /// Has `guest` go on in another QEMU process. The last one has ended by then.
    ///
    /// # Errors
    /// One of the two refuses, with what it says.
    pub fn move_on(&mut self, guest: &mut Guest, route: Route) -> Result<()> {
        let state = self.directory.path().join("state");
        match route {
            Route::Live => {
                let (next, socket) = self.successor()?;
                let uri = format!("unix:{}", state.display());
                next.qmp("migrate-incoming", json!({ "uri": uri }))?;
                guest.qmp("migrate", json!({ "uri": uri }))?;
                wait(guest, Some(&next))?;
                self.plug_in(&socket)?;
                guest.kill();
                wait_until_running(&next)?;
                *guest = next;
            }
            Route::File => {
                let uri = format!("exec:cat > {}", state.display());
                guest.qmp("migrate", json!({ "uri": uri }))?;
                wait(guest, None)?;
                guest.kill();
                let (next, socket) = self.successor()?;
                let uri = format!("exec:cat {}", state.display());
                next.qmp("migrate-incoming", json!({ "uri": uri }))?;
                wait(&next, None)?;
                self.plug_in(&socket)?;
                wait_until_running(&next)?;
                *guest = next;
            }
        }
        Ok(())
    }

    /// Has the far end's frames go to the QEMU at `socket` from now on.
    fn plug_in(&self, socket: &Path) -> Result<()> {
        std::fs::rename(socket, &self.socket)
            .with_context(|| format!("{} to {}", socket.display(), self.socket.display()))
    }
}

/// Has a QEMU of another machine, at whose datagram cable nobody is, refuse the state of `guest`, which
/// goes on where it is. Returns how that QEMU ends, and what it says.
///
/// # Errors
/// It takes the state, or `guest` does not go on.
pub fn refused(guest: &Guest, other: &Machine) -> Result<(Exit, Vec<String>)> {
    let directory = Scratch::new("refused")?;
    let mut other = other.clone();
    if let Some(Net::Dgram { qemu, host }) = other.nic.as_mut().map(|nic| &mut nic.net) {
        *qemu = directory.socket("qemu.sock")?;
        *host = directory.socket("nobody.sock")?;
    }
    other.extra.extend(["-incoming", "defer"].map(Into::into));
    let next = Guest::launch(&other)?;
    let uri = format!("unix:{}", directory.socket("state")?.display());
    next.qmp("migrate-incoming", json!({ "uri": uri }))?;
    guest.qmp("migrate", json!({ "uri": uri }))?;
    let exit = next.wait_for_exit(BOUND)?;
    // The source waits for nobody: it goes on at once, or is told to.
    let deadline = Instant::now() + BOUND;
    while guest.qmp("query-status", Value::Null)?["running"] != true {
        // Refused before the migration has failed for the source, too.
        let _ = guest.qmp("cont", Value::Null);
        ensure!(Instant::now() < deadline, "the guest does not go on");
        std::thread::sleep(INTERVAL);
    }
    let said = next.messages();
    ensure!(
        matches!(exit, Exit::Failed(_) | Exit::Signal(_)),
        "{exit}: {said:?}"
    );
    Ok((exit, said))
}

/// Waits until the migration of `guest` is complete. What the other side says
/// explains a failure.
fn wait(guest: &Guest, other: Option<&Guest>) -> Result<()> {
    let deadline = Instant::now() + BOUND;
    loop {
        let answer = guest.qmp("query-migrate", Value::Null)?;
        match answer["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                let said = other.map(Guest::messages).unwrap_or_default();
                bail!("the migration failed: {answer}; {said:?}");
            }
            _ => ensure!(Instant::now() < deadline, "no end of migration: {answer}"),
        }
        std::thread::sleep(INTERVAL);
    }
}

fn wait_until_running(guest: &Guest) -> Result<()> {
    let deadline = Instant::now() + BOUND;
    loop {
        let status = guest.qmp("query-status", Value::Null)?;
        if status["running"] == true {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "it does not run: {status}");
        std::thread::sleep(INTERVAL);
    }
}
