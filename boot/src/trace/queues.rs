//! The virtqueues' memory, step by step: what the driver's records say that it
//! wrote and read, and what the device's say that it took and gave back.
//!
//! The n-th chain that the driver added is the n-th that the device took
//! ([`join`](super::join) says whether the counts allow that), and QEMU names a
//! chain by the address of its element until it gives it back. So the device's
//! records tell which descriptors it read and which used entry it wrote, though
//! they have no number of a descriptor.

mod packed;
mod split;

use std::collections::BTreeMap;

use kickpath_trace::Event;

use super::explain::{Context, buffer};
use super::qemu::QemuRecord;
use super::records::GuestRecord;
use super::timeline::{ChainProgress, Part, QueueSnapshot, RingMemory};
use packed::Packed;
use split::Split;

/// What a record did to a ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touches {
    /// Parts that have another value now.
    pub changed: Vec<Part>,
    /// Parts that were written as they were.
    pub written: Vec<Part>,
    /// Parts that were read.
    pub read: Vec<Part>,
}

impl Touches {
    fn wrote<T: PartialEq>(&mut self, part: Part, place: &mut T, value: T) {
        if *place == value {
            self.written.push(part);
        } else {
            self.changed.push(part);
        }
        *place = value;
    }

    /// All parts.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        let parts = self.changed.iter().chain(&self.written).chain(&self.read);
        parts.copied()
    }
}

/// A buffer that was written into a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    /// Number of its descriptor.
    number: u16,
    /// Unknown for a table of descriptors.
    address: Option<u64>,
    length: u32,
    device_writes: bool,
    indirect: bool,
}

/// What differs between the two layouts.
trait Layout {
    /// The driver writes the chain `id`; `slot` is its entry of the available
    /// ring.
    fn add(&mut self, id: u16, slot: u16, chain: &[Written], touches: &mut Touches);
    /// The driver shows the device all up to `new`, which was `old` before.
    fn publish(&mut self, new: u16, old: u16, touches: &mut Touches);
    /// The driver reads when the device wants to be told.
    fn kick_prepare(&mut self, by_event: bool, wish: u16, touches: &mut Touches);
    /// The driver writes when it wants to be told.
    fn ask(&mut self, by_event: bool, wish: u16, touches: &mut Touches);
    /// The driver reads a used chain; `next` is what it has beside it.
    fn pop_used(&mut self, used: Used, next: u16, touches: &mut Touches);
    /// Whether the device's records known so far have given back what the
    /// driver saw at `next`.
    fn knows_used(&self, used: Used, next: u16) -> bool;
    /// The device reads a chain.
    fn take(&mut self, chain: &Chain, touches: &mut Touches);
    /// The device writes the used chain that is `ahead` of those it shows.
    fn fill(&mut self, chain: &Chain, length: u32, ahead: u16, touches: &mut Touches);
    /// The device shows `count` used chains.
    fn flush(&mut self, count: u16, touches: &mut Touches);
    /// The device reads when the driver wants to be told.
    fn read_wish(&self, touches: &mut Touches);
    /// How far the descriptors are.
    fn progress(&mut self, descriptors: &[u16], progress: ChainProgress);
    /// All of it.
    fn memory(&self) -> RingMemory;
}

/// What the driver read of a used chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Used {
    id: u16,
    /// Entry of the used ring, or descriptor of a packed one.
    place: u16,
    length: u32,
}

/// A chain that the driver added.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    id: u16,
    slot: u16,
    descriptors: Vec<u16>,
    reclaimed: bool,
}

/// One queue.
struct Queue {
    size: Option<u16>,
    layout: Box<dyn Layout>,
    /// Buffers of the chain that is being written, but the last.
    parts: Vec<Written>,
    chains: Vec<Chain>,
    /// Chains that the device took.
    taken: usize,
    /// Which chain an element of QEMU's is.
    elements: BTreeMap<u64, usize>,
    /// Chains that were filled and not flushed.
    filled: Vec<usize>,
    outstanding: Option<u16>,
}

/// All queues.
pub struct Queues {
    queues: BTreeMap<u16, Queue>,
    context: Context,
}

impl Queues {
    /// None yet.
    pub fn new(context: Context) -> Self {
        Self {
            queues: BTreeMap::new(),
            context,
        }
    }

    fn queue(&mut self, number: u16) -> &mut Queue {
        let context = self.context;
        self.queues
            .entry(number)
            .or_insert_with(|| Queue::new(None, context))
    }

    /// Takes a record of the driver in.
    pub fn driver(&mut self, record: &GuestRecord) -> Touches {
        let mut touches = Touches::default();
        let Some(number) = record.queue else {
            return touches;
        };
        let context = self.context;
        let queue = self.queue(number);
        let (a, b) = (record.a, record.b);
        let low = a as u16;
        let by_event = a >> 48 & 1 == 1;
        match record.event {
            Event::SetupQueue => *queue = Queue::new(u16::try_from(a).ok(), context),
            Event::Descriptor => queue.parts.push(written(low, a >> 32, b)),
            Event::Add => queue.add(context, a, b, &mut touches),
            Event::Publish => {
                queue.layout.publish(low, b as u16, &mut touches);
                let progress = ChainProgress::Available;
                let waiting = queue.chains.iter().skip(queue.taken);
                for chain in waiting.filter(|chain| !chain.reclaimed) {
                    queue.layout.progress(&chain.descriptors, progress);
                }
            }
            Event::KickPrepare => {
                let wish = (a >> 32) as u16;
                queue.layout.kick_prepare(by_event, wish, &mut touches);
            }
            Event::EnableInterrupts | Event::DisableInterrupts => {
                queue.layout.ask(by_event, low, &mut touches);
            }
            Event::PopUsed => queue.pop_used(used(record), b as u16, &mut touches),
            _ => {}
        }
        touches
    }

