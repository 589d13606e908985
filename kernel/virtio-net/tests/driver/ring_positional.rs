//! The ring of frames: every slot has its buffer, and comes back once for each time
//! that it was added.

use std::collections::VecDeque;

use proptest::prelude::*;
use virtio_net::queue::{
    EventMode, PositionalRing, QueueError, QueueRing, RingLayout, RingShape, SlotBuffers, UsedSlot,
};
use vm_memory::{Bytes, GuestAddress};

use crate::support::memory::{GuestHal, guest_memory};
use crate::support::packed::Piece;
use crate::support::ring::{DeviceEnd, shapes};

pub const QUEUE: u16 = 7;
/// Length of each buffer in bytes, and of its parts.
pub const LENGTH: u32 = HEADER + CAPACITY;
const HEADER: u32 = 10;
pub const CAPACITY: u32 = 2038;

/// Where a slot's buffer is.
fn address(slot: u16) -> u64 {
    0x10_0000 + 0x1000 * u64::from(slot)
}

/// Both ends of a ring.
pub struct Ends {
    pub driver: PositionalRing<GuestHal>,
    pub device: DeviceEnd,
    pub shape: RingShape,
    writable: bool,
    /// Index of the split used ring, where it is written by hand.
    used_idx: u16,
}

impl Ends {
    /// A ring of `size` descriptors, of which `slots` slots have a buffer.
    pub fn new(size: u16, slots: u16, shape: RingShape, writable: bool) -> Self {
        let mut driver = PositionalRing::new(QUEUE, u32::from(size), shape).unwrap();
        let buffers = SlotBuffers {
            header: HEADER,
            capacity: CAPACITY,
            apart: shape.chain > 1,
            writable,
        };
        // SAFETY: nothing accesses the buffers, which are only numbers here.
        unsafe { driver.prepare(slots, buffers, address) };
        let device = DeviceEnd::new(&driver, shape);
        Self {
            driver,
            device,
            shape,
            writable,
            used_idx: 0,
        }
    }

    /// Adds the next slot with `length` bytes, header included.
    pub fn add(&mut self, length: u32) {
        assert!(self.driver.next_slot().is_some());
        self.driver.add(length - HEADER);
    }

    /// Takes the next slot at the device, which must be this one with `length`
    /// bytes.
    pub fn expect(&mut self, slot: u16, length: u32) {
        let (head, pieces) = self.device.take().expect("the device sees no slot");
        let piece = |from: u32, to: u32| Piece {
            address: address(slot) + u64::from(from),
            length: to - from,
            writable: self.writable,
        };
        if self.shape.chain > 1 {
            assert_eq!(head, 2 * slot);
            assert_eq!(pieces, [piece(0, HEADER), piece(HEADER, length)]);
        } else {
            assert_eq!(head, slot);
            assert_eq!(pieces, [piece(0, length)]);
        }
    }

    /// Takes up to `most` used slots in a run, with `shortest` bytes or more each.
    pub fn pop_run(&mut self, most: u16, shortest: u32) -> Vec<UsedSlot> {
        let mut taken = Vec::new();
        let count = self.driver.pop_run(most.into(), shortest, |slot, length| {
            let slot = slot.try_into().unwrap();
            taken.push(UsedSlot { slot, length });
            true
        });
        assert_eq!(count as usize, taken.len());
        taken
    }

    pub fn give_back(&mut self, slot: u16, length: u32) {
        let head = if self.shape.chain > 1 { 2 * slot } else { slot };
        self.device.give_back(head, length);
        self.used_idx = self.used_idx.wrapping_add(1);
    }

    /// Uses slots with one entry for all (specification 2.7.9 and 2.8.8).
    pub fn give_back_batch(&mut self, slots: &[u16], length: u32) {
        let Some(last) = slots.last() else {
            return;
        };
        if let DeviceEnd::Packed(device) = &mut self.device {
            return device.give_back_batch(slots, length);
        }
        self.write_used(self.used_idx, (*last).into(), length);
        self.used_idx = self.used_idx.wrapping_add(slots.len() as u16);
        self.write_used_idx(self.used_idx);
    }

