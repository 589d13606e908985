//! The MultiProcessor table (Intel's MultiProcessor Specification 1.4, chapter
//! 4): what CPUs and I/O APICs there are, on a machine without ACPI (kvmtool).

use super::acpi::{self, IoApic, Tables};
use super::bytes::{sums_to_zero, u16_at, u32_at};
use crate::memory::firmware_bytes;

/// Where the pointer to the table may be: the last KiB of memory below 640 KiB,
/// and the BIOS's own memory.
const PLACES: [(u64, usize); 2] = [(0x9_fc00, 0x400), (0xf_0000, 0x1_0000)];
/// Length of the pointer in bytes.
const POINTER: usize = 16;
/// Length of the table's header in bytes.
const HEADER: usize = 44;

/// Adds what the table tells to `tables`; returns whether there is one.
pub fn read(tables: &mut Tables) -> bool {
    let Some(table) = find() else { return false };
    tables.local_apic_address = u32_at(table, 36).map(u64::from);
    let mut rest = table.get(HEADER..).unwrap_or_default();
    for _ in 0..u16_at(table, 34).unwrap_or_default() {
        // A CPU's entry has 20 bytes, every other one 8.
        let length = match rest.first() {
            Some(0) => 20,
            Some(_) => 8,
            None => break,
        };
        let Some((entry, others)) = rest.split_at_checked(length) else {
            log::warn!("MP table: its last entry is cut off");
            break;
        };
        rest = others;
        add(entry, tables);
    }
    log::debug!("MP table: {} CPUs", tables.cpus.len());
    true
}

/// Takes a CPU or an I/O APIC; of both, bit 0 of the flags says that it is
/// usable.
fn add(entry: &[u8], tables: &mut Tables) {
    let flags = entry.get(3).copied().unwrap_or_default();
    let id = entry.get(1).copied().unwrap_or_default();
    match entry.first() {
        Some(0) => acpi::add_cpu(id.into(), flags.into(), tables),
        Some(2) if flags & 1 != 0 => {
            // The table gives inputs no numbers across I/O APICs; the first
            // one's are those of the lines.
            let address = u32_at(entry, 4).map(u64::from);
            if let Some(address) = address.filter(|_| tables.io_apics.is_empty()) {
                // The vector is empty, so this fits.
                let _ = tables.io_apics.push(IoApic {
                    address,
                    first_gsi: 0,
                });
            }
        }
        _ => {}
    }
}

/// The table, if its length and checksum hold.
fn find() -> Option<&'static [u8]> {
    let pointer = PLACES.iter().find_map(|&(start, length)| {
        let place = firmware_bytes(start, length)?;
        let mut pointers = place.chunks_exact(POINTER);
        pointers.find(|pointer| pointer.starts_with(b"_MP_") && sums_to_zero(pointer))
    })?;
    let address = u64::from(u32_at(pointer, 4)?);
    let header = firmware_bytes(address, HEADER)?;
    let length = usize::from(u16_at(header, 4)?);
    firmware_bytes(address, length)
        .filter(|table| length >= HEADER && table.starts_with(b"PCMP") && sums_to_zero(table))
}
