//! The transmit queue. A frame is written straight into the memory that the
//! device will read; buffers come back lazily, when new ones are needed.

mod elsewhere;
#[cfg(feature = "faults")]
#[path = "../../lab/tx.rs"]
mod faulty;
mod owned;

extern crate alloc;

use alloc::boxed::Box;
use core::mem::{ManuallyDrop, forget};
#[cfg(feature = "smoltcp")]
use core::ops::Range;

use crate::trace::tracepoint;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use super::buffers::{FrameBuffers, Layout, write_before};
#[cfg(feature = "smoltcp")]
use super::coalesce::Segments;
use super::error::NetError;
use super::features::Features;
use super::header::Header;
#[cfg(feature = "smoltcp")]
use super::large::LargeBuffer;
use super::large::LargeBuffers;
use super::lease::Lease;
use super::offload::Offload;
use crate::doorbell::{Doorbell, Notify};
use crate::queue::{PositionalRing, QueueError, QueueRing, Virtqueue};
use elsewhere::Elsewhere;
pub use elsewhere::TxBuffer;

/// A transmit virtqueue with its buffers, one a slot of the ring.
pub struct TxQueue<H: Hal, N = Doorbell> {
    pub(super) queue: ManuallyDrop<Virtqueue<PositionalRing<H>, N>>,
    buffers: ManuallyDrop<FrameBuffers<H>>,
    /// For how long these and the frames below are the device's.
    lease: Lease,
    /// For frames that the device segments, if it does.
    large: Option<Box<LargeBuffers<H>>>,
    /// Frames that are not in their slots' buffers, once there are any.
    elsewhere: Option<Box<Elsewhere<H>>>,
    /// TCP segments over IPv6 that grow, if the device segments those.
    #[cfg(feature = "smoltcp")]
    pub(crate) segments: Segments,
    negotiated: Features,
    /// Whether somebody waits for a buffer: only then the device is asked to
    /// interrupt for used ones.
    pub(super) waiting: bool,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) waited: u64,
    /// Frames whose checksum the device fills in.
    pub(super) checksum_offloaded: u64,
    /// Frames that the device segments.
    pub(super) segmented: u64,
    /// Of those, the ones that were put together of segments.
    pub(crate) coalesced: u64,
    pub(super) error: Option<QueueError>,
}

/// Room for one frame in the transmit queue. Dropped, it sends nothing.
#[must_use = "dropped, it sends nothing"]
pub struct TxSlot<'q, H: Hal, N = Doorbell> {
    queue: &'q mut TxQueue<H, N>,
    /// The next one of the ring, which stays it while the queue is borrowed.
    slot: u16,
}

/// Room for one frame that the device segments. Dropped, it sends nothing.
#[must_use = "dropped, it sends nothing"]
pub struct LargeTxSlot<'q, H: Hal, N = Doorbell> {
    queue: &'q mut TxQueue<H, N>,
    /// As in [`TxSlot`].
    slot: u16,
    /// The large buffer that is used instead of the slot's own.
    number: u16,
}

impl<H: Hal, N: Notify> TxQueue<H, N> {
    pub(super) fn new(
        mut queue: Box<Virtqueue<PositionalRing<H>, N>>,
        negotiated: Features,
        mtu: u16,
        lease: &Lease,
    ) -> Result<Box<Self>, NetError> {
        let ring = queue.ring_mut();
        let buffers = Self::allocate(ring, negotiated, mtu)?;
        let large = if negotiated.intersects(Features::HOST_TSO4 | Features::HOST_TSO6) {
            Some(LargeBuffers::new(ring, Layout::segmented(negotiated))?)
        } else {
            None
        };
        let lease = lease.clone();
        Ok(Self::assemble(queue, buffers, lease, large, negotiated))
    }

