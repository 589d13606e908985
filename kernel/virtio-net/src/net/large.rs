//! Transmit buffers for frames that the device segments: few, and used in
//! turns, whatever slot of the ring a frame takes.

extern crate alloc;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use virtio_drivers::{BufferDirection, Hal};

use super::buffers::{FrameBuffers, Layout};
use super::error::NetError;
use crate::queue::{PositionalRing, QueueRing};

/// Large buffers a transmit queue. A connection's window is a frame or two, and
/// each takes 64 KiB.
const COUNT: u16 = 8;

/// One of them that is nobody else's, and that the device does not have. It goes back
/// by [`TxQueue::start_xmit_large`](super::tx::TxQueue::start_xmit_large).
#[cfg(feature = "smoltcp")]
pub(crate) struct LargeBuffer(pub(super) u16);

/// See the module.
pub(super) struct LargeBuffers<H: Hal> {
    pub(super) buffers: FrameBuffers<H>,
    /// The numbers of those that nobody has; room for all.
    free: Vec<u16>,
    /// Those that the device has, in the order of their slots: slot and number.
    sent: VecDeque<(u16, u16)>,
}

impl<H: Hal> LargeBuffers<H> {
    /// Allocates them for the transmit queue with this ring.
    pub(super) fn new(ring: &PositionalRing<H>, layout: Layout) -> Result<Box<Self>, NetError> {
        let count = COUNT.min(ring.slots());
        let direction = BufferDirection::DriverToDevice;
        let buffers = FrameBuffers::new(ring.queue(), layout, count, direction)?;
        Ok(Box::new(Self {
            buffers,
            free: (0..count).collect(),
            sent: VecDeque::with_capacity(count.into()),
        }))
    }

    /// Whether there is one that nobody has.
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether the device has any.
    pub(super) fn are_out(&self) -> bool {
        !self.sent.is_empty()
    }

    /// One that nobody has.
    pub(super) fn next_free(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// Takes the one that [`Self::next_free`] has named.
    pub(super) fn take(&mut self, number: u16) {
        let taken = self.free.pop();
        debug_assert_eq!(taken, Some(number));
    }

    /// Takes one that nobody has, to be sent later.
    #[cfg(feature = "smoltcp")]
    pub(super) fn take_buffer(&mut self) -> Option<LargeBuffer> {
        self.free.pop().map(LargeBuffer)
    }

    /// One that was taken is not sent.
    #[cfg(feature = "smoltcp")]
    pub(super) fn put_back(&mut self, number: u16) {
        self.free.push(number);
    }

    /// One that was taken is in this slot of the ring, which is the next.
    pub(super) fn send(&mut self, slot: u16, number: u16) {
        self.sent.push_back((slot, number));
    }

    /// Takes back those whose slot is free again. To be called whenever slots
    /// were reclaimed.
    pub(super) fn reclaim(&mut self, ring: &mut PositionalRing<H>) {
        while let Some(&(slot, number)) = self.sent.front()
            && ring.is_free(slot)
        {
            ring.restore(slot);
            self.free.push(number);
            self.sent.pop_front();
        }
    }
}
