//! Any transport of `virtio-drivers`, such as its `PciTransport` and
//! `MmioTransport`, as one of this crate's.
//!
//! An embedder that has such a transport already can go on using it; what that
//! crate's trait cannot do is missing then. There are no vectors and no line,
//! so that the driver polls, and a kick is whatever `Transport::notify` does:
//! three accesses to the registers in `PciTransport` 0.13, where
//! [`ModernPciTransport`] makes one.
//!
//! [`ModernPciTransport`]: super::modern_pci::ModernPciTransport

extern crate alloc;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::fmt;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU8, Ordering};

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PAGE_SIZE, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::isr::IsrRegister;
use super::{
    ConfigOps, NOTIFICATION_DATA, RING_RESET, RingAddresses, TransportError, forward, steps,
};
use crate::barrier;
use crate::doorbell::Notify;

/// A transport of `virtio-drivers`, which the driver and its queues use in turn:
/// `Transport::notify` takes `&mut self`, and a kick may come from any CPU.
///
/// A kick never waits: where it finds the transport in use, whoever has it notifies
/// every queue before letting go. So it may come from an interrupt handler, too. All
/// else waits for its turn, [`VirtioNet::poll_controller`] too: in a panic that
/// interrupted who has the transport, for ever.
///
/// The transport may borrow. A queue that was taken out of the driver does not outlive
/// what is borrowed, because its [`Bell`] has the transport in its type:
///
/// ```compile_fail,E0597
/// # use kickpath_virtio_net::{net::*, transport::adapter::{Adapter, Bell}};
/// # use virtio_drivers::{Hal, transport::mmio::MmioTransport};
/// # fn take<'r, H: Hal>(find: fn(&'r mut u32) -> VirtioNet<H, Adapter<MmioTransport<'r>>>)
/// # -> Result<TakenPair<H, Bell<MmioTransport<'r>>>, NetError> {
/// let mut registers = 0;
/// let mut net = find(&mut registers);
/// net.take_pair(0)
/// # }
/// ```
///
/// [`VirtioNet::poll_controller`]: crate::net::VirtioNet::poll_controller
pub struct Adapter<T: Transport>(Arc<Shared<T>>);

/// How a queue over an [`Adapter`] tells the device.
pub struct Bell<T: Transport> {
    shared: Arc<Shared<T>>,
    queue: u16,
}

struct Shared<T: Transport> {
    /// Nobody has the turn ([`FREE`]), somebody has ([`TAKEN`]), or somebody has and
    /// notifies all queues at its end ([`MISSED`]).
    turn: AtomicU8,
    /// For whoever has the turn: the transport, and the queues set up since a reset.
    state: UnsafeCell<(T, Vec<u16>)>,
}

const FREE: u8 = 0;
const TAKEN: u8 = 1;
const MISSED: u8 = 2;

// SAFETY: `state` is accessed by whoever has the turn, alone.
unsafe impl<T: Transport + Send> Sync for Shared<T> {}

impl<T: Transport> Shared<T> {
    /// Waits for the turn.
    fn with<R>(&self, work: impl FnOnce(&mut T, &mut Vec<u16>) -> R) -> R {
        while !self.try_turn() {
            spin_loop();
        }
        self.with_turn(work)
    }

    fn try_turn(&self) -> bool {
        let turn = &self.turn;
        let taken = turn.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed);
        taken.is_ok()
    }

    /// Works with the turn, which the caller has and which ends here.
    fn with_turn<R>(&self, work: impl FnOnce(&mut T, &mut Vec<u16>) -> R) -> R {
        let turn = Turn(self);
        // SAFETY: there is one turn, so nobody else has a reference.
        let (transport, queues) = unsafe { &mut *turn.0.state.get() };
        barrier::before_register();
        let result = work(transport, queues);
        barrier::after_register();
        result
    }
}

/// The turn; it ends also where a transport panics.
struct Turn<'s, T: Transport>(&'s Shared<T>);

impl<T: Transport> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        let Shared { turn, state } = self.0;
        let end = || turn.compare_exchange(TAKEN, FREE, Ordering::Release, Ordering::Relaxed);
        while end().is_err() {
            // Acquire: the device is to see what they published who could not tell it.
            turn.swap(TAKEN, Ordering::Acquire);
            // SAFETY: as in `with_turn`, whose references are gone.
            let (transport, queues) = unsafe { &mut *state.get() };
            barrier::before_register();
            queues.iter().for_each(|queue| transport.notify(*queue));
        }
    }
}

impl<T: Transport> Notify for Bell<T> {
    fn queue(&self) -> u16 {
        self.queue
    }

