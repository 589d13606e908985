//! The transmit queue. A frame is written straight into the memory that the
//! device will read; buffers come back lazily, when new ones are needed.

mod super_frames;

extern crate alloc;

use alloc::boxed::Box;
use core::ptr::NonNull;

use kickpath_trace::{Event, tracepoint};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use super::buffers::{FrameBuffers, Layout};
use super::error::NetError;
use super::features::Features;
use super::header::Header;
use super::large::LargeBuffers;
use super::offload::Offload;
use crate::queue::{Buffer, Head, QueueError, Virtqueue};
use super_frames::SuperFrames;
pub use super_frames::TxPlace;

/// A transmit virtqueue with its buffers, one a slot of the ring.
pub struct TxQueue<H: Hal> {
    pub(super) queue: Virtqueue<H>,
    buffers: FrameBuffers<H>,
    /// For frames that the device segments, if it does.
    large: Option<LargeBuffers<H>>,
    /// TCP segments over IPv6 that become large ones, if the device segments
    /// those.
    super_frames: Option<Box<SuperFrames>>,
    /// Largest frame that goes the short way, in bytes: header and frame are one
    /// descriptor, and the header is all zero. 0 where that is not so.
    plain_capacity: u32,
    /// As in the receive queue.
    any_layout: bool,
    /// Headers are not always zero (`VIRTIO_NET_F_CSUM`).
    writes_headers: bool,
    /// Whether somebody waits for a buffer: only then the device is asked to
    /// interrupt for used ones.
    pub(super) waiting: bool,
    pub(super) bytes: u64,
    pub(super) waited: u64,
    /// Frames whose checksum the device fills in.
    pub(super) checksum_offloaded: u64,
    /// Frames that the device segments.
    pub(super) segmented: u64,
    /// Of those, the ones that were put together here.
    pub(super) coalesced: u64,
    pub(super) error: Option<QueueError>,
}

/// Room for one frame in the transmit queue. Dropped, it sends nothing.
pub struct TxSlot<'q, H: Hal> {
    queue: &'q mut TxQueue<H>,
    head: Head,
}

/// Room for one frame that the device segments. Dropped, it sends nothing.
pub struct LargeTxSlot<'q, H: Hal> {
    queue: &'q mut TxQueue<H>,
    head: Head,
    /// The large buffer that is used instead of the slot's own.
    number: u16,
}

impl<H: Hal> TxQueue<H> {
    pub(super) fn new(
        mut queue: Virtqueue<H>,
        negotiated: Features,
        mtu: u16,
    ) -> Result<Self, NetError> {
        let ring = queue.ring();
        let layout = Layout::transmit(negotiated, mtu);
        // Zeroed: without offloads the header of every frame is all zero
        // (specification 5.1.6.2), so it is never written again.
        let buffers = FrameBuffers::new(
            layout,
            ring.size(),
            ring.slot_length(),
            0,
            BufferDirection::DriverToDevice,
        )
        .ok_or(NetError::NoBuffers {
            queue: ring.queue(),
            count: ring.capacity(),
            size: layout.stride(),
        })?;
        let large = if negotiated.intersects(Features::HOST_TSO4 | Features::HOST_TSO6) {
            Some(LargeBuffers::new(ring, Layout::segmented(negotiated))?)
        } else {
            None
        };
        let any_layout = negotiated.any_layout();
        let writes_headers = negotiated.contains(Features::CSUM);
        let mut plain_capacity = 0;
        if any_layout && !writes_headers && large.is_none() {
            plain_capacity = buffers.capacity();
            queue.prepare(|head| Buffer::new(buffers.header(head.descriptor()), 0, false));
        }
        Ok(Self {
            plain_capacity,
            queue,
            buffers,
            large,
            super_frames: negotiated
                .contains(Features::HOST_TSO6)
                .then(SuperFrames::new),
            any_layout,
            writes_headers,
            waiting: false,
            bytes: 0,
            waited: 0,
            checksum_offloaded: 0,
            segmented: 0,
            coalesced: 0,
            error: None,
        })
    }

    /// Whether the device fills in checksums (`VIRTIO_NET_F_CSUM`):
    /// [`TxSlot::start_xmit_offloaded`] asks it to.
    #[inline]
    pub fn fills_checksums(&self) -> bool {
        self.writes_headers
    }

