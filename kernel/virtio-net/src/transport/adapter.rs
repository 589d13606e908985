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
use core::fmt;
use core::mem::transmute;

use spin::Mutex;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PAGE_SIZE, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::isr::IsrRegister;
use super::{
    ConfigOps, NOTIFICATION_DATA, RING_RESET, RingAddresses, TransportError, forward, steps,
};
use crate::barrier;
use crate::doorbell::Doorbell;

/// A transport of `virtio-drivers`, shared between the driver and its doorbells.
///
/// There has to be a lock, and the transport has to be `'static`: `Transport::notify`
/// takes `&mut self`, while a kick may come from any CPU, by a queue that was taken out
/// of the driver (`VirtioNet::take_pair`) and has no lifetime, as `mem::forget` of the
/// driver would end any. Transports that are one register a kick,
/// such as [`ModernPciTransport`], need neither.
///
/// The lock is taken for every access. Interrupt handlers must keep away from
/// it, and so must [`VirtioNet::poll_controller`] in a panic: it may interrupt
/// who holds the lock, and would wait for ever.
///
/// [`VirtioNet::poll_controller`]: crate::net::VirtioNet::poll_controller
/// [`ModernPciTransport`]: super::modern_pci::ModernPciTransport
pub struct Adapter<T: Transport> {
    transport: Arc<Mutex<T>>,
    notify: Arc<Notify<'static>>,
}

type Notify<'t> = dyn Fn(u16) + Send + Sync + 't;

impl<T: Transport + Send> Adapter<T> {
    /// Takes a transport.
    pub fn new(transport: T) -> Self
    where
        T: 'static,
    {
        // SAFETY: it borrows nothing.
        unsafe { Self::borrowing(transport) }
    }

    /// Takes a transport that borrows something, such as the mapping of its
    /// registers.
    ///
    /// # Safety
    ///
    /// What it borrows must outlive this value and every doorbell that it makes:
    /// a pair that was taken from the driver has some.
    pub unsafe fn borrowing(transport: T) -> Self {
        let transport = Arc::new(Mutex::new(transport));
        let shared = Arc::clone(&transport);
        let notify: Arc<Notify<'_>> = Arc::new(move |queue| {
            barrier::before_register();
            shared.lock().notify(queue);
        });
        // SAFETY: the types differ in a lifetime, for which the caller answers.
        let notify = unsafe { transmute::<Arc<Notify<'_>>, Arc<Notify<'static>>>(notify) };
        Self { transport, notify }
    }
}

/// Calls the transport.
macro_rules! locked {
    ($adapter:expr, $transport:ident => $call:expr) => {{
        let mut guard = $adapter.transport.lock();
        let $transport = &mut *guard;
        $call
    }};
}

impl<T: Transport> Transport for Adapter<T> {
    forward! { locked
        fn device_type(&self) -> DeviceType;
        fn requires_legacy_layout(&self) -> bool;
        fn read_config_generation(&self) -> u32;
    }
    forward! { locked
        fn read_device_features(&mut self) -> u64;
        fn write_driver_features(&mut self, features: u64);
        fn max_queue_size(&mut self, queue: u16) -> u32;
        fn set_guest_page_size(&mut self, size: u32);
        fn queue_unset(&mut self, queue: u16);
        fn queue_used(&mut self, queue: u16) -> bool;
    }

    fn notify(&mut self, queue: u16) {
        (self.notify)(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        let status = self.transport.lock().get_status();
        barrier::after_register();
        status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        let mut transport = self.transport.lock();
        // A legacy device has no FEATURES_OK (specification 3.1.2).
        let status = if transport.requires_legacy_layout() {
            status - DeviceStatus::FEATURES_OK
        } else {
            status
        };
        barrier::before_register();
        transport.set_status(status);
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        barrier::before_register();
        self.transport
            .lock()
            .queue_set(queue, size, descriptors, driver_area, device_area);
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let status = self.transport.lock().ack_interrupt();
        barrier::after_register();
        status
    }

    fn read_config_space<V: FromBytes + IntoBytes>(&self, offset: usize) -> Result<V, Error> {
        self.transport.lock().read_config_space(offset)
    }

    fn write_config_space<V: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: V,
    ) -> Result<(), Error> {
        self.transport.lock().write_config_space(offset, value)
    }
}

impl<T: Transport> ConfigOps for Adapter<T> {
    fn bus_name(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a transport of virtio-drivers")
    }

    fn reset(&mut self) -> Result<(), TransportError> {
        steps::reset(self, steps::RESET_READS)?;
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
    fn setup_queue(
        &mut self,
        queue: u16,
        rings: RingAddresses,
    ) -> Result<Doorbell, TransportError> {
        steps::check_size(queue, rings.size, self.max_queue_size(queue))?;
        if self.queue_used(queue) {
            return Err(TransportError::QueueInUse { queue });
        }
        if self.requires_legacy_layout() {
            // The transports of that crate panic when a legacy device cannot
            // address the ring.
            steps::page_frame(queue, rings.descriptors)?;
        }
        self.queue_set(
            queue,
            u32::from(rings.size),
            rings.descriptors,
            rings.driver,
            rings.device,
        );
        Ok(Doorbell::Call {
            function: Arc::clone(&self.notify),
            queue,
        })
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
