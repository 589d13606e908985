//! How the machine is told that this is the end. No hypervisor has all of the
//! ways, so each is tried in turn; what is not there ignores the write.

use core::arch::asm;
use core::sync::atomic::{AtomicPtr, Ordering};

use x86_64::VirtAddr;
use x86_64::instructions::port::Port;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

use super::acpi::{self, Register};
use crate::memory::map_mmio;

/// The port of QEMU's `isa-debug-exit` device.
const DEBUG_EXIT_PORT: u16 = 0xf4;
/// Command port of the i8042 keyboard controller, and its command to pull the
/// CPU's reset line. Firecracker, kvmtool and crosvm end at it.
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;
/// Turns of a loop that a reset is waited for.
const RESET_PAUSE: u32 = 1_000_000;

/// ACPI's registers of a hardware-reduced machine, where they are in memory:
/// mapped before the end, which may come while the page tables are locked.
static SLEEP_CONTROL: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static RESET: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

/// Maps what [`off`] needs. The tables must be kept by then.
pub fn init() {
    let Some(tables) = acpi::tables() else { return };
    let reset = tables.reset.map(|(register, _)| register);
    for (register, place) in [(tables.sleep_control, &SLEEP_CONTROL), (reset, &RESET)] {
        if let Some(Register::Memory(address)) = register {
            match map_mmio(address, 1) {
                Ok(mapped) => place.store(mapped.as_ptr(), Ordering::Relaxed),
                Err(error) => log::warn!("ACPI: a register for the end of the machine: {error}"),
            }
        }
    }
}

fn write_port(port: u16, value: u8) {
    // SAFETY: the port is the device's that the caller means, or nothing.
    unsafe { Port::<u8>::new(port).write(value) };
}

fn write_register(register: Register, mapped: &AtomicPtr<u8>, value: u8) {
    match register {
        Register::Port(port) => write_port(port, value),
        Register::Memory(_) => {
            let mapped = mapped.load(Ordering::Relaxed);
            if !mapped.is_null() {
                // SAFETY: `init` mapped this register, which no memory is behind.
                unsafe { mapped.write_volatile(value) };
            }
        }
    }
}

/// Ends the machine with `status` where it can carry one.
pub fn off(status: u8) -> ! {
    write_port(DEBUG_EXIT_PORT, status);
    if let Some(tables) = acpi::tables() {
        sleep(tables);
        if let Some((register, value)) = tables.reset {
            write_register(register, &RESET, value);
        }
    }
    write_port(I8042_COMMAND, I8042_RESET);
    // A reset takes its time.
    for _ in 0..RESET_PAUSE {
        core::hint::spin_loop();
    }
    triple_fault()
}

/// Has the CPU shut down, which every hypervisor hears of: an exception without a
/// table of handlers.
fn triple_fault() -> ! {
    let nothing = DescriptorTablePointer {
        limit: 0,
        base: VirtAddr::zero(),
    };
    // SAFETY: nothing is to go on from here.
    unsafe {
        lidt(&nothing);
        asm!("ud2", options(noreturn));
    }
}

/// ACPI's state S5, "soft off" (specification 6.5, sections 4.8.3.2 and 4.8.3.7).
fn sleep(tables: &acpi::Tables) {
    /// Go to sleep now, in each of the registers.
    const SLEEP_ENABLE: u8 = 1 << 5;
    const PM1_SLEEP_ENABLE: u16 = 1 << 13;
    let Some(kind) = tables.soft_off() else {
        return;
    };
    if let Some(register) = tables.sleep_control {
        write_register(register, &SLEEP_CONTROL, kind << 2 | SLEEP_ENABLE);
    }
    if let Some(port) = tables.pm1_control {
        // SAFETY: ACPI says that the port is this register.
        unsafe { Port::<u16>::new(port).write(u16::from(kind) << 10 | PM1_SLEEP_ENABLE) };
    }
}
