//! The CPU's port space, as a trait so that tests can put a device there.

/// Access to 64 KiB of I/O ports.
///
/// # Safety
///
/// An implementation must do nothing but the access: no memory of the program
/// may change by it, other than through what a device does by DMA.
pub unsafe trait Ports {
    /// Reads a byte.
    fn read8(&self, port: u16) -> u8;
    /// Reads 16 bits.
    fn read16(&self, port: u16) -> u16;
    /// Reads 32 bits.
    fn read32(&self, port: u16) -> u32;
    /// Writes a byte.
    fn write8(&mut self, port: u16, value: u8);
    /// Writes 16 bits.
    fn write16(&mut self, port: u16, value: u16);
    /// Writes 32 bits.
    fn write32(&mut self, port: u16, value: u32);
}

/// The ports of the x86 CPU that runs this.
///
/// A value of it can be had only by [`X86Ports::new`], whose caller answers
/// for which ports are accessed through it.
#[derive(Debug)]
pub struct X86Ports(());

impl X86Ports {
    /// Gives access to the CPU's ports.
    ///
    /// # Safety
    ///
    /// The CPU must be at a privilege that allows port accesses, and the
    /// ports that will be accessed through this value must belong to the
    /// device that it is given to.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Ports, X86Ports};
    use core::arch::asm;

    macro_rules! input {
        ($name:ident, $type:ty, $instruction:literal, $register:tt) => {
            #[inline]
            fn $name(&self, port: u16) -> $type {
                let value: $type;
                // SAFETY: the creator of `X86Ports` promised that ports may
                // be accessed and belong to the device.
                unsafe {
                    asm!($instruction, in("dx") port, out($register) value,
                         options(nostack, preserves_flags));
                }
                value
            }
        };
    }

    macro_rules! output {
        ($name:ident, $type:ty, $instruction:literal, $register:tt) => {
            #[inline]
            fn $name(&mut self, port: u16, value: $type) {
                // SAFETY: as for the reads.
                unsafe {
                    asm!($instruction, in("dx") port, in($register) value,
                         options(nostack, preserves_flags));
                }
            }
        };
    }

    // SAFETY: each function is one `in` or `out` instruction.
    unsafe impl Ports for X86Ports {
        input!(read8, u8, "in al, dx", "al");
        input!(read16, u16, "in ax, dx", "ax");
        input!(read32, u32, "in eax, dx", "eax");
        output!(write8, u8, "out dx, al", "al");
        output!(write16, u16, "out dx, ax", "ax");
        output!(write32, u32, "out dx, eax", "eax");
    }
}
