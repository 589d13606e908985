//! The virtqueues as the guest's records tell them, step by step.

use std::collections::{BTreeMap, BTreeSet};

use kickpath_trace::Event;

use super::explain::{Context, buffer};
use super::records::GuestRecord;
use super::timeline::{
    AvailEntry, AvailRing, Descriptor, Part, QueueSnapshot, UsedEntry, UsedRing,
};

/// The descriptors and entries that shown records touch, by queue: snapshots
/// hold no others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched(BTreeMap<u16, BTreeSet<(u8, u16)>>);

impl Touched {
    fn note(&mut self, queue: u16, parts: &[Part]) {
        let set = self.0.entry(queue).or_default();
        set.extend(parts.iter().filter_map(|part| key(*part)));
    }

    fn has(&self, queue: u16, part: Part) -> bool {
        let set = self.0.get(&queue);
        key(part).is_some_and(|key| set.is_some_and(|set| set.contains(&key)))
    }
}

fn key(part: Part) -> Option<(u8, u16)> {
    match part {
        Part::Descriptor(number) => Some((0, number)),
        Part::AvailEntry(slot) => Some((1, slot)),
        Part::UsedEntry(slot) => Some((2, slot)),
        _ => None,
    }
}

/// All queues.
#[derive(Clone, Debug, Default)]
pub struct Queues(BTreeMap<u16, Queue>);

/// What is known of one.
#[derive(Clone, Debug, Default)]
struct Queue {
    size: Option<u16>,
    descriptors: BTreeMap<u16, Descriptor>,
    avail: AvailRing,
    avail_entries: BTreeMap<u16, u16>,
    used: UsedRing,
    used_entries: BTreeMap<u16, UsedEntry>,
    /// The chain that is being written.
    parts: Vec<u16>,
    /// Descriptors of every chain, by its head.
    chains: BTreeMap<u16, Vec<u16>>,
    /// Chains at the device; unknown until the queue was set up.
    outstanding: Option<u16>,
}

impl Queues {
    /// Takes a record in; returns what it changed.
    pub fn apply(&mut self, record: &GuestRecord) -> Vec<Part> {
        let Some(number) = record.queue else {
            return Vec::new();
        };
        let queue = self.0.entry(number).or_default();
        let (a, b) = (record.a, record.b);
        match record.event {
            Event::SetupQueue => {
                *queue = Queue {
                    size: u16::try_from(a).ok(),
                    outstanding: Some(0),
                    ..Queue::default()
                };
                Vec::new()
            }
            Event::Descriptor => vec![queue.descriptor(a as u16, a >> 32, b)],
            Event::Add => queue.add(a, b),
            Event::Publish => {
                queue.avail.idx = Some(a as u16);
                vec![Part::AvailIndex]
            }
            Event::KickPrepare => {
                let wish = Some((a >> 32) as u16);
                match a >> 48 & 1 {
                    1 => vec![set(&mut queue.used.avail_event, wish, Part::AvailEvent)],
                    _ => vec![set(&mut queue.used.flags, wish, Part::UsedFlags)],
                }
            }
            Event::PopUsed => queue.pop(a, b),
            Event::EnableInterrupts | Event::DisableInterrupts => {
                let wish = Some(a as u16);
                match a >> 48 & 1 {
                    1 => vec![set(&mut queue.avail.used_event, wish, Part::UsedEvent)],
                    _ => vec![set(&mut queue.avail.flags, wish, Part::AvailFlags)],
                }
            }
            _ => Vec::new(),
        }
    }

    /// The queue as it is known now, with what `touched` has; `None` for one of
    /// which nothing is known.
    pub fn snapshot(
        &self,
        number: u16,
        touched: &Touched,
        context: Context,
        changed: Vec<Part>,
    ) -> Option<QueueSnapshot> {
        let queue = self.0.get(&number)?;
        let has = |part| touched.has(number, part);
        let descriptors = queue.descriptors.values();
        let avail = queue.avail_entries.iter();
        let used = queue.used_entries.values();
        Some(QueueSnapshot {
            queue: number,
            name: context.queue_name(number).to_owned(),
            format: "split".to_owned(),
            size: queue.size,
            descriptors: descriptors
                .filter(|descriptor| has(Part::Descriptor(descriptor.number)))
                .cloned()
                .collect(),
            avail: AvailRing {
                entries: avail
                    .filter(|(slot, _)| has(Part::AvailEntry(**slot)))
                    .map(|(&slot, &head)| AvailEntry { slot, head })
                    .collect(),
                ..queue.avail.clone()
            },
            used: UsedRing {
                entries: used
                    .filter(|entry| has(Part::UsedEntry(entry.slot)))
                    .copied()
                    .collect(),
                ..queue.used.clone()
            },
            outstanding: queue.outstanding,
            changed,
        })
    }
}

fn set(field: &mut Option<u16>, value: Option<u16>, part: Part) -> Part {
    *field = value;
    part
}

impl Queue {
    fn descriptor(&mut self, number: u16, length: u64, word: u64) -> Part {
        let (address, device_writes) = buffer(word);
        self.descriptors.insert(
            number,
            Descriptor {
                number,
                address,
                length: length as u32,
                device_writes,
                next: None,
                at_device: false,
            },
        );
        self.parts.push(number);
        Part::Descriptor(number)
    }