    /// Writes an entry of the used ring, in the packed layout the next one.
    pub fn write_used(&mut self, index: u16, id: u32, length: u32) {
        if let DeviceEnd::Packed(device) = &mut self.device {
            return device.write_used(id as u16, length);
        }
        let entry = index & (self.driver.size() - 1);
        let at = self.driver.areas()[2] + 4 + 8 * u64::from(entry);
        let words = [id.to_le(), length.to_le()];
        guest_memory().write_obj(words, GuestAddress(at)).unwrap();
    }

    pub fn write_used_idx(&mut self, index: u16) {
        if let DeviceEnd::Split { .. } = self.device {
            let at = GuestAddress(self.driver.areas()[2] + 2);
            guest_memory().write_obj(index.to_le(), at).unwrap();
        }
    }

    pub fn is_packed(&self) -> bool {
        self.shape.layout == RingLayout::Packed
    }
}

/// Every layout, and the split ones with a header apart.
fn all_shapes() -> Vec<RingShape> {
    let apart = |shape: &RingShape| shape.layout == RingLayout::Split;
    let two = |shape| RingShape { chain: 2, ..shape };
    let of_two: Vec<_> = shapes().into_iter().filter(apart).map(two).collect();
    shapes().into_iter().chain(of_two).collect()
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    for shape in all_shapes() {
        let least = u32::from(shape.chain);
        for size in [0, 3, 6, 255, 32769, 65536, u32::MAX] {
            let result = PositionalRing::<GuestHal>::new(QUEUE, size, shape);
            let error = QueueError::BadSize {
                queue: QUEUE,
                size,
                layout: shape.layout,
            };
            assert_eq!(result.err(), Some(error));
        }
        for size in [least, 256, 32768] {
            let ring = PositionalRing::<GuestHal>::new(QUEUE, size, shape).unwrap();
            assert_eq!(u32::from(ring.slots()), size / least);
            assert_eq!(u32::from(ring.free()), size / least);
        }
    }
    let packed_chain = RingShape::packed(2, EventMode::Flags);
    assert!(PositionalRing::<GuestHal>::new(QUEUE, 8, packed_chain).is_err());
}

/// Over many laps: each slot shows its own buffer with the length that was given,
/// whatever order they come back in.
#[test]
fn a_slot_shows_its_own_buffer() {
    for shape in all_shapes() {
        let mut ends = Ends::new(16, 16, shape, false);
        let slots = ends.driver.slots();
        let mut next = 0u16;
        for round in 1..40u16 {
            let count = 1 + round % slots;
            let length = 60 + u32::from(round);
            let added: Vec<_> = (0..count).map(|more| (next + more) % slots).collect();
            next += count;
            for _ in &added {
                ends.add(length);
            }
            assert_eq!(ends.driver.outstanding(), count);
            assert!(ends.device.take().is_none(), "nothing is published yet");
            assert!(ends.driver.has_unpublished());
            ends.driver.publish();
            let mut back = added.clone();
            for &slot in &added {
                ends.expect(slot, length);
            }
            assert!(!ends.driver.all_used());
            back.rotate_left(usize::from(round) % added.len());
            if round % 3 == 0 {
                back.reverse();
            }
            for &slot in &back {
                ends.give_back(slot, 0);
            }
            assert!(ends.driver.all_used());
            assert_eq!(ends.driver.reclaim(), Ok(()));
            assert_eq!((ends.driver.outstanding(), ends.driver.free()), (0, slots));
        }
    }
}

/// Of receive buffers there may be fewer than the ring has room for; all that
/// came back go to the device again at the next refill.
#[test]
fn buffers_go_round_and_round() {
    for shape in all_shapes() {
        for slots in [1, 4, 8] {
            let mut ends = Ends::new(16, slots, shape, true);
            assert_eq!(ends.driver.slots(), slots);
            ends.driver.refill();
            let mut next = 0u16;
            for round in 0..100u16 {
                ends.driver.publish();
                let count = 1 + round % slots;
                for more in 0..count {
                    let slot = (next + more) % slots;
                    ends.expect(slot, LENGTH);
                    let length = u32::from(100 + round + more);
                    ends.give_back(slot, length);
                    let used = UsedSlot { slot, length };
                    assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
                }
                next += count;
                assert_eq!(ends.driver.pop_used(), Ok(None));
                assert_eq!(ends.driver.published(), slots - count);
                ends.driver.refill();
                assert_eq!(ends.driver.outstanding(), slots);
            }
        }
    }
}

