//! A split ring: 2.7 Split Virtqueues.

use std::collections::BTreeMap;

use super::{Chain, Layout, Touches, Used, Written};
use crate::trace::timeline::{
    AvailEntry, AvailRing, ChainProgress, Descriptor, Part, RingMemory, UsedEntry, UsedRing,
};

/// What is known of its three areas.
pub(super) struct Split {
    size: Option<u16>,
    descriptors: BTreeMap<u16, Descriptor>,
    avail: AvailRing,
    avail_entries: BTreeMap<u16, u16>,
    used: UsedRing,
    used_entries: BTreeMap<u16, UsedEntry>,
}

impl Split {
    /// A ring that was made of `size` descriptors: its indices start at 0
    /// (2.7.6, 2.7.8). Of one whose making was not recorded nothing is known.
    pub(super) fn new(size: Option<u16>) -> Self {
        let start = size.map(|_| 0);
        Self {
            size,
            descriptors: BTreeMap::new(),
            avail: AvailRing {
                idx: start,
                ..AvailRing::default()
            },
            avail_entries: BTreeMap::new(),
            used: UsedRing {
                idx: start,
                ..UsedRing::default()
            },
            used_entries: BTreeMap::new(),
        }
    }
}

impl Layout for Split {
    fn add(&mut self, id: u16, slot: u16, chain: &[Written], touches: &mut Touches) {
        for (place, part) in chain.iter().enumerate() {
            let new = Descriptor {
                number: part.number,
                address: part.address,
                length: part.length,
                device_writes: part.device_writes,
                indirect: part.indirect,
                next: chain.get(place + 1).map(|next| next.number),
                progress: ChainProgress::Added,
            };
            let old = self.descriptors.get(&part.number);
            let flags = |d: &Descriptor| (d.device_writes, d.indirect, d.next);
            let number = part.number;
            touches.wrote(
                Part::DescriptorAddress(number),
                &mut old.map(|old| old.address),
                Some(new.address),
            );
            touches.wrote(
                Part::DescriptorLength(number),
                &mut old.map(|old| old.length),
                Some(new.length),
            );
            let mut before = old.map(flags);
            touches.wrote(
                Part::DescriptorFlags(number),
                &mut before,
                Some(flags(&new)),
            );
            self.descriptors.insert(number, new);
        }
        let mut entry = self.avail_entries.get(&slot).copied();
        touches.wrote(Part::AvailEntry(slot), &mut entry, Some(id));
        self.avail_entries.insert(slot, id);
    }

    fn publish(&mut self, new: u16, _old: u16, touches: &mut Touches) {
        touches.wrote(Part::AvailIndex, &mut self.avail.idx, Some(new));
    }

    fn kick_prepare(&mut self, by_event: bool, wish: u16, touches: &mut Touches) {
        let (part, place) = match by_event {
            true => (Part::AvailEvent, &mut self.used.avail_event),
            false => (Part::UsedFlags, &mut self.used.flags),
        };
        *place = Some(wish);
        touches.read.push(part);
    }

    fn ask(&mut self, by_event: bool, wish: u16, touches: &mut Touches) {
        match by_event {
            true => touches.wrote(Part::UsedEvent, &mut self.avail.used_event, Some(wish)),
            false => touches.wrote(Part::AvailFlags, &mut self.avail.flags, Some(wish)),
        }
    }

    fn pop_used(&mut self, used: Used, next: u16, touches: &mut Touches) {
        touches
            .read
            .extend([Part::UsedIndex, Part::UsedEntry(used.place)]);
        self.used_entries.insert(
            used.place,
            UsedEntry {
                slot: used.place,
                id: used.id,
                length: used.length,
            },
        );
        if !self.knows_used(used, next) {
            self.used.idx = Some(next);
        }
    }

    fn knows_used(&self, _used: Used, next: u16) -> bool {
        let shown = self.used.idx;
        shown.is_some_and(|idx| idx.wrapping_sub(next).cast_signed() >= 0)
    }

    fn take(&mut self, chain: &Chain, touches: &mut Touches) {
        touches
            .read
            .extend([Part::AvailIndex, Part::AvailEntry(chain.slot)]);
        let descriptors = chain.descriptors.iter();
        touches.read.extend(descriptors.flat_map(|n| {
            [
                Part::DescriptorAddress(*n),
                Part::DescriptorLength(*n),
                Part::DescriptorFlags(*n),
            ]
        }));
    }

    fn fill(&mut self, chain: &Chain, length: u32, ahead: u16, touches: &mut Touches) {
        let (Some(idx), Some(size @ 1..)) = (self.used.idx, self.size) else {
            return;
        };
        let slot = idx.wrapping_add(ahead) % size;
        let new = UsedEntry {
            slot,
            id: chain.id,
            length,
        };
        let mut old = self.used_entries.get(&slot).copied();
        touches.wrote(Part::UsedEntry(slot), &mut old, Some(new));
        self.used_entries.insert(slot, new);
    }

    fn flush(&mut self, count: u16, touches: &mut Touches) {
        let new = self.used.idx.map(|idx| idx.wrapping_add(count));
        touches.wrote(Part::UsedIndex, &mut self.used.idx, new);
    }

    fn read_wish(&self, touches: &mut Touches) {
        touches.read.push(match self.avail.used_event {
            Some(_) => Part::UsedEvent,
            None => Part::AvailFlags,
        });
    }

    fn progress(&mut self, descriptors: &[u16], progress: ChainProgress) {
        for number in descriptors {
            if let Some(descriptor) = self.descriptors.get_mut(number) {
                descriptor.progress = progress;
            }
        }
    }

    fn memory(&self) -> RingMemory {
        let avail = self.avail_entries.iter();
        RingMemory::Split {
            descriptors: self.descriptors.values().cloned().collect(),
            avail: AvailRing {
                entries: avail
                    .map(|(&slot, &head)| AvailEntry { slot, head })
                    .collect(),
                ..self.avail.clone()
            },
            used: UsedRing {
                entries: self.used_entries.values().copied().collect(),
                ..self.used.clone()
            },
        }
    }
}
