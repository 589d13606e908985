//! The two 8259 interrupt controllers, the second behind line 2 of the first.
//! (Intel 8259A data sheet.) They are quiet where there are I/O APICs; on a
//! machine that tells of none, devices' lines come in here.

use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;
use x86_64::instructions::port::Port;

use super::interrupts::Gsi;

/// The vector of line 0. They are moved out of the exceptions' vectors first of
/// all, because a line that goes away at the wrong moment is reported even
/// when masked.
pub const FIRST_VECTOR: u8 = 0x20;
/// Number of lines.
pub const LINES: u8 = 16;
/// The line of the first controller that the second one is behind.
const CASCADE: u8 = 2;
/// Lines of a controller.
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
static IN_USE: AtomicBool = AtomicBool::new(false);

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
        (FIRST_VECTOR, 1 << CASCADE),
        (FIRST_VECTOR + LINES_EACH, CASCADE),
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
    is_there
}

/// Has devices' lines come in here. The CPU must listen to the controllers.
pub fn take_over() {
    IN_USE.store(true, Ordering::Relaxed);
}

/// Whether they come in here.
pub fn is_in_use() -> bool {
    IN_USE.load(Ordering::Relaxed)
}

/// The line of a global system interrupt, if that comes in here. Without ACPI
/// the numbers are the same.
pub fn line(gsi: Gsi) -> Option<u8> {
    let line = u8::try_from(gsi.0).ok().filter(|line| *line < LINES);
    line.filter(|_| is_in_use())
}

/// The vector of a line.
pub fn vector(line: u8) -> u8 {
    FIRST_VECTOR + line
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
