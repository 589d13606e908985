//! The packed virtqueue (specification 2.8), with no hardware in it.
//!
//! ```text
//!               written by        read by
//! desc[]        driver, device    both      address, length, id, flags
//! driver event  driver            device    when the driver wants interrupts
//! device event  device            driver    when the device wants kicks
//! ```
//!
//! Descriptors carry two bits that say whose they are. Both sides go around
//! the ring with a wrap counter that turns over at each lap: the driver makes
//! a descriptor available by setting `AVAIL` to its counter and `USED` to the
//! opposite, the device marks it as used by setting both to its own. A used
//! descriptor is written where the device stands in the ring, in the place of
//! a descriptor that it has read, and names its chain by the buffer id.
//!
//! ```text
//! id:      3 4 5 6 | 0 1 2          chains that were added, id in order
//! AVAIL:   1 1 1 1 | 1 1 0  wrap=1
//! USED:    1 1 0 0 | 0 0 0          the first two were used, two more wait,
//!              ^       ^            for the driver at next_used, and so on
//! ```
//!
//! As everywhere in this module, the driver never reads back what the device
//! could have changed: positions, wrap counters and the lengths of chains are
//! kept in private. Of a descriptor it reads the flags, and once they say
//! that it was used, id and length, which it checks.
//!
//! `memory` is what both sides see, `position` the going around with the wrap
//! counters; how chains come and go is here.

mod memory;
mod position;

pub use memory::Layout;

use core::sync::atomic::Ordering;

use kickpath_trace::{Event, tracepoint};
use virtio_drivers::{Hal, PhysAddr};

use super::barrier;
use super::chain::{Buffer, Head, Used};
use super::error::{BrokenReason, QueueError};
use super::event::{EventMode, need_event};
use super::indirect::{DESCRIPTOR_SIZE, IndirectTables};
use super::ring::{RingFormat, UsedEntry};
use super::slots::{ChainState, Slots};
use memory::RingMemory;
use position::{Position, WRAP_COUNTER};

/// The chain goes on with the next descriptor of the ring.
const DESC_F_NEXT: u16 = 1;
/// The device writes this buffer (else it reads it).
const DESC_F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
const DESC_F_INDIRECT: u16 = 4;

/// In an event suppression structure's flags: always.
const EVENT_FLAGS_ENABLE: u16 = 0;
/// In an event suppression structure's flags: never.
const EVENT_FLAGS_DISABLE: u16 = 1;
/// In an event suppression structure's flags: at the descriptor that the
/// structure names.
const EVENT_FLAGS_DESC: u16 = 2;
/// The bits of an event suppression structure's flags that mean something.
const EVENT_FLAGS: u16 = 3;

/// The first descriptor of what was added since the last publish. Its flags
/// are written last: the device goes in order, so none of the others can be
/// seen before.
#[derive(Clone, Copy)]
struct Withheld {
    index: u16,
    flags: u16,
}

/// A packed virtqueue's memory, and how far either side is.
pub(super) struct PackedRing<H: Hal> {
    memory: RingMemory<H>,
    /// Number of descriptors. (Within `memory` it would cost 4 instructions a
    /// packet: the ring as a whole is laid out worse then.)
    size: u16,
    /// Buffers that the longest chain has.
    most: u16,
    mode: EventMode,
    /// Whether a used descriptor stands for all chains up to its own.
    in_order: bool,
    /// Where the next chain goes.
    next_avail: Position,
    /// Where the next used descriptor will be.
    next_used: Position,
    /// Descriptors added since the last publish, at most a lap.
    unpublished: u16,
    withheld: Option<Withheld>,
    /// Descriptors from `next_used` on that chains take.
    outstanding: u16,
    /// The driver event suppression structure as it was last written.
    driver_event: u32,
    /// Where chains of several buffers go, with `VIRTIO_F_INDIRECT_DESC`.
    tables: Option<IndirectTables<H>>,
}

