//! The PVH entry point: Xen's "x86/HVM direct boot ABI".
//!
//! The CPU arrives at `stub`'s `pvh_start32` in 32-bit protected mode without paging,
//! `ebx` pointing to the start info.

use core::alloc::Layout;

use pvh::start_info::reader::{MemMap, StartInfoReader};
use pvh::start_info::{MemmapType, StartInfo};

use super::boot_mapping::{BootMapping, CommandLine};
use super::{MemoryMap, Platform, Protocol, RegionKind};

unsafe extern "C" {
    /// `pvh_start32` at its physical address, by the linker script.
    fn pvh_start32_physical() -> !;
}

pvh::xen_elfnote_phys32_entry!(pvh_start32_physical);

impl MemMap for BootMapping {
    fn ptr(&self, paddr: usize, layout: Layout) -> *const u8 {
        self.pointer(paddr, layout)
    }
}

/// Continues in 64-bit mode, on the main stack.
pub(super) extern "C" fn start(tsc: u64, start_info: u32) -> ! {
    crate::arch::time::set_boot_tsc(tsc);
    let start_info_reachable = !BootMapping
        .pointer(start_info as usize, Layout::new::<StartInfo>())
        .is_null();
    // SAFETY: the PVH boot ABI says that `ebx` is the address of a start info,
    // and the stub's page tables map it, as was just checked.
    let reader = start_info_reachable
        .then(|| unsafe { StartInfoReader::from_paddr(start_info, BootMapping) })
        .flatten();

    let mut memory_map = MemoryMap::default();
    let mut rsdp = None;
    let mut command_line = CommandLine::default();
    if let Some(reader) = reader {
        for entry in reader.memmap() {
            let kind = match MemmapType::from(entry.ty) {
                MemmapType::Ram => RegionKind::Usable,
                MemmapType::Acpi | MemmapType::Nvs => RegionKind::Occupied,
                _ => RegionKind::Reserved,
            };
            let end = entry.addr.saturating_add(entry.size);
            memory_map.push(entry.addr..end, kind);
        }
        rsdp = Some(reader.raw().rsdp_paddr).filter(|&address| address != 0);
        command_line = CommandLine::copy(reader.raw().cmdline_paddr);
    }
    crate::start(Platform {
        protocol: Protocol::Pvh,
        memory_map,
        command_line: Some(command_line),
        rsdp,
        physical_memory_offset: 0,
    })
}
