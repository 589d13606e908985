//! A device that lies on the ring of commands, in either layout: nothing panics, what
//! comes back was at the device, and a ring that was lied to says why, once and for
//! ever. (The ring of frames is lied to in `ring_positional_malicious`.)

use proptest::prelude::*;
use virtio_net::queue::{
    BrokenReason, Buffer, QueueError, QueueRing, RingLayout, RingShape, packed, split,
};
use vm_memory::{Bytes, GuestAddress};

use crate::support::memory;
use crate::support::packed::{AVAIL, USED};
use crate::support::ring::{Areas, DeviceEnd, Ends, chain_shapes, readable, writable};

const SIZE: u16 = 32;

/// Bytes of a ring's memory.
fn total(ends: &Ends) -> usize {
    let size = ends.driver.size();
    match ends.device {
        DeviceEnd::Split { .. } => split::Layout::new(size).total,
        DeviceEnd::Packed(_) => packed::Layout::new(size).total,
    }
}

fn is_split(shape: &RingShape) -> bool {
    shape.layout == RingLayout::Split
}

/// So many buffers of ten bytes for the device to write.
fn chain(length: usize) -> Vec<Buffer> {
    vec![writable(0x1000, 10); length]
}

/// Adds such a chain, which the device takes.
fn add(ends: &mut Ends, length: usize) -> u16 {
    ends.add(&chain(length)).unwrap();
    ends.driver.publish();
    ends.take().unwrap().0
}

/// A ring for chains of four buffers with a chain of three at the device, after `before`
/// others; its id, and those of the others.
fn ends_with(shape: RingShape, before: usize) -> (Ends, u16, Vec<u16>) {
    let mut ends = Ends::shaped(SIZE, shape);
    let mut old = Vec::new();
    for number in 0..before {
        let id = add(&mut ends, 1 + number % 4);
        old.push(id);
        ends.give_back(id, 5);
        assert_eq!(ends.driver.pop_used(), Ok(Some(5)));
    }
    let id = add(&mut ends, 3);
    (ends, id, old)
}

/// Every form of a ring, new and after some commands.
fn rings() -> impl Iterator<Item = (RingShape, usize)> {
    let shapes = chain_shapes(4).into_iter();
    shapes.flat_map(|shape| [0, 1, 5, 14, 70].map(|before| (shape, before)))
}

/// Where nothing is outstanding after `taken` chains, and the index says that one is used.
fn one_too_many(taken: usize) -> BrokenReason {
    let last_used_idx = taken as u16;
    BrokenReason::UsedIndex {
        used_idx: last_used_idx + 1,
        last_used_idx,
        outstanding: 0,
    }
}

/// The ring is broken for this reason, and stays so whatever happens.
fn assert_broken(ends: &mut Ends, reason: BrokenReason) {
    let broken = QueueError::Broken { queue: 7, reason };
    assert_eq!(ends.driver.pop_used(), Err(broken));
    let start = GuestAddress(ends.driver.descriptor_area());
    for pattern in [0, 1, 0xff, 0x80] {
        let bytes = vec![pattern; total(ends)];
        ends.memory.write_slice(&bytes, start).unwrap();
        assert_eq!(ends.driver.pop_used(), Err(broken));
        assert_eq!(ends.add(&[readable(0, 1)]), Err(broken));
        assert_eq!(ends.driver.free(), 0);
        ends.driver.disable_interrupts();
        ends.driver.enable_interrupts_after(0);
        ends.driver.enable_interrupts_after(3);
        ends.driver.publish();
        ends.driver.used_idx();
        ends.driver.has_used();
    }
}

#[test]
fn an_id_out_of_range() {
    for (shape, before) in rings() {
        for id in [32, 33, 0x7fff, 0x8000, 0xffff, 0x1_0000, 0x1_0001, u32::MAX] {
            // An id of a packed ring has 16 bits.
            if is_split(&shape) || id < 0x1_0000 {
                let (mut ends, ..) = ends_with(shape, before);
                ends.lie(id, 0);
                assert_broken(&mut ends, BrokenReason::IdOutOfRange { id, size: SIZE });
            }
        }
    }
}

/// Such as one inside the chain, and one that came back before.
#[test]
fn an_id_that_is_not_outstanding() {
    for (shape, before) in rings() {
        for lie in 0..SIZE {
            let (mut ends, id, _) = ends_with(shape, before);
            if lie != id {
                ends.lie(lie.into(), 5);
                assert_broken(&mut ends, BrokenReason::IdNotOutstanding { id: lie });
            }
        }
    }
}

