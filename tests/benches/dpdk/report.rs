//! The figures, for people and scripts.

use serde_json::json;

use super::{Case, Wanted};

/// One case: minimum, median and maximum of each figure.
pub struct Row {
    case: Case,
    ours: [f64; 3],
    theirs: [f64; 3],
    /// Ours by theirs, pair by pair.
    ratio: [f64; 3],
}

impl Row {
    /// Of pairs of cycles a frame, ours first; at least one.
    pub fn new(case: Case, pairs: &[[f64; 2]]) -> Self {
        Self {
            case,
            ours: spread(pairs.iter().map(|pair| pair[0])),
            theirs: spread(pairs.iter().map(|pair| pair[1])),
            ratio: spread(pairs.iter().map(|pair| pair[0] / pair[1])),
        }
    }
}

fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    [values[0], values[last / 2], values[last]]
}

/// Prints them.
pub fn print(rows: &[Row], wanted: &Wanted) {
    if wanted.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({
                    "case": row.case.to_string(),
                    "kickpath": row.ours,
                    "dpdk_virtio_user": row.theirs,
                    "ratio": row.ratio,
                })
            })
            .collect();
        println!(
            "{}",
            json!({ "unit": "cycles a frame: min, median, max", "rows": rows })
        );
        return;
    }
    println!(
        "Cycles of the driver a 60-byte frame: median (min to max) of {} pairs, {} frames each",
        wanted.pairs, wanted.frames
    );
    println!(
        "{:32} {:>22} {:>22} {:>20}",
        "", "kickpath", "DPDK virtio-user", "ratio"
    );
    for row in rows {
        let cycles = |[min, median, max]: [f64; 3]| format!("{median:.0} ({min:.0} to {max:.0})");
        let [min, median, max] = row.ratio;
        println!(
            "{:32} {:>22} {:>22} {:>20}",
            row.case.to_string(),
            cycles(row.ours),
            cycles(row.theirs),
            format!("{median:.2} ({min:.2} to {max:.2})")
        );
    }
}
