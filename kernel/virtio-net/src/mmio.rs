//! Accesses to a device's registers, each by one instruction that a hypervisor
//! can emulate: on aarch64 not every load and store that a compiler may choose
//! tells what it does (the `safe-mmio` crate has the instructions).

use core::ptr::NonNull;

use safe_mmio::UniqueMmioPointer;
use safe_mmio::fields::ReadWrite;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::barrier;

/// Reads a register, before all that follows.
///
/// # Safety
///
/// It must be a mapped register of a device that the driver owns, aligned.
#[inline(always)]
pub(crate) unsafe fn read<V: FromBytes + IntoBytes>(register: NonNull<V>) -> V {
    // SAFETY: the caller's promise; the pointer is gone after the access.
    let value = unsafe { UniqueMmioPointer::new(register.cast::<ReadWrite<V>>()) }.read();
    barrier::after_register();
    value
}

/// Writes a register, after all that was before.
///
/// # Safety
///
/// As for [`read`].
#[inline(always)]
pub(crate) unsafe fn write<V: Immutable + IntoBytes>(register: NonNull<V>, value: V) {
    barrier::before_register();
    // SAFETY: the caller's promise; the pointer is gone after the access.
    unsafe { UniqueMmioPointer::new(register.cast::<ReadWrite<V>>()) }.write(value);
}