#[test]
fn a_chain_that_was_used_already() {
    for (shape, before) in rings() {
        let (mut ends, id, _) = ends_with(shape, before);
        ends.give_back(id, 4);
        assert_eq!(ends.driver.pop_used(), Ok(Some(4)));
        // While nothing is outstanding.
        ends.lie(id.into(), 4);
        if is_split(&shape) {
            assert_broken(&mut ends, one_too_many(before + 1));
        } else {
            assert_eq!(ends.driver.pop_used(), Ok(None));
        }
        // For the next one.
        let (mut ends, id, _) = ends_with(shape, before);
        ends.give_back(id, 4);
        assert_eq!(ends.driver.pop_used(), Ok(Some(4)));
        let next = add(&mut ends, 2);
        assert_ne!(next, id);
        ends.lie(id.into(), 4);
        assert_broken(&mut ends, BrokenReason::IdNotOutstanding { id });
    }
}

#[test]
fn a_length_beyond_the_buffers() {
    for (shape, before) in rings() {
        for length in [31, 32, 0x1_0000, u32::MAX] {
            let (mut ends, id, _) = ends_with(shape, before);
            ends.give_back(id, length);
            assert_broken(
                &mut ends,
                BrokenReason::LengthTooLong {
                    id,
                    length,
                    writable: 30,
                },
            );
        }
        let (mut ends, id, _) = ends_with(shape, before);
        ends.give_back(id, 30);
        assert_eq!(ends.driver.pop_used(), Ok(Some(30)));
        // What it only reads does not count.
        ends.add(&[readable(1, 100), writable(2, 7)]).unwrap();
        ends.driver.publish();
        let (id, _) = ends.take().unwrap();
        ends.give_back(id, 8);
        assert_broken(
            &mut ends,
            BrokenReason::LengthTooLong {
                id,
                length: 8,
                writable: 7,
            },
        );
    }
}

/// Too far, or back.
#[test]
fn an_index_that_jumps() {
    for (shape, before) in rings().filter(|(shape, _)| is_split(shape)) {
        let last_used_idx = before as u16;
        for distance in [2, 3, 8, 32, 0x7fff, 0x8000, 0xfffe, 0xffff] {
            let (mut ends, ..) = ends_with(shape, before);
            let used_idx = last_used_idx.wrapping_add(distance);
            ends.scribble_used_u16(2, used_idx);
            let reason = BrokenReason::UsedIndex {
                used_idx,
                last_used_idx,
                outstanding: 1,
            };
            assert_broken(&mut ends, reason);
        }
    }
}

/// A device cannot have used what it was not shown.
#[test]
fn only_what_was_published_can_have_been_used() {
    for (shape, before) in rings() {
        let (mut ends, id, _) = ends_with(shape, before);
        ends.give_back(id, 0);
        assert_eq!(ends.driver.pop_used(), Ok(Some(0)));
        let next = ends.driver.next_avail();
        ends.add(&chain(1)).unwrap();
        if is_split(&shape) {
            ends.lie((next % SIZE).into(), 0);
            assert_broken(&mut ends, one_too_many(before + 1));
        } else {
            ends.lie((next & 0x7fff).into(), 0);
            assert!(!ends.driver.has_used());
            assert_eq!(ends.driver.pop_used(), Ok(None));
            assert_eq!(ends.driver.last_used_idx(), ends.driver.used_idx());
        }
    }
}

/// What is the driver's it never reads: descriptors and available ring of the split
/// layout, and of the packed one all that does not say that a chain was used.
#[test]
fn scribbling_over_the_drivers_parts_changes_nothing() {
    for shape in chain_shapes(4) {
        for pattern in [0x00, 0xff, 0x55] {
            let mut ends = Ends::shaped(SIZE, shape);
            let mut before = 0;
            for round in 0..200 {
                let length = 1 + round % 4;
                ends.add(&chain(length)).unwrap();
                ends.driver.publish();
                let start = ends.driver.descriptor_area();
                if is_split(&shape) {
                    let bytes = vec![pattern; split::Layout::new(SIZE).used];
                    ends.memory
                        .write_slice(&bytes, GuestAddress(start))
                        .unwrap();
                } else {
                    // Address, length and id of every descriptor.
                    for index in 0..u64::from(SIZE) {
                        let at = GuestAddress(start + 16 * index);
                        ends.memory.write_slice(&[pattern; 14], at).unwrap();
                    }
                }
                assert_eq!(ends.driver.pop_used(), Ok(None));
                let written = 10 * length as u32;
                lie(&mut ends, before, 0, written, true);
                assert_eq!(ends.driver.pop_used(), Ok(Some(written)));
                before += if shape.indirect { 1 } else { length as u64 };
            }
        }
    }
}

/// After the ring is dropped its memory is given back, broken or not.
#[test]
fn a_broken_ring_gives_its_memory_back() {
    for (shape, before) in rings() {
        let (mut ends, ..) = ends_with(shape, before);
        ends.lie(77, 0);
        assert!(ends.driver.pop_used().is_err());
        assert_ne!(memory::pages_in_use(), 0);
        drop(ends);
        assert_eq!(memory::pages_in_use(), 0);
    }
}

