//! The device is told which pairs to use, how to choose between them, and what
//! to hash: as much of it as was agreed on (Linux `virtnet_set_queues` and
//! `virtnet_commit_rss_command`).

extern crate alloc;

use alloc::sync::Arc;
use alloc::vec::Vec;

use virtio_drivers::Hal;

use super::control::Command;
use super::flow::{self, Flow, KEY_LENGTH};
use super::hashes::HashCheck;
use super::rss::{HashLimits, Rss};
use super::{Features, VirtioNet};
use crate::interrupt::StateRef;
use crate::transport::ConfigOps;

impl<H: Hal, T: ConfigOps, S: StateRef> VirtioNet<H, T, S> {
    /// Has the device hash with this key from the next [`Self::open`] on, where
    /// it hashes at all. If not said it is [`flow::DEFAULT_KEY`], so that each
    /// run is like the other. A kernel with a source of randomness takes one
    /// that nobody can guess: who knows the key can have all flows arrive at
    /// one pair.
    #[doc(alias = "netdev_rss_key_fill")]
    pub fn set_hash_key(&mut self, key: [u8; KEY_LENGTH]) {
        self.hash_key = key;
    }

    /// Has the driver verify from the next [`Self::open`] on what the device
    /// says and does by its hashes: it computes the hash of every received
    /// frame itself, some thousand instructions each. What is wrong is counted
    /// ([`super::Stats::rx_hash_wrong`], [`super::Stats::rx_missteered`]), and
    /// the first time said. Off if not said.
    pub fn set_hash_check(&mut self, on: bool) {
        self.checks_hashes = on;
    }

    /// How the device hashes what it receives, and where that leads; `None`
    /// when it does not, and while stopped.
    pub fn rss(&self) -> Option<&Rss> {
        self.open.as_ref()?.control.as_ref()?.rss.as_deref()
    }

    /// The pair, from 0, that a flow is sent by which this host begins (Linux
    /// `ndo_select_queue`). With RSS it is the one at which the answers arrive.
    /// Without, the device will have them arrive at the one that is chosen here
    /// by a hash. Who answers sends by the pair that it was asked by.
    #[doc(alias = "ndo_select_queue")]
    pub fn select_queue(&self, sent: &Flow) -> u16 {
        match self.rss() {
            Some(rss) if !rss.table().is_empty() => rss.select_queue(sent),
            _ => flow::select_queue(sent.hash(&self.hash_key), self.queue_pairs()),
        }
    }

    /// Features that are of no use with so many pairs, or with what this device
    /// can hash.
    pub(super) fn useless(&self, pairs: u16) -> Features {
        let mut useless = Features::empty();
        if pairs == 1 {
            useless |= Features::SEVERAL_PAIRS;
        }
        match &self.info.hash_limits {
            None => useless |= Features::RSS | Features::HASH_REPORT,
            Some(limits) if limits.table_length() < pairs => {
                if self.info.offered.contains(Features::RSS) {
                    log::warn!(
                        "the device's table has {} entries, too few for {pairs} pairs: no RSS",
                        limits.max_table_length
                    );
                }
                useless |= Features::RSS;
            }
            Some(_) => {}
        }
        useless
    }

    /// Tells a live device of `pairs` pairs. It uses the first pair alone until
    /// then, and hashes nothing (specification 5.1.6.5.5 and following). What it
    /// refuses is left out, and logged.
    pub(super) fn steer(&mut self, pairs: u16) {
        let limits = self.info.hash_limits;
        if pairs > 1 && !self.steer_by_hash(limits, pairs) {
            match (self.command(&Command::QueuePairs(pairs)), &mut self.open) {
                (Ok(()), Some(open)) => open.active = pairs,
                (Err(error), _) => log::error!("{error}; using one queue pair"),
                _ => {}
            }
        }
        // The command for the pairs would end an earlier one for hashes.
        if self.rss().is_none()
            && let Some(limits) = limits
            && self.info.negotiated.contains(Features::HASH_REPORT)
        {
            let rss = Arc::new(Rss::reports_only(&limits, self.hash_key));
            match self.command(&Command::HashConfig(&rss)) {
                Ok(()) => self.hashes_by(rss),
                Err(error) => log::error!("{error}; no hashes are reported"),
            }
        }
        self.check_hashes();
    }

    /// Returns whether the device chooses the pair by the hash from now on.
    #[inline(never)]
    fn steer_by_hash(&mut self, limits: Option<HashLimits>, pairs: u16) -> bool {
        let Some(limits) = limits else {
            return false;
        };
        if !self.info.negotiated.contains(Features::RSS) {
            return false;
        }
        let rss = Arc::new(Rss::new(&limits, self.hash_key, pairs));
        if let Err(error) = self.command(&Command::RssConfig(&rss)) {
            log::error!("{error}; the device is left to choose the pairs");
            return false;
        }
        self.hashes_by(rss);
        if let Some(open) = &mut self.open {
            open.active = pairs;
        }
        let doorbells: Vec<_> = self
            .pairs()
            .map(|p| p.rx.queue.doorbell().clone())
            .collect();
        for pair in self.pairs() {
            pair.rx.moves_between(&doorbells);
        }
        true
    }

    /// The device has been told so.
    fn hashes_by(&mut self, rss: Arc<Rss>) {
        let control = self.open.as_mut().and_then(|open| open.control.as_mut());
        if let Some(control) = control {
            control.rss = Some(rss);
        }
    }

    fn check_hashes(&mut self) {
        if self.checks_hashes
            && let Some(open) = &mut self.open
            && let Some(rss) = open.control.as_ref().and_then(|it| it.rss.as_ref())
        {
            for (pair, queues) in (0..).zip(open.pairs.iter_mut().flatten()) {
                let rss = Arc::clone(rss);
                queues.rx.check_hashes(HashCheck { rss, pair });
            }
        }
    }
}
