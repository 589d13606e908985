//! The driver beside DPDK's own guest driver, natively: no VM, no root.
//!
//! Both talk to the same vhost-user back end, DPDK's testpmd with `net_vhost`,
//! one after the other in pairs. Counted are the cycles of the CPU's time stamp
//! counter that full bursts of 60-byte frames take in the driver. A sample is 32
//! frames, in one burst or 32, so that what a driver does once for several bursts
//! is in it; the median of all samples counts, because the scheduler strikes few
//! of them. To send, each frame is copied into a buffer and queued, and buffers that came back are
//! taken; to receive, each frame is copied out and its buffer posted again. A
//! burst that found the ring full or empty does not count: its cycles are the
//! back end's.
//!
//!     cargo bench -p kickpath-tests --bench dpdk -- [--only CASE] [--pairs N] [--frames N] [--json]
//!
//! This tells where the cycles of both go:
//!
//!     perf record -e cpu-clock -F 8000 -- cargo bench -p kickpath-tests --bench dpdk -- \
//!         --only 'receive, bursts of 1, split' --pairs 2 --frames 3000000
//!     perf report --sort comm,dso,symbol

#[cfg(target_arch = "x86_64")]
mod back_end;
#[cfg(target_arch = "x86_64")]
mod driver;
#[cfg(target_arch = "x86_64")]
mod front_end;
#[cfg(target_arch = "x86_64")]
mod report;
#[cfg(target_arch = "x86_64")]
mod virtio_user;

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    eprintln!("this comparison counts cycles by the time stamp counter of x86-64");
}

#[cfg(target_arch = "x86_64")]
fn main() -> anyhow::Result<()> {
    let wanted = Wanted::from_arguments(std::env::args().skip(1))?;
    let Some(wanted) = wanted else {
        return Ok(());
    };
    let peer = virtio_user::build()?;
    let mut rows = Vec::new();
    for case in Case::ALL
        .into_iter()
        .filter(|case| case.to_string().contains(&wanted.only))
    {
        let back_end = back_end::BackEnd::start(case.direction)?;
        let mut pairs = Vec::new();
        for pair in 0..wanted.pairs {
            eprint!("\r{case}: pair {} of {} ", pair + 1, wanted.pairs);
            pairs.push([
                driver::measure(&back_end.socket, case, wanted.frames)?,
                virtio_user::measure(&peer, &back_end.socket, case, wanted.frames)?,
            ]);
        }
        eprint!("\r{:60}\r", "");
        rows.push(report::Row::new(case, &pairs));
    }
    report::print(&rows, &wanted);
    Ok(())
}

/// Frames of a sample: a burst divides them.
#[cfg(target_arch = "x86_64")]
const SAMPLE: u32 = 32;

/// What is to be measured.
#[cfg(target_arch = "x86_64")]
struct Wanted {
    /// Only cases with this in their name.
    only: String,
    /// Measurements of each driver, in turn.
    pairs: usize,
    /// Frames of each measurement.
    frames: u64,
    json: bool,
}

#[cfg(target_arch = "x86_64")]
impl Wanted {
    /// `None` when nothing is to be measured.
    fn from_arguments(arguments: impl Iterator<Item = String>) -> anyhow::Result<Option<Self>> {
        use anyhow::{Context, bail};
        let mut wanted = Self {
            only: String::new(),
            pairs: 9,
            frames: 1_000_000,
            json: false,
        };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            if argument == "--only" {
                wanted.only = arguments.next().context("--only what?")?;
                continue;
            }
            let mut number = || {
                let value = arguments
                    .next()
                    .with_context(|| format!("{argument} of what?"))?;
                value
                    .parse::<u64>()
                    .ok()
                    .filter(|number| *number > 0)
                    .with_context(|| format!("{argument} takes a number from 1 on, not '{value}'"))
            };
            match argument.as_str() {
                "--pairs" => wanted.pairs = usize::try_from(number()?)?,
                "--frames" => wanted.frames = number()?,
                "--json" => wanted.json = true,
                // Cargo's own: it says so to every benchmark.
                "--bench" => {}
                "--help" => {
                    println!("dpdk [--only CASE] [--pairs N] [--frames N] [--json]");
                    return Ok(None);
                }
                _ => bail!(
                    "what is '{argument}'? dpdk [--only CASE] [--pairs N] [--frames N] [--json]"
                ),
            }
        }
        Ok(Some(wanted))
    }
}

/// Which way the frames go, as the driver sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Transmit,
    Receive,
}

/// One measurement.
#[derive(Clone, Copy)]
struct Case {
    direction: Direction,
    /// Frames at once.
    burst: u32,
    /// Packed rings, not split ones.
    packed: bool,
}

impl Case {
    const ALL: [Self; 8] = {
        let mut all = [Self {
            direction: Direction::Transmit,
            burst: 32,
            packed: false,
        }; 8];
        let mut case = 0;
        while case < all.len() {
            all[case].packed = case & 1 != 0;
            if case & 2 != 0 {
                all[case].burst = 1;
            }
            if case & 4 != 0 {
                all[case].direction = Direction::Receive;
            }
            case += 1;
        }
        all
    };
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = match self.direction {
            Direction::Transmit => "send",
            Direction::Receive => "receive",
        };
        let layout = if self.packed { "packed" } else { "split" };
        write!(f, "{direction}, bursts of {}, {layout}", self.burst)
    }
}
