//! Devices that stand in for the device of a stack: one that has a single frame, one
//! for what is rarely sent, one that says what it is.

use alloc::vec;

use smoltcp::phy::{Device, DeviceCapabilities, RxToken, TxToken};
use smoltcp::time::Instant;

/// A device that receives one frame or packet and can send one answer: how it is
/// handed to `Interface::poll_ingress_single`.
pub(crate) struct OneFrame<'f, T> {
    frame: Option<&'f [u8]>,
    answer: Option<T>,
}

impl<'f, T: TxToken> OneFrame<'f, T> {
    pub(crate) fn new(frame: &'f [u8], answer: T) -> Self {
        Self {
            frame: Some(frame),
            answer: Some(answer),
        }
    }

    pub(crate) fn answer(answer: T) -> Self {
        Self {
            frame: None,
            answer: Some(answer),
        }
    }
}

impl<'f, T: TxToken> Device for OneFrame<'f, T> {
    type RxToken<'a>
        = Frame<'f>
    where
        Self: 'a;
    type TxToken<'a>
        = T
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Frame<'f>, T)> {
        Some((Frame(self.frame.take()?), self.answer.take()?))
    }

    fn transmit(&mut self, _now: Instant) -> Option<T> {
        self.answer.take()
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // The interface keeps the capabilities of the device that it was made
        // for; receiving does not ask again.
        DeviceCapabilities::default()
    }
}

pub(crate) struct Frame<'f>(&'f [u8]);

impl RxToken for Frame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// A device that an interface is made with, for what it says of itself.
pub(crate) struct Described(pub(crate) DeviceCapabilities);

impl Device for Described {
    type RxToken<'a> = Nothing;
    type TxToken<'a> = Rare<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Nothing, Rare<'_>)> {
        None
    }

    fn transmit(&mut self, _now: Instant) -> Option<Rare<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.0.clone()
    }
}

/// No frame is ever received by this.
pub(crate) enum Nothing {}

impl RxToken for Nothing {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, _f: F) -> R {
        match self {}
    }
}

/// Where frames go of which there are few.
pub(crate) trait Outlet {
    fn has_room(&mut self) -> bool;

    fn send(&mut self, frame: &[u8]);
}

/// Room for one frame, until it is taken.
impl<T: TxToken> Outlet for Option<T> {
    fn has_room(&mut self) -> bool {
        self.is_some()
    }

    fn send(&mut self, frame: &[u8]) {
        if let Some(token) = self.take() {
            token.consume(frame.len(), |place| place.copy_from_slice(frame));
        }
    }
}

pub(crate) struct Through<'d, D>(pub(crate) &'d mut D, pub(crate) Instant);

impl<D: Device> Outlet for Through<'_, D> {
    fn has_room(&mut self) -> bool {
        self.0.transmit(self.1).is_some()
    }

    fn send(&mut self, frame: &[u8]) {
        self.0.transmit(self.1).send(frame);
    }
}

/// Where an answer goes that somebody else gives, or nobody.
pub(crate) struct Nowhere;

impl TxToken for Nowhere {
    #[cold]
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        f(&mut vec![0; length])
    }
}

impl Outlet for Nowhere {
    fn has_room(&mut self) -> bool {
        true
    }

    fn send(&mut self, _frame: &[u8]) {}
}

/// An [`Outlet`] as a device, and as room in it. Who writes a frame to it is compiled
/// once, and without what a device does with frames.
pub(crate) struct Rare<'o>(pub(crate) &'o mut dyn Outlet);

impl Device for Rare<'_> {
    type RxToken<'a>
        = Nothing
    where
        Self: 'a;
    type TxToken<'a>
        = Rare<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Nothing, Rare<'_>)> {
        None
    }

    fn transmit(&mut self, _now: Instant) -> Option<Rare<'_>> {
        let has_room = self.0.has_room();
        has_room.then_some(Rare(&mut *self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        DeviceCapabilities::default()
    }
}

impl TxToken for Rare<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.send(&frame);
        result
    }
}
