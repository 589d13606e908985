//! The commands that measure.

use std::fs;

use anyhow::{Context, Result, ensure};
use kickpath_tests::Suite;
use kickpath_tests::program::run;
use serde_json::Value;

pub fn add(suite: &mut Suite) {
    suite.test("bench_is_within_its_limits", || {
        // It fails when a limit of its own is missed.
        let text = run(&["bench", "--json", "--echoes", "100000"])?;
        let report: Value = serde_json::from_str(&text).context(text.clone())?;
        let instructions = |measured: &Value| {
            let value = measured["per_packet"]["instructions"].as_f64();
            value.with_context(|| format!("no instructions in {measured}"))
        };
        // These repeat to the instruction, so there need be little room.
        let driver = instructions(&report["driver_tx"])?;
        let small = instructions(&report["udp_tx"][0])?;
        let large = instructions(&report["udp_tx"][1])?;
        ensure!(driver <= 25.0, "the driver alone: {driver}");
        ensure!(small <= 1400.0, "a datagram of 64 bytes: {small}");
        // A byte more is copied twice and added up once, each eight at a time.
        let byte = (large - small) / f64::from(1400 - 64);
        ensure!(byte <= 0.45, "{byte} instructions a byte: {small}, {large}");
        let echo = instructions(&report["udp_echo"])?;
        let told = told_in_readme()?;
        let counted = [driver, small, large, echo];
        ensure!(told.len() == counted.len(), "the README tells {told:?}");
        for (told, counted) in told.into_iter().zip(counted) {
            // Compilers differ by a little.
            let ratio = counted / told;
            ensure!(
                (0.9..1.1).contains(&ratio),
                "the README tells {told}, counted are {counted}"
            );
        }
        Ok(())
    });
    suite.test("compare_measures_every_way_to_kick", || {
        let page = tempfile::NamedTempFile::new()?;
        let file = page.path().to_string_lossy().into_owned();
        let text = run(&["compare", "--json", "--echoes", "64", "--html", &file])?;
        let report: Value = serde_json::from_str(&text).context(text.clone())?;
        let rows = report["rows"].as_array().context("no rows")?;
        // Five ways; ioeventfd, EVENT_IDX and the burst each on and off.
        ensure!(rows.len() == 5 * 8, "{} rows: {text}", rows.len());
        for row in rows {
            // One access a kick, whatever the way: the doorbell and nothing else.
            ensure!(row["accesses_per_kick"] == 1.0, "{row}");
            let instructions = row["instructions_per_kick"].as_f64().unwrap_or(0.0);
            ensure!((5.0..150.0).contains(&instructions), "{row}");
            // At most one an answer, and those of the receive queue: a busy host hands over one
            // frame of a burst at a time. What a burst saves, `bench` counts exactly.
            let kicks = row["kicks_per_packet"].as_f64().unwrap_or(0.0);
            ensure!(kicks > 0.0 && kicks <= 1.5, "{row}");
            // QEMU's virtio-mmio uses an ioeventfd only on KVM.
            let is_mmio = row["way"] == "mmio" || row["way"] == "mmio-legacy";
            let main_loop = row["ioeventfd"] == true && !is_mmio;
            let handler = if main_loop {
                "main-loop"
            } else {
                "vcpu-thread"
            };
            ensure!(row["handler"] == handler, "{row}");
        }
        let page = fs::read_to_string(page.path())?;
        ensure!(
            page.contains("legacy-port") && !page.contains("REPORT</script>"),
            "no page"
        );
        Ok(())
    });
}

/// Instructions a packet by the README: the driver alone, datagrams of 64 and of
/// 1400 bytes, the echo.
fn told_in_readme() -> Result<Vec<f64>> {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    let mut told = Vec::new();
    for row in [
        "| the driver alone ",
        "| 64 / 1400 bytes ",
        "| UDP echo of 64 ",
    ] {
        let cells = page.lines().find_map(|line| line.strip_prefix(row));
        let cells = cells.with_context(|| format!("the README has no row '{row}'"))?;
        let figures = cells.split('|').nth(1).unwrap_or_default();
        for figure in figures.split('/') {
            let figure = figure.trim().replace(',', "");
            told.push(figure.parse().context(figure)?);
        }
    }
    Ok(told)
}
