//! `bench --guest linux`: what a packet costs beside Debian's kernel.

use anyhow::{Context, Result, ensure};
use kickpath::linux::GUEST;
use kickpath_tests::program::run;
use kickpath_tests::{Suite, setup};
use serde_json::Value;

use crate::nested::require;

pub fn add(suite: &mut Suite) {
    let missing = (!cfg!(target_arch = "x86_64")).then(|| "a host of x86-64 is needed".to_owned());
    suite.needs(missing.or_else(setup::lacks_tap), |suite| {
        suite.test("bench::against_linux", against_linux);
    });
}

/// Both guests are counted, from outside and alike, and the report says which kernel it was.
fn against_linux() -> Result<()> {
    require(GUEST)?;
    let words = ["bench", "--guest", "linux", "--json", "--rounds", "1"];
    let text = run(&[words.as_slice(), &["--echoes", "20000"]].concat())?;
    let report: Value = serde_json::from_str(&text).context(text.clone())?;
    let release = report["linux"].as_str().context("the kernel's release")?;
    ensure!(
        release.starts_with(|c: char| c.is_ascii_digit()) && release.contains("-cloud-"),
        "{release}"
    );
    let rows = report["counts"].as_array().context("counts")?;
    let cost = |what: &Value, guest: &str, of: &str| {
        let row = rows.iter().find(|row| row["what"] == *what);
        let value = row.and_then(|row| row[guest][of]["median"].as_f64());
        value.with_context(|| format!("{of} of {guest} for {what} in {report:#}"))
    };
    let echo = |outstanding| serde_json::json!({"echo": {"outstanding": outstanding}});
    let tcp = |way| serde_json::json!({"tcp": {"way": way}});
    // Between what no such guest can be below and what none is near to.
    for (what, ours, linux) in [
        (echo(1), 1_500.0..6_000.0, 8_000.0..60_000.0),
        (echo(32), 1_000.0..4_500.0, 5_000.0..40_000.0),
        (tcp("out"), 200.0..1_000.0, 200.0..2_000.0),
        (tcp("in"), 200.0..1_000.0, 200.0..2_000.0),
        (Value::from("http"), 10_000.0..100_000.0, 100_000.0..2e6),
    ] {
        for (guest, range) in [("kickpath", ours), ("linux", linux)] {
            let counted = cost(&what, guest, "instructions")?;
            ensure!(range.contains(&counted), "{guest}, {what}: {counted}");
        }
    }
    // One request at a time is one kick and one interrupt, of any driver, or none where the
    // other side still looks when it comes: that hangs on the host. A second interrupt tells
    // that the answer was sent.
    for guest in ["kickpath", "linux"] {
        let kicks = cost(&echo(1), guest, "kicks")?;
        ensure!(0.0 < kicks && kicks < 1.6, "{guest}: {kicks} kicks an echo");
        let interrupts = cost(&echo(1), guest, "interrupts")?;
        ensure!(
            0.0 < interrupts && interrupts < 2.2,
            "{guest}: {interrupts} interrupts an echo"
        );
    }
    // A time is no verdict; that there is one is.
    let ways = report["times"]["ways"].as_array().context("times")?;
    ensure!(ways.len() == 2, "{ways:?}");
    for way in ways {
        let pair = &way["pairs"][0];
        let speeds = [&pair["kickpath"], &pair["linux"]].map(Value::as_f64);
        ensure!(speeds.iter().all(|s| s.is_some_and(|s| s > 0.0)), "{way}");
    }
    Ok(())
}
