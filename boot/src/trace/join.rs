//! Which record of one layer belongs to which record of another.
//!
//! No record carries a number that another layer knows. What both layers see
//! is order: the n-th chain that the driver puts into a queue is the n-th that
//! the device takes out of it, and the n-th write to a doorbell is the n-th
//! notification of its queue, unless several writes became one on the way,
//! which an eventfd does. Both are counted over the whole window, and if the
//! numbers do not allow it the join has failed and says so.

use std::collections::BTreeMap;

use kickpath_trace::Event;

use super::explain::Context;
use super::qemu::QemuRecord;
use super::recording::Threads;
use super::records::GuestRecord;
use super::timeline::{Join, Verdict};

/// A queue in the window, as both sides recorded it. Records are named by their
/// place in the lists that they came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueWindow {
    /// Chains that the driver added.
    pub adds: Vec<usize>,
    /// Writes to the doorbell, and how many chains had been added by then.
    pub doorbells: Vec<(usize, usize)>,
    /// Chains that the driver took back.
    pub pops_used: Vec<usize>,
    /// Notifications that QEMU heard, and how many chains it had taken by then.
    pub notifies: Vec<(usize, usize)>,
    /// Chains that QEMU took.
    pub pops: Vec<usize>,
    /// Chains that QEMU gave back.
    pub flushed: usize,
    /// Interrupts that QEMU raised.
    pub interrupts: usize,
    /// Whether every notification came in a thread that runs a virtual CPU:
    /// then the write itself was handled, and no two can become one.
    pub synchronous: bool,
}

impl QueueWindow {
    /// The notification that QEMU heard for the `doorbell`-th write.
    pub fn notify_of(&self, doorbell: usize) -> Option<usize> {
        if self.notifies.len() == self.doorbells.len() {
            return self.notifies.get(doorbell).map(|(place, _)| *place);
        }
        // The one under which the last of its chains was taken.
        let (_, added) = *self.doorbells.get(doorbell)?;
        let chain = added.checked_sub(1)?;
        let before = self.notifies.iter().rev();
        let mut before = before.filter(|(_, taken)| *taken <= chain);
        before.next().map(|(place, _)| *place)
    }

    /// How doorbells and notifications fit.
    fn doorbell_join(&self, queue: &str) -> Join {
        let (left, right) = (self.doorbells.len(), self.notifies.len());
        let coalesced = right < left && right > 0 && !self.synchronous;
        let (verdict, detail) = if left == right {
            (
                Verdict::Matched,
                "every write to the doorbell is one notification".to_owned(),
            )
        } else if coalesced {
            (
                Verdict::Coalesced,
                format!(
                    "{} writes found the eventfd signalled already and became part of another \
                     notification; they are placed by the chains that QEMU then took",
                    left - right
                ),
            )
        } else {
            (
                Verdict::Failed,
                format!("{left} writes to the doorbell cannot be {right} notifications"),
            )
        };
        Join {
            what: format!("doorbell -> virtio_queue_notify, {} queue", queue),
            method: "order: the n-th write is the n-th notification of the queue".to_owned(),
            left,
            right,
            verdict,
            detail,
        }
    }

    /// How chains out fit: all that were shown to the device must be taken.
    fn chain_join(&self, queue: &str) -> Join {
        let (left, right) = (self.adds.len(), self.pops.len());
        let good = left == right;
        Join {
            what: format!("add -> virtqueue_pop, {} queue", queue),
            method: "order: the n-th chain added is the n-th taken".to_owned(),
            left,
            right,
            verdict: matched(good),
            detail: match good {
                true => "QEMU took every chain that the driver added".to_owned(),
                false => format!("{left} chains were added and {right} taken"),
            },
        }
    }

    /// How chains back fit, on a queue that the device fills.
    fn used_join(&self, queue: &str, fill_is_flush: bool) -> Join {
        let event = match fill_is_flush {
            true => "virtqueue_fill",
            false => "virtqueue_flush",
        };
        let (left, right) = (self.flushed, self.pops_used.len());
        let good = left == right;
        Join {
            what: format!("{event} -> pop_used, {queue} queue"),
            method: "order: the n-th chain given back is the n-th popped".to_owned(),
            left,
            right,
            verdict: matched(good),
            detail: match good {
                true => "the driver popped every chain that QEMU gave back".to_owned(),
                false => format!("{left} chains were given back and {right} popped"),
            },
        }
    }
}

fn matched(good: bool) -> Verdict {
    match good {
        true => Verdict::Matched,
        false => Verdict::Failed,
    }
}

