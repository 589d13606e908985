//! Waits that end.

/// The embedder's clock: microseconds since any moment. It never goes back, and
/// may be read with interrupts off.
pub type Clock = fn() -> u64;

/// Looks that count as a microsecond where there is no clock.
const LOOKS: u64 = 100;
/// The same where there is one, so that one that stands still ends a wait too.
const LOOKS_BESIDE_A_CLOCK: u64 = 10_000;

/// How long something may take.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) micros: u64,
    pub(crate) clock: Option<Clock>,
}

/// A wait that has begun.
pub(crate) struct Wait {
    patience: Patience,
    start: u64,
    looks: u64,
}

impl Patience {
    /// From now on.
    pub(crate) fn start(self) -> Wait {
        Wait {
            patience: self,
            start: self.clock.map_or(0, |now| now()),
            looks: 0,
        }
    }
}

impl Wait {
    /// How often [`Self::is_over`] was asked.
    pub(crate) fn looks(&self) -> u64 {
        self.looks
    }

    /// Whether it is over; if not, this is a moment to breathe.
    pub(crate) fn is_over(&mut self) -> bool {
        core::hint::spin_loop();
        self.looks += 1;
        let Patience { micros, clock } = self.patience;
        match clock {
            Some(now) if now().wrapping_sub(self.start) > micros => true,
            Some(_) => self.looks / LOOKS_BESIDE_A_CLOCK > micros,
            None => self.looks / LOOKS > micros,
        }
    }
}
