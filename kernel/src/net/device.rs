//! The driver as smoltcp's physical device, with no copy in between: a
//! `TxToken` writes into the memory that the device reads, an `RxToken` reads
//! where the device wrote.

use kickpath_abi::status::Status;
use kickpath_services::StatusSource;
use kickpath_trace::{Event, NO_QUEUE, tracepoint};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use virtio_net::net::VirtioNet;
use virtio_net::net::buffers::MAX_FRAME;
use virtio_net::net::rx::{RxFrame, RxQueue};
use virtio_net::net::tx::TxQueue;

use super::report::{self, Fixed};
use crate::memory::KernelHal;
use crate::virtio::KernelTransport;

/// Whichever transport the device was taken by.
pub type NicTransport = KernelTransport;

/// The network device of this kernel.
pub type Nic = VirtioNet<KernelHal, NicTransport>;

/// Length in bytes of an Ethernet header, which smoltcp counts as part of the
/// transmission unit.
const ETHERNET_HEADER: usize = 14;

/// The network stack's handle of the device, for the length of a poll.
pub struct PhyDevice<'n> {
    /// The driver.
    pub nic: &'n mut Nic,
    /// What the status report says beside.
    pub fixed: &'n Fixed,
}

impl StatusSource for PhyDevice<'_> {
    fn status(&self) -> Status {
        report::status(self.fixed, self.nic)
    }
}

impl phy::Device for PhyDevice<'_> {
    type RxToken<'a>
        = RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = TxToken<'a>
    where
        Self: 'a;

    /// smoltcp wants to be able to reply to whatever it receives. So nothing
    /// is received while the transmit queue is full; it waits at the device.
    #[inline]
    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        let (rx, tx) = self.nic.queues().ok()?;
        if !tx.has_room() {
            return None;
        }
        let frame = rx.receive()?;
        let frame = Some(frame);
        Some((RxToken { rx, frame }, TxToken { tx }))
    }

    /// `None` while the transmit queue is full: the packet stays in its
    /// socket.
    #[inline]
    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        let (_, tx) = self.nic.queues().ok()?;
        tx.has_room().then_some(TxToken { tx })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit =
            (ETHERNET_HEADER + usize::from(self.nic.info().mtu)).min(MAX_FRAME);
        capabilities
    }
}

/// A received frame; its buffer goes back to the device when this is dropped.
pub struct RxToken<'a> {
    rx: &'a mut RxQueue<KernelHal>,
    /// `Some` until dropped.
    frame: Option<RxFrame>,
}

impl phy::RxToken for RxToken<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        match &self.frame {
            Some(frame) => {
                let bytes = self.rx.frame(frame);
                tracepoint!(Event::RxTokenConsume, NO_QUEUE, bytes.len() as u64);
                f(bytes)
            }
            None => f(&[]),
        }
    }
}

impl Drop for RxToken<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            self.rx.recycle(frame);
        }
    }
}

/// Room for one frame in the transmit queue. It takes the buffer only when it
/// is consumed; smoltcp drops most of those that come with received frames.
pub struct TxToken<'a> {
    tx: &'a mut TxQueue<KernelHal>,
}

impl phy::TxToken for TxToken<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        tracepoint!(Event::TxTokenConsume, NO_QUEUE, length as u64);
        let Some(mut slot) = self.tx.reserve() else {
            return discard(f);
        };
        let result = f(slot.frame_mut(length));
        slot.start_xmit(length);
        result
    }
}

/// Builds a frame that goes nowhere. A token exists only where there was room,
/// so this is reached only when the queue broke in between.
#[cold]
fn discard<R, F: FnOnce(&mut [u8]) -> R>(f: F) -> R {
    f(&mut [0; MAX_FRAME])
}
