//! What the device sees of a packed ring: descriptors and event suppression
//! structures, each part accessed by one atomic load or store.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::queue::dma::DmaRegion;
use crate::queue::error::QueueError;
use crate::queue::indirect::DESCRIPTOR_SIZE;

/// The event suppression structures have cache lines of their own, because
/// the one is written by the driver and the other by the device. In bytes.
const EVENT_ALIGN: usize = 64;

/// Where a ring's parts lie within its memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Offset of the driver event suppression structure.
    pub driver: usize,
    /// Offset of the device event suppression structure.
    pub device: usize,
    /// Size of the whole.
    pub total: usize,
}

impl Layout {
    /// The layout for `size` descriptors.
    pub const fn new(size: u16) -> Self {
        let driver = (DESCRIPTOR_SIZE * size as usize).next_multiple_of(EVENT_ALIGN);
        let device = driver + EVENT_ALIGN;
        Self {
            driver,
            device,
            total: device + size_of::<u32>(),
        }
    }
}

/// The memory of a packed ring.
pub(super) struct RingMemory<H: Hal> {
    region: DmaRegion<H>,
    layout: Layout,
}

impl<H: Hal> RingMemory<H> {
    /// Allocates the memory of a queue's ring of `size` descriptors, zeroed.
    pub(super) fn new(queue: u16, size: u16) -> Result<Self, QueueError> {
        let layout = Layout::new(size);
        let region =
            DmaRegion::new(layout.total, BufferDirection::Both).ok_or(QueueError::NoMemory {
                queue,
                pages: layout.total.div_ceil(virtio_drivers::PAGE_SIZE),
            })?;
        Ok(Self { region, layout })
    }

    /// Where descriptors, driver and device event suppression structure are,
    /// as the device sees them.
    pub(super) fn areas(&self) -> [PhysAddr; 3] {
        let start = self.region.physical();
        [
            start,
            start + self.layout.driver as u64,
            start + self.layout.device as u64,
        ]
    }

    /// Byte `offset` of descriptor `index`.
    #[inline]
    fn descriptor(&self, index: u16, offset: usize) -> NonNull<u8> {
        let at = DESCRIPTOR_SIZE * usize::from(index) + offset;
        debug_assert!(at < self.layout.driver && offset < DESCRIPTOR_SIZE);
        // SAFETY: `index` is that of a position in the ring, and so below its
        // size; the memory starts with as many descriptors.
        unsafe { self.region.pointer().add(at) }
    }

    #[inline]
    pub(super) fn address(&self, index: u16) -> &AtomicU64 {
        // SAFETY: within the ring, 8-byte aligned; every access is atomic.
        unsafe { self.descriptor(index, 0).cast().as_ref() }
    }

    #[inline]
    pub(super) fn length(&self, index: u16) -> &AtomicU32 {
        // SAFETY: within the ring, 4-byte aligned; every access is atomic.
        unsafe { self.descriptor(index, 8).cast().as_ref() }
    }

    #[inline]
    pub(super) fn id(&self, index: u16) -> &AtomicU16 {
        // SAFETY: within the ring, 2-byte aligned; every access is atomic.
        unsafe { self.descriptor(index, 12).cast().as_ref() }
    }

    #[inline]
    pub(super) fn flags(&self, index: u16) -> &AtomicU16 {
        // SAFETY: within the ring, 2-byte aligned; every access is atomic.
        unsafe { self.descriptor(index, 14).cast().as_ref() }
    }

    /// An event suppression structure: position and wrap counter in bits 0 to
    /// 15, flags in bits 16 to 31.
    #[inline]
    fn event(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the layout has four bytes there, 4-byte aligned; every
        // access is atomic.
        unsafe { self.region.pointer().add(offset).cast().as_ref() }
    }

    /// When the driver wants interrupts.
    #[inline]
    pub(super) fn driver_event(&self) -> &AtomicU32 {
        self.event(self.layout.driver)
    }

    /// When the device wants kicks.
    #[inline]
    pub(super) fn device_event(&self) -> &AtomicU32 {
        self.event(self.layout.device)
    }
}
