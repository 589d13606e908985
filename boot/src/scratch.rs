//! Directories for temporary files: gone with whoever made them, and after `SIGKILL` with the
//! next run.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Once;

use tempfile::TempDir;

use crate::leftover;

/// Every directory of ours starts with this.
pub(crate) const PREFIX: &str = "kickpath.";

/// Longest path of a Unix socket in bytes, its closing zero left out (Linux `UNIX_PATH_MAX`).
const SOCKET_PATH: usize = 107;

/// More than what QEMU or we write at a time.
const ROOM: usize = 128 * 1024;

/// Why there is no temporary file.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// The directory for temporary files takes none.
    #[error("cannot write into {}, the directory for temporary files (TMPDIR): {source}", directory.display())]
    Write {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path of a socket cannot be so long.
    #[error(
        "the path of the directory for temporary files is {} bytes too long for a socket in it; set TMPDIR to a \
         shorter one: {}",
        length - SOCKET_PATH,
        directory.display()
    )]
    TooLong {
        /// The directory.
        directory: PathBuf,
        /// Length of the socket's path, in bytes.
        length: usize,
    },
}

impl From<ScratchError> for io::Error {
    fn from(error: ScratchError) -> Self {
        let kind = match &error {
            ScratchError::Write { source, .. } => source.kind(),
            ScratchError::TooLong { .. } => io::ErrorKind::InvalidFilename,
        };
        Self::new(kind, error)
    }
}

/// A directory for temporary files. Dropping it removes it.
#[derive(Debug)]
pub struct Scratch {
    directory: TempDir,
    /// Says that we live.
    _lock: Option<File>,
}

impl Scratch {
    /// Makes one; `what` is part of its name. What killed runs have left is removed first.
    ///
    /// # Errors
    /// The directory for temporary files takes none.
    pub fn new(what: &str) -> Result<Self, ScratchError> {
        static SWEPT: Once = Once::new();
        let parent = std::env::temp_dir();
        SWEPT.call_once(|| leftover::sweep(&parent, is_ours));
        let attempt = || -> io::Result<Self> {
            let directory = tempfile::Builder::new()
                .prefix(&format!("{PREFIX}{what}."))
                .tempdir_in(&parent)?;
            let lock = leftover::lock(directory.path())?;
            Ok(Self {
                directory,
                _lock: lock,
            })
        };
        // Another run's sweep may take what is not locked yet, once.
        let made = attempt().or_else(|_| attempt());
        made.map_err(|source| ScratchError::Write {
            directory: parent,
            source: leftover::plain(source),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The path of a socket in it.
    ///
    /// # Errors
    /// No socket can have so long a path.
    pub fn socket(&self, name: &str) -> Result<PathBuf, ScratchError> {
        let path = self.path().join(name);
        match path.as_os_str().len() {
            0..=SOCKET_PATH => Ok(path),
            length => Err(ScratchError::TooLong {
                directory: std::env::temp_dir(),
                length,
            }),
        }
    }

    /// Why this directory takes nothing more, when it does not: QEMU does not say why it could
    /// not write, and cuts its logs in silence.
    ///
    /// # Errors
    /// As the system has it when something is written.
    pub fn check_room(&self) -> Result<(), ScratchError> {
        let write = || -> io::Result<()> {
            let mut file = tempfile::tempfile_in(self.path())?;
            file.write_all(&[0x5a; ROOM])
        };
        write().map_err(|source| self.refuses(leftover::plain(source)))
    }

    /// The error of writing here.
    pub fn refuses(&self, source: io::Error) -> ScratchError {
        ScratchError::Write {
            directory: std::env::temp_dir(),
            source,
        }
    }
}

fn is_ours(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_comes_and_goes() {
        let scratch = Scratch::new("test").unwrap();
        let path = scratch.path().to_owned();
        assert!(path.is_dir() && is_ours(path.file_name().unwrap()));
        scratch.check_room().unwrap();
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        // Held, so no sweep takes it.
        leftover::sweep(path.parent().unwrap(), |name| path.ends_with(name));
        assert!(path.is_dir());
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_has_a_path_of_bounded_length() {
        let scratch = Scratch::new("test").unwrap();
        let rest = SOCKET_PATH - scratch.path().as_os_str().len() - 1;
        assert!(scratch.socket(&"x".repeat(rest)).is_ok());
        let error = scratch.socket(&"x".repeat(rest + 3)).unwrap_err();
        assert!(error.to_string().contains("3 bytes too long"), "{error}");
    }
}
