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
const STREAM: u64 = 16;

/// How many frames have come lately (Linux `struct dim`).
#[doc(alias = "net_dim")]
#[derive(Clone, Debug, Default)]
pub struct Moderation {
    /// Frames received when the caller last asked, and until the last sleep.
    asked: u64,
    slept: u64,
    /// When the rate was last taken, in microseconds, and how many frames had
    /// been received then.
    window: (u64, u64),
    /// The rate: frames in [`HOLD_US`].
    rate: u64,
}

impl Moderation {
    /// Whether frames have come since the caller last wanted to sleep;
    /// `received` is their number since boot.
    #[inline]
    pub fn has_received(&self, received: u64) -> bool {
        self.asked != received
    }

    /// Called when the caller wants to sleep, with the time in microseconds and
    /// the frames received since boot. Returns how many more may come before the
    /// one that interrupts, for [`QueuePair::enable_interrupts_after`], 0 to 32;
    /// unless it is 0, the sleep must end after [`HOLD_US`].
    ///
    /// [`QueuePair::enable_interrupts_after`]: crate::net::QueuePair::enable_interrupts_after
    #[inline]
    pub fn frames_to_leave(&mut self, now: u64, received: u64) -> u16 {
        self.asked = received;
        let (since, before) = self.window;
        let elapsed = now.wrapping_sub(since);
        let frames = received.wrapping_sub(before);
        let rate = if elapsed >= HOLD_US {
            self.rate = frames.saturating_mul(HOLD_US) / elapsed;
            self.window = (now, received);
            self.rate
        } else {
            // So many at least.
            self.rate.max(frames)
        };
        // Not many more than came together since the last sleep: who has one
        // request outstanding waits for its answer before it sends the next.
        let together = received
            .wrapping_sub(self.slept)
            .saturating_sub(1)
            .saturating_mul(2)
            .max(u64::from(rate >= STREAM));
        // At most MOST_FRAMES, so it fits.
        rate.saturating_sub(1).min(together).min(MOST_FRAMES) as u16
    }

    /// Called when the caller is about to sleep.
    #[inline]
    pub fn sleep(&mut self) {
        self.slept = self.asked;
    }
}
