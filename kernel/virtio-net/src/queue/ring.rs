//! A virtqueue's ring in the layout that was negotiated, with no hardware in
//! it.

use virtio_drivers::{Hal, PhysAddr};

use super::chain::{Buffer, Head, Used};
use super::error::{BrokenReason, QueueError};
use super::event::EventMode;
use super::in_order::InOrderRing;
use super::indirect::IndirectTables;
use super::packed::PackedRing;
use super::slots::{ChainState, Slots};
use super::split::{self, SplitRing};

/// Largest size of a virtqueue in descriptors, in either layout
/// (specification 2.7 and 2.8.10.1).
pub const MAX_SIZE: u16 = split::MAX_SIZE;

/// How a ring lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RingLayout {
    /// Three parts, one of them written by the device (specification 2.7).
    #[default]
    Split,
    /// One ring that both sides write (specification 2.8,
    /// `VIRTIO_F_RING_PACKED`).
    Packed,
}

/// What was negotiated about the form of the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingShape {
    /// How the ring lies in memory.
    pub layout: RingLayout,
    /// How the two sides tell each other of events.
    pub mode: EventMode,
    /// Buffers that the longest chain has, 1 to 32768.
    pub chain: u16,
    /// Whether a chain of several buffers goes into a table of its own
    /// (`VIRTIO_F_INDIRECT_DESC`).
    pub indirect: bool,
    /// Whether the device uses buffers in the order in which it got them
    /// (`VIRTIO_F_IN_ORDER`). A split ring for chains of several buffers needs
    /// `indirect` too: without, its slots leave gaps where the device may expect
    /// the next chain (specification 2.7.9).
    pub in_order: bool,
    /// Whether a notification says how far the driver has come
    /// (`VIRTIO_F_NOTIFICATION_DATA`).
    pub notification_data: bool,
    /// Largest number of descriptors that the driver wants, 1 to 32768. The legacy
    /// interface leaves no choice: the device's size is taken there.
    pub largest: u16,
}

impl RingShape {
    /// A split ring for chains of up to `chain` buffers, without any feature
    /// but that of `mode`.
    pub const fn split(chain: u16, mode: EventMode) -> Self {
        Self {
            layout: RingLayout::Split,
            mode,
            chain,
            indirect: false,
            in_order: false,
            notification_data: false,
            largest: MAX_SIZE,
        }
    }

    /// The size that is taken of a device that offers up to `max` descriptors
    /// and lets the driver choose (specification 4.1.5.1.3).
    pub fn size(&self, max: u32) -> u32 {
        let size = max.min(u32::from(self.largest));
        match self.layout {
            // The power of two below.
            RingLayout::Split => size.checked_ilog2().map_or(0, |log| 1 << log),
            RingLayout::Packed => size,
        }
    }

    /// The same with a packed ring.
    pub const fn packed(chain: u16, mode: EventMode) -> Self {
        Self {
            layout: RingLayout::Packed,
            ..Self::split(chain, mode)
        }
    }
}

/// An entry that says what the device has used: nothing of it is checked.
pub(super) struct UsedEntry {
    /// Its place in the ring.
    pub(super) entry: u16,
    /// The id of the chain.
    pub(super) id: u32,
    /// Bytes written.
    pub(super) length: u32,
}

/// What the layouts do, each in its own memory. All that is common to them is
/// in [`Slots`].
pub(super) trait RingFormat {
    /// Addresses of the descriptor, the driver and the device area.
    fn areas(&self) -> [PhysAddr; 3];

    /// See [`Ring::add_at`].
    unsafe fn add_at(
        &mut self,
        slots: &mut Slots,
        head: Head,
        buffers: &[Buffer],
        token: u16,
    ) -> Result<(), QueueError>;

    /// See [`Ring::publish`].
    fn publish(&mut self, slots: &mut Slots) -> bool;

    /// See [`Ring::notification_data`].
    fn next_avail(&self, slots: &Slots) -> u16;

    /// See [`Ring::used_idx`].
    /// `pending` is the id of the next used entry where it was read already.
    fn used_idx(&self, slots: &Slots, pending: Option<u32>) -> u16;