/// Which queue QEMU means by an address of its own.
pub fn queue_addresses(log: &[QemuRecord]) -> BTreeMap<u64, u16> {
    let mut addresses = BTreeMap::new();
    for record in log {
        if record.event == "virtio_queue_notify"
            && let (Some(vq), Some(n)) = (record.number("vq"), record.number("n"))
            && let Ok(n) = u16::try_from(n)
        {
            addresses.insert(vq, n);
        }
    }
    // A queue that was never notified shows by what its chains are for.
    for record in log {
        if record.event == "virtqueue_pop"
            && let Some(vq) = record.number("vq")
            && !addresses.contains_key(&vq)
        {
            let queue = match (record.number("in_num"), record.number("out_num")) {
                (Some(1..), Some(0)) => 0,
                (Some(0), Some(1..)) => 1,
                _ => continue,
            };
            if !addresses.values().any(|known| *known == queue) {
                addresses.insert(vq, queue);
            }
        }
    }
    addresses
}

/// The queues in the window: `guest` and `log` are its records, with the place
/// of the first; `addresses` is [`queue_addresses`] of the whole log;
/// `fill_is_flush` as in [`Context`].
pub fn windows(
    guest: (&[GuestRecord], usize),
    log: (&[QemuRecord], usize),
    addresses: &BTreeMap<u64, u16>,
    threads: &Threads,
    fill_is_flush: bool,
) -> BTreeMap<u16, QueueWindow> {
    let mut windows: BTreeMap<u16, QueueWindow> = BTreeMap::new();
    for (offset, record) in guest.0.iter().enumerate() {
        let (Some(queue), place) = (record.queue, guest.1 + offset) else {
            continue;
        };
        let window = windows.entry(queue).or_default();
        match record.event {
            Event::Add => window.adds.push(place),
            Event::DoorbellRing => window.doorbells.push((place, window.adds.len())),
            Event::PopUsed => window.pops_used.push(place),
            _ => {}
        }
    }
    for window in windows.values_mut() {
        window.synchronous = true;
    }
    // Where there are both, an irqfd is first asked for and then signalled.
    const SIGNAL: &str = "virtio_notify_irqfd_deferred_fn";
    let signal = match log.0.iter().any(|record| record.event == SIGNAL) {
        true => SIGNAL,
        false => "virtio_notify_irqfd",
    };
    for (offset, record) in log.0.iter().enumerate() {
        let queue = record.number("vq").and_then(|vq| addresses.get(&vq));
        let (Some(queue), place) = (queue, log.1 + offset) else {
            continue;
        };
        let window = windows.entry(*queue).or_default();
        match record.event.as_str() {
            "virtio_queue_notify" => {
                window.notifies.push((place, window.pops.len()));
                window.synchronous &= threads.vcpus.contains(&record.thread);
            }
            "virtqueue_pop" => window.pops.push(place),
            "virtqueue_fill" if fill_is_flush => window.flushed += 1,
            "virtqueue_flush" => {
                let count = record.number("count").unwrap_or_default();
                window.flushed += usize::try_from(count).unwrap_or_default();
            }
            "virtio_notify" => window.interrupts += 1,
            event if event == signal => window.interrupts += 1,
            _ => {}
        }
    }
    windows
}

/// The joins of all queues. `handled` is how many interrupts the guest's
/// handlers saw, `None` when it has none.
pub fn joins(
    windows: &BTreeMap<u16, QueueWindow>,
    context: Context,
    handled: Option<usize>,
) -> Vec<Join> {
    let mut joins = Vec::new();
    for (&queue, window) in windows {
        let name = context.queue_name(queue);
        if !window.doorbells.is_empty() || !window.notifies.is_empty() {
            joins.push(window.doorbell_join(name));
        }
        if context.is_receive(queue) {
            joins.push(window.used_join(name, context.fill_is_flush));
        } else {
            joins.push(window.chain_join(name));
        }
    }
    if let Some(handled) = handled {
        let raised = windows.values().map(|window| window.interrupts).sum();
        joins.push(interrupt_join(raised, handled));
    }
    joins
}

fn interrupt_join(raised: usize, handled: usize) -> Join {
    let (verdict, detail) = match handled.cmp(&raised) {
        std::cmp::Ordering::Equal => (
            Verdict::Matched,
            "the guest took every interrupt that QEMU raised".to_owned(),
        ),
        std::cmp::Ordering::Less if handled > 0 => (
            Verdict::Coalesced,
            format!(
                "{} interrupts were raised while one was pending already, and became one",
                raised - handled
            ),
        ),
        _ => (
            Verdict::Failed,
            format!("{raised} interrupts were raised and {handled} taken"),
        ),
    };
    Join {
        what: "virtio_notify -> interrupt handler".to_owned(),
        method: "order: the n-th interrupt raised is the n-th taken".to_owned(),
        left: raised,
        right: handled,
        verdict,
        detail,
    }
}
