//! A loader of the Linux boot protocol by its 64-bit entry, with the few bytes of
//! firmware that a machine needs for it, and tables as firmware leaves them.

use std::fs;

use anyhow::Result;
use kickpath::qemu::Kind;
use kickpath_tests::Spec;
use tempfile::TempDir;

use crate::bzimage;

/// Where the firmware's tables are: its first byte below 1 MiB.
const TABLES: u32 = 0xf_0000;
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;

/// Where things are in the memory that the loader of [`Loader`] has filled.
const PAGE_TABLES: u32 = 0x7000;
const PARAMETERS: u32 = 0x1_0000;
const COMMAND_LINE: u32 = 0x1_1000;

/// A loader of the Linux boot protocol by its 64-bit entry: a machine whose firmware
/// does no more than to enter it.
pub struct Loader {
    directory: TempDir,
    address: u32,
}

impl Loader {
    /// Puts the guest's image at `address`, and `tables` where firmware has its own
    /// ([`TABLES`]).
    ///
    /// # Errors
    /// The bzImage or a file cannot be made.
    pub fn new(address: u32, tables: &[u8]) -> Result<Self> {
        const SECTOR: usize = 512;
        let directory = tempfile::tempdir()?;
        let bzimage = fs::read(bzimage::file()?)?;
        let setup = (usize::from(bzimage[0x1f1]) + 1) * SECTOR;
        let words = "virtio_mmio.device=512@0xfeb00e00:12 ip=10.0.2.15/24 gateway=10.0.2.2\0";
        for (name, bytes) in [
            ("firmware", firmware(address + 0x200, tables)),
            ("page-tables", page_tables()),
            ("parameters", parameters(&bzimage)),
            ("command-line", words.as_bytes().to_vec()),
            ("image", bzimage[setup..].to_vec()),
        ] {
            fs::write(directory.path().join(name), bytes)?;
        }
        Ok(Self { directory, address })
    }

