//! DPDK's testpmd as the back end: it drops what the driver sends, or sends
//! without end.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kickpath::install::TESTPMD;
use kickpath_tests::setup;
use tempfile::TempDir;

use super::Direction;

/// How long it may take to listen.
const START: Duration = Duration::from_secs(30);

/// A running back end; it ends when this is dropped.
pub struct BackEnd {
    testpmd: Child,
    /// Where it listens.
    pub socket: PathBuf,
    _directory: TempDir,
}

impl BackEnd {
    /// Starts it on the first CPU; the drivers have the second.
    ///
    /// # Errors
    /// It cannot be had, or does not come up.
    pub fn start(driver: Direction) -> Result<Self> {
        setup::require(&[TESTPMD])?;
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("vhost");
        let log = directory.path().join("log");
        let mode = match driver {
            Direction::Transmit => "rxonly",
            Direction::Receive => "txonly",
        };
        let testpmd = Command::new("dpdk-testpmd")
            .args(["--no-huge", "--no-shconf", "--no-telemetry", "-m", "256"])
            .args(["--no-pci", "--lcores", "0@0,1@0"])
            .arg(format!(
                "--vdev=net_vhost0,iface={},queues=1",
                socket.display()
            ))
            .args([
                "--",
                "--auto-start",
                "--no-mlockall",
                "--total-num-mbufs=8192",
            ])
            .arg(format!("--forward-mode={mode}"))
            // Not interactive, it runs until its input ends.
            .stdin(Stdio::piped())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .spawn()
            .context("dpdk-testpmd")?;
        let mut back_end = Self {
            testpmd,
            socket,
            _directory: directory,
        };
        let deadline = Instant::now() + START;
        while !back_end.socket.exists() {
            let ended = back_end.testpmd.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                bail!("dpdk-testpmd does not come up ({ended:?}):\n{said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(back_end)
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.testpmd.kill();
        let _ = self.testpmd.wait();
    }
}
