//! The ACPI tables that this kernel needs: MADT (interrupt controllers), FADT
//! (the power management timer), MCFG (PCI's configuration in memory), whether
//! there is an IOMMU and, in part, the DSDT (virtio-mmio devices). ACPI
//! specification 6.5, chapter 5. No AML is run, so where PCI's interrupts lead
//! is not known from here.
//!
//! Tables are firmware's; every length in them is checked against the mapped
//! memory, and what does not fit is left out with a warning.

use core::fmt;
use core::ops::{Range, RangeInclusive};

use heapless::Vec;
use spin::Once;

use super::bytes::{find, sums_to_zero, u16_at, u32_at, u64_at};
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

/// A global system interrupt: the number ACPI gives to an input of an I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gsi(pub u32);

/// Whether the level of an interrupt line counts, or a change of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// An interrupt for as long as the line is active.
    Level,
    /// An interrupt each time the line becomes active.
    Edge,
}

/// Which level of an interrupt line is the active one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polarity {
    High,
    Low,
}

/// An input of an I/O APIC, and how it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    pub gsi: Gsi,
    pub trigger: Trigger,
    pub polarity: Polarity,
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gsi(gsi) = self.gsi;
        write!(f, "GSI {gsi} ({:?}, {:?})", self.trigger, self.polarity)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
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
    pub gsi: u32,
    /// Its polarity; `None` when it is as the bus has it.
    pub polarity: Option<Polarity>,
}

/// The power management timer: a counter at 3.579545 MHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    pub port: u16,
    /// The bits that count: 24, or all 32.
    pub mask: u32,
}

/// PCI's configuration space in memory (PCI Firmware specification 3.2,
/// section 4.1.2), of PCI segment 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Physical address of bus 0, whether or not that is among the buses.
    pub base: u64,
    pub buses: RangeInclusive<u8>,
}

/// Most virtio-mmio devices that are kept; microvm has 24 at most.
pub const MAX_VIRTIO_MMIO: usize = 32;

/// A virtio-mmio device, as firmware describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Physical address of its registers.
    pub address: u64,
    /// Length of its registers in bytes.
    pub size: usize,
    pub input: Input,
}

/// Where a register of 8 bits or more is (ACPI's "generic address", specification 6.5,
/// section 5.2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// At this physical address.
    Memory(u64),
    Port(u16),
}

/// What the tables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub local_apic_address: Option<u64>,
    pub io_apics: Vec<IoApic, 4>,
    /// Nothing told of an I/O APIC; that one is there is a guess.
    pub io_apic_is_assumed: bool,
    pub overrides: Vec<SourceOverride, 16>,
    pub pm_timer: Option<PmTimer>,
    /// APIC ids of the CPUs that can be used.
    pub cpus: Vec<u32, MAX_CPUS>,
    /// CPUs for which there was no room in `cpus`.
    pub cpus_left_out: usize,
    pub ecam: Option<Ecam>,
    pub has_iommu: bool,
    /// The register that resets the machine, and what is to be written there.
    pub reset: Option<(Register, u8)>,
    /// The register that puts a hardware-reduced machine to sleep.
    pub sleep_control: Option<Register>,
    /// The port of the register that puts any other machine to sleep.
    pub pm1_control: Option<u16>,
    /// Physical address of the DSDT, which is not looked at yet.
    dsdt: Option<u64>,
}

/// What [`read`] found, for those who look later.
static TABLES: Once<Tables> = Once::new();

/// The tables, once they are kept.
pub fn tables() -> Option<&'static Tables> {
    TABLES.get()
}

fn has_signature(address: u64, signature: &[u8; 4]) -> bool {
    firmware_bytes(address, HEADER).is_some_and(|header| header.starts_with(signature))
}

/// The table at `address` if it has this signature, lies in mapped memory, and
/// its checksum holds. Other tables are not read: some are long.
#[inline(never)]
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

/// ACPI's root pointer where the loader told of none (Firecracker): on a
/// boundary of 16 bytes in the BIOS's memory (section 5.2.5.1).
fn find_rsdp() -> Option<u64> {
    const START: u64 = 0xe_0000;
    let place = firmware_bytes(START, 0x2_0000)?;
    let mut chunks = place.chunks_exact(16);
    let at = chunks.position(|chunk| chunk.starts_with(b"RSD PTR "))?;
    Some(START + 16 * at as u64)
}

