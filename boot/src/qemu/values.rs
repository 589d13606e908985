//! Values of the command line that have a syntax of their own.

use std::fmt;
use std::str::FromStr;

/// A machine type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// i440FX with PCI: QEMU's classic PC.
    #[default]
    Pc,
    /// Q35 with PCI Express.
    Q35,
    /// No PCI: virtio-mmio only.
    Microvm,
}

impl Kind {
    /// The word of `--machine` and of QEMU's `-machine`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pc => "pc",
            Self::Q35 => "q35",
            Self::Microvm => "microvm",
        }
    }
}

/// A program that runs virtual machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vmm {
    /// QEMU.
    #[default]
    Qemu,
    /// Firecracker.
    Firecracker,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// kvmtool.
    Kvmtool,
    /// Alioth.
    Alioth,
    /// crosvm.
    Crosvm,
}

impl Vmm {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Qemu,
        Self::Firecracker,
        Self::CloudHypervisor,
        Self::Kvmtool,
        Self::Alioth,
        Self::Crosvm,
    ];

    /// The word of `--vmm`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Kvmtool => "kvmtool",
            Self::Alioth => "alioth",
            Self::Crosvm => "crosvm",
        }
    }
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Qemu => "QEMU",
            Self::Firecracker => "Firecracker",
            Self::CloudHypervisor => "Cloud Hypervisor",
            Self::Kvmtool => "kvmtool",
            Self::Alioth => "Alioth",
            Self::Crosvm => "crosvm",
        })
    }
}

impl FromStr for Vmm {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|vmm| vmm.word() == word);
        found.ok_or_else(|| format!("expected one of: {}", Self::ALL.map(Self::word).join(", ")))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// An amount of memory in whole MiB, 4 MiB to 16 TiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory(u32);

impl Memory {
    /// This many MiB.
    ///
    /// # Errors
    /// [`MemoryError::Range`] for less than 4 MiB and for more than 16 TiB.
    pub fn mebibytes(mebibytes: u32) -> Result<Self, MemoryError> {
        // The image ends below 3 MiB, and SeaBIOS lives at the end of memory while
        // it loads it. From here on the guest itself says where its floor is.
        const MIN: u32 = 4;
        const MAX: u32 = 16 << 20;
        if !(MIN..=MAX).contains(&mebibytes) {
            return Err(MemoryError::Range(mebibytes.to_string()));
        }
        Ok(Self(mebibytes))
    }

    /// The amount in MiB.
    pub const fn as_mebibytes(self) -> u32 {
        self.0
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self(128)
    }
}

/// Why a text is not an amount of memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Not digits with one of the suffixes.
    #[error("'{0}' is not an amount of memory: expected a number with M or G, such as 64M or 8G")]
    Syntax(String),
    /// Less than firmware and image need to start at all, or more than QEMU
    /// takes.
    #[error("'{0}' is out of range: expected 4M to 16384G; below 4M firmware and image collide")]
    Range(String),
}

impl FromStr for Memory {
    type Err = MemoryError;

    /// Reads `64M`, `8G` or, as QEMU does, a plain number of MiB.
    fn from_str(text: &str) -> Result<Self, MemoryError> {
        let syntax = || MemoryError::Syntax(text.to_owned());
        let (digits, scale) = match text.strip_suffix(['G', 'g']) {
            Some(digits) => (digits, 1024),
            None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(syntax());
        }
        let range = || MemoryError::Range(text.to_owned());
        let number: u32 = digits.parse().map_err(|_| range())?;
        Self::mebibytes(number.checked_mul(scale).ok_or_else(range)?).map_err(|_| range())
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= 1024 && self.0.is_multiple_of(1024) {
            f.pad(&format!("{}G", self.0 / 1024))
        } else {
            f.pad(&format!("{}M", self.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_reads_what_it_writes() {
        for (text, mebibytes, shown) in [
            ("16", 16, "16M"),
            ("64M", 64, "64M"),
            ("8G", 8192, "8G"),
            ("1536m", 1536, "1536M"),
        ] {
            let memory: Memory = text.parse().unwrap();
            assert_eq!(memory.as_mebibytes(), mebibytes);
            assert_eq!(memory.to_string(), shown);
        }
    }

    #[test]
    fn memory_refuses_what_is_not_one() {
        for text in ["", "M", "-1", "+1", "1.5G", "64K", "64 M", "٣"] {
            assert!(
                matches!(text.parse::<Memory>(), Err(MemoryError::Syntax(_))),
                "{text}"
            );
        }
        for text in ["0", "0G", "3M", "16385G", "99999999999", "4294967295G"] {
            assert!(
                matches!(text.parse::<Memory>(), Err(MemoryError::Range(_))),
                "{text}"
            );
        }
    }
}
