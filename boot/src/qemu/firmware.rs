//! Disk images and the firmware that starts them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::install::OVMF_FILES;

/// What starts a disk image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS, which QEMU brings along.
    Bios,
    /// OVMF; the file of its code.
    Uefi(PathBuf),
}

/// A disk image and what starts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskImage {
    /// The raw image.
    pub file: PathBuf,
    /// Its firmware.
    pub firmware: Firmware,
}

/// Why a file cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// The image cannot be read.
    #[error("cannot read the disk image {file}: {source}")]
    Read {
        /// The image.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Neither a boot sector nor a partition table.
    #[error(
        "{0} is not a disk image: neither a GUID partition table nor a boot sector at its start"
    )]
    NotAnImage(PathBuf),
    /// A UEFI image, and no firmware on this machine.
    #[error(
        "{0} starts by UEFI, and no OVMF firmware was found (KICKPATH_OVMF may name its code file)"
    )]
    NoOvmf(PathBuf),
}

impl DiskImage {
    /// Looks at the start of `file`: a GUID partition table means UEFI, a boot
    /// sector alone means BIOS.
    ///
    /// # Errors
    /// The file cannot be read, is no image, or needs a firmware that is not
    /// on this machine.
    pub fn detect(file: &Path) -> Result<Self, FirmwareError> {
        let mut start = Vec::with_capacity(1024);
        File::open(file)
            .and_then(|opened| opened.take(1024).read_to_end(&mut start))
            .map_err(|source| FirmwareError::Read {
                file: file.to_owned(),
                source,
            })?;
        let firmware = match kind(&start) {
            Some(Start::Gpt) => {
                Firmware::Uefi(find_ovmf().ok_or_else(|| FirmwareError::NoOvmf(file.to_owned()))?)
            }
            Some(Start::BootSector) => Firmware::Bios,
            None => return Err(FirmwareError::NotAnImage(file.to_owned())),
        };
        Ok(Self {
            file: file.to_owned(),
            firmware,
        })
    }
}

#[derive(Debug, PartialEq)]
enum Start {
    Gpt,
    BootSector,
}

/// UEFI 2.10, 5.3.2: the header of the partition table is in the second
/// sector of 512 bytes and starts with this signature.
fn kind(start: &[u8]) -> Option<Start> {
    if start.get(512..520) == Some(b"EFI PART") {
        Some(Start::Gpt)
    } else if start.get(510..512) == Some(&[0x55, 0xaa]) {
        Some(Start::BootSector)
    } else {
        None
    }
}

fn find_ovmf() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("KICKPATH_OVMF") {
        return Some(named.into());
    }
    let mut files = OVMF_FILES.iter().map(PathBuf::from);
    files.find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_first_sectors() {
        let mut sectors = vec![0; 1024];
        assert_eq!(kind(&sectors), None);
        assert_eq!(kind(&sectors[..100]), None);
        sectors[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(kind(&sectors), Some(Start::BootSector));
        sectors[512..520].copy_from_slice(b"EFI PART");
        assert_eq!(kind(&sectors), Some(Start::Gpt));
        assert_eq!(kind(&sectors[..515]), Some(Start::BootSector));
    }

    #[test]
    fn a_file_that_is_no_image_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"\x7fELF").unwrap();
        let error = DiskImage::detect(file.path()).unwrap_err();
        assert!(matches!(error, FirmwareError::NotAnImage(_)), "{error}");
    }
}
