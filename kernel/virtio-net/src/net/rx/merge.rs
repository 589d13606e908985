//! A frame in several buffers (`VIRTIO_NET_F_MRG_RXBUF`, specification
//! 5.1.6.4).
//!
//! The device takes them in the order in which they were posted, which is that of
//! their addresses, and fills them to the last byte; so such a frame is one piece
//! of memory all the same. Where it runs over the end of the memory, what it has
//! at the beginning is copied behind the end; and a frame whose buffers a device
//! took in another order is copied there as a whole.

use virtio_drivers::Hal;

use super::{RxFrame, RxQueue};
use crate::queue::{BrokenReason, Used};

impl<H: Hal> RxQueue<H> {
    /// Takes the other buffers of a frame that has not just one (Linux
    /// `receive_mergeable`). `None` when it is dropped, or the device broke the
    /// protocol.
    #[doc(alias = "receive_mergeable")]
    #[cold]
    pub(super) fn merge(&mut self, first: Used) -> Option<RxFrame> {
        let num_buffers = self.num_buffers(first.token);
        self.parts.clear();
        self.parts.push(first);
        while self.parts.len() < usize::from(num_buffers) {
            match self.queue.pop_used() {
                // There is room: no more than `count` buffers are out.
                Ok(Some(part)) => self.parts.push(part),
                // Specification 5.1.6.4.1: they are used together.
                Ok(None) => {
                    let reason = BrokenReason::NumBuffers {
                        num_buffers,
                        // At most the queue's size.
                        used: self.parts.len() as u16,
                    };
                    self.error = Some(self.queue.mark_broken(reason));
                    return None;
                }
                Err(error) => {
                    self.error = Some(error);
                    return None;
                }
            }
        }
        let total: u64 = self.parts.iter().map(|part| u64::from(part.length)).sum();
        let frame = total
            .checked_sub(self.buffers.header_length().into())
            .filter(|&length| num_buffers != 0 && length <= self.largest.into())
            // At most `largest`.
            .and_then(|length| self.join(length as u32));
        match frame {
            Some(_) => self.merged += 1,
            None => self.drop_parts(),
        }
        frame
    }

    /// Makes one frame of `length` bytes of the parts. `None` when they would
    /// have to be copied to where another frame is.
    fn join(&mut self, length: u32) -> Option<RxFrame> {
        let stride = self.buffers.stride();
        let first = self.parts.first()?.token;
        // At most `count`.
        let buffers = self.parts.len() as u16;
        let mut next = first;
        let mut is_one_piece = true;
        for (number, part) in (1..).zip(&self.parts) {
            let is_full = part.length == stride || number == buffers;
            is_one_piece &= part.token == next && is_full;
            next = self.next(part.token);
        }
        let before_end = self.count - first;
        let mut frame = RxFrame {
            queue: self.id,
            buffer: first,
            buffers,
            length,
            checksum_valid: false,
        };
        if is_one_piece && buffers <= before_end {
            return Some(frame);
        }
        if core::mem::replace(&mut self.behind_in_use, true) {
            return None;
        }
        let copied = if is_one_piece {
            usize::from(before_end)
        } else {
            // All of it is copied, so the buffers can go back.
            frame.buffer = self.count;
            frame.buffers = 0;
            0
        };
        let mut offset = 0;
        for part in self.parts.iter().skip(copied) {
            let length = part.length as usize;
            // SAFETY: `pop_used` made sure that the part lies within its buffer,
            // which is not at the device. The memory behind the buffers holds
            // the largest frame and its header, and the parts together are not
            // longer. It overlaps no buffer, and no `RxFrame` refers to it.
            unsafe {
                let from = self.buffers.header_pointer(part.token);
                let to = self.buffers.header_pointer(self.count).add(offset);
                to.copy_from_nonoverlapping(from, length);
            }
            offset += length;
        }
        if frame.buffers == 0 {
            self.post_parts();
        }
        Some(frame)
    }

    /// The buffer after this one.
    fn next(&self, buffer: u16) -> u16 {
        if buffer + 1 < self.count {
            buffer + 1
        } else {
            0
        }
    }

    fn drop_parts(&mut self) {
        self.dropped += 1;
        self.post_parts();
    }

    /// Gives the buffers of all parts back to the device.
    fn post_parts(&mut self) {
        for index in 0..self.parts.len() {
            if let Some(part) = self.parts.get(index) {
                self.repost(part.token);
            }
        }
    }

    pub(super) fn recycle_merged(&mut self, frame: &RxFrame) {
        let end = usize::from(frame.buffer) + usize::from(frame.buffers);
        if frame.buffer == self.count || end > usize::from(self.count) {
            self.behind_in_use = false;
        }
        let mut buffer = frame.buffer;
        for _ in 0..frame.buffers {
            self.repost(buffer);
            buffer = self.next(buffer);
        }
    }
}
