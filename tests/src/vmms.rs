//! VMMs other than QEMU that are here: on the path, or named by a variable.

use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use kickpath::install::Host;
use kickpath::qemu::Vmm;
use tempfile::TempDir;

use crate::{Skip, program};

/// The program that a variable such as `KICKPATH_CLOUD_HYPERVISOR` names, or the one on the
/// path.
///
/// # Errors
/// There is neither; that is a [`Skip`].
pub fn find(vmm: Vmm) -> Result<PathBuf> {
    let word = vmm.word().to_uppercase().replace('-', "_");
    let variable = format!("KICKPATH_{word}");
    if let Some(named) = std::env::var_os(&variable).filter(|named| !named.is_empty()) {
        return Ok(named.into());
    }
    let missing = || {
        let name = vmm.programs()[0];
        Skip(format!("{name} is not on the path, nor in {variable}"))
    };
    Ok(vmm.find(&Host::detect()).ok_or_else(missing)?)
}

/// A directory in which all of them have the names by which the command looks for them.
pub struct Programs(TempDir);

impl Programs {
    /// Makes it.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        for vmm in Vmm::ALL.into_iter().filter(|vmm| *vmm != Vmm::Qemu) {
            if let Ok(program) = find(vmm) {
                symlink(program, directory.path().join(vmm.programs()[0]))?;
            }
        }
        Ok(Self(directory))
    }

    /// Runs the command, which finds them on its path; returns what it printed.
    ///
    /// # Errors
    /// It fails.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let mut path = OsString::from(self.0.path());
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let output = program::command(words)?.env("PATH", path).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "kickpath {words:?}: {}\n{text}{errors}",
            output.status
        );
        Ok(text)
    }

    /// A command line without the directories of these programs.
    #[must_use]
    pub fn without_directory(&self, line: &str) -> String {
        line.replace(&format!("{}/", self.0.path().display()), "")
    }
}