impl<H: Hal> PackedRing<H> {
    /// Allocates a ring for the slots. `most` is the number of buffers in the
    /// longest chain.
    pub(super) fn new(
        slots: &Slots,
        most: u16,
        mode: EventMode,
        in_order: bool,
        tables: Option<IndirectTables<H>>,
    ) -> Result<Self, QueueError> {
        Ok(Self {
            memory: RingMemory::new(slots.queue, slots.size())?,
            size: slots.size(),
            most,
            mode,
            in_order,
            next_avail: Position::START,
            next_used: Position::START,
            unpublished: 0,
            withheld: None,
            outstanding: 0,
            // As the memory is: zeroed.
            driver_event: u32::from(EVENT_FLAGS_ENABLE),
            tables,
        })
    }

    /// Writes a descriptor at the next place of the ring and goes on behind
    /// it. What makes it available is withheld for the first since the last
    /// publish.
    #[inline]
    fn push(&mut self, buffer: &Buffer, id: u16, flags: u16) {
        let position = self.next_avail;
        let flags = flags | position.available() | if buffer.writable { DESC_F_WRITE } else { 0 };
        self.memory
            .address(position.index)
            .store(buffer.address.to_le(), Ordering::Relaxed);
        self.memory
            .length(position.index)
            .store(buffer.length.to_le(), Ordering::Relaxed);
        self.memory
            .id(position.index)
            .store(id.to_le(), Ordering::Relaxed);
        if self.withheld.is_none() {
            self.withheld = Some(Withheld {
                index: position.index,
                flags,
            });
        } else {
            self.memory
                .flags(position.index)
                .store(flags.to_le(), Ordering::Relaxed);
        }
        self.next_avail = position.after(1, self.size);
        self.unpublished += 1;
        self.outstanding += 1;
    }

    /// Writes a chain of several buffers into the ring.
    fn push_chain(&mut self, slots: &Slots, id: u16, rest: &[Buffer], last: &Buffer) {
        for buffer in rest {
            tracepoint!(
                Event::Descriptor,
                slots.queue,
                u64::from(self.next_avail.index) | u64::from(buffer.length) << 32,
                buffer.trace_address()
            );
            self.push(buffer, id, DESC_F_NEXT);
        }
        self.push(last, id, 0);
    }

    /// Writes a chain of several buffers into the table of its slot, and the
    /// table into the ring. Of a table's descriptors address, length and
    /// `WRITE` count, and their order (specification 2.8.7).
    fn push_table(
        &mut self,
        slots: &Slots,
        tables: &IndirectTables<H>,
        id: u16,
        buffers: &[Buffer],
    ) {
        for (index, buffer) in (0u16..).zip(buffers) {
            if usize::from(index) + 1 < buffers.len() {
                tracepoint!(
                    Event::Descriptor,
                    slots.queue,
                    u64::from(index) | u64::from(buffer.length) << 32,
                    buffer.trace_address()
                );
            }
            let flags = if buffer.writable { DESC_F_WRITE } else { 0 };
            let entry = tables.descriptor(id, index);
            // SAFETY: it is a descriptor of 16 bytes, 16-byte aligned.
            // Volatile, because the device reads it.
            unsafe {
                entry.cast::<u64>().write_volatile(buffer.address.to_le());
                let length = u64::from(buffer.length) | u64::from(flags) << 48;
                entry.cast::<u64>().add(1).write_volatile(length.to_le());
            }
        }
        // At most 2^15 descriptors.
        let bytes = (buffers.len() * DESCRIPTOR_SIZE) as u32;
        let table = Buffer::new(tables.physical(id), bytes, false);
        self.push(&table, id, DESC_F_INDIRECT);
    }

    /// Whether the device has marked the descriptor there as used.
    #[inline]
    fn is_used(&self, position: Position) -> bool {
        // Acquire: id and length are read after the flags that announce them.
        let flags = u16::from_le(self.memory.flags(position.index).load(Ordering::Acquire));
        position.is_used_by(flags)
    }

