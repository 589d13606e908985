//! Records the runs that documents and pictures are of, and makes all of them anew.
//!
//!     cargo run -p kickpath-tests --bin documents
//!     cargo run -p kickpath-tests --bin documents -- --keep
//!
//! The second leaves the recorded runs (`docs/recorded`) as they are: it is enough after a change
//! of a page or a sentence.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use kickpath::install::{CHROMIUM, Host};
use kickpath_tests::{documents, setup};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let keep = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--keep"] => true,
        _ => bail!("usage: {} [-- --keep]", documents::COMMAND),
    };
    setup::require(&[CHROMIUM])?;
    let browser = Host::detect()
        .find(&CHROMIUM)
        .context("the browser was installed and is not found")?;
    if !keep {
        documents::record(|what| eprintln!("{what}"))?;
    }
    documents::write(&browser, |name| eprintln!("Making {name}"))?;
    eprintln!("Making docs/unsafe.md and the table of docs/robustness.md");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["test", "--quiet", "--package", "kickpath-fuzz"])
        .args(["--test", "unsafe_blocks", "--test", "lies"])
        .env("KICKPATH_WRITE_DOCS", "1")
        .status()?;
    ensure!(status.success(), "cargo test: {status}");
    Ok(())
}
