//! The device of the core that booted, together with what it takes to open it
//! again and what the other cores hold of it.

use alloc::boxed::Box;

use kickpath_abi::config::UdpWay;
use kickpath_abi::status::{Outages, Status};
use kickpath_services::Stack;
use virtio_net::net::watchdog::LOOK_US;
use virtio_net::net::{Changes, NetError, QueueRole};
use virtio_net::queue::{BrokenReason, QueueError};
use virtio_net::transport::TransportError;
use virtio_net::vectors::Rung;

use super::cores::Cores;
use super::device::Nic;
use super::interrupts::Controller;
use super::presence::{Change, Presence};
use super::report;
use crate::arch::time;

/// A device that broke is opened again at most this often, in microseconds:
/// one that breaks at once must not keep the CPU busy.
const REOPEN_INTERVAL_US: u64 = 1_000_000;

/// Without interrupts, how often the loop asks the device whether its
/// configuration has changed, in microseconds. Each time costs exits.
const CONFIG_INTERVAL_US: u64 = 100_000;

pub struct Host {
    /// The device; never dropped.
    pub nic: &'static mut Nic,
    controller: Controller,
    top: Rung,
    /// What the report says that does not change.
    pub fixed: Status,
    /// The other CPUs with queue pairs of their own, if there are any.
    pub cores: Option<Cores>,
    /// Whether the device is in its place.
    pub presence: Presence,
    /// Why the device is closed, as was said already.
    said: Option<NetError>,
    /// What it has cost that it was.
    outages: Outages,
    /// Since when there is no service, if so.
    out_since: Option<u64>,
    /// When a device that broke may be opened again.
    pub reopen_at: u64,
    /// When to look at the device's configuration next, without interrupts.
    look_at_config_at: u64,
}

impl Host {
    /// A device that is closed.
    pub fn new(
        nic: Nic,
        controller: Controller,
        top: Rung,
        fixed: Status,
        presence: Presence,
    ) -> Self {
        Self {
            nic: Box::leak(Box::new(nic)),
            controller,
            top,
            fixed,
            cores: None,
            presence,
            said: None,
            outages: Outages::default(),
            out_since: None,
            reopen_at: 0,
            look_at_config_at: 0,
        }
    }

    /// Opens the device, again if it is open. Several queue pairs need an
    /// interrupt each, or none at all: on the rungs in between one pair is
    /// used.
    pub fn open(&mut self) -> Result<(), NetError> {
        self.recall();
        self.nic.open(&mut self.controller, self.top)?;
        let rung = self.nic.rung();
        if self.nic.queue_pairs() > 1 && matches!(rung, Some(Rung::MsixShared | Rung::Intx)) {
            log::info!("not every queue has an interrupt of its own: using one queue pair");
            self.nic.set_queue_pairs(1);
            self.nic.open(&mut self.controller, self.top)?;
        }
        if let Some(cores) = &self.cores {
            cores.hand_out(self.nic);
        }
        if let Some(since) = self.out_since.take() {
            self.outages.recovered += 1;
            self.outages.last_us = time::now() - since;
            self.outages.total_us += self.outages.last_us;
        }
        self.publish();
        Ok(())
    }

    /// Takes the queue pairs back, and counts what is lost in them when the device broke.
    fn recall(&mut self) {
        if let Some(cores) = &mut self.cores {
            cores.recall(self.nic);
        }
        if self.out_since.is_some() {
            let queues = self.nic.snapshots();
            let transmit = queues.filter(|queue| queue.role == QueueRole::Transmit);
            // What the device says of it, as far as it can be true.
            let lost = transmit.map(|queue| {
                let unused = queue.avail_idx.wrapping_sub(queue.used_idx);
                u64::from(unused.min(queue.size - queue.free))
            });
            self.outages.frames_lost += lost.sum::<u64>();
        }
    }

    /// Gives the queue pairs beside the first to other CPUs.
    pub fn start_cores(&mut self, stack: &mut Stack, udp: UdpWay) {
        let pairs = self.nic.queue_pairs();
        if pairs < 2 {
            return;
        }
        match self.nic.rss().map(|rss| rss.table().len()) {
            None | Some(0) => log::info!("{pairs} queue pairs, one a CPU"),
            Some(entries) => {
                log::info!("{pairs} queue pairs, one a CPU; RSS by {entries} entries");
            }
        }
        let mut cores = Cores::start(pairs.into(), udp);
        stack.share_frames();
        cores.hand_out(self.nic);
        cores.share(stack);
        self.cores = Some(cores);
    }

