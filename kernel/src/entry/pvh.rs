//! The PVH entry point: Xen's "x86/HVM direct boot ABI".
//!
//! The CPU arrives in 32-bit protected mode without paging, `ebx` pointing to
//! the start info. The stub enables long mode on page tables that are part of
//! the image: the first GiB of physical memory, at address 0 and at the
//! kernel's own. They only have to last until `memory::take_over`.

use core::alloc::Layout;
use core::arch::global_asm;
use core::ptr;

use pvh::start_info::reader::{MemMap, StartInfoReader};
use pvh::start_info::{MemmapType, StartInfo};
use spin::Once;

use super::{MemoryMap, Platform, Protocol, RegionKind};
use crate::memory::layout::IMAGE_OFFSET;

/// How much physical memory the stub's page tables map, at address 0.
const MAPPED: usize = 1 << 30;
/// Longest command line that is read, in bytes.
const MAX_COMMAND_LINE: usize = 4096;

unsafe extern "C" {
    /// `pvh_start32` at its physical address, by the linker script.
    fn pvh_start32_physical() -> !;
}

pvh::xen_elfnote_phys32_entry!(pvh_start32_physical);

global_asm!(
    r#"
    .section .text.entry, "ax", @progbits
    .code32
    .global pvh_start32
pvh_start32:
    movl %ebx, %esi                     # start info
    rdtsc                               # the kernel's first instant
    movl %eax, %edi
    movl %edx, %ebp

    movl $(boot_pml4 - {offset}), %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax                     # PAE
    movl %eax, %cr4
    movl $0xc0000080, %ecx              # EFER
    rdmsr
    orl $0x100, %eax                    # LME
    wrmsr
    lgdt (boot_gdt_pointer - {offset})
    movl %cr0, %eax
    orl $0x80010001, %eax               # PG, WP, PE
    movl %eax, %cr0
    ljmpl $8, $(1f - {offset})

    .code64
1:  movabsq $2f, %rax
    jmpq *%rax
2:  xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl %eax, %ss
    movq $__stack_main, %rsp
    movl %edi, %edi
    shlq $32, %rbp
    orq %rbp, %rdi
    movl %esi, %esi
    xorl %ebp, %ebp                     # the end of every backtrace
    callq {start}
    ud2

    .section .data.boot, "aw", @progbits
    .balign 4096
boot_pml4:
    .quad boot_pdpt_low - {offset} + 3  # present, writable
    .fill 510, 8, 0
    .quad boot_pdpt_high - {offset} + 3
boot_pdpt_low:
    .quad boot_pd - {offset} + 3
    .fill 511, 8, 0
boot_pdpt_high:
    .fill 510, 8, 0
    .quad boot_pd - {offset} + 3
    .quad 0
boot_pd:
    .set address, 0
    .rept 512
    .quad address + 0x83                # present, writable, 2 MiB
    .set address, address + 0x200000
    .endr
boot_gdt:
    .quad 0
    .quad 0x00209a0000000000            # 64-bit code
    .quad 0
boot_gdt_pointer:
    .short 3 * 8 - 1
    .long boot_gdt - {offset}
    "#,
    offset = const IMAGE_OFFSET,
    start = sym pvh_start64,
    options(att_syntax),
);

/// Physical addresses in the stub's page tables; null where they do not reach.
struct BootMapping;

impl MemMap for BootMapping {
    fn ptr(&self, paddr: usize, layout: Layout) -> *const u8 {
        let reachable = paddr != 0
            && paddr.is_multiple_of(layout.align())
            && paddr
                .checked_add(layout.size())
                .is_some_and(|end| end <= MAPPED);
        if reachable {
            ptr::with_exposed_provenance(paddr)
        } else {
            ptr::null()
        }
    }
}

/// Continues in 64-bit mode, on the main stack.
extern "C" fn pvh_start64(tsc: u64, start_info: u32) -> ! {
    crate::arch::time::set_boot_tsc(tsc);
    let start_info_reachable = !BootMapping
        .ptr(start_info as usize, Layout::new::<StartInfo>())
        .is_null();
    // SAFETY: the PVH boot ABI says that `ebx` is the address of a start info,
    // and the stub's page tables map it, as was just checked.
    let reader = start_info_reachable
        .then(|| unsafe { StartInfoReader::from_paddr(start_info, BootMapping) })
        .flatten();

    let mut memory_map = MemoryMap::new();
    let mut rsdp = None;
    let mut command_line = CommandLine::NONE;
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
        command_line = copy_command_line(reader.raw().cmdline_paddr);
    }
    crate::start(Platform {
        protocol: Protocol::Pvh,
        memory_map,
        command_line: Some(command_line.text),
        command_line_cut: command_line.cut,
        rsdp,
        physical_memory_offset: 0,
    })
}

/// A copy of the command line.
#[derive(Clone, Copy)]
struct CommandLine {
    text: &'static str,
    cut: bool,
}

impl CommandLine {
    const NONE: Self = Self {
        text: "",
        cut: false,
    };
}

/// Copies the command line out of memory that the loader may have put
/// anywhere. It ends at a NUL; it is cut at [`MAX_COMMAND_LINE`], where memory
/// is not mapped, and at the first byte that is not UTF-8.
fn copy_command_line(address: u64) -> CommandLine {
    static COPY: Once<heapless::Vec<u8, MAX_COMMAND_LINE>> = Once::new();
    let Some(address) = usize::try_from(address)
        .ok()
        .filter(|&address| address != 0)
    else {
        return CommandLine::NONE;
    };
    let mut cut = true;
    let copy = COPY.call_once(|| {
        let mut copy = heapless::Vec::new();
        for address in address..address.saturating_add(MAX_COMMAND_LINE + 1) {
            let source = BootMapping.ptr(address, Layout::new::<u8>());
            if source.is_null() {
                break;
            }
            // SAFETY: `source` is not null, so the stub's tables map it, and
            // nothing writes to the loader's memory meanwhile.
            let byte = unsafe { source.read() };
            if byte == 0 {
                cut = false;
                break;
            }
            if copy.push(byte).is_err() {
                break;
            }
        }
        copy
    });
    let text = match core::str::from_utf8(copy) {
        Ok(text) => text,
        Err(error) => {
            cut = true;
            let valid = copy.get(..error.valid_up_to()).unwrap_or_default();
            core::str::from_utf8(valid).unwrap_or_default()
        }
    };
    CommandLine { text, cut }
}
