//! What happens in an interrupt: as little as possible.
//!
//! The handlers only note that something is to be done; the poll loop does it
//! (Linux's NAPI). So they need no lock, and share an [`InterruptState`]
//! with the driver.

use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::trace::{NO_QUEUE, tracepoint};
use crate::transport::isr::{ISR_CONFIG, ISR_QUEUE};
pub use crate::transport::isr::{IsrRegister, MmioInterrupt};

/// A way to an [`InterruptState`] that handlers have too: a reference, such as one
/// to a `static`, or an `Arc` in a structure of the kernel's.
pub trait StateRef: Deref<Target = InterruptState> {}
impl<S: Deref<Target = InterruptState>> StateRef for S {}

/// What the interrupt handlers tell the poll loop. They write it, so it has a
/// cache line for itself.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct InterruptState {
    interrupts: AtomicUsize,
    not_ours: AtomicUsize,
    isr_reads: AtomicUsize,
    config_changed: AtomicBool,
}

impl InterruptState {
    /// Nothing has happened.
    pub const fn new() -> Self {
        Self {
            interrupts: AtomicUsize::new(0),
            not_ours: AtomicUsize::new(0),
            isr_reads: AtomicUsize::new(0),
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

    /// Interrupts taken that were the device's, since boot. The counters have the
    /// CPU's width: 32 bits wrap.
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed) as u64
    }

    /// INTx interrupts whose ISR status was 0, since boot. They are not among
    /// [`Self::interrupts`].
    pub fn not_ours(&self) -> u64 {
        self.not_ours.load(Ordering::Relaxed) as u64
    }

    /// Reads of the ISR register since boot, each an access to the device: one
    /// for each INTx interrupt, none for MSI-X.
    pub fn isr_reads(&self) -> u64 {
        self.isr_reads.load(Ordering::Relaxed) as u64
    }

    /// Whether the configuration changed since the last call.
    #[inline]
    pub fn take_config_changed(&self) -> bool {
        // The plain load first: this is asked at every poll.
        self.config_changed.load(Ordering::Relaxed)
            && self.config_changed.swap(false, Ordering::Acquire)
    }
}
