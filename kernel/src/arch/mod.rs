//! The CPU and what is wired to it: descriptor tables, exceptions, interrupt
//! controllers, clocks, and the way out.

pub mod acpi;
mod apic;
mod calibration;
pub mod cpu;
mod descriptors;
mod exceptions;
pub mod interrupts;
mod io_apic;
mod stubs;
pub mod time;
mod timer;

pub use descriptors::init as init_descriptors;
pub use timer::{idle_cycles, idle_until};

use x86_64::instructions::{hlt, interrupts as interrupt_flag, port::Port};

/// The port of QEMU's `isa-debug-exit` device.
const DEBUG_EXIT_PORT: u16 = 0xf4;

/// How the guest ended. QEMU's exit status is `value << 1 | 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All that was asked for was done; QEMU exits with 33.
    Success = 0x10,
    /// A panic, an exception, or nothing to run on; QEMU exits with 35.
    Failure = 0x11,
}

/// Ends the guest through `isa-debug-exit`. Without that device the CPU stops
/// for good.
pub fn exit(exit: Exit) -> ! {
    interrupt_flag::disable();
    // SAFETY: the port is QEMU's device, or nothing.
    unsafe { Port::<u8>::new(DEBUG_EXIT_PORT).write(exit as u8) };
    loop {
        hlt();
    }
}
