//! Virtqueues (specification 2.6): the rings, and the notify hook on them.
//! Sections of the specification are those of version 1.2 in this module.
//!
//! There are two kinds of rings, with no hardware in them, each in the layout that
//! was negotiated. A [`PositionalRing`] is for frames, which come by the million:
//! its buffers stay where they are. A [`CommandRing`] takes one chain of any buffers
//! at a time, for the control queue. The layouts are what the device sees: [`split`] and [`packed`].
//!
//! A [`Virtqueue`] is a ring together with the [`Doorbell`] that was attached to it
//! when it was set up, Linux's `vring_new_virtqueue(.., vp_notify, ..)`.

mod chain;
mod command;
mod error;
mod event;
mod memory;
pub mod packed;
mod positional;
mod ring;
mod shape;
pub mod split;

pub use crate::hal::DmaRegion;
pub use chain::Buffer;
pub use command::CommandRing;
pub use error::{BrokenReason, QueueError};
pub use event::{EventMode, need_event};
pub use positional::{PositionalRing, SlotBuffers, UsedSlot};
pub use ring::QueueRing;
pub use shape::{MAX_SIZE, RingLayout, RingShape};

use crate::doorbell::{self, Doorbell, Notify};
use crate::trace::tracepoint;

/// What a [`Virtqueue`] has counted. Every counter starts at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Doorbell writes; each is a VM exit.
    pub kicks: u64,
    /// Kicks that [`Virtqueue::kick_prepare`] found unnecessary.
    pub kicks_suppressed: u64,
}

/// A virtqueue that a device has been told of, with its notify hook
/// (Linux `struct virtqueue`).
pub struct Virtqueue<R, N = Doorbell> {
    ring: R,
    doorbell: N,
    stats: QueueStats,
}

impl<R: QueueRing, N: Notify> Virtqueue<R, N> {
    /// Attaches the notify hook to a ring (Linux `vring_new_virtqueue`).
    #[doc(alias = "vring_new_virtqueue")]
    pub fn new(ring: R, doorbell: N) -> Self {
        Self {
            ring,
            doorbell,
            stats: QueueStats::default(),
        }
    }

    /// The ring, to look at.
    #[inline]
    pub fn ring(&self) -> &R {
        &self.ring
    }

    /// The ring, to add to and to take back from.
    #[inline]
    pub fn ring_mut(&mut self) -> &mut R {
        &mut self.ring
    }

    /// The notify hook.
    pub fn doorbell(&self) -> &N {
        &self.doorbell
    }

    /// What has been counted.
    pub fn stats(&self) -> QueueStats {
        self.stats
    }

    /// Publishes what was added and tells the device, if it wants to know.
    /// Returns whether the doorbell was rung (Linux `virtqueue_kick`).
    #[doc(alias = "virtqueue_kick")]
    #[inline]
    pub fn kick(&mut self) -> bool {
        self.ring.has_unpublished() && self.kick_added()
    }

    /// As [`Self::kick`], when something was added.
    #[inline(never)]
    fn kick_added(&mut self) -> bool {
        let wanted = self.kick_prepare();
        #[cfg(feature = "faults")]
        let wanted = crate::faults::rings(self.ring.queue(), wanted);
        if wanted {
            self.notify();
        }
        wanted
    }

    /// Publishes the available index and decides whether the device must be
    /// notified of it (Linux `virtqueue_kick_prepare`). Nothing is published
    /// and nothing counted when nothing was added since the last call.
    #[doc(alias = "virtqueue_kick_prepare")]
    #[must_use = "a device that is not notified goes on sleeping"]
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
        let data = self.ring.notifies_with_data();
        let data = data.then(|| self.ring.notification_data());
        doorbell::ring(&self.doorbell, data);
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
    #[must_use = "the caller must poll again, if so"]
    #[inline]
    pub fn enable_interrupts(&mut self) -> bool {
        self.ring.enable_interrupts_after(0)
    }

    /// As [`Self::enable_interrupts`], but, where the device has EVENT_IDX,
    /// only after `more` further buffers, or at the last that it has.
    #[must_use = "the caller must poll again, if so"]
    #[inline]
    pub fn enable_interrupts_after(&mut self, more: u16) -> bool {
        let most = self.ring.published().saturating_sub(1);
        self.ring.enable_interrupts_after(more.min(most))
    }

    /// As [`Self::enable_interrupts`], but, where the device has EVENT_IDX,
    /// only once three quarters of the buffers that it has are used (Linux
    /// `virtqueue_enable_cb_delayed`).
    #[doc(alias = "virtqueue_enable_cb_delayed")]
    #[must_use = "the caller must poll again, if so"]
    #[inline]
    pub fn enable_interrupts_delayed(&mut self) -> bool {
        let published = self.ring.published();
        // Rounded so that it is at least one less than what the device has, or
        // it would run dry without an interrupt.
        self.ring
            .enable_interrupts_after(published - published.div_ceil(4))
    }
}
