//! One queue reset alone, while the others go on (`VIRTIO_F_RING_RESET`,
//! specification 2.6.1).

extern crate alloc;

use alloc::boxed::Box;
use core::mem;

use virtio_drivers::Hal;

use super::lifecycle::data_queue_shape;
use super::rx::RxQueue;
use super::tx::TxQueue;
use super::{DeviceInfo, Features, NetError, VirtioNet};
use crate::interrupt::StateRef;
use crate::queue::{PositionalRing, Virtqueue};
use crate::transport::{ConfigOps, TransportError};
use crate::vectors::{self, Rung};

impl<H: Hal, T: ConfigOps, S: StateRef> VirtioNet<H, T, S> {
    /// Finds out whether a device resets a queue that was agreed to be reset
    /// alone, with its first queue before it is live, and negotiates again:
    /// without `VIRTIO_F_RING_RESET` if it does not.
    pub(super) fn try_queue_reset(&mut self) -> Result<(), NetError> {
        const QUEUE: u16 = 0;
        let shape = data_queue_shape(self.info.negotiated, self.queue_size);
        let transport = &mut self.transport;
        let queue: Box<Virtqueue<PositionalRing<H>, T::Notify>> =
            vectors::setup_queue_untraced(transport, QUEUE, shape)?;
        let enabled = transport.enable_queue(QUEUE);
        if let Err(error) = enabled.and_then(|()| transport.queue_reset(QUEUE)) {
            log::info!("RING_RESET is offered and not taken: {error}");
            self.refused |= Features::RING_RESET;
        }
        match self.negotiate() {
            Ok(()) => Ok(()),
            Err(error) => {
                // It may not have been reset.
                core::mem::forget(queue);
                Err(error)
            }
        }
    }

    /// Resets one queue of a pair and sets it up again, empty but for new
    /// receive buffers (Linux `virtnet_rx_resize` and `virtnet_tx_resize`).
    /// `queue` is its index at the device: 2 N is the receive queue of pair N,
    /// from 0, and 2 N + 1 its transmit queue.
    ///
    /// Every buffer that the device had comes back. Frames that were received
    /// and not taken yet, or not sent yet, are lost, as over
    /// [`Self::stop`]; the other queues do not notice. So may a queue be reset that
    /// [`Self::poll`] found stuck ([`BrokenReason::Stuck`]), but not QEMU's (7.2 to 11.1),
    /// which aborts (`flush_or_purge_queued_packets`) while its back end takes nothing.
    ///
    /// [`BrokenReason::Stuck`]: crate::queue::BrokenReason::Stuck
    ///
    /// # Errors
    ///
    /// [`NetError::NotOpen`], also for a pair that was taken or that the
    /// device does not have. [`TransportError::NoQueueReset`] without
    /// `VIRTIO_F_RING_RESET`, where nothing has changed. After any other error
    /// the queue is dead: the device must be opened again.
    #[doc(alias = "virtnet_rx_resize")]
    #[doc(alias = "virtnet_tx_resize")]
    pub fn reset_queue(&mut self, queue: u16) -> Result<(), NetError> {
        let DeviceInfo { negotiated, .. } = self.info;
        let Some(open) = &mut self.open else {
            return Err(NetError::NotOpen);
        };
        // Not that of now, which may be smaller and raised again.
        let mtu = open.mtu;
        let Some(Some(pair)) = open.pairs.get_mut(usize::from(queue / 2)) else {
            return Err(NetError::NotOpen);
        };
        if !negotiated.contains(Features::RING_RESET) {
            return Err(TransportError::NoQueueReset { queue }.into());
        }
        // As `find_vqs` has assigned them: entry 0 is for configuration
        // changes, and the data queues come first.
        let entry = match open.rung {
            Rung::MsixPerQueue => Some(1 + queue),
            Rung::MsixShared => Some(1),
            Rung::Intx | Rung::Polling => None,
        };
        let shape = data_queue_shape(negotiated, self.queue_size);
        self.transport.queue_reset(queue)?;
        // From here the device does not touch ring and buffers, and must not be
        // notified of the queue.
        let new = vectors::setup_queue(&mut self.transport, queue, shape)?;
        if let Some(entry) = entry {
            self.transport.set_queue_vector(queue, entry)?;
        }
        if queue.is_multiple_of(2) {
            let mtu = self.info.receive_mtu(mtu);
            // On an error nobody knows whether the device uses it: it has the lease.
            let mut rx = RxQueue::new(new, negotiated, mtu, &open.lease)?;
            self.transport.enable_queue(queue)?;
            rx.follow(&mut pair.rx);
            self.past.add_rx(&pair.rx);
            mem::replace(&mut pair.rx, rx).was_reset(queue, &open.lease);
            pair.rx.kick();
        } else {
            let tx = TxQueue::new(new, negotiated, mtu, &open.lease)?;
            self.transport.enable_queue(queue)?;
            // A sender that waited for room has it now.
            self.past.add_tx(&pair.tx);
            mem::replace(&mut pair.tx, tx).was_reset(queue, &open.lease);
        }
        Ok(())
    }
}
