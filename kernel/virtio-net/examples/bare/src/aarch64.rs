//! The kernel for `qemu-system-aarch64 -M virt`: PL011, GICv2, the generic timer.
//!
//! ```text
//! cargo build --release --bin aarch64 --target aarch64-unknown-none-softfloat
//! qemu-system-aarch64 -M virt -cpu cortex-a57 -nographic -netdev user,id=n \
//!     -kernel target/aarch64-unknown-none-softfloat/release/aarch64 \
//!     -device virtio-net-device,netdev=n     # or virtio-net-pci; -append poll
//! ```
//!
//! With `-smp 1,maxcpus=2` QEMU before 8.1 executes the driver's barriers, too.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

use bare::Machine;

// Where things are (QEMU hw/arm/virt.c). A larger kernel reads it in the device tree.
const UART: usize = 0x0900_0000;
const GIC_DISTRIBUTOR: usize = 0x0800_0000;
const GIC_CPU: usize = 0x0801_0000;
/// QEMU puts it at the beginning of the memory for a kernel without Linux's header.
const DEVICE_TREE: usize = 0x4000_0000;

/// Shared peripheral interrupts begin here.
const SPI: u32 = 32;
/// The virtual timer's.
const TIMER: u32 = 27;

// The entry. With the MMU off every access would be one to a device's registers,
// and an unaligned one would fault; so memory is mapped as memory first.
global_asm!(
    r#"
.section .text.boot, "ax"
.global _start
_start:
    adrp    x0, STACK_TOP
    add     x0, x0, :lo12:STACK_TOP
    mov     sp, x0
    adrp    x0, {vectors}
    add     x0, x0, :lo12:{vectors}
    msr     vbar_el1, x0
    adrp    x0, {table}
    add     x0, x0, :lo12:{table}
    msr     ttbr0_el1, x0
    ldr     x0, ={mair}
    msr     mair_el1, x0
    ldr     x0, ={tcr}
    msr     tcr_el1, x0
    isb
    tlbi    vmalle1
    dsb     nsh
    mrs     x0, sctlr_el1
    ldr     x1, ={sctlr}
    orr     x0, x0, x1
    msr     sctlr_el1, x0
    isb
    bl      {main}
"#,
    vectors = sym vectors,
    table = sym TABLE,
    main = sym main,
    // Attribute 0: device registers (nGnRE). Attribute 1: memory, write-back.
    mair = const 0xff04u64,
    // 39 bits of address by pages of 4 KiB; the tables are in memory as it is
    // mapped; none for the upper half; 40 bits of physical address.
    tcr = const 25u64 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32,
    // The MMU and both caches.
    sctlr = const 1u64 | 1 << 2 | 1 << 12,
);

#[expect(dead_code, reason = "the MMU alone reads it")]
/// A GiB an entry: registers below 1 GiB and above 256 GiB, memory in between.
#[repr(align(4096))]
struct Table([u64; 512]);

static TABLE: Table = {
    let mut table = [0; 512];
    let mut gib = 0;
    while gib < 512 {
        let is_memory = gib > 0 && gib < 256;
        // Block, accessed, inner shareable; registers are never executed.
        let kind = if is_memory { 1 << 2 } else { 0b11 << 53 };
        table[gib] = (gib as u64) << 30 | 1 << 10 | 3 << 8 | kind | 1;
        gib += 1;
    }
    Table(table)
};

/// The exception vectors: interrupts return, all else is the end.
#[unsafe(naked)]
unsafe extern "C" fn vectors() {
    core::arch::naked_asm!(
        ".balign 2048",
        ".rept 5",
        "b {unexpected}",
        ".balign 128",
        ".endr",
        // An interrupt, with the stack in use.
        "sub sp, sp, #176",
        "stp x0, x1, [sp]",
        "stp x2, x3, [sp, #16]",
        "stp x4, x5, [sp, #32]",
        "stp x6, x7, [sp, #48]",
        "stp x8, x9, [sp, #64]",
        "stp x10, x11, [sp, #80]",
        "stp x12, x13, [sp, #96]",
        "stp x14, x15, [sp, #112]",
        "stp x16, x17, [sp, #128]",
        "stp x18, x29, [sp, #144]",
        "str x30, [sp, #160]",
        "bl {interrupt}",
        "ldp x0, x1, [sp]",
        "ldp x2, x3, [sp, #16]",
        "ldp x4, x5, [sp, #32]",
        "ldp x6, x7, [sp, #48]",
        "ldp x8, x9, [sp, #64]",
        "ldp x10, x11, [sp, #80]",
        "ldp x12, x13, [sp, #96]",
        "ldp x14, x15, [sp, #112]",
        "ldp x16, x17, [sp, #128]",
        "ldp x18, x29, [sp, #144]",
        "ldr x30, [sp, #160]",
        "add sp, sp, #176",
        "eret",
        ".balign 128",
        ".rept 10",
        "b {unexpected}",
        ".balign 128",
        ".endr",
        unexpected = sym unexpected,
        interrupt = sym interrupt,
    )
}

