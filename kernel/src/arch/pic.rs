//! The two 8259 interrupt controllers, the second behind line 2 of the first.
//! (Intel 8259A data sheet.) The interrupt pins of PCI devices come in here, and
//! all lines on a machine that tells of no I/O APIC.

use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;
use x86_64::instructions::port::Port;

use super::vectors::{FIRST_DEVICE, FIRST_OF_8259};

pub const LINES: u8 = FIRST_DEVICE - FIRST_OF_8259;
/// The line of the first controller that the second one is behind.
const CASCADE: u8 = 2;
const LINES_EACH: u8 = 8;

/// Command and data port of each controller.
const PORTS: [(u16, u16); 2] = [(0x20, 0x21), (0xa0, 0xa1)];
/// Begin the initialisation; a word about the cascade and one more follow.
const ICW1_INIT: u8 = 0x11;
const ICW4_8086: u8 = 0x01;
/// The interrupt of highest priority in service is over.
const OCW2_END_OF_INTERRUPT: u8 = 0x20;
/// The next read of the command port tells the lines in service.
const OCW3_READ_IN_SERVICE: u8 = 0x0b;
/// A mask that nothing but a controller's register would give back.
const PROBE: u8 = 0xfb;

/// The lines that are let through, one bit each.
static OPEN: Mutex<u16> = Mutex::new(0);
static IS_THERE: AtomicBool = AtomicBool::new(false);

fn write(port: u16, value: u8) {
    // SAFETY: the callers' ports are those of the controllers, or of nothing,
    // and what they write is what the data sheet lists.
    unsafe { Port::new(port).write(value) };
}

fn read(port: u16) -> u8 {
    // SAFETY: as above; reading has no effect on memory.
    unsafe { Port::new(port).read() }
}

/// Masks every line, where there are controllers; returns whether there are
/// any.
pub fn init() -> bool {
    let words = [
        (FIRST_OF_8259, 1 << CASCADE),
        (FIRST_OF_8259 + LINES_EACH, CASCADE),
    ];
    for ((command, data), (vector, cascade)) in PORTS.into_iter().zip(words) {
        write(command, ICW1_INIT);
        write(data, vector);
        write(data, cascade);
        write(data, ICW4_8086);
        write(data, 0xff);
    }
    let (_, data) = PORTS[0];
    write(data, PROBE);
    let is_there = read(data) == PROBE;
    write(data, 0xff);
    IS_THERE.store(is_there, Ordering::Relaxed);
    is_there
}

/// Whether [`init`] found them.
pub fn is_there() -> bool {
    IS_THERE.load(Ordering::Relaxed)
}

pub fn vector(line: u8) -> u8 {
    FIRST_OF_8259 + line
}

/// Lets a line through, or not. Whether it is its level or a change of it that
/// counts was set by the firmware.
pub fn set_masked(line: u8, is_masked: bool) {
    let mut open = OPEN.lock();
    let bit = 1u16.checked_shl(line.into()).unwrap_or(0);
    *open = if is_masked { *open & !bit } else { *open | bit };
    // The second controller is only heard while something there is let through.
    let [first, second] = open.to_le_bytes();
    let cascade = if second != 0 { 1 << CASCADE } else { 0 };
    for ((_, data), open) in PORTS.into_iter().zip([first | cascade, second]) {
        write(data, !open);
    }
}

/// Ends the interrupt of a line, so that the next one can come.
pub fn end_of_interrupt(line: u8) {
    let [(first, _), (second, _)] = PORTS;
    let command = if line < LINES_EACH { first } else { second };
    // A line that went away is reported as the last one, and is not in service.
    let mut is_real = true;
    if line % LINES_EACH == LINES_EACH - 1 {
        write(command, OCW3_READ_IN_SERVICE);
        is_real = read(command) & 1 << (LINES_EACH - 1) != 0;
    }
    if is_real {
        write(command, OCW2_END_OF_INTERRUPT);
    }
    if command == second {
        write(first, OCW2_END_OF_INTERRUPT);
    }
}
