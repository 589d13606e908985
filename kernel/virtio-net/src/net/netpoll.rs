//! Sending when nothing else works any more: with interrupts off, without
//! memory, and whatever state the driver was left in (Linux netpoll, for
//! netconsole's last words).
//!
//! A panic may interrupt the driver anywhere, so its queues cannot be trusted.
//! Instead the device is reset and given a transmit queue that was prepared
//! while all was well and has not been touched since.

use core::mem::ManuallyDrop;

use virtio_drivers::transport::DeviceStatus;
use virtio_drivers::{BufferDirection, Hal};

use super::header::header_length;
use super::{Features, NetError, VirtioNet};
use crate::doorbell::{Doorbell, Notify};
use crate::interrupt::StateRef;
use crate::patience::Patience;
use crate::queue::{Buffer, CommandRing, DmaRegion, EventMode, QueueRing, RingShape, Virtqueue};
use crate::transport::{ConfigOps, LIVE};
use crate::vectors;

/// Index of transmitq1 (specification 5.1.2).
const TRANSMIT_QUEUE: u16 = 1;

/// How long the device may take to send a frame, in microseconds.
const PATIENCE: u64 = 1_000_000;

/// Where the frame begins in the memory, behind its header.
const FRAME: usize = 16;
/// Largest frame in bytes.
const MAX_FRAME: usize = 4096 - FRAME;
/// Smallest Ethernet frame without its check sequence, in bytes.
const MIN_FRAME: usize = 60;

/// A transmit queue in reserve (Linux `struct netpoll`).
pub struct Netpoll<H: Hal> {
    ring: CommandRing<H>,
    memory: DmaRegion<H>,
    features: Features,
}

/// The device with nothing but a transmit queue. It is not reset when this is
/// dropped, and the memory is not given back: this is the end.
pub struct LastWords<H: Hal, N = Doorbell> {
    queue: ManuallyDrop<Virtqueue<CommandRing<H>, N>>,
    memory: ManuallyDrop<DmaRegion<H>>,
    header_length: usize,
    patience: Patience,
}

impl<H: Hal, T: ConfigOps, S: StateRef> VirtioNet<H, T, S> {
    /// Prepares for [`Self::poll_controller`] (Linux `netpoll_setup`):
    /// allocates a second transmit queue, which the device is not told of.
    ///
    /// # Errors
    ///
    /// [`NetError::Queue`] when the device's transmit queue cannot hold a frame
    /// in two descriptors, or there is no memory for it, and
    /// [`NetError::NoBuffers`] when there is none for the frame.
    #[doc(alias = "netpoll_setup")]
    pub fn netpoll(&mut self) -> Result<Netpoll<H>, NetError> {
        let size = self.transport.max_queue_size(TRANSMIT_QUEUE);
        // The simplest form, which every device has; header and frame apart.
        let shape = RingShape::split(2, EventMode::Flags);
        let size = if self.transport.dictates_queue_size() {
            size
        } else {
            shape.size(size)
        };
        let ring = CommandRing::new(TRANSMIT_QUEUE, size, shape)?;
        let memory = DmaRegion::new(FRAME + MAX_FRAME, BufferDirection::DriverToDevice).ok_or(
            NetError::NoBuffers {
                queue: TRANSMIT_QUEUE,
                count: 1,
                size: FRAME + MAX_FRAME,
            },
        )?;
        Ok(Netpoll {
            ring,
            memory,
            // Nothing but what a device may not work without.
            features: self.info.negotiated & (Features::VERSION_1 | Features::ACCESS_PLATFORM),
        })
    }

    /// Takes the device away from its driver (Linux `ndo_poll_controller`): it
    /// is reset, and has no queue but the one in reserve. Allocates nothing,
    /// needs no interrupt, waits in bounded time and does not look at the
    /// driver's queues, whose memory is leaked. (Over an
    /// [`Adapter`](crate::transport::adapter::Adapter) it may wait for ever.)
    ///
    /// For the end of a kernel only: nothing may use the device, not even
    /// through references that exist, after this.
    ///
    /// # Errors
    ///
    /// [`NetError::Transport`].
    #[doc(alias = "ndo_poll_controller")]
    pub fn poll_controller(
        &mut self,
        reserve: Netpoll<H>,
    ) -> Result<LastWords<H, T::Notify>, NetError> {
        core::mem::forget(self.open.take());
        let features = reserve.features;
        // Not even on an error: giving memory back may take a lock that the
        // interrupted code holds.
        let ring = ManuallyDrop::new(reserve.ring);
        let memory = ManuallyDrop::new(reserve.memory);
        let transport = &mut self.transport;
        transport.reset()?;
        transport.set_status(DeviceStatus::ACKNOWLEDGE);
        transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        transport.finalize_features(features.bits() as u64)?;
        let doorbell = transport.setup_queue(TRANSMIT_QUEUE, vectors::addresses(&*ring))?;
        transport.enable_queue(TRANSMIT_QUEUE)?;
        transport.set_status(LIVE);
        Ok(LastWords {
            queue: ManuallyDrop::new(Virtqueue::new(ManuallyDrop::into_inner(ring), doorbell)),
            memory,
            header_length: header_length(features),
            patience: Patience {
                micros: PATIENCE,
                ..self.patience
            },
        })
    }
}

impl<H: Hal, N: Notify> LastWords<H, N> {
    /// Sends a frame that is given in pieces, padded to 60 bytes, and waits
    /// until the device has it (Linux `netpoll_send_skb`). What is beyond 4080
    /// bytes is cut.
    ///
    /// # Errors
    ///
    /// [`NetError::Queue`]; [`NetError::NotSent`] when the device does not use
    /// it within some seconds. Nothing more can be sent then.
    #[doc(alias = "netpoll_send_skb")]
    pub fn send(&mut self, pieces: &[&[u8]]) -> Result<(), NetError> {
        if self.queue.ring().published() != 0 {
            return Err(NetError::NotSent);
        }
        // SAFETY: the memory has this size and was zeroed when it was
        // allocated; the device has nothing of it, because nothing is
        // outstanding, and nobody else has a reference.
        let memory: &mut [u8; FRAME + MAX_FRAME] = unsafe { self.memory.pointer().cast().as_mut() };
        let frame = memory.get_mut(FRAME..).unwrap_or_default();
        let mut length = 0;
        for (to, from) in frame.iter_mut().zip(pieces.iter().copied().flatten()) {
            *to = *from;
            length += 1;
        }
        if let Some(padding) = frame.get_mut(length..MIN_FRAME) {
            padding.fill(0);
            length = MIN_FRAME;
        }
        let physical = self.memory.physical();
        // Without offloads the header is all zero (specification 5.1.6.2); at
        // most 12 and MAX_FRAME bytes.
        let chain = [
            Buffer::new(physical, self.header_length as u32, false),
            Buffer::new(physical + FRAME as u64, length as u32, false),
        ];
        // SAFETY: the memory is never given back, and not written until the
        // device has used the chain.
        unsafe { self.queue.ring_mut().add(&chain) }?;
        self.queue.kick();
        let mut wait = self.patience.start();
        while self.queue.ring_mut().pop_used()?.is_none() {
            if wait.is_over() {
                return Err(NetError::NotSent);
            }
        }
        Ok(())
    }
}
