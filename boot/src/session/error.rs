//! Why there is no session.

use std::io;
use std::path::{Path, PathBuf};

use super::mismatch::Mismatch;
use crate::accel::NoKvm;
use crate::guest::Failure;
use crate::image::ImageError;
use crate::install::InstallError;
use crate::linux::LinuxError;
use crate::output::OutputError;
use crate::ports::NoPort;
use crate::qemu::{FirmwareError, Vmm};
use crate::scratch::ScratchError;
use crate::toolchain::ToolchainError;
use crate::trace::capture::TraceError;
use crate::wire::{PlanError, TapError};

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Options that do not go together.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The guest's configuration.
    #[error("--features: {0}")]
    Features(String),
    /// The addresses.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The accelerator.
    #[error(transparent)]
    Accel(#[from] NoKvm),
    /// A program is missing.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// A Linux to boot is missing.
    #[error(transparent)]
    Linux(#[from] LinuxError),
    /// The guest cannot be built.
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    /// The disk image.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// The bzImage.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The VMM is not there.
    #[error("--vmm {}: there is no {} on the path (--vmm-path names it)", vmm.word(), vmm.programs()[0])]
    NoVmm {
        /// The VMM.
        vmm: Vmm,
    },
    /// The tap device.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The guest.
    #[error(transparent)]
    Guest(#[from] Box<Failure>),
    /// The directory for temporary files.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The trace.
    #[error("cannot trace: {0}")]
    Trace(TraceError),
    /// What was named is not a file.
    #[error("{option} {}: {why}", file.display())]
    NoFile {
        /// The option that names it.
        option: &'static str,
        /// What it names.
        file: PathBuf,
        /// What it is instead.
        why: NoFile,
    },
    /// A file that was asked for.
    #[error(transparent)]
    File(#[from] OutputError),
    /// The system refuses.
    #[error("cannot {what}: {source}")]
    System {
        /// What.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// No port of the loopback interface is free.
    #[error(transparent)]
    NoPort(#[from] NoPort),
    /// The output is closed.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

/// What is where a file should be.
#[derive(Debug, thiserror::Error)]
pub enum NoFile {
    /// Nothing.
    #[error("there is no such file")]
    Nothing,
    /// A directory.
    #[error("it is a directory")]
    Directory,
    /// A device, a pipe, a socket.
    #[error("it is no regular file")]
    Special,
    /// Something that this user may not look at.
    #[error("{0}")]
    Unknown(io::Error),
}

impl SessionError {
    /// Whether `file`, which `option` names, is a file.
    ///
    /// # Errors
    /// What it is instead.
    pub fn check_file(option: &'static str, file: &Path) -> Result<(), Self> {
        let why = match file.metadata() {
            Ok(found) if found.is_file() => return Ok(()),
            Ok(found) if found.is_dir() => NoFile::Directory,
            Ok(_) => NoFile::Special,
            Err(error) if error.kind() == io::ErrorKind::NotFound => NoFile::Nothing,
            Err(error) => NoFile::Unknown(error),
        };
        let file = file.to_owned();
        Err(Self::NoFile { option, file, why })
    }
}

impl From<TraceError> for SessionError {
    fn from(error: TraceError) -> Self {
        match error {
            TraceError::Guest(failure) => Self::Guest(failure),
            other => Self::Trace(other),
        }
    }
}
