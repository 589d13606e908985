//! What Linux says of the frames that go over the tap.

use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kickpath_abi::status::Counters;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::site::{Site, output};

/// The largest frame without segmentation: an Ethernet header and the MTU, in
/// bytes.
pub const LARGEST_FRAME: u64 = 1514;

/// Frames and bytes that the kernel counted on the tap, in one direction.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    frames: u64,
    bytes: u64,
}

impl Count {
    /// `rx` is from the guest, `tx` to it.
    pub fn now(site: &Site, direction: &str) -> Result<Self> {
        let read = |what: &str| -> Result<u64> {
            let file = format!("/sys/class/net/tap0/statistics/{direction}_{what}");
            Ok(output(site.tap.command("cat").arg(file))?.trim().parse()?)
        };
        Ok(Self {
            frames: read("packets")?,
            bytes: read("bytes")?,
        })
    }

    /// Average length of the frames since.
    pub fn average(self, site: &Site, direction: &str) -> Result<u64> {
        let now = Self::now(site, direction)?;
        let frames = now.frames - self.frames;
        ensure!(frames > 0, "no frames");
        Ok((now.bytes - self.bytes) / frames)
    }
}

/// `tcpdump` on the tap.
pub struct Capture {
    child: Child,
    says: io::Lines<BufReader<ChildStderr>>,
    /// Frames that the kernel gave it before it had the filter.
    unfiltered: u64,
    /// Reads what it writes, so that it never waits for us and loses frames.
    reader: Option<JoinHandle<io::Result<Vec<u8>>>>,
}

impl Capture {
    /// Begins; returns when it listens.
    pub fn begin(site: &Site, filter: &str) -> Result<Self> {
        let mut command = site.tap.command("tcpdump");
        command.args(["-i", "tap0", "-Z", "root", "--immediate-mode"]);
        command.args(["-nn", "-U", "-s", "96", "-w", "-", filter]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let stderr = child.stderr.take().context("no stderr")?;
        let mut stdout = child.stdout.take().context("no stdout")?;
        let mut lines = BufReader::new(stderr).lines();
        while let Some(line) = lines.next() {
            if line?.contains("listening on") {
                let reader = std::thread::spawn(move || {
                    let mut pcap = Vec::new();
                    stdout.read_to_end(&mut pcap)?;
                    Ok(pcap)
                });
                let mut capture = Self {
                    child,
                    says: lines,
                    unfiltered: 0,
                    reader: Some(reader),
                };
                let [captured, received] = capture.counts()?;
                capture.unfiltered = received.saturating_sub(captured);
                return Ok(capture);
            }
        }
        anyhow::bail!("tcpdump does not listen: {}", child.wait()?)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(
            Pid::from_raw(i32::try_from(self.child.id())?),
            signal,
        )?)
    }

    /// Frames that it has written, and that the kernel has given it.
    fn counts(&mut self) -> Result<[u64; 2]> {
        // It answers "5 packets captured, 8 packets received by filter, 0 packets dropped".
        self.signal(Signal::SIGUSR1)?;
        let line = self.says.next().context("tcpdump has ended")??;
        let mut numbers = line.split(' ').filter_map(|word| word.parse().ok());
        match [(); 3].map(|()| numbers.next()) {
            [Some(captured), Some(received), Some(0)] => Ok([captured, received]),
            _ => anyhow::bail!("tcpdump says '{line}'"),
        }
    }

    /// Waits until it has read all that the kernel keeps for it: what is left when it ends is
    /// not written.
    fn catch_up(&mut self) -> Result<()> {
        for _ in 0..1000 {
            let [captured, received] = self.counts()?;
            if captured + self.unfiltered >= received {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        anyhow::bail!("tcpdump does not catch up")
    }

    /// Ends; returns the lengths of the frames.
    pub fn end(mut self) -> Result<Vec<u32>> {
        self.catch_up()?;
        // As Ctrl-C does, so that it writes what it has.
        self.signal(Signal::SIGINT)?;
        let reader = self.reader.take().context("it has ended already")?;
        let pcap = reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        self.child.wait()?;
        let mut lengths = Vec::new();
        let mut rest = pcap.get(24..).context("no pcap header")?;
        while let Some(header) = rest.first_chunk::<16>() {
            let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
            lengths.push(word(12));
            rest = rest.get(16 + word(8) as usize..).unwrap_or_default();
        }
        Ok(lengths)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What went over the tap in one direction.
pub struct Seen {
    /// Bytes a frame, by the kernel's count.
    pub average: u64,
    /// Bytes of each frame that passed the filter.
    pub lengths: Vec<u32>,
}

impl Seen {
    /// While `work` is done inside of the tap's namespace; `direction` as in
    /// [`Count::now`].
    pub fn during<T: Send>(
        site: &Site,
        filter: &str,
        direction: &str,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<Self> {
        let capture = Capture::begin(site, filter)?;
        let count = Count::now(site, direction)?;
        site.inside(work)?;
        Ok(Self {
            average: count.average(site, direction)?,
            lengths: capture.end()?,
        })
    }
}

/// Fails when the guest lost a frame or the device gave it nonsense; returns
/// what it has counted.
pub fn no_errors(site: &Site) -> Result<Counters> {
    let counters = site.status()?.counters;
    ensure!(
        counters.rx_dropped + counters.rx_errors + counters.tx_errors == 0,
        "{counters:?}"
    );
    Ok(counters)
}

/// What `ethtool -k` says of the tap: its device features are what the guest
/// takes.
pub fn ethtool(site: &Site, feature: &str) -> Result<bool> {
    let text = output(site.tap.command("ethtool").args(["-k", "tap0"]))?;
    let line = text.lines().find(|line| line.trim().starts_with(feature));
    let line = line.with_context(|| format!("no {feature} in {text}"))?;
    Ok(line.contains(": on"))
}

/// How many are longer than a frame without segmentation.
pub fn large_among(lengths: &[u32]) -> usize {
    let is_large = |length: &&u32| u64::from(**length) > LARGEST_FRAME;
    lengths.iter().filter(is_large).count()
}
