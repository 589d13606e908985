//! What the device has done, in numbers.

use virtio_drivers::Hal;

use super::pair::QueuePair;
use super::rx::RxQueue;
use super::tx::TxQueue;
use crate::doorbell::{Doorbell, Notify};
use crate::queue::{QueueRing, Virtqueue};

/// What has been counted since probe (Linux `ndo_get_stats64`, and what a
/// packet costs). Counters never go back, not even over `stop` and `open`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes of those frames, Ethernet header included.
    pub rx_bytes: u64,
    /// Frames that were dropped: their buffer or their header could not be.
    pub rx_dropped: u64,
    /// Times that the receive queue broke.
    pub rx_errors: u64,
    /// Frames put into the transmit queue.
    pub tx_packets: u64,
    /// Bytes of those frames, Ethernet header included.
    pub tx_bytes: u64,
    /// Times that a sender had to wait for a free buffer.
    pub tx_waited: u64,
    /// Times that the transmit queue broke.
    pub tx_errors: u64,
    /// Received frames that lay in several buffers.
    pub rx_merged: u64,
    /// Received frames whose checksum the device vouched for.
    pub rx_checksum_valid: u64,
    /// Received frames with a hash (`VIRTIO_NET_F_HASH_REPORT`).
    pub rx_hashed: u64,
    /// Received frames with another hash than they should have. Not counted
    /// without [`VirtioNet::set_hash_check`](super::VirtioNet::set_hash_check).
    pub rx_hash_wrong: u64,
    /// Received frames that came to another pair than the table of RSS says;
    /// the same holds for them.
    pub rx_missteered: u64,
    /// Sent frames whose checksum the device filled in.
    pub tx_checksum_offloaded: u64,
    /// Sent frames that the device segmented.
    pub tx_segmented: u64,
    /// Of those, the ones that were put together of segments (feature `smoltcp`).
    pub tx_coalesced: u64,
    /// Frames that moved only when the device was notified again
    /// ([`QueuePair::watch`]).
    pub kicks_lost: u64,
    /// Used buffers that no interrupt told of, as found by the same.
    pub interrupts_lost: u64,
    /// Times that the device gave no frame back.
    pub stuck: u64,
    /// Doorbell writes, each a VM exit.
    pub kicks: u64,
    /// Kicks that the device did not want.
    pub kicks_suppressed: u64,
    /// Interrupts that were the device's.
    pub interrupts: u64,
    /// INTx interrupts that were not: the ISR status was 0 (specification
    /// 4.1.4.5). They are not among `interrupts`.
    pub interrupts_spurious: u64,
    /// Accesses to device registers, doorbells included.
    pub register_accesses: u64,
}

/// What a queue is for (specification 5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueRole {
    /// receiveqN.
    Receive,
    /// transmitqN.
    Transmit,
    /// controlq.
    Control,
}

/// What one queue looks like now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QueueSnapshot<N = Doorbell> {
    /// What it is for.
    pub role: QueueRole,
    /// Index at the device, 0 to 65535 (specification 5.1.2).
    pub index: u16,
    /// Number of descriptors, 1 to 32768.
    pub size: u16,
    /// Chains offered since the queue was set up, modulo 65536: in the split
    /// layout the driver's index of the available ring (specification 2.7.6).
    /// A packed ring has no such index: there it is the driver's own count.
    pub avail_idx: u16,
    /// Chains that the device has used since then, modulo 65536: in the split
    /// layout its index of the used ring (specification 2.7.8); of a packed
    /// ring the driver's own count and the descriptors that are marked as used
    /// (specification 2.8.1).
    pub used_idx: u16,
    /// Of those, how many the driver has taken back, modulo 65536.
    pub last_used_idx: u16,
    /// Chains that can be added, 0 to `size`.
    pub free: u16,
    /// The notify hook.
    pub doorbell: N,
    /// Kicks that were needed.
    pub kicks: u64,
    /// Kicks that [`Virtqueue::kick_prepare`] found unnecessary.
    pub kicks_suppressed: u64,
}

