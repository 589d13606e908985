//! The connection to QEMU's monitor.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use super::Shared;
use super::qmp::{self, CommandError, Event, Message};

/// The numbers of the commands that the monitor sends by itself.
const CAPABILITIES: u64 = 0;
const STATUS: u64 = 1;

/// What the monitor has said.
#[derive(Debug, Default)]
pub(super) struct State {
    /// There may be more to read: QEMU's last reply can come after its end is seen.
    pub open: bool,
    /// Commands are accepted.
    pub connected: bool,
    /// Why the guest stands still, if it does and nobody asked for it.
    pub stopped: Option<String>,
    /// Why QEMU is about to end.
    pub shutdown: Option<String>,
    /// Replies not yet fetched, by the number of the command.
    pub replies: HashMap<u64, Result<Value, CommandError>>,
}

/// The writing half, and the thread of the reading half.
#[derive(Debug)]
pub(super) struct Monitor {
    stream: Arc<Mutex<Option<UnixStream>>>,
    next: AtomicU64,
    cancelled: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

/// Listens on a socket that QEMU will connect to.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Monitor {
    /// Accepts QEMU's connection and reads from it until it ends.
    pub fn start(listener: UnixListener, shared: &Arc<Shared>) -> Self {
        shared.update(|state| state.monitor.open = true);
        let stream = Arc::new(Mutex::new(None));
        let cancelled = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let (stream, cancelled, shared) = (
                Arc::clone(&stream),
                Arc::clone(&cancelled),
                Arc::clone(shared),
            );
            move || {
                if let Some(accepted) = accept(&listener, &shared, &cancelled) {
                    read(accepted, &stream, &shared);
                }
                shared.update(|state| state.monitor.open = false);
            }
        });
        Self {
            stream,
            next: AtomicU64::new(STATUS + 1),
            cancelled,
            reader: Some(reader),
        }
    }

    /// Sends a command; its reply will appear under the returned number.
    pub fn send(&self, shared: &Shared, name: &str, arguments: Value) -> io::Result<u64> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        if matches!(name, "cont" | "system_reset") {
            shared.update(|state| state.monitor.stopped = None);
        }
        write(&self.stream, &qmp::command(id, name, arguments))?;
        Ok(id)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        let stream = self
            .stream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(stream) = stream {
            // Ends the reader; an error means that it has ended already.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Waits for QEMU, which connects within milliseconds or ends.
fn accept(listener: &UnixListener, shared: &Shared, cancelled: &AtomicBool) -> Option<UnixStream> {
    loop {
        // Asked first: what connected before its end is still accepted.
        let is_last = cancelled.load(Ordering::Relaxed) || shared.lock().exit.is_some();
        match listener.accept() {
            Ok((stream, _)) => {
                // A QEMU that does not read its monitor must not hold us.
                let bound = Some(Duration::from_secs(5));
                let ready = stream
                    .set_nonblocking(false)
                    .and_then(|()| stream.set_write_timeout(bound));
                return ready.is_ok().then_some(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !is_last => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(_) => return None,
        }
    }
}

fn read(accepted: UnixStream, stream: &Mutex<Option<UnixStream>>, shared: &Shared) {
    let Ok(writer) = accepted.try_clone() else {
        return;
    };
    *stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
    let mut lines = BufReader::new(accepted);
    let mut line = String::new();
    loop {
        line.clear();
        match lines.read_line(&mut line) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
        match Message::parse(&line) {
            Ok(message) => handle(message, stream, shared),
            Err(error) => log::warn!("{error}"),
        }
    }
}

fn handle(message: Message, stream: &Mutex<Option<UnixStream>>, shared: &Shared) {
    let say = |id, name| {
        // A monitor that is gone shows as QEMU's end.
        let _ = write(stream, &qmp::command(id, name, Value::Null));
    };
    match message {
        Message::Greeting => say(CAPABILITIES, "qmp_capabilities"),
        Message::Reply(CAPABILITIES, _) => shared.update(|state| state.monitor.connected = true),
        Message::Reply(STATUS, result) => {
            let status = result.ok();
            let status = status.as_ref().and_then(|r| r["status"].as_str());
            // `paused` is what a `stop` command makes; every other state in
            // which the CPUs stand still is an error.
            if let Some(reason) =
                status.filter(|s| !matches!(*s, "running" | "paused" | "prelaunch"))
            {
                shared.update(|state| state.monitor.stopped = Some(reason.to_owned()));
            }
        }
        Message::Reply(id, result) => shared.update(|state| {
            state.monitor.replies.insert(id, result);
        }),
        Message::Event(Event::Stop) => say(STATUS, "query-status"),
        Message::Event(Event::GuestPanicked) => {
            shared.update(|state| state.monitor.stopped = Some("guest-panicked".into()));
        }
        Message::Event(Event::Shutdown { reason, .. } | Event::Reset { reason, .. }) => {
            shared.update(|state| state.monitor.shutdown = Some(reason));
        }
        Message::Event(Event::Resume | Event::Other(_)) => {}
    }
}

fn write(stream: &Mutex<Option<UnixStream>>, line: &str) -> io::Result<()> {
    match &mut *stream.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(stream) => stream.write_all(line.as_bytes()),
        None => Err(io::ErrorKind::NotConnected.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::Vmm;

    #[test]
    fn a_reply_that_is_read_after_qemus_end_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp.sock");
        let listener = listen(&path).unwrap();
        let shared = Arc::new(Shared::default());
        let mut qemu = UnixStream::connect(&path).unwrap();
        let monitor = Monitor::start(listener, &shared);
        shared.update(|state| {
            state.exit = Some(std::process::ExitStatus::default());
            state.console.closed = true;
            state.messages.closed = true;
        });
        assert_eq!(shared.lock().ended(Vmm::Qemu), None);
        qemu.write_all(b"{\"return\": {}, \"id\": 7}\n").unwrap();
        drop(qemu);
        let mut state = shared.lock();
        while state.ended(Vmm::Qemu).is_none() {
            state = shared.changed.wait(state).unwrap();
        }
        assert!(state.monitor.replies.contains_key(&7));
        drop(state);
        drop(monitor);
    }
}
