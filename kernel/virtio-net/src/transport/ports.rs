//! I/O ports: the x86 CPU's own, or a window of memory through which another
//! machine's PCI host reaches them. A trait, so that tests can put a device there.

use core::ptr::NonNull;

use virtio_drivers::{Hal, PhysAddr};

use super::registers::{MappedRegisters, Registers};
use crate::doorbell::Doorbell;

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

    /// How a doorbell and an interrupt handler, which do not have this value,
    /// reach its ports.
    fn access(&self) -> PortAccess;
}

/// How ports are reached by those who do not have the [`Ports`].
#[derive(Clone, Copy, Debug)]
pub struct PortAccess(Way);

#[derive(Clone, Copy, Debug)]
enum Way {
    #[cfg(target_arch = "x86_64")]
    Native,
    Window(NonNull<u8>, usize),
    Nothing,
}

// SAFETY: the address of a window of registers; any CPU may access them.
unsafe impl Send for PortAccess {}

impl PortAccess {
    /// There are no ports. A device that can be kicked at a port alone is an
    /// error then.
    pub const NONE: Self = Self(Way::Nothing);

    /// By the x86 CPU's instructions.
    ///
    /// # Safety
    ///
    /// As for [`X86Ports::new`].
    #[cfg(target_arch = "x86_64")]
    pub const unsafe fn native() -> Self {
        Self(Way::Native)
    }

    /// Whether a port is as good a place for a kick as memory is.
    pub(super) fn is_native(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if matches!(self.0, Way::Native) {
            return true;
        }
        false
    }

    pub(super) fn in_window<V>(self, port: u16) -> Option<NonNull<V>> {
        match self.0 {
            // SAFETY: the caller of `PortWindow::map` answers for the range.
            Way::Window(base, size) => {
                unsafe { MappedRegisters::at(base, size) }.pointer(port.into())
            }
            _ => None,
        }
    }

    /// The doorbell at a port: 16 bits.
    pub(super) fn doorbell(self, port: u16, queue: u16) -> Option<Doorbell> {
        #[cfg(target_arch = "x86_64")]
        if self.is_native() {
            return Some(Doorbell::Port { port, queue });
        }
        let register = self.in_window(port)?;
        Some(Doorbell::Mmio16 { register, queue })
    }
}

/// Ports in a window of memory, a byte a port: how the PCI hosts of other CPUs
/// have them.
#[derive(Debug)]
pub struct PortWindow(MappedRegisters);

impl PortWindow {
    /// Makes the first `size` ports accessible, at most 65536; `None` where the
    /// `Hal` cannot map them.
    ///
    /// # Safety
    ///
    /// `size` bytes at `physical` must be the PCI host's window to its ports,
    /// and those that will be accessed must belong to the device that this value
    /// is given to.
    pub unsafe fn map<H: Hal>(physical: PhysAddr, size: usize) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe { MappedRegisters::map::<H>(physical, size) }.map(Self)
    }
}

macro_rules! window {
    ($($read:ident $write:ident $type:ty,)+) => {
        // SAFETY: each is one access to a device's registers.
        unsafe impl Ports for PortWindow {
            $(fn $read(&self, port: u16) -> $type {
                self.0.$read(port.into())
            }
            fn $write(&mut self, port: u16, value: $type) {
                self.0.$write(port.into(), value);
            })+
            fn access(&self) -> PortAccess {
                let base = self.0.pointer(0);
                base.map_or(PortAccess::NONE, |base| PortAccess(Way::Window(base, self.0.size())))
            }
        }
    };
}
window!(read8 write8 u8, read16 write16 u16, read32 write32 u32,);

/// The ports that a machine with this CPU has.
#[cfg(target_arch = "x86_64")]
pub type NativePorts = X86Ports;
/// As above.
#[cfg(not(target_arch = "x86_64"))]
pub type NativePorts = PortWindow;

/// The ports of the x86 CPU that runs this.
///
/// A value of it can be had only by [`X86Ports::new`], whose caller answers
/// for which ports are accessed through it.
#[cfg(target_arch = "x86_64")]
#[derive(Debug)]
pub struct X86Ports(());

#[cfg(target_arch = "x86_64")]
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
    use super::{PortAccess, Ports, Way, X86Ports};
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

        fn access(&self) -> PortAccess {
            PortAccess(Way::Native)
        }
    }
}
