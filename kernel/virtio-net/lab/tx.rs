//! What the experiments do with a frame that is sent.

use virtio_drivers::Hal;

use super::TxQueue;
use crate::doorbell::Notify;
use crate::faults::{STEPS, Step, hold_open, kicks_each_frame, steps_are_wrong};

impl<H: Hal, N: Notify> TxQueue<H, N> {
    /// Adds a frame as [`Self::add_slot`] does and tells the device, in the order of
    /// the experiment. Returns whether there is one that does.
    pub(super) fn add_in_steps(&mut self, slot: u16, length: u32) -> bool {
        let steps = match (steps_are_wrong(), kicks_each_frame()) {
            (true, _) => STEPS,
            (_, true) => [Step::WriteEntry, Step::PublishIndex, Step::Kick],
            _ => return false,
        };
        self.packets += 1;
        self.bytes += u64::from(length);
        self.trace_xmit(self.buffers.header(slot), length);
        let (mut is_added, mut wanted) = (false, true);
        for step in steps {
            match step {
                Step::WriteEntry if is_added => {
                    // So that the device is certain to have been there before.
                    hold_open(|| self.all_used());
                    self.queue.ring().write_entry(slot, length);
                    self.queue.ring().trace_add(length);
                }
                Step::WriteEntry => {
                    self.queue.ring_mut().add(length);
                    is_added = true;
                    self.queue.ring().trace_add(length);
                }
                Step::PublishIndex => {
                    if !core::mem::replace(&mut is_added, true) {
                        self.queue.ring_mut().add_as_it_is();
                    }
                    wanted = self.queue.kick_prepare();
                }
                Step::Kick if wanted => self.queue.notify(),
                Step::Kick => (),
            }
        }
        true
    }
}
