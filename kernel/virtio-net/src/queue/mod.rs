//! Virtqueues (specification 2.6): the rings, and the notify hook on them.
//!
//! [`split::SplitRing`] is the ring alone, with no hardware in it. A
//! [`Virtqueue`] is such a ring together with the [`Doorbell`] that was
//! attached to it when it was set up, Linux's `vring_new_virtqueue(..,
//! vp_notify, ..)`.

pub mod barrier;
mod dma;
mod error;
pub mod split;

pub use dma::DmaRegion;
pub use error::{BrokenReason, QueueError};

use kickpath_trace::{Event, tracepoint};
use virtio_drivers::Hal;

use crate::doorbell::Doorbell;
use split::{Buffer, Head, SplitRing, Used};

/// Tells whether a device that asked to be told at `event` must be told now
/// that the index moved from `old` to `new`; all three wrap at 2^16.
///
/// This is specification 2.6.7.2's and Linux's `vring_need_event`: true iff
/// `event` lies in the half-open interval of entries `old .. new`.
#[doc(alias = "vring_need_event")]
#[inline]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// What a [`Virtqueue`] has counted. Every counter starts at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Doorbell writes; each is a VM exit.
    pub kicks: u64,
    /// Kicks that [`Virtqueue::kick_prepare`] found unnecessary.
    pub kicks_suppressed: u64,
}

/// A split virtqueue that a device has been told of, with its notify hook
/// (Linux `struct virtqueue`).
pub struct Virtqueue<H: Hal> {
    ring: SplitRing<H>,
    doorbell: Doorbell,
    stats: QueueStats,
}

impl<H: Hal> Virtqueue<H> {
    /// Attaches the notify hook to a ring (Linux `vring_new_virtqueue`).
    #[doc(alias = "vring_new_virtqueue")]
    pub fn new(ring: SplitRing<H>, doorbell: Doorbell) -> Self {
        Self {
            ring,
            doorbell,
            stats: QueueStats::default(),
        }
    }

    /// The ring, to look at.
    pub fn ring(&self) -> &SplitRing<H> {
        &self.ring
    }

    /// The notify hook.
    pub fn doorbell(&self) -> Doorbell {
        self.doorbell
    }

    /// What has been counted.
    pub fn stats(&self) -> QueueStats {
        self.stats
    }

    /// Adds a buffer chain; see [`SplitRing::add`].
    ///
    /// # Safety
    ///
    /// As for [`SplitRing::add`].
    ///
    /// # Errors
    ///
    /// As for [`SplitRing::add`].
    #[doc(alias = "virtqueue_add_outbuf")]
    #[doc(alias = "virtqueue_add_inbuf")]
    #[inline]
    pub unsafe fn add(&mut self, buffers: &[Buffer], token: u16) -> Result<(), QueueError> {
        // SAFETY: the caller keeps the promise of `SplitRing::add`.
        unsafe { self.ring.add(buffers, token) }
    }

    /// Adds a buffer chain at a slot; see [`SplitRing::add_at`].
    ///
    /// # Safety
    ///
    /// As for [`SplitRing::add_at`].
    ///
    /// # Errors
    ///
    /// As for [`SplitRing::add_at`].
    #[inline]
    pub unsafe fn add_at(
        &mut self,
        head: Head,
        buffers: &[Buffer],
        token: u16,
    ) -> Result<(), QueueError> {
        // SAFETY: the caller keeps the promise of `SplitRing::add_at`.
        unsafe { self.ring.add_at(head, buffers, token) }
    }

    /// Takes the next used buffer; see [`SplitRing::pop_used`].
    ///
    /// # Errors
    ///
    /// As for [`SplitRing::pop_used`].
    #[doc(alias = "virtqueue_get_buf")]
    #[inline]
    pub fn pop_used(&mut self) -> Result<Option<Used>, QueueError> {
        self.ring.pop_used()
    }

    /// Takes every used buffer and forgets it; see [`SplitRing::discard_used`].
    ///
    /// # Errors
    ///
    /// As for [`SplitRing::discard_used`].
    #[inline]
    pub fn discard_used(&mut self) -> Result<(), QueueError> {
        self.ring.discard_used()
    }

    /// Publishes what was added and tells the device, if it wants to know.
    /// Returns whether the doorbell was rung (Linux `virtqueue_kick`).
    #[doc(alias = "virtqueue_kick")]
    #[inline]
    pub fn kick(&mut self) -> bool {
        let wanted = self.kick_prepare();
        if wanted {
            self.notify();
        }
        wanted
    }

    /// Publishes the available index and decides whether the device must be
    /// notified of it (Linux `virtqueue_kick_prepare`). Nothing is published
    /// and nothing counted when nothing was added since the last call.
    #[doc(alias = "virtqueue_kick_prepare")]
    #[inline]
    pub fn kick_prepare(&mut self) -> bool {
        if !self.ring.has_unpublished() {
            return false;
        }
        let wanted = self.ring.publish();
        if !wanted {
            self.stats.kicks_suppressed += 1;
        }
        wanted
    }

