//! What happens in an interrupt: as little as possible.
//!
//! The handlers only note that something is to be done; the poll loop does it
//! (Linux's NAPI). So they need no lock, and an [`InterruptState`] can be a
//! `static` that the embedder's handlers share with the driver.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kickpath_trace::{Event, NO_QUEUE, tracepoint};

/// In the ISR status: a queue has used buffers (specification 4.1.4.5).
const ISR_QUEUE: u8 = 1;
/// In the ISR status: the device's configuration has changed.
const ISR_CONFIG: u8 = 2;

/// The register that tells why INTx was raised, and lowers it when read
/// (specification 4.1.4.5, the legacy interface's 4.1.4.10). It is made by
/// [`Self::port`], [`Self::mmio`] and [`Self::virtio_mmio`], whose callers answer
/// for what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsrRegister {
    /// A byte at this port (legacy virtio-pci).
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
    fn read(self) -> u8 {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Port(port) => {
                let value: u8;
                // SAFETY: the caller of `Self::port` answers for the register;
                // reading only acknowledges.
                unsafe {
                    core::arch::asm!(
                        "in al, dx",
                        in("dx") port,
                        out("al") value,
                        options(nostack, preserves_flags),
                    );
                }
                value
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Port(_) => 0,
            // SAFETY: the same of `Self::mmio`.
            Self::Mmio(register) => unsafe { register.read_volatile() },
            Self::VirtioMmio(registers) => {
                // SAFETY: the same of `Self::virtio_mmio`. The upper bits are
                // reserved.
                let status = u32::from_le(unsafe { registers.status.read_volatile() });
                if status != 0 {
                    // SAFETY: as above.
                    unsafe { registers.acknowledge.write_volatile(status.to_le()) };
                }
                status as u8
            }
        }
    }
}

/// What the interrupt handlers tell the poll loop. They write it, so it has a
/// cache line for itself.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct InterruptState {
    interrupts: AtomicU64,
    not_ours: AtomicU64,
    isr_reads: AtomicU64,
    config_changed: AtomicBool,
}

impl InterruptState {
    /// Nothing has happened.
    pub const fn new() -> Self {
        Self {
            interrupts: AtomicU64::new(0),
            not_ours: AtomicU64::new(0),
            isr_reads: AtomicU64::new(0),
            config_changed: AtomicBool::new(false),
        }
    }

    /// Handles the MSI-X vector of one queue (Linux `vring_interrupt`).
    #[inline]
    pub fn vring_interrupt(&self) {
        // Relaxed: the CPU that takes the interrupt is the one that polls.
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        tracepoint!(Event::VringInterrupt, NO_QUEUE);
    }

    /// Handles the MSI-X vector that all queues share (Linux
    /// `vp_vring_interrupt`). The poll looks at every queue anyway.
    #[inline]
    pub fn vp_vring_interrupt(&self) {
        self.vring_interrupt();
    }

    /// Handles the MSI-X vector of configuration changes (Linux
    /// `vp_config_changed`).
    #[inline]
    pub fn vp_config_changed(&self) {
        tracepoint!(Event::ConfigInterrupt, NO_QUEUE);
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        self.config_changed.store(true, Ordering::Release);
    }

    /// Whether the configuration is to be looked at.
    #[inline]
    pub(crate) fn config_has_changed(&self) -> bool {
        self.config_changed.load(Ordering::Relaxed)
    }

    /// Has the configuration looked at by the next poll: it may have changed
    /// while the device could not tell.
    pub(crate) fn look_at_config(&self) {
        self.config_changed.store(true, Ordering::Release);
    }

    /// Handles INTx (Linux `vp_interrupt`). The line may be shared, and a
    /// level that was read away already can still be delivered: a status of 0
    /// is counted as not ours and is no error.
    #[inline]
    pub fn vp_interrupt(&self, isr: IsrRegister) {
        self.isr_reads.fetch_add(1, Ordering::Relaxed);
        self.note_isr(isr.read());
    }

    #[inline]
    fn note_isr(&self, status: u8) {
        tracepoint!(Event::IntxInterrupt, NO_QUEUE, u64::from(status));
        if status & (ISR_QUEUE | ISR_CONFIG) == 0 {
            self.not_ours.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        if status & ISR_CONFIG != 0 {
            self.config_changed.store(true, Ordering::Release);
        }
    }

    /// Interrupts taken that were the device's, since boot. 64 bits do not wrap.
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    /// INTx interrupts whose ISR status was 0, since boot. They are not among
    /// [`Self::interrupts`].
    pub fn not_ours(&self) -> u64 {
        self.not_ours.load(Ordering::Relaxed)
    }

    /// Reads of the ISR register since boot, each an access to the device: one
    /// for each INTx interrupt, none for MSI-X.
    pub fn isr_reads(&self) -> u64 {
        self.isr_reads.load(Ordering::Relaxed)
    }

    /// Whether the configuration changed since the last call.
    #[inline]
    pub fn take_config_changed(&self) -> bool {
        // The plain load first: this is asked at every poll.
        self.config_changed.load(Ordering::Relaxed)
            && self.config_changed.swap(false, Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isr_zero_is_tolerated_and_counted() {
        let state = InterruptState::new();
        state.note_isr(0);
        state.note_isr(0x80);
        assert_eq!((state.interrupts(), state.not_ours()), (0, 2));
        assert!(!state.take_config_changed());
    }

    #[test]
    fn a_config_change_is_reported_once() {
        let state = InterruptState::new();
        state.note_isr(ISR_QUEUE);
        assert!(!state.take_config_changed());
        state.note_isr(ISR_QUEUE | ISR_CONFIG);
        assert_eq!(state.interrupts(), 2);
        assert!(state.take_config_changed());
        assert!(!state.take_config_changed());
    }
}
