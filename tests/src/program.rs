//! The command, as a person runs it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
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
        .stdin(Stdio::null());
    // A trace of Linux is of no guest of ours.
    if arguments.first() != Some(&"trace") || !arguments.contains(&"linux") {
        command.env("KICKPATH_KERNEL", kernel);
    }
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

/// A running command; killed when it is dropped.
pub struct Running {
    /// The process.
    pub child: Child,
    /// What it has still to say.
    pub output: BufReader<ChildStdout>,
    /// What it has said.
    pub seen: String,
}

impl Running {
    /// Starts the command with these arguments.
    ///
    /// # Errors
    /// As [`command`]; it cannot be started.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let mut child = command(arguments)?.stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("no output")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
            seen: String::new(),
        })
    }

    /// Reads up to a line with this text. A command that says nothing ends by
    /// its own bounds.
    ///
    /// # Errors
    /// It ends before.
    pub fn line_with(&mut self, text: &str) -> Result<String> {
        loop {
            let mut line = String::new();
            let length = self.output.read_line(&mut line)?;
            ensure!(
                length > 0,
                "it ends before it says '{text}':\n{}",
                self.seen
            );
            self.seen.push_str(&line);
            if line.contains(text) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The loopback address whose port is behind `prefix` in a line.
///
/// # Errors
/// There is none.
pub fn loopback_address(line: &str, prefix: &str) -> Result<SocketAddr> {
    let (_, rest) = line
        .split_once(prefix)
        .with_context(|| format!("no {prefix} in {line}"))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Ok(SocketAddr::from(([127, 0, 0, 1], digits.parse::<u16>()?)))
}