    /// Rings the doorbell (Linux `virtqueue_notify`). This is the VM exit.
    #[doc(alias = "virtqueue_notify")]
    #[inline]
    pub fn notify(&mut self) {
        self.stats.kicks += 1;
        tracepoint!(Event::Notify, self.ring.queue());
        self.doorbell.ring();
    }

    /// Asks the device not to interrupt for used buffers, as far as it obeys
    /// (Linux `virtqueue_disable_cb`).
    #[doc(alias = "virtqueue_disable_cb")]
    #[inline]
    pub fn disable_interrupts(&mut self) {
        self.ring.disable_interrupts();
    }

    /// Asks for an interrupt at the next used buffer and returns whether one
    /// is there already, in which case the caller must poll again before it
    /// sleeps (Linux `virtqueue_enable_cb`, inverted).
    #[doc(alias = "virtqueue_enable_cb")]
    #[inline]
    pub fn enable_interrupts(&mut self) -> bool {
        self.ring.enable_interrupts_after(0)
    }

    /// As [`Self::enable_interrupts`], but, where the device has EVENT_IDX,
    /// only once three quarters of the outstanding buffers are used (Linux
    /// `virtqueue_enable_cb_delayed`).
    #[doc(alias = "virtqueue_enable_cb_delayed")]
    #[inline]
    pub fn enable_interrupts_delayed(&mut self) -> bool {
        let outstanding = self.ring.outstanding();
        // Rounded so that it is at least one less than what is outstanding,
        // or the device would run dry without an interrupt.
        self.ring
            .enable_interrupts_after(outstanding - outstanding.div_ceil(4))
    }
}

#[cfg(test)]
mod tests {
    use super::need_event;

    /// The definition: of the entries that were added, is one the event?
    fn is_among(event: u16, new: u16, old: u16) -> bool {
        let mut entry = old;
        while entry != new {
            if entry == event {
                return true;
            }
            entry = entry.wrapping_add(1);
        }
        false
    }

    /// Indices where something could go wrong: the wraps of 16 bits, signed
    /// and unsigned.
    fn corners() -> impl Iterator<Item = u16> {
        [0u16, 0x4000, 0x7fff, 0x8000, 0xfffe]
            .into_iter()
            .flat_map(|corner| {
                (0..4).map(move |offset| corner.wrapping_sub(1).wrapping_add(offset))
            })
    }

    /// Every window of up to 40 entries at every corner, every event near it.
    #[test]
    fn small_windows_agree_with_the_walk() {
        for old in corners() {
            for count in 0..40 {
                let new = old.wrapping_add(count);
                for near in 0..=count + 4 {
                    let event = old.wrapping_sub(2).wrapping_add(near);
                    assert_eq!(
                        need_event(event, new, old),
                        is_among(event, new, old),
                        "event {event:#x}, new {new:#x}, old {old:#x}"
                    );
                }
            }
        }
    }

    /// Every event against windows of every order of magnitude, from every
    /// corner; the walk marks the events that are in the window.
    #[test]
    fn every_event_agrees_with_the_walk() {
        for old in corners() {
            for count in [0, 1, 2, 255, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff] {
                let new = old.wrapping_add(count);
                let mut among = [false; 1 << 16];
                let mut entry = old;
                while entry != new {
                    among[usize::from(entry)] = true;
                    entry = entry.wrapping_add(1);
                }
                for event in 0..=u16::MAX {
                    assert_eq!(
                        need_event(event, new, old),
                        among[usize::from(event)],
                        "event {event:#x}, new {new:#x}, old {old:#x}"
                    );
                }
            }
        }
    }

    /// Only distances count: moving all three indices changes nothing, so
    /// that the sweeps from one `old` below speak for every other.
    #[test]
    fn moving_all_three_changes_nothing() {
        for shift in 0..=u16::MAX {
            for (event, new) in [
                (0u16, 0u16),
                (0, 1),
                (1, 1),
                (5, 6),
                (6, 6),
                (9, 0x8000),
                (0xffff, 0xffff),
            ] {
                assert_eq!(
                    need_event(event.wrapping_add(shift), new.wrapping_add(shift), shift),
                    need_event(event, new, 0),
                    "event {event:#x}, new {new:#x}, moved by {shift:#x}"
                );
            }
        }
    }

    /// From `old` = 0 no entry of the window wraps, so the walk meets just
    /// the events below `new`. Here every `new` with the events around it and
    /// every 251st other.
    #[test]
    fn every_new_agrees_from_zero() {
        for new in 0..=u16::MAX {
            let around = (0..8).map(|near| new.wrapping_sub(4).wrapping_add(near));
            for event in around.chain((0..=u16::MAX).step_by(251)) {
                assert!(
                    need_event(event, new, 0) == (event < new),
                    "event {event:#x}, new {new:#x}"
                );
            }
        }
    }

    /// The same for all 2^32 pairs; seconds with `--release`.
    #[test]
    #[ignore = "2^32 cases; run with --release"]
    fn every_pair_agrees_from_zero() {
        for new in 0..=u16::MAX {
            for event in 0..=u16::MAX {
                assert!(
                    need_event(event, new, 0) == (event < new),
                    "event {event:#x}, new {new:#x}"
                );
            }
        }
    }
}
