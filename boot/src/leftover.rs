//! What runs that were killed have left behind.
//!
//! A file or directory that goes with its process is locked (flock(2)) as long as that lives:
//! the kernel gives the lock back when it ends, however that is. What is not locked was left.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

/// Locks what was just made at `path` until the answer is dropped; `None` where the file system
/// has no locks, and nothing is ever taken for left behind.
///
/// # Errors
/// `NotFound` when it was gone or taken before it could be locked: make another.
pub(crate) fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = File::open(path)?;
    match file.try_lock() {
        // A sweep may have come between.
        Ok(()) if path.exists() => Ok(Some(file)),
        Ok(()) | Err(TryLockError::WouldBlock) => Err(io::ErrorKind::NotFound.into()),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// Removes what is not locked of the files and directories whose names are ours. What cannot be
/// removed, or is somebody else's, stays.
pub(crate) fn sweep(directory: &Path, is_ours: impl Fn(&OsStr) -> bool) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // Of the entry itself: no link is followed.
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if !is_ours(&entry.file_name()) || !(kind.is_dir() || kind.is_file()) {
            continue;
        }
        let path = entry.path();
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if file.try_lock().is_ok() {
            log::info!(
                "removing {}, left behind by a run that was killed",
                path.display()
            );
            // An error means that another sweep was quicker, or that it is not ours to remove.
            let _ = match kind.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
        }
    }
}

/// The system's own words, where the crate `tempfile` has put a path of chance behind them.
pub(crate) fn plain(error: io::Error) -> io::Error {
    let text = error.to_string();
    match text.rsplit_once(" at path ") {
        Some((words, _)) => io::Error::new(error.kind(), words),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_locked_or_not_ours_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir_all(path("ours.left/inside")).unwrap();
        fs::create_dir(path("ours.held")).unwrap();
        fs::write(path("ours.file"), "").unwrap();
        fs::write(path("other"), "").unwrap();
        std::os::unix::fs::symlink(path("other"), path("ours.link")).unwrap();
        let held = lock(&path("ours.held")).unwrap();
        assert!(held.is_some());
        let ours = |name: &OsStr| name.to_string_lossy().starts_with("ours.");
        sweep(directory.path(), ours);
        let stays = ["ours.held", "other", "ours.link"];
        assert!(stays.iter().all(|name| path(name).exists()));
        assert!(!path("ours.left").exists() && !path("ours.file").exists());
        drop(held);
        sweep(directory.path(), ours);
        assert!(!path("ours.held").exists());
        assert_eq!(
            lock(&path("ours.held")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
