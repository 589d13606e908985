//! The watchdog (Linux `ndo_tx_timeout`, FreeBSD `vtnet_watchdog`): finds a queue
//! whose work does not move, prods the device, and at last gives the queue up, so
//! that the device is opened again. It counts looks, not time: to a machine that was
//! stopped for a while that was one look.

/// How often a pair is to be looked at ([`QueuePair::watch`]), in microseconds.
///
/// [`QueuePair::watch`]: super::QueuePair::watch
pub const LOOK_US: u64 = 1_000_000;

/// Looks at frames that do not move until the device is told again, and until the
/// queue is given up. A back end that does not read for 8 s is waited for.
const PROD: u8 = 4;
const GIVE_UP: u8 = 10;
/// Looks in a row at which an interrupt was missing, until interrupts are given up.
const MISSING: u8 = 4;

/// What was found, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trips {
    pub(super) kicks_lost: u64,
    pub(super) interrupts_lost: u64,
    pub(super) stuck: u64,
}

/// What is to be done for a transmit queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Fine,
    /// The device is told again of what waits: it may not have heard.
    Prod,
    /// Too many looks, of which this is the number.
    Stuck(u8),
}

/// What is remembered of a pair from look to look.
#[derive(Default)]
pub(super) struct Watchdog {
    returned: u64,
    still: u8,
    /// Interrupts when work was found that none had told of.
    unheard: Option<u64>,
    missing: u8,
    pub(super) trips: Trips,
}

impl Watchdog {
    /// Looks at a transmit queue of which the device has `outstanding` frames and
    /// has given back `returned`.
    pub(super) fn transmit(&mut self, outstanding: u16, returned: u64) -> Verdict {
        if core::mem::replace(&mut self.returned, returned) != returned || outstanding == 0 {
            // It moved as soon as it was told again.
            self.trips.kicks_lost += u64::from(self.still == PROD);
            self.still = 0;
            return Verdict::Fine;
        }
        self.still += 1;
        match self.still {
            PROD => Verdict::Prod,
            GIVE_UP.. => {
                self.trips.stuck += 1;
                Verdict::Stuck(core::mem::take(&mut self.still))
            }
            _ => Verdict::Fine,
        }
    }

    /// Looks for used buffers that no interrupt has told of: whether there are
    /// some, how many `interrupts` there were, and how many when the caller went to
    /// sleep until one comes (`None` if it did not). Returns the number of looks
    /// when too many in a row have found some.
    pub(super) fn interrupts(
        &mut self,
        has_used: bool,
        asleep_since: Option<u64>,
        interrupts: u64,
    ) -> Option<u8> {
        match self.unheard.take() {
            // It was not just late.
            Some(before) if before == interrupts => {
                self.trips.interrupts_lost += 1;
                self.missing += 1;
            }
            Some(_) => self.missing = 0,
            None => (),
        }
        self.unheard = Some(interrupts).filter(|_| has_used && asleep_since == Some(interrupts));
        (self.missing >= MISSING).then(|| core::mem::take(&mut self.missing))
    }
}
