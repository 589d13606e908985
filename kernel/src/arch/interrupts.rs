//! Interrupts of devices: vectors, who handles them, and how a message (MSI)
//! or a line (INTx) is made to raise one. Every CPU has the same handlers.

use core::fmt;
use core::sync::atomic::{AtomicPtr, Ordering};

use kickpath_trace::{Event, NO_QUEUE, tracepoint_if};
use spin::Mutex;

use super::acpi::{self, Input, Trigger};
use super::percpu::{self, PerCpu};
use super::{apic, io_apic, pic, timer, vectors};

pub use io_apic::NoInput;

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
    let of_device = vector < u64::from(vectors::TIMER);
    tracepoint_if!(of_device, Event::InterruptVector, NO_QUEUE, vector);
    let is_other = !timer::note_wakeup() && !of_device;
    tracepoint_if!(is_other, Event::OtherInterrupt, NO_QUEUE, vector);
    let handler = HANDLERS[usize::from(vector as u8)].load(Ordering::Relaxed);
    // SAFETY: the table holds nothing but `fn()`.
    let handler: fn() = unsafe { core::mem::transmute(handler) };
    handler();
    if vector < u64::from(vectors::FIRST_DEVICE) {
        pic::end_of_interrupt(vector as u8 - vectors::FIRST_OF_8259);
    } else {
        apic::end_of_interrupt();
    }
    tracepoint_if!(is_other, Event::OtherInterruptEnd, NO_QUEUE, vector);
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
    let vector = (vectors::FIRST_DEVICE..vectors::TIMER)
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

/// The line that a PCI function's interrupt line register names: the one of the
/// 8259 controllers that firmware connected the function's pin to (PCI Local Bus
/// specification 3.0, section 6.2.4). On a machine without them an I/O APIC
/// may have it. `None` when the pin is connected nowhere (0, or above 15).
pub fn pci_line(register: u8) -> Option<Line> {
    let line = (1..pic::LINES).contains(&register).then_some(register)?;
    Some(match pic::is_there() {
        true => Line::Isa(line),
        false => Line::IoApic(io_apic::isa_line(line)),
    })
}

/// Where an input of an I/O APIC comes in: at a 8259 controller where the
/// machine tells of no I/O APIC and has those, whose numbers are the same then.
pub fn io_apic_line(input: Input) -> Line {
    let is_guess = acpi::tables().is_some_and(|tables| tables.io_apic_is_assumed);
    let isa = u8::try_from(input.gsi.0).ok();
    match isa.filter(|line| *line < pic::LINES && is_guess) {
        Some(line) if pic::is_there() => Line::Isa(line),
        _ => Line::IoApic(input),
    }
}

/// A CPU's APIC id in the 8 bits that interrupt messages have for it; `smp`
/// starts no CPU with a longer one, and the one that boots has a low one.
fn destination(cpu: &PerCpu) -> u8 {
    cpu.apic_id() as u8
}

/// Ends the wait of a CPU in `super::idle_until`, or its next one.
pub fn wake(cpu: &PerCpu) {
    let command = apic::COMMAND_INTERRUPT | u32::from(vectors::WAKE);
    apic::send(cpu.apic_id(), command);
}

/// Where a device's interrupt line leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// To a line of the 8259 controllers, 1 to 15. Whether a level of it counts
    /// or a change was set by the firmware.
    Isa(u8),
    IoApic(Input),
}

impl Line {
    /// Whether it is known that a change of it counts, not its level.
    pub fn is_edge(self) -> bool {
        matches!(self, Self::IoApic(input) if input.trigger == Trigger::Edge)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Isa(line) => write!(f, "line {line} of the 8259 controllers"),
            Self::IoApic(input) => input.fmt(f),
        }
    }
}

/// Lets `line` raise `vector` on this CPU.
pub fn route(line: Line, vector: &Vector) -> Result<(), NoInput> {
    match line {
        Line::Isa(line) => {
            // The controllers' vectors are fixed: that of the line does the same.
            let handler = HANDLERS[usize::from(vector.0)].load(Ordering::Relaxed);
            HANDLERS[usize::from(pic::vector(line))].store(handler, Ordering::Relaxed);
            pic::set_masked(line, false);
            Ok(())
        }
        Line::IoApic(input) => io_apic::route(input, vector.0, destination(percpu::this())),
    }
}

pub fn mask(line: Line) {
    match line {
        Line::Isa(line) => {
            pic::set_masked(line, true);
            set_handler(pic::vector(line), unexpected);
        }
        Line::IoApic(input) => io_apic::mask(input.gsi),
    }
}

/// Readies the interrupt controllers. Interrupts stay disabled at the CPU;
/// `super::idle_until` lets them through.
pub fn init(tables: &acpi::Tables) {
    let has_pic = pic::init();
    apic::init(tables.local_apic_address);
    io_apic::init(tables);
    if has_pic {
        // Each of its lines is masked until a device wants it.
        apic::accept_pic();
    }
    set_handler(vectors::TIMER, timer::expired);
    // Its work is done by coming.
    set_handler(vectors::WAKE, unexpected);
    timer::init();
}
