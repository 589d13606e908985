//! The interrupt ladder (Linux `vp_find_vqs`): MSI-X with a vector a queue,
//! else MSI-X with one vector for all queues, else INTx, else polling.
//!
//! Each rung is tried from a reset device, and a rung that fails leaves nothing
//! behind: the device is reset, MSI-X off, vectors and rings given back. (A
//! legacy device leaves no choice: taking a single queue back resets it whole.)

extern crate alloc;

use core::fmt;

use crate::trace::{NO_QUEUE, tracepoint};
use alloc::boxed::Box;
use alloc::vec::Vec;
use virtio_drivers::Hal;

use crate::doorbell::Notify;
use crate::queue::{CommandRing, PositionalRing, QueueError, QueueRing, RingShape, Virtqueue};
use crate::transport::{ConfigOps, IsrRegister, MsiMessage, RingAddresses, TransportError};

/// A rung of the ladder, from the top, in the order of Linux's `vp_find_vqs`
/// (specification 4.1.5.1.2 for MSI-X, 4.1.4.5 for INTx).
#[doc(alias = "vp_find_vqs")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// MSI-X: one vector for configuration changes, one a queue.
    MsixPerQueue,
    /// MSI-X: one vector for configuration changes, one for all queues.
    MsixShared,
    /// The INTx line.
    Intx,
    /// No interrupts; the driver must be polled.
    Polling,
}

impl Rung {
    /// All rungs, from the top.
    pub const LADDER: [Self; 4] = [
        Self::MsixPerQueue,
        Self::MsixShared,
        Self::Intx,
        Self::Polling,
    ];
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::MsixPerQueue => "MSI-X, a vector a queue",
            Self::MsixShared => "MSI-X, one shared vector",
            Self::Intx => "INTx",
            Self::Polling => "polling",
        })
    }
}

/// Whom an MSI-X vector serves, and so which handler it wants (specification
/// 4.1.5.1.2; Linux `vp_request_msix_vectors`).
#[doc(alias = "vp_request_msix_vectors")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorUse {
    /// Configuration changes: [`vp_config_changed`].
    ///
    /// [`vp_config_changed`]: crate::interrupt::InterruptState::vp_config_changed
    Config,
    /// The queue of this index: [`vring_interrupt`].
    ///
    /// [`vring_interrupt`]: crate::interrupt::InterruptState::vring_interrupt
    Queue(u16),
    /// Every queue: [`vp_vring_interrupt`].
    ///
    /// [`vp_vring_interrupt`]: crate::interrupt::InterruptState::vp_vring_interrupt
    AllQueues,
}

/// The embedder's interrupt controller did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InterruptUnavailable {
    /// There is no vector left.
    #[error("no interrupt vector is left")]
    NoVector,
    /// It is not known where the device's INTx line leads.
    #[error("it is not known where the INTx line leads")]
    NoRoute,
    /// The platform has no such interrupts at all.
    #[error("the platform has no such interrupts")]
    Unsupported,
}

/// What the driver needs of the embedder's interrupt controller: what Linux's
/// `virtio_pci` has of `pci_alloc_irq_vectors` and `request_irq`.
pub trait InterruptController {
    /// Connects a handler for `purpose` and returns the message that calls it.
    ///
    /// # Errors
    ///
    /// [`InterruptUnavailable`]; nothing is connected then.
    fn attach_msi(&mut self, purpose: VectorUse) -> Result<MsiMessage, InterruptUnavailable>;

    /// Disconnects and frees every handler that [`Self::attach_msi`]
    /// connected for this device.
    fn detach_msi(&mut self);

    /// Connects the device's INTx line to a handler that calls
    /// [`vp_interrupt`] with `isr`.
    ///
    /// [`vp_interrupt`]: crate::interrupt::InterruptState::vp_interrupt
    ///
    /// # Errors
    ///
    /// [`InterruptUnavailable`]; nothing is connected then.
    fn attach_intx(&mut self, isr: IsrRegister) -> Result<(), InterruptUnavailable>;

    /// Disconnects what [`Self::attach_intx`] connected.
    fn detach_intx(&mut self);
}

/// The controller of an embedder that only polls.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoInterrupts;

impl InterruptController for NoInterrupts {
    fn attach_msi(&mut self, _purpose: VectorUse) -> Result<MsiMessage, InterruptUnavailable> {
        Err(InterruptUnavailable::Unsupported)
    }

    fn detach_msi(&mut self) {}

    fn attach_intx(&mut self, _isr: IsrRegister) -> Result<(), InterruptUnavailable> {
        Err(InterruptUnavailable::Unsupported)
    }

    fn detach_intx(&mut self) {}
}

/// Why a rung was not taken: what makes Linux's `vp_find_vqs` try the next one
/// (specification 4.1.5.1.2.2 for a vector that the device refuses).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FindVqsError {
    /// The device did not cooperate.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A ring could not be made.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The platform could not deliver such interrupts.
    #[error(transparent)]
    Interrupt(#[from] InterruptUnavailable),
}

