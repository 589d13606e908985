//! The ACPI tables that this kernel needs: MADT (interrupt controllers), FADT
//! (the power management timer), MCFG (PCI's configuration in memory), whether
//! there is an IOMMU and, in part, the DSDT (virtio-mmio devices). ACPI
//! specification 6.5, chapter 5. Where PCI's interrupts lead is for
//! `kickpath_aml` to find out.
//!
//! Tables are firmware's; every length in them is checked against the mapped
//! memory, and what does not fit is left out with a warning.

use core::ops::RangeInclusive;

use heapless::Vec;
use kickpath_aml::Polarity;
use spin::Once;

use crate::memory::firmware_bytes;
use crate::memory::layout::MAX_CPUS;

/// Length of the header that all tables share, in bytes.
const HEADER: usize = 36;
/// A table longer than this many bytes is not one that we read.
const MAX_TABLE: usize = 1 << 20;
/// Where I/O APICs are by convention, when no ACPI says so.
const DEFAULT_IO_APIC: u64 = 0xfec0_0000;

/// The tables that describe an IOMMU: Intel's, AMD's and virtio's.
const IOMMUS: [&[u8; 4]; 3] = [b"DMAR", b"IVRS", b"VIOT"];

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Physical address of its registers.
    pub address: u64,
    /// Global system interrupt of its input 0.
    pub first_gsi: u32,
}

/// An ISA line that is not wired to the I/O APIC's input of the same number or
/// not in the way of the ISA bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceOverride {
    /// ISA line, 0 to 15.
    pub irq: u8,
    /// The global system interrupt that it raises.
    pub gsi: u32,
    /// Its polarity; `None` when it is as the bus has it.
    pub polarity: Option<Polarity>,
}

/// The power management timer: a counter at 3.579545 MHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// I/O port of the 32-bit register.
    pub port: u16,
    /// Whether all 32 bits count, not only 24.
    pub is_32_bit: bool,
}

/// PCI's configuration space in memory (PCI Firmware specification 3.2,
/// section 4.1.2), of PCI segment 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Physical address of bus 0, whether or not that is among the buses.
    pub base: u64,
    first_bus: u8,
    last_bus: u8,
}

impl Ecam {
    /// The buses that are in it.
    pub fn buses(&self) -> RangeInclusive<u8> {
        self.first_bus..=self.last_bus
    }
}

/// Most virtio-mmio devices that are kept; microvm has 24 at most.
pub const MAX_VIRTIO_MMIO: usize = 32;

/// A virtio-mmio device, as firmware describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Physical address of its registers.
    pub address: u64,
    /// Length of its registers in bytes.
    pub size: u64,
    /// The global system interrupt that it raises.
    pub gsi: u32,
}

/// What the tables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Physical address of the local APIC's registers.
    pub local_apic_address: Option<u64>,
    /// I/O APICs.
    pub io_apics: Vec<IoApic, 4>,
    /// Nothing told of an I/O APIC; that one is there is a guess.
    pub io_apic_is_assumed: bool,
    /// Interrupt source overrides.
    pub overrides: Vec<SourceOverride, 16>,
    /// The power management timer, where there is one.
    pub pm_timer: Option<PmTimer>,
    /// APIC ids of the CPUs that can be used.
    pub cpus: Vec<u32, MAX_CPUS>,
    /// CPUs for which there was no room in `cpus`.
    pub cpus_left_out: usize,
    /// PCI's configuration space in memory, where there is one.
    pub ecam: Option<Ecam>,
    /// Whether there is an IOMMU.
    pub has_iommu: bool,
    /// Physical address of the DSDT, which is not looked at yet.
    dsdt: Option<u64>,
    /// Physical addresses of the SSDTs, which are not looked at either.
    ssdts: Vec<u64, MAX_SSDTS>,
}

/// Most SSDTs that are kept.
const MAX_SSDTS: usize = 15;

/// What [`read`] found, for those who look later.
static TABLES: Once<Tables> = Once::new();

/// The tables, once they are kept.
pub fn tables() -> Option<&'static Tables> {
    TABLES.get()
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