    fn add(&mut self, a: u64, b: u64) -> Vec<Part> {
        let (head, slot) = (a as u16, (a >> 16) as u16);
        // Its own number is the head's plus that of the parts before it.
        let last = head.wrapping_add(self.parts.len() as u16);
        self.descriptor(last, a >> 32, b);
        let chain = std::mem::take(&mut self.parts);
        let next = chain.iter().skip(1).map(|number| Some(*number));
        let mut changed = vec![Part::AvailEntry(slot)];
        for (number, next) in chain.iter().zip(next.chain([None])) {
            if let Some(descriptor) = self.descriptors.get_mut(number) {
                descriptor.next = next;
                descriptor.at_device = true;
            }
            changed.push(Part::Descriptor(*number));
        }
        self.chains.insert(head, chain);
        self.avail_entries.insert(slot, head);
        self.outstanding = self.outstanding.map(|count| count.saturating_add(1));
        changed
    }

    fn pop(&mut self, a: u64, b: u64) -> Vec<Part> {
        let (id, slot, length) = (a as u16, (a >> 16) as u16, (a >> 32) as u32);
        let mut changed = vec![Part::UsedEntry(slot)];
        self.used_entries
            .insert(slot, UsedEntry { slot, id, length });
        if self.used.idx != Some(b as u16) {
            self.used.idx = Some(b as u16);
            changed.push(Part::UsedIndex);
        }
        for number in self.chains.remove(&id).unwrap_or_default() {
            if let Some(descriptor) = self.descriptors.get_mut(&number) {
                descriptor.at_device = false;
            }
            changed.push(Part::Descriptor(number));
        }
        self.outstanding = self.outstanding.map(|count| count.saturating_sub(1));
        changed
    }
}

/// What the shown records, by their place, touch.
pub fn touched(records: &[GuestRecord], shown: &BTreeSet<usize>) -> Touched {
    let mut touched = Touched::default();
    let mut queues = Queues::default();
    for (place, record) in records.iter().enumerate() {
        let changed = queues.apply(record);
        if let Some(queue) = record.queue
            && shown.contains(&place)
        {
            touched.note(queue, &changed);
        }
    }
    touched
}

#[cfg(test)]
mod tests {
    use super::super::journey::tests::{echo, record};
    use super::*;

    #[test]
    fn a_queue_is_replayed_from_its_setup() {
        let mut records = vec![
            record(Event::SetupQueue, Some(1), 256, 0x1000),
            record(Event::SetupQueue, Some(0), 256, 0x2000),
        ];
        records.extend(echo(64, 0, 3, 7));
        records.push(record(Event::PopUsed, Some(1), 3 | 7 << 16, 8));
        let shown: BTreeSet<usize> = (0..records.len()).collect();
        let touched = touched(&records, &shown);
        let mut queues = Queues::default();
        let mut snapshots = Vec::new();
        for record in &records {
            let changed = queues.apply(record);
            if record.queue == Some(1) {
                let snapshot = queues
                    .snapshot(1, &touched, Context::default(), changed)
                    .unwrap();
                snapshots.push((record.event, snapshot));
            }
        }
        let at = |event| {
            let found = snapshots.iter().rev().find(|(e, _)| *e == event);
            &found.unwrap().1
        };
        let added = at(Event::Add);
        assert_eq!(added.avail.entries, [AvailEntry { slot: 7, head: 3 }]);
        assert_eq!(added.avail.idx, None, "not published yet");
        assert_eq!(added.outstanding, Some(1));
        assert_eq!(added.changed, [Part::AvailEntry(7), Part::Descriptor(3)]);
        let [descriptor] = added.descriptors.as_slice() else {
            panic!("{:?}", added.descriptors);
        };
        assert_eq!(descriptor.length, 116);
        assert!(descriptor.at_device && !descriptor.device_writes);
        assert_eq!(at(Event::Publish).avail.idx, Some(8));
        assert_eq!(at(Event::KickPrepare).used.avail_event, Some(7));
        let back = at(Event::PopUsed);
        assert_eq!(back.used.idx, Some(8));
        assert_eq!(back.used.entries[0].id, 3);
        assert!(!back.descriptors[0].at_device);
        assert_eq!(back.outstanding, Some(0));
    }

    #[test]
    fn chains_are_linked_and_others_left_out() {
        let records = [
            record(Event::Descriptor, Some(1), 4 | 10 << 32, 0x5000),
            record(Event::Add, Some(1), 4 | 9 << 16 | 60 << 32, 0x500a),
            record(Event::Add, Some(1), 6 | 10 << 16 | 60 << 32, 0x6000),
        ];
        let shown = BTreeSet::from([0, 1]);
        let touched = touched(&records, &shown);
        let mut queues = Queues::default();
        for record in &records {
            queues.apply(record);
        }
        let snapshot = queues
            .snapshot(1, &touched, Context::default(), Vec::new())
            .unwrap();
        let links: Vec<_> = snapshot
            .descriptors
            .iter()
            .map(|d| (d.number, d.next))
            .collect();
        assert_eq!(links, [(4, Some(5)), (5, None)]);
        assert_eq!(snapshot.avail.entries.len(), 1);
        assert_eq!(snapshot.size, None, "its setup was not recorded");
        assert_eq!(snapshot.outstanding, None);
        assert!(
            queues
                .snapshot(9, &touched, Context::default(), Vec::new())
                .is_none()
        );
    }
}
