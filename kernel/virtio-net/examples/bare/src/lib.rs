//! What the kernels of all CPUs share: they serve ping and, at port 7, UDP and TCP
//! echo at 10.0.2.15 over the first virtio network device that they find.
//!
//! - `memory`: the heap, and the `Hal` that `virtio-drivers` wants;
//! - `devices`: where the device is, by the device tree and on the PCI bus;
//! - `network`: smoltcp over the driver.
//!
//! A kernel calls [`run`] with what it knows of its machine: a [`Machine`].
#![no_std]

extern crate alloc;

mod devices;
mod memory;
mod network;

use core::fmt::{self, Write};
use core::marker::PhantomData;
use core::panic::PanicInfo;

use fdt::Fdt;
use log::{LevelFilter, Log, Metadata, Record};

pub use network::line_interrupt;

/// What a CPU and its board can do. Interrupts are masked but in
/// [`Machine::sleep`].
pub trait Machine: 'static {
    /// The number of the interrupt that the device tree gives in these cells.
    fn interrupt(cells: &[u32]) -> Option<u32>;
    /// The interrupt of PCI's first INTx pin; the others follow.
    const PCI_INTA: u32;

    /// Lets an interrupt come, or no longer. [`line_interrupt`] is called for it.
    fn enable(interrupt: u32, enable: bool);

    /// Microseconds since any moment.
    fn micros() -> u64;

    /// Waits for an interrupt, until the clock says `until` at most, and handles
    /// it. One that came before makes it return at once.
    fn sleep(until: u64);

    /// Writes a byte to the serial line.
    fn print(byte: u8);

    /// The end.
    fn halt() -> !;
}

/// The serial line.
struct Serial<M>(PhantomData<fn() -> M>);

impl<M: Machine> Write for Serial<M> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(M::print);
        Ok(())
    }
}

/// Says why a kernel ends, and ends it: for its panic handler.
pub fn panic<M: Machine>(info: &PanicInfo) -> ! {
    let _ = writeln!(Serial::<M>(PhantomData), "{info}");
    M::halt()
}

impl<M: Machine> Log for Serial<M> {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let _ = writeln!(Self(PhantomData), "{:5} {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

/// Serves for ever.
///
/// # Safety
///
/// `tree` must be the machine's device tree, and this must be called once.
pub unsafe fn run<M: Machine>(tree: *const u8) -> ! {
    // SAFETY: it is the first thing that is done, and done once.
    unsafe { memory::init() };
    let _ = log::set_logger(&Serial::<M>(PhantomData));
    log::set_max_level(LevelFilter::Info);
    // SAFETY: the caller's promise.
    let tree = unsafe { Fdt::from_ptr(tree) }.expect("a device tree");
    // With `-append poll`.
    let polls = tree
        .chosen()
        .bootargs()
        .is_some_and(|words| words.contains("poll"));
    let device = devices::find::<M>(&tree).expect("a virtio network device");
    network::serve::<M>(device, polls)
}