    /// Whether the place at which the device asks to be notified lies behind
    /// it: it went on and has forgotten to ask again.
    ///
    /// QEMU 7.2 does so after a frame had to wait for the cable:
    /// `virtio_net_tx_complete` asks, sends what else is there, up to a whole
    /// ring, and goes to sleep; `virtqueue_packed_pop` does not ask again, as
    /// its counterpart for split rings does. A device that does not want to be
    /// notified says so by a flag, so nothing is lost by telling this one.
    #[cold]
    fn has_passed(&self, event: u16) -> bool {
        let Some(event) = Position::from_word(event, self.size) else {
            return false;
        };
        let behind = self.next_avail.distance_from(event, self.size);
        if (1..=self.outstanding).contains(&behind) {
            return self.is_used(event);
        }
        // A word names a place every two laps, and a device that asked a lap
        // ago may since have been given another lap at once. What can still be
        // added before it gives something back lies ahead; all else, behind.
        let ahead = match behind {
            0 => 0,
            behind => 2 * u32::from(self.size) - u32::from(behind),
        };
        ahead >= u32::from(self.size - self.outstanding)
    }

    /// Counts what the device has used and the driver not taken back: chains,
    /// and descriptors of the ring. `pending` is the id of a used descriptor
    /// at `next_used` that was read already.
    fn used_ahead(&self, slots: &Slots, pending: Option<u32>) -> (u16, u16) {
        let published = slots.published();
        let (mut chains, mut descriptors) = (0u16, 0u16);
        let mut oldest = slots.oldest();
        let mut pending = pending;
        while chains < published {
            let position = self.next_used.after(descriptors, self.size);
            let id = match pending.take() {
                Some(id) => id,
                None if self.is_used(position) => self.read_id(position.index),
                None => break,
            };
            let Ok((head, state)) = slots.outstanding_chain(id) else {
                // Whoever takes it will say so.
                break;
            };
            if !self.in_order {
                chains += 1;
                descriptors += state.descriptors();
            } else {
                while let Some((slot, state)) = oldest
                    && chains < published
                {
                    chains += 1;
                    descriptors += state.descriptors();
                    oldest = Some(slots.after(slot));
                    if slot == head {
                        break;
                    }
                }
            }
            // A device that names a chain twice cannot lead beyond the ring.
            if descriptors >= self.outstanding {
                break;
            }
        }
        (chains, descriptors.min(self.outstanding))
    }

    /// The next used descriptor: its chain and what is known of it.
    #[inline(always)]
    fn peek_used(&self, slots: &mut Slots) -> Result<Option<(u16, ChainState)>, QueueError> {
        if slots.published() == 0 || slots.broken().is_some() || !self.is_used(self.next_used) {
            return match slots.broken() {
                Some(_) => Err(slots.refusal()),
                None => Ok(None),
            };
        }
        let index = self.next_used.index;
        let (head, state) = match slots.outstanding_chain(self.read_id(index)) {
            Ok(chain) => chain,
            Err(reason) => return Err(slots.break_down(reason)),
        };
        tracepoint!(
            Event::PopUsed,
            slots.queue,
            u64::from(head) | u64::from(index) << 16 | u64::from(self.read_length(index)) << 32,
            u64::from(self.next_used.after(state.descriptors(), self.size).word())
        );
        Ok(Some((head, state)))
    }

    #[inline]
    fn read_id(&self, index: u16) -> u32 {
        u32::from(u16::from_le(self.memory.id(index).load(Ordering::Relaxed)))
    }

    #[inline]
    fn read_length(&self, index: u16) -> u32 {
        u32::from_le(self.memory.length(index).load(Ordering::Relaxed))
    }

