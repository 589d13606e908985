//! Sending TCP segments over IPv6 as the super-frames that they could have
//! been, for a network stack that cannot make them itself.
//!
//! Such a stack writes one segment after the other. Each is written where its
//! payload belongs if it goes on where the last one ended: directly behind the
//! payload of that one. What its header covers there is kept meanwhile and put
//! back. Only the first segment is copied, and one that turned out to be
//! another. What goes over the wire is the same as without this, byte for byte.
//!
//! A super-frame grows until the next kick at most, so that nothing waits for
//! it. Frames of one connection stay in order; others may overtake them.

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::num::NonZeroU16;
use core::ptr::NonNull;

use virtio_drivers::Hal;

use super::{LargeTxSlot, TxQueue, TxSlot};
use crate::net::coalesce::{Appended, Growing, LONGEST_HEADER, Segment};
use crate::net::large::LargeBuffers;
use crate::net::offload::Offload;
use crate::queue::Head;

/// Super-frames that grow at the same time, each of another connection. Large
/// buffers must be left for others.
const MOST: usize = 4;

/// A super-frame in the large buffer that it has taken.
struct SuperFrame {
    growing: Growing,
    /// Number of the buffer, and the token for its chain.
    number: u16,
    token: u16,
}

impl SuperFrame {
    /// Where a frame of `length` bytes lies whose payload follows on what has
    /// grown; the super-frame must take one of that length.
    #[inline]
    fn behind<'l, H: Hal>(
        &self,
        large: &'l mut LargeBuffers<H>,
        length: usize,
    ) -> Option<&'l mut [u8]> {
        let at = self.growing.length() - self.growing.header_length();
        // SAFETY: the super-frame has taken this buffer, and is not sent.
        let buffer = unsafe { large.frame_mut(self.number, at + length) };
        buffer.get_mut(at..at + length)
    }
}

/// Room for one frame of a given length, of which what the device can do for it
/// is left to the device; see [`TxQueue::place`]. Dropped, it sends nothing.
pub struct TxPlace<'q, H: Hal> {
    queue: &'q mut TxQueue<H>,
    /// `None` once it is sent.
    place: Option<Place>,
    /// The first of `length` bytes of the queue's memory.
    frame: NonNull<u8>,
    length: usize,
    segment_size: Option<NonZeroU16>,
}

/// Where [`TxQueue::place`] has a frame written.
enum Place {
    /// In the slot's own buffer.
    Slot(Head),
    /// In the large buffer of this number, which is not taken yet.
    Large(Head, u16),
    /// Behind the super-frame with this index; the slot is there for it if it is
    /// no part of that.
    Behind(usize, Head),
}

/// Those that grow.
pub(super) struct SuperFrames {
    /// The oldest first; room for [`MOST`].
    frames: Vec<SuperFrame>,
    /// Index of the one that is expected to go on. With several, their
    /// connections are taken to send in turns.
    next: usize,
    /// What a frame's header covers.
    covered: [u8; LONGEST_HEADER],
}

