//! TCP segments over IPv6 that become one large frame, which the device cuts again
//! (`VIRTIO_NET_F_HOST_TSO6`): smoltcp 0.14 drops an IPv6 packet that is larger than
//! the MTU, even if it is to be segmented, so it cuts its segments itself.

use core::mem;
use core::num::NonZeroU16;

use virtio_drivers::Hal;

use super::offload;
use crate::doorbell::Notify;
use crate::net::coalesce::{Appended, Growing, MOST, Segment, Segments, SuperFrame};
use crate::net::tx::{TxQueue, TxSlot};

impl Segments {
    /// Takes in the segment in a slot, and returns its queue.
    fn take_in<'q, H: Hal, N: Notify>(
        &mut self,
        mut slot: TxSlot<'q, H, N>,
        length: usize,
        segment: &Segment,
    ) -> &'q mut TxQueue<H, N> {
        let frame = slot.frame_mut(length);
        let mut frames = self.frames.iter();
        let index = frames.position(|other| other.growing.has_connection_of(frame, segment));
        if let Some(index) = index
            && let Some(SuperFrame { growing, buffer }) = self.frames.get_mut(index)
        {
            if growing.is_followed_by(frame) {
                let at = growing.length;
                let appended = growing.append(frame);
                slot.copy_to(growing.header_length..length, buffer, at);
                let tx = slot.into_queue();
                if appended == Appended::Last {
                    self.send_one(index, tx);
                }
                return tx;
            }
            // Of one connection, so it stays behind.
            slot = match slot.send_before(length, |tx| self.send_one(index, tx)) {
                Ok(slot) => slot,
                Err(tx) => return tx,
            };
        }
        self.begin_or_send(slot, length, segment)
    }

    /// Begins to grow with the segment in a slot, if another may follow and there is
    /// room for one; else sends it.
    fn begin_or_send<'q, H: Hal, N: Notify>(
        &mut self,
        mut slot: TxSlot<'q, H, N>,
        length: usize,
        segment: &Segment,
    ) -> &'q mut TxQueue<H, N> {
        let tx = slot.queue();
        let has_room = self.frames.len() < MOST && tx.free() > self.frames.len() + 1;
        let limit = tx.large_capacity().unwrap_or(0);
        if has_room
            && let Some(growing) = Growing::begin(slot.frame_mut(length), segment, limit)
            && let Some(mut buffer) = slot.take_large()
        {
            slot.copy_to(0..length, &mut buffer, 0);
            self.frames.push(SuperFrame { growing, buffer });
            return slot.into_queue();
        }
        let offload = offload::prepare(slot.frame_mut(length), None);
        slot.xmit(length, offload)
    }

    fn send_one<H: Hal, N: Notify>(&mut self, index: usize, tx: &mut TxQueue<H, N>) {
        let frame = self.frames.remove(index);
        let (growing, mut buffer) = (frame.growing, frame.buffer);
        let length = growing.length;
        let frame = tx.large_frame(&mut buffer, length);
        growing.finish(frame);
        let offload = offload::prepare(frame, NonZeroU16::new(growing.size));
        tx.coalesced += u64::from(offload.is_some_and(|offload| offload.is_segmented()));
        tx.start_xmit_large(buffer, length, offload);
    }
}

/// Takes in the frame of `length` bytes in a slot, which has this segment: it goes on
/// what grows, begins to grow, or is sent. Segments of a connection stay in order.
#[inline(never)]
pub(super) fn take_in<H: Hal, N: Notify>(
    mut slot: TxSlot<'_, H, N>,
    length: usize,
    segment: &Segment,
) {
    let mut segments = mem::take(slot.segments());
    let tx = segments.take_in(slot, length, segment);
    tx.segments = segments;
    keep_room(tx);
}

/// More slots must be free than all that grows will take: one for the next frame.
#[inline]
pub(super) fn keep_room<H: Hal, N: Notify>(tx: &mut TxQueue<H, N>) {
    let growing = tx.segments.frames.len();
    if growing != 0 && tx.free() <= growing {
        flush(tx);
    }
}

/// Sends all that grows.
#[inline]
pub(super) fn flush<H: Hal, N: Notify>(tx: &mut TxQueue<H, N>) {
    if !tx.segments.frames.is_empty() {
        send_all(tx);
    }
}

#[inline(never)]
fn send_all<H: Hal, N: Notify>(tx: &mut TxQueue<H, N>) {
    let mut segments = mem::take(&mut tx.segments);
    while !segments.frames.is_empty() {
        segments.send_one(0, tx);
    }
    tx.segments = segments;
}
