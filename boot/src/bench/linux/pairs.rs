//! TCP in time, ours and Linux's in turn: what else the host does falls on both of a pair alike.

use std::time::Duration;

use serde::Serialize;

use super::{AtTap, Options, Spread, Way, Which, timed};
use crate::accel::Decision;
use crate::command::{Progress, Sink};
use crate::session::{SessionError, Settings};

/// Both ways.
#[derive(Clone, Debug, Serialize)]
pub struct Times {
    /// What executed both guests: `tcg` or `kvm`.
    pub accelerator: &'static str,
    /// Why that.
    pub reason: String,
    /// MiB of a transfer.
    pub mib: usize,
    /// Out and in.
    pub ways: Vec<Timed>,
}

/// One way.
#[derive(Clone, Debug, Serialize)]
pub struct Timed {
    /// Which.
    pub way: Way,
    /// In the order of measuring.
    pub pairs: Vec<Pair>,
    /// How many times as fast as Linux ours is, by pairs.
    pub ratio: Spread,
}

/// MiB a second of two transfers, one right after the other.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pair {
    /// Our guest.
    pub kickpath: f64,
    /// Linux.
    pub linux: f64,
}

/// Boots both and measures them.
pub(super) fn measure(
    which: &[Which<'_>; 2],
    settings: &Settings,
    accel: Decision,
    options: Options,
    sink: &mut Sink<'_>,
) -> Result<Times, SessionError> {
    sink(Progress::Step("Booting both for TCP in time"));
    let [ours, linux] = which;
    let ours = AtTap::start(ours, settings, |_, _| (), sink)?;
    let linux = AtTap::start(linux, settings, |_, _| (), sink)?;
    let Options { rounds, mib, .. } = options;
    let speed = |guest: &AtTap, way, mib: usize| {
        let took: Duration = timed(|| guest.transfer(way, mib << 20))?;
        Ok::<_, SessionError>(mib as f64 / took.as_secs_f64())
    };
    let mut ways = Vec::new();
    for way in [Way::Out, Way::In] {
        for guest in [&ours, &linux] {
            speed(guest, way, mib.div_ceil(4))?;
        }
        let mut measured = Vec::new();
        for pair in 0..rounds {
            sink(Progress::Step(&format!(
                "Pair {} of {rounds}, TCP {}",
                pair + 1,
                way.word()
            )));
            // Neither is always the first.
            let (kickpath, linux) = if pair.is_multiple_of(2) {
                let kickpath = speed(&ours, way, mib)?;
                (kickpath, speed(&linux, way, mib)?)
            } else {
                let linux = speed(&linux, way, mib)?;
                (speed(&ours, way, mib)?, linux)
            };
            measured.push(Pair { kickpath, linux });
        }
        ways.push(Timed {
            way,
            ratio: Spread::of(measured.iter().map(|pair| pair.kickpath / pair.linux)),
            pairs: measured,
        });
    }
    Ok(Times {
        accelerator: accel.accel.word(),
        reason: accel.reason,
        mib,
        ways,
    })
}