    /// Writes the driver event suppression structure, flags and position at
    /// once.
    #[inline]
    fn write_driver_event(&mut self, position: u16, flags: u16) {
        self.driver_event = u32::from(flags) << 16 | u32::from(position);
        self.memory
            .driver_event()
            .store(self.driver_event.to_le(), Ordering::Relaxed);
    }
}

impl<H: Hal> RingFormat for PackedRing<H> {
    fn areas(&self) -> [PhysAddr; 3] {
        self.memory.areas()
    }

    #[inline(never)]
    unsafe fn add_at(
        &mut self,
        slots: &mut Slots,
        head: Head,
        buffers: &[Buffer],
        token: u16,
    ) -> Result<(), QueueError> {
        let (last, rest) = match buffers.split_last() {
            Some(parts) if buffers.len() <= usize::from(self.most) => parts,
            _ => {
                return Err(QueueError::ChainLength {
                    queue: slots.queue,
                    length: buffers.len(),
                    most: usize::from(self.most),
                });
            }
        };
        let id = head.descriptor();
        let mut writable = last.writable_length();
        let mut descriptors = 1;
        if rest.is_empty() {
            self.push(last, id, 0);
        } else {
            for buffer in rest {
                writable = writable.saturating_add(buffer.writable_length());
            }
            if let Some(tables) = self.tables.take() {
                self.push_table(slots, &tables, id, buffers);
                self.tables = Some(tables);
            } else {
                self.push_chain(slots, id, rest, last);
                // At most `most`, so it fits.
                descriptors = buffers.len() as u16;
            }
        }
        let entry = self.next_avail.index.checked_sub(1);
        tracepoint!(
            Event::Add,
            slots.queue,
            u64::from(id)
                | u64::from(entry.unwrap_or(self.size - 1)) << 16
                | u64::from(last.length) << 32,
            last.trace_address()
        );
        slots.take(head, ChainState::chain(token, writable, descriptors));
        Ok(())
    }

    #[inline(never)]
    fn publish(&mut self, slots: &mut Slots) -> bool {
        let added = core::mem::take(&mut self.unpublished);
        let new = self.next_avail;
        let before = new.before(added, self.size);
        slots.publish();
        // All the rest is visible before the flags that make the first
        // descriptor available (specification 2.8.21).
        if let Some(Withheld { index, flags }) = self.withheld.take() {
            self.memory
                .flags(index)
                .store(flags.to_le(), Ordering::Release);
        }
        tracepoint!(
            Event::Publish,
            slots.queue,
            u64::from(new.word()),
            u64::from(before.word())
        );
        // The descriptors are visible before the device's wish is read, or the
        // device could go to sleep between the two and be told nothing
        // (specification 2.8.21.3.1).
        barrier::store_load();
        // Position and flags by one load, so that they belong together.
        let event = u32::from_le(self.memory.device_event().load(Ordering::Relaxed));
        let (position, flags) = (event as u16, (event >> 16) as u16 & EVENT_FLAGS);
        let by_event = flags == EVENT_FLAGS_DESC && self.mode == EventMode::EventIdx;
        let wanted = if by_event {
            // As Linux's `virtqueue_kick_prepare_packed`: positions are counted
            // from this lap's start, those of the lap before below it.
            let old = new.index.wrapping_sub(added);
            let mut event = position & !WRAP_COUNTER;
            if (position & WRAP_COUNTER != 0) != new.wrap {
                event = event.wrapping_sub(self.size);
            }
            need_event(event, new.index, old) || self.has_passed(position)
        } else {
            flags != EVENT_FLAGS_DISABLE
        };
        tracepoint!(
            Event::KickPrepare,
            slots.queue,
            u64::from(new.word())
                | u64::from(before.word()) << 16
                | u64::from(if by_event { position } else { flags }) << 32
                | u64::from(by_event) << 48,
            u64::from(wanted)
        );
        wanted
    }

    fn next_avail(&self, _slots: &Slots) -> u16 {
        self.next_avail.word()
    }