    /// See [`Ring::has_used`].
    fn has_used(&self, slots: &Slots) -> bool;

    /// See [`Ring::pop_used`].
    fn pop_used(&mut self, slots: &mut Slots) -> Result<Option<Used>, QueueError>;

    /// See [`Ring::discard_used`].
    fn discard_used(&mut self, slots: &mut Slots) -> Result<(), QueueError>;

    /// The next used entry, which stays the next. `slots.seen_used_idx` says
    /// then how many chains it may stand for with `VIRTIO_F_IN_ORDER`.
    fn read_used(&mut self, slots: &mut Slots) -> Result<Option<UsedEntry>, QueueError>;

    /// Goes on behind a chain in this state: the device has used it.
    fn skip_used(&mut self, state: ChainState);

    /// See [`Ring::disable_interrupts`].
    fn disable_interrupts(&mut self, slots: &Slots);

    /// See [`Ring::enable_interrupts_after`].
    fn enable_interrupts_after(&mut self, slots: &Slots, more: u16) -> bool;
}

/// The ring by layout. A split ring whose chains come back in any order is
/// what the code is laid out for; the others are a jump away.
enum Format<H: Hal> {
    Split(SplitRing<H>),
    Packed(PackedRing<H>),
    SplitInOrder(InOrderRing<SplitRing<H>>),
    PackedInOrder(InOrderRing<PackedRing<H>>),
}

/// Calls the same method of [`RingFormat`] whatever the layout.
macro_rules! by_format {
    ($format:expr, $ring:ident => $call:expr) => {
        match $format {
            Format::Split($ring) => $call,
            Format::Packed($ring) => $call,
            Format::SplitInOrder($ring) => $call,
            Format::PackedInOrder($ring) => $call,
        }
    };
}

/// A virtqueue's memory and what the driver knows of it.
///
/// A slot holds one chain. Slots are numbered as the descriptors of the ring
/// are, in steps of the longest chain's length where there are no indirect
/// descriptors.
pub struct Ring<H: Hal> {
    slots: Slots,
    format: Format<H>,
    /// `VIRTIO_F_NOTIFICATION_DATA`.
    notification_data: bool,
}

impl<H: Hal> Ring<H> {
    /// Allocates a ring of `size` descriptors for queue number `queue`. It
    /// holds `size` chains of one buffer or, of up to `shape.chain` (rounded
    /// up to a power of two), `size / shape.chain` of them; with indirect
    /// descriptors always `size`.
    ///
    /// # Errors
    ///
    /// [`QueueError::BadSize`] for a size that such a ring cannot have or that
    /// does not hold a single chain, [`QueueError::NoMemory`] when the `Hal`
    /// has no such memory.
    pub fn new(queue: u16, size: u32, shape: RingShape) -> Result<Self, QueueError> {
        let bad_size = QueueError::BadSize {
            queue,
            size,
            layout: shape.layout,
        };
        let size = match u16::try_from(size) {
            Ok(size) if (1..=MAX_SIZE).contains(&size) => size,
            _ => return Err(bad_size),
        };
        if shape.layout == RingLayout::Split && !size.is_power_of_two() {
            return Err(bad_size);
        }
        // No chain, direct or not, may be longer than the ring (specification
        // 2.7.5.3.1 and 2.8.7).
        let most = match shape.chain.max(1).checked_next_power_of_two() {
            Some(most) if most <= size => most,
            _ => return Err(bad_size),
        };
        let indirect = shape.indirect && most > 1;
        let slots = Slots::new(queue, size, if indirect { 1 } else { most });
        let tables = if indirect {
            let tables = IndirectTables::new(size, most);
            Some(tables.ok_or(QueueError::NoMemory {
                queue,
                pages: IndirectTables::<H>::bytes(size, most).div_ceil(virtio_drivers::PAGE_SIZE),
            })?)
        } else {
            None
        };
        let format = match (shape.layout, shape.in_order) {
            (RingLayout::Split, in_order) => {
                let ring = SplitRing::new(&slots, most, shape.mode, tables)?;
                if in_order {
                    Format::SplitInOrder(InOrderRing::new(ring))
                } else {
                    Format::Split(ring)
                }
            }
            (RingLayout::Packed, in_order) => {
                let ring = PackedRing::new(&slots, most, shape.mode, in_order, tables)?;
                if in_order {
                    Format::PackedInOrder(InOrderRing::new(ring))
                } else {
                    Format::Packed(ring)
                }
            }
        };
        let mut ring = Self {
            slots,
            format,
            notification_data: shape.notification_data,
        };
        ring.disable_interrupts();
        Ok(ring)
    }

