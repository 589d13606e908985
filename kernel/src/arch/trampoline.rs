//! Where an application processor begins: 16-bit code in a page below 1 MiB
//! (Intel SDM volume 3, section 9.4.4), which leads it to the kernel's own
//! page tables and to its stack.
//!
//! ```text
//! page 0  code and parameters: identity mapped, readable and executable, while
//!         a CPU starts; the kernel itself maps it writable, not executable
//! page 1  page tables for that one page, and for all that the kernel maps
//!  to 4
//! ```

use core::arch::global_asm;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::registers::control::Cr3;
use x86_64::structures::paging::{PageTable, PageTableFlags};
use x86_64::{PhysAddr, VirtAddr};

use super::percpu::PerCpu;
use crate::entry::{MemoryMap, Region, RegionKind};
use crate::memory::layout::{MEMORY_BASE, PAGE};

const PAGES: u64 = 5;
/// Firmware keeps its variables and the real mode's vectors below; the page's
/// number must also fit a start-up message, so it ends below 640 KiB.
const LOWEST: u64 = 0x8000;
const END: u64 = 0xa_0000;

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static ap_gdt_base: u8;
    static ap_jump_32: u8;
    static ap_jump_64: u8;
    static ap_code_32: u8;
    static ap_code_64: u8;
    static ap_gdt: u8;
    static ap_root: u8;
    static ap_kernel_root: u8;
    static ap_entry: u8;
    static ap_begin: u8;
    static ap_cpu: u8;
}

/// State of a CPU that has not shown up; `super::smp` has the others.
pub const STATE_ASLEEP: u32 = 0;
/// State of a CPU that has passed the trampoline.
pub const STATE_STARTED: u32 = 1;

global_asm!(
    r#"
    .section .rodata.trampoline, "a", @progbits
    .balign 16
    .global ap_trampoline
ap_trampoline:
    .code16
    cli
    cld
    xorl %esi, %esi
    movw %cs, %si
    movw %si, %ds
    shll $4, %esi                       # where this page lies
    lgdtl (ap_gdt_pointer - ap_trampoline)
    movl $0x11, %eax                    # ET, PE; caches on, as reset had them off
    movl %eax, %cr0
    ljmpl *(ap_jump_32 - ap_trampoline)

    .code32
ap_code_32:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl (ap_root - ap_trampoline)(%esi), %eax
    movl %eax, %cr3
    movl $0x20, %eax                    # PAE
    movl %eax, %cr4
    movl $0xc0000080, %ecx              # EFER
    rdmsr
    orl $0x900, %eax                    # LME, NXE
    wrmsr
    movl $0x80010033, %eax              # PG, WP, NE, ET, MP, PE
    movl %eax, %cr0
    ljmpl *(ap_jump_64 - ap_trampoline)(%esi)

    .code64
ap_code_64:
    movq (ap_cpu - ap_trampoline)(%rsi), %rdi
    movl $1, %eax
    cpuid
    shrl $24, %ebx                      # the APIC's id after reset
    cmpl {apic_id}(%rdi), %ebx
    jne 1f                              # too late: another one is being started
    movl ${asleep}, %eax
    movl ${started}, %ecx
    lock cmpxchgl %ecx, {state}(%rdi)
    jne 1f                              # given up, or here a second time
    movq (ap_kernel_root - ap_trampoline)(%rsi), %rax
    movq (ap_entry - ap_trampoline)(%rsi), %rcx
    movq (ap_begin - ap_trampoline)(%rsi), %rdx
    movq {stack_top}(%rdi), %rsp
    xorl %ebp, %ebp                     # the end of every backtrace
    jmpq *%rcx
1:  cli
    hlt
    jmp 1b

    .balign 8
ap_gdt:                                 # accessed already: the page is not writable
    .quad 0
    .quad 0x00cf9b000000ffff            # 32-bit code
    .quad 0x00cf93000000ffff            # data
    .quad 0x00af9b000000ffff            # 64-bit code
    .short 0
ap_gdt_pointer:
    .short 4 * 8 - 1
ap_gdt_base:
    .long 0
ap_jump_32:
    .long 0
    .short 0x08
    .balign 4
ap_jump_64:
    .long 0
    .short 0x18
    .balign 8
ap_root:
    .quad 0
ap_kernel_root:
    .quad 0
ap_entry:
    .quad 0
ap_begin:
    .quad 0
ap_cpu:
    .quad 0
ap_trampoline_end:

    .text
    .global ap_leave_trampoline
ap_leave_trampoline:                    # at the kernel's own address
    movq %rax, %cr3
    callq *%rdx
    ud2
    "#,
    apic_id = const PerCpu::APIC_ID,
    state = const PerCpu::STATE,
    stack_top = const PerCpu::STACK_TOP,
    asleep = const STATE_ASLEEP,
    started = const STATE_STARTED,
    options(att_syntax),
);

unsafe extern "C" {
    fn ap_leave_trampoline();
}

