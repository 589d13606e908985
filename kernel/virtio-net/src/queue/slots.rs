//! What the driver knows of a queue, whatever its layout: which slots are
//! free, whose the others are, and how far either side has come.
//!
//! None of this is in memory that the device can write. What the device says
//! is checked against it.

extern crate alloc;

use alloc::boxed::Box;
use core::ops::Range;

use super::chain::Head;
use super::error::{BrokenReason, QueueError};

/// What the driver knows of a slot. One word, to be read and written at once.
///
/// While the device has its chain: [`OUTSTANDING`]; bits 0 to 15, the
/// caller's token; bits 17 to 31, the number of ring descriptors that the
/// chain takes, less one; bits 32 to 63, bytes that the device may write.
/// While it is free: bits 0 to 15, the next free slot or [`NONE`].
#[derive(Clone, Copy)]
pub(super) struct ChainState(u64);

/// In [`ChainState`]: the device has the chain.
const OUTSTANDING: u64 = 1 << 16;

/// No slot. Slots have numbers below 2^15.
const NONE: usize = 0xffff;

impl ChainState {
    /// The state of a chain at the device that takes one descriptor of the
    /// ring.
    #[inline]
    pub(super) fn single(token: u16, writable: u32) -> Self {
        Self(u64::from(writable) << 32 | OUTSTANDING | u64::from(token))
    }

    /// The state of a chain at the device that takes `descriptors` of the
    /// ring, 1 to 2^15.
    #[inline]
    pub(super) fn chain(token: u16, writable: u32, descriptors: u16) -> Self {
        let more = u64::from(descriptors.wrapping_sub(1) & 0x7fff);
        Self(Self::single(token, writable).0 | more << 17)
    }

    /// The caller's token.
    #[inline]
    pub(super) fn token(self) -> u16 {
        self.0 as u16
    }

    /// Bytes that the device may write.
    #[inline]
    pub(super) fn writable(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Descriptors of the ring that the chain takes, 1 to 2^15.
    #[inline]
    pub(super) fn descriptors(self) -> u16 {
        (self.0 as u32 >> 17) as u16 + 1
    }

    /// The state of a slot that is free; `next` is the next one.
    #[inline]
    fn free(next: usize) -> Self {
        Self(next as u64)
    }

    #[inline]
    fn is_outstanding(self) -> bool {
        self.0 & OUTSTANDING != 0
    }
}

/// The slots of a ring. A slot holds one chain and goes by the number of its
/// first descriptor, a multiple of the slot's length.
///
/// Free slots form a stack: the one that came back last is taken first, while
/// its buffer is still in the cache. Only with `VIRTIO_F_IN_ORDER` they form a
/// queue, so that slots are taken in the order of their number.
pub(super) struct Slots {
    /// One a descriptor; those that head no slot are never outstanding.
    chains: Box<[ChainState]>,
    /// Index of the queue at the device, for messages.
    pub(super) queue: u16,
    size: u16,
    slot_length: u16,
    capacity: u16,
    /// The slot that is taken next; [`NONE`] also when the queue is broken.
    // As wide as an index into `chains`, so that it needs no widening.
    first_free: usize,
    /// With `VIRTIO_F_IN_ORDER`: the slot that became free last, and the one
    /// whose chain is at the device for longest.
    last_free: u16,
    oldest: u16,
    /// Chains added, shown to the device, taken back, and seen to be used:
    /// free-running counts.
    pub(super) avail_idx: u16,
    pub(super) published_idx: u16,
    pub(super) last_used_idx: u16,
    pub(super) seen_used_idx: u16,
    /// Chains published since the ring was made.
    added: u64,
    broken: Option<BrokenReason>,
}

impl Slots {
    /// All slots free, the lowest first. `slot_length` is at least 1 and at
    /// most `size`, which is at most 2^15.
    pub(super) fn new(queue: u16, size: u16, slot_length: u16) -> Self {
        let capacity = size / slot_length;
        let chains = (0..size)
            .map(|number| {
                let next = number.checked_add(slot_length);
                let next = next.filter(|next| next / slot_length < capacity);
                ChainState::free(next.map_or(NONE, usize::from))
            })
            .collect();
        Self {
            chains,
            queue,
            size,
            slot_length,
            capacity,
            first_free: 0,
            last_free: (capacity - 1) * slot_length,
            oldest: 0,
            avail_idx: 0,
            published_idx: 0,
            last_used_idx: 0,
            seen_used_idx: 0,
            added: 0,
            broken: None,
        }
    }

    #[inline]
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    pub(super) fn slot_length(&self) -> u16 {
        self.slot_length
    }

    #[inline]
    pub(super) fn capacity(&self) -> u16 {
        self.capacity
    }

    /// Chains added since the ring was made.
    pub(super) fn added(&self) -> u64 {
        self.added + u64::from(self.unpublished())
    }

    /// Number of chains that can be added.
    #[inline]
    pub(super) fn free(&self) -> u16 {
        if self.broken.is_some() {
            return 0;
        }
        self.capacity - self.outstanding()
    }

    /// Number of chains that were added and did not come back.
    #[inline]
    pub(super) fn outstanding(&self) -> u16 {
        self.avail_idx.wrapping_sub(self.last_used_idx)
    }

    /// Number of chains that the device was shown and that did not come back.
    /// Only those it can have used. Counting what was added since would let a
    /// device keep a caller busy for ever that adds a chain for each that it
    /// pops.
    #[inline]
    pub(super) fn published(&self) -> u16 {
        self.published_idx.wrapping_sub(self.last_used_idx)
    }

    /// Number of chains that were added and not shown to the device.
    #[inline]
    pub(super) fn unpublished(&self) -> u16 {
        self.avail_idx.wrapping_sub(self.published_idx)
    }

