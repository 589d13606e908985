//! The Linux boot protocol, version 2.15 (Linux `Documentation/arch/x86/boot.rst` and
//! `zero-page.rst`), for loaders that take a bzImage.
//!
//! A bzImage is the section `.setup`, filled up to whole sectors, and behind it the
//! image as it lies in memory; `kickpath image --bzimage` puts them together. A loader
//! enters by one of three ways:
//!
//! - 16-bit: in real mode at offset 0x200 of the setup (QEMU, kvmtool). That code asks
//!   the BIOS for the memory map, and goes on by the next.
//! - 32-bit: at the image's first byte, `esi` pointing to the boot parameters.
//! - 64-bit: at offset 0x200 of the image, likewise `rsi`.
//!
//! The boot parameters ("zero page") have the setup's header at the same offset as the
//! setup itself. So the 16-bit code hands its own first page on, and lives in front of
//! the header, where the parameters that it writes or that must be zero are not.

use core::arch::global_asm;

use super::boot_mapping::{BootMapping, CommandLine};
use super::{MemoryMap, Platform, Protocol, RegionKind};
use crate::arch::time;

/// Offsets in the boot parameters.
const ACPI_RSDP: u64 = 0x070;
const COMMAND_LINE_HIGH: u64 = 0x0c8;
const E820_ENTRIES: u64 = 0x1e8;
const COMMAND_LINE: u64 = 0x228;
const E820_TABLE: u64 = 0x2d0;
/// Length of an entry of the memory map: address and length in 64 bits, type in 32.
const E820_ENTRY: u64 = 20;
/// Most entries of the memory map.
const E820_MAX: u8 = 128;

// Sizes are left to whoever makes the bzImage.
global_asm!(
    r#"
    .section .setup, "a", @progbits
    .code16
setup:
    .org 0xd0
setup_code:
    cli
    cld
    xorl %ebx, %ebx                     # the first entry
    movw ${table}, %di
1:  movl $0xe820, %eax
    movl ${entry}, %ecx
    movl $0x534d4150, %edx              # "SMAP"
    int $0x15
    jc 2f
    cmpl $0x534d4150, %eax
    jne 2f
    incb {entries}
    addw ${entry}, %di
    cmpb ${max}, {entries}
    je 2f
    testl %ebx, %ebx
    jnz 1b
2:  xorl %esi, %esi
    movw %ds, %si
    shll $4, %esi                       # the boot parameters
    leal (setup_gdt - setup)(%esi), %eax
    movl %eax, (setup_gdt_pointer - setup + 2)
    lgdtl (setup_gdt_pointer - setup)
    movl 0x214, %eax                    # code32_start
    movl %eax, (setup_target - setup)
    movl %cr0, %eax
    orb $1, %al                         # PE
    movl %eax, %cr0
    movw $0x18, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    ljmpl *%cs:(setup_target - setup)

    .balign 8
setup_gdt:
    .quad 0, 0
    .quad 0x00cf9a000000ffff            # 0x10: code
    .quad 0x00cf92000000ffff            # 0x18: data
setup_gdt_pointer:
    .short 4 * 8 - 1
    .long 0
setup_target:
    .long 0
    .short 0x10

    .org {entries}                      # written above
    .byte 0

    .org 0x1f1
    .byte 0                             # setup_sects
    .word 1                             # root_flags
    .long 0                             # syssize
    .word 0                             # ram_size
    .word 0xffff                        # vid_mode
    .word 0                             # root_dev
    .word 0xaa55                        # boot_flag
    .byte 0xeb, setup_header_end - 0f   # jump
0:  .ascii "HdrS"
    .word 0x020f                        # version
    .long 0                             # realmode_swtch
    .word 0x1000                        # start_sys_seg
    .word setup_version - setup - 0x200 # kernel_version
    .byte 0                             # type_of_loader
    .byte 1                             # loadflags: LOADED_HIGH
    .word 0                             # setup_move_size
    .long 0x100000                      # code32_start
    .long 0, 0                          # ramdisk_image, ramdisk_size
    .long 0                             # bootsect_kludge
    .word 0                             # heap_end_ptr
    .byte 0, 0                          # ext_loader_ver, ext_loader_type
    .long 0                             # cmd_line_ptr
    .long 0x7fffffff                    # initrd_addr_max
    .long 0x1000                        # kernel_alignment
    .byte 0                             # relocatable_kernel
    .byte 12                            # min_alignment
    .word 1                             # xloadflags: XLF_KERNEL_64
    .long 4095                          # cmdline_size
    .long 0                             # hardware_subarch
    .quad 0                             # hardware_subarch_data
    .long 0, 0                          # payload_offset, payload_length
    .quad 0                             # setup_data
    .quad 0x100000                      # pref_address
    .long 0                             # init_size
    .long 0                             # handover_offset
    .long 0                             # kernel_info_offset
setup_header_end:
    pushw %ds                           # `cs` is 0x20 more
    pushw $(setup_code - setup)
    lretw
    "#,
    concat!(
        "setup_version: .asciz \"Kickpath ",
        env!("CARGO_PKG_VERSION"),
        "\""
    ),
    r#"
    .org {table}                        # and no further
    "#,
    table = const E820_TABLE,
    entry = const E820_ENTRY,
    entries = const E820_ENTRIES,
    max = const E820_MAX,
    options(att_syntax),
);

/// Continues in 64-bit mode, on the main stack.
pub(super) extern "C" fn start(tsc: u64, parameters: u32) -> ! {
    time::set_boot_tsc(tsc);
    let parameters = u64::from(parameters);
    let word = |offset| {
        let bytes = BootMapping.read(parameters + offset);
        bytes.map_or(0, u32::from_le_bytes)
    };
    let long = |offset| {
        let bytes = BootMapping.read(parameters + offset);
        bytes.map_or(0, u64::from_le_bytes)
    };
    let mut memory_map = MemoryMap::default();
    let entries = BootMapping.read(parameters + E820_ENTRIES);
    let [entries] = entries.unwrap_or_default();
    for number in 0..u64::from(entries.min(E820_MAX)) {
        let at = E820_TABLE + number * E820_ENTRY;
        let (start, length, kind) = (long(at), long(at + 8), word(at + 16));
        let kind = match kind {
            1 => RegionKind::Usable,
            // ACPI's tables, and its non-volatile storage.
            3 | 4 => RegionKind::Occupied,
            _ => RegionKind::Reserved,
        };
        memory_map.push(start..start.saturating_add(length), kind);
    }
    let high = u64::from(word(COMMAND_LINE_HIGH));
    let command_line = CommandLine::copy(high << 32 | u64::from(word(COMMAND_LINE)));
    crate::start(Platform {
        protocol: Protocol::Linux,
        memory_map,
        command_line: Some(command_line),
        rsdp: Some(long(ACPI_RSDP)).filter(|&address| address != 0),
        physical_memory_offset: 0,
    })
}
