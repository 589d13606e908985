//! The kernel for `qemu-system-riscv64 -M virt -bios none`: 16550, PLIC, CLINT, in
//! machine mode.
//!
//! ```text
//! cargo build --release --bin riscv64 --target riscv64imac-unknown-none-elf
//! qemu-system-riscv64 -M virt -bios none -nographic -netdev user,id=n \
//!     -kernel target/riscv64imac-unknown-none-elf/release/riscv64 \
//!     -device virtio-net-device,netdev=n     # or virtio-net-pci; -append poll
//! ```
//!
//! With `-smp 1,maxcpus=2` QEMU before 8.1 executes the driver's barriers, too.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

use bare::Machine;

// Where things are (QEMU hw/riscv/virt.c). A larger kernel reads it in the device tree.
const UART: usize = 0x1000_0000;
const PLIC: usize = 0x0c00_0000;
/// What CPU 0 in machine mode is told of.
const PLIC_ENABLE: usize = PLIC + 0x2000;
const PLIC_THRESHOLD: usize = PLIC + 0x20_0000;
const PLIC_CLAIM: usize = PLIC + 0x20_0004;
const CLINT_MTIMECMP: usize = 0x0200_4000;
const CLINT_MTIME: usize = 0x0200_bff8;

/// Ticks of `mtime` in a microsecond.
const TICKS: u64 = 10;

// mcause: an interrupt, and which.
const TIMER: u64 = 1 << 63 | 7;
const EXTERNAL: u64 = 1 << 63 | 11;

// The entry, with the device tree in a1; and the one trap.
global_asm!(
    r#"
.section .text.boot, "ax"
.global _start
_start:
    la      sp, STACK_TOP
    la      t0, 1f
    csrw    mtvec, t0
    mv      a0, a1
    call    {main}

.balign 4
1:  addi    sp, sp, -128
    sd      ra, 0(sp)
    sd      t0, 8(sp)
    sd      t1, 16(sp)
    sd      t2, 24(sp)
    sd      t3, 32(sp)
    sd      t4, 40(sp)
    sd      t5, 48(sp)
    sd      t6, 56(sp)
    sd      a0, 64(sp)
    sd      a1, 72(sp)
    sd      a2, 80(sp)
    sd      a3, 88(sp)
    sd      a4, 96(sp)
    sd      a5, 104(sp)
    sd      a6, 112(sp)
    sd      a7, 120(sp)
    call    {trap}
    ld      ra, 0(sp)
    ld      t0, 8(sp)
    ld      t1, 16(sp)
    ld      t2, 24(sp)
    ld      t3, 32(sp)
    ld      t4, 40(sp)
    ld      t5, 48(sp)
    ld      t6, 56(sp)
    ld      a0, 64(sp)
    ld      a1, 72(sp)
    ld      a2, 80(sp)
    ld      a3, 88(sp)
    ld      a4, 96(sp)
    ld      a5, 104(sp)
    ld      a6, 112(sp)
    ld      a7, 120(sp)
    addi    sp, sp, 128
    mret
"#,
    main = sym main,
    trap = sym trap,
);

extern "C" fn main(tree: *const u8) -> ! {
    write(PLIC_THRESHOLD, 0); // interrupts of any priority
    disarm();
    // SAFETY: timer and external interrupts may come, while they are not masked.
    unsafe { asm!("csrs mie, {}", in(reg) 1 << 7 | 1 << 11) };
    // SAFETY: the boot ROM has passed the device tree, and this is called once.
    unsafe { bare::run::<Virt>(tree) }
}

extern "C" fn trap() {
    let (cause, place, address): (u64, u64, u64);
    // SAFETY: reading them has no effect.
    unsafe {
        asm!("csrr {}, mcause", "csrr {}, mepc", "csrr {}, mtval",
             out(reg) cause, out(reg) place, out(reg) address);
    }
    match cause {
        TIMER => disarm(),
        EXTERNAL => {
            let which = read(PLIC_CLAIM);
            if which != 0 {
                bare::line_interrupt(which);
                write(PLIC_CLAIM, which); // done
            }
        }
        _ => panic!("exception {cause:#x} at {place:#x}, address {address:#x}"),
    }
}

/// The timer no longer asks for an interrupt.
fn disarm() {
    arm(u64::MAX);
}

fn arm(ticks: u64) {
    write_wide(CLINT_MTIMECMP, ticks);
}

struct Virt;

impl Machine for Virt {
    fn interrupt(cells: &[u32]) -> Option<u32> {
        cells.first().copied()
    }

    const PCI_INTA: u32 = 32;

    fn enable(interrupt: u32, enable: bool) {
        write(PLIC + 4 * interrupt as usize, u32::from(enable)); // its priority
        let bank = PLIC_ENABLE + 4 * (interrupt / 32) as usize;
        let bit = 1 << (interrupt % 32);
        let others = read(bank) & !bit;
        write(bank, if enable { others | bit } else { others });
    }

    fn micros() -> u64 {
        read_wide(CLINT_MTIME) / TICKS
    }

    fn sleep(until: u64) {
        arm(until.saturating_mul(TICKS));
        // SAFETY: an interrupt ends `wfi` also while it is masked, so none is missed,
        // and is taken in between.
        unsafe { asm!("wfi", "csrsi mstatus, 8", "csrci mstatus, 8") };
        disarm();
    }

    fn print(byte: u8) {
        while read_byte(UART + 5) & 1 << 5 == 0 {} // LSR: no room
        write_byte(UART, byte); // THR
    }

    fn halt() -> ! {
        loop {
            // SAFETY: with interrupts masked nothing comes after it.
            unsafe { asm!("csrci mstatus, 8", "wfi") };
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    bare::panic::<Virt>(info)
}

macro_rules! registers {
    ($($read:ident $load:literal, $write:ident $store:literal, $type:ty;)+) => {$(
        /// Reads a register of the board.
        fn $read(register: usize) -> $type {
            let value;
            // SAFETY: every caller names a register of this board.
            unsafe { asm!(concat!($load, " {}, 0({})"), out(reg) value, in(reg) register) };
            value
        }

        /// Writes a register of the board.
        fn $write(register: usize, value: $type) {
            // SAFETY: every caller names a register of this board.
            unsafe { asm!(concat!($store, " {}, 0({})"), in(reg) value, in(reg) register) };
        }
    )+};
}

registers! {
    read_byte "lbu", write_byte "sb", u8;
    read "lw", write "sw", u32;
    read_wide "ld", write_wide "sd", u64;
}