    /// Tells the other cores what changed of the device.
    pub fn publish(&mut self) {
        if let Some(cores) = &self.cores {
            let link_up = self.nic.info().link_up;
            cores.publish_status(self.own_status(), link_up);
        }
    }

    /// The report without what the other cores know.
    fn own_status(&self) -> Status {
        Status {
            outages: self.outages,
            ..report::status(&self.fixed, self.nic)
        }
    }

    /// The report as of now, without the network stack's part.
    #[cold]
    pub fn status(&self) -> Status {
        let mut status = self.own_status();
        if let Some(cores) = &self.cores {
            cores.complete(&mut status, self.nic);
        }
        status
    }

    /// Begins a poll of the device, and opens it again when it broke. Returns
    /// what changed.
    #[inline]
    pub fn look_after_device(&mut self) -> Changes {
        let mut result = self.nic.poll();
        if result == Ok(Changes::empty()) && self.nic.rung() == Some(Rung::Polling) {
            result = self.look_at_config_now_and_then();
        }
        match result {
            Ok(changes) if changes.is_empty() => return changes,
            Ok(changes) => {
                self.changed(changes);
                return changes;
            }
            Err(NetError::NotOpen) if !self.presence.is_here() => (),
            Err(NetError::NotOpen) if time::now() < self.reopen_at => (),
            Err(NetError::NotOpen) => self.try_to_open(),
            Err(error) => self.reopen(&error),
        }
        Changes::empty()
    }

    #[cold]
    pub fn look_for_device(&mut self) {
        match self.presence.look() {
            Some(Change::Leaves) => {
                self.close();
                self.presence.release();
            }
            Some(Change::Returned) => self.try_to_open(),
            None => {
                let received = self.nic.received();
                if self.nic.rung().is_some()
                    && self.presence.is_doubtful(received)
                    && let Err(error) = self.nic.check_status()
                {
                    self.reopen(&error);
                }
            }
        }
    }

    fn close(&mut self) {
        self.out_since.get_or_insert_with(time::now);
        self.recall();
        self.nic.stop(&mut self.controller);
    }

    fn look_at_config_now_and_then(&mut self) -> Result<Changes, NetError> {
        let now = time::now();
        if now < self.look_at_config_at {
            return Ok(Changes::empty());
        }
        self.look_at_config_at = now + CONFIG_INTERVAL_US;
        self.nic.look_at_config()
    }

    #[cold]
    fn changed(&mut self, changes: Changes) {
        if changes.contains(Changes::LINK) {
            let up = self.nic.info().link_up;
            let stats = self.nic.stats();
            log::info!(
                "the link is {}; received {} frames, {} bytes; sent {} frames, {} bytes",
                if up { "up" } else { "down" },
                stats.rx_packets,
                stats.rx_bytes,
                stats.tx_packets,
                stats.tx_bytes
            );
        }
        self.publish();
    }

    /// Opens a device again that broke by `error`.
    #[cold]
    pub fn reopen(&mut self, error: &NetError) {
        // Of one that is gone that is said when it cannot be opened.
        if *error != NetError::Transport(TransportError::Gone) {
            log::error!("{error}");
        }
        let now = time::now();
        let mut since = now;
        if let NetError::Queue(QueueError::Broken { reason, .. }) = error {
            match reason {
                BrokenReason::NoInterrupt { .. } => {
                    // By others, or by none.
                    let lower = |below: &Rung| self.nic.rung().is_none_or(|rung| *below > rung);
                    let rung = Rung::LADDER.into_iter().find(lower);
                    self.top = rung.unwrap_or(Rung::Polling);
                }
                BrokenReason::Stuck { looks, .. } => {
                    since = now.saturating_sub(u64::from(*looks) * LOOK_US);
                }
                _ => {}
            }
        }
        self.out_since.get_or_insert(since);
        if now < self.reopen_at {
            // It broke again within the interval: wait it out, closed.
            return self.close();
        }
        self.try_to_open();
    }

    /// Opens a device that is closed or broke. Why it cannot be is said once.
    #[cold]
    fn try_to_open(&mut self) {
        self.reopen_at = time::now() + REOPEN_INTERVAL_US;
        self.said = match self.open() {
            Ok(()) => {
                log::info!(
                    "the device was reset and opened again after {} us; {} frames lost so far",
                    self.outages.last_us,
                    self.outages.frames_lost
                );
                None
            }
            Err(error) => {
                if self.said != Some(error) {
                    log::error!("the device could not be opened again: {error}");
                }
                Some(error)
            }
        };
    }
}
