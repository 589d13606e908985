//! A directory in the making: beside the one that was asked for, which takes its place when it
//! is whole. Ended before that, it leaves what was there as it was.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::GalleryError;
use crate::leftover;
use crate::output::is_part;

/// By what an earlier gallery is known, in its index.
pub(super) const MARK: &str = r#"<meta name="generator" content="Kickpath gallery">"#;

/// See the module.
pub(super) struct Site {
    named: PathBuf,
    target: PathBuf,
    parent: PathBuf,
    prefix: OsString,
    making: TempDir,
    _lock: Option<File>,
}

impl Site {
    /// Begins a site that is to be at `named`: nothing is there, or nothing but a gallery.
    pub(super) fn begin(named: &Path) -> Result<Self, GalleryError> {
        let error = |source| GalleryError::Write {
            file: named.to_owned(),
            source,
        };
        let target = match fs::metadata(named) {
            Ok(old) if !old.is_dir() => return Err(error(io::ErrorKind::NotADirectory.into())),
            Ok(_) => fs::canonicalize(named).map_err(error)?,
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                std::path::absolute(named).map_err(error)?
            }
            Err(why) => return Err(error(why)),
        };
        if target.is_dir() {
            let index = fs::read_to_string(target.join("index.html")).unwrap_or_default();
            let is_empty = fs::read_dir(&target).map_err(error)?.next().is_none();
            if !is_empty && !index.contains(MARK) {
                return Err(GalleryError::Occupied(named.to_owned()));
            }
        }
        let (Some(name), Some(parent)) = (target.file_name(), target.parent()) else {
            return Err(error(io::ErrorKind::IsADirectory.into()));
        };
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        leftover::sweep(parent, |name| is_part(name, &prefix));
        let making = directory(parent, &prefix).map_err(error)?;
        Ok(Self {
            _lock: leftover::lock(making.path()).map_err(error)?,
            named: named.to_owned(),
            parent: parent.to_owned(),
            target,
            prefix,
            making,
        })
    }

    /// Writes one file of it.
    pub(super) fn write(&self, name: &str, content: &str) -> Result<(), GalleryError> {
        let file = self.making.path().join(name);
        fs::write(&file, content).map_err(|source| GalleryError::Write {
            file: self.named.join(name),
            source,
        })
    }

    /// Puts it where it was asked for: it is whole.
    pub(super) fn publish(self) -> Result<(), GalleryError> {
        let error = |source| GalleryError::Write {
            file: self.named.clone(),
            source,
        };
        if !self.target.exists() {
            return fs::rename(self.making.keep(), &self.target).map_err(error);
        }
        // The old one goes aside, and is gone with this directory.
        let aside = directory(&self.parent, &self.prefix).map_err(error)?;
        let old = aside.path().join("old");
        fs::rename(&self.target, &old).map_err(error)?;
        fs::rename(self.making.path(), &self.target)
            .inspect_err(|_| drop(fs::rename(&old, &self.target)))
            .map_err(error)?;
        // It is no longer there to be removed.
        let _ = self.making.keep();
        Ok(())
    }
}

fn directory(parent: &Path, prefix: &OsStr) -> io::Result<TempDir> {
    let made = tempfile::Builder::new()
        .prefix(prefix)
        .suffix(".part")
        // What the user's mask leaves of it.
        .permissions(Permissions::from_mode(0o777))
        .tempdir_in(parent);
    made.map_err(leftover::plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::names;

    #[test]
    fn what_was_there_stays_until_the_new_one_is_whole() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("site");
        let first = Site::begin(&target).unwrap();
        first.write("index.html", &format!("{MARK}first")).unwrap();
        first.write("old.html", "old").unwrap();
        assert!(!target.exists());
        first.publish().unwrap();
        assert_eq!(names(place.path()), ["site"]);
        let mode = fs::metadata(&target).unwrap().permissions().mode();
        assert_eq!(mode & 0o500, 0o500);

        let second = Site::begin(&target).unwrap();
        second
            .write("index.html", &format!("{MARK}second"))
            .unwrap();
        drop(second);
        let index = || fs::read_to_string(target.join("index.html")).unwrap();
        assert_eq!(index(), format!("{MARK}first"));
        assert_eq!(names(place.path()), ["site"]);

        let third = Site::begin(&target).unwrap();
        third.write("index.html", &format!("{MARK}third")).unwrap();
        third.publish().unwrap();
        assert_eq!(index(), format!("{MARK}third"));
        assert_eq!(names(&target), ["index.html"]);
        assert_eq!(names(place.path()), ["site"]);
    }

    #[test]
    fn what_a_killed_run_left_goes_and_what_is_no_gallery_stays() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join(".site.abcdef.part")).unwrap();
        let target = place.path().join("site");
        fs::create_dir(&target).unwrap();
        drop(Site::begin(&target).unwrap());
        assert_eq!(names(place.path()), ["site"]);
        fs::write(target.join("thesis.tex"), "").unwrap();
        let error = Site::begin(&target).err().unwrap().to_string();
        assert!(error.contains("holds something else"), "{error}");
        let error = Site::begin(&target.join("thesis.tex")).err().unwrap();
        assert!(error.to_string().contains("not a directory"), "{error}");
        assert_eq!(names(&target), ["thesis.tex"]);
    }
}