    pub(super) fn broken(&self) -> Option<BrokenReason> {
        self.broken
    }

    /// The slot that the next chain will take, if there is room for one.
    #[inline]
    pub(super) fn next_head(&self) -> Option<Head> {
        (self.first_free != NONE).then_some(Head(self.first_free))
    }

    /// Why [`Self::next_head`] has none.
    #[cold]
    pub(super) fn refusal(&self) -> QueueError {
        match self.broken {
            Some(reason) => QueueError::Broken {
                queue: self.queue,
                reason,
            },
            None => QueueError::Full {
                queue: self.queue,
                capacity: self.capacity,
            },
        }
    }

    /// Takes the slot `head`, which must be [`Self::next_head`]'s.
    #[inline]
    pub(super) fn take(&mut self, head: Head, state: ChainState) {
        let slot = self.chain_mut(head.0);
        let next = slot.0 as u16;
        *slot = state;
        self.first_free = next.into();
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// All that was added is shown to the device. Returns the index before
    /// and after.
    #[inline]
    pub(super) fn publish(&mut self) -> (u16, u16) {
        let (old, new) = (self.published_idx, self.avail_idx);
        self.published_idx = new;
        self.added += u64::from(new.wrapping_sub(old));
        (old, new)
    }

    /// Checks an id that came from the device: it must be a slot whose chain
    /// the device has.
    #[inline]
    pub(super) fn outstanding_chain(&self, id: u32) -> Result<(u16, ChainState), BrokenReason> {
        if id >= u32::from(self.size) {
            return Err(BrokenReason::IdOutOfRange {
                id,
                size: self.size,
            });
        }
        let state = self.chain(id as usize);
        // Below `size`, so it fits.
        let head = id as u16;
        if !state.is_outstanding() {
            return Err(BrokenReason::IdNotOutstanding { id: head });
        }
        Ok((head, state))
    }

    /// A chain came back: its slot is free.
    #[inline]
    pub(super) fn release(&mut self, head: u16) {
        let head = usize::from(head);
        *self.chain_mut(head) = ChainState::free(self.first_free);
        self.first_free = head;
        self.last_used_idx = self.last_used_idx.wrapping_add(1);
    }

    /// The chains of these used entries, at most 2^15, came back; `id` reads the
    /// id that the device gave in one. What is checked as in
    /// [`Self::outstanding_chain`] is counted until a check fails.
    #[inline(always)]
    pub(super) fn release_all(
        &mut self,
        entries: Range<usize>,
        id: impl Fn(usize) -> u32,
    ) -> Result<(), QueueError> {
        // In variables, because the device's memory is read in between.
        let (mut entry, mut first_free) = (entries.start, self.first_free);
        let refused = loop {
            if entry == entries.end {
                break None;
            }
            let id = id(entry);
            let head = id as usize;
            if id >= u32::from(self.size) || !self.chain(head).is_outstanding() {
                break Some(id);
            }
            *self.chain_mut(head) = ChainState::free(first_free);
            first_free = head;
            entry += 1;
        };
        let released = (entry - entries.start) as u16;
        self.last_used_idx = self.last_used_idx.wrapping_add(released);
        self.first_free = first_free;
        match refused.map(|id| self.outstanding_chain(id)) {
            Some(Err(reason)) => Err(self.break_down(reason)),
            _ => Ok(()),
        }
    }

    /// With `VIRTIO_F_IN_ORDER`: the slot whose chain comes back next, if the
    /// device was shown any.
    pub(super) fn oldest(&self) -> Option<(u16, ChainState)> {
        (self.published() != 0).then(|| (self.oldest, self.chain(self.oldest.into())))
    }

    /// With `VIRTIO_F_IN_ORDER`: the slot taken after `head`.
    pub(super) fn after(&self, head: u16) -> (u16, ChainState) {
        // Both at most `size`, so the sum is at most 2^16 - 1.
        let next = head + self.slot_length;
        let next = if next / self.slot_length < self.capacity {
            next
        } else {
            0
        };
        (next, self.chain(next.into()))
    }

    /// With `VIRTIO_F_IN_ORDER`: the oldest chain came back.
    pub(super) fn release_oldest(&mut self) {
        let head = self.oldest;
        self.oldest = self.after(head).0;
        *self.chain_mut(head.into()) = ChainState::free(NONE);
        if self.first_free == NONE {
            self.first_free = head.into();
        } else {
            let last = self.last_free;
            *self.chain_mut(last.into()) = ChainState::free(head.into());
        }
        self.last_free = head;
        self.last_used_idx = self.last_used_idx.wrapping_add(1);
    }

    /// The device broke the protocol: nothing can be added any more, and
    /// nothing taken back.
    #[cold]
    #[inline(never)]
    pub(super) fn break_down(&mut self, reason: BrokenReason) -> QueueError {
        if self.broken.is_none() {
            self.broken = Some(reason);
        }
        self.first_free = NONE;
        // From here every attempt to take a chain back asks `broken` first.
        self.seen_used_idx = self.last_used_idx;
        self.refusal()
    }

    #[inline]
    fn chain(&self, number: usize) -> ChainState {
        debug_assert!(number < usize::from(self.size));
        // SAFETY: numbers come from `chains` itself, which names slots below
        // `size`, from `after`, or were compared with `size`, the length of
        // `chains`.
        unsafe { *self.chains.get_unchecked(number) }
    }

    #[inline]
    fn chain_mut(&mut self, number: usize) -> &mut ChainState {
        debug_assert!(number < usize::from(self.size));
        // SAFETY: as in `chain`.
        unsafe { self.chains.get_unchecked_mut(number) }
    }
}
