//! The local APIC, by its registers in memory (xAPIC) or by model specific
//! registers (x2APIC). Intel SDM volume 3, chapter 11.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering};

use x86_64::instructions::interrupts::without_interrupts;
use x86_64::registers::model_specific::Msr;

use super::{cpu, percpu, vectors};
use crate::memory::map_mmio;

const IA32_APIC_BASE: u32 = 0x1b;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const APIC_BASE_ENABLED: u64 = 1 << 11;
const APIC_BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Where the registers are after reset.
const DEFAULT_ADDRESS: u64 = 0xfee0_0000;
const REGISTERS_SIZE: u64 = 4096;
/// The x2APIC's register at xAPIC offset `16 * n` is MSR `0x800 + n`.
const X2APIC_MSR: u32 = 0x800;

/// Registers, by their offset in the xAPIC's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Register {
    Id = 0x020,
    /// Interrupts of this priority and below wait.
    TaskPriority = 0x080,
    /// A write ends the interrupt being served.
    EndOfInterrupt = 0x0b0,
    /// The spurious interrupt's vector and the APIC's switch.
    SpuriousVector = 0x0f0,
    /// Interrupt messages to other CPUs; a write sends one.
    InterruptCommand = 0x300,
    /// Their destination, in the xAPIC only.
    InterruptDestination = 0x310,
    /// The timer's vector and mode.
    LvtTimer = 0x320,
    /// Pin LINT0: the legacy interrupt controllers.
    LvtLint0 = 0x350,
    /// Pin LINT1: the machine's non-maskable interrupts.
    LvtLint1 = 0x360,
    LvtError = 0x370,
    /// The timer's start value; writing it starts the timer.
    TimerInitialCount = 0x380,
    TimerCurrentCount = 0x390,
    TimerDivide = 0x3e0,
}

/// Bit of every LVT register: no interrupt.
pub const LVT_MASKED: u32 = 1 << 16;
/// Delivery mode of LINT0: the vector comes from outside.
const LVT_EXTINT: u32 = 0b111 << 8;
/// Delivery mode of LINT1.
const LVT_NMI: u32 = 0b100 << 8;
const SPURIOUS_ENABLE: u32 = 1 << 8;

/// The registers of the xAPIC; null when it is an x2APIC.
static REGISTERS: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

fn xapic(base: *mut u8, register: Register) -> *mut u32 {
    base.wrapping_add(register as usize).cast()
}

fn x2apic(register: Register) -> Msr {
    Msr::new(X2APIC_MSR + (register as u32 >> 4))
}

pub fn read(register: Register) -> u32 {
    let base = REGISTERS.load(Ordering::Relaxed);
    if base.is_null() {
        // SAFETY: the register exists in every x2APIC; reading has no effect.
        unsafe { x2apic(register).read() as u32 }
    } else {
        // SAFETY: `init` mapped the page of registers that `base` points to.
        unsafe { xapic(base, register).read_volatile() }
    }
}

#[inline]
pub fn write(register: Register, value: u32) {
    let base = REGISTERS.load(Ordering::Relaxed);
    if base.is_null() {
        // SAFETY: the register exists in every x2APIC and takes any value that
        // this module's users write.
        unsafe { x2apic(register).write(u64::from(value)) }
    } else {
        // SAFETY: `init` mapped the page of registers that `base` points to.
        unsafe { xapic(base, register).write_volatile(value) }
    }
}

/// Ends the interrupt being served, so that the next one can come.
#[inline]
pub fn end_of_interrupt() {
    write(Register::EndOfInterrupt, 0);
}

/// Delivery mode and level of messages to other CPUs (Intel SDM volume 3, section
/// 11.6.1). A vector is added to this one.
pub const COMMAND_INTERRUPT: u32 = 1 << 14;
/// Interrupts a CPU even if it has interrupts disabled.
pub const COMMAND_NMI: u32 = COMMAND_INTERRUPT | LVT_NMI;
/// Has a CPU wait for [`COMMAND_STARTUP`].
pub const COMMAND_INIT: u32 = COMMAND_INTERRUPT | 0b101 << 8;
/// Has a CPU that waits begin, in 16-bit mode, in the page of memory whose number is
/// added.
pub const COMMAND_STARTUP: u32 = COMMAND_INTERRUPT | 0b110 << 8;
/// xAPIC: the last message has not left yet.
const COMMAND_PENDING: u32 = 1 << 12;
/// Reads of that bit before a message is given up as sent.
const MAX_PENDING_READS: u32 = 100_000;

/// Sends one of those messages to the CPU with this APIC id.
pub fn send(apic_id: u32, command: u32) {
    if REGISTERS.load(Ordering::Relaxed).is_null() {
        let message = u64::from(apic_id) << 32 | u64::from(command);
        // SAFETY: an x2APIC has this register; the message is to a CPU that
        // this kernel uses, or that waits to be started.
        unsafe { x2apic(Register::InterruptCommand).write(message) };
        return;
    }
    // A message that an interrupt handler sends must not come in between.
    without_interrupts(|| {
        for _ in 0..MAX_PENDING_READS {
            if read(Register::InterruptCommand) & COMMAND_PENDING == 0 {
                break;
            }
        }
        write(Register::InterruptDestination, apic_id << 24);
        write(Register::InterruptCommand, command);
    });
}

/// Turns this CPU's APIC on; returns the base register.
fn enable() -> u64 {
    let mut base_register = Msr::new(IA32_APIC_BASE);
    // SAFETY: every CPU with 64-bit mode has this register.
    let mut base = unsafe { base_register.read() } | APIC_BASE_ENABLED;
    // SAFETY: enabling is allowed at any time.
    unsafe { base_register.write(base) };
    if cpu::has_x2apic() {
        base |= APIC_BASE_X2APIC;
        // SAFETY: switching an enabled APIC to x2APIC mode is allowed at any
        // time.
        unsafe { base_register.write(base) };
    }
    base
}

/// Enables the local APIC of the CPU that boots, with everything masked.
/// `address` is where ACPI says that its registers are.
pub fn init(address: Option<u64>) {
    let base = enable();
    let is_xapic = base & APIC_BASE_X2APIC == 0;
    if is_xapic {
        let address = match base & APIC_BASE_ADDRESS {
            0 => address.unwrap_or(DEFAULT_ADDRESS),
            address => address,
        };
        match map_mmio(address, REGISTERS_SIZE) {
            Ok(registers) => REGISTERS.store(NonNull::as_ptr(registers), Ordering::Relaxed),
            Err(error) => panic!("the local APIC cannot be reached: {error}"),
        }
    }
    let id = read(Register::Id);
    percpu::this().set_apic_id(if is_xapic { id >> 24 } else { id });
    mask_all();
    // As Linux has it: the CPU that booted takes them.
    write(Register::LvtLint1, LVT_NMI);
}

/// Lets this CPU take interrupts of the 8259 controllers, which give it the
/// vector themselves.
pub fn accept_pic() {
    write(Register::LvtLint0, LVT_EXTINT);
}

/// Enables the local APIC of another CPU. Its registers are at the same
/// address as those of the first.
pub fn init_other() {
    enable();
    mask_all();
}

fn mask_all() {
    for lvt in [Register::LvtTimer, Register::LvtLint0, Register::LvtError] {
        write(lvt, LVT_MASKED);
    }
    write(Register::TaskPriority, 0);
    let spurious = u32::from(vectors::SPURIOUS);
    write(Register::SpuriousVector, SPURIOUS_ENABLE | spurious);
}
