//! The entry from the `bootloader` crate: BIOS and UEFI disk images.
//!
//! The CPU arrives in 64-bit mode on page tables and a stack of the loader's;
//! both only have to last until `memory::take_over`.

use bootloader_api::config::Mapping;
use bootloader_api::info::MemoryRegionKind;
use bootloader_api::{BootInfo, BootloaderConfig};

use super::{MemoryMap, Platform, Protocol, RegionKind};
use crate::arch::time;

/// UEFI memory types that hold something, but are memory: loader and boot
/// services (1 to 4), runtime services (5, 6), ACPI tables and NVS (9, 10).
/// UEFI specification, section 7.2.
const UEFI_MEMORY: [u32; 8] = [1, 2, 3, 4, 5, 6, 9, 10];
/// E820 types that are memory: usable, ACPI tables, ACPI NVS.
const E820_MEMORY: [u32; 3] = [1, 3, 4];

static CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.mappings.physical_memory = Some(Mapping::Dynamic);
    config
};

bootloader_api::entry_point!(start, config = &CONFIG);

fn start(boot_info: &'static mut BootInfo) -> ! {
    time::set_boot_tsc(time::cycles());
    let mut memory_map = MemoryMap::default();
    let mut protocol = Protocol::Bios;
    for region in boot_info.memory_regions.iter() {
        let kind = match region.kind {
            MemoryRegionKind::Usable => RegionKind::Usable,
            MemoryRegionKind::Bootloader => RegionKind::Occupied,
            MemoryRegionKind::UnknownUefi(tag) => {
                // The loader does not tell its firmware in any other way.
                protocol = Protocol::Uefi;
                if UEFI_MEMORY.contains(&tag) {
                    RegionKind::Occupied
                } else {
                    RegionKind::Reserved
                }
            }
            MemoryRegionKind::UnknownBios(tag) if E820_MEMORY.contains(&tag) => {
                RegionKind::Occupied
            }
            _ => RegionKind::Reserved,
        };
        memory_map.push(region.start..region.end, kind);
    }
    // Always present, because `CONFIG` asks for it.
    let offset = boot_info.physical_memory_offset.into_option();
    crate::start(Platform {
        protocol,
        memory_map,
        command_line: None,
        rsdp: boot_info.rsdp_addr.into_option(),
        physical_memory_offset: offset.unwrap_or_default(),
    })
}
