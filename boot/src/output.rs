//! Files that the user asked for. What was there before stays until the new content is whole:
//! it is written beside, under the name with `.part` behind it, and then takes the name.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::leftover;

/// What the name of an unfinished file ends with.
const SUFFIX: &str = ".part";

/// A file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", file.display())]
pub struct OutputError {
    /// The file as it was named.
    pub file: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// A file in the making. Dropped before [`Output::keep`], it leaves no trace.
#[derive(Debug)]
pub struct Output {
    named: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Beside the file, which may be behind a link.
    Beside {
        target: PathBuf,
        file: NamedTempFile,
        /// Says that we live.
        _lock: Option<File>,
    },
    /// A device or a pipe, which holds nothing that could be lost.
    Itself(File),
}

impl Output {
    /// Begins a file of this name. A named pipe waits for its reader here.
    ///
    /// # Errors
    /// Nothing can be written there: it is a directory, or there is none, or it takes no file.
    pub fn create(named: &Path) -> Result<Self, OutputError> {
        let place = place(named).map_err(|source| error(named, source))?;
        Ok(Self {
            named: named.to_owned(),
            place,
        })
    }

    /// Where its content goes until it is whole, for those who write it by its name.
    pub fn path(&self) -> &Path {
        match &self.place {
            Place::Beside { file, .. } => file.path(),
            Place::Itself(_) => &self.named,
        }
    }

    /// The same, open for writing.
    pub fn file(&self) -> &File {
        match &self.place {
            Place::Beside { file, .. } => file.as_file(),
            Place::Itself(file) => file,
        }
    }

    /// Whether it is a file that can be read again and cut.
    pub fn is_file(&self) -> bool {
        matches!(self.place, Place::Beside { .. })
    }

    /// The error of writing it.
    pub fn error(&self, source: io::Error) -> OutputError {
        error(&self.named, source)
    }

    /// Writes all of its content, and keeps it.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(self, content: &[u8]) -> Result<(), OutputError> {
        match self.file().write_all(content) {
            Ok(()) => self.keep(),
            Err(source) => Err(self.error(source)),
        }
    }

    /// Gives it its name: its content is whole.
    ///
    /// # Errors
    /// The system refuses; what was there before is still there.
    pub fn keep(self) -> Result<(), OutputError> {
        let Place::Beside { target, file, .. } = self.place else {
            return Ok(());
        };
        // Some file systems say only here that there was no room.
        let kept = file
            .as_file()
            .sync_all()
            .and_then(|()| Ok(file.persist(&target)?));
        kept.map(drop).map_err(|source| error(&self.named, source))
    }
}

fn error(named: &Path, source: io::Error) -> OutputError {
    OutputError {
        file: named.to_owned(),
        source,
    }
}

fn place(named: &Path) -> io::Result<Place> {
    let old = match fs::metadata(named) {
        Ok(old) if old.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        Ok(old) if !old.is_file() => {
            let file = OpenOptions::new().write(true).open(named)?;
            return Ok(Place::Itself(file));
        }
        Ok(old) => {
            // May we write it at all? It is not opened for more than that.
            OpenOptions::new().write(true).open(named)?;
            Some(old)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // The file behind a link is meant, not the link.
    let target = match old {
        Some(_) => fs::canonicalize(named)?,
        None => named.to_owned(),
    };
    let name = target.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let directory = match target.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    };
    let mut prefix = name.to_owned();
    prefix.push(".");
    leftover::sweep(directory, |name| is_part(name, &prefix));
    let attempt = || -> io::Result<(NamedTempFile, Option<File>)> {
        let file = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(SUFFIX)
            // What the user's mask leaves of it.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory)?;
        let lock = leftover::lock(file.path())?;
        Ok((file, lock))
    };
    // Another run's sweep may take what is not locked yet, once.
    let (file, lock) = attempt().or_else(|_| attempt()).map_err(leftover::plain)?;
    if let Some(old) = old {
        // Root may write what is somebody else's, and it stays theirs. Others may not give a
        // file away, and then it is theirs already.
        let _ = fchown(file.as_file(), Some(old.uid()), Some(old.gid()));
        file.as_file().set_permissions(old.permissions())?;
    }
    Ok(Place::Beside {
        target,
        file,
        _lock: lock,
    })
}

/// Whether a name is `prefix`, six characters of chance, and the suffix.
pub(crate) fn is_part(name: &OsStr, prefix: &OsString) -> bool {
    let rest = name
        .as_encoded_bytes()
        .strip_prefix(prefix.as_encoded_bytes());
    let chance = rest.and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()));
    chance.is_some_and(|chance| chance.len() == 6 && chance.iter().all(u8::is_ascii_alphanumeric))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What is in it, sorted.
    pub(crate) fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_old_content_stays_until_the_new_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("page.html");
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        let output = Output::create(&file).unwrap();
        output.file().write_all(b"half of the n").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"old");
        drop(output);
        assert_eq!(fs::read(&file).unwrap(), b"old");
        assert_eq!(names(directory.path()), ["page.html"]);

        Output::create(&file).unwrap().write(b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["page.html"]);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn a_link_stays_one() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink("a", &link).unwrap();
        Output::create(&link).unwrap().write(b"new").unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("a"));
        assert_eq!(fs::read(&file).unwrap(), b"new");
    }

    #[test]
    fn what_a_killed_run_left_goes_with_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["x.abcdef.part", "x.abc.part", "y.abcdef.part"] {
            fs::write(path(name), "").unwrap();
        }
        let first = Output::create(&path("x")).unwrap();
        // Both live.
        let second = Output::create(&path("x")).unwrap();
        second.write(b"second").unwrap();
        first.write(b"first").unwrap();
        assert_eq!(
            names(directory.path()),
            ["x", "x.abc.part", "y.abcdef.part"]
        );
        assert_eq!(fs::read(path("x")).unwrap(), b"first");
    }

    #[test]
    fn what_is_no_file_is_written_itself_or_refused() {
        Output::create(Path::new("/dev/null"))
            .unwrap()
            .write(b"x")
            .unwrap();
        let error = Output::create(Path::new("/dev/full")).unwrap().write(b"x");
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("cannot write /dev/full: No space left"),
            "{error}"
        );
        for (place, why) in [
            ("/", "cannot write /: is a directory"),
            (
                "/no/place",
                "cannot write /no/place: No such file or directory (os error 2)",
            ),
            ("", "cannot write : is a directory"),
        ] {
            let error = Output::create(Path::new(place)).unwrap_err();
            assert_eq!(error.to_string(), why);
        }
    }
}
