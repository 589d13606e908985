//! A packed ring: 2.8 Packed Virtqueues.

use std::collections::BTreeMap;

use super::{Chain, Layout, Touches, Used, Written};
use crate::trace::timeline::{
    ChainProgress, EventSuppression, PackedDescriptor, Part, RingMemory, RingPlace,
};

/// `RING_EVENT_FLAGS_DESC`: at the descriptor that is named.
const AT_DESCRIPTOR: u16 = 2;

/// What is known of its descriptors, its two event suppression structures and
/// both sides' counters.
pub(super) struct Packed {
    size: Option<u16>,
    /// Used chains are announced by the last of several: what the driver has
    /// beside one is not its place.
    in_order: bool,
    descriptors: BTreeMap<u16, PackedDescriptor>,
    /// Where the driver writes the next chain.
    tail: Option<RingPlace>,
    /// The first descriptor since the last publishing, as it will be: id and flags, one
    /// word of memory, come last.
    withheld: Option<PackedDescriptor>,
    next_avail: Option<RingPlace>,
    next_used: Option<RingPlace>,
    driver_event: EventSuppression,
    device_event: EventSuppression,
}

/// A place as it is in memory: 0..15 the descriptor, 15 the wrap counter.
pub(super) fn place(word: u16) -> RingPlace {
    RingPlace {
        index: word & 0x7fff,
        wrap: word >> 15 == 1,
    }
}

fn event(by_event: bool, wish: u16) -> EventSuppression {
    EventSuppression {
        flags: Some(if by_event { AT_DESCRIPTOR } else { wish }),
        place: by_event.then(|| place(wish)),
    }
}

/// Id and flags of a descriptor, which are written together.
#[derive(Clone, Copy, Default, PartialEq)]
struct Word {
    id: Option<u16>,
    flags: Flags,
}

#[derive(Clone, Copy, Default, PartialEq)]
struct Flags {
    avail: Option<bool>,
    used: Option<bool>,
    device_writes: Option<bool>,
    indirect: bool,
    next: bool,
}

fn word(of: &PackedDescriptor) -> Word {
    Word {
        id: of.id,
        flags: Flags {
            avail: of.avail,
            used: of.used,
            device_writes: of.device_writes,
            indirect: of.indirect,
            next: of.next,
        },
    }
}

/// What the device writes there at the end.
fn given_back(id: u16, wrap: Option<bool>) -> Word {
    Word {
        id: Some(id),
        flags: Flags {
            avail: wrap,
            used: wrap,
            ..Flags::default()
        },
    }
}

fn set_word(descriptor: &mut PackedDescriptor, Word { id, flags }: Word) {
    descriptor.id = id;
    descriptor.avail = flags.avail;
    descriptor.used = flags.used;
    descriptor.device_writes = flags.device_writes;
    descriptor.indirect = flags.indirect;
    descriptor.next = flags.next;
}

fn wrote_word(at: u16, mut before: Word, new: Word, touches: &mut Touches) {
    touches.wrote(Part::DescriptorId(at), &mut before.id, new.id);
    touches.wrote(Part::DescriptorFlags(at), &mut before.flags, new.flags);
}

impl Packed {
    /// A ring that was made of `size` descriptors: both counters start at 1
    /// (2.8.1). Of one whose making was not recorded nothing is known.
    pub(super) fn new(size: Option<u16>, in_order: bool) -> Self {
        let start = size.map(|_| place(0x8000));
        Self {
            size,
            in_order,
            descriptors: BTreeMap::new(),
            tail: start,
            withheld: None,
            next_avail: start,
            next_used: start,
            driver_event: EventSuppression::default(),
            device_event: EventSuppression::default(),
        }
    }

    /// `count` descriptors behind `place`.
    fn after(&self, place: RingPlace, count: u16) -> Option<RingPlace> {
        let size = u32::from(self.size?);
        let index = u32::from(place.index) + u32::from(count);
        Some(match index >= size {
            true => RingPlace {
                index: u16::try_from(index - size).ok()?,
                wrap: !place.wrap,
            },
            false => RingPlace {
                index: u16::try_from(index).ok()?,
                ..place
            },
        })
    }
}

