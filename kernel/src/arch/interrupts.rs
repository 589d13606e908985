//! Interrupts of devices: vectors, who handles them, and how a message (MSI)
//! or a line (INTx) is made to raise one. Every CPU has the same handlers.

use core::sync::atomic::{AtomicPtr, Ordering};

use kickpath_aml::{Polarity, Trigger};
use kickpath_trace::{Event, NO_QUEUE, tracepoint_if};
use spin::Mutex;

use super::percpu::{self, PerCpu};
use super::{acpi, apic, io_apic, pic, timer};

pub use io_apic::{Gsi, RouteError};

/// The vector of the local APIC's timer.
pub(super) const TIMER_VECTOR: u8 = 0xf0;
/// Another CPU's message that there is something to do: it ends `hlt`.
const WAKE_VECTOR: u8 = 0xf1;
/// The local APIC reports with this vector that an interrupt has vanished. Its
/// low four bits are ones, as old APICs demand.
pub(super) const SPURIOUS_VECTOR: u8 = 0xff;
/// First of the vectors for devices; those below are the 8259 controllers'.
const FIRST_DEVICE_VECTOR: u8 = pic::FIRST_VECTOR + pic::LINES;
/// Number of vectors for devices.
const DEVICE_VECTORS: u8 = TIMER_VECTOR - FIRST_DEVICE_VECTOR;

/// An interrupt vector, 0x30 to 0xef, that belongs to one handler.
#[derive(Debug, PartialEq, Eq)]
pub struct Vector(u8);

/// The handler of every vector, a `fn()` each.
static HANDLERS: [AtomicPtr<()>; 256] =
    [const { AtomicPtr::new(unexpected as fn() as *mut ()) }; 256];
/// Serialises the search for a free vector.
static ALLOCATION: Mutex<()> = Mutex::new(());

/// The handler of vectors that have none: an interrupt may be on its way when
/// its vector is freed.
fn unexpected() {}

/// Called by the stubs with interrupts disabled.
pub(super) extern "C" fn dispatch(vector: u64) {
    tracepoint_if!(
        vector < u64::from(TIMER_VECTOR),
        Event::InterruptVector,
        NO_QUEUE,
        vector
    );
    timer::note_wakeup();
    let handler = HANDLERS[usize::from(vector as u8)].load(Ordering::Relaxed);
    // SAFETY: the table holds nothing but `fn()`.
    let handler: fn() = unsafe { core::mem::transmute(handler) };
    handler();
    if vector < u64::from(FIRST_DEVICE_VECTOR) {
        pic::end_of_interrupt(vector as u8 - pic::FIRST_VECTOR);
    } else {
        apic::end_of_interrupt();
    }
}

fn set_handler(vector: u8, handler: fn()) {
    HANDLERS[usize::from(vector)].store(handler as *mut (), Ordering::Relaxed);
}

/// Reserves a vector for `handler`; `None` when all are taken.
///
/// The handler runs with interrupts disabled and acknowledges its device, not
/// the interrupt controller. It must not allocate.
pub fn allocate_vector(handler: fn()) -> Option<Vector> {
    let _lock = ALLOCATION.lock();
    let free: *mut () = unexpected as fn() as *mut ();
    let vector = (FIRST_DEVICE_VECTOR..FIRST_DEVICE_VECTOR + DEVICE_VECTORS)
        .find(|&vector| HANDLERS[usize::from(vector)].load(Ordering::Relaxed) == free)?;
    set_handler(vector, handler);
    Some(Vector(vector))
}

/// Gives a vector back. The device must not use it any more.
pub fn free_vector(vector: Vector) {
    set_handler(vector.0, unexpected);
}

/// The memory write by which a device raises `vector` on a CPU (Intel SDM
/// volume 3, section 11.11): address and data of an MSI or MSI-X message.
pub fn msi_message(vector: &Vector, cpu: &PerCpu) -> (u64, u32) {
    let destination = u64::from(destination(cpu)) << 12;
    (0xfee0_0000 | destination, u32::from(vector.0))
}

/// What a PCI function's interrupt line register says, which firmware filled in
/// with the line of the 8259 controllers that the function's pin is connected
/// to; ACPI's overrides say what that line is to the I/O APICs. `None` when it
/// is connected nowhere (0, or above 15).
pub fn isa_line(line: u8) -> Option<Line> {
    (1..pic::LINES)
        .contains(&line)
        .then(|| io_apic::isa_line(line))
}

/// Whether devices' lines come in at I/O APICs, not at the 8259 controllers.
pub fn has_io_apics() -> bool {
    !pic::is_in_use()
}

/// A CPU's APIC id in the 8 bits that interrupt messages have for it; `smp`
/// starts no CPU with a longer one, and the one that boots has a low one.
fn destination(cpu: &PerCpu) -> u8 {
    cpu.apic_id() as u8
}

/// Ends the wait of a CPU in `super::idle_until`, or its next one.
pub fn wake(cpu: &PerCpu) {
    apic::send_interrupt(cpu.apic_id(), WAKE_VECTOR);
}

/// Where a device's interrupt line leads, and how the device uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The input of an I/O APIC.
    pub gsi: Gsi,
    /// Whether a level of it counts, or a change.
    pub trigger: Trigger,
    /// Which level.
    pub polarity: Polarity,
}

/// Lets `line` raise `vector` on this CPU.
///
/// # Errors
///
/// [`RouteError`] when no I/O APIC has that input.
pub fn route(line: Line, vector: &Vector) -> Result<(), RouteError> {
    if let Some(line) = pic::line(line.gsi) {
        // The controllers' vectors are fixed: that of the line does the same.
        let handler = HANDLERS[usize::from(vector.0)].load(Ordering::Relaxed);
        HANDLERS[usize::from(pic::vector(line))].store(handler, Ordering::Relaxed);
        pic::set_masked(line, false);
        return Ok(());
    }
    io_apic::route(line, vector.0, destination(percpu::this()))
}

/// Stops `gsi` from raising interrupts.
pub fn mask_gsi(gsi: Gsi) {
    match pic::line(gsi) {
        Some(line) => {
            pic::set_masked(line, true);
            set_handler(pic::vector(line), unexpected);
        }
        None => io_apic::mask(gsi),
    }
}

/// Readies the interrupt controllers. Interrupts stay disabled at the CPU;
/// `super::idle_until` lets them through.
pub fn init(tables: &acpi::Tables) {
    let has_pic = pic::init();
    apic::init(tables.local_apic_address);
    io_apic::init(tables);
    // Who says nothing of I/O APICs has a machine with the older controllers,
    // unless those are missing (microvm).
    if has_pic && tables.io_apic_is_assumed {
        apic::accept_pic();
        pic::take_over();
        log::debug!("no I/O APIC is known of: interrupt lines come by the 8259 controllers");
    }
    set_handler(TIMER_VECTOR, timer::expired);
    // Its work is done by coming.
    set_handler(WAKE_VECTOR, unexpected);
    timer::init();
}
