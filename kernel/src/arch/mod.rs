//! The CPU and what is wired to it: descriptor tables, exceptions, interrupt
//! controllers, clocks, the other CPUs, and the way out.

pub mod acpi;
mod apic;
mod bytes;
mod calibration;
pub mod cpu;
mod descriptors;
mod end;
mod exceptions;
pub mod interrupts;
mod io_apic;
mod mp_table;
pub mod percpu;
mod pic;
mod power;
mod rate;
pub mod smp;
mod stubs;
pub mod time;
mod timer;
mod trampoline;
mod vectors;

pub use descriptors::init as init_descriptors;
pub use end::{Exit, begin_last_words, exit};
pub use power::init as init_power;
pub use timer::{idle_cycles, idle_until, mode as timer_mode};

/// Reads what firmware's tables say: ACPI's, which `rsdp` leads to or which are
/// found without, else the MP table.
pub fn firmware_tables(rsdp: Option<u64>) -> acpi::Tables {
    let mut tables = acpi::Tables::default();
    if !acpi::read(rsdp, &mut tables) && !mp_table::read(&mut tables) {
        log::debug!("neither ACPI nor an MP table");
    }
    tables.assume_io_apic();
    tables
}
