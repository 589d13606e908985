//! The host's end of a datagram cable with nobody behind it: frames are read
//! only when the test reads them.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kickpath::qemu::Net;
use kickpath::wire::MAX_FRAME;
use tempfile::TempDir;

/// A cable. See the module.
pub struct RawWire {
    socket: UnixDatagram,
    qemu: PathBuf,
    host: PathBuf,
    /// Holds the sockets' names.
    _directory: TempDir,
}

impl RawWire {
    /// A cable for a QEMU that is yet to be started.
    ///
    /// # Errors
    /// The directory or the socket cannot be made.
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("kickpath-raw-").tempdir()?;
        let host = directory.path().join("host.sock");
        let qemu = directory.path().join("qemu.sock");
        Ok(Self {
            socket: UnixDatagram::bind(&host)?,
            qemu,
            host,
            _directory: directory,
        })
    }

    /// QEMU's half of the description of this cable.
    pub fn net(&self) -> Net {
        Net::Dgram {
            qemu: self.qemu.clone(),
            host: self.host.clone(),
        }
    }

    /// Sends a frame; `false` when QEMU did not take it within `bound`.
    ///
    /// # Errors
    /// QEMU is not there.
    pub fn send(&self, frame: &[u8], bound: Duration) -> Result<bool> {
        self.socket.set_write_timeout(Some(bound))?;
        match self.socket.send_to(frame, &self.qemu) {
            Ok(length) => {
                ensure!(length == frame.len(), "half a datagram was sent");
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("cannot send to QEMU"),
        }
    }

    /// The next frame, if one comes within `bound`.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn receive(&self, bound: Duration) -> Result<Option<Vec<u8>>> {
        self.socket
            .set_read_timeout(Some(bound.max(Duration::from_millis(1))))?;
        let mut frame = vec![0; MAX_FRAME];
        match self.socket.recv(&mut frame) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("cannot receive from QEMU"),
        }
    }

    /// Receives until `look` finds what it wants.
    ///
    /// # Errors
    /// It does not come within `bound`.
    pub fn receive_until<T>(
        &self,
        what: &str,
        bound: Duration,
        mut look: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + bound;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "{what} did not come within {bound:?}");
            if let Some(frame) = self.receive(left)?
                && let Some(found) = look(&frame)
            {
                return Ok(found);
            }
        }
    }
}