    /// Largest frame that a slot of [`Self::reserve`] takes, in bytes.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.buffers.capacity() as usize
    }

    /// Largest frame that a slot of [`Self::reserve_large`] takes, in bytes;
    /// `None` when the device does not segment.
    pub fn large_capacity(&self) -> Option<usize> {
        Some(self.large.as_ref()?.capacity())
    }

    /// Whether a frame can be sent now. If not, used buffers were looked for,
    /// the device was told of everything that waits, and an interrupt will
    /// tell when to try again (Linux `netif_stop_queue` in `start_xmit`).
    #[inline]
    pub fn has_room(&mut self) -> bool {
        self.queue.ring().next_head().is_some() || self.make_room(Self::has_slot)
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
        self.has_slot() && self.large.as_ref().is_some_and(LargeBuffers::has_free)
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
    #[inline]
    pub(super) fn enable_interrupts(&mut self) -> bool {
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
        let result = match &mut self.large {
            Some(large) if large.are_out() => large.reclaim(&mut self.queue),
            // What was sent lies in its slot's buffer, which is free by that.
            _ => self.queue.discard_used(),
        };
        if let Err(error) = result {
            self.error = Some(error);
        }
    }

    /// Takes a buffer, if there is room; see [`Self::has_room`].
    #[inline]
    pub fn reserve(&mut self) -> Option<TxSlot<'_, H>> {
        let head = match self.queue.ring().next_head() {
            Some(head) => head,
            None if self.make_room(Self::has_slot) => self.queue.ring().next_head()?,
            None => return None,
        };
        Some(TxSlot { queue: self, head })
    }

    /// Takes a buffer for a frame that the device segments, if there is room;
    /// see [`Self::has_large_room`]. `None` as well when it does not segment.
    pub fn reserve_large(&mut self) -> Option<LargeTxSlot<'_, H>> {
        if !self.has_large_slot() && (self.large.is_none() || !self.make_room(Self::has_large_slot))
        {
            return None;
        }
        let head = self.queue.ring().next_head()?;
        let number = self.large.as_ref()?.next_free()?;
        Some(LargeTxSlot {
            queue: self,
            head,
            number,
        })
    }

    /// Writes the header of the buffer at `frame`, where headers are written.
    ///
    /// # Safety
    ///
    /// The frame and the header before it are a buffer of this queue that the
    /// device does not have.
    unsafe fn write_header(&mut self, frame: NonNull<u8>, offload: Option<Offload>) {
        if !self.writes_headers {
            return;
        }
        let header = offload.map_or_else(Header::default, |offload| offload.header());
        self.checksum_offloaded += u64::from(offload.is_some());
        self.segmented += u64::from(offload.is_some_and(|offload| offload.is_segmented()));
        // SAFETY: the header that ends at the frame is at least that long, says
        // the caller; the type needs no alignment. What follows in longer
        // headers stays zero.
        unsafe {
            frame
                .sub(self.buffers.header_length() as usize)
                .cast::<Header>()
                .write(header);
        }
    }

    /// Adds the frame of `length` bytes behind the header at `address`.
    ///
    /// # Safety
    ///
    /// As for [`Virtqueue::add_at`], with that buffer.
    unsafe fn add(&mut self, head: Head, address: PhysAddr, length: u32, token: u16) {
        let header = self.buffers.header_length();
        tracepoint!(
            Event::StartXmit,
            self.queue.ring().queue(),
            u64::from(length),
            address
        );
        let whole = [Buffer::new(address, header + length, false)];
        let parts = [
            Buffer::new(address, header, false),
            Buffer::new(address + u64::from(header), length, false),
        ];
        let chain = if self.any_layout { &whole[..] } else { &parts };
        // SAFETY: the caller's promise.
        if let Err(error) = unsafe { self.queue.add_at(head, chain, token) } {
            self.error = Some(error);
        }
        self.bytes += u64::from(length);
    }

    /// Adds the frame of `length` bytes in the slot's own buffer.
    ///
    /// # Safety
    ///
    /// The head is the next one.
    unsafe fn add_slot(&mut self, head: Head, length: usize, offload: Option<Offload>) {
        let length = length.min(self.capacity()) as u32;
        let buffer = head.descriptor();
        let address = self.buffers.header(buffer);
        // SAFETY: the buffer is part of `buffers`, which outlives the device's
        // use of it (`del_vqs` resets first). It belongs to the slot, so nobody
        // writes it until that is free again. The head is the caller's promise.
        unsafe {
            self.write_header(self.buffers.frame(buffer), offload);
            self.add(head, address, length, buffer);
        }
    }

    /// Adds the frame of `length` bytes in the large buffer of this number.
    ///
    /// # Safety
    ///
    /// The head is the next one; the buffer was taken with this token, and
    /// nobody writes it any more.
    unsafe fn add_large(
        &mut self,
        head: Head,
        number: u16,
        token: u16,
        length: usize,
        offload: Option<Offload>,
    ) {
        let Some(large) = &self.large else {
            return;
        };
        let length = length.min(large.capacity()) as u32;
        let address = large.buffers().header(number);
        let frame = large.buffers().frame(number);
        // SAFETY: the buffer is part of `large`, which outlives the device's
        // use of it (`del_vqs` resets first). It is taken until the chain with
        // this token has come back. Its header is as long as the slots'. The
        // rest is the caller's promise.
        unsafe {
            self.write_header(frame, offload);
            self.add(head, address, length, token);
        }
    }

    /// Number of frames that the device has not been seen to have used.
    pub fn outstanding(&self) -> u16 {
        self.queue.ring().outstanding()
    }

    /// Whether the device has used every frame it was given; reads its index
    /// and reclaims nothing (specification 5.1.6.2.3).
    #[inline]
    pub fn all_used(&self) -> bool {
        let ring = self.queue.ring();
        ring.used_idx().wrapping_sub(ring.last_used_idx()) == ring.outstanding()
    }

    /// Tells the device of the frames added since the last kick, if it wants
    /// to know. Returns whether that took a doorbell (Linux `virtqueue_kick`;
    /// specification 2.7.13.4 and 2.8.21.2).
    #[inline]
    pub fn kick(&mut self) -> bool {
        if self.super_frames.is_some() {
            self.send_super_frames();
        }
        self.queue.kick()
    }

    /// The virtqueue and the memory of its buffers, which must outlive the
    /// device's use of them.
    pub(super) fn into_parts(self) -> (Virtqueue<H>, impl Sized) {
        (self.queue, (self.buffers, self.large))
    }
}