/// Nothing that was not added is shown.
#[test]
fn publishing_nothing_shows_nothing() {
    for shape in all_shapes() {
        let mut ends = Ends::new(8, 8, shape, false);
        assert!(!ends.driver.publish());
        assert!(ends.device.take().is_none());
        ends.add(100);
        ends.driver.publish();
        ends.expect(0, 100);
        assert!(!ends.driver.publish());
        assert!(ends.device.take().is_none());
    }
}

/// A slot that came back early is added again only when those before it are back.
#[test]
fn what_comes_back_early_waits_for_its_turn() {
    for shape in shapes() {
        let mut ends = Ends::new(4, 4, shape, true);
        ends.driver.refill();
        ends.driver.publish();
        for slot in 0..4 {
            ends.expect(slot, LENGTH);
        }
        for slot in [2, 1, 3] {
            ends.give_back(slot, 5);
            let used = UsedSlot { slot, length: 5 };
            assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
            assert!(!ends.driver.is_free(slot));
            ends.driver.refill();
            assert!(!ends.driver.has_unpublished());
        }
        ends.give_back(0, 6);
        let used = UsedSlot { slot: 0, length: 6 };
        assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
        assert_eq!(ends.driver.outstanding(), 0);
        ends.driver.refill();
        ends.driver.publish();
        for slot in 0..4 {
            ends.expect(slot, LENGTH);
            ends.give_back(slot, 7);
            let used = UsedSlot { slot, length: 7 };
            assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
        }
    }
}

/// A buffer elsewhere is the slot's once; then it has its own again.
#[test]
fn a_buffer_elsewhere_is_given_back() {
    for shape in all_shapes() {
        let mut ends = Ends::new(8, 8, shape, false);
        for lap in 0..3 {
            for slot in 0..ends.driver.slots() {
                let far = 0x9000_0000;
                // SAFETY: nothing accesses the buffers, which are only numbers.
                unsafe { ends.driver.add_elsewhere(far, 60_000 - HEADER) };
                ends.driver.publish();
                let (_, pieces) = ends.device.take().unwrap();
                assert_eq!(pieces[0].address, far);
                let total: u32 = pieces.iter().map(|piece| piece.length).sum();
                assert_eq!(total, 60_000);
                ends.give_back(slot, 0);
                assert!(!ends.driver.is_free(slot));
                ends.driver.reclaim().unwrap();
                assert!(ends.driver.is_free(slot));
                ends.driver.restore(slot);
            }
            for slot in 0..ends.driver.slots() {
                ends.add(100 + lap);
                ends.driver.publish();
                ends.expect(slot, 100 + lap);
                ends.give_back(slot, 0);
                ends.driver.reclaim().unwrap();
            }
        }
    }
}

