//! A tracepoint of the kick path.

use kickpath_abi::config::Bench;
use serde::{Deserialize, Serialize};

use super::{alone, parse_line, wrong};
use crate::session::{Prepared, SessionError};

/// What tracepoints cost, sums over all of a loop with the loop itself left
/// out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracepoint {
    /// Tracepoints.
    pub points: u64,
    /// Guest instructions while tracing is off.
    pub off: u64,
    /// Guest instructions while it is on, and each leaves a record.
    pub on: u64,
    /// Records for which the ring had no room.
    pub lost: u64,
}

impl Tracepoint {
    /// Instructions that one may cost while tracing is off.
    pub const OFF: f64 = 2.0;

    /// Instructions that one may cost while tracing is on.
    pub const ON: f64 = 45.0;

    /// One, off and on.
    pub fn each(&self) -> [f64; 2] {
        [self.off, self.on].map(|sum| sum as f64 / self.points.max(1) as f64)
    }

    /// The limits that are missed.
    pub(super) fn missed(&self) -> Vec<String> {
        let [off, on] = self.each();
        [("off", off, Self::OFF), ("on", on, Self::ON)]
            .iter()
            // The loop's own ends are not the tracepoint's.
            .filter(|(_, value, most)| *value > most + 0.1)
            .map(|(state, value, most)| {
                format!("a tracepoint that is {state}: {value:.1} instructions, at most {most}")
            })
            .collect()
    }
}

/// The guest's line about tracepoints.
#[derive(Deserialize)]
struct Line {
    trace: Tracepoint,
}

/// What a tracepoint costs, on a machine of its own.
///
/// # Errors
/// The guest does not come up, stops, or reports no numbers.
pub(super) fn measure(prepared: Prepared) -> Result<Tracepoint, SessionError> {
    let (line, guest) = alone(prepared, Bench::Trace, |_| (), |_| Ok(()))?;
    let Line { trace } = parse_line(&line).map_err(|error| wrong(&guest, &error))?;
    if trace.points == 0 || trace.lost != 0 {
        return Err(wrong(
            &guest,
            &format!("the guest measured nothing: '{line}'"),
        ));
    }
    Ok(trace)
}
