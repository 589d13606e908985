//! The steps of a device's way to life and back that are the same over every
//! transport (specification 3.1).

use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_drivers::{PAGE_SIZE, PhysAddr};

use super::{BusName, ConfigOps, RingAddresses, TransportError, VERSION_1, is_gone};

/// Status reads until a reset counts as failed. Each is an exit of a
/// microsecond or more.
pub(super) const RESET_READS: u32 = 100_000;

/// Resets the device and waits until it says that it is done, by `reads` reads
/// of its status at most.
pub(super) fn reset<T: Transport>(transport: &mut T, reads: u32) -> Result<(), TransportError> {
    transport.set_status(DeviceStatus::empty());
    // Specification 4.1.4.3.2: the driver waits for a read of 0. The first
    // flushes the write out (Linux `vp_reset`).
    let mut status = transport.get_status();
    for _ in 0..reads {
        if status.is_empty() {
            return Ok(());
        }
        if is_gone(status) {
            return Err(TransportError::Gone);
        }
        core::hint::spin_loop();
        status = transport.get_status();
    }
    Err(TransportError::ResetTimeout {
        status: status.bits(),
    })
}

/// Resets a device whose transport is dropped: it must not touch memory that
/// its driver gives back.
pub(super) fn shut_down<T: ConfigOps>(transport: &mut T) {
    if let Err(error) = transport.reset() {
        log::error!("{}: {error}", BusName(transport));
    }
    transport.msix_disable();
}

/// Agrees on features where there are 64 of them, and FEATURES_OK.
pub(super) fn finalize_features<T: Transport>(
    transport: &mut T,
    features: u64,
) -> Result<(), TransportError> {
    if features & VERSION_1 == 0 {
        return Err(TransportError::NoVersion1);
    }
    transport.write_driver_features(features);
    // Specification 3.1.1, steps 5 and 6: it is set, and has to stay.
    let status = transport.get_status() | DeviceStatus::FEATURES_OK;
    transport.set_status(status);
    if transport.get_status().contains(DeviceStatus::FEATURES_OK) {
        Ok(())
    } else {
        Err(TransportError::FeaturesRefused { features })
    }
}

/// Agrees on features with a legacy device, which has 32 of them and no
/// FEATURES_OK (specification 3.1.2): what is written is agreed.
pub(super) fn finalize_legacy_features<T: Transport>(
    transport: &mut T,
    features: u64,
) -> Result<(), TransportError> {
    if features > u64::from(u32::MAX) {
        return Err(TransportError::FeaturesRefused { features });
    }
    transport.write_driver_features(features);
    Ok(())
}

/// Checks the size of a queue's rings against the most that the device takes,
/// where the driver has the choice.
pub(super) fn check_size(queue: u16, size: u16, max: u32) -> Result<(), TransportError> {
    if max == 0 {
        return Err(TransportError::NoSuchQueue { queue });
    }
    if size == 0 || u32::from(size) > max {
        return Err(TransportError::QueueSizeRefused { queue, size, max });
    }
    Ok(())
}

/// What goes into a legacy interface's QUEUE_PFN: the number of the page at
/// which the rings start.
pub(super) fn page_frame(queue: u16, address: PhysAddr) -> Result<u32, TransportError> {
    let page = PAGE_SIZE as PhysAddr;
    match u32::try_from(address / page) {
        Ok(frame) if address.is_multiple_of(page) => Ok(frame),
        _ => Err(TransportError::AddressTooHigh { queue, address }),
    }
}

/// [`Transport::queue_set`], which has no way to say what went wrong but the
/// log, by [`ConfigOps::setup_queue`] and [`ConfigOps::enable_queue`].
pub(super) fn queue_set<T: ConfigOps>(
    transport: &mut T,
    queue: u16,
    size: u32,
    [descriptors, driver, device]: [PhysAddr; 3],
) {
    let rings = RingAddresses {
        size: u16::try_from(size).unwrap_or(0),
        descriptors,
        driver,
        device,
    };
    if let Err(error) = transport
        .setup_queue(queue, rings)
        .and_then(|_| transport.enable_queue(queue))
    {
        log::error!("{}: {error}", BusName(transport));
    }
}

/// The method that does so.
macro_rules! queue_set_method {
    () => {
        fn queue_set(&mut self, queue: u16, size: u32, a: PhysAddr, b: PhysAddr, c: PhysAddr) {
            steps::queue_set(self, queue, size, [a, b, c]);
        }
    };
}
pub(super) use queue_set_method;
