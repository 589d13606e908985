//! The local APIC's timer as an alarm clock, and the idle state it ends. Every
//! CPU has its own.

use core::sync::atomic::{AtomicBool, Ordering, fence};

use x86_64::instructions::{interrupts as interrupt_flag, nop};
use x86_64::registers::model_specific::Msr;

use super::apic::{self, LVT_MASKED, Register};
use super::percpu::{self, PerCpu};
use super::time::{self, cycles};
use super::{cpu, exceptions, vectors};

const IA32_TSC_DEADLINE: u32 = 0x6e0;
const LVT_TSC_DEADLINE: u32 = 0b10 << 17;
const LVT_ONE_SHOT: u32 = 0b00 << 17;
const DIVIDE_BY_16: u32 = 0b0011;
/// Shortest time in which the one-shot timer's rate is measured, in cycles.
const MIN_MEASUREMENT: u64 = 100_000;

/// Whether the timer takes deadlines in TSC cycles.
static TSC_DEADLINE: AtomicBool = AtomicBool::new(false);

/// Readies this CPU's timer, not set. The one-shot timer's rate is unknown: it counts
/// from here on until the rate is needed, which measures it in time that the
/// boot takes anyway.
pub fn init() {
    let vector = u32::from(vectors::TIMER);
    if cpu::has_tsc_deadline() {
        TSC_DEADLINE.store(true, Ordering::Relaxed);
        apic::write(Register::LvtTimer, LVT_TSC_DEADLINE | vector);
        // The mode must be in place before the first deadline (Intel SDM
        // volume 3, section 11.5.4.1).
        fence(Ordering::SeqCst);
    } else {
        apic::write(Register::LvtTimer, LVT_MASKED | LVT_ONE_SHOT | vector);
        start_measurement();
    }
}

/// What the timer takes, in words.
pub fn mode() -> &'static str {
    if TSC_DEADLINE.load(Ordering::Relaxed) {
        "TSC deadline"
    } else {
        "one-shot"
    }
}

fn start_measurement() {
    apic::write(Register::TimerDivide, DIVIDE_BY_16);
    apic::write(Register::TimerInitialCount, u32::MAX);
    let timer = &percpu::this().timer;
    timer.measured_since.store(cycles(), Ordering::Relaxed);
}

/// The one-shot timer's ticks a TSC cycle, times 2^32; at least 1.
fn ticks_per_cycle() -> u64 {
    let timer = &percpu::this().timer;
    let known = timer.ticks_per_cycle.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    if apic::read(Register::TimerCurrentCount) == 0 {
        // It ran out, more than a minute after boot.
        start_measurement();
    }
    let since = timer.measured_since.load(Ordering::Relaxed);
    while cycles().wrapping_sub(since) < MIN_MEASUREMENT {
        core::hint::spin_loop();
    }
    let ticks = u32::MAX - apic::read(Register::TimerCurrentCount);
    let elapsed = cycles().wrapping_sub(since);
    let rate = ((u128::from(ticks) << 32) / u128::from(elapsed)) as u64;
    let rate = rate.max(1);
    timer.ticks_per_cycle.store(rate, Ordering::Relaxed);
    apic::write(Register::LvtTimer, LVT_ONE_SHOT | u32::from(vectors::TIMER));
    rate
}

/// Makes sure that an interrupt comes at `deadline` or before. A timer that is
/// set to an earlier time is left as it is: waking up once for nothing is
/// cheaper than setting it for every packet that moves a timeout.
fn arm(deadline: u64, now: u64) {
    let timer = &percpu::this().timer;
    let armed = timer.armed.load(Ordering::Relaxed);
    if armed != 0 && armed <= deadline {
        return;
    }
    if TSC_DEADLINE.load(Ordering::Relaxed) {
        timer.armed.store(deadline, Ordering::Relaxed);
        // SAFETY: the CPU has this register, as `init` found.
        unsafe { Msr::new(IA32_TSC_DEADLINE).write(deadline) };
        return;
    }
    let rate = ticks_per_cycle();
    let ticks = ((u128::from(deadline.saturating_sub(now)) * u128::from(rate)) >> 32) + 1;
    let (count, deadline) = match u32::try_from(ticks) {
        Ok(count) => (count, deadline),
        // As late as it goes; who waits will ask again.
        Err(_) => {
            let cycles = (u64::from(u32::MAX) << 32) / rate;
            (u32::MAX, now.saturating_add(cycles))
        }
    };
    timer.armed.store(deadline, Ordering::Relaxed);
    apic::write(Register::TimerInitialCount, count);
}

/// The timer's interrupt handler.
pub fn expired() {
    percpu::this().timer.armed.store(0, Ordering::Relaxed);
}

/// TSC cycles that a CPU has spent waiting in `hlt` since boot, those of a wait that
/// goes on included.
pub fn idle_cycles(cpu: &PerCpu) -> u64 {
    let timer = &cpu.timer;
    loop {
        let since = timer.halted_since.load(Ordering::Acquire);
        let idle = timer.idle.load(Ordering::Acquire);
        // A CPU that woke up meanwhile has moved the wait from the one to the other.
        if timer.halted_since.load(Ordering::Acquire) == since {
            return match since {
                0 => idle,
                since => idle + cycles().saturating_sub(since),
            };
        }
    }
}

/// Called first in every interrupt, so that what the handlers do does not
/// count as idle. Returns whether the CPU slept.
#[inline]
pub fn note_wakeup() -> bool {
    let timer = &percpu::this().timer;
    let since = timer.halted_since.load(Ordering::Relaxed);
    if since != 0 {
        timer.halted_since.store(0, Ordering::Relaxed);
        let idle = timer.idle.load(Ordering::Relaxed);
        let waited = cycles().wrapping_sub(since);
        timer
            .idle
            .store(idle.wrapping_add(waited), Ordering::Relaxed);
    }
    since != 0
}

/// Waits for an interrupt, at most until [`time::now`] reaches `deadline`
/// (microseconds). Returns early for any reason; the caller looks what there
/// is to do.
///
/// To be called with interrupts disabled, *after* looking for work: an
/// interrupt since then is delivered here and ends the wait at once. Returns
/// with interrupts disabled.
pub fn idle_until(deadline: Option<u64>) {
    debug_assert!(!interrupt_flag::are_enabled());
    exceptions::log_nmis();
    if let Some(deadline) = deadline {
        let now = cycles();
        let deadline = time::tsc_at(deadline);
        if deadline <= now {
            // What is pending is let in; `sti` takes effect after `nop`.
            interrupt_flag::enable();
            nop();
            interrupt_flag::disable();
            return;
        }
        arm(deadline, now);
    }
    let timer = &percpu::this().timer;
    timer.halted_since.store(cycles(), Ordering::Relaxed);
    interrupt_flag::enable_and_hlt();
    interrupt_flag::disable();
    // An NMI or the like ends `hlt` without a handler of ours.
    note_wakeup();
}