    /// Allocates the buffers, and gives each slot its own. Apart from [`Self::new`],
    /// because it needs much stack, as [`Self::assemble`] does.
    #[inline(never)]
    fn allocate(
        ring: &mut PositionalRing<H>,
        negotiated: Features,
        mtu: u16,
    ) -> Result<FrameBuffers<H>, NetError> {
        let layout = Layout::transmit(negotiated, mtu);
        let slots = ring.slots();
        // Zeroed: without offloads the header of every frame is all zero
        // (specification 5.1.6.2), so it is never written again.
        let direction = BufferDirection::DriverToDevice;
        let buffers = FrameBuffers::new(ring.queue(), layout, slots, direction)?;
        let whole = buffers.slots(negotiated, direction);
        let address = |slot| buffers.header(slot);
        #[cfg(feature = "faults")]
        let address = |slot| address(slot) + crate::faults::skipped(whole.header);
        // SAFETY: the buffers are a part of the queue, which keeps them as long as the
        // device may use them (`lease`). A buffer is written while its slot is free,
        // and whoever adds a frame cuts it to the capacity.
        unsafe { ring.prepare(slots, whole, address) };
        Ok(buffers)
    }

    /// Apart from [`Self::new`], because it needs much stack.
    #[inline(never)]
    fn assemble(
        queue: Box<Virtqueue<PositionalRing<H>, N>>,
        buffers: FrameBuffers<H>,
        lease: Lease,
        large: Option<Box<LargeBuffers<H>>>,
        negotiated: Features,
    ) -> Box<Self> {
        // Made where it stays, without a copy of the ring on the stack.
        let place = Box::new_uninit();
        let this = Self {
            queue: ManuallyDrop::new(*queue),
            buffers: ManuallyDrop::new(buffers),
            lease,
            large,
            elsewhere: None,
            #[cfg(feature = "smoltcp")]
            segments: Segments::new(negotiated),
            negotiated,
            waiting: false,
            packets: 0,
            bytes: 0,
            waited: 0,
            checksum_offloaded: 0,
            segmented: 0,
            coalesced: 0,
            error: None,
        };
        Box::write(place, this)
    }

    /// Whether the device fills in checksums (`VIRTIO_NET_F_CSUM`):
    /// [`TxSlot::start_xmit_offloaded`] asks it to. If not, all headers are zero.
    #[inline]
    pub fn fills_checksums(&self) -> bool {
        self.negotiated.contains(Features::CSUM)
    }

