//! The transmit queue. A frame is written straight into the memory that the
//! device will read; buffers come back lazily, when new ones are needed.

use kickpath_trace::{Event, tracepoint};
use virtio_drivers::{BufferDirection, Hal};

use super::buffers::{FrameBuffers, MAX_FRAME};
use super::error::NetError;
use crate::queue::{Buffer, Head, QueueError, Virtqueue};

/// A transmit virtqueue with its buffers, one a slot of the ring.
pub struct TxQueue<H: Hal> {
    pub(super) queue: Virtqueue<H>,
    buffers: FrameBuffers<H>,
    /// As in the receive queue.
    any_layout: bool,
    /// Whether somebody waits for a buffer: only then the device is asked to
    /// interrupt for used ones.
    pub(super) waiting: bool,
    pub(super) bytes: u64,
    pub(super) waited: u64,
    pub(super) error: Option<QueueError>,
}

/// Room for one frame in the transmit queue. Dropped, it sends nothing.
pub struct TxSlot<'q, H: Hal> {
    queue: &'q mut TxQueue<H>,
    head: Head,
}

impl<H: Hal> TxQueue<H> {
    pub(super) fn new(
        queue: Virtqueue<H>,
        header_length: usize,
        any_layout: bool,
    ) -> Result<Self, NetError> {
        let ring = queue.ring();
        // Zeroed: without offloads the header of every frame is all zero
        // (specification 5.1.6.2), so it is never written again.
        let buffers = FrameBuffers::new(
            ring.size(),
            ring.slot_length(),
            header_length,
            BufferDirection::DriverToDevice,
        )
        .ok_or(NetError::NoBuffers {
            queue: ring.queue(),
            count: ring.capacity(),
        })?;
        Ok(Self {
            queue,
            buffers,
            any_layout,
            waiting: false,
            bytes: 0,
            waited: 0,
            error: None,
        })
    }

    /// Whether a frame can be sent now. If not, used buffers were looked for,
    /// the device was told of everything that waits, and an interrupt will
    /// tell when to try again.
    #[inline]
    pub fn has_room(&mut self) -> bool {
        self.queue.ring().next_head().is_some() || self.make_room()
    }

    /// Reclaims, at the price of a kick when nothing has come back yet: the
    /// device may not have been told of what fills the ring.
    #[cold]
    fn make_room(&mut self) -> bool {
        self.reclaim();
        if self.queue.ring().free() == 0 {
            self.queue.kick();
            self.reclaim();
        }
        let room = self.queue.ring().free() != 0;
        if !room && !self.waiting {
            self.waited += 1;
        }
        self.waiting = !room;
        room
    }

    /// Takes used buffers back (Linux `free_old_xmit`).
    #[doc(alias = "free_old_xmit")]
    #[inline]
    pub fn reclaim(&mut self) {
        // What was sent lies in its slot's buffer, which is free by that.
        if let Err(error) = self.queue.discard_used() {
            self.error = Some(error);
        }
    }

    /// Adds a frame of `length` bytes with the header in a descriptor of its
    /// own.
    ///
    /// # Safety
    ///
    /// As for [`Virtqueue::add_at`], with the buffer of that slot.
    #[cold]
    unsafe fn add_in_parts(&mut self, head: Head, length: u32) {
        let buffer = head.descriptor();
        let address = self.buffers.header(buffer);
        let header = self.buffers.header_length();
        let parts = [
            Buffer::new(address, header, false),
            Buffer::new(address + u64::from(header), length, false),
        ];
        // SAFETY: the caller's promise.
        if let Err(error) = unsafe { self.queue.add_at(head, &parts, buffer) } {
            self.error = Some(error);
        }
    }

    /// Takes a buffer, if there is room; see [`Self::has_room`].
    #[inline]
    pub fn reserve(&mut self) -> Option<TxSlot<'_, H>> {
        let head = match self.queue.ring().next_head() {
            Some(head) => head,
            None if self.make_room() => self.queue.ring().next_head()?,
            None => return None,
        };
        Some(TxSlot { queue: self, head })
    }

    /// Number of frames that the device has not been seen to have used.
    pub fn outstanding(&self) -> u16 {
        self.queue.ring().outstanding()
    }

    /// Whether the device has used every frame it was given; reads its index
    /// and reclaims nothing.
    #[inline]
    pub fn all_used(&self) -> bool {
        let ring = self.queue.ring();
        ring.used_idx().wrapping_sub(ring.last_used_idx()) == ring.outstanding()
    }

    /// Tells the device of the frames added since the last kick, if it wants
    /// to know. Returns whether that took a doorbell.
    #[inline]
    pub fn kick(&mut self) -> bool {
        self.queue.kick()
    }

    /// The virtqueue and the memory of its buffers, which must outlive the
    /// device's use of them.
    pub(super) fn into_parts(self) -> (Virtqueue<H>, FrameBuffers<H>) {
        (self.queue, self.buffers)
    }
}

impl<H: Hal> TxSlot<'_, H> {
    /// The first `length` bytes of the frame, at most [`MAX_FRAME`]. They hold
    /// what an earlier frame left there.
    #[inline]
    pub fn frame_mut(&mut self, length: usize) -> &mut [u8] {
        // SAFETY: the slot is free, so the device does not have its buffer;
        // nobody else can reserve it while this value borrows the queue; and
        // the memory was zeroed when it was allocated.
        unsafe {
            core::slice::from_raw_parts_mut(
                self.queue.buffers.frame(self.head.descriptor()).as_ptr(),
                length.min(MAX_FRAME),
            )
        }
    }

    /// Puts the frame, `length` bytes long, into the queue (Linux
    /// `start_xmit`). The device sees it at the next kick, so that many frames
    /// cost one.
    ///
    /// A broken queue drops the frame; [`super::VirtioNet::poll`] reports it.
    #[doc(alias = "ndo_start_xmit")]
    #[inline(always)]
    pub fn start_xmit(self, length: usize) {
        let Self { queue: tx, head } = self;
        let length = length.min(MAX_FRAME) as u32;
        let buffer = head.descriptor();
        let address = tx.buffers.header(buffer);
        let header = tx.buffers.header_length();
        tracepoint!(
            Event::StartXmit,
            tx.queue.ring().queue(),
            u64::from(length),
            address
        );
        // SAFETY: the buffer is part of `buffers`, which outlives the
        // device's use of it (`del_vqs` resets first). It belongs to the
        // slot, so nobody writes it until that is free again. The head is the
        // next one still, because the queue was borrowed since it was asked.
        unsafe {
            if tx.any_layout {
                let frame = Buffer::new(address, header + length, false);
                if let Err(error) = tx.queue.add_at(head, &[frame], buffer) {
                    tx.error = Some(error);
                }
            } else {
                tx.add_in_parts(head, length);
            }
        }
        tx.bytes += u64::from(length);
    }
}
