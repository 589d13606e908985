//! Which clocks can be compared, and how.

use super::recording::{Recording, Sample};
use super::timeline::{Clock, ClockInfo};

/// The axis of the guest's clock.
const GUEST_AXIS: u8 = 0;
/// The axis of the host's clocks, where they cannot be compared with it.
const HOST_AXIS: u8 = 1;

/// A moment: an axis, and nanoseconds from its zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// The axis.
    pub axis: u8,
    /// Nanoseconds.
    pub ns: f64,
}

/// Turns readings into moments.
#[derive(Clone, Debug)]
pub struct Clocks {
    guest_hz: f64,
    /// Readings at the zero of each axis.
    guest_zero: u64,
    host_zero: f64,
    tsc_offset: Option<i64>,
    /// Nanoseconds on the calendar minus those on the steady clock.
    calendar: f64,
    uncertainty: f64,
    /// From steady nanoseconds to the host's counter: at a sample, and rate.
    host_tsc: Option<(Sample, f64)>,
}

impl Clocks {
    /// The clocks of a recording; `tsc_offset` is what is added to the host's
    /// time stamp counter to have the guest's, `guest_zero` the guest's reading
    /// that becomes 0, `host_zero` the steady one.
    pub fn new(
        recording: &Recording,
        tsc_offset: Option<i64>,
        guest_zero: u64,
        host_zero: i64,
    ) -> Self {
        let samples = &recording.clocks.samples;
        let last = samples.last().copied().unwrap_or_default();
        let host_tsc = samples.first().and_then(|first| {
            let ticks = last.tsc?.checked_sub(first.tsc?)?;
            let ns = last.steady.saturating_sub(first.steady);
            (ns > 0 && ticks > 0).then(|| (last, ticks as f64 / ns as f64))
        });
        Self {
            guest_hz: recording.clocks.guest_hz as f64,
            guest_zero,
            host_zero: host_zero as f64,
            tsc_offset,
            calendar: last.calendar.saturating_sub(last.steady) as f64,
            uncertainty: last.uncertainty as f64,
            host_tsc: host_tsc.filter(|_| tsc_offset.is_some()),
        }
    }

    /// The moment of a reading; `None` when the clock's rate is not known.
    pub fn moment(&self, clock: Clock, raw: u64) -> Option<Moment> {
        match clock {
            Clock::GuestTsc => self.of_guest(raw),
            Clock::HostTsc => self.of_guest(raw.wrapping_add_signed(self.tsc_offset?)),
            // In the middle of the microsecond that the log names.
            Clock::QemuLog => self.of_steady(raw as f64 * 1e3 + 500.0 - self.calendar),
            Clock::Monotonic => self.of_steady(raw.cast_signed() as f64),
        }
    }

    fn of_guest(&self, tsc: u64) -> Option<Moment> {
        let ticks = tsc.wrapping_sub(self.guest_zero).cast_signed();
        (self.guest_hz > 0.0).then(|| Moment {
            axis: GUEST_AXIS,
            ns: ticks as f64 * 1e9 / self.guest_hz,
        })
    }

    fn of_steady(&self, steady: f64) -> Option<Moment> {
        match (self.host_tsc, self.tsc_offset) {
            (Some((sample, rate)), Some(offset)) => {
                let ticks = (steady - sample.steady as f64) * rate;
                let zero = sample.tsc?.wrapping_add_signed(offset);
                let tsc = zero.wrapping_add_signed(ticks as i64);
                self.of_guest(tsc)
            }
            _ => Some(Moment {
                axis: HOST_AXIS,
                ns: steady - self.host_zero,
            }),
        }
    }

    /// What is known of the clocks that `used` names.
    pub fn describe(&self, used: impl Fn(Clock) -> bool, real_exits: bool) -> Vec<ClockInfo> {
        let joined = self.host_tsc.is_some();
        let axis = if joined { GUEST_AXIS } else { HOST_AXIS };
        let host = if joined {
            "compared by readings of the host's time stamp counter beside it"
        } else if real_exits {
            "not comparable with the guest's: the virtual CPU's TSC offset is not known"
        } else {
            "not comparable with the guest's: on TCG the time stamp counter is QEMU's own"
        };
        let all = [
            ClockInfo {
                clock: Clock::GuestTsc,
                resolution_ns: 1e9 / self.guest_hz.max(1.0),
                axis: GUEST_AXIS,
                joined: true,
                how: "the virtual CPU's time stamp counter, as the guest read it".to_owned(),
            },
            ClockInfo {
                clock: Clock::HostTsc,
                resolution_ns: 1e9 / self.guest_hz.max(1.0),
                axis: GUEST_AXIS,
                joined: self.tsc_offset.is_some(),
                how: match self.tsc_offset {
                    Some(offset) => format!(
                        "the host's time stamp counter; the guest's is {offset:+} from it, says KVM"
                    ),
                    None => "the virtual CPU's TSC offset is not known".to_owned(),
                },
            },
            ClockInfo {
                clock: Clock::QemuLog,
                resolution_ns: 1000.0 + self.uncertainty,
                axis,
                joined,
                how: format!("the host's calendar, in QEMU's log to the microsecond; {host}"),
            },
            ClockInfo {
                clock: Clock::Monotonic,
                resolution_ns: 1.0 + self.uncertainty,
                axis,
                joined,
                how: format!("the host's steady clock, read by this program; {host}"),
            },
        ];
        all.into_iter().filter(|info| used(info.clock)).collect()
    }

    /// By how much two moments may seem to be in the wrong order, in
    /// nanoseconds.
    pub fn tolerance(&self) -> f64 {
        1000.0 + self.uncertainty
    }
}