impl Layout for Packed {
    fn add(&mut self, id: u16, _slot: u16, chain: &[Written], touches: &mut Touches) {
        for (number, part) in chain.iter().enumerate() {
            let old = self.descriptors.get(&part.number);
            let wrap = self.tail.map(|tail| tail.wrap ^ (part.number < tail.index));
            let mut new = PackedDescriptor {
                place: part.number,
                address: part.address,
                length: part.length,
                id: Some(id),
                avail: wrap,
                used: wrap.map(|wrap| !wrap),
                device_writes: Some(part.device_writes),
                indirect: part.indirect,
                next: number + 1 < chain.len(),
                progress: ChainProgress::Added,
            };
            let at = part.number;
            touches.wrote(
                Part::DescriptorAddress(at),
                &mut old.map(|old| old.address),
                Some(new.address),
            );
            touches.wrote(
                Part::DescriptorLength(at),
                &mut old.map(|old| old.length),
                Some(new.length),
            );
            let before = old.map_or_else(Word::default, word);
            if self.withheld.is_none() {
                self.withheld = Some(new.clone());
                set_word(&mut new, before);
            } else {
                wrote_word(at, before, word(&new), touches);
            }
            self.descriptors.insert(at, new);
        }
        if let (Some(tail), Some(last)) = (self.tail, chain.last()) {
            let lap = RingPlace {
                index: last.number,
                wrap: tail.wrap ^ (last.number < tail.index),
            };
            self.tail = self.after(lap, 1);
        }
    }

    fn publish(&mut self, new: u16, old: u16, touches: &mut Touches) {
        if let Some(mut first) = self.withheld.take()
            && let Some(descriptor) = self.descriptors.get_mut(&first.place)
        {
            let wrap = place(old).wrap;
            (first.avail, first.used) = (Some(wrap), Some(!wrap));
            wrote_word(first.place, word(descriptor), word(&first), touches);
            set_word(descriptor, word(&first));
        }
        self.tail = Some(place(new));
        touches.wrote(Part::NextAvail, &mut self.next_avail, Some(place(new)));
    }

    fn kick_prepare(&mut self, by_event: bool, wish: u16, touches: &mut Touches) {
        self.device_event = event(by_event, wish);
        touches.read.push(Part::DeviceEvent);
    }

    fn ask(&mut self, by_event: bool, wish: u16, touches: &mut Touches) {
        let new = event(by_event, wish);
        touches.wrote(Part::DriverEvent, &mut self.driver_event, new);
    }

    fn pop_used(&mut self, used: Used, next: u16, touches: &mut Touches) {
        touches.read.extend([
            Part::DescriptorFlags(used.place),
            Part::DescriptorId(used.place),
            Part::DescriptorLength(used.place),
        ]);
        // The device's record is missing: what the driver read is known.
        if !self.knows_used(used, next) {
            let next = place(next);
            let wrap = (!self.in_order).then_some(next.wrap ^ (next.index <= used.place));
            if let Some(descriptor) = self.descriptors.get_mut(&used.place) {
                set_word(descriptor, given_back(used.id, wrap));
                descriptor.length = used.length;
            }
            self.next_used = (!self.in_order).then_some(next);
        }
        self.progress(&[used.place], ChainProgress::Reclaimed);
    }

    fn knows_used(&self, used: Used, _next: u16) -> bool {
        let descriptor = self.descriptors.get(&used.place);
        descriptor.is_some_and(|descriptor| {
            descriptor.progress == ChainProgress::Used && descriptor.id == Some(used.id)
        })
    }

    fn take(&mut self, chain: &Chain, touches: &mut Touches) {
        let descriptors = chain.descriptors.iter();
        touches.read.extend(descriptors.flat_map(|n| {
            [
                Part::DescriptorAddress(*n),
                Part::DescriptorLength(*n),
                Part::DescriptorId(*n),
                Part::DescriptorFlags(*n),
            ]
        }));
    }

    fn fill(&mut self, chain: &Chain, length: u32, _ahead: u16, touches: &mut Touches) {
        let Some(at) = self.next_used else {
            return;
        };
        let count = u16::try_from(chain.descriptors.len()).unwrap_or(1);
        // The address stays as the driver wrote it there.
        if let Some(descriptor) = self.descriptors.get_mut(&at.index) {
            let part = Part::DescriptorLength(at.index);
            touches.wrote(part, &mut descriptor.length, length);
            let new = given_back(chain.id, Some(at.wrap));
            wrote_word(at.index, word(descriptor), new, touches);
            set_word(descriptor, new);
            descriptor.progress = ChainProgress::Used;
        }
        let next = self.after(at, count);
        touches.wrote(Part::NextUsed, &mut self.next_used, next);
    }

    fn flush(&mut self, _count: u16, _touches: &mut Touches) {}

    fn read_wish(&self, touches: &mut Touches) {
        touches.read.push(Part::DriverEvent);
    }

    fn progress(&mut self, descriptors: &[u16], progress: ChainProgress) {
        for number in descriptors {
            if let Some(descriptor) = self.descriptors.get_mut(number) {
                descriptor.progress = progress;
            }
        }
    }

    fn memory(&self) -> RingMemory {
        RingMemory::Packed {
            descriptors: self.descriptors.values().cloned().collect(),
            next_avail: self.next_avail,
            next_used: self.next_used,
            driver_event: self.driver_event,
            device_event: self.device_event,
        }
    }
}