impl SuperFrames {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            frames: Vec::with_capacity(MOST),
            next: 0,
            covered: [0; LONGEST_HEADER],
        })
    }

    /// The super-frame that is expected to go on, if it takes a frame of
    /// `length` bytes.
    #[inline]
    fn expected(&mut self, length: usize) -> Option<(usize, &mut SuperFrame)> {
        let index = if self.next < self.frames.len() {
            self.next
        } else {
            0
        };
        let expected = self.frames.get_mut(index)?;
        expected
            .growing
            .takes_length(length)
            .then_some((index, expected))
    }

    /// Where a frame of `length` bytes is written of which the payload is then
    /// behind that of the super-frame that is expected to go on; and which that
    /// is. What the header covers is kept.
    #[inline]
    fn place_behind<'l, H: Hal>(
        &mut self,
        large: &'l mut LargeBuffers<H>,
        length: usize,
    ) -> Option<(usize, &'l mut [u8])> {
        let (index, expected) = self.expected(length)?;
        let header = expected.growing.header_length();
        let frame = expected.behind(large, length)?;
        let covered = frame.get(..header)?;
        self.covered.get_mut(..header)?.copy_from_slice(covered);
        Some((index, frame))
    }

    /// Takes in the frame that was written there, if it is the next of that
    /// super-frame; else it is copied to `slot`. What its header covered is put
    /// back.
    #[inline]
    fn written_behind<H: Hal>(
        &mut self,
        index: usize,
        large: &mut LargeBuffers<H>,
        slot: &mut [u8],
    ) -> Option<Appended> {
        let expected = self.frames.get_mut(index)?;
        let header = expected.growing.header_length();
        let frame = expected.behind(large, slot.len())?;
        let growing = &mut expected.growing;
        let appended = growing.is_followed_by(frame).then(|| growing.append(frame));
        if appended.is_none() {
            slot.copy_from_slice(frame);
        }
        put_back(frame, &self.covered, header);
        appended
    }

    /// The frame that was placed there is not sent after all: what its header
    /// covered is put back.
    fn abandoned_behind<H: Hal>(
        &mut self,
        index: usize,
        large: &mut LargeBuffers<H>,
        length: usize,
    ) {
        if let Some(expected) = self.frames.get_mut(index)
            && let Some(frame) = expected.behind(large, length)
        {
            put_back(frame, &self.covered, expected.growing.header_length());
        }
    }

    /// Takes in the segment in `slot`, if it is the next of this super-frame.
    fn append<H: Hal>(
        &mut self,
        index: usize,
        large: &mut LargeBuffers<H>,
        slot: &[u8],
    ) -> Option<Appended> {
        let SuperFrame {
            growing, number, ..
        } = self.frames.get_mut(index)?;
        if !growing.is_followed_by(slot) {
            return None;
        }
        let payload = slot.get(growing.header_length()..)?;
        let at = growing.length();
        // SAFETY: as in `behind`.
        let buffer = unsafe { large.frame_mut(*number, at + payload.len()) };
        let place = buffer.get_mut(at..at + payload.len())?;
        place.copy_from_slice(payload);
        Some(growing.append(slot))
    }

    /// Begins a super-frame with the segment in `slot`, of which there is none
    /// yet, if another may follow and there is room for one.
    fn begin<H: Hal>(
        &mut self,
        large: &mut LargeBuffers<H>,
        slot: &[u8],
        segment: &Segment,
    ) -> bool {
        let Some(number) = large.next_free().filter(|_| self.frames.len() < MOST) else {
            return false;
        };
        let Some(growing) = Growing::begin(slot, segment, large.capacity()) else {
            return false;
        };
        // SAFETY: it is free.
        unsafe { large.frame_mut(number, slot.len()) }.copy_from_slice(slot);
        let token = large.take(number);
        self.next = self.frames.len();
        self.frames.push(SuperFrame {
            growing,
            number,
            token,
        });
        true
    }
}

/// Puts back what a frame's header of that length covered.
#[inline]
fn put_back(frame: &mut [u8], covered: &[u8], header: usize) {
    if let (Some(place), Some(covered)) = (frame.get_mut(..header), covered.get(..header)) {
        place.copy_from_slice(covered);
    }
}

impl<H: Hal> TxPlace<'_, H> {
    /// The frame. It holds what an earlier frame left there.
    #[inline]
    pub fn frame_mut(&mut self) -> &mut [u8] {
        // SAFETY: `find_place` has found that many bytes there, which were zeroed
        // when they were allocated. They are a part of the queue, which is
        // borrowed, and the device does not have them: `xmit` takes this value.
        unsafe { core::slice::from_raw_parts_mut(self.frame.as_ptr(), self.length) }
    }

    /// Sends the frame, or lets it grow.
    #[doc(alias = "ndo_start_xmit")]
    #[doc(alias = "tcp_gro_receive")]
    pub fn xmit(mut self) {
        if let Some(place) = self.place.take() {
            self.queue.written(place, self.length, self.segment_size);
        }
    }
}

impl<H: Hal> Drop for TxPlace<'_, H> {
    #[inline]
    fn drop(&mut self) {
        if let Some(Place::Behind(index, _)) = self.place
            && let (Some(super_frames), Some(large)) =
                (&mut self.queue.super_frames, &mut self.queue.large)
        {
            super_frames.abandoned_behind(index, large, self.length);
        }
    }
}

