//! What only some configurations want of the loop.

use kickpath_abi::config::SelfTest;
use kickpath_services::Stack;
use virtio_net::net::NetError;
use virtio_net::transport::TransportError;

use super::super::netconsole::Sender;
use super::{Host, PhyDevice, VlanDevice, now, on_device};
use crate::memory::{dma_pages, heap};
use crate::selftest;

/// Frames that come between two reopenings of `reopen=COUNT`.
const FRAMES_TO_REOPEN: u64 = 4;

/// Frames that the self-test `panic-in-transmit` leaves in the queue: all but
/// one of what QEMU's holds by default.
const FRAMES_IN_TRANSMIT: u16 = 255;

/// What `reopen=COUNT` or `reset-queues=COUNT` has still to do.
#[derive(Default)]
pub(super) struct Reopenings {
    pub(super) left: u32,
    done: u32,
    /// One queue alone, the others go on.
    pub(super) queues: bool,
    /// Pages for DMA and bytes of heap in use before the first one.
    before: Option<(usize, u64)>,
}

impl Host {
    /// What only some configurations want: the log is sent; once the network is
    /// up, a fault is committed or the device opened again.
    #[cold]
    pub(super) fn serve_extras(
        &mut self,
        stack: &mut Stack,
        netconsole: &mut Option<Sender>,
        is_up: bool,
    ) {
        if let Some(netconsole) = netconsole
            && netconsole.is_waiting()
        {
            on_device!(self, device => netconsole.send(now(), stack, device));
        }
        if !is_up {
            return;
        }
        if self.wishes.is_due() {
            let flags = self.wishes.take_step(self.nic);
            if let Some(flags) = flags {
                self.filter(stack);
                log::info!("receive mode: {flags:?}");
            }
        }
        if self.selftest != SelfTest::Off && netconsole.as_ref().is_none_or(Sender::is_ready) {
            self.selftest();
        }
        if self.reopenings.left > 0 {
            self.nic.kick();
            self.reopen_under_traffic();
        }
    }

    /// Commits a fault while the network is in use.
    #[cold]
    fn selftest(&mut self) {
        let test = core::mem::replace(&mut self.selftest, SelfTest::Off);
        if test == SelfTest::QueueReset {
            let all = heap::take_all();
            let result = self.nic.reset_queue(0);
            drop(all);
            match result {
                Ok(()) => log::error!("self-test {test}: there was memory"),
                Err(error) => self.reset_failed(&error),
            }
            return;
        }
        if test == SelfTest::PanicInTransmit
            && let Ok((_, tx)) = self.nic.queues()
        {
            // What the device is told of and what it is not; and a frame that
            // is half written.
            for _ in 0..FRAMES_IN_TRANSMIT {
                if let Some(mut slot) = tx.reserve() {
                    slot.frame_mut(60).fill(0xff);
                    slot.start_xmit(60);
                }
            }
            if let Some(mut slot) = tx.reserve() {
                slot.frame_mut(60).fill(0xff);
                selftest::run(test);
            }
        }
        selftest::run(test);
    }

    /// Stops the device and opens it again in the midst of its work, once some
    /// frames have come since the last time, and reports what was leaked after
    /// the last time.
    #[cold]
    fn reopen_under_traffic(&mut self) {
        if self.nic.received() < FRAMES_TO_REOPEN {
            return;
        }
        // QEMU 7.2 aborts when a queue is reset while a frame waits for the
        // cable (`flush_or_purge_queued_packets`): when all are sent, none can.
        if self.reopenings.queues
            && let Ok((_, tx)) = self.nic.queues()
        {
            tx.kick();
            if !tx.all_used() {
                return;
            }
        }
        let in_use = || (dma_pages(), heap::stats().used);
        let before = *self.reopenings.before.get_or_insert_with(in_use);
        let result = if self.reopenings.queues {
            // Receive and transmit queue in turn.
            let queue = self.reopenings.done as u16 % 2;
            self.nic.reset_queue(queue)
        } else {
            self.open()
        };
        if let Err(error) = result {
            log::error!("reopening {}: {error}", self.reopenings.done);
            if self.reopenings.queues {
                self.reset_failed(&error);
            }
            self.reopenings.left = 0;
            return;
        }
        self.reopenings.done += 1;
        self.reopenings.left -= 1;
        if self.reopenings.left == 0 {
            let after = in_use();
            log::info!(
                "kickpath: reopened {} times; before: {} DMA pages, {} bytes of heap; \
                 after: {} DMA pages, {} bytes of heap",
                self.reopenings.done,
                before.0,
                before.1,
                after.0,
                after.1
            );
        }
    }

    /// After a reset of one queue that failed on the way the queue is dead.
    #[cold]
    fn reset_failed(&mut self, error: &NetError) {
        match error {
            NetError::NotOpen | NetError::Transport(TransportError::NoQueueReset { .. }) => {}
            error => self.reopen(error),
        }
    }
}