    /// Largest frame that a slot of [`Self::reserve`] takes, in bytes.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.buffers.capacity() as usize
    }

    /// Largest frame that a slot of [`Self::reserve_large`] takes, in bytes;
    /// `None` when the device does not segment.
    pub fn large_capacity(&self) -> Option<usize> {
        Some(self.large.as_ref()?.buffers.capacity() as usize)
    }

    /// As [`QueuePair::begin_poll`](super::QueuePair::begin_poll).
    ///
    /// # Errors
    ///
    /// [`QueueError::Broken`].
    #[inline]
    pub fn begin_poll(&mut self) -> Result<(), QueueError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.queue.disable_interrupts();
        Ok(())
    }

    /// Whether a sender that waits for a buffer can have one.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.waiting && self.queue.ring().has_used()
    }

    /// Whether [`Self::reserve`] will find room, as far as that can be told
    /// without a change.
    #[inline]
    pub fn can_transmit(&self) -> bool {
        let ring = self.queue.ring();
        ring.next_slot().is_some() || (self.error.is_none() && ring.has_used())
    }

    /// Whether a frame can be sent now. If not, used buffers were looked for,
    /// the device was told of everything that waits, and an interrupt will
    /// tell when to try again (Linux `netif_stop_queue` in `start_xmit`).
    #[inline]
    pub fn has_room(&mut self) -> bool {
        self.queue.ring().next_slot().is_some() || self.make_room(Self::has_slot)
    }

    /// As [`Self::has_room`], for a frame of any size that the device takes.
    #[inline]
    pub fn has_large_room(&mut self) -> bool {
        match &self.large {
            None => self.has_room(),
            Some(_) => self.has_large_slot() || self.make_room(Self::has_large_slot),
        }
    }

    fn has_slot(&self) -> bool {
        self.queue.ring().free() != 0
    }

    fn has_large_slot(&self) -> bool {
        self.has_slot() && self.large.as_deref().is_some_and(LargeBuffers::has_free)
    }

    /// Reclaims, at the price of a kick when nothing has come back yet: the
    /// device may not have been told of what fills the ring.
    #[cold]
    fn make_room(&mut self, has_room: impl Fn(&Self) -> bool) -> bool {
        self.reclaim();
        if !has_room(self) {
            self.kick();
            self.reclaim();
        }
        let room = has_room(self);
        if !room && !self.waiting {
            self.waited += 1;
        }
        self.waiting = !room;
        room
    }

    /// Takes sent buffers back, for which there is time before sleep. No
    /// interrupt is asked for because of them, unless a sender waits. Returns
    /// whether that one must be told to try again.
    #[must_use = "the caller must poll again, if so"]
    #[inline]
    pub fn enable_interrupts(&mut self) -> bool {
        if self.error.is_some() {
            return true;
        }
        let outstanding = self.outstanding();
        self.reclaim();
        if !self.waiting {
            return false;
        }
        let came_back = outstanding != self.outstanding();
        let try_again = came_back || self.queue.enable_interrupts_delayed();
        // It is told once, and waits again if it must.
        self.waiting = !try_again;
        try_again
    }

    /// Takes used buffers back (Linux `free_old_xmit`).
    #[doc(alias = "free_old_xmit")]
    #[inline]
    pub fn reclaim(&mut self) {
        #[cfg(feature = "faults")]
        if crate::faults::keeps_used() {
            return;
        }
        // What was sent lies in its slot's buffer, which is free by that.
        if let Err(error) = self.queue.ring_mut().reclaim() {
            self.error = Some(error);
        }
        if let Some(large) = &mut self.large
            && large.are_out()
        {
            large.reclaim(self.queue.ring_mut());
        }
        if let Some(elsewhere) = &mut self.elsewhere {
            elsewhere.reclaim(self.queue.ring_mut());
        }
    }

    /// Takes a buffer, if there is room; see [`Self::has_room`].
    #[inline]
    pub fn reserve(&mut self) -> Option<TxSlot<'_, H, N>> {
        let slot = match self.queue.ring().next_slot() {
            Some(slot) => slot,
            None if self.make_room(Self::has_slot) => self.queue.ring().next_slot()?,
            None => return None,
        };
        Some(TxSlot { queue: self, slot })
    }

    /// Takes a buffer for a frame that the device segments, if there is room;
    /// see [`Self::has_large_room`]. `None` as well when it does not segment.
    pub fn reserve_large(&mut self) -> Option<LargeTxSlot<'_, H, N>> {
        if !self.has_large_slot() && (self.large.is_none() || !self.make_room(Self::has_large_slot))
        {
            return None;
        }
        let slot = self.queue.ring().next_slot()?;
        let number = self.large.as_ref()?.next_free()?;
        Some(LargeTxSlot {
            queue: self,
            slot,
            number,
        })
    }

    /// Sends `most` frames or, where there is less room, fewer, and returns how
    /// many: what each costs by itself is then done once. `write` writes each frame
    /// and returns its length, as for [`TxSlot::start_xmit`]; its first argument
    /// counts from 0. The device sees them at the next kick.
    #[inline]
    pub fn start_xmit_batch(
        &mut self,
        most: u16,
        mut write: impl FnMut(u16, &mut [u8]) -> usize,
    ) -> u16 {
        if self.queue.ring().free() < most {
            self.make_room(Self::has_slot);
        }
        let count = most.min(self.queue.ring().free());
        if crate::trace::is_enabled() {
            for number in 0..count {
                if let Some(mut slot) = self.reserve() {
                    let length = write(number, slot.frame_mut(usize::MAX));
                    slot.start_xmit(length);
                }
            }
            return count;
        }
        let writes_headers = self.fills_checksums();
        let Self { queue, buffers, .. } = self;
        // In variables, because the device's memory is written in between.
        let (frames, header) = (buffers.starts(), buffers.header_length() as usize);
        let capacity = buffers.capacity() as usize;
        let (mut number, mut bytes) = (0, 0);
        queue.ring_mut().add_batch(count, |slot| {
            // SAFETY: each slot has a buffer of that capacity, zeroed at first. The slot
            // is free, so the device does not have it, and nobody else has a reference.
            let (at, frame) = unsafe {
                let at = *frames.get_unchecked(usize::from(slot));
                (at, core::slice::from_raw_parts_mut(at.as_ptr(), capacity))
            };
            let length = write(number, frame).min(capacity) as u32;
            if writes_headers {
                // SAFETY: it is a frame to send, behind its header.
                unsafe { write_before(at, header, Header::default()) };
            }
            number += 1;
            bytes += u64::from(length);
            length
        });
        self.packets += u64::from(count);
        self.bytes += bytes;
        count
    }

    /// Counts what is asked of the device, as far as it has agreed to it, and says it
    /// in a header.
    fn request(&mut self, offload: Option<Offload>) -> Header {
        let Some(offload) = offload.and_then(|offload| offload.agreed(self.negotiated)) else {
            return Header::default();
        };
        self.checksum_offloaded += 1;
        self.segmented += u64::from(offload.is_segmented());
        offload.header()
    }

    /// Adds the frame of `length` bytes in the next slot's own buffer.
    fn add_slot(&mut self, slot: u16, length: usize, offload: Option<Offload>) {
        let length = length.min(self.capacity()) as u32;
        if self.fills_checksums() {
            let header = self.request(offload);
            self.buffers.write_header(slot, header);
        }
        #[cfg(feature = "faults")]
        if self.add_in_steps(slot, length) {
            return;
        }
        self.queue.ring_mut().add(length);
        self.packets += 1;
        self.bytes += u64::from(length);
        if crate::trace::is_enabled() {
            self.trace(slot, length);
        }
    }

    /// Records what has just been added from the slot's own buffer.
    #[cold]
    #[inline(never)]
    fn trace(&self, slot: u16, length: u32) {
        let address = self.buffers.header(slot);
        self.trace_xmit(address, length);
        self.queue.ring().trace_add(length);
    }

    fn trace_xmit(&self, address: PhysAddr, length: u32) {
        let queue = self.queue.ring().queue();
        tracepoint!(Event::StartXmit, queue, u64::from(length), address);
    }

    /// Adds the frame of `length` bytes in the large buffer of this number, in
    /// the next slot.
    ///
    /// # Safety
    ///
    /// The buffer was taken, and nobody writes it any more.
    unsafe fn add_large(
        &mut self,
        slot: u16,
        number: u16,
        length: usize,
        offload: Option<Offload>,
    ) {
        let header = self.request(offload);
        let Some(large) = &mut self.large else {
            return;
        };
        let length = length.min(large.buffers.capacity() as usize) as u32;
        let address = large.buffers.header(number);
        large.buffers.write_header(number, header);
        large.send(slot, number);
        // SAFETY: the buffer is part of `large`, which is kept as long as the device
        // may use it (`lease`). It is taken until its slot is free,
        // and then restored (`LargeBuffers::reclaim`).
        unsafe { self.add_at(address, length) };
    }

    /// Adds the frame of `length` bytes behind its header at `address`.
    ///
    /// # Safety
    ///
    /// As for [`PositionalRing::add_elsewhere`].
    unsafe fn add_at(&mut self, address: PhysAddr, length: u32) {
        // SAFETY: the caller's promise.
        unsafe { self.queue.ring_mut().add_elsewhere(address, length) };
        self.packets += 1;
        self.bytes += u64::from(length);
        if crate::trace::is_enabled() {
            self.trace_xmit(address, length);
            self.queue.ring().trace_add_elsewhere(address, length);
        }
    }

    /// Number of frames that can be sent now, if no buffers came back.
    pub fn free(&self) -> usize {
        self.queue.ring().free().into()
    }

    /// Number of frames whose buffers did not come back yet.
    pub fn outstanding(&self) -> u16 {
        self.queue.ring().outstanding()
    }

    /// Whether the device has used every frame it was given; reads its index
    /// and reclaims nothing (specification 5.1.6.2.3).
    #[inline]
    pub fn all_used(&self) -> bool {
        self.queue.ring().all_used()
    }

    /// Tells the device of the frames added since the last kick, if it wants
    /// to know. Returns whether that took a doorbell (Linux `virtqueue_kick`;
    /// specification 2.7.13.4 and 2.8.21.2).
    #[inline]
    pub fn kick(&mut self) -> bool {
        self.queue.kick()
    }

    /// Kicks, and notifies the device even if it wants no notification.
    #[cold]
    pub(super) fn notify_again(&mut self) {
        if !self.kick() {
            self.queue.notify();
        }
    }

    /// Drops it after a reset of queue number `queue` of the device that gave this
    /// lease. Its memory goes, if it is that queue.
    pub(super) fn was_reset(mut self: Box<Self>, queue: u16, lease: &Lease) {
        if self.lease == *lease && self.queue.ring().queue() == queue {
            self.lease = Lease::default();
        }
    }
}

