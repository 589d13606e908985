//! The guest of the laboratory: made of a copy of the sources, with the experiments in
//! it and a student's change, so that neither the sources nor the other guests change.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::LabError;
use crate::command::{self, Progress, Sink};
use crate::install::{PATCH, Policy};
use crate::scratch::Scratch;
use crate::session::require;
use crate::toolchain::{self, BuildOptions};

/// What cargo needs of the workspace to build the guest.
const PARTS: [&str; 7] = [
    ".cargo",
    "Cargo.toml",
    "Cargo.lock",
    "rust-toolchain.toml",
    "boot",
    "kernel",
    "tests",
];

/// What is built, and the arguments for it.
const FAULTY: (&str, &[&str]) = ("the guest with its mistakes", &["--features", "faults"]);

/// How long `patch` may take.
const BOUND: Duration = Duration::from_secs(60);

/// A guest that was built, for as long as this value lives.
#[derive(Debug)]
pub struct Kernel {
    /// Its ELF file.
    pub file: PathBuf,
    _directory: Scratch,
}

/// Builds the guest with the experiments in it, from the sources as they are and, where
/// there is one, this change of them (as `diff -u` and `git diff` write it).
///
/// # Errors
/// The change does not fit, or what it makes of the sources is not to be built.
pub fn build(
    change: Option<&Path>,
    policy: Policy,
    sink: &mut Sink<'_>,
) -> Result<Kernel, LabError> {
    let workspace = toolchain::workspace()?;
    let directory = toolchain::target_directory(&workspace).join("lab");
    let tree = directory.join("tree");
    let cannot = |what: &'static str| move |source| LabError::System { what, source };
    fs::create_dir_all(&tree).map_err(cannot("make a directory for a copy of the sources"))?;
    // One at a time: all use the same copy, so that little is built again.
    let lock = File::create(directory.join("lock")).and_then(|lock| lock.lock().map(|()| lock));
    let _lock = lock.map_err(cannot("wait for another lab's build"))?;
    copy_sources(&tree)?;
    if let Some(change) = change {
        patch(&tree, change, policy, sink)?;
    }
    let options = BuildOptions::from_env(policy)?;
    let built = toolchain::build_kernel_of(&tree, FAULTY, &directory, &options, sink)?;
    // The next build takes its place.
    let kept = Scratch::new("lab")?;
    let file = kept.path().join(toolchain::KERNEL);
    fs::copy(built, &file).map_err(cannot("copy the guest"))?;
    Ok(Kernel {
        file,
        _directory: kept,
    })
}

/// Copies what cargo needs of the sources to build the guest.
///
/// # Errors
/// They cannot be read, or not be written there.
pub fn copy_sources(tree: &Path) -> Result<(), LabError> {
    let workspace = toolchain::workspace()?;
    let what = "copy the sources";
    PARTS.iter().try_for_each(|part| {
        let copied = copy(&workspace.join(part), &tree.join(part));
        copied.map_err(|source| LabError::System { what, source })
    })
}

/// Makes `to` what `from` is, but for what was built there. What is the same already
/// is left alone: cargo builds what is newer than before.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        let content = fs::read(from)?;
        return match fs::read(to) {
            Ok(there) if there == content => Ok(()),
            _ => fs::write(to, content),
        };
    }
    fs::create_dir_all(to)?;
    let names = |directory: &Path| -> io::Result<BTreeSet<OsString>> {
        let entries = fs::read_dir(directory)?;
        let names = entries.map(|entry| Ok(entry?.file_name()));
        names
            .filter(|name| !matches!(name, Ok(name) if name == "target"))
            .collect()
    };
    let wanted = names(from)?;
    for name in names(to)?.difference(&wanted) {
        let gone = to.join(name);
        match gone.is_dir() {
            true => fs::remove_dir_all(gone)?,
            false => fs::remove_file(gone)?,
        }
    }
    wanted
        .iter()
        .try_for_each(|name| copy(&from.join(name), &to.join(name)))
}

/// Applies a change to the copy.
fn patch(tree: &Path, change: &Path, policy: Policy, sink: &mut Sink<'_>) -> Result<(), LabError> {
    require(&[PATCH], policy, sink)?;
    let change = fs::canonicalize(change).map_err(|source| LabError::Change {
        file: change.to_owned(),
        why: source.to_string(),
    })?;
    sink(Progress::Step(&format!("Applying {}", change.display())));
    let mut patch = Command::new("patch");
    patch
        .args([
            "--strip=1",
            "--batch",
            "--forward",
            "--reject-file=-",
            "--no-backup-if-mismatch",
        ])
        .arg("--directory")
        .arg(tree)
        .arg("--input")
        .arg(&change);
    let applied = command::run(&mut patch, Some(BOUND), sink);
    applied.map_err(|error| LabError::Change {
        file: change,
        why: match error.tail() {
            "" => error.to_string(),
            tail => tail.to_owned(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_becomes_what_its_source_is_and_keeps_what_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| directory.path().join(name));
        fs::create_dir_all(from.join("a/target")).unwrap();
        fs::write(from.join("a/same"), "1").unwrap();
        fs::write(from.join("a/other"), "2").unwrap();
        fs::write(from.join("a/target/built"), "3").unwrap();
        copy(&from, &to).unwrap();
        let written = |name: &str| fs::metadata(to.join(name)).unwrap().modified().unwrap();
        let before = written("a/same");
        fs::write(to.join("a/other"), "changed").unwrap();
        fs::write(to.join("a/more"), "").unwrap();
        fs::create_dir_all(to.join("b/c")).unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("a/other")).unwrap(), b"2");
        assert_eq!(written("a/same"), before);
        for gone in ["a/more", "b", "a/target"] {
            assert!(!to.join(gone).exists(), "{gone}");
        }
    }
}
