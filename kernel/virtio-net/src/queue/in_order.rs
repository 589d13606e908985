//! `VIRTIO_F_IN_ORDER` over either layout (specification 2.7.9 and 2.8.8).
//!
//! A device that uses buffers in the order in which it got them may announce
//! many of them by one used entry: that of the last. The driver knows the
//! order, so it knows the others; they count as used completely.

use kickpath_trace::{Event, tracepoint};
use virtio_drivers::PhysAddr;

use super::chain::{Buffer, Head, Used};
use super::error::{BrokenReason, QueueError};
use super::ring::{RingFormat, UsedEntry};
use super::slots::{ChainState, Slots};

/// A ring whose chains come back in order.
pub(super) struct InOrderRing<R> {
    ring: R,
    /// The used entry that announced the chains that come back now.
    batch: Option<UsedEntry>,
}

impl<R: RingFormat> InOrderRing<R> {
    pub(super) fn new(ring: R) -> Self {
        Self { ring, batch: None }
    }

    /// Takes the oldest chain back, if a used entry announces it or one that
    /// came after it.
    fn next(&mut self, slots: &mut Slots) -> Result<Option<(ChainState, u32)>, QueueError> {
        let batch = match self.batch.take() {
            Some(batch) => batch,
            None => match self.ring.read_used(slots)? {
                Some(batch) => batch,
                None => return Ok(None),
            },
        };
        let (last, _) = match slots.outstanding_chain(batch.id) {
            Ok(chain) => chain,
            Err(reason) => return Err(slots.break_down(reason)),
        };
        let (oldest, state) = match slots.oldest() {
            Some(oldest) if slots.last_used_idx != slots.seen_used_idx => oldest,
            // The batch would have to go on beyond what the device was shown,
            // or says that it has used.
            _ => return Err(slots.break_down(BrokenReason::NotInOrder { id: last })),
        };
        let length = if oldest == last {
            batch.length
        } else {
            state.writable()
        };
        tracepoint!(
            Event::PopUsed,
            slots.queue,
            u64::from(oldest) | u64::from(batch.entry) << 16 | u64::from(length) << 32,
            u64::from(slots.seen_used_idx)
        );
        if state.writable() != 0 && length > state.writable() {
            return Err(slots.break_down(BrokenReason::LengthTooLong {
                id: oldest,
                length,
                writable: state.writable(),
            }));
        }
        self.ring.skip_used(state);
        slots.release_oldest();
        if oldest != last {
            self.batch = Some(batch);
        }
        Ok(Some((state, length)))
    }
}

impl<R: RingFormat> RingFormat for InOrderRing<R> {
    fn areas(&self) -> [PhysAddr; 3] {
        self.ring.areas()
    }

    unsafe fn add_at(
        &mut self,
        slots: &mut Slots,
        head: Head,
        buffers: &[Buffer],
        token: u16,
    ) -> Result<(), QueueError> {
        // SAFETY: the caller's promise.
        unsafe { self.ring.add_at(slots, head, buffers, token) }
    }

    fn publish(&mut self, slots: &mut Slots) -> bool {
        self.ring.publish(slots)
    }

    fn next_avail(&self, slots: &Slots) -> u16 {
        self.ring.next_avail(slots)
    }

    fn used_idx(&self, slots: &Slots, _pending: Option<u32>) -> u16 {
        let pending = self.batch.as_ref().map(|batch| batch.id);
        self.ring.used_idx(slots, pending)
    }

    fn has_used(&self, slots: &Slots) -> bool {
        self.batch.is_some() || self.ring.has_used(slots)
    }

    fn pop_used(&mut self, slots: &mut Slots) -> Result<Option<Used>, QueueError> {
        Ok(self.next(slots)?.map(|(state, length)| Used {
            token: state.token(),
            length: if state.writable() == 0 { 0 } else { length },
        }))
    }

    fn discard_used(&mut self, slots: &mut Slots) -> Result<(), QueueError> {
        while self.next(slots)?.is_some() {}
        Ok(())
    }

    fn read_used(&mut self, slots: &mut Slots) -> Result<Option<UsedEntry>, QueueError> {
        self.ring.read_used(slots)
    }

    fn skip_used(&mut self, state: ChainState) {
        self.ring.skip_used(state);
    }

    fn disable_interrupts(&mut self, slots: &Slots) {
        self.ring.disable_interrupts(slots);
    }

    fn enable_interrupts_after(&mut self, slots: &Slots, more: u16) -> bool {
        // What was announced already comes without an interrupt.
        self.ring.enable_interrupts_after(slots, more) || self.batch.is_some()
    }
}
