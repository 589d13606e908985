//! The command, as a person runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

use crate::setup;

/// The program, built by the cargo that runs this test.
fn program() -> Result<&'static Path> {
    static PROGRAM: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .as_deref()
        .map_err(|error| anyhow!("cannot build the command: {error}"))
}

fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--package", "kickpath", "--bin", "kickpath"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "cargo: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    text.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter(|message| message["target"]["name"] == "kickpath")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo names no executable")
}

/// The command with these arguments, on the guest that the tests build.
///
/// # Errors
/// The guest or the command cannot be built.
pub fn command(arguments: &[&str]) -> Result<Command> {
    let kernel = &setup::setup()?.kernel;
    let mut command = Command::new(program()?);
    command
        .args(arguments)
        .env("NO_COLOR", "1")
        .env("KICKPATH_KERNEL", kernel)
        .stdin(Stdio::null());
    Ok(command)
}

/// Runs the command to its end, which must be a success; returns what it
/// printed.
///
/// # Errors
/// It fails: the text has all that it said.
pub fn run(arguments: &[&str]) -> Result<String> {
    let output = command(arguments)?.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "kickpath {arguments:?}: {}\n{text}{errors}",
        output.status
    );
    Ok(text)
}
