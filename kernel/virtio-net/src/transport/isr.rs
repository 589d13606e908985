//! The register by which an interrupt line (INTx) is acknowledged.

use core::ptr::NonNull;

use super::ports::PortAccess;
#[cfg(target_arch = "x86_64")]
use super::{Ports, X86Ports};
use crate::mmio;

/// In the ISR status: a queue has used buffers (specification 4.1.4.5).
pub(crate) const ISR_QUEUE: u8 = 1;
/// In the ISR status: the device's configuration has changed.
pub(crate) const ISR_CONFIG: u8 = 2;

/// The register that tells why INTx was raised, and lowers it when read
/// (specification 4.1.4.5, the legacy interface's 4.1.4.10). It is made by
/// [`Self::port`], [`Self::mmio`] and [`Self::virtio_mmio`], whose callers answer
/// for what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsrRegister {
    /// A byte at this port (legacy virtio-pci).
    #[cfg(target_arch = "x86_64")]
    #[non_exhaustive]
    Port(u16),
    /// A byte at this mapped address (modern virtio-pci).
    #[non_exhaustive]
    Mmio(NonNull<u8>),
    /// The two registers of virtio-mmio, which keeps its line up until it is
    /// told what was seen.
    #[non_exhaustive]
    VirtioMmio(MmioInterrupt),
}

/// The interrupt registers of virtio-mmio, mapped (specification 4.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioInterrupt {
    /// InterruptStatus: why the line is up.
    pub status: NonNull<u32>,
    /// InterruptACK: what of it was seen.
    pub acknowledge: NonNull<u32>,
}

// SAFETY: it is the address of a device register that any CPU may read.
unsafe impl Send for IsrRegister {}
// SAFETY: as above; a shared reference allows no more than a copy.
unsafe impl Sync for IsrRegister {}

impl IsrRegister {
    /// The register at a port.
    ///
    /// # Safety
    ///
    /// The port must be the ISR status of a device that the driver owns, on a
    /// CPU that may access it.
    #[cfg(target_arch = "x86_64")]
    pub const unsafe fn port(port: u16) -> Self {
        Self::Port(port)
    }

    /// The register at a mapped address.
    ///
    /// # Safety
    ///
    /// It must be the ISR status of a device that the driver owns, mapped for as
    /// long as the program runs.
    pub const unsafe fn mmio(register: NonNull<u8>) -> Self {
        Self::Mmio(register)
    }

    /// The registers of virtio-mmio.
    ///
    /// # Safety
    ///
    /// They must be those of a device that the driver owns, mapped for as long
    /// as the program runs.
    pub const unsafe fn virtio_mmio(registers: MmioInterrupt) -> Self {
        Self::VirtioMmio(registers)
    }

    /// Reads, and so acknowledges, the interrupt status.
    #[inline]
    pub(crate) fn read(self) -> u8 {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller of `Self::port` answers for the register; reading
            // only acknowledges.
            Self::Port(port) => unsafe { X86Ports::new() }.read8(port),
            // SAFETY: the same of `Self::mmio`.
            Self::Mmio(register) => unsafe { mmio::read(register) },
            Self::VirtioMmio(registers) => {
                // SAFETY: the same of `Self::virtio_mmio`. The upper bits are
                // reserved.
                let status = u32::from_le(unsafe { mmio::read(registers.status) });
                if status != 0 {
                    // SAFETY: as above.
                    unsafe { mmio::write(registers.acknowledge, status.to_le()) };
                }
                status as u8
            }
        }
    }
}

impl PortAccess {
    /// The ISR status at a port.
    pub(super) fn isr(self, port: u16) -> Option<IsrRegister> {
        #[cfg(target_arch = "x86_64")]
        if self.is_native() {
            return Some(IsrRegister::Port(port));
        }
        self.in_window(port).map(IsrRegister::Mmio)
    }
}