    /// The machine.
    pub fn spec(&self) -> Spec {
        let path = |name| self.directory.path().join(name).display().to_string();
        let mut words = vec!["-machine".to_owned(), "acpi=off".to_owned()];
        words.extend(["-bios".to_owned(), path("firmware")]);
        for (name, address) in [
            ("page-tables", PAGE_TABLES),
            ("parameters", PARAMETERS),
            ("command-line", COMMAND_LINE),
            ("image", self.address),
        ] {
            let loader = format!("loader,addr={address:#x},force-raw=on,file={}", path(name));
            words.extend(["-device".to_owned(), loader]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Spec::new(Kind::Microvm).extra(&words)
    }
}

/// The first 4 GiB where they are, in pages of 2 MiB.
fn page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let tables = u64::from(PAGE_TABLES);
    let mut words = vec![0u64; 6 * 512];
    words[0] = (tables + 0x1000) | PRESENT_WRITABLE;
    for number in 0..4 {
        words[512 + number] = (tables + 0x1000 * (2 + number as u64)) | PRESENT_WRITABLE;
    }
    for number in 0..4 * 512 {
        words[1024 + number] = (number as u64) << 21 | LARGE | PRESENT_WRITABLE;
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// The boot parameters: the setup's header, the command line, 128 MiB of memory.
fn parameters(bzimage: &[u8]) -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[0x1f1..0x290].copy_from_slice(&bzimage[0x1f1..0x290]);
    page[0x228..0x22c].copy_from_slice(&COMMAND_LINE.to_le_bytes());
    let usable: [(u64, u64); 2] = [(0, 0x9_fc00), (1 << 20, 127 << 20)];
    page[0x1e8] = usable.len() as u8;
    for (entry, (start, length)) in page[0x2d0..].chunks_exact_mut(20).zip(usable) {
        entry[..8].copy_from_slice(&start.to_le_bytes());
        entry[8..16].copy_from_slice(&length.to_le_bytes());
        entry[16] = 1;
    }
    page
}

/// What the CPU runs at its reset, in the last 64 KiB below 4 GiB: into 64-bit mode, and
/// to `entry` with the boot parameters in `rsi`. `tables` come first.
fn firmware(entry: u32, tables: &[u8]) -> Vec<u8> {
    const SIZE: usize = 64 << 10;
    const START: usize = 0xff00;
    const LONG: usize = 0xff80;
    const GDT: usize = 0xffc0;
    const GDT_POINTER: usize = 0xffe0;
    const RESET: usize = 0xfff0;
    /// Physical address of the first byte.
    const BASE: u32 = 0xffff_0000;
    let mut rom = vec![0xf4; SIZE];
    rom[..tables.len()].copy_from_slice(tables);
    let mut put = |at: usize, parts: &[&[u8]]| {
        let bytes = parts.concat();
        rom[at..at + bytes.len()].copy_from_slice(&bytes);
    };
    let long = (BASE + LONG as u32).to_le_bytes();
    put(
        START,
        &[
            &[0xfa],                                     // cli
            &[0x2e, 0x66, 0x0f, 0x01, 0x16, 0xe0, 0xff], // lgdtl %cs:GDT_POINTER
            &[0x66, 0xb8, 0x20, 0, 0, 0],                // movl $PAE, %eax
            &[0x0f, 0x22, 0xe0],                         // movl %eax, %cr4
            &[0x66, 0xb8],                               // movl $PAGE_TABLES, %eax
            &PAGE_TABLES.to_le_bytes(),
            &[0x0f, 0x22, 0xd8],             // movl %eax, %cr3
            &[0x66, 0xb9, 0x80, 0, 0, 0xc0], // movl $EFER, %ecx
            &[0x0f, 0x32],                   // rdmsr
            &[0x66, 0x0d, 0, 1, 0, 0],       // orl $LME, %eax
            &[0x0f, 0x30],                   // wrmsr
            &[0x0f, 0x20, 0xc0],             // movl %cr0, %eax
            &[0x66, 0x0d, 1, 0, 0, 0x80],    // orl $PG|PE, %eax
            &[0x0f, 0x22, 0xc0],             // movl %eax, %cr0
            &[0x66, 0xea],                   // ljmpl $8, $LONG
            &long,
            &[8, 0],
        ],
    );
    put(
        LONG,
        &[
            &[0xbe], // movl $PARAMETERS, %esi
            &PARAMETERS.to_le_bytes(),
            &[0xb8], // movl $entry, %eax
            &entry.to_le_bytes(),
            &[0xff, 0xe0], // jmpq *%rax
        ],
    );
    put(GDT, &[&[0; 8], &0x0020_9a00_0000_0000u64.to_le_bytes()]);
    let gdt = (BASE + GDT as u32).to_le_bytes();
    put(GDT_POINTER, &[&[15, 0], &gdt]);
    let distance = (START as u16).wrapping_sub(RESET as u16 + 3);
    put(RESET, &[&[0xe9], &distance.to_le_bytes()]); // jmp START
    rom
}

/// Makes all bytes add up to zero by the one at `place`.
fn balance(bytes: &mut [u8], place: usize) {
    let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    bytes[place] = bytes[place].wrapping_sub(sum);
}

/// A MultiProcessor table (Intel's specification 1.4, chapter 4) of so many CPUs and an
/// I/O APIC, behind the pointer to it.
pub fn mp_table(cpus: u32) -> Vec<u8> {
    const POINTER: usize = 16;
    let mut table = b"PCMP\0\0\x04\0KICKPATHTEST        ".to_vec();
    table.extend([0; 6]);
    table.extend((cpus as u16 + 1).to_le_bytes());
    table.extend(LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    for cpu in 0..cpus as u8 {
        // Enabled; the first is the one that boots.
        let flags = if cpu == 0 { 3 } else { 1 };
        table.extend([0, cpu, 0x14, flags]);
        table.extend([0; 16]);
    }
    table.extend([2, cpus as u8, 0x11, 1]);
    table.extend(IO_APIC.to_le_bytes());
    let length = (table.len() as u16).to_le_bytes();
    table[4..6].copy_from_slice(&length);
    balance(&mut table, 7);

    let mut bytes = b"_MP_".to_vec();
    bytes.extend((TABLES + POINTER as u32).to_le_bytes());
    bytes.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    balance(&mut bytes, 10);
    bytes.extend(table);
    bytes
}

/// ACPI's root pointer, an XSDT and a MADT of so many CPUs and an I/O APIC (ACPI
/// specification 6.5, section 5.2).
pub fn acpi(cpus: u32) -> Vec<u8> {
    const XSDT: usize = 0x40;
    const MADT: usize = 0x80;
    let table = |signature: &[u8; 4], body: &[u8]| {
        let length = 36 + body.len() as u32;
        let mut table = signature.to_vec();
        table.extend(length.to_le_bytes());
        table.extend(b"\x01\0KICKPATESTTEST\x01\0\0\0TEST\x01\0\0\0");
        table.resize(36, 0);
        table.extend(body);
        balance(&mut table, 9);
        table
    };
    let mut entries = LOCAL_APIC.to_le_bytes().to_vec();
    entries.extend([0; 4]);
    for cpu in 0..cpus as u8 {
        entries.extend([0, 8, cpu, cpu, 1, 0, 0, 0]);
    }
    entries.extend([1, 12, 0, 0]);
    entries.extend(IO_APIC.to_le_bytes());
    entries.extend([0; 4]);

    let mut root = b"RSD PTR \0KICKPA\x02\0\0\0\0".to_vec();
    balance(&mut root, 8);
    root.extend(36u32.to_le_bytes());
    root.extend((u64::from(TABLES) + XSDT as u64).to_le_bytes());
    root.extend([0; 4]);
    balance(&mut root, 32);
    root.resize(XSDT, 0);
    root.extend(table(
        b"XSDT",
        &(u64::from(TABLES) + MADT as u64).to_le_bytes(),
    ));
    root.resize(MADT, 0);
    root.extend(table(b"APIC", &entries));
    root
}