/// Reads the tables that `rsdp` leads to, or that are found without; returns
/// whether there is ACPI.
pub(super) fn read(rsdp: Option<u64>, tables: &mut Tables) -> bool {
    let rsdp = rsdp.or_else(find_rsdp);
    match rsdp.map(root_table) {
        Some(Some((root, width))) => {
            for entry in root.get(HEADER..).unwrap_or_default().chunks_exact(width) {
                let address = match width {
                    8 => u64_at(entry, 0),
                    _ => u32_at(entry, 0).map(u64::from),
                };
                let Some(address) = address else { continue };
                if let Some(madt) = table(address, b"APIC") {
                    read_madt(madt, tables);
                } else if let Some(fadt) = table(address, b"FACP") {
                    read_fadt(fadt, tables);
                } else if let Some(mcfg) = table(address, b"MCFG") {
                    tables.ecam = read_mcfg(mcfg);
                } else if IOMMUS.iter().any(|name| has_signature(address, name)) {
                    tables.has_iommu = true;
                }
            }
        }
        Some(None) => log::warn!("ACPI ignored: no valid root table behind {rsdp:x?}"),
        None => return false,
    }
    true
}

impl Tables {
    /// Assumes an I/O APIC at the usual place where none was told of.
    pub(super) fn assume_io_apic(&mut self) {
        if self.io_apics.is_empty() {
            self.io_apic_is_assumed = true;
            // The vector is empty, so this fits.
            let _ = self.io_apics.push(IoApic {
                address: DEFAULT_IO_APIC,
                first_gsi: 0,
            });
        }
    }
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
        0 => add_cpu((*entry.get(3)?).into(), u32_at(entry, 4)?, tables),
        9 => add_cpu(u32_at(entry, 4)?, u32_at(entry, 8)?, tables),
        1 => {
            let io_apic = IoApic {
                address: u64::from(u32_at(entry, 4)?),
                first_gsi: u32_at(entry, 8)?,
            };
            tables.io_apics.push(io_apic).ok()?;
        }
        2 => {
            let source = SourceOverride {
                irq: *entry.get(3)?,
                gsi: u32_at(entry, 4)?,
                polarity: match u16_at(entry, 8)? & 3 {
                    1 => Some(Polarity::High),
                    3 => Some(Polarity::Low),
                    _ => None,
                },
            };
            tables.overrides.push(source).ok()?;
        }
        5 => tables.local_apic_address = Some(u64_at(entry, 4)?),
        _ => {}
    }
    Some(())
}

/// Adds a CPU if bit 0 of its flags says that it can be used.
pub(super) fn add_cpu(apic_id: u32, flags: u32, tables: &mut Tables) {
    // Firmware may name a CPU in both forms.
    if flags & 1 != 0 && !tables.cpus.contains(&apic_id) && tables.cpus.push(apic_id).is_err() {
        tables.cpus_left_out += 1;
    }
}

/// A register of the FADT; `None` when it is not there, or in neither memory nor
/// ports.
fn register(fadt: &[u8], offset: usize) -> Option<Register> {
    let address = u64_at(fadt, offset + 4).filter(|&address| address != 0)?;
    match fadt.get(offset)? {
        0 => Some(Register::Memory(address)),
        1 => u16::try_from(address).ok().map(Register::Port),
        _ => None,
    }
}

/// FADT: section 5.2.9. Since ACPI 2.0 registers have a 64-bit form, which goes
/// first; the others are ports.
fn read_fadt(fadt: &[u8], tables: &mut Tables) {
    const TIMER_IS_32_BIT: u32 = 1 << 8;
    const HAS_RESET: u32 = 1 << 10;
    const IS_HARDWARE_REDUCED: u32 = 1 << 20;
    let flags = u32_at(fadt, 112).unwrap_or_default();
    let port = |long, short| match register(fadt, long) {
        Some(Register::Port(port)) => Some(port),
        _ => u16::try_from(u32_at(fadt, short)?)
            .ok()
            .filter(|&port| port != 0),
    };
    let is_reduced = flags & IS_HARDWARE_REDUCED != 0;
    tables.pm_timer = port(208, 76).map(|port| PmTimer {
        port,
        mask: match flags & TIMER_IS_32_BIT {
            0 => 0x00ff_ffff,
            _ => u32::MAX,
        },
    });
    tables.pm1_control = port(172, 64).filter(|_| !is_reduced);
    tables.sleep_control = register(fadt, 244).filter(|_| is_reduced);
    tables.reset = register(fadt, 116)
        .filter(|_| flags & HAS_RESET != 0)
        .zip(fadt.get(128).copied());
    // By the 64-bit pointer of ACPI 2.0 where that is set.
    let dsdt = u64_at(fadt, 140).filter(|&address| address != 0);
    tables.dsdt = dsdt.or(u32_at(fadt, 40).map(u64::from));
}