    fn ring(&self) {
        barrier::before_register();
        if self.shared.try_turn() {
            self.shared.with_turn(|it, _| it.notify(self.queue));
        } else if self.shared.turn.swap(MISSED, Ordering::AcqRel) == FREE {
            // It was free again: the turn is ours, and all are notified at its end.
            self.shared.with_turn(|_, _| ());
        }
    }
}

impl<T: Transport> Clone for Bell<T> {
    fn clone(&self) -> Self {
        let shared = Arc::clone(&self.shared);
        Self { shared, ..*self }
    }
}

impl<T: Transport> fmt::Display for Bell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call of the transport for queue {}", self.queue)
    }
}

impl<T: Transport> Adapter<T> {
    /// Takes a transport.
    pub fn new(transport: T) -> Self {
        Self(Arc::new(Shared {
            turn: AtomicU8::new(FREE),
            state: UnsafeCell::new((transport, Vec::new())),
        }))
    }
}

/// Calls the transport.
macro_rules! in_turn {
    ($adapter:expr, $transport:ident => $call:expr) => {
        $adapter.0.with(|$transport, _| $call)
    };
}

impl<T: Transport> Transport for Adapter<T> {
    forward! { in_turn
        fn device_type(&self) -> DeviceType;
        fn get_status(&self) -> DeviceStatus;
        fn requires_legacy_layout(&self) -> bool;
        fn read_config_generation(&self) -> u32;
    }
    forward! { in_turn
        fn read_device_features(&mut self) -> u64;
        fn write_driver_features(&mut self, features: u64);
        fn max_queue_size(&mut self, queue: u16) -> u32;
        fn set_guest_page_size(&mut self, size: u32);
        fn queue_unset(&mut self, queue: u16);
        fn notify(&mut self, queue: u16);
        fn queue_set(&mut self, queue: u16, size: u32, a: PhysAddr, b: PhysAddr, c: PhysAddr);
        fn queue_used(&mut self, queue: u16) -> bool;
        fn ack_interrupt(&mut self) -> InterruptStatus;
    }

    fn set_status(&mut self, mut status: DeviceStatus) {
        // A legacy device has no FEATURES_OK (specification 3.1.2).
        if self.requires_legacy_layout() {
            status.remove(DeviceStatus::FEATURES_OK);
        }
        in_turn!(self, transport => transport.set_status(status));
    }

    fn read_config_space<V: FromBytes + IntoBytes>(&self, offset: usize) -> Result<V, Error> {
        in_turn!(self, transport => transport.read_config_space(offset))
    }

    fn write_config_space<V: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: V,
    ) -> Result<(), Error> {
        in_turn!(self, transport => transport.write_config_space(offset, value))
    }
}

impl<T: Transport> ConfigOps for Adapter<T> {
    type Notify = Bell<T>;

    fn bus_name(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a transport of virtio-drivers")
    }

    fn reset(&mut self) -> Result<(), TransportError> {
        steps::reset(self, steps::RESET_READS)?;
        self.0.with(|_, queues| queues.clear());
        // Legacy virtio-mmio forgets it at a reset.
        self.set_guest_page_size(PAGE_SIZE as u32);
        Ok(())
    }

    fn finalize_features(&mut self, features: u64) -> Result<(), TransportError> {
        if self.requires_legacy_layout() {
            steps::finalize_legacy_features(self, features)
        } else {
            steps::finalize_features(self, features)
        }
    }

    /// Enables the queue as well: `Transport::queue_set` knows no other way.
    fn setup_queue(&mut self, queue: u16, rings: RingAddresses) -> Result<Bell<T>, TransportError> {
        steps::check_size(queue, rings.size, self.max_queue_size(queue))?;
        if self.queue_used(queue) {
            return Err(TransportError::QueueInUse { queue });
        }
        if self.requires_legacy_layout() {
            // The transports of that crate panic when a legacy device cannot
            // address the ring.
            steps::page_frame(queue, rings.descriptors)?;
        }
        let [a, b, c] = [rings.descriptors, rings.driver, rings.device];
        self.queue_set(queue, rings.size.into(), a, b, c);
        self.0.with(|_, queues| queues.push(queue));
        let shared = Arc::clone(&self.0);
        Ok(Bell { shared, queue })
    }

    fn enable_queue(&mut self, queue: u16) -> Result<(), TransportError> {
        if self.queue_used(queue) {
            Ok(())
        } else {
            Err(TransportError::QueueNotEnabled { queue })
        }
    }

    /// A trait without an error for them, and without the data of a
    /// notification.
    fn unsupported_features(&self) -> u64 {
        NOTIFICATION_DATA | RING_RESET
    }

    fn isr(&self) -> Option<IsrRegister> {
        None
    }

    /// Always 0: that crate does not count.
    fn register_accesses(&self) -> u64 {
        0
    }
}

impl<T: Transport> Drop for Adapter<T> {
    fn drop(&mut self) {
        steps::shut_down(self);
    }
}