impl<H: Hal> TxSlot<'_, H> {
    /// The first `length` bytes of the frame, at most [`TxQueue::capacity`].
    /// They hold what an earlier frame left there.
    #[inline]
    pub fn frame_mut(&mut self, length: usize) -> &mut [u8] {
        // SAFETY: the slot is free, so the device does not have its buffer;
        // nobody else can reserve it while this value borrows the queue.
        unsafe { self.queue.buffers.frame_mut(self.head.descriptor(), length) }
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
        // The long way has the tracepoints; here they would keep their
        // arguments in registers.
        if length > self.queue.plain_capacity as usize || kickpath_trace::is_enabled() {
            return self.start_xmit_with_header(length);
        }
        let Self { queue: tx, head } = self;
        let length = length as u32;
        let buffer = head.descriptor();
        let address = tx.buffers.header(buffer);
        let header = tx.buffers.header_length();
        // SAFETY: the buffer is part of `buffers`, which outlives the
        // device's use of it (`del_vqs` resets first). It belongs to the
        // slot, so nobody writes it until that is free again; `new` has
        // prepared the slot for it, and where frames go this way the slot never
        // holds anything else. The head is the next one still, because the
        // queue was borrowed since it was asked.
        unsafe {
            let frame = Buffer::new(address, header + length, false);
            tx.queue.add_prepared(head, frame, buffer);
        }
        tx.bytes += u64::from(length);
    }

    /// [`Self::start_xmit`] the long way.
    #[cold]
    #[inline(never)]
    fn start_xmit_with_header(self, length: usize) {
        self.start_xmit_offloaded(length, None);
    }

    /// As [`Self::start_xmit`], for a frame whose checksum the device is to
    /// fill in: [`Offload::prepare`] has prepared it. Without
    /// [`TxQueue::fills_checksums`] it goes out as it is.
    pub fn start_xmit_offloaded(self, length: usize, offload: Option<Offload>) {
        let Self { queue: tx, head } = self;
        // SAFETY: the head is the next one still, because the queue was
        // borrowed since it was asked.
        unsafe { tx.add_slot(head, length, offload) };
    }
}

impl<H: Hal> LargeTxSlot<'_, H> {
    /// The first `length` bytes of the frame, at most
    /// [`TxQueue::large_capacity`]. They hold what an earlier frame left there.
    pub fn frame_mut(&mut self, length: usize) -> &mut [u8] {
        let Some(large) = &mut self.queue.large else {
            return &mut [];
        };
        // SAFETY: the buffer is free; nobody else can reserve it while this
        // value borrows the queue.
        unsafe { large.frame_mut(self.number, length) }
    }

    /// As [`TxSlot::start_xmit_offloaded`], up to [`TxQueue::large_capacity`].
    pub fn start_xmit_offloaded(self, length: usize, offload: Option<Offload>) {
        let Self {
            queue: tx,
            head,
            number,
        } = self;
        if let Some(large) = &mut tx.large {
            let token = large.take(number);
            // SAFETY: it has just been taken. The head is the next one still,
            // because the queue was borrowed since it was asked.
            unsafe { tx.add_large(head, number, token, length, offload) };
        }
    }
}