/// MCFG: PCI Firmware specification 3.2, table 4-2. Entries of 16 bytes start
/// at offset 44.
fn read_mcfg(table: &[u8]) -> Option<Ecam> {
    table
        .get(44..)?
        .chunks_exact(16)
        .filter(|entry| u16_at(entry, 8) == Some(0))
        .find_map(|entry| {
            let (base, buses) = (u64_at(entry, 0)?, *entry.get(10)?..=*entry.get(11)?);
            // 256 buses of 1 MiB must not wrap.
            let fits = base.checked_add(256 << 20).is_some();
            (base != 0 && fits && !buses.is_empty()).then_some(Ecam { base, buses })
        })
}

impl Tables {
    /// Keeps the tables for [`tables`].
    pub fn keep(self) {
        TABLES.call_once(|| self);
    }

    fn dsdt(&self) -> &'static [u8] {
        let table = self.dsdt.and_then(|address| table(address, b"DSDT"));
        let code = table.and_then(|table| table.get(HEADER..));
        code.unwrap_or_default()
    }

    /// Bus 0 of the ECAM that a host bridge names by a `_CBA` of one constant (PCI
    /// Firmware specification 3.2, section 4.1.3): QEMU's microvm has no MCFG.
    pub fn host_bridge_ecam(&self) -> Option<Ecam> {
        /// `Return` of a number of 4 or of 8 bytes.
        const RETURN_32: &[u8] = &[0xa4, 0x0c];
        const RETURN_64: &[u8] = &[0xa4, 0x0e];
        let dsdt = self.dsdt();
        // The name is followed by the method's flags.
        let code = dsdt.get(find(dsdt, b"_CBA")? + 5..)?;
        let base = match code.get(..2)? {
            RETURN_32 => u32_at(code, 2)?.into(),
            RETURN_64 => u64_at(code, 2)?,
            _ => return None,
        };
        let buses = 0..=0;
        (base != 0).then_some(Ecam { base, buses })
    }

    /// The memory that the host bridge passes on to PCI: the first window of 32 and of
    /// 64 bits behind its `_CBA`, where a resource template is plain data (section
    /// 6.4.3.5). Addresses are the CPU's and the bus's alike.
    pub fn host_bridge_windows(&self) -> Vec<Range<u64>, 2> {
        /// Address space descriptors of memory, 23 and 43 bytes long: the smallest address,
        /// the largest, the translation and the length follow the granularity.
        const DWORD: &[u8] = &[0x87, 0x17, 0, 0];
        const QWORD: &[u8] = &[0x8a, 0x2b, 0, 0];
        let dsdt = self.dsdt();
        let Some(template) = find(dsdt, b"_CBA").and_then(|at| dsdt.get(at..)) else {
            return Vec::new();
        };
        let numbers = |kind: &[u8]| {
            let at = template.get(find(template, kind)? + 6..)?;
            let number = |place: usize| match kind {
                DWORD => u32_at(at, 4 * place).map(u64::from),
                _ => u64_at(at, 8 * place),
            };
            Some((number(1)?, number(2)?, number(3)?))
        };
        [DWORD, QWORD]
            .into_iter()
            .filter_map(numbers)
            .filter(|&(start, last, translation)| translation == 0 && start < last)
            .map(|(start, last, _)| start..last.saturating_add(1))
            .collect()
    }

    /// What a sleep register wants for the state "soft off": the first number of
    /// the package `_S5_`, plain data in every DSDT (section 7.4.2).
    pub fn soft_off(&self) -> Option<u8> {
        /// How data begin: a package of less than 64 bytes, then the number of its
        /// elements, then one of these.
        const PACKAGE: u8 = 0x12;
        const BYTE: u8 = 0x0a;
        let dsdt = self.dsdt();
        let at = find(dsdt, b"_S5_")? + 4;
        match *dsdt.get(at..)?.first_chunk()? {
            [PACKAGE, _, _, BYTE, kind] => Some(kind & 7),
            // The numbers 0 and 1 have codes of their own.
            [PACKAGE, _, _, kind @ (0 | 1), _] => Some(kind),
            _ => None,
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
        let mut rest = self.dsdt();
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
    let flags = *interrupt.get(3)?;
    Some(VirtioMmio {
        address: u64::from(u32_at(memory, 4)?),
        size: u32_at(memory, 8)? as usize,
        input: Input {
            gsi: Gsi(u32_at(interrupt, 5)?),
            trigger: match flags & 1 << 1 {
                0 => Trigger::Level,
                _ => Trigger::Edge,
            },
            polarity: match flags & 1 << 2 {
                0 => Polarity::High,
                _ => Polarity::Low,
            },
        },
    })
}