impl<N: Notify> QueueSnapshot<N> {
    pub(super) fn of<R: QueueRing>((role, queue): (QueueRole, &Virtqueue<R, N>)) -> Self {
        let ring = queue.ring();
        Self {
            role,
            index: ring.queue(),
            size: ring.size(),
            avail_idx: ring.avail_idx(),
            used_idx: ring.used_idx(),
            last_used_idx: ring.last_used_idx(),
            free: ring.free(),
            doorbell: queue.doorbell().clone(),
            kicks: queue.stats().kicks,
            kicks_suppressed: queue.stats().kicks_suppressed,
        }
    }
}

impl Stats {
    /// Adds what another part of the device has counted.
    pub fn add(&mut self, other: &Self) {
        // All of them, or it would not compile.
        macro_rules! add {
            ($($field:ident)*) => {{
                let Self { $($field),* } = other;
                $(self.$field += $field;)*
            }};
        }
        add! {
            rx_packets rx_bytes rx_dropped rx_errors tx_packets tx_bytes tx_waited tx_errors
            rx_merged rx_checksum_valid rx_hashed rx_hash_wrong rx_missteered
            tx_checksum_offloaded tx_segmented tx_coalesced kicks_lost interrupts_lost stuck
            kicks kicks_suppressed interrupts interrupts_spurious register_accesses
        }
    }

    /// Adds what the queues of a pair have counted.
    pub(super) fn add_pair<H: Hal, N: Notify>(&mut self, pair: &QueuePair<H, N>) {
        let QueuePair { rx, tx, watchdog } = pair;
        self.add_rx(rx);
        self.add_tx(tx);
        self.kicks_lost += watchdog.trips.kicks_lost;
        self.interrupts_lost += watchdog.trips.interrupts_lost;
        self.stuck += watchdog.trips.stuck;
    }

    /// Adds what a receive queue has counted.
    pub(super) fn add_rx<H: Hal, N: Notify>(&mut self, rx: &RxQueue<H, N>) {
        self.rx_packets += rx.packets;
        self.rx_bytes += rx.bytes;
        self.rx_dropped += rx.dropped;
        self.rx_errors += u64::from(rx.error.is_some());
        self.rx_merged += rx.merged;
        self.rx_checksum_valid += rx.checksum_valid;
        self.rx_hashed += rx.hashes.reported;
        self.rx_hash_wrong += rx.hashes.wrong;
        self.rx_missteered += rx.hashes.missteered;
        self.kicks += rx.kicks_of_others;
        self.add_kicks(&rx.queue);
    }

    /// Adds what a transmit queue has counted.
    pub(super) fn add_tx<H: Hal, N: Notify>(&mut self, tx: &TxQueue<H, N>) {
        self.tx_packets += tx.packets;
        self.tx_bytes += tx.bytes;
        self.tx_waited += tx.waited;
        self.tx_errors += u64::from(tx.error.is_some());
        self.tx_checksum_offloaded += tx.checksum_offloaded;
        self.tx_segmented += tx.segmented;
        self.tx_coalesced += tx.coalesced;
        self.add_kicks(&tx.queue);
    }

    pub(super) fn add_kicks<R: QueueRing, N: Notify>(&mut self, queue: &Virtqueue<R, N>) {
        let stats = queue.stats();
        self.kicks += stats.kicks;
        self.kicks_suppressed += stats.kicks_suppressed;
    }
}

impl<H: Hal, N: Notify> QueuePair<H, N> {
    /// What this pair has counted since the device was opened, without its
    /// interrupts, which [`InterruptState`] counts.
    ///
    /// [`InterruptState`]: crate::interrupt::InterruptState
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        stats.add_pair(self);
        stats.register_accesses = stats.kicks;
        stats
    }

    /// What its receive and its transmit queue look like now.
    pub fn snapshots(&self) -> [QueueSnapshot<N>; 2] {
        [
            (QueueRole::Receive, &*self.rx.queue),
            (QueueRole::Transmit, &*self.tx.queue),
        ]
        .map(QueueSnapshot::of)
    }
}
