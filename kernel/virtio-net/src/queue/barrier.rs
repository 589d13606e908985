//! The one barrier that x86's total store order does not give for free.
//!
//! Stores are seen in program order and so are loads: publishing an index
//! after its entry, or reading an entry after its index, is the compiler's
//! matter alone (`Release` and `Acquire`). But a load may overtake an earlier
//! store. Both sides of a virtqueue store their own index and then read the
//! other's event (specification 2.7.13.4.1, 2.7.10); without a full barrier
//! between the two, each could miss the other's store and both would sleep.

/// Orders every earlier store before every later load (Linux `virtio_mb`).
#[doc(alias = "virtio_mb")]
#[inline]
pub fn store_load() {
    #[cfg(target_arch = "x86_64")]
    // A `lock`ed operation is a full barrier and cheaper than `mfence`, which
    // also waits for weakly ordered stores that nobody makes here.
    // SAFETY: it adds 0 to the top of the stack, memory that is ours; the
    // absence of `nomem` makes it a compiler barrier too.
    unsafe {
        core::arch::asm!("lock add dword ptr [rsp], 0", options(nostack));
    }
    #[cfg(not(target_arch = "x86_64"))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}