/// Whether a table with this signature is at `address`.
fn has_signature(address: u64, signature: &[u8; 4]) -> bool {
    firmware_bytes(address, HEADER).is_some_and(|header| header.starts_with(signature))
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
                    tables.dsdt = dsdt(fadt);
                } else if let Some(mcfg) = table(address, b"MCFG") {
                    tables.ecam = read_mcfg(mcfg);
                } else if IOMMUS.iter().any(|name| has_signature(address, name)) {
                    tables.has_iommu = true;
                } else if has_signature(address, b"SSDT") && tables.ssdts.push(address).is_err() {
                    log::warn!("ACPI: more than {MAX_SSDTS} SSDTs");
                }
            }
        }
        Some(None) => log::warn!("ACPI ignored: no valid root table behind {rsdp:x?}"),
        None => log::debug!("no ACPI"),
    }
    if tables.io_apics.is_empty() {
        tables.io_apic_is_assumed = true;
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
                    1 => Some(Polarity::High),
                    3 => Some(Polarity::Low),
                    _ => None,
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

/// MCFG: PCI Firmware specification 3.2, table 4-2. Entries of 16 bytes start
/// at offset 44.
fn read_mcfg(table: &[u8]) -> Option<Ecam> {
    table
        .get(44..)?
        .chunks_exact(16)
        .filter(|entry| u16_at(entry, 8) == Some(0))
        .find_map(|entry| {
            let (base, first_bus, last_bus) = (u64_at(entry, 0)?, *entry.get(10)?, *entry.get(11)?);
            // 256 buses of 1 MiB must not wrap.
            let fits = base.checked_add(256 << 20).is_some();
            (base != 0 && fits && first_bus <= last_bus).then_some(Ecam {
                base,
                first_bus,
                last_bus,
            })
        })
}

/// The DSDT that the FADT leads to: by the 64-bit pointer of ACPI 2.0 where
/// that is set.
fn dsdt(fadt: &[u8]) -> Option<u64> {
    let short = u32_at(fadt, 40).map(u64::from);
    let long = u64_at(fadt, 140).filter(|&address| address != 0);
    long.or(short)
}

impl Tables {
    /// Keeps the tables for [`tables`].
    pub fn keep(self) {
        TABLES.call_once(|| self);
    }

    /// The tables with AML, the DSDT first. None when there is no DSDT.
    pub fn aml(&self) -> Vec<&'static [u8], { MAX_SSDTS + 1 }> {
        let dsdt = self.dsdt.and_then(|address| table(address, b"DSDT"));
        let ssdts = self.ssdts.iter();
        let ssdts = ssdts.filter_map(|&address| table(address, b"SSDT"));
        match dsdt {
            Some(dsdt) => core::iter::once(dsdt).chain(ssdts).collect(),
            None => Vec::new(),
        }
    }

    /// Finds virtio-mmio devices in the DSDT. That is AML, a program; but a
    /// device without code of its own is plain data: `_HID "LNRO0005"`, and in
    /// `_CRS` a resource template (ACPI 6.4.3) with one range of memory and one
    /// interrupt. So no interpreter is needed to find it.
    ///
    /// The table has some kilobytes, so this is left until somebody wants to
    /// know.
    pub fn virtio_mmio(&self) -> Vec<VirtioMmio, MAX_VIRTIO_MMIO> {
        const HID: &[u8] = b"LNRO0005\0";
        /// Where the template ends, in bytes after the name at most.
        const REACH: usize = 256;

        let mut devices = Vec::new();
        let table = self.dsdt.and_then(|address| table(address, b"DSDT"));
        let mut rest = table
            .and_then(|table| table.get(HEADER..))
            .unwrap_or_default();
        while let Some(at) = find(rest, HID) {
            rest = rest.get(at + HID.len()..).unwrap_or_default();
            let near = rest.get(..REACH.min(rest.len())).unwrap_or_default();
            // Not beyond the next device.
            let own = near.get(..find(near, HID).unwrap_or(near.len()));
            let Some(device) = own.and_then(resources) else {
                log::warn!("ACPI DSDT: a virtio-mmio device without resources is ignored");
                continue;
            };
            if devices.push(device).is_err() {
                log::warn!("ACPI DSDT: more than {MAX_VIRTIO_MMIO} virtio-mmio devices");
                break;
            }
        }
        devices
    }
}

/// The first range of memory and the first interrupt of a resource template.
fn resources(template: &[u8]) -> Option<VirtioMmio> {
    /// 32-bit fixed memory range descriptor, 9 bytes.
    const MEMORY: &[u8] = &[0x86, 9, 0];
    /// Extended interrupt descriptor, 6 bytes, of one interrupt.
    const INTERRUPT: &[u8] = &[0x89, 6, 0];
    let memory = template.get(find(template, MEMORY)?..)?;
    let interrupt = template.get(find(template, INTERRUPT)?..)?;
    Some(VirtioMmio {
        address: u64::from(u32_at(memory, 4)?),
        size: u64::from(u32_at(memory, 8)?),
        gsi: u32_at(interrupt, 5)?,
    })
}

/// Where `pattern` is in `bytes`, looking for its first byte first: tables are
/// long, and a software KVM slow.
fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    let first = pattern.first()?;
    let mut from = 0;
    loop {
        from += bytes.get(from..)?.iter().position(|byte| byte == first)?;
        if bytes.get(from..)?.starts_with(pattern) {
            return Some(from);
        }
        from += 1;
    }
}
