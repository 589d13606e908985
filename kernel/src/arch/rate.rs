//! How fast one counter counts, by another. No hardware in it, and every wait
//! has a bound.

/// How long one measurement takes, as a part of a second.
const WINDOWS_PER_SECOND: u64 = 2000;
/// Measurements at most; usually the first two agree.
const MAX_WINDOWS: usize = 6;
/// Two measurements agree if they differ by less than one part in this many.
const AGREEMENT: u64 = 1000;
/// Reads of a counter without any change after which it stands still. Under
/// QEMU's `-icount` a tick of the slowest clock here is about 100 reads.
const MAX_UNCHANGED: u32 = 20_000;
/// Reads of a counter in one measurement. The slowest one has 600 ticks in it.
const MAX_READS: u32 = 200_000;

/// Measures a counter of cycles, in Hz, against a counter of `reference_hz`
/// that counts up, as far as `mask` has ones. `None` when the counter stands
/// still, or changes without getting on.
///
/// A measurement is spoilt when the host preempts the guest between a read of
/// the counter and one of the cycles, so two have to agree.
pub fn measure(
    mut read: impl FnMut() -> u32,
    mut cycles: impl FnMut() -> u64,
    mask: u32,
    reference_hz: u64,
) -> Option<u64> {
    let mut best: Option<(u64, u64)> = None; // (difference, Hz)
    let mut previous: Option<u64> = None;
    for _ in 0..MAX_WINDOWS {
        let hz = match measure_once(&mut read, &mut cycles, mask, reference_hz) {
            Window::Hz(hz) => hz,
            Window::Spoilt => continue,
            Window::Stuck => return None,
        };
        if let Some(previous) = previous {
            let difference = hz.abs_diff(previous);
            let candidate = (difference, hz.midpoint(previous));
            if best.is_none_or(|best| difference < best.0) {
                best = Some(candidate);
            }
            if difference < hz / AGREEMENT {
                break;
            }
        }
        previous = Some(hz);
    }
    best.map(|(_, hz)| hz)
}

enum Window {
    Hz(u64),
    /// The counter went back, or the host took so long that this cannot be told
    /// from it.
    Spoilt,
    /// The counter does not get on.
    Stuck,
}

/// One measurement, from a change of the counter to a change of it.
fn measure_once(
    read: &mut impl FnMut() -> u32,
    cycles: &mut impl FnMut() -> u64,
    mask: u32,
    reference_hz: u64,
) -> Window {
    let ticks = reference_hz / WINDOWS_PER_SECOND;
    let mut reads_left = MAX_READS;
    let mut read = || {
        reads_left = reads_left.checked_sub(1)?;
        Some(read() & mask)
    };
    let first = read().and_then(|before| next_change(&mut read, before));
    let Some(first) = first else {
        return Window::Stuck;
    };
    let start = cycles();
    let mut value = first;
    // Each change of a counter that counts up is a tick or more.
    for _ in 0..ticks {
        let Some(next) = next_change(&mut read, value) else {
            break;
        };
        value = next;
        let now = cycles();
        let elapsed = u64::from(value.wrapping_sub(first) & mask);
        if elapsed > u64::from(mask) / 2 {
            return Window::Spoilt;
        }
        if elapsed >= ticks {
            let hz = u128::from(now.wrapping_sub(start)) * u128::from(reference_hz)
                / u128::from(elapsed);
            return u64::try_from(hz).map_or(Window::Spoilt, Window::Hz);
        }
    }
    Window::Stuck
}

fn next_change(read: &mut impl FnMut() -> Option<u32>, value: u32) -> Option<u32> {
    (0..MAX_UNCHANGED)
        .map_while(|_| read())
        .find(|&current| current != value)
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    const REFERENCE_HZ: u64 = 1_000_000;
    const MASK: u32 = 0xffff;
    /// Cycles that a read takes.
    const READ: u64 = 300;

    /// Measures against a counter with this reading at each number of cycles.
    /// Also returns how often it was read.
    fn against(counter: impl Fn(u64) -> u32) -> (Option<u64>, u64) {
        let now = Cell::new(0u64);
        let read = || {
            now.set(now.get() + READ);
            counter(now.get())
        };
        let measured = measure(read, || now.get(), MASK, REFERENCE_HZ);
        (measured, now.get() / READ)
    }

    #[test]
    fn a_counter_that_counts_up_tells_the_rate() {
        // 1 GHz, from just before the counter's wrap on.
        let (hz, _) = against(|cycles| 0x2_fff0 + (cycles / 1000) as u32);
        let hz = hz.unwrap();
        assert!(hz.abs_diff(1_000_000_000) < 2_000_000, "{hz}");
        // A counter that skips most of its values, as a slow guest sees it.
        let (hz, _) = against(|cycles| (cycles / 1_000_000 * 1000) as u32);
        let hz = hz.unwrap();
        assert!(hz.abs_diff(1_000_000_000) < 2_000_000, "{hz}");
    }

    #[test]
    fn a_counter_that_does_not_get_on_is_given_up() {
        let is_given_up = |counter: fn(u64) -> u32, most: u64| {
            let (hz, reads) = against(counter);
            assert_eq!(hz, None);
            assert!(reads <= most, "{reads} reads");
        };
        is_given_up(|_| 7, u64::MAX);
        // To and fro: each reading differs from the one before.
        is_given_up(|cycles| ((cycles / READ) & 1) as u32, 1999);
        is_given_up(|cycles| !(cycles / READ) as u32 & 1, 1999);
        // The same, as slowly as a counter that stands still is waited for.
        let most = u64::from(MAX_READS);
        is_given_up(|cycles| ((cycles / READ / 19_000) & 1) as u32, 2 * most);
        // One that counts, but takes for ever.
        is_given_up(|cycles| (cycles / READ / 19_000) as u32, most + 1);
    }
}
