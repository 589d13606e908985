//! The way to 64-bit mode from loaders that put the image at its physical address:
//! PVH, and the Linux boot protocol by its 32-bit and its 64-bit entry.
//!
//! Each entry leaves the loader's information in `esi` and the physical address of
//! the function that reads it in `ebx`. The page tables are part of the image: the
//! first GiB of physical memory, at address 0 and at the kernel's own. They only have
//! to last until `memory::take_over`.

use core::arch::global_asm;

use super::{linux, pvh};
use crate::memory::layout::IMAGE_OFFSET;

// The Linux boot protocol has the two entries at offsets 0 and 0x200 of the image.
global_asm!(
    r#"
    .section .text.entry, "ax", @progbits
    .code32
linux_start32:
    movl $({linux} - {offset}), %ebx
    jmp 3f

    .global pvh_start32
pvh_start32:
    movl %ebx, %esi                     # start info
    movl $({pvh} - {offset}), %ebx

3:  rdtsc                               # the kernel's first instant
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
    ljmpl $8, $(4f - {offset})

    .org 0x200
    .code64
linux_start64:
    cli
    cld
    movl %esi, %r8d                     # boot parameters
    leaq linux_start32(%rip), %rax      # where the loader has put the image
    movl $(linux_start32 - {offset}), %edx
    cmpq %rdx, %rax
    je 2f
    # Elsewhere, always higher (crosvm). First a copy of this page, and on in it, as
    # the image may cover the original.
    movq %rax, %rsi
    movl %edx, %edi
    movl $0x1000 / 8, %ecx
    rep movsq
    movl $(1f - {offset}), %ecx
    jmpq *%rcx
1:  movq %rax, %rsi
    movl %edx, %edi
    movl $(__image_end - {offset}), %ecx
    subl %edx, %ecx
    shrl $3, %ecx
    rep movsq
2:  movl %r8d, %esi
    movl $({linux} - {offset}), %ebx
    rdtsc
    movl %eax, %edi
    movl %edx, %ebp
    movl $(boot_pml4 - {offset}), %eax
    movq %rax, %cr3
    movl $(boot_gdt_pointer - {offset}), %eax
    lgdt (%rax)
    movq $__stack_main, %rsp
    pushq $8
    movl $(4f - {offset}), %eax
    pushq %rax
    lretq

4:  movabsq $5f, %rax
    jmpq *%rax
5:  xorl %eax, %eax
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
    movl %ebx, %ebx
    movabsq ${offset}, %rax
    addq %rax, %rbx
    xorl %ebp, %ebp                     # the end of every backtrace
    callq *%rbx
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
    .quad boot_gdt - {offset}
    "#,
    offset = const IMAGE_OFFSET,
    linux = sym linux::start,
    pvh = sym pvh::start,
    options(att_syntax),
);