/// One rung that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The rung.
    pub rung: Rung,
    /// Why it was not taken, if it was not.
    pub result: Result<(), FindVqsError>,
}

/// A queue that [`find_vqs`] is to set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WantedQueue {
    /// Index of the queue at the device, 0 to 65535.
    pub index: u16,
    /// The form of its ring.
    pub shape: RingShape,
    /// Whether an interrupt tells of its used buffers (Linux: whether there
    /// is a callback). A queue without one has no vector on any MSI-X rung.
    pub interrupt: bool,
}

/// The queues that [`find_vqs`] is to set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WantedQueues {
    /// Those for frames.
    pub data: Vec<WantedQueue>,
    /// The one for commands.
    pub control: Option<WantedQueue>,
}

impl WantedQueues {
    fn all(&self) -> impl Iterator<Item = &WantedQueue> {
        self.data.iter().chain(&self.control)
    }
}

/// What [`find_vqs`] found.
pub(crate) struct Vqs<H: Hal, N> {
    /// The queues for frames, in the order in which they were wanted.
    pub data: Vec<Box<Virtqueue<PositionalRing<H>, N>>>,
    /// The queue for commands, if one was wanted.
    pub control: Option<Box<Virtqueue<CommandRing<H>, N>>>,
    /// The rung that was taken.
    pub rung: Rung,
}

/// Sets up queues with the best interrupts that work, beginning at rung `top`
/// (Linux `vp_find_vqs`).
///
/// `negotiate` brings the device from reset to the point where queues may be
/// set up, and says which are wanted; it is called once a rung. `attempts` gets
/// every rung that was tried. The error is that of the last, when even polling
/// failed: the device is reset then, and owns nothing.
#[doc(alias = "vp_find_vqs")]
pub(crate) fn find_vqs<H: Hal, T: ConfigOps, I: InterruptController>(
    transport: &mut T,
    controller: &mut I,
    top: Rung,
    mut negotiate: impl FnMut(&mut T) -> Result<WantedQueues, TransportError>,
    attempts: &mut Vec<Attempt>,
) -> Result<Vqs<H, T::Notify>, FindVqsError> {
    attempts.clear();
    let mut last = Err(InterruptUnavailable::Unsupported.into());
    for rung in Rung::LADDER.into_iter().filter(|rung| *rung >= top) {
        let number = rung as u64;
        tracepoint!(Event::FindVqsTry, NO_QUEUE, number);
        last = try_find_vqs(transport, controller, rung, &mut negotiate);
        let is_taken = last.is_ok();
        tracepoint!(Event::FindVqsResult, NO_QUEUE, number, u64::from(is_taken));
        let result = last.as_ref().map(|_| ()).map_err(|error| *error);
        attempts.push(Attempt { rung, result });
        if is_taken {
            break;
        }
    }
    last
}

/// Tries one rung (Linux `vp_try_to_find_vqs`).
#[doc(alias = "vp_try_to_find_vqs")]
fn try_find_vqs<H: Hal, T: ConfigOps, I: InterruptController>(
    transport: &mut T,
    controller: &mut I,
    rung: Rung,
    negotiate: &mut impl FnMut(&mut T) -> Result<WantedQueues, TransportError>,
) -> Result<Vqs<H, T::Notify>, FindVqsError> {
    // The rings live outside of the attempt, so that the reset in `del_vqs`
    // comes before their memory is given back.
    let mut vqs = Vqs {
        data: Vec::new(),
        control: None,
        rung,
    };
    let result = (|| {
        let wanted = negotiate(transport)?;
        request_vectors(transport, controller, &wanted, rung)?;
        vqs.data.reserve_exact(wanted.data.len());
        // Entry 0 is for configuration changes.
        let mut entries = 1..;
        let mut route = |transport: &mut T, queue: &WantedQueue| {
            let entry = match rung {
                // A queue without a callback keeps NO_VECTOR, which it has
                // since the reset.
                _ if !queue.interrupt => None,
                Rung::MsixPerQueue => entries.next(),
                Rung::MsixShared => Some(1),
                Rung::Intx | Rung::Polling => None,
            };
            entry.map_or(Ok(()), |entry| {
                transport.set_queue_vector(queue.index, entry)
            })
        };
        for queue in &wanted.data {
            vqs.data
                .push(setup_queue(transport, queue.index, queue.shape)?);
            route(transport, queue)?;
        }
        if let Some(queue) = &wanted.control {
            vqs.control = Some(setup_queue(transport, queue.index, queue.shape)?);
            route(transport, queue)?;
        }
        // Last, because there is no way back but a reset (Linux
        // `vp_modern_find_vqs`).
        for queue in wanted.all() {
            transport.enable_queue(queue.index)?;
        }
        Ok(())
    })();
    match result {
        Ok(()) => Ok(vqs),
        Err(error) => {
            del_vqs(transport, controller, vqs);
            Err(error)
        }
    }
}