extern "C" fn main() -> ! {
    write(GIC_DISTRIBUTOR, 1); // GICD_CTLR: forward interrupts
    write(GIC_CPU + 0x04, 0xff); // GICC_PMR: of any priority
    write(GIC_CPU, 1); // GICC_CTLR: to this CPU
    Virt::enable(TIMER, true);
    // SAFETY: the device tree is there, and this is called once.
    unsafe { bare::run::<Virt>(core::ptr::with_exposed_provenance(DEVICE_TREE)) }
}

/// The handler: asks the interrupt controller who it was, and tells it when done.
extern "C" fn interrupt() {
    let which = read(GIC_CPU + 0x0c); // GICC_IAR
    match which & 0x3ff {
        TIMER => disarm(),
        line => bare::line_interrupt(line),
    }
    write(GIC_CPU + 0x10, which); // GICC_EOIR
}

extern "C" fn unexpected() -> ! {
    let (cause, place, address): (u64, u64, u64);
    // SAFETY: reading them has no effect.
    unsafe {
        asm!("mrs {}, esr_el1", "mrs {}, elr_el1", "mrs {}, far_el1",
             out(reg) cause, out(reg) place, out(reg) address);
    }
    panic!("exception {cause:#x} at {place:#x}, address {address:#x}");
}

/// The virtual timer no longer asks for an interrupt.
fn disarm() {
    // SAFETY: the timer is this kernel's alone.
    unsafe { asm!("msr cntv_ctl_el0, {:x}", in(reg) 0u64) };
}

fn ticks() -> u64 {
    let ticks;
    // SAFETY: reading the counter has no effect.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks) };
    ticks
}

/// Ticks of the counter in a second.
fn frequency() -> u64 {
    let frequency: u64;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) frequency) };
    frequency
}

struct Virt;

impl Machine for Virt {
    /// Three cells: kind, number, flags. Devices have shared ones, kind 0.
    fn interrupt(cells: &[u32]) -> Option<u32> {
        match *cells {
            [0, number, _] => Some(SPI + number),
            _ => None,
        }
    }

    const PCI_INTA: u32 = SPI + 3;

    fn enable(interrupt: u32, enable: bool) {
        let bank = GIC_DISTRIBUTOR + 4 * (interrupt / 32) as usize;
        let bit = 1 << (interrupt % 32);
        if interrupt >= SPI {
            // GICD_ITARGETSR: to CPU 0, a byte an interrupt.
            let targets = GIC_DISTRIBUTOR + 0x800 + interrupt as usize / 4 * 4;
            write(targets, read(targets) | 1 << (8 * (interrupt % 4)));
        }
        // GICD_ISENABLER, GICD_ICENABLER
        write(bank + if enable { 0x100 } else { 0x180 }, bit);
    }

    fn micros() -> u64 {
        (u128::from(ticks()) * 1_000_000 / u128::from(frequency())) as u64
    }

    fn sleep(until: u64) {
        let at = u128::from(until) * u128::from(frequency()) / 1_000_000;
        // SAFETY: the timer is this kernel's alone. An interrupt ends `wfi` also
        // while it is masked, so none is missed, and is taken in between.
        unsafe {
            asm!("msr cntv_cval_el0, {}", "msr cntv_ctl_el0, {:x}", "isb", "wfi",
                 "msr daifclr, #2", "isb", "msr daifset, #2",
                 in(reg) at as u64, in(reg) 1u64);
        }
        disarm();
    }

    fn print(byte: u8) {
        while read(UART + 0x18) & 1 << 5 != 0 {} // FR: no room
        write(UART, byte.into()); // DR
    }

    fn halt() -> ! {
        loop {
            // SAFETY: with interrupts masked nothing comes after it.
            unsafe { asm!("msr daifset, #15", "wfi") };
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    bare::panic::<Virt>(info)
}

/// Reads a register of the board.
fn read(register: usize) -> u32 {
    let value;
    // SAFETY: every caller names a register of this board.
    unsafe { asm!("ldr {:w}, [{}]", out(reg) value, in(reg) register) };
    value
}

/// Writes a register of the board.
fn write(register: usize, value: u32) {
    // SAFETY: every caller names a register of this board.
    unsafe { asm!("str {:w}, [{}]", in(reg) value, in(reg) register) };
}