    /// Whether the device's records so far have given back what this record of
    /// the driver took.
    pub fn knows(&self, record: &GuestRecord) -> bool {
        let queue = record.queue.and_then(|number| self.queues.get(&number));
        record.event != Event::PopUsed
            || queue.is_none_or(|queue| queue.layout.knows_used(used(record), record.b as u16))
    }

    /// Takes a record of the device in, which is about the queue `number`.
    pub fn device(&mut self, record: &QemuRecord, number: u16) -> Touches {
        let mut touches = Touches::default();
        let context = self.context;
        let queue = self.queue(number);
        let word = |name: &str| record.number(name).unwrap_or_default();
        match record.event.as_str() {
            "virtqueue_pop" => queue.take(word("elem"), &mut touches),
            "virtqueue_fill" => {
                let (length, ahead) = (word("len") as u32, word("idx") as u16);
                queue.fill(word("elem"), length, ahead, &mut touches);
                if context.fill_is_flush {
                    queue.flush(1, &mut touches);
                }
            }
            "virtqueue_flush" => queue.flush(word("count") as u16, &mut touches),
            "virtio_notify" | "virtio_notify_irqfd" => queue.layout.read_wish(&mut touches),
            _ => {}
        }
        touches
    }

    /// The queue as it is known now; `None` for one of which nothing is.
    pub fn snapshot(&self, number: u16, touches: Touches) -> Option<QueueSnapshot> {
        let queue = self.queues.get(&number)?;
        Some(QueueSnapshot {
            queue: number,
            name: self.context.queue_name(number).to_owned(),
            size: queue.size,
            memory: queue.layout.memory(),
            outstanding: queue.outstanding,
            changed: touches.changed,
            written: touches.written,
            read: touches.read,
        })
    }
}

fn written(number: u16, length: u64, word: u64) -> Written {
    let (address, device_writes) = buffer(word);
    Written {
        number,
        address: Some(address),
        length: length as u32,
        device_writes,
        indirect: false,
    }
}

fn used(record: &GuestRecord) -> Used {
    Used {
        id: record.a as u16,
        place: (record.a >> 16) as u16,
        length: (record.a >> 32) as u32,
    }
}

impl Queue {
    fn new(size: Option<u16>, context: Context) -> Self {
        let set_up = size.is_some();
        Self {
            layout: match context.packed {
                true => Box::new(Packed::new(size, context.in_order)),
                false => Box::new(Split::new(size)),
            },
            size,
            parts: Vec::new(),
            chains: Vec::new(),
            taken: 0,
            elements: BTreeMap::new(),
            filled: Vec::new(),
            outstanding: set_up.then_some(0),
        }
    }

    fn add(&mut self, context: Context, a: u64, b: u64, touches: &mut Touches) {
        let (id, slot) = (a as u16, (a >> 16) as u16);
        let mut chain = std::mem::take(&mut self.parts);
        // Its number is the head's plus that of the parts before it; a packed
        // ring has it in the place of the entry.
        let number = match context.packed {
            true => slot,
            false => id.wrapping_add(chain.len() as u16),
        };
        chain.push(written(number, a >> 32, b));
        if context.indirect && chain.len() > 1 {
            const DESCRIPTOR: u32 = 16;
            chain = vec![Written {
                number: if context.packed { slot } else { id },
                address: None,
                length: DESCRIPTOR * chain.len() as u32,
                device_writes: false,
                indirect: true,
            }];
        }
        self.layout.add(id, slot, &chain, touches);
        let descriptors: Vec<u16> = chain.iter().map(|part| part.number).collect();
        self.layout.progress(&descriptors, ChainProgress::Added);
        self.chains.push(Chain {
            id,
            slot,
            descriptors,
            reclaimed: false,
        });
        self.outstanding = self.outstanding.map(|count| count.saturating_add(1));
    }

    fn pop_used(&mut self, used: Used, next: u16, touches: &mut Touches) {
        self.layout.pop_used(used, next, touches);
        let mut chains = self.chains.iter_mut();
        // The oldest that has not come back: ids are used again.
        let chain = chains.find(|chain| chain.id == used.id && !chain.reclaimed);
        if let Some(chain) = chain {
            chain.reclaimed = true;
            let progress = ChainProgress::Reclaimed;
            self.layout.progress(&chain.descriptors, progress);
        }
        self.outstanding = self.outstanding.map(|count| count.saturating_sub(1));
    }

    fn take(&mut self, element: u64, touches: &mut Touches) {
        if let Some(chain) = self.chains.get(self.taken) {
            self.elements.insert(element, self.taken);
            self.layout.take(chain, touches);
            if !chain.reclaimed {
                let progress = ChainProgress::Taken;
                self.layout.progress(&chain.descriptors, progress);
            }
        }
        self.taken += 1;
    }

    fn fill(&mut self, element: u64, length: u32, ahead: u16, touches: &mut Touches) {
        let number = self.elements.get(&element).copied();
        if let Some((number, chain)) = number.and_then(|n| Some((n, self.chains.get(n)?))) {
            self.layout.fill(chain, length, ahead, touches);
            self.filled.push(number);
        }
    }

    fn flush(&mut self, count: u16, touches: &mut Touches) {
        self.layout.flush(count, touches);
        let count = usize::from(count).min(self.filled.len());
        for number in self.filled.drain(..count) {
            if let Some(chain) = self.chains.get(number)
                && !chain.reclaimed
            {
                let progress = ChainProgress::Used;
                self.layout.progress(&chain.descriptors, progress);
            }
        }
    }
}

#[cfg(test)]
mod tests;
