//! The transmit queue. A frame is written straight into the memory that the
//! device will read; buffers come back lazily, when new ones are needed.

extern crate alloc;

use alloc::vec::Vec;
use virtio_drivers::{BufferDirection, Hal};

use super::buffers::{FrameBuffers, MAX_FRAME};
use super::error::NetError;
use crate::queue::split::Buffer;
use crate::queue::{QueueError, Virtqueue};

/// A transmit virtqueue with its buffers.
pub struct TxQueue<H: Hal> {
    pub(super) queue: Virtqueue<H>,
    buffers: FrameBuffers<H>,
    /// Buffers that are not at the device.
    free: Vec<u16>,
    /// As in the receive queue.
    any_layout: bool,
    /// Whether somebody waits for a buffer: only then the device is asked to
    /// interrupt for used ones.
    pub(super) waiting: bool,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) waited: u64,
    pub(super) error: Option<QueueError>,
}

/// A buffer for a frame to send, held by the caller.
#[derive(Debug)]
pub struct TxSlot {
    index: u16,
}

impl<H: Hal> TxQueue<H> {
    pub(super) fn new(
        queue: Virtqueue<H>,
        header_length: usize,
        any_layout: bool,
    ) -> Result<Self, NetError> {
        let descriptors = if any_layout { 1 } else { 2 };
        let count = queue.ring().size() / descriptors;
        // Zeroed: without offloads the header of every frame is all zero
        // (specification 5.1.6.2), so it is never written again.
        let buffers = FrameBuffers::new(count, header_length, BufferDirection::DriverToDevice)
            .ok_or(NetError::NoBuffers {
                queue: queue.ring().queue(),
                count,
            })?;
        Ok(Self {
            queue,
            buffers,
            free: (0..count).collect(),
            any_layout,
            waiting: false,
            packets: 0,
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
        !self.free.is_empty() || self.make_room()
    }

    /// Reclaims, at the price of a kick when nothing has come back yet: the
    /// device may not have been told of what fills the ring.
    #[cold]
    fn make_room(&mut self) -> bool {
        self.reclaim();
        if self.free.is_empty() {
            self.queue.kick();
            self.reclaim();
        }
        let room = !self.free.is_empty();
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
        loop {
            match self.queue.pop_used() {
                // Never beyond the capacity: there are as many tokens as
                // buffers, and each is outstanding at most once.
                Ok(Some(used)) => self.free.push(used.token),
                Ok(None) => return,
                Err(error) => {
                    self.error = Some(error);
                    return;
                }
            }
        }
    }

    /// Takes a buffer, if there is room; see [`Self::has_room`].
    #[inline]
    pub fn reserve(&mut self) -> Option<TxSlot> {
        if !self.has_room() {
            return None;
        }
        self.free.pop().map(|index| TxSlot { index })
    }

    /// Gives a buffer back unsent.
    pub fn cancel(&mut self, slot: TxSlot) {
        self.free.push(slot.index);
    }

    /// The first `length` bytes of the buffer's frame. They hold what an
    /// earlier frame left there; a length beyond [`MAX_FRAME`] is cut.
    #[inline]
    pub fn frame_mut(&mut self, slot: &mut TxSlot, length: usize) -> &mut [u8] {
        // SAFETY: the buffer is not at the device while a `TxSlot` of it
        // exists, the slot is borrowed mutably with the slice, and the memory
        // was zeroed when it was allocated.
        unsafe {
            core::slice::from_raw_parts_mut(
                self.buffers.frame(slot.index).as_ptr(),
                length.min(MAX_FRAME),
            )
        }
    }

    /// Puts a frame of `length` bytes into the queue (Linux `start_xmit`).
    /// The device sees it at the next kick, so that many frames cost one.
    ///
    /// A broken queue drops the frame; [`super::VirtioNet::poll`] reports it.
    #[doc(alias = "ndo_start_xmit")]
    #[inline]
    pub fn start_xmit(&mut self, slot: TxSlot, length: usize) {
        let length = length.min(MAX_FRAME) as u32;
        let address = self.buffers.physical(slot.index);
        let header = self.buffers.header_length() as u32;
        // SAFETY: the buffer is part of `self.buffers`, which outlives the
        // device's use of it (`del_vqs` resets first); the slot is consumed,
        // so nobody writes it until `reclaim` brings it back.
        let added = unsafe {
            if self.any_layout {
                let whole = Buffer {
                    address,
                    length: header + length,
                    writable: false,
                };
                self.queue.add(&[whole], slot.index)
            } else {
                let parts = [
                    Buffer {
                        address,
                        length: header,
                        writable: false,
                    },
                    Buffer {
                        address: address + u64::from(header),
                        length,
                        writable: false,
                    },
                ];
                self.queue.add(&parts, slot.index)
            }
        };
        match added {
            Ok(()) => {
                self.packets += 1;
                self.bytes += u64::from(length);
            }
            Err(error) => self.refuse(slot, error),
        }
    }

    #[cold]
    fn refuse(&mut self, slot: TxSlot, error: QueueError) {
        self.cancel(slot);
        self.error = Some(error);
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
