//! Every ordering that the driver needs, with its reason.
//!
//! The other side is a device: another thread of the host, or real hardware
//! (`VIRTIO_F_ORDER_PLATFORM`, specification 6.1). So the instructions are those
//! of Linux's `mb`, `writel` and `readl`, which order accesses for both; a CPU
//! that is none of these three has the language's fences.
//!
//! x86 sees stores in program order, and loads too, and accesses to registers in
//! order with all others. What is left there is the compiler, and the load that
//! overtakes an earlier store.
//!
//! `tests/model` finds what goes wrong without each.

#[allow(unused_imports, reason = "each CPU needs others")]
use core::sync::atomic::{Ordering, compiler_fence, fence};

/// The words that both sides share.
#[cfg(not(test))]
pub(crate) use core::sync::atomic::{AtomicU16, AtomicU32};

#[cfg(test)]
pub(crate) use crate::model::{AtomicU16, AtomicU32};

/// One way for each CPU: for x86-64 a statement, else an instruction.
macro_rules! order {
    ($name:ident, $x86:expr, aarch64 $aarch64:literal, riscv $riscv:literal) => {
        #[cfg(test)]
        crate::model::barrier(crate::model::Barrier::$name);
        #[cfg(target_arch = "x86_64")]
        $x86;
        #[cfg(target_arch = "aarch64")]
        order!($aarch64);
        #[cfg(any(target_arch = "riscv32", target_arch = "riscv64"))]
        order!($riscv);
        #[cfg(not(any(
            target_arch = "x86_64",
            target_arch = "aarch64",
            target_arch = "riscv32",
            target_arch = "riscv64"
        )))]
        fence(Ordering::SeqCst);
    };
    // Not `nomem`: the compiler moves no access across it either.
    ($instruction:literal) => {
        // SAFETY: it orders accesses and has no other effect.
        unsafe { core::arch::asm!($instruction, options(nostack, preserves_flags)) }
    };
}

/// Orders earlier stores before a later one (Linux `dma_wmb`): descriptors and
/// entries are visible before the index, or the flags, that make them available
/// (specification 2.7.13, 2.8.21). The store itself is `Release`, which says the
/// same to the compiler and, of threads alone, to the CPU.
#[doc(alias = "dma_wmb")]
#[inline(always)]
pub(crate) fn publish() {
    order!(
        Publish,
        compiler_fence(Ordering::Release),
        aarch64 "dmb oshst",
        riscv "fence w, w"
    );
}

/// Orders an earlier load before every later access (Linux `dma_rmb`): what an
/// index, or flags, announce as used is read after them, and a buffer that was
/// given back is not written before. The load is `Acquire`, as in [`publish`].
#[doc(alias = "dma_rmb")]
#[inline(always)]
pub(crate) fn consume() {
    order!(
        Consume,
        compiler_fence(Ordering::Acquire),
        aarch64 "dmb oshld",
        riscv "fence r, rw"
    );
}

/// Orders every earlier store before every later load (Linux `virtio_mb`).
///
/// Both sides of a virtqueue store their own index and then read the other's
/// event (specification 2.7.13.4.1, 2.7.10; packed rings 2.8.21.3.1). Without it
/// each could miss the other's store, and both would sleep: a kick that was not
/// sent, an interrupt that was not asked for.
#[doc(alias = "virtio_mb")]
#[inline(always)]
pub(crate) fn store_load() {
    order!(
        StoreLoad,
        // A `lock`ed operation would be cheaper, but for QEMU's TCG it is none of a
        // guest with one CPU, beside which the device runs all the same.
        order!("mfence"),
        aarch64 "dmb osh",
        riscv "fence rw, rw"
    );
}

/// Orders every earlier access to memory before a later write of a register
/// (Linux `__io_bw` in `writel`).
///
/// The device reads memory because of it: after "queue enabled" and DRIVER_OK the
/// rings, zeroed, and the receive buffers in them (specification 3.1.1, 4.1.5.1.3);
/// after the doorbell what was published.
#[doc(alias = "writel")]
#[inline(always)]
pub(crate) fn before_register() {
    order!(
        BeforeRegister,
        compiler_fence(Ordering::SeqCst),
        aarch64 "dmb osh",
        riscv "fence rw, o"
    );
}

/// Orders an earlier read of a register before every later access to memory
/// (Linux `__io_ar` in `readl`).
///
/// What was read says what memory holds: an interrupt status, that the used ring
/// has something new; a device status of 0, that the device has forgotten its
/// memory, which may be used again from then on (specification 2.4.1).
#[doc(alias = "readl")]
#[inline(always)]
pub(crate) fn after_register() {
    order!(
        AfterRegister,
        compiler_fence(Ordering::SeqCst),
        aarch64 "dmb oshld",
        riscv "fence i, rw"
    );
}
