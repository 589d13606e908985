//! Where the CPU enters the kernel on an exception or interrupt: one 16-byte
//! stub a vector, in order, and two ways on from there.
//!
//! Exceptions save every register for the report; only a non-maskable interrupt
//! returns. Interrupts
//! save what the C calling convention lets a function destroy, and nothing
//! else: this is on the path of every packet that is waited for.

use core::arch::global_asm;

use super::exceptions::exception;
use super::interrupts::dispatch;
use super::vectors;

/// Vectors below are the CPU's own.
pub const FIRST_INTERRUPT: u8 = 32;
/// Distance between two stubs in bytes.
const STUB_SIZE: usize = 16;

unsafe extern "C" {
    static vector_stubs: u8;
}

pub fn address(vector: u8) -> *const u8 {
    (&raw const vector_stubs).wrapping_add(usize::from(vector) * STUB_SIZE)
}

global_asm!(
    r#"
    .section .text.vectors, "ax", @progbits
    .balign 16
vector_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector == {spurious}
    iretq                               # not to be acknowledged
    .elseif vector >= {first_interrupt}
    pushq $vector
    jmp interrupt_entry
    .elseif vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    pushq $vector                       # above the CPU's error code
    jmp exception_entry
    .else
    pushq $0                            # in place of an error code
    pushq $vector
    jmp exception_entry
    .endif
    .set vector, vector + 1
    .endr

    .balign 16
interrupt_entry:                        # the stack is 16-byte aligned here
    .irp register, rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11
    pushq %\register
    .endr
    movq 72(%rsp), %rdi                 # the vector
    subq $8, %rsp
    cld
    callq {dispatch}
    addq $8, %rsp
    .irp register, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax
    popq %\register
    .endr
    addq $8, %rsp
    iretq

    .balign 16
exception_entry:                        # see `exceptions::Frame`
    .irp register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    pushq %\register
    .endr
    movq %rsp, %rdi
    movq %rsp, %rbx                     # kept by what is called
    andq $-16, %rsp
    cld
    callq {exception}
    movq %rbx, %rsp
    .irp register, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax
    popq %\register
    .endr
    addq $16, %rsp                      # vector and error code
    iretq
    "#,
    spurious = const vectors::SPURIOUS,
    first_interrupt = const FIRST_INTERRUPT,
    dispatch = sym dispatch,
    exception = sym exception,
    options(att_syntax),
);