impl<H: Hal, N> Drop for TxQueue<H, N> {
    /// As long as the device may use its memory, that is never used again.
    fn drop(&mut self) {
        if self.lease.is_running() {
            forget((self.large.take(), self.elsewhere.take()));
            return;
        }
        // SAFETY: once, and nobody uses them after it.
        unsafe {
            ManuallyDrop::drop(&mut self.queue);
            ManuallyDrop::drop(&mut self.buffers);
        }
    }
}

impl<H: Hal, N: Notify> TxSlot<'_, H, N> {
    /// The first `length` bytes of the frame, at most [`TxQueue::capacity`].
    /// They hold what an earlier frame left there.
    #[inline]
    pub fn frame_mut(&mut self, length: usize) -> &mut [u8] {
        // SAFETY: the slot is free, so the device does not have its buffer;
        // nobody else can reserve it while this value borrows the queue.
        unsafe { self.queue.buffers.frame_mut(self.slot, length) }
    }

    /// Puts the frame, `length` bytes long, into the queue (Linux
    /// `start_xmit`). The device sees it at the next kick, so that many frames
    /// cost one.
    ///
    /// `length` is at least 1; what is beyond [`TxQueue::capacity`] is cut off. A
    /// broken queue drops the frame; [`super::VirtioNet::poll`] reports it.
    #[doc(alias = "ndo_start_xmit")]
    #[inline(always)]
    pub fn start_xmit(self, length: usize) {
        self.queue.add_slot(self.slot, length, None);
    }

    /// As [`Self::start_xmit`], for a frame with which the device is to do what
    /// `offload` says. Without [`TxQueue::fills_checksums`] it goes out as it is.
    #[inline]
    pub fn start_xmit_offloaded(self, length: usize, offload: Option<Offload>) {
        self.queue.add_slot(self.slot, length, offload);
    }
}

