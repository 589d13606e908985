//! What only some configurations want beside serving the network: the log sent, a
//! fault committed, the device opened again under traffic.

use kickpath_abi::config::{Config, SelfTest};
use kickpath_services::Stack;
use smoltcp::phy::Device;
use virtio_net::net::NetError;
use virtio_net::transport::TransportError;

use super::host::Host;
use super::idle::now;
use super::netconsole::Sender;
use crate::memory::{dma_pages, heap};
use crate::{backlog, selftest};

/// Frames that come between two reopenings of `reopen=COUNT`.
const FRAMES_TO_REOPEN: u64 = 4;

/// Frames that the self-test `panic-in-transmit` leaves in the queue: all but
/// one of what QEMU's holds by default.
const FRAMES_IN_TRANSMIT: u16 = 255;

/// What `reopen=COUNT` or `reset-queues=COUNT` has still to do.
#[derive(Default)]
struct Reopenings {
    left: u32,
    done: u32,
    /// One queue alone, the others go on.
    queues: bool,
    /// Pages for DMA and bytes of heap in use before the first one.
    before: Option<(usize, u64)>,
}

pub struct Extras {
    pub netconsole: Option<Sender>,
    /// The self-test that is still to be made.
    selftest: SelfTest,
    reopenings: Reopenings,
}

impl Extras {
    pub fn new(config: &Config, netconsole: Option<Sender>) -> Self {
        Self {
            netconsole,
            selftest: config.selftest,
            reopenings: Reopenings {
                left: config.reopen.saturating_add(config.reset_queues),
                queues: config.reset_queues > 0,
                ..Reopenings::default()
            },
        }
    }

    pub fn is_needed(&self) -> bool {
        self.netconsole.is_some() || self.selftest != SelfTest::Off || self.reopenings.left > 0
    }

    pub fn send_log<D: Device>(&mut self, stack: &mut Stack, device: &mut D) {
        if let Some(netconsole) = &mut self.netconsole
            && backlog::is_waiting()
        {
            netconsole.send(now(), stack, device);
        }
    }

    /// Commits a fault or opens the device again, while the network is in use.
    pub fn disturb(&mut self, host: &mut Host) {
        let is_ready = self.netconsole.as_ref().is_none_or(Sender::is_ready);
        if self.selftest != SelfTest::Off && is_ready {
            self.selftest(host);
        }
        if self.reopenings.left > 0 {
            host.nic.kick();
            self.reopen_under_traffic(host);
        }
    }

    #[cold]
    fn selftest(&mut self, host: &mut Host) {
        let test = core::mem::replace(&mut self.selftest, SelfTest::Off);
        if test == SelfTest::QueueReset {
            let all = heap::take_all();
            let result = host.nic.reset_queue(0);
            drop(all);
            match result {
                Ok(()) => log::error!("self-test {test}: there was memory"),
                Err(error) => reset_failed(host, &error),
            }
            return;
        }
        if test == SelfTest::PanicInTransmit
            && let Ok((_, tx)) = host.nic.queues()
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
    fn reopen_under_traffic(&mut self, host: &mut Host) {
        if host.nic.received() < FRAMES_TO_REOPEN {
            return;
        }
        // QEMU 7.2 aborts when a queue is reset while a frame waits for the
        // cable (`flush_or_purge_queued_packets`): when all are sent, none can.
        if self.reopenings.queues
            && let Ok((_, tx)) = host.nic.queues()
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
            host.nic.reset_queue(queue)
        } else {
            host.open()
        };
        if let Err(error) = result {
            log::error!("reopening {}: {error}", self.reopenings.done);
            if self.reopenings.queues {
                reset_failed(host, &error);
            }
            self.reopenings.left = 0;
            return;
        }
        self.reopenings.done += 1;
        self.reopenings.left -= 1;
        if self.reopenings.left == 0 {
            let (done, (pages, heap), after) = (self.reopenings.done, before, in_use());
            log::info!(
                "kickpath: reopened {done} times; before: {pages} DMA pages, {heap} bytes of heap; \
                 after: {} DMA pages, {} bytes of heap",
                after.0,
                after.1
            );
        }
    }
}

/// After a reset of one queue that failed on the way the queue is dead.
#[cold]
fn reset_failed(host: &mut Host, error: &NetError) {
    match error {
        NetError::NotOpen | NetError::Transport(TransportError::NoQueueReset { .. }) => {}
        error => host.reopen(error),
    }
}