/// The first function of a CPU, on its own stack.
pub type Begin = extern "C" fn(&'static PerCpu) -> !;

pub struct Trampoline {
    /// Physical address of its first page.
    base: u64,
}

/// The offset of a symbol of the trampoline from its start.
macro_rules! offset {
    ($name:ident) => {
        // The symbols' addresses are all that is used of them.
        ((&raw const $name).addr() - (&raw const ap_trampoline).addr()) as u64
    };
}

impl Trampoline {
    /// Puts the trampoline into free memory below 640 KiB; `None` when `map`
    /// has none. A CPU that comes through continues with `begin`, which gets what
    /// it has for itself. The kernel's own page tables must be complete at their root.
    ///
    /// That memory is nobody's: the heap begins at 1 MiB
    /// (`memory::frames::FIRST_USED`), and what the loader has left there was
    /// copied.
    pub fn place(map: &MemoryMap, begin: Begin) -> Option<Self> {
        let base = (LOWEST..=END - PAGES * PAGE)
            .step_by(PAGE as usize)
            .find(|&start| is_free(map, start..start + PAGES * PAGE))?;
        let this = Self { base };
        this.fill(begin);
        Some(this)
    }

    /// The page's number; `END` keeps it below 0xa0.
    pub fn page(&self) -> u32 {
        (self.base / PAGE) as u32
    }

    /// Names the CPU that is to come through. Only its own APIC id gets past.
    pub fn expect(&self, cpu: &'static PerCpu) {
        let cpu = core::ptr::from_ref(cpu).addr() as u64;
        // SAFETY: the parameter is an aligned word within the page, which
        // stays ours for ever; a CPU that is late reads it at any time.
        let parameter = unsafe { AtomicU64::from_ptr(self.at(offset!(ap_cpu)).cast()) };
        parameter.store(cpu, Ordering::Release);
    }

    /// Where the kernel maps the byte at `offset`.
    fn at(&self, offset: u64) -> *mut u8 {
        ptr::with_exposed_provenance_mut((MEMORY_BASE + self.base + offset) as usize)
    }

    fn fill(&self, begin: Begin) {
        let length = offset!(ap_trampoline_end) as usize;
        assert!(length <= PAGE as usize);
        // SAFETY: `place` found the pages to be free memory, all of which is
        // mapped at `MEMORY_BASE`; the code is in the kernel's constants.
        unsafe {
            ptr::write_bytes(self.at(0), 0, (PAGES * PAGE) as usize);
            ptr::copy_nonoverlapping(&raw const ap_trampoline, self.at(0), length);
        }
        let kernel_root = Cr3::read().0.start_address();
        let entry = ap_leave_trampoline as unsafe extern "C" fn() as usize as u64;
        let write_32 = |offset: u64, value: u64| {
            // SAFETY: the offset is that of a parameter within the page.
            unsafe { self.at(offset).cast::<u32>().write_unaligned(value as u32) };
        };
        let write_64 = |offset: u64, value: u64| {
            // SAFETY: as above.
            unsafe { self.at(offset).cast::<u64>().write_unaligned(value) };
        };
        write_32(offset!(ap_gdt_base), self.base + offset!(ap_gdt));
        write_32(offset!(ap_jump_32), self.base + offset!(ap_code_32));
        write_32(offset!(ap_jump_64), self.base + offset!(ap_code_64));
        write_64(offset!(ap_root), self.base + PAGE);
        write_64(offset!(ap_kernel_root), kernel_root.as_u64());
        write_64(offset!(ap_entry), entry);
        write_64(offset!(ap_begin), begin as usize as u64);
        self.build_tables(kernel_root);
    }

    /// Page tables that map the first page at its own address, not writable,
    /// and the upper half as the kernel's tables do.
    fn build_tables(&self, kernel_root: PhysAddr) {
        let table = |number: u64| -> &mut PageTable {
            // SAFETY: page `number` of ours is zeroed, which is an empty
            // table, and each is borrowed once.
            unsafe { &mut *self.at(number * PAGE).cast() }
        };
        let kernel: *const PageTable =
            ptr::with_exposed_provenance((MEMORY_BASE + kernel_root.as_u64()) as usize);
        // SAFETY: CR3 holds the address of the root, which is mapped as all
        // memory is; nobody changes its entries now.
        let kernel = unsafe { &*kernel };
        let page = VirtAddr::new_truncate(self.base);
        let physical = |number: u64| PhysAddr::new_truncate(self.base + number * PAGE);
        let link = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;

        let root = table(1);
        for (own, kernels) in root.iter_mut().zip(kernel.iter()).skip(256) {
            *own = kernels.clone();
        }
        root[page.p4_index()].set_addr(physical(2), link);
        table(2)[page.p3_index()].set_addr(physical(3), link);
        table(3)[page.p2_index()].set_addr(physical(4), link);
        table(4)[page.p1_index()].set_addr(physical(0), PageTableFlags::PRESENT);
    }
}

/// Whether all of `range` is usable memory and nothing else.
fn is_free(map: &MemoryMap, range: core::ops::Range<u64>) -> bool {
    let covers =
        |region: &Region| region.range.start <= range.start && range.end <= region.range.end;
    let touching = || map.touching(range.clone());
    touching().all(|region| region.kind == RegionKind::Usable) && touching().any(covers)
}
