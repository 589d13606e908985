//! The rings at each step: the records of both sides replayed in the order of
//! the steps, those that are no steps where they belong in between.

use std::collections::{BTreeMap, BTreeSet};

use super::super::explain::Context;
use super::super::qemu::QemuRecord;
use super::super::queues::{Queues, Touches};
use super::super::records::GuestRecord;
use super::super::timeline::{Part, Phase, RingMemory, Step};
use super::draft::Origin;

/// Both sides' records, and how far they are.
pub struct Replay<'a> {
    pub guest: &'a [GuestRecord],
    pub log: &'a [QemuRecord],
    /// The window's first records.
    pub window: (usize, usize),
    pub addresses: &'a BTreeMap<u64, u16>,
    pub context: Context,
}

struct State<'a> {
    replay: &'a Replay<'a>,
    queues: Queues,
    /// Records that are steps wait for them.
    guest_shown: BTreeSet<usize>,
    log_shown: BTreeSet<usize>,
    guest_next: usize,
    log_next: usize,
    /// Records of QEMU's log that were taken before their turn.
    log_early: BTreeSet<usize>,
}

impl Replay<'_> {
    /// Adds the ring to every step that is about one.
    pub fn attach(&self, steps: &mut [Step], origins: &[Option<Origin>]) {
        let places = |pick: fn(Origin) -> Option<usize>| {
            let origins = origins.iter().flatten();
            origins.filter_map(|origin| pick(*origin)).collect()
        };
        let mut state = State {
            replay: self,
            queues: Queues::new(self.context),
            guest_shown: places(|origin| match origin {
                Origin::Guest(place) => Some(place),
                Origin::Log(_) => None,
            }),
            log_shown: places(|origin| match origin {
                Origin::Log(place) => Some(place),
                Origin::Guest(_) => None,
            }),
            guest_next: 0,
            log_next: 0,
            log_early: BTreeSet::new(),
        };
        let mut settled = false;
        for (step, origin) in steps.iter_mut().zip(origins) {
            if step.phase != Phase::Attach && !settled {
                settled = true;
                state.guest_until(self.window.0);
                state.log_until(self.window.1);
            }
            let touches = match origin {
                Some(Origin::Guest(place)) => {
                    state.guest_until(*place);
                    state.guest_next = state.guest_next.max(place + 1);
                    state.guest(*place)
                }
                Some(Origin::Log(place)) => {
                    state.log_until(*place);
                    state.log_next = state.log_next.max(place + 1);
                    state.log(*place)
                }
                None => Touches::default(),
            };
            if let Some(queue) = step.queue {
                step.snapshot = state.queues.snapshot(queue, touches);
            }
        }
        keep_touched(steps);
    }
}

impl State<'_> {
    fn guest(&mut self, place: usize) -> Touches {
        let Some(record) = self.replay.guest.get(place) else {
            return Touches::default();
        };
        // What the driver saw, the device had done.
        let mut later = self.log_next;
        while !self.queues.knows(record) && later < self.replay.log.len() {
            if !self.log_shown.contains(&later) && self.log_early.insert(later) {
                self.log(later);
            }
            later += 1;
        }
        self.queues.driver(record)
    }

    fn log(&mut self, place: usize) -> Touches {
        let Some(record) = self.replay.log.get(place) else {
            return Touches::default();
        };
        let queue = record.number("vq");
        match queue.and_then(|vq| self.replay.addresses.get(&vq)) {
            Some(&queue) => self.queues.device(record, queue),
            None => Touches::default(),
        }
    }

    fn guest_until(&mut self, end: usize) {
        for place in self.guest_next..end {
            if !self.guest_shown.contains(&place) {
                self.guest(place);
            }
        }
        self.guest_next = self.guest_next.max(end);
    }

    fn log_until(&mut self, end: usize) {
        for place in self.log_next..end {
            if !self.log_shown.contains(&place) && !self.log_early.contains(&place) {
                self.log(place);
            }
        }
        self.log_next = self.log_next.max(end);
    }
}

/// Leaves out descriptors and entries that no step touches.
fn keep_touched(steps: &mut [Step]) {
    let mut touched: BTreeMap<u16, BTreeSet<(u8, u16)>> = BTreeMap::new();
    for snapshot in steps.iter().filter_map(|step| step.snapshot.as_ref()) {
        let parts = [&snapshot.changed, &snapshot.written, &snapshot.read];
        let parts = parts.into_iter().flatten();
        let queue = touched.entry(snapshot.queue).or_default();
        queue.extend(parts.filter_map(|part| match part {
            Part::AvailEntry(slot) => Some((1, *slot)),
            Part::UsedEntry(slot) => Some((2, *slot)),
            part => part.descriptor().map(|number| (0, number)),
        }));
    }
    for snapshot in steps.iter_mut().filter_map(|step| step.snapshot.as_mut()) {
        let set = touched.get(&snapshot.queue);
        let has = |kind, number| set.is_some_and(|set| set.contains(&(kind, number)));
        match &mut snapshot.memory {
            RingMemory::Split {
                descriptors,
                avail,
                used,
            } => {
                descriptors.retain(|descriptor| has(0, descriptor.number));
                avail.entries.retain(|entry| has(1, entry.slot));
                used.entries.retain(|entry| has(2, entry.slot));
            }
            RingMemory::Packed { descriptors, .. } => {
                descriptors.retain(|descriptor| has(0, descriptor.place));
            }
        }
    }
}
