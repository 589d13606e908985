//! Interrupt moderation: how many frames to sleep for.
//!
//! A frame that comes alone is worth an interrupt at once. Frames that come in
//! a stream are cheaper together: one interrupt, one turn of the network stack,
//! one kick for all the answers. So while they do, the device is asked for an
//! interrupt only after about as many as come in [`HOLD_US`], and a timer bounds
//! how long the first of them waits (Linux: `ethtool -C`, `adaptive-rx`,
//! `rx-frames` and `rx-usecs`).

/// Longest time for which a frame is left waiting, in microseconds.
pub const HOLD_US: u64 = 200;

/// Most frames that are left waiting.
const MOST_FRAMES: u64 = 32;

/// At this many frames in [`HOLD_US`], they are a stream even if each was
/// handled before the next one came.
const STREAM: u64 = 8;

/// How many frames have come lately.
#[derive(Default)]
pub struct Moderation {
    /// Frames received until the last sleep.
    received: u64,
    /// When the rate was last taken, in microseconds, and how many frames had
    /// been received then.
    window: (u64, u64),
    /// The rate: frames in [`HOLD_US`].
    rate: u64,
}

impl Moderation {
    /// Whether frames have come since the last sleep; `received` is their number
    /// since boot.
    #[inline]
    pub fn has_received(&self, received: u64) -> bool {
        self.received != received
    }

    /// Called before each sleep with the time in microseconds and the frames
    /// received since boot. Returns how many more may come before the one that
    /// interrupts.
    #[inline]
    pub fn frames_to_leave(&mut self, now: u64, received: u64) -> u16 {
        let (since, before) = self.window;
        let elapsed = now.wrapping_sub(since);
        if elapsed >= HOLD_US {
            self.rate = received.wrapping_sub(before).saturating_mul(HOLD_US) / elapsed;
            self.window = (now, received);
        }
        let burst = received.wrapping_sub(self.received);
        self.received = received;
        // Not many more than came together the last time: who has one request
        // outstanding waits for its answer before it sends the next.
        let together = burst
            .saturating_sub(1)
            .saturating_mul(2)
            .max(u64::from(self.rate >= STREAM));
        // At most MOST_FRAMES, so it fits.
        self.rate.saturating_sub(1).min(together).min(MOST_FRAMES) as u16
    }
}
