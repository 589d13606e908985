//! Waits that end.

/// How long something may take, in cycles of the CPU's time stamp counter,
/// which runs at 1 to 5 GHz; where there is no such counter, in looks.
pub(crate) struct Patience {
    start: u64,
    looks: u64,
    cycles: u64,
}

impl Patience {
    /// From now on.
    pub(crate) fn new(cycles: u64) -> Self {
        Self {
            start: time_stamp().unwrap_or(0),
            looks: 0,
            cycles,
        }
    }

    /// Whether it is over; if not, this is a moment to breathe.
    pub(crate) fn is_over(&mut self) -> bool {
        core::hint::spin_loop();
        self.looks += 1;
        let waited = match time_stamp() {
            Some(now) => now.wrapping_sub(self.start),
            None => self.looks,
        };
        waited > self.cycles
    }
}

#[cfg(target_arch = "x86_64")]
fn time_stamp() -> Option<u64> {
    // SAFETY: every x86-64 CPU has the counter, and it has no effect.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn time_stamp() -> Option<u64> {
    None
}