/// [`shapes`] whose buffers are used in order.
pub fn in_order_shapes() -> Vec<RingShape> {
    let in_order = |shape| RingShape {
        in_order: true,
        ..shape
    };
    shapes().into_iter().map(in_order).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// With `VIRTIO_F_IN_ORDER` one entry stands for many: those before the last
    /// are full, and the last has its length.
    #[test]
    fn batches_come_back_whole_and_in_order(
        size in prop::sample::select(vec![1u16, 2, 4, 8, 32]),
        shape in prop::sample::select(in_order_shapes()),
        steps in prop::collection::vec((0..=9u16, 0..=9u16, 0..=9u16), 1..200),
        reclaims in any::<bool>(),
    ) {
        let mut ends = Ends::new(size, size, shape, true);
        let mut at_device = VecDeque::new();
        let mut expected = VecDeque::new();
        for (round, (add, use_up, pop)) in (0u32..).zip(steps) {
            for _ in 0..add {
                let Some(slot) = ends.driver.next_slot() else { break };
                ends.driver.add(CAPACITY);
                at_device.push_back(slot);
            }
            if ends.driver.has_unpublished() {
                ends.driver.publish();
            }
            while ends.device.take().is_some() {}
            let batch: Vec<_> = at_device.drain(..at_device.len().min(use_up.into())).collect();
            let length = round % (LENGTH + 1);
            ends.give_back_batch(&batch, length);
            if let [full @ .., last] = &batch[..] {
                expected.extend(full.iter().map(|&slot| UsedSlot { slot, length: LENGTH }));
                expected.push_back(UsedSlot { slot: *last, length });
            }
            prop_assert_eq!(ends.driver.has_used(), !expected.is_empty());
            let ahead = ends.driver.used_idx().wrapping_sub(ends.driver.last_used_idx());
            prop_assert_eq!(usize::from(ahead), expected.len());
            prop_assert_eq!(ends.driver.enable_interrupts_after(0), !expected.is_empty());
            for used in ends.pop_run(pop / 2, round % 2) {
                prop_assert!(used.length >= round % 2);
                prop_assert_eq!(Some(used), expected.pop_front());
            }
            for _ in 0..pop / 2 {
                prop_assert_eq!(ends.driver.pop_used(), Ok(expected.pop_front()));
            }
            if reclaims && round % 3 == 0 {
                prop_assert_eq!(ends.driver.reclaim(), Ok(()));
                expected.clear();
            }
            let outstanding = at_device.len() + expected.len();
            prop_assert_eq!(usize::from(ends.driver.outstanding()), outstanding);
        }
    }

    /// Slots in any order, in any number: each comes back once, with its length.
    #[test]
    fn any_order_comes_back(
        size in prop::sample::select(vec![1u16, 2, 4, 8, 32, 128]),
        shape in prop::sample::select(shapes().to_vec()),
        steps in prop::collection::vec((0..=9u16, any::<[u8; 8]>(), 0..=9u16), 1..200),
    ) {
        let mut ends = Ends::new(size, size, shape, true);
        let mut at_device = Vec::new();
        let mut expected = VecDeque::new();
        let mut outstanding = 0u16;
        for (round, (add, choices, pop)) in (0u32..).zip(steps) {
            for _ in 0..add {
                let Some(slot) = ends.driver.next_slot() else { break };
                prop_assert!(!at_device.contains(&slot), "slot {} twice", slot);
                ends.driver.add(CAPACITY);
                at_device.push(slot);
                outstanding += 1;
            }
            if ends.driver.has_unpublished() {
                ends.driver.publish();
            }
            while ends.device.take().is_some() {}
            for choice in choices {
                if choice % 3 == 0 || at_device.is_empty() {
                    continue;
                }
                let slot = at_device.remove(usize::from(choice) % at_device.len());
                let length = round % (LENGTH + 1);
                ends.give_back(slot, length);
                expected.push_back(UsedSlot { slot, length });
            }
            for used in ends.pop_run(pop / 2, round % 2) {
                prop_assert!(used.length >= round % 2);
                prop_assert_eq!(Some(used), expected.pop_front());
                outstanding -= 1;
            }
            for _ in 0..pop / 2 {
                let next = expected.pop_front();
                outstanding -= u16::from(next.is_some());
                prop_assert_eq!(ends.driver.pop_used(), Ok(next));
            }
            prop_assert_eq!(ends.driver.published(), outstanding);
            // What is free is what is neither at the device nor before such a one.
            prop_assert!(ends.driver.outstanding() >= outstanding);
            if outstanding == 0 {
                prop_assert_eq!(ends.driver.outstanding(), 0);
            }
        }
    }
}

/// Indices and wrap counters follow from counts, which go over the end of 16 bits.
#[test]
fn counts_run_over_sixteen_bits() {
    for shape in shapes() {
        let mut ends = Ends::new(4, 4, shape, true);
        for round in 0..40_000u32 {
            ends.driver.refill();
            ends.driver.publish();
            for more in 0..2 {
                let slot = ((2 * round + more) % 4) as u16;
                let taken = ends.device.take().map(|(head, _)| head);
                assert_eq!(taken, Some(slot));
                ends.give_back(slot, more);
                let used = UsedSlot { slot, length: more };
                assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
            }
        }
    }
}