/// Prepares the interrupts of a rung (Linux `vp_request_msix_vectors` and
/// `vp_request_intx`). MSI-X entry 0 is for configuration changes.
#[inline(never)]
fn request_vectors<T: ConfigOps, I: InterruptController>(
    transport: &mut T,
    controller: &mut I,
    wanted: &WantedQueues,
    rung: Rung,
) -> Result<(), FindVqsError> {
    let interrupting = || wanted.all().filter(|queue| queue.interrupt);
    let needed = match rung {
        Rung::MsixPerQueue => u16::try_from(1 + interrupting().count()).unwrap_or(u16::MAX),
        Rung::MsixShared => 2,
        Rung::Intx => {
            let isr = transport.isr().ok_or(InterruptUnavailable::Unsupported)?;
            controller.attach_intx(isr)?;
            transport.intx_enable(true);
            return Ok(());
        }
        Rung::Polling => {
            transport.intx_enable(false);
            return Ok(());
        }
    };
    let available = transport.msix_entries();
    if available < needed {
        return Err(TransportError::TooFewVectors { needed, available }.into());
    }
    let mut messages = Vec::with_capacity(usize::from(needed));
    messages.push(controller.attach_msi(VectorUse::Config)?);
    if rung == Rung::MsixShared {
        messages.push(controller.attach_msi(VectorUse::AllQueues)?);
    } else {
        for queue in interrupting() {
            messages.push(controller.attach_msi(VectorUse::Queue(queue.index))?);
        }
    }
    transport.msix_enable(&messages)?;
    transport.set_config_vector(0)?;
    Ok(())
}

/// Makes a ring of the device's size, tells the device of it and attaches the
/// notify hook (Linux `setup_vq`).
#[doc(alias = "setup_vq")]
pub(crate) fn setup_queue<R: QueueRing, T: ConfigOps>(
    transport: &mut T,
    index: u16,
    shape: RingShape,
) -> Result<Box<Virtqueue<R, T::Notify>>, FindVqsError> {
    let queue: Box<Virtqueue<R, T::Notify>> = setup_queue_untraced(transport, index, shape)?;
    let ring = queue.ring();
    let [descriptors, ..] = ring.areas();
    let size = u64::from(ring.size());
    tracepoint!(Event::SetupQueue, index, size, descriptors);
    let [kind, target] = queue.doorbell().trace_arguments();
    tracepoint!(Event::AttachDoorbell, index, kind, target);
    Ok(queue)
}

/// [`setup_queue`] of a queue that will not be used.
#[inline(never)]
pub(crate) fn setup_queue_untraced<R: QueueRing, T: ConfigOps>(
    transport: &mut T,
    index: u16,
    shape: RingShape,
) -> Result<Box<Virtqueue<R, T::Notify>>, FindVqsError> {
    let size = transport.max_queue_size(index);
    if size == 0 {
        return Err(TransportError::NoSuchQueue { queue: index }.into());
    }
    let size = if transport.dictates_queue_size() {
        size
    } else {
        shape.size(size)
    };
    let ring = new_ring::<R>(index, size, shape)?;
    let doorbell = transport.setup_queue(index, addresses(&*ring))?;
    if shape.notification_data && !doorbell.takes_data() {
        return Err(TransportError::NoNotificationData { queue: index }.into());
    }
    Ok(attach(ring, doorbell))
}

#[inline(never)]
fn attach<R: QueueRing, N: Notify>(ring: Box<R>, doorbell: N) -> Box<Virtqueue<R, N>> {
    let place = Box::new_uninit();
    Box::write(place, Virtqueue::new(*ring, doorbell))
}

/// The same of the ring, which lies on the heap at once.
#[inline(never)]
fn new_ring<R: QueueRing>(index: u16, size: u32, shape: RingShape) -> Result<Box<R>, QueueError> {
    R::new(index, size, shape).map(Box::new)
}

/// Where the parts of a ring are.
pub(crate) fn addresses(ring: &impl QueueRing) -> RingAddresses {
    let [descriptors, driver, device] = ring.areas();
    RingAddresses {
        size: ring.size(),
        descriptors,
        driver,
        device,
    }
}

/// Takes the queues and interrupts back (Linux `vp_del_vqs`): first the device is
/// reset, then all is freed that `memory` owns. Returns whether the reset was finished;
/// if not, the device could still write there: it is leaked, and the log says so.
#[doc(alias = "vp_del_vqs")]
#[inline(never)]
pub(crate) fn del_vqs<T: ConfigOps, I: InterruptController, M>(
    transport: &mut T,
    controller: &mut I,
    memory: M,
) -> bool {
    let reset = transport.reset();
    transport.msix_disable();
    transport.intx_enable(false);
    controller.detach_msi();
    controller.detach_intx();
    if let Err(error) = reset {
        log::error!("{error}; the memory of its queues is not used again");
        core::mem::forget(memory);
        return false;
    }
    true
}
