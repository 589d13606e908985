//! Which interrupt vector is whose. Those below 32 are the CPU's exceptions.

/// First of the 16 vectors of the 8259 controllers. They are moved out of the
/// exceptions' vectors first of all, because a line that goes away at the wrong
/// moment is reported even when masked.
pub const FIRST_OF_8259: u8 = 0x20;
pub const FIRST_DEVICE: u8 = 0x30;
/// The local APIC's timer; vectors for devices end below.
pub const TIMER: u8 = 0xf0;
/// Another CPU's message that there is something to do: it ends `hlt`.
pub const WAKE: u8 = 0xf1;
/// The local APIC reports with this vector that an interrupt has vanished. Its
/// low four bits are ones, as old APICs demand.
pub const SPURIOUS: u8 = 0xff;
