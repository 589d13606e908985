//! How long a device may use the memory of its queues.

extern crate alloc;

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

/// From [`VirtioNet::open`](super::VirtioNet::open) to the reset the device may use
/// the memory of the queues that have this lease. A queue keeps its memory until
/// then, wherever safe code has put it meanwhile.
#[derive(Clone, Default)]
pub(super) struct Lease(Arc<AtomicBool>);

impl Lease {
    /// The device is about to go live.
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The device was reset.
    pub(super) fn end(&self) {
        // Release: whoever gives the memory back does so after the reset.
        self.0.store(false, Ordering::Release);
    }

    pub(super) fn is_running(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Whether it is the same one.
impl PartialEq for Lease {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
