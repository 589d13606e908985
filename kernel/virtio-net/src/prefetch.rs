//! Cache lines that are asked for before they are needed (Linux `prefetch`, `prefetchw`).
//!
//! What the device has just written lies in the cache of its CPU. To fetch a line from there
//! takes longer than all else that a frame asks for; many at once take no longer than one.

/// How many frames of a batch ahead that is: two lines of packed descriptors.
pub(crate) const AHEAD: usize = 8;

/// Has the CPU fetch the line of this address, which need not be one, to read it or, if
/// so said, to write it. A CPU without such a hint does nothing.
#[inline(always)]
pub(crate) fn prefetch<const TO_WRITE: bool, T>(address: *const T) {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    macro_rules! hint {
        ($hint:literal) => {
            // SAFETY: a hint reads no value and faults nowhere.
            unsafe { core::arch::asm!($hint, in(reg) address, options(nostack, preserves_flags, readonly)) }
        };
    }
    match TO_WRITE {
        #[cfg(target_arch = "x86_64")]
        false => hint!("prefetcht0 [{}]"),
        #[cfg(target_arch = "x86_64")]
        true => hint!("prefetchw [{}]"),
        #[cfg(target_arch = "aarch64")]
        false => hint!("prfm pldl1keep, [{}]"),
        #[cfg(target_arch = "aarch64")]
        true => hint!("prfm pstl1keep, [{}]"),
        #[allow(unreachable_patterns, reason = "where there is a hint")]
        _ => _ = address,
    }
}
