//! Virtqueues (specification 2.6): the rings, and the notify hook on them.
//! Sections of the specification are those of version 1.2 in this module.
//!
//! [`Ring`] is the ring alone, with no hardware in it, in the layout that was
//! negotiated. What the driver knows of a ring is the same in every layout
//! (`slots`); the layouts are what the device sees of it: [`split`],
//! [`packed`], and `VIRTIO_F_IN_ORDER` over either. A [`Virtqueue`] is a ring
//! together with the [`Doorbell`] that was attached to it when it was set up,
//! Linux's `vring_new_virtqueue(.., vp_notify, ..)`.

pub mod barrier;
mod chain;
mod dma;
mod error;
mod event;
mod in_order;
mod indirect;
pub mod packed;
mod ring;
mod slots;
pub mod split;

pub use chain::{Buffer, Head, Used};
pub use dma::DmaRegion;
pub use error::{BrokenReason, QueueError};
pub use event::{EventMode, need_event};
pub use ring::{MAX_SIZE, Ring, RingLayout, RingShape};

use kickpath_trace::{Event, tracepoint};
use virtio_drivers::Hal;

use crate::doorbell::Doorbell;

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
pub struct Virtqueue<H: Hal> {
    ring: Ring<H>,
    doorbell: Doorbell,
    stats: QueueStats,
}

impl<H: Hal> Virtqueue<H> {
    /// Attaches the notify hook to a ring (Linux `vring_new_virtqueue`).
    #[doc(alias = "vring_new_virtqueue")]
    pub fn new(ring: Ring<H>, doorbell: Doorbell) -> Self {
        Self {
            ring,
            doorbell,
            stats: QueueStats::default(),
        }
    }

    /// The ring, to look at.
    pub fn ring(&self) -> &Ring<H> {
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

    /// Adds a buffer chain; see [`Ring::add`].
    ///
    /// # Safety
    ///
    /// As for [`Ring::add`].
    ///
    /// # Errors
    ///
    /// As for [`Ring::add`].
    #[doc(alias = "virtqueue_add_outbuf")]
    #[doc(alias = "virtqueue_add_inbuf")]
    #[inline]
    pub unsafe fn add(&mut self, buffers: &[Buffer], token: u16) -> Result<(), QueueError> {
        // SAFETY: the caller keeps the promise of `Ring::add`.
        unsafe { self.ring.add(buffers, token) }
    }

    /// Adds a buffer chain at a slot; see [`Ring::add_at`].
    ///
    /// # Safety
    ///
    /// As for [`Ring::add_at`].
    ///
    /// # Errors
    ///
    /// As for [`Ring::add_at`].
    #[inline]
    pub unsafe fn add_at(
        &mut self,
        head: Head,
        buffers: &[Buffer],
        token: u16,
    ) -> Result<(), QueueError> {
        // SAFETY: the caller keeps the promise of `Ring::add_at`.
        unsafe { self.ring.add_at(head, buffers, token) }
    }

    /// Adds a single buffer at a slot; see [`Ring::add_untraced`].
    ///
    /// # Safety
    ///
    /// As for [`Ring::add_at`].
    #[inline(always)]
    pub unsafe fn add_untraced(&mut self, head: Head, buffer: Buffer, token: u16) {
        // SAFETY: the caller keeps the promise of `Ring::add_at`.
        unsafe { self.ring.add_untraced(head, buffer, token) }
    }

    /// Says which buffer each slot will hold; see [`Ring::prepare`].
    pub fn prepare(&mut self, buffer: impl Fn(Head) -> Buffer) {
        self.ring.prepare(buffer);
    }

    /// Adds the buffer that a slot was prepared for; see [`Ring::add_prepared`].
    ///
    /// # Safety
    ///
    /// As for [`Ring::add_prepared`].
    #[inline(always)]
    pub unsafe fn add_prepared(&mut self, head: Head, buffer: Buffer, token: u16) {
        // SAFETY: the caller keeps the promise of `Ring::add_prepared`.
        unsafe { self.ring.add_prepared(head, buffer, token) }
    }

    /// Takes the next used buffer; see [`Ring::pop_used`].
    ///
    /// # Errors
    ///
    /// As for [`Ring::pop_used`].
    #[doc(alias = "virtqueue_get_buf")]
    #[inline]
    pub fn pop_used(&mut self) -> Result<Option<Used>, QueueError> {
        self.ring.pop_used()
    }

    /// Takes the next used buffer where that is quick; see [`Ring::pop_seen`].
    #[inline(always)]
    pub fn pop_seen(&mut self) -> Option<Used> {
        self.ring.pop_seen()
    }

    /// Takes every used buffer and forgets it; see [`Ring::discard_used`].
    ///
    /// # Errors
    ///
    /// As for [`Ring::discard_used`].
    #[inline]
    pub fn discard_used(&mut self) -> Result<(), QueueError> {
        self.ring.discard_used()
    }

    /// Makes the queue unusable because of what the device did to it in the
    /// buffers; see [`Ring::mark_broken`].
    pub fn mark_broken(&mut self, reason: BrokenReason) -> QueueError {
        self.ring.mark_broken(reason)
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
        if self.ring.notifies_with_data() {
            self.doorbell.ring_with(self.ring.notification_data());
        } else {
            self.doorbell.ring();
        }
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
    /// only after `more` further buffers, or at the last that it has.
    #[inline]
    pub fn enable_interrupts_after(&mut self, more: u16) -> bool {
        let most = self.ring.published().saturating_sub(1);
        self.ring.enable_interrupts_after(more.min(most))
    }

    /// As [`Self::enable_interrupts`], but, where the device has EVENT_IDX,
    /// only once three quarters of the buffers that it has are used (Linux
    /// `virtqueue_enable_cb_delayed`).
    #[doc(alias = "virtqueue_enable_cb_delayed")]
    #[inline]
    pub fn enable_interrupts_delayed(&mut self) -> bool {
        let published = self.ring.published();
        // Rounded so that it is at least one less than what the device has, or
        // it would run dry without an interrupt.
        self.ring
            .enable_interrupts_after(published - published.div_ceil(4))
    }
}
