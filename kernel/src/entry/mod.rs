//! The ways into the kernel. Each loader leaves the CPU and its information in
//! its own form; all of them end in one [`Platform`] and in `crate::start`.

mod boot_mapping;
mod bootloader;
mod linux;
mod pvh;
mod stub;

use core::fmt;
use core::ops::Range;

use boot_mapping::CommandLine;
use heapless::Vec;

/// Largest number of memory regions that are kept; OVMF reports around 100.
const MAX_REGIONS: usize = 256;

/// Who started the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The hypervisor, through the PVH entry point (QEMU `-kernel`).
    Pvh,
    /// A loader of a bzImage, by the Linux boot protocol.
    Linux,
    /// The `bootloader` crate, started by a BIOS.
    Bios,
    /// The `bootloader` crate, started by UEFI firmware.
    Uefi,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pvh => "PVH",
            Self::Linux => "bzImage",
            Self::Bios => "BIOS",
            Self::Uefi => "UEFI",
        })
    }
}

/// What a region of physical memory may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Free memory.
    Usable,
    /// Memory in use: the loader's, or the firmware's tables.
    Occupied,
    /// Not known to be memory at all.
    Reserved,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Physical addresses, in bytes.
    pub range: Range<u64>,
    pub kind: RegionKind,
}

/// The physical address space as the loader described it.
#[derive(Debug, Default)]
pub struct MemoryMap {
    regions: Vec<Region, MAX_REGIONS>,
    /// How many regions did not fit and are unknown to the kernel.
    pub dropped: usize,
}

impl MemoryMap {
    /// Adds a region; neighbours of one kind become one. Empty and wrapping
    /// ones are ignored.
    fn push(&mut self, range: Range<u64>, kind: RegionKind) {
        if range.is_empty() {
            return;
        }
        if let Some(last) = self.regions.last_mut()
            && last.kind == kind
            && last.range.end == range.start
        {
            last.range.end = range.end;
            return;
        }
        if self.regions.push(Region { range, kind }).is_err() {
            self.dropped += 1;
        }
    }

    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Those that have an address of `range`.
    pub fn touching(&self, range: Range<u64>) -> impl Iterator<Item = &Region> {
        self.regions
            .iter()
            .filter(move |region| region.range.start < range.end && range.start < region.range.end)
    }

    pub fn usable_bytes(&self) -> u64 {
        let usable = |region: &&Region| region.kind == RegionKind::Usable;
        let regions = self.regions.iter().filter(usable);
        regions.map(|it| it.range.end - it.range.start).sum()
    }
}

/// What every loader tells, in one form.
#[derive(Debug)]
pub struct Platform {
    pub protocol: Protocol,
    pub memory_map: MemoryMap,
    /// The command line; `None` from a loader that has none, in which case the
    /// configuration comes from QEMU's fw_cfg device (`crate::config`).
    pub command_line: Option<CommandLine>,
    /// Physical address of ACPI's root pointer, where the loader knew one.
    pub rsdp: Option<u64>,
    /// Virtual minus physical address of memory in the *loader's* page tables.
    /// `memory::take_over` replaces those by the kernel's own.
    pub physical_memory_offset: u64,
}