    /// How the ring lies in memory.
    pub fn layout(&self) -> RingLayout {
        match self.format {
            Format::Split(_) | Format::SplitInOrder(_) => RingLayout::Split,
            Format::Packed(_) | Format::PackedInOrder(_) => RingLayout::Packed,
        }
    }

    /// Address of the descriptor table or ring as the device sees it.
    pub fn descriptor_area(&self) -> PhysAddr {
        by_format!(&self.format, ring => ring.areas()[0])
    }

    /// Address of the available ring, in the packed layout of the driver event
    /// suppression structure, as the device sees it.
    pub fn driver_area(&self) -> PhysAddr {
        by_format!(&self.format, ring => ring.areas()[1])
    }

    /// Address of the used ring, in the packed layout of the device event
    /// suppression structure, as the device sees it.
    pub fn device_area(&self) -> PhysAddr {
        by_format!(&self.format, ring => ring.areas()[2])
    }

    /// Index of the queue at the device, 0 to 65535.
    #[inline]
    pub fn queue(&self) -> u16 {
        self.slots.queue
    }

    /// Number of descriptors, 1 to [`MAX_SIZE`]; in the split layout a power of
    /// two.
    #[inline]
    pub fn size(&self) -> u16 {
        self.slots.size()
    }

    /// Steps in which slots are numbered: descriptors a slot.
    pub fn slot_length(&self) -> u16 {
        self.slots.slot_length()
    }

    /// Number of chains that the ring holds, 1 to [`Self::size`].
    #[inline]
    pub fn capacity(&self) -> u16 {
        self.slots.capacity()
    }

    /// Chains added since the ring was made.
    pub fn added(&self) -> u64 {
        self.slots.added()
    }

    /// Number of chains that can be added, 0 to [`Self::capacity`].
    #[inline]
    pub fn free(&self) -> u16 {
        self.slots.free()
    }

    /// Number of chains that were added and not popped yet, 0 to
    /// [`Self::capacity`].
    #[inline]
    pub fn outstanding(&self) -> u16 {
        self.slots.outstanding()
    }

    /// Number of chains that the device was shown and that were not popped yet,
    /// 0 to [`Self::outstanding`].
    #[inline]
    pub fn published(&self) -> u16 {
        self.slots.published()
    }

    /// Count of chains added, modulo 65536, including what is not published
    /// yet; in the split layout the driver's index of the available ring.
    pub fn avail_idx(&self) -> u16 {
        self.slots.avail_idx
    }

    /// Count of chains taken back, modulo 65536; in the split layout how far
    /// the driver has consumed the used ring.
    pub fn last_used_idx(&self) -> u16 {
        self.slots.last_used_idx
    }

    /// Count of chains that the device has used, modulo 65536, looked up now.
    /// In the split layout that is the index of the used ring as it is there;
    /// in the packed layout the descriptors that are marked as used are
    /// counted.
    #[inline]
    pub fn used_idx(&self) -> u16 {
        by_format!(&self.format, ring => ring.used_idx(&self.slots, None))
    }

    /// Makes the ring unusable: the device has broken the protocol, though not
    /// in the ring. Returns the error of every further operation.
    pub fn mark_broken(&mut self, reason: BrokenReason) -> QueueError {
        self.slots.break_down(reason)
    }

    /// Why the ring is unusable, if the device broke the protocol.
    pub fn broken(&self) -> Option<BrokenReason> {
        self.slots.broken()
    }

    /// Whether chains were added that [`Self::publish`] has not shown to the
    /// device yet.
    #[inline]
    pub fn has_unpublished(&self) -> bool {
        self.slots.unpublished() != 0
    }

    /// The slot that the next chain will take, if there is room for one and the
    /// ring is not broken. Asking changes nothing (Linux `vq->free_head`).
    #[inline]
    pub fn next_head(&self) -> Option<Head> {
        self.slots.next_head()
    }

