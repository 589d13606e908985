//! The first pair apart from the rest of the device, so that a CPU works with
//! the one while the other can still be looked at.

use virtio_drivers::Hal;

use super::control::ControlQueue;
use super::rss::Rss;
use super::stats::{QueueRole, QueueSnapshot, Stats};
use super::{DeviceInfo, QueuePair, VirtioNet};
use crate::interrupt::{InterruptState, StateRef};
use crate::transport::ConfigOps;
use crate::vectors::{Attempt, Rung};

/// A device without its first pair, to look at; see [`VirtioNet::split`].
pub struct Rest<'d, H: Hal, T: ConfigOps> {
    transport: &'d T,
    info: &'d DeviceInfo,
    interrupts: &'d InterruptState,
    attempts: &'d [Attempt],
    past: &'d Stats,
    others: &'d [Option<QueuePair<H, T::Notify>>],
    control: Option<&'d ControlQueue<H, T::Notify>>,
    rung: Option<Rung>,
}

impl<'d, H: Hal, T: ConfigOps> Rest<'d, H, T> {
    /// As [`VirtioNet::info`].
    #[inline]
    pub fn info(&self) -> &'d DeviceInfo {
        self.info
    }

    /// As [`VirtioNet::transport`].
    pub fn transport(&self) -> &'d T {
        self.transport
    }

    /// As [`VirtioNet::rung`].
    pub fn rung(&self) -> Option<Rung> {
        self.rung
    }

    /// As [`VirtioNet::attempts`].
    pub fn attempts(&self) -> &'d [Attempt] {
        self.attempts
    }

    /// As [`VirtioNet::rss`].
    pub fn rss(&self) -> Option<&'d Rss> {
        self.control?.rss.as_deref()
    }

    /// As [`VirtioNet::stats`], with what `first` has counted.
    pub fn stats(&self, first: Option<&QueuePair<H, T::Notify>>) -> Stats {
        let mut stats = self.queue_stats(first);
        stats.interrupts = self.interrupts.interrupts();
        stats.interrupts_spurious = self.interrupts.not_ours();
        stats.register_accesses =
            self.transport.register_accesses() + self.interrupts.isr_reads() + stats.kicks;
        stats
    }

    /// The counters of queues that are gone, and of those that there are.
    pub(super) fn queue_stats(&self, first: Option<&QueuePair<H, T::Notify>>) -> Stats {
        let mut stats = *self.past;
        for pair in first.into_iter().chain(self.others.iter().flatten()) {
            stats.add_pair(pair);
        }
        if let Some(control) = self.control {
            stats.add_kicks(&control.queue);
        }
        stats
    }

    /// As [`VirtioNet::snapshots`], with those of `first`.
    pub fn snapshots<'a>(
        &self,
        first: Option<&'a QueuePair<H, T::Notify>>,
    ) -> impl Iterator<Item = QueueSnapshot<T::Notify>> + use<'a, 'd, H, T>
    where
        'd: 'a,
    {
        let pairs = first.into_iter().chain(self.others.iter().flatten());
        let control = self.control.into_iter();
        pairs
            .flat_map(QueuePair::snapshots)
            .chain(control.map(|control| QueueSnapshot::of((QueueRole::Control, &control.queue))))
    }
}

impl<H: Hal, T: ConfigOps, S: StateRef> VirtioNet<H, T, S> {
    /// What has been counted (Linux `ndo_get_stats64`).
    #[doc(alias = "ndo_get_stats64")]
    pub fn stats(&self) -> Stats {
        let (first, rest) = self.parts();
        rest.stats(first)
    }

    /// What the queues look like now: receive and transmit queue of each
    /// pair, then the control queue, if there is one. Nothing while stopped.
    pub fn snapshots(&self) -> impl Iterator<Item = QueueSnapshot<T::Notify>> {
        let (first, rest) = self.parts();
        rest.snapshots(first)
    }

    /// The first pair to work with, `None` while stopped, and the rest of the
    /// device to look at meanwhile.
    #[inline]
    pub fn split(&mut self) -> (Option<&mut QueuePair<H, T::Notify>>, Rest<'_, H, T>) {
        let (mut first, mut others, mut control, mut rung) = (None, &[][..], None, None);
        if let Some(open) = &mut self.open {
            (control, rung) = (open.control.as_deref(), Some(open.rung));
            if let Some((pair, rest)) = open.pairs.split_first_mut() {
                (first, others) = (pair.as_mut(), &*rest);
            }
        }
        let rest = Rest {
            transport: &self.transport,
            info: &self.info,
            interrupts: &self.interrupts,
            attempts: &self.attempts,
            past: &self.past,
            others,
            control,
            rung,
        };
        (first, rest)
    }

    /// [`Self::split`], to look at both.
    pub fn parts(&self) -> (Option<&QueuePair<H, T::Notify>>, Rest<'_, H, T>) {
        let open = self.open.as_ref();
        let rest = Rest {
            transport: &self.transport,
            info: &self.info,
            interrupts: &self.interrupts,
            attempts: &self.attempts,
            past: &self.past,
            others: open
                .and_then(|open| open.pairs.get(1..))
                .unwrap_or_default(),
            control: open.and_then(|open| open.control.as_deref()),
            rung: open.map(|open| open.rung),
        };
        (self.first_pair(), rest)
    }
}