    fn used_idx(&self, slots: &Slots, pending: Option<u32>) -> u16 {
        let (chains, _) = self.used_ahead(slots, pending);
        slots.last_used_idx.wrapping_add(chains)
    }

    fn has_used(&self, slots: &Slots) -> bool {
        slots.published() != 0 && self.is_used(self.next_used)
    }

    #[inline(never)]
    fn pop_used(&mut self, slots: &mut Slots) -> Result<Option<Used>, QueueError> {
        let Some((head, state)) = self.peek_used(slots)? else {
            return Ok(None);
        };
        // Of a chain that the device only reads the length says nothing
        // (specification 2.8.4).
        let mut length = 0;
        if state.writable() != 0 {
            length = self.read_length(self.next_used.index);
            if length > state.writable() {
                return Err(slots.break_down(BrokenReason::LengthTooLong {
                    id: head,
                    length,
                    writable: state.writable(),
                }));
            }
        }
        self.skip_used(state);
        slots.release(head);
        Ok(Some(Used {
            token: state.token(),
            length,
        }))
    }

    #[inline(never)]
    fn discard_used(&mut self, slots: &mut Slots) -> Result<(), QueueError> {
        while let Some((head, state)) = self.peek_used(slots)? {
            self.skip_used(state);
            slots.release(head);
        }
        Ok(())
    }

    fn read_used(&mut self, slots: &mut Slots) -> Result<Option<UsedEntry>, QueueError> {
        if slots.broken().is_some() {
            return Err(slots.refusal());
        }
        if !self.has_used(slots) {
            return Ok(None);
        }
        let index = self.next_used.index;
        slots.seen_used_idx = slots.published_idx;
        Ok(Some(UsedEntry {
            entry: index,
            id: self.read_id(index),
            length: self.read_length(index),
        }))
    }

    #[inline]
    fn skip_used(&mut self, state: ChainState) {
        let descriptors = state.descriptors();
        self.next_used = self.next_used.after(descriptors, self.size);
        self.outstanding -= descriptors;
    }

    /// Asks the device not to interrupt: here there is a flag for it, with
    /// EVENT_IDX too.
    #[inline]
    fn disable_interrupts(&mut self, slots: &Slots) {
        if self.driver_event >> 16 != u32::from(EVENT_FLAGS_DISABLE) {
            tracepoint!(
                Event::DisableInterrupts,
                slots.queue,
                u64::from(EVENT_FLAGS_DISABLE)
            );
            self.write_driver_event(0, EVENT_FLAGS_DISABLE);
        }
    }

    fn enable_interrupts_after(&mut self, slots: &Slots, more: u16) -> bool {
        // Chains used so far out of those that the driver waits for, in
        // descriptors: exact where all chains are of one length, else a part
        // of what the device has, and never all of it.
        let distance = match (self.mode, slots.published()) {
            (EventMode::EventIdx, chains @ 1..) => {
                let published = self.outstanding.saturating_sub(self.unpublished);
                (u32::from(published) * u32::from(more) / u32::from(chains)) as u16
            }
            _ => 0,
        };
        let event = match self.mode {
            EventMode::EventIdx => {
                let event = self.next_used.after(distance, self.size).word();
                self.write_driver_event(event, EVENT_FLAGS_DESC);
                event
            }
            EventMode::Flags => {
                if self.driver_event >> 16 != u32::from(EVENT_FLAGS_ENABLE) {
                    self.write_driver_event(0, EVENT_FLAGS_ENABLE);
                }
                0
            }
        };
        // The wish is visible before the ring is read again, or a chain used
        // between the two would go unannounced.
        barrier::store_load();
        let enough = if distance == 0 {
            self.has_used(slots)
        } else {
            self.used_ahead(slots, None).1 > distance
        };
        tracepoint!(
            Event::EnableInterrupts,
            slots.queue,
            u64::from(event) | self.mode.trace_bit(),
            u64::from(enough)
        );
        enough
    }
}
