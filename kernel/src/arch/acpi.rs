//! The two ACPI tables that this kernel needs: MADT (interrupt controllers) and
//! FADT (the power management timer). ACPI specification 6.5, chapter 5.
//!
//! Tables are firmware's; every length in them is checked against the mapped
//! memory, and what does not fit is left out with a warning.

use heapless::Vec;

use crate::memory::firmware_bytes;
use crate::memory::layout::MAX_CPUS;

/// Length of the header that all tables share, in bytes.
const HEADER: usize = 36;
/// A table longer than this many bytes is not one that we read.
const MAX_TABLE: usize = 1 << 20;
/// Where I/O APICs are by convention, when no ACPI says so.
const DEFAULT_IO_APIC: u64 = 0xfec0_0000;

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Physical address of its registers.
    pub address: u64,
    /// Global system interrupt of its input 0.
    pub first_gsi: u32,
}

/// Which level of a line means "interrupt".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polarity {
    /// As the bus has it.
    Default,
    /// High.
    ActiveHigh,
    /// Low.
    ActiveLow,
}

/// An ISA line that is not wired to the I/O APIC's input of the same number or
/// not in the way of the ISA bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceOverride {
    /// ISA line, 0 to 15.
    pub irq: u8,
    /// The global system interrupt that it raises.
    pub gsi: u32,
    /// Its polarity.
    pub polarity: Polarity,
}

/// The power management timer: a counter at 3.579545 MHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// I/O port of the 32-bit register.
    pub port: u16,
    /// Whether all 32 bits count, not only 24.
    pub is_32_bit: bool,
}

/// What the tables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Physical address of the local APIC's registers.
    pub local_apic_address: Option<u64>,
    /// I/O APICs.
    pub io_apics: Vec<IoApic, 4>,
    /// Interrupt source overrides.
    pub overrides: Vec<SourceOverride, 16>,
    /// The power management timer, where there is one.
    pub pm_timer: Option<PmTimer>,
    /// APIC ids of the CPUs that can be used.
    pub cpus: Vec<u32, MAX_CPUS>,
    /// CPUs for which there was no room in `cpus`.
    pub cpus_left_out: usize,
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*field))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u64::from_le_bytes(*field))
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_le_bytes(*field))
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// The table at `address` if it has this signature, lies in mapped memory, and
/// its checksum holds. Other tables are not read: some are long.
fn table(address: u64, signature: &[u8; 4]) -> Option<&'static [u8]> {
    let header = firmware_bytes(address, HEADER)?;
    if !header.starts_with(signature) {
        return None;
    }
    let length = u32_at(header, 4)? as usize;
    let bytes = Some(length)
        .filter(|length| (HEADER..=MAX_TABLE).contains(length))
        .and_then(|length| firmware_bytes(address, length))
        .filter(|bytes| sums_to_zero(bytes));
    if bytes.is_none() {
        log::warn!("ACPI table at {address:#x} ignored: its length or checksum is wrong");
    }
    bytes
}

/// The root table and the width of its entries in bytes.
fn root_table(rsdp: u64) -> Option<(&'static [u8], usize)> {
    let pointer = firmware_bytes(rsdp, 20)?;
    if !pointer.starts_with(b"RSD PTR ") || !sums_to_zero(pointer) {
        return None;
    }
    let revision = *pointer.get(15)?;
    if revision >= 2
        && let Some(extended) = firmware_bytes(rsdp, 36)
        && let Some(xsdt) = u64_at(extended, 24)
        && let Some(root) = table(xsdt, b"XSDT")
    {
        return Some((root, 8));
    }
    let rsdt = u32_at(pointer, 16)?;
    Some((table(u64::from(rsdt), b"RSDT")?, 4))
}

