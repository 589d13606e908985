//! Time since the kernel's first instruction, by the time stamp counter.

use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;

use super::acpi::PmTimer;
use super::calibration;
pub use super::calibration::Frequency;
pub use super::cpu::cycles;

/// TSC at the kernel's first instruction.
static BOOT: AtomicU64 = AtomicU64::new(0);
/// Microseconds a cycle, times 2^64; 0 until [`init`].
static MICROS_PER_CYCLE: AtomicU64 = AtomicU64::new(0);
/// Cycles a microsecond, times 2^32.
static CYCLES_PER_MICRO: AtomicU64 = AtomicU64::new(0);
static FREQUENCY: Once<Frequency> = Once::new();

/// Notes when the kernel was entered; the entry points call this first.
pub fn set_boot_tsc(tsc: u64) {
    BOOT.store(tsc, Ordering::Relaxed);
}

/// TSC cycles since the kernel's first instruction.
#[inline]
pub fn uptime_cycles() -> u64 {
    cycles().wrapping_sub(BOOT.load(Ordering::Relaxed))
}

/// Microseconds since the kernel's first instruction; 0 until the frequency of
/// the TSC is known.
#[inline]
pub fn now() -> u64 {
    micros(uptime_cycles())
}

/// Converts TSC cycles to microseconds; 0 until the frequency is known.
#[inline]
pub fn micros(cycles: u64) -> u64 {
    let rate = MICROS_PER_CYCLE.load(Ordering::Relaxed);
    ((u128::from(cycles) * u128::from(rate)) >> 64) as u64
}

/// Waits until `done`, at most so many microseconds; returns whether it is.
#[inline(always)]
pub fn wait(longest: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = cycles();
    loop {
        if done() {
            return true;
        }
        if micros(cycles().wrapping_sub(start)) >= longest {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// The TSC when [`now`] reaches `micros`; the end of time at most.
pub fn tsc_at(micros: u64) -> u64 {
    let rate = CYCLES_PER_MICRO.load(Ordering::Relaxed);
    // Rounded up, so that `now` has reached `micros` by then.
    let cycles = ((u128::from(micros) * u128::from(rate)) >> 32) + 1;
    let cycles = u64::try_from(cycles).unwrap_or(u64::MAX);
    BOOT.load(Ordering::Relaxed).saturating_add(cycles)
}

/// How fast the TSC counts; `None` until [`init`].
pub fn frequency() -> Option<Frequency> {
    FREQUENCY.get().copied()
}

/// Finds the frequency of the TSC; takes a few milliseconds at most where
/// nothing tells it.
pub fn init(pm_timer: Option<PmTimer>) {
    let frequency = *FREQUENCY.call_once(|| calibration::tsc_frequency(pm_timer));
    let hz = u128::from(frequency.hz);
    // The frequency is at least `calibration::PLAUSIBLE`'s start, 1 MHz.
    MICROS_PER_CYCLE.store(
        u64::try_from((1_000_000u128 << 64) / hz).unwrap_or(u64::MAX),
        Ordering::Relaxed,
    );
    CYCLES_PER_MICRO.store(((hz << 32) / 1_000_000) as u64, Ordering::Relaxed);
}
