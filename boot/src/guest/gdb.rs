//! GDB's remote serial protocol, as QEMU's server speaks it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::qmp::Monitored;

/// How long QEMU may take for one answer, and a guest until it comes to a breakpoint.
const BOUND: Duration = Duration::from_secs(30);

/// The longest packet, in bytes: all registers are fewer.
const MAX_PACKET: usize = 16384;

/// A connection to QEMU's GDB server. While there is one, and until it is detached, the
/// guest stands still unless it is let go.
pub struct Debugger(UnixStream);

impl Debugger {
    /// Has QEMU serve debuggers at this socket, and connects: the guest stops.
    ///
    /// # Errors
    /// QEMU refuses, or the socket cannot be made or reached.
    pub fn attach(guest: &impl Monitored, socket: &Path) -> Result<Self> {
        let server = format!("gdbserver unix:{},server=on,wait=off", socket.display());
        guest.qmp("human-monitor-command", json!({ "command-line": server }))?;
        let deadline = Instant::now() + BOUND;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => return Err(error.into()),
                Err(_) => std::thread::yield_now(),
            }
        };
        stream.set_read_timeout(Some(BOUND))?;
        stream.set_write_timeout(Some(BOUND))?;
        Ok(Self(stream))
    }

    /// Sends a packet; the answer must be `OK`.
    ///
    /// # Errors
    /// It is another, or none comes.
    pub fn command(&mut self, text: &str) -> Result<()> {
        match self.ask(text)?.as_slice() {
            b"OK" => Ok(()),
            other => bail!("'{text}': {}", String::from_utf8_lossy(other)),
        }
    }

    /// Sends a packet, and returns the answer.
    ///
    /// # Errors
    /// None comes.
    pub fn ask(&mut self, text: &str) -> Result<Vec<u8>> {
        self.send(text)?;
        loop {
            match self.packet()? {
                // That it has stopped, which it says when it likes.
                packet if matches!(packet.first(), Some(b'T' | b'S')) => {}
                packet => return Ok(packet),
            }
        }
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn go(&mut self) -> Result<()> {
        self.send("c")
    }

    /// Has the guest execute one instruction.
    ///
    /// # Errors
    /// It does not come back from it.
    pub fn step(&mut self) -> Result<()> {
        self.send("s")?;
        self.stopped()
    }

    /// Waits until the guest stops.
    ///
    /// # Errors
    /// It does not within 30 s.
    pub fn stopped(&mut self) -> Result<()> {
        loop {
            let packet = self.packet().context("the guest has not come there")?;
            match packet.first() {
                Some(b'T' | b'S') => return Ok(()),
                Some(b'W' | b'X') => bail!("the guest has ended"),
                _ => {}
            }
        }
    }

    /// A register of 64 bits, by its number in GDB's order for x86-64: 5 is `rdi`, 16 `rip`.
    ///
    /// # Errors
    /// QEMU does not tell.
    pub fn register(&mut self, number: usize) -> Result<u64> {
        let all = self.ask("g")?;
        let digits = all.get(16 * number..16 * (number + 1));
        let text = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let value = text.and_then(|text| u64::from_str_radix(text, 16).ok());
        let value = value.with_context(|| String::from_utf8_lossy(&all).into_owned())?;
        // In the order of its bytes in memory.
        Ok(value.swap_bytes())
    }

    fn send(&mut self, text: &str) -> Result<()> {
        let sum = text.bytes().fold(0u8, u8::wrapping_add);
        Ok(write!(self.0, "${text}#{sum:02x}")?)
    }

    /// The next packet that comes.
    fn packet(&mut self) -> Result<Vec<u8>> {
        // Before it there are acknowledgements.
        while self.byte()? != b'$' {}
        let mut packet = Vec::new();
        loop {
            match self.byte()? {
                b'#' => break,
                byte => packet.push(byte),
            }
            ensure!(packet.len() < MAX_PACKET, "an endless packet");
        }
        let _checksum = (self.byte()?, self.byte()?);
        self.0.write_all(b"+")?;
        Ok(packet)
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.0.read_exact(&mut byte)?;
        let [byte] = byte;
        Ok(byte)
    }
}