    /// As [`Self::next_head`].
    ///
    /// # Errors
    ///
    /// [`QueueError::Full`], [`QueueError::Broken`].
    #[inline]
    pub fn require_head(&self) -> Result<Head, QueueError> {
        match self.next_head() {
            Some(head) => Ok(head),
            None => Err(self.slots.refusal()),
        }
    }

    /// Puts a chain of buffers into the next slot and offers it to the device
    /// (Linux `virtqueue_add_split` and `virtqueue_add_packed`). The device
    /// sees it after [`Self::publish`]. `token` comes back with it from
    /// [`Self::pop_used`].
    ///
    /// Buffers that the device reads must come before those it writes
    /// (specification 2.7.4.2 and 2.8.17).
    ///
    /// # Safety
    ///
    /// Until the chain comes back from [`Self::pop_used`], or the device or
    /// this queue has been reset, each buffer must be memory that the device
    /// may access at that address; a writable one may be accessed by nobody
    /// else, a readable one may be written by nobody.
    ///
    /// # Errors
    ///
    /// [`QueueError::Full`], [`QueueError::ChainLength`] for no buffers or
    /// more than a slot holds, [`QueueError::Broken`]. Nothing has changed
    /// then.
    #[inline]
    pub unsafe fn add(&mut self, buffers: &[Buffer], token: u16) -> Result<(), QueueError> {
        let head = self.require_head()?;
        // SAFETY: the caller's promise, and the head is the next one.
        unsafe { self.add_at(head, buffers, token) }
    }

    /// As [`Self::add`], for a caller that has asked for the slot already.
    ///
    /// # Safety
    ///
    /// As for [`Self::add`]; and `head` must come from this ring's
    /// [`Self::next_head`], with nothing added or popped in between.
    ///
    /// # Errors
    ///
    /// [`QueueError::ChainLength`].
    #[inline]
    pub unsafe fn add_at(
        &mut self,
        head: Head,
        buffers: &[Buffer],
        token: u16,
    ) -> Result<(), QueueError> {
        let slots = &mut self.slots;
        // SAFETY: the caller's promise.
        by_format!(&mut self.format, ring => unsafe { ring.add_at(slots, head, buffers, token) })
    }

    /// As [`Self::add_at`], for a chain of a single buffer, which every slot
    /// holds, and without a tracepoint: for a caller that has asked whether
    /// tracing is on.
    ///
    /// # Safety
    ///
    /// As for [`Self::add_at`].
    #[inline(always)]
    pub unsafe fn add_untraced(&mut self, head: Head, buffer: Buffer, token: u16) {
        match &mut self.format {
            // SAFETY: the caller's promise.
            Format::Split(ring) => unsafe {
                ring.add_untraced(&mut self.slots, head, buffer, token);
            },
            // SAFETY: the caller's promise.
            _ => unsafe {
                let Buffer {
                    address,
                    length,
                    writable,
                } = buffer;
                self.add_elsewhere(head, address, length, writable, token);
            },
        }
    }

    /// Says which buffer, for the device to read, each slot will hold whenever
    /// it is taken: a split ring's descriptors then keep all but the length.
    /// Nothing is added.
    pub fn prepare(&mut self, buffer: impl Fn(Head) -> Buffer) {
        if let Format::Split(ring) = &self.format {
            ring.prepare(&self.slots, buffer);
        }
    }

    /// As [`Self::add_untraced`], for the buffer that [`Self::prepare`] was told
    /// of, in any length.
    ///
    /// # Safety
    ///
    /// As for [`Self::add_at`]; and `buffer` must lie where that one does, and
    /// so must all that was added at this slot since.
    #[inline(always)]
    pub unsafe fn add_prepared(&mut self, head: Head, buffer: Buffer, token: u16) {
        match &self.format {
            // SAFETY: the caller's promise.
            Format::Split(ring) => unsafe {
                ring.add_prepared(&mut self.slots, head, buffer.length, token);
            },
            // SAFETY: the caller's promise.
            _ => unsafe { self.add_elsewhere(head, buffer.address, buffer.length, false, token) },
        }
    }

