//! The CPU and what is wired to it: descriptor tables, exceptions, interrupt
//! controllers, clocks, the other CPUs, and the way out.

pub mod acpi;
mod apic;
mod calibration;
pub mod cpu;
mod descriptors;
mod end;
mod exceptions;
pub mod interrupts;
mod io_apic;
pub mod percpu;
mod pic;
mod rate;
pub mod smp;
mod stubs;
pub mod time;
mod timer;
mod trampoline;

pub use descriptors::init as init_descriptors;
pub use end::{Exit, begin_last_words, exit};
pub use timer::{idle_until, mode as timer_mode};
