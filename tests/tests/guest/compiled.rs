//! What the compiler makes of the driver alone, in a copy of the sources.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

/// The driver of the sources in `tree`, with these features, as rustc writes it by
/// `--emit=KIND`. `config` is for cargo, `flags` are for rustc.
pub fn driver(
    tree: &Path,
    features: &str,
    kind: &str,
    config: &[&str],
    flags: &[&str],
) -> Result<String> {
    let file = tree.join(format!("driver.{kind}"));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/driver");
    let output = Command::new(cargo)
        .args(["rustc", "--locked", "--lib"])
        .args(["--package", "kickpath-virtio-net", "--features", features])
        .arg("--target-dir")
        .arg(target)
        .args(config.iter().flat_map(|config| ["--config", config]))
        .arg("--")
        .args(flags)
        .arg(format!("--emit={kind}={}", file.display()))
        // Else the numbers of constants would depend on what was compiled before.
        .env("CARGO_INCREMENTAL", "0")
        .current_dir(tree)
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "cargo: {}\n{errors}",
        output.status
    );
    let code = fs::read_to_string(&file)?;
    // The next one must not be taken for it.
    fs::remove_file(file)?;
    Ok(code)
}