    /// As [`Self::add_untraced`], out of the way of the split layout's code. Its
    /// arguments go by registers, as a [`Buffer`] does not.
    ///
    /// # Safety
    ///
    /// As for [`Self::add_at`].
    #[cold]
    #[inline(never)]
    unsafe fn add_elsewhere(
        &mut self,
        head: Head,
        address: PhysAddr,
        length: u32,
        writable: bool,
        token: u16,
    ) {
        let buffer = Buffer::new(address, length, writable);
        // SAFETY: the caller's promise.
        let added = unsafe { self.add_at(head, &[buffer], token) };
        debug_assert!(added.is_ok());
    }

    /// Shows all added chains to the device and returns whether it wants to
    /// be notified of them (Linux `virtqueue_kick_prepare`).
    #[inline]
    pub fn publish(&mut self) -> bool {
        by_format!(&mut self.format, ring => ring.publish(&mut self.slots))
    }

    /// Whether a notification carries [`Self::notification_data`].
    #[inline]
    pub fn notifies_with_data(&self) -> bool {
        self.notification_data
    }

    /// What a notification says with `VIRTIO_F_NOTIFICATION_DATA`: how far
    /// the driver has come, in bits 16 to 31, and the queue's index in bits 0
    /// to 15 (specification 2.9 and 4.1.5.2). In the split layout bits 16 to
    /// 31 are the available index; in the packed one bits 16 to 30 are the
    /// next descriptor and bit 31 is the wrap counter.
    pub fn notification_data(&self) -> u32 {
        let next = by_format!(&self.format, ring => ring.next_avail(&self.slots));
        u32::from(next) << 16 | u32::from(self.queue())
    }

    /// Whether the device has used a chain that was not popped yet (Linux
    /// `more_used`; specification 2.7.14 and 2.8.22).
    #[doc(alias = "more_used")]
    #[inline]
    pub fn has_used(&self) -> bool {
        by_format!(&self.format, ring => ring.has_used(&self.slots))
    }

    /// Takes the next used chain, if there is one (Linux
    /// `virtqueue_get_buf_ctx`).
    ///
    /// # Errors
    ///
    /// [`QueueError::Broken`] when the device's index, id or length is
    /// impossible, and ever after.
    #[inline(never)]
    pub fn pop_used(&mut self) -> Result<Option<Used>, QueueError> {
        by_format!(&mut self.format, ring => ring.pop_used(&mut self.slots))
    }

    /// As [`Self::pop_used`] where that is quick: for the next of the chains
    /// that are known to be used, if there is nothing to report of it. `None`
    /// says no more than that [`Self::pop_used`] must be asked.
    #[inline(always)]
    pub fn pop_seen(&mut self) -> Option<Used> {
        match &self.format {
            Format::Split(ring) => ring.pop_seen(&mut self.slots),
            _ => None,
        }
    }

    /// Takes every used chain and forgets it: for a ring whose chains the
    /// device only reads, each in the buffer of its slot.
    ///
    /// # Errors
    ///
    /// As for [`Self::pop_used`], but lengths are not looked at.
    #[inline]
    pub fn discard_used(&mut self) -> Result<(), QueueError> {
        by_format!(&mut self.format, ring => ring.discard_used(&mut self.slots))
    }

    /// Asks the device not to interrupt, as far as it obeys (Linux
    /// `virtqueue_disable_cb`; specification 2.7.7 and 2.8.10).
    #[inline]
    pub fn disable_interrupts(&mut self) {
        by_format!(&mut self.format, ring => ring.disable_interrupts(&self.slots));
    }

    /// Asks for an interrupt once `more` further chains are used (with flags:
    /// at the next one), and returns whether enough are used already; then no
    /// interrupt may come and the caller must poll. `more` is less than
    /// [`Self::published`], or 0; with more no interrupt comes (Linux
    /// `virtqueue_enable_cb` and `virtqueue_enable_cb_delayed`; specification
    /// 2.7.7 and 2.8.10).
    #[inline]
    pub fn enable_interrupts_after(&mut self, more: u16) -> bool {
        by_format!(&mut self.format, ring => ring.enable_interrupts_after(&self.slots, more))
    }
}
