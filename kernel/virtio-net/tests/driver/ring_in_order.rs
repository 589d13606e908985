//! `VIRTIO_F_IN_ORDER` in both layouts: a device that announces many chains by
//! the last of them, and one that breaks its promise. QEMU 7.2 does not offer
//! the feature, so this is where it is proven.

use std::collections::VecDeque;

use proptest::prelude::*;
use virtio_net::queue::{BrokenReason, QueueError, RingLayout, RingShape, Used};

use crate::support::ring::{Ends, chain_shapes, writable};

/// [`chain_shapes`], used in order.
fn in_order_shapes(chain: u16) -> Vec<RingShape> {
    let in_order = |shape| RingShape {
        in_order: true,
        ..shape
    };
    chain_shapes(chain).into_iter().map(in_order).collect()
}

/// Uses chains as a device may that has promised to keep the order: one used
/// entry for all (specification 2.7.9 and 2.8.8).
fn give_back_batch(ends: &mut Ends, heads: &[u16], used_idx: &mut u16, length: u32) {
    if ends.driver.layout() == RingLayout::Packed {
        ends.packed().give_back_batch(heads, length);
        return;
    }
    // The entry is that of the batch's first chain; `virtio-queue` does not
    // know this feature.
    let slot = *used_idx & (ends.driver.size() - 1);
    ends.scribble_used_element(slot, u32::from(*heads.last().unwrap()), length);
    *used_idx = used_idx.wrapping_add(heads.len() as u16);
    ends.scribble_used_u16(2, *used_idx);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Batches of any size come back in order: the skipped chains complete,
    /// the last with its length. Over several turns of the ring.
    #[test]
    fn batches_come_back_whole_and_in_order(
        capacity in 1..=40u16,
        shape in prop::sample::select(in_order_shapes(4)),
        steps in prop::collection::vec((1..=4u16, 0..=6u16, 0..=6u16, 0..=6u16), 1..200),
    ) {
        let capacity = match shape.layout {
            RingLayout::Split => capacity.next_power_of_two(),
            RingLayout::Packed => capacity,
        };
        let mut ends = Ends::shaped(4 * capacity, shape);
        let capacity = ends.driver.capacity();
        let mut token = 0u16;
        let mut used_idx = 0u16;
        let mut at_device = VecDeque::new();
        let mut expected = VecDeque::new();
        for (length, add, give_back, pop) in steps {
            for _ in 0..add {
                token = token.wrapping_add(1);
                let chain = vec![writable(0x1000, 10); length.into()];
                match ends.add(&chain, token) {
                    Ok(()) => at_device.push_back((token, 10 * u32::from(length))),
                    Err(QueueError::Full { .. }) => {
                        prop_assert_eq!(at_device.len() + expected.len(), usize::from(capacity));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            if ends.driver.has_unpublished() {
                ends.driver.publish();
            }
            let batch = usize::from(give_back).min(at_device.len());
            let heads: Vec<_> = (0..batch).map(|_| ends.take().unwrap().0).collect();
            if batch > 0 {
                give_back_batch(&mut ends, &heads, &mut used_idx, 3);
                for (index, (token, length)) in at_device.drain(..batch).enumerate() {
                    let length = if index + 1 == batch { 3 } else { length };
                    expected.push_back(Used { token, length });
                }
            }
            for _ in 0..pop {
                prop_assert_eq!(ends.driver.has_used(), !expected.is_empty());
                let used = ends.driver.used_idx().wrapping_sub(ends.driver.last_used_idx());
                prop_assert_eq!(usize::from(used), expected.len());
                prop_assert_eq!(ends.driver.pop_used(), Ok(expected.pop_front()));
                prop_assert_eq!(ends.driver.enable_interrupts_after(0), !expected.is_empty());
            }
            let outstanding = at_device.len() + expected.len();
            prop_assert_eq!(usize::from(ends.driver.outstanding()), outstanding);
            prop_assert_eq!(usize::from(ends.driver.free()), usize::from(capacity) - outstanding);
        }
    }
}

/// Slots are taken in the order of their number, as the specification wants it
/// of a split ring (2.7.9): that is what lets a device do without reading the
/// available ring.
#[test]
fn slots_are_taken_in_order() {
    for shape in in_order_shapes(1) {
        let mut ends = Ends::shaped(8, shape);
        let mut next = 0;
        for count in [3, 8, 5, 1, 7, 8] {
            for _ in 0..count {
                let head = ends.driver.next_head().unwrap().descriptor();
                assert_eq!(head, next % 8);
                next += 1;
                ends.add(&[writable(1, 1)], 0).unwrap();
            }
            ends.driver.publish();
            while let Some((head, _)) = ends.take() {
                ends.give_back(head, 1);
            }
            ends.driver.discard_used().unwrap();
            assert_eq!(ends.driver.free(), 8);
        }
    }
}

/// A device that uses a chain which is not the next one has used all before it
/// too, whatever it meant; one that was used already breaks the ring.
#[test]
fn a_chain_that_came_back_cannot_come_again() {
    for shape in in_order_shapes(1) {
        let mut ends = Ends::shaped(8, shape);
        for token in 0..4 {
            ends.add(&[writable(1, 10)], token).unwrap();
        }
        ends.driver.publish();
        let heads: Vec<_> = (0..4).map(|_| ends.take().unwrap().0).collect();
        let mut used_idx = 0;
        give_back_batch(&mut ends, &heads[..2], &mut used_idx, 5);
        for (token, length) in [(0, 10), (1, 5)] {
            let used = Used { token, length };
            assert_eq!(ends.driver.pop_used(), Ok(Some(used)));
        }
        match shape.layout {
            RingLayout::Packed => ends.packed().write_used(heads[0], 5),
            RingLayout::Split => {
                ends.scribble_used_element(2, heads[0].into(), 5);
                ends.scribble_used_u16(2, 3);
            }
        }
        let reason = BrokenReason::IdNotOutstanding { id: heads[0] };
        let broken = Err(QueueError::Broken { queue: 7, reason });
        assert_eq!(ends.driver.pop_used(), broken);
        assert_eq!(ends.driver.pop_used(), broken);
    }
}

/// An id that would take the batch beyond what the device was shown, or says
/// that it has used.
#[test]
fn a_batch_cannot_go_beyond_what_was_used() {
    for shape in in_order_shapes(1) {
        let mut ends = Ends::shaped(8, shape);
        let published = match shape.layout {
            RingLayout::Packed => 2,
            RingLayout::Split => 4,
        };
        for token in 0..4 {
            if token == published {
                ends.driver.publish();
            }
            ends.add(&[writable(1, 10)], token).unwrap();
        }
        if published == 4 {
            ends.driver.publish();
        }
        // The fourth chain, by a used index of two or with two published.
        match shape.layout {
            RingLayout::Packed => ends.packed().write_used(3, 5),
            RingLayout::Split => {
                ends.scribble_used_element(0, 3, 5);
                ends.scribble_used_u16(2, 2);
            }
        }
        assert!(ends.driver.pop_used().unwrap().is_some());
        assert!(ends.driver.pop_used().unwrap().is_some());
        let reason = BrokenReason::NotInOrder { id: 3 };
        let broken = Err(QueueError::Broken { queue: 7, reason });
        assert_eq!(ends.driver.pop_used(), broken, "{shape:?}");
        assert_eq!(ends.driver.discard_used(), broken.map(|_: Option<Used>| ()));
        assert_eq!(ends.driver.free(), 0);
    }
}

/// Without batches a device that keeps the order looks like any other.
#[test]
fn single_buffers_go_around() {
    for shape in in_order_shapes(1) {
        let mut ends = Ends::shaped(4, shape);
        for token in 0..1000u16 {
            ends.add(&[writable(1, 10)], token).unwrap();
            ends.driver.publish();
            let (head, _) = ends.take().unwrap();
            ends.give_back(head, u32::from(token % 11));
            let length = u32::from(token % 11);
            assert_eq!(ends.driver.pop_used(), Ok(Some(Used { token, length })));
        }
        assert_eq!(ends.driver.added(), 1000);
    }
}
