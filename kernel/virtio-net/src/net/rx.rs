//! The receive queue: every buffer is either at the device or, for the length
//! of one call, at the network stack.

use virtio_drivers::{BufferDirection, Hal};

use super::buffers::{FrameBuffers, MAX_FRAME};
use super::error::NetError;
use crate::queue::{Buffer, QueueError, Virtqueue};

/// A receive virtqueue with its buffers.
pub struct RxQueue<H: Hal> {
    pub(super) queue: Virtqueue<H>,
    buffers: FrameBuffers<H>,
    /// Whether header and frame may be one descriptor
    /// (`VIRTIO_F_ANY_LAYOUT`, specification 2.6.4.3).
    any_layout: bool,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) dropped: u64,
    pub(super) error: Option<QueueError>,
}

/// A received frame that the device has given to the driver.
#[derive(Debug)]
pub struct RxFrame {
    buffer: u16,
    length: u16,
}

impl<H: Hal> RxQueue<H> {
    pub(super) fn new(
        queue: Virtqueue<H>,
        header_length: usize,
        any_layout: bool,
    ) -> Result<Self, NetError> {
        let ring = queue.ring();
        let buffers = FrameBuffers::new(
            ring.size(),
            ring.slot_length(),
            header_length,
            BufferDirection::DeviceToDriver,
        )
        .ok_or(NetError::NoBuffers {
            queue: ring.queue(),
            count: ring.capacity(),
        })?;
        Ok(Self {
            queue,
            buffers,
            any_layout,
            packets: 0,
            bytes: 0,
            dropped: 0,
            error: None,
        })
    }

    /// Gives every buffer to the device (Linux `try_fill_recv`), without a
    /// kick.
    #[doc(alias = "try_fill_recv")]
    pub(super) fn fill(&mut self) -> Result<(), NetError> {
        while let Some(head) = self.queue.ring().next_head() {
            self.post(head.descriptor())?;
        }
        Ok(())
    }

    /// Takes the next received frame, if there is one. It must go back by
    /// [`Self::recycle`].
    ///
    /// After an error of the queue nothing more is received until the device
    /// has been reset.
    #[inline]
    pub fn receive(&mut self) -> Option<RxFrame> {
        loop {
            let used = match self.queue.pop_used() {
                Ok(used) => used?,
                Err(error) => {
                    self.error = Some(error);
                    return None;
                }
            };
            if let Some(length) = used.length.checked_sub(self.buffers.header_length())
                && length > 0
            {
                self.packets += 1;
                self.bytes += u64::from(length);
                return Some(RxFrame {
                    buffer: used.token,
                    // `pop_used` made sure that it is at most what was
                    // posted, MAX_FRAME.
                    length: length as u16,
                });
            }
            // Not even a header: nothing to hand on.
            self.dropped += 1;
            self.repost(used.token);
        }
    }

    /// The bytes of a received frame, where the device wrote them.
    #[inline]
    pub fn frame(&self, frame: &RxFrame) -> &[u8] {
        // SAFETY: the device has given the buffer back, `recycle` consumes
        // the `RxFrame`, and `receive` checked the length against what was
        // posted, so that these are initialised bytes of the buffer that
        // nobody writes.
        unsafe {
            core::slice::from_raw_parts(
                self.buffers.frame(frame.buffer).as_ptr(),
                usize::from(frame.length),
            )
        }
    }

    /// Gives the buffer of a frame back to the device; it sees it at the next
    /// kick.
    #[inline]
    pub fn recycle(&mut self, frame: RxFrame) {
        self.repost(frame.buffer);
    }

    #[inline]
    fn repost(&mut self, buffer: u16) {
        if let Err(error) = self.post(buffer) {
            self.error = Some(error);
        }
    }

    #[inline]
    fn post(&mut self, buffer: u16) -> Result<(), QueueError> {
        let address = self.buffers.header(buffer);
        let header = self.buffers.header_length();
        // SAFETY: the buffer is part of `self.buffers`, which outlives the
        // device's use of it (`del_vqs` resets first), and it is not at the
        // device: it was never posted or has just come back.
        unsafe {
            if self.any_layout {
                let frame = Buffer::new(address, header + MAX_FRAME as u32, true);
                self.queue.add(&[frame], buffer)
            } else {
                let parts = [
                    Buffer::new(address, header, true),
                    Buffer::new(address + u64::from(header), MAX_FRAME as u32, true),
                ];
                self.queue.add(&parts, buffer)
            }
        }
    }

    /// The virtqueue and the memory of its buffers, which must outlive the
    /// device's use of them.
    pub(super) fn into_parts(self) -> (Virtqueue<H>, FrameBuffers<H>) {
        (self.queue, self.buffers)
    }
}