/// What happens between two scribbles.
#[derive(Clone, Debug)]
enum Step {
    Add(usize),
    Publish,
    Pop,
    Mask,
    Arm(u16),
    /// The device uses a chain as it should.
    Use,
    /// It writes a used entry where the driver looks: how far beside the id, which
    /// length, and whether the marks are those of the lap.
    Lie(u16, u32, bool),
    /// It writes random bytes anywhere in the ring's memory.
    Scribble(prop::sample::Index, Vec<u8>),
    /// It moves its index by this much.
    Index(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..=3usize).prop_map(Step::Add),
        6 => Just(Step::Publish),
        6 => Just(Step::Pop),
        1 => Just(Step::Mask),
        1 => (0..3u16).prop_map(Step::Arm),
        6 => Just(Step::Use),
        3 => (0..3u16, 0..40u32, prop::bool::weighted(0.9))
            .prop_map(|(id, length, this_lap)| Step::Lie(id, length, this_lap)),
        1 => (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..64))
            .prop_map(|(at, bytes)| Step::Scribble(at, bytes)),
        1 => (0..3u16).prop_map(Step::Index),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A chain comes back once, if it was published, and never longer than it is;
    /// what is broken stays so.
    #[test]
    fn random_bytes_never_give_a_chain_back_that_is_not_there(
        size in 1..=12u16,
        shape in prop::sample::select(chain_shapes(1)),
        in_order: bool,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let size = if is_split(&shape) { size.next_power_of_two() } else { size };
        let most = usize::from(size.min(2));
        let mut ends = Ends::shaped(size, RingShape { chain: most as u16, in_order, ..shape });
        let total = total(&ends);
        // Bytes of the chain, and whether it was published.
        let mut outstanding: Option<(u32, bool)> = None;
        let mut broken = None;
        // Descriptors taken before the chain.
        let (mut before, mut taken) = (0u64, 0);
        for step in steps {
            match step {
                Step::Add(length) => {
                    let result = ends.add(&chain(length));
                    match (broken, outstanding) {
                        (Some(error), _) => prop_assert_eq!(result, Err(error)),
                        (None, Some(_)) => {
                            prop_assert_eq!(result, Err(QueueError::Full { queue: 7, capacity: 1 }));
                        }
                        (None, None) if length > most => {
                            prop_assert_eq!(result, Err(QueueError::ChainLength { queue: 7, length, most }));
                        }
                        (None, None) => {
                            prop_assert_eq!(result, Ok(()));
                            outstanding = Some((10 * length as u32, false));
                            taken = if shape.indirect { 1 } else { length as u64 };
                        }
                    }
                }
                Step::Publish => {
                    ends.driver.publish();
                    outstanding = outstanding.map(|(length, _)| (length, true));
                }
                Step::Pop => match ends.driver.pop_used() {
                    Ok(Some(length)) => {
                        prop_assert_eq!(broken, None);
                        let published = outstanding.take();
                        prop_assert!(published.is_some_and(|(most, shown)| shown && length <= most));
                        before += taken;
                    }
                    Ok(None) => prop_assert_eq!(broken, None),
                    Err(error) => {
                        prop_assert!(broken.is_none_or(|before| before == error));
                        broken = Some(error);
                    }
                },
                Step::Mask => ends.driver.disable_interrupts(),
                Step::Arm(more) => {
                    ends.driver.enable_interrupts_after(more);
                }
                Step::Use => lie(&mut ends, before, 0, 8, true),
                Step::Lie(beside, length, this_lap) => lie(&mut ends, before, beside, length, this_lap),
                Step::Scribble(at, bytes) => {
                    let at = at.index(total);
                    let length = bytes.len().min(total - at);
                    let start = GuestAddress(ends.driver.descriptor_area() + at as u64);
                    ends.memory.write_slice(&bytes[..length], start).unwrap();
                }
                Step::Index(more) => {
                    if is_split(&shape) {
                        let last = ends.driver.last_used_idx();
                        ends.scribble_used_u16(2, last.wrapping_add(more));
                    }
                }
            }
            let is_there = u16::from(outstanding.is_some_and(|(_, shown)| shown));
            prop_assert_eq!(ends.driver.published(), is_there);
            prop_assert_eq!(ends.driver.free(), u16::from(broken.is_none() && outstanding.is_none()));
            let ahead = ends.driver.used_idx().wrapping_sub(ends.driver.last_used_idx());
            prop_assert!(is_split(&shape) || ahead <= is_there);
        }
    }
}

/// Writes a used entry where the driver looks, `before` descriptors from the start.
fn lie(ends: &mut Ends, before: u64, beside: u16, length: u32, this_lap: bool) {
    let size = u64::from(ends.driver.size());
    let id = (before % size) as u16 + beside;
    if let DeviceEnd::Split { .. } = ends.device {
        return ends.lie(id.into(), length);
    }
    let wrap = (before / size).is_multiple_of(2) == this_lap;
    let marks = if wrap { AVAIL | USED } else { 0 };
    let at = GuestAddress(ends.driver.descriptor_area() + 16 * (before % size) + 8);
    let words = [length as u16, (length >> 16) as u16, id, marks];
    ends.memory.write_obj(words.map(u16::to_le), at).unwrap();
}