/// For who puts segments together.
#[cfg(feature = "smoltcp")]
impl<'q, H: Hal, N: Notify> TxSlot<'q, H, N> {
    /// [`Self::start_xmit_offloaded`], and the queue again.
    #[inline]
    pub(crate) fn xmit(self, length: usize, offload: Option<Offload>) -> &'q mut TxQueue<H, N> {
        self.queue.add_slot(self.slot, length, offload);
        self.queue
    }

    /// The queue, with nothing sent.
    pub(crate) fn into_queue(self) -> &'q mut TxQueue<H, N> {
        self.queue
    }

    /// The queue, to look at.
    pub(crate) fn queue(&self) -> &TxQueue<H, N> {
        self.queue
    }

    /// Has `first` send other frames before the one of `length` bytes that was
    /// written here, which moves if they took its slot.
    /// With no room left the frame is lost, and the queue comes back.
    pub(crate) fn send_before(
        self,
        length: usize,
        first: impl FnOnce(&mut TxQueue<H, N>),
    ) -> Result<Self, &'q mut TxQueue<H, N>> {
        let (queue, written) = (self.queue, self.slot);
        first(queue);
        let Some(slot) = queue.queue.ring().next_slot() else {
            return Err(queue);
        };
        if slot != written {
            // SAFETY: the device has neither: one is free, and the other's slot was
            // taken by a frame in a large buffer, as all of `first`'s are.
            unsafe { queue.buffers.copy_frame(written, slot, length) };
        }
        Ok(Self { queue, slot })
    }

    /// The queue's segments that grow.
    pub(crate) fn segments(&mut self) -> &mut Segments {
        &mut self.queue.segments
    }

    /// Takes a large buffer, if there is one.
    pub(crate) fn take_large(&mut self) -> Option<LargeBuffer> {
        self.queue.large.as_mut()?.take_buffer()
    }

    /// Copies a part of what was written here into a large buffer, behind its first
    /// `at` bytes, if it has room.
    pub(crate) fn copy_to(&mut self, part: Range<usize>, buffer: &mut LargeBuffer, at: usize) {
        let TxQueue { buffers, large, .. } = &mut *self.queue;
        // SAFETY: the slot is free, and so is its buffer.
        let from = unsafe { buffers.frame_mut(self.slot, part.end) };
        let end = at + part.len();
        if let (Some(from), Some(large)) = (from.get(part), large) {
            // SAFETY: it was taken, and not sent.
            let to = unsafe { large.buffers.frame_mut(buffer.0, end) };
            if let Some(to) = to.get_mut(at..end) {
                to.copy_from_slice(from);
            }
        }
    }
}

