//! What a receive queue makes of the device's hashes: it counts them, and
//! where it is asked to it verifies them.

extern crate alloc;

use alloc::sync::Arc;

use super::Features;
use super::flow::Flow;
use super::rss::{FlowHash, Rss};

/// What the device must do to be right.
#[derive(Debug)]
pub(super) struct HashCheck {
    pub(super) rss: Arc<Rss>,
    /// The pair that the queue is of, from 0.
    pub(super) pair: u16,
}

/// A receive queue's part of hashing.
#[derive(Debug, Default)]
pub(super) struct Hashes {
    /// `VIRTIO_NET_F_HASH_REPORT`.
    are_reported: bool,
    /// Whether [`Self::look_at`] has anything to do.
    pub(super) are_looked_at: bool,
    pub(super) check: Option<HashCheck>,
    /// Frames still to come of which it is not known whether the device had
    /// been told yet when it received them.
    skip: u16,
    /// Frames with a hash.
    pub(super) reported: u64,
    /// Frames with another hash than they should have.
    pub(super) wrong: u64,
    /// Frames that came to the wrong pair.
    pub(super) missteered: u64,
}

impl Hashes {
    pub(super) fn new(negotiated: Features) -> Self {
        let are_reported = negotiated.contains(Features::HASH_REPORT);
        Self {
            are_reported,
            are_looked_at: are_reported,
            ..Self::default()
        }
    }

    /// Whether the device reports hashes.
    pub(super) fn are_reported(&self) -> bool {
        self.are_reported
    }

    /// Verifies from now on, but for the next `skip` frames.
    pub(super) fn check(&mut self, check: HashCheck, skip: u16) {
        self.check = Some(check);
        self.are_looked_at = true;
        self.skip = skip;
    }

    /// Counts a frame that came by queue `queue` with this hash.
    pub(super) fn look_at(&mut self, queue: u16, reported: Option<FlowHash>, frame: &[u8]) {
        self.reported += u64::from(reported.is_some());
        let Some(check) = &self.check else {
            return;
        };
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        let right = Flow::of(frame).and_then(|flow| check.rss.hash(&flow));
        if self.are_reported && reported != right {
            self.wrong += 1;
            if self.wrong == 1 {
                log::warn!(
                    "queue {queue}: the device reports {reported:x?} as the hash of a frame; \
                     it is {right:x?}"
                );
            }
        }
        let pair = check.rss.pair_of(right);
        if !check.rss.table().is_empty() && pair != check.pair {
            self.missteered += 1;
            if self.missteered == 1 {
                log::warn!(
                    "queue {queue}: a frame with hash {right:x?} came to pair {}; by the table \
                     it is pair {pair}'s",
                    check.pair
                );
            }
        }
    }
}
