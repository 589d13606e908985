//! The commands that measure.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kickpath::bench::baseline::Baseline;
use kickpath_tests::Suite;
use kickpath_tests::program::run;
use kickpath_tests::setup::{self, kernel_with_peer};
use serde_json::Value;

/// The committed counts. `cargo run -- bench --save tests/baseline.json` makes them anew.
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/baseline.json");

pub fn add(suite: &mut Suite) {
    suite.test("bench_is_within_its_limits", || {
        let (peer, compiler) = kernel_with_peer()?;
        let before = Baseline::read(Path::new(BASELINE), "pc auto split")?;
        // Other compilers differ by a little.
        let is_same = before.compiler.as_ref() == Some(&compiler);
        let tolerance = if is_same { "3" } else { "10" };
        let peer = peer.to_string_lossy();
        // It fails when a limit of its own is missed, and when an exact count is above
        // the committed baseline's.
        let text = run(&[
            ["bench", "--json", "--echoes", "100000"].as_slice(),
            &["--peer-kernel", &peer],
            &["--baseline", BASELINE, "--tolerance", tolerance],
        ]
        .concat())?;
        let report: Value = serde_json::from_str(&text).context(text.clone())?;
        every_exact_count_is_compared(&before, &report)?;
        ours_is_below_the_peers(&report)?;
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
        // Before 10.0 virtio-mmio had an ioeventfd on KVM only.
        let mmio_has_ioeventfd = setup::qemu_is_at_least(10, 0)?;
        for row in rows {
            // One access a kick, whatever the way: the doorbell and nothing else.
            ensure!(row["accesses_per_kick"] == 1.0, "{row}");
            let instructions = row["instructions_per_kick"].as_f64().unwrap_or(0.0);
            ensure!((5.0..150.0).contains(&instructions), "{row}");
            // At most one an answer, and those of the receive queue: a busy host hands over one
            // frame of a burst at a time. What a burst saves, `bench` counts exactly.
            let kicks = row["kicks_per_packet"].as_f64().unwrap_or(0.0);
            ensure!(kicks > 0.0 && kicks <= 1.5, "{row}");
            let is_mmio = row["way"] == "mmio" || row["way"] == "mmio-legacy";
            let main_loop = row["ioeventfd"] == true && (!is_mmio || mmio_has_ioeventfd);
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

/// A baseline of which rows are missing would guard nothing.
fn every_exact_count_is_compared(before: &Baseline, report: &Value) -> Result<()> {
    let compared = report["baseline"]["rows"].as_array();
    let compared = compared.with_context(|| format!("no rows in {report}"))?;
    let exact = compared.iter().filter(|row| row["exact"] == true);
    let names: Vec<_> = exact.filter_map(|row| row["name"].as_str()).collect();
    ensure!(names.len() >= 11, "{names:?}");
    let kept: Vec<_> = before.exact.keys().collect();
    ensure!(names.len() == kept.len(), "{names:?}, {kept:?} {BASELINE}");
    Ok(())
}

/// The driver of `virtio-drivers` in the same kernel and run costs more for each way, and
/// as much as the driver's README tells.
fn ours_is_below_the_peers(report: &Value) -> Result<()> {
    let each = |way: &str| report["driver_tx"][way]["instructions"].as_f64();
    let peer = |way: &str| {
        let sums = &report["peer"][way];
        Some(sums["instructions"].as_f64()? / sums["packets"].as_f64()?)
    };
    let page = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../kernel/virtio-net/README.md"
    );
    let page = fs::read_to_string(page)?;
    let sent: &[&str] = &["per_packet", "each"];
    let received: &[&str] = &["received", "received_each", "received_in_place"];
    for (way, ours, row) in [
        ("tx", sent, "| instructions to send "),
        ("rx", received, "| instructions to receive "),
    ] {
        let counts = [peer(way)].into_iter();
        let counts = counts.chain(ours.iter().map(|ours| each(ours)));
        let counted: Vec<f64> = counts.map(Option::unwrap_or_default).collect();
        let (&peer, ours) = counted.split_first().context("no peer")?;
        ensure!(
            ours.iter().all(|ours| 0.0 < *ours && *ours < peer),
            "{way}: {counted:?}"
        );
        let cells = page.lines().find_map(|line| line.strip_prefix(row));
        let cells = cells.with_context(|| format!("the driver's README has no row '{row}'"))?;
        let (_, cells) = cells.split_once('|').unwrap_or_default();
        let told: Vec<f64> = cells
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        ensure!(
            told.len() == counted.len(),
            "the driver's README tells {told:?}"
        );
        for (told, counted) in told.into_iter().zip(counted) {
            let ratio = counted / told;
            ensure!(
                (0.9..1.1).contains(&ratio),
                "told {told}, counted {counted}"
            );
        }
    }
    Ok(())
}

/// Instructions a packet by the README, in what `bench` has printed of the cable: the driver
/// alone, datagrams of 64 and of 1400 bytes, the echo.
fn told_in_readme() -> Result<Vec<f64>> {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    let block = page.split_once("<!-- recorded: cable -->");
    let (_, block) = block.context("the README has no block 'cable'")?;
    let (block, _) = block.split_once("<!-- end -->").unwrap_or((block, ""));
    let rows = ["instructions ", "64 bytes ", "1,400 bytes "];
    let figures = block.lines().filter_map(|line| {
        let cells = rows.iter().find_map(|row| line.trim().strip_prefix(row));
        cells?.split_whitespace().next()
    });
    figures
        .map(|figure| figure.replace(',', "").parse().context(figure.to_owned()))
        .collect()
}
