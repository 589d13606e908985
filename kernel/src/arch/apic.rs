//! The local APIC, by its registers in memory (xAPIC) or by model specific
//! registers (x2APIC). Intel SDM volume 3, chapter 11.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

use x86_64::registers::model_specific::Msr;

use super::{cpu, interrupts};
use crate::memory::map_mmio;

const IA32_APIC_BASE: u32 = 0x1b;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const APIC_BASE_ENABLED: u64 = 1 << 11;
const APIC_BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Where the registers are after reset.
const DEFAULT_ADDRESS: u64 = 0xfee0_0000;
/// Length of the registers in bytes.
const REGISTERS_SIZE: u64 = 4096;
/// The x2APIC's register at xAPIC offset `16 * n` is MSR `0x800 + n`.
const X2APIC_MSR: u32 = 0x800;

/// Registers, by their offset in the xAPIC's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Register {
    /// The APIC's identity.
    Id = 0x020,
    /// Interrupts of this priority and below wait.
    TaskPriority = 0x080,
    /// A write ends the interrupt being served.
    EndOfInterrupt = 0x0b0,
    /// The spurious interrupt's vector and the APIC's switch.
    SpuriousVector = 0x0f0,
    /// The timer's vector and mode.
    LvtTimer = 0x320,
    /// Pin LINT0: the legacy interrupt controllers.
    LvtLint0 = 0x350,
    /// Error interrupt.
    LvtError = 0x370,
    /// The timer's start value; writing it starts the timer.
    TimerInitialCount = 0x380,
    /// The timer's value.
    TimerCurrentCount = 0x390,
    /// The timer's divider.
    TimerDivide = 0x3e0,
}

/// Bit of every LVT register: no interrupt.
pub const LVT_MASKED: u32 = 1 << 16;
const SPURIOUS_ENABLE: u32 = 1 << 8;

/// The registers of the xAPIC; null when it is an x2APIC.
static REGISTERS: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static ID: AtomicU8 = AtomicU8::new(0);

/// This CPU's APIC id, as interrupt messages address it.
pub fn id() -> u8 {
    ID.load(Ordering::Relaxed)
}

fn xapic(base: *mut u8, register: Register) -> *mut u32 {
    base.wrapping_add(register as usize).cast()
}

fn x2apic(register: Register) -> Msr {
    Msr::new(X2APIC_MSR + (register as u32 >> 4))
}

/// Reads a register.
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

/// Writes a register.
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

/// Enables the local APIC with everything masked. `address` is where ACPI says
/// that its registers are.
pub fn init(address: Option<u64>) {
    let mut base_register = Msr::new(IA32_APIC_BASE);
    // SAFETY: every CPU with 64-bit mode has this register.
    let mut base = unsafe { base_register.read() } | APIC_BASE_ENABLED;
    if cpu::has_x2apic() {
        base |= APIC_BASE_X2APIC;
    }
    // SAFETY: enabling, and switching an enabled APIC to x2APIC mode, is
    // allowed at any time.
    unsafe { base_register.write(base) };

    if base & APIC_BASE_X2APIC == 0 {
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
    let id = if base & APIC_BASE_X2APIC == 0 {
        id >> 24
    } else {
        id
    };
    // Messages carry 8 bits; the CPU that boots has a low number.
    ID.store(id as u8, Ordering::Relaxed);

    for lvt in [Register::LvtTimer, Register::LvtLint0, Register::LvtError] {
        write(lvt, LVT_MASKED);
    }
    write(Register::TaskPriority, 0);
    let spurious = u32::from(interrupts::SPURIOUS_VECTOR);
    write(Register::SpuriousVector, SPURIOUS_ENABLE | spurious);
}
