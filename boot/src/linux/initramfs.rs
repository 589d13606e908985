//! The first root directory of a Linux: an archive of the format newc (Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, Write};
use std::path::Path;

use cpio::NewcBuilder;

use super::{Linux, LinuxError};

const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const DIRECTORY: u32 = 0o040_755;

/// A file of the archive.
pub struct Entry {
    name: String,
    mode: u32,
    content: Box<dyn ReadSeek>,
}

trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

impl Entry {
    /// A program or a script, by its name without the leading `/`.
    pub fn program(name: &str, content: impl Into<Vec<u8>>) -> Self {
        Self::of(name, PROGRAM, Cursor::new(content.into()))
    }

    /// A directory; it stands before what is in it.
    pub fn directory(name: &str) -> Self {
        Self::of(name, DIRECTORY, io::empty())
    }

    /// A file that is read.
    pub fn text(name: &str, content: impl Into<Vec<u8>>) -> Self {
        Self::of(name, FILE, Cursor::new(content.into()))
    }

    fn file(name: &str, mode: u32, path: &Path) -> Result<Self, LinuxError> {
        let content = File::open(path).map_err(LinuxError::system("read", path))?;
        Ok(Self::of(name, mode, content))
    }

    fn of(name: &str, mode: u32, content: impl Read + Seek + 'static) -> Self {
        Self {
            name: name.to_owned(),
            mode,
            content: Box::new(content),
        }
    }
}

/// Writes an archive with `files`, `/busybox`, and the modules of `linux` in
/// `/modules`, whose names are in the order in which they can be loaded.
///
/// # Errors
/// A file cannot be read or written.
pub fn write(
    archive: &Path,
    linux: &Linux,
    files: impl IntoIterator<Item = Entry>,
) -> Result<(), LinuxError> {
    let mut entries: Vec<Entry> = files.into_iter().collect();
    entries.push(Entry::file("busybox", PROGRAM, &linux.busybox())?);
    entries.push(Entry::directory("modules"));
    for module in linux.modules()? {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        entries.push(Entry::file(&format!("modules/{name}"), FILE, &module)?);
    }
    let entries = entries.into_iter();
    let entries = entries.map(|entry| {
        let header = NewcBuilder::new(&entry.name).mode(entry.mode);
        (header, entry.content)
    });
    File::create(archive)
        .and_then(|out| cpio::write_cpio(entries, io::BufWriter::new(out)))
        .and_then(|mut out| out.flush())
        .map_err(LinuxError::system("write", archive))
}
