//! The commands that measure.

use std::fs;

use anyhow::{Context, ensure};
use kickpath_tests::Suite;
use kickpath_tests::program::run;

pub fn add(suite: &mut Suite) {
    suite.test("bench_is_within_its_limits", || {
        run(&["bench", "--echoes", "100000"]).map(drop)
    });
    suite.test("compare_measures_every_way_to_kick", || {
        let page = tempfile::NamedTempFile::new()?;
        let file = page.path().to_string_lossy().into_owned();
        let text = run(&["compare", "--json", "--echoes", "64", "--html", &file])?;
        let report: serde_json::Value = serde_json::from_str(&text).context(text.clone())?;
        let rows = report["rows"].as_array().context("no rows")?;
        // Four ways; ioeventfd, EVENT_IDX and the burst each on and off.
        ensure!(rows.len() == 4 * 8, "{} rows: {text}", rows.len());
        for row in rows {
            // One access a kick, whatever the way: the doorbell and nothing else.
            ensure!(row["accesses_per_kick"] == 1.0, "{row}");
            let instructions = row["instructions_per_kick"].as_f64().unwrap_or(0.0);
            ensure!((5.0..150.0).contains(&instructions), "{row}");
            let kicks = row["kicks_per_packet"].as_f64().unwrap_or(0.0);
            let most = if row["burst"] == 1 { 1.5 } else { 1.0 };
            ensure!(kicks > 0.0 && kicks <= most, "{row}");
            // QEMU's virtio-mmio uses an ioeventfd only on KVM.
            let main_loop = row["ioeventfd"] == true && row["way"] != "mmio";
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
