//! What the rings of all kinds and layouts have in common.

use virtio_drivers::PhysAddr;

use super::error::QueueError;
use super::shape::RingShape;

/// What a [`Virtqueue`](super::Virtqueue) needs of its ring, whatever goes into that.
pub trait QueueRing: Sized {
    /// Allocates a ring of `size` descriptors for queue number `queue`.
    ///
    /// # Errors
    ///
    /// [`QueueError::BadSize`] for a size that such a ring cannot have or that does not
    /// hold a single chain, [`QueueError::NoMemory`] when the `Hal` has no such memory.
    fn new(queue: u16, size: u32, shape: RingShape) -> Result<Self, QueueError>;

    /// Addresses of the descriptor, the driver and the device area as the device sees
    /// them: in the split layout those of the descriptor table, the available and the
    /// used ring, in the packed layout those of the descriptor ring, the driver and the
    /// device event suppression structure (specification 2.7 and 2.8).
    fn areas(&self) -> [PhysAddr; 3];

    /// Index of the queue at the device, 0 to 65535.
    fn queue(&self) -> u16;

    /// Number of descriptors, 1 to [`MAX_SIZE`](super::MAX_SIZE); in the split layout a power of two.
    fn size(&self) -> u16;

    /// Number of chains that can be added, 0 to [`Self::size`].
    fn free(&self) -> u16;

    /// Number of chains that the device was shown and that were not popped yet.
    fn published(&self) -> u16;

    /// Count of chains added, modulo 65536, including what is not published
    /// yet; in the split layout the driver's index of the available ring.
    fn avail_idx(&self) -> u16;

    /// Count of chains taken back, modulo 65536; in the split layout how far
    /// the driver has consumed the used ring.
    fn last_used_idx(&self) -> u16;

    /// Count of chains that the device has used, modulo 65536, looked up now. In the
    /// split layout that is the index of the used ring as it is there; in the packed
    /// layout the descriptors that are marked as used are counted.
    fn used_idx(&self) -> u16;

    /// Whether chains were added that [`Self::publish`] has not shown to the device yet.
    fn has_unpublished(&self) -> bool;

    /// Shows all added chains to the device and returns whether it wants to
    /// be notified of them (Linux `virtqueue_kick_prepare`).
    fn publish(&mut self) -> bool;

    /// Whether a notification carries [`Self::notification_data`].
    fn notifies_with_data(&self) -> bool;

    /// Where the next chain goes: in the split layout the available index; in the packed
    /// one the next descriptor in bits 0 to 14 and the wrap counter in bit 15.
    fn next_avail(&self) -> u16;

    /// What a notification says with `VIRTIO_F_NOTIFICATION_DATA`: how far
    /// the driver has come, [`Self::next_avail`] in bits 16 to 31, and the queue's
    /// index in bits 0 to 15 (specification 2.9 and 4.1.5.2).
    fn notification_data(&self) -> u32 {
        u32::from(self.next_avail()) << 16 | u32::from(self.queue())
    }

    /// Whether the device has used a chain that was not popped yet (Linux
    /// `more_used`; specification 2.7.14 and 2.8.22).
    #[doc(alias = "more_used")]
    fn has_used(&self) -> bool;

    /// Asks the device not to interrupt, as far as it obeys (Linux
    /// `virtqueue_disable_cb`; specification 2.7.7 and 2.8.10).
    fn disable_interrupts(&mut self);

    /// Asks for an interrupt once `more` further chains are used (with flags: at the next
    /// one), and returns whether enough are used already; then no interrupt may come and
    /// the caller must poll. `more` is less than [`Self::published`], or 0; with more no
    /// interrupt comes (Linux `virtqueue_enable_cb` and `virtqueue_enable_cb_delayed`;
    /// specification 2.7.7 and 2.8.10).
    fn enable_interrupts_after(&mut self, more: u16) -> bool;
}
