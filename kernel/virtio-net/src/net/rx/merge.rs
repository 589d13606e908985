//! A frame in several buffers (`VIRTIO_NET_F_MRG_RXBUF`, specification
//! 5.1.6.4): each is copied behind the one before.

use virtio_drivers::Hal;

use super::RxQueue;
use crate::doorbell::Notify;
use crate::queue::BrokenReason;

impl<H: Hal, N: Notify> RxQueue<H, N> {
    /// Takes in the other buffers of a frame that has not just one, of which the first
    /// has been: `written` bytes with the header (Linux `receive_mergeable`). Returns the
    /// frame's length; `None` when it is dropped, or the device broke the protocol.
    #[doc(alias = "receive_mergeable")]
    #[cold]
    pub(super) fn merge(&mut self, written: u32) -> Option<u32> {
        let header = self.buffers.header_length();
        let most = u64::from(header + self.largest);
        let num_buffers = self.copy.header().num_buffers.get();
        let mut total = u64::from(written);
        for used in 1..num_buffers {
            // What is too long is dropped, but all of it is taken.
            let Some(part) = self.take_in(total.min(most) as usize) else {
                // Specification 5.1.6.4.1: they are used together.
                let reason = BrokenReason::NumBuffers { num_buffers, used };
                let broken = self.queue.ring_mut().break_down(reason);
                self.error.get_or_insert(broken);
                return None;
            };
            total += u64::from(part);
        }
        if num_buffers == 0 || total > most {
            return None;
        }
        self.merged += 1;
        // At most `most`, which fits.
        Some(total as u32 - header)
    }
}