/// The same.
#[cfg(feature = "smoltcp")]
impl<H: Hal, N: Notify> TxQueue<H, N> {
    /// The first `length` bytes of a large buffer, as far as there are so many.
    pub(crate) fn large_frame(&mut self, buffer: &mut LargeBuffer, length: usize) -> &mut [u8] {
        match &mut self.large {
            // SAFETY: it was taken, and not sent.
            Some(large) => unsafe { large.buffers.frame_mut(buffer.0, length) },
            None => &mut [],
        }
    }

    /// Sends the frame of `length` bytes in a large buffer, if there is a slot; else
    /// it is lost.
    pub(crate) fn start_xmit_large(
        &mut self,
        buffer: LargeBuffer,
        length: usize,
        offload: Option<Offload>,
    ) {
        let number = buffer.0;
        match self.queue.ring().next_slot() {
            // SAFETY: it was taken, and is given away here.
            Some(slot) => unsafe { self.add_large(slot, number, length, offload) },
            None => {
                if let Some(large) = &mut self.large {
                    large.put_back(number);
                }
            }
        }
    }
}

impl<H: Hal, N: Notify> LargeTxSlot<'_, H, N> {
    /// The first `length` bytes of the frame, at most
    /// [`TxQueue::large_capacity`]. They hold what an earlier frame left there.
    pub fn frame_mut(&mut self, length: usize) -> &mut [u8] {
        let Some(large) = &mut self.queue.large else {
            return &mut [];
        };
        // SAFETY: the buffer is free; nobody else can reserve it while this
        // value borrows the queue.
        unsafe { large.buffers.frame_mut(self.number, length) }
    }

    /// As [`TxSlot::start_xmit_offloaded`], up to [`TxQueue::large_capacity`].
    pub fn start_xmit_offloaded(self, length: usize, offload: Option<Offload>) {
        let (tx, slot, number) = (self.queue, self.slot, self.number);
        if let Some(large) = &mut tx.large {
            large.take(number);
            // SAFETY: it has just been taken.
            unsafe { tx.add_large(slot, number, length, offload) };
        }
    }
}