impl<H: Hal> TxQueue<H> {
    /// Has `write` write a frame into a [`Self::place`], and sends it.
    ///
    /// # Errors
    ///
    /// `write` comes back unused when there is none.
    pub fn xmit_with<R, F>(
        &mut self,
        length: usize,
        segment_size: Option<NonZeroU16>,
        write: F,
    ) -> Result<R, F>
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        let Some(mut place) = self.place(length, segment_size) else {
            return Err(write);
        };
        let result = write(place.frame_mut());
        place.xmit();
        Ok(result)
    }

    /// A place for a frame of `length` bytes where the device will read it; what
    /// the device can do for it is left to the device. It fills in the checksum
    /// of UDP or TCP. With a `segment_size` it cuts a TCP segment into pieces
    /// with that much payload. With `VIRTIO_NET_F_HOST_TSO6`, segments over IPv6
    /// that are sent one after the other may become one frame, which it cuts
    /// again.
    ///
    /// The device sees the frame at the next [`Self::kick`]. Frames that are
    /// sent without this function may overtake it until then, and one that takes
    /// the last slot may cost it the room that was kept for it: it is lost then.
    ///
    /// The device must have agreed to `VIRTIO_NET_F_CSUM`
    /// ([`Self::fills_checksums`]), and for a segment size to
    /// `VIRTIO_NET_F_HOST_TSO4` or `_TSO6`.
    ///
    /// `None` when there is no room ([`Self::has_room`], for more than
    /// [`Self::capacity`] bytes [`Self::has_large_room`]), or when no buffer is
    /// as large.
    pub fn place(
        &mut self,
        length: usize,
        segment_size: Option<NonZeroU16>,
    ) -> Option<TxPlace<'_, H>> {
        let (place, frame) = self.find_place(length, segment_size)?;
        Some(TxPlace {
            queue: self,
            place: Some(place),
            frame,
            length,
            segment_size,
        })
    }

    /// A place for a frame, and where its `length` bytes begin.
    fn find_place(
        &mut self,
        length: usize,
        segment_size: Option<NonZeroU16>,
    ) -> Option<(Place, NonNull<u8>)> {
        if length > self.capacity() {
            // It may be of any of their connections.
            self.send_super_frames();
            let LargeTxSlot { head, number, .. } = self.reserve_large()?;
            let large = self.large.as_ref()?;
            let frame = large.buffers().frame(number);
            return (length <= large.capacity()).then_some((Place::Large(head, number), frame));
        }
        let TxSlot { head, .. } = self.reserve()?;
        if let (Some(super_frames), Some(large), None) =
            (&mut self.super_frames, &mut self.large, segment_size)
            && let Some((index, frame)) = super_frames.place_behind(large, length)
        {
            let frame = NonNull::from_mut(frame).cast();
            return Some((Place::Behind(index, head), frame));
        }
        Some((Place::Slot(head), self.buffers.frame(head.descriptor())))
    }

    /// Sends what was written there, or lets it grow.
    fn written(&mut self, place: Place, length: usize, segment_size: Option<NonZeroU16>) {
        match place {
            Place::Large(head, number) => {
                let queue = self;
                let mut slot = LargeTxSlot {
                    queue,
                    head,
                    number,
                };
                let offload = Offload::prepare(slot.frame_mut(length), segment_size);
                slot.start_xmit_offloaded(length, offload);
            }
            Place::Slot(head) if self.super_frames.is_some() && segment_size.is_none() => {
                self.append_or_send(head, length);
            }
            Place::Slot(head) => {
                self.send_super_frames();
                self.send_slot(head, length, segment_size);
            }
            Place::Behind(index, head) => {
                let (Some(super_frames), Some(large)) = (&mut self.super_frames, &mut self.large)
                else {
                    return;
                };
                // SAFETY: the slot is free, so the device does not have its
                // buffer.
                let slot = unsafe { self.buffers.frame_mut(head.descriptor(), length) };
                match super_frames.written_behind(index, large, slot) {
                    Some(appended) => self.appended(index, appended),
                    None => self.append_or_send(head, length),
                }
            }
        }
    }

    /// Appends the frame in this slot's buffer to the super-frame of its
    /// connection, begins one with it, or sends it.
    fn append_or_send(&mut self, head: Head, length: usize) {
        let (Some(super_frames), Some(large)) = (&mut self.super_frames, &mut self.large) else {
            return;
        };
        // SAFETY: the slot is free, so the device does not have its buffer.
        let slot = unsafe { self.buffers.frame_mut(head.descriptor(), length) };
        let Some(segment) = Segment::find(slot) else {
            return self.send_slot(head, length, None);
        };
        let mut frames = super_frames.frames.iter();
        let index = frames.position(|frame| frame.growing.has_connection_of(slot, &segment));
        if let Some(index) = index {
            if let Some(appended) = super_frames.append(index, large, slot) {
                return self.appended(index, appended);
            }
            // Frames of a connection stay in order.
            self.send_super_frame(index);
        }
        self.begin_or_send(head, length, &segment);
    }

    /// Goes on when a super-frame has taken in a segment.
    #[inline]
    fn appended(&mut self, index: usize, appended: Appended) {
        match appended {
            Appended::Last => {
                self.send_super_frame(index);
            }
            Appended::Growing => {
                if let Some(super_frames) = &mut self.super_frames {
                    super_frames.next = index + 1;
                }
            }
        }
    }

    fn begin_or_send(&mut self, written: Head, length: usize, segment: &Segment) {
        if let (Some(super_frames), Some(large)) = (&mut self.super_frames, &mut self.large)
            && usize::from(self.queue.ring().free()) > super_frames.frames.len() + 1
        {
            // SAFETY: the device does not have the slot's buffer. The slot may
            // have been taken since it was written, but only by a super-frame,
            // which lies in another.
            let slot = unsafe { self.buffers.frame_mut(written.descriptor(), length) };
            if super_frames.begin(large, slot, segment) {
                return;
            }
        }
        self.send_slot(written, length, None);
    }

    /// Sends the frame that was written into a slot's buffer: from there, or
    /// from the next one's, if a super-frame has taken that slot.
    fn send_slot(&mut self, written: Head, length: usize, segment_size: Option<NonZeroU16>) {
        // There is one: see `keep_room`. If frames were sent without
        // `xmit_with` in between, this one may be lost.
        let Some(TxSlot { head, .. }) = self.reserve() else {
            return;
        };
        if head != written {
            // SAFETY: the device does not have these buffers, as above.
            unsafe {
                self.buffers
                    .copy_frame(written.descriptor(), head.descriptor(), length);
            }
        }
        // SAFETY: the slot is free, so the device does not have its buffer.
        let frame = unsafe { self.buffers.frame_mut(head.descriptor(), length) };
        let offload = Offload::prepare(frame, segment_size);
        // SAFETY: the head is the next one still.
        unsafe { self.add_slot(head, length, offload) };
        self.keep_room();
    }

    /// While a super-frame grows, more slots must be free than they all will
    /// take: one for the next frame.
    fn keep_room(&mut self) {
        let growing = self.super_frames.as_ref().map_or(0, |all| all.frames.len());
        if growing > 0 && usize::from(self.queue.ring().free()) <= growing {
            self.send_super_frames();
        }
    }

    /// Sends all that grows.
    pub(super) fn send_super_frames(&mut self) {
        let has_some = |tx: &Self| {
            let all = tx.super_frames.as_ref();
            all.is_some_and(|all| !all.frames.is_empty())
        };
        while has_some(self) && self.send_super_frame(0) {}
    }

    /// Sends one. Without a slot it stays, and may go on growing until one is
    /// free, of which the device will tell. Returns whether it is sent.
    fn send_super_frame(&mut self, index: usize) -> bool {
        if self.queue.ring().next_head().is_none() {
            self.reclaim();
        }
        let (Some(all), Some(large)) = (&mut self.super_frames, &mut self.large) else {
            return false;
        };
        if index >= all.frames.len() {
            return false;
        }
        let Some(head) = self.queue.ring().next_head() else {
            self.waiting = true;
            return false;
        };
        let SuperFrame {
            growing,
            number,
            token,
        } = all.frames.remove(index);
        if index < all.next {
            all.next -= 1;
        }
        let length = growing.length();
        // SAFETY: the super-frame has taken this buffer, and is not sent.
        let frame = unsafe { large.frame_mut(number, length) };
        growing.finish(frame);
        let offload = Offload::prepare(frame, NonZeroU16::new(growing.size()));
        let is_segmented = offload.is_some_and(|offload| offload.is_segmented());
        self.coalesced += u64::from(is_segmented);
        // SAFETY: the head is the next one; nobody writes the buffer any more.
        unsafe { self.add_large(head, number, token, length, offload) };
        true
    }
}