/// Reads the tables that `rsdp` leads to. Without ACPI, or without an I/O APIC
/// in it, the conventional address is assumed.
pub fn read(rsdp: Option<u64>) -> Tables {
    let mut tables = Tables::default();
    match rsdp.map(root_table) {
        Some(Some((root, width))) => {
            for entry in root.get(HEADER..).unwrap_or_default().chunks_exact(width) {
                let address = match width {
                    8 => u64_at(entry, 0),
                    _ => u32_at(entry, 0).map(u64::from),
                };
                let Some(address) = address else { continue };
                if let Some(madt) = table(address, b"APIC") {
                    read_madt(madt, &mut tables);
                } else if let Some(fadt) = table(address, b"FACP") {
                    tables.pm_timer = read_fadt(fadt);
                }
            }
        }
        Some(None) => log::warn!("ACPI ignored: no valid root table behind {rsdp:x?}"),
        None => log::debug!("no ACPI"),
    }
    if tables.io_apics.is_empty() {
        // The vector is empty, so this fits.
        let _ = tables.io_apics.push(IoApic {
            address: DEFAULT_IO_APIC,
            first_gsi: 0,
        });
    }
    tables
}

/// MADT: section 5.2.12. Entries start at offset 44, each with type and length.
fn read_madt(table: &[u8], tables: &mut Tables) {
    tables.local_apic_address = u32_at(table, 36).map(u64::from);
    let mut rest = table.get(44..).unwrap_or_default();
    while let [kind, length, ..] = *rest {
        let length = usize::from(length);
        let Some(entry) = rest.get(..length).filter(|_| length >= 2) else {
            log::warn!("ACPI MADT: entry of type {kind} has length {length}; the rest is ignored");
            return;
        };
        if read_madt_entry(kind, entry, tables).is_none() {
            log::warn!("ACPI MADT: entry of type {kind} ignored: too short, or one too many");
        }
        rest = rest.get(length..).unwrap_or_default();
    }
}

fn read_madt_entry(kind: u8, entry: &[u8], tables: &mut Tables) -> Option<()> {
    match kind {
        // Local APIC, and local x2APIC for ids above 254. Bit 0 of the flags:
        // the CPU is enabled; others may be plugged in some day.
        0 => {
            let id = u32::from(*entry.get(3)?);
            add_cpu(id, u32_at(entry, 4)?, tables);
            Some(())
        }
        9 => {
            add_cpu(u32_at(entry, 4)?, u32_at(entry, 8)?, tables);
            Some(())
        }
        1 => tables
            .io_apics
            .push(IoApic {
                address: u64::from(u32_at(entry, 4)?),
                first_gsi: u32_at(entry, 8)?,
            })
            .ok(),
        2 => tables
            .overrides
            .push(SourceOverride {
                irq: *entry.get(3)?,
                gsi: u32_at(entry, 4)?,
                polarity: match u16_at(entry, 8)? & 3 {
                    1 => Polarity::ActiveHigh,
                    3 => Polarity::ActiveLow,
                    _ => Polarity::Default,
                },
            })
            .ok(),
        5 => {
            tables.local_apic_address = Some(u64_at(entry, 4)?);
            Some(())
        }
        _ => Some(()),
    }
}

fn add_cpu(apic_id: u32, flags: u32, tables: &mut Tables) {
    // Firmware may name a CPU in both forms.
    if flags & 1 != 0 && !tables.cpus.contains(&apic_id) && tables.cpus.push(apic_id).is_err() {
        tables.cpus_left_out += 1;
    }
}

/// FADT: section 5.2.9. The timer's port is the 32-bit one of ACPI 1.0, which
/// is filled in wherever the timer is in I/O space.
fn read_fadt(table: &[u8]) -> Option<PmTimer> {
    let port = u16::try_from(u32_at(table, 76)?).ok()?;
    let length = *table.get(91)?;
    let flags = u32_at(table, 112)?;
    (port != 0 && length >= 4).then_some(PmTimer {
        port,
        is_32_bit: flags & 1 << 8 != 0,
    })
}
