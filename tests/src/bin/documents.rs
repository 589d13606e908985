//! Records the runs that documents and pictures are of, and makes all of them anew.
//!
//!     cargo run -p kickpath-tests --bin documents
//!     cargo run -p kickpath-tests --bin documents -- --keep
//!     cargo run -p kickpath-tests --bin documents -- --vmms [NAME]
//!
//! The first wants root: what a packet costs at a tap is recorded too. The second leaves the recorded
//! runs (`docs/recorded`) as they are: it is enough after a change of a page or a sentence. The third
//! records only the VMMs that are here anew, or that one (KVM, and root for a tap); the runs of those
//! that are not stay.

use std::process::Command;

use anyhow::{Context, Error, Result, bail, ensure};
use kickpath::install::{CHROMIUM, Host};
use kickpath::qemu::Vmm;
use kickpath_tests::{documents, setup};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // What is recorded: everything, nothing, or VMMs.
    let (all, vmms) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => (true, Vmm::ALL.to_vec()),
        ["--keep"] => (false, Vec::new()),
        ["--vmms"] => (false, Vmm::ALL.to_vec()),
        ["--vmms", name] => (false, vec![name.parse().map_err(Error::msg)?]),
        _ => bail!("usage: {} [-- --keep | --vmms [NAME]]", documents::COMMAND),
    };
    setup::require(&[CHROMIUM])?;
    let browser = Host::detect()
        .find(&CHROMIUM)
        .context("the browser was installed and is not found")?;
    let tell = |text: &str| eprintln!("{text}");
    if all {
        documents::record(tell)?;
    }
    documents::record_vmms(&vmms, tell)?;
    eprintln!("Making docs/unsafe.md, docs/unsafe.zh.md and the table of docs/robustness.md");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["test", "--quiet", "--package", "kickpath-fuzz"])
        .args(["--test", "unsafe_blocks", "--test", "lies"])
        .env("KICKPATH_WRITE_DOCS", "1")
        .status()?;
    ensure!(status.success(), "cargo test: {status}");
    // The Chinese editions are made of these tables.
    documents::write(&browser, |name| eprintln!("Making {name}"))?;
    Ok(())
}
