//! A device that does all that the specification asks of it, with every barrier.

use virtio_drivers::PhysAddr;

use super::memory::Side;
use super::search::{Fault, World};
use crate::queue::need_event;

/// Bytes that the driver posts in its first chain; one more in each that follows.
pub(super) const FIRST_LENGTH: u32 = 100;
/// Bytes that the device writes into the first; one more into each that follows.
pub(super) const FIRST_WRITTEN: u32 = 50;

/// A queue as its device sees it.
pub(super) struct Queue {
    pub(super) size: u16,
    /// Descriptors, driver area, device area.
    pub(super) areas: [PhysAddr; 3],
    /// `VIRTIO_F_EVENT_IDX`.
    pub(super) event_idx: bool,
}

/// The device's accesses.
struct Words<'w>(&'w World);

impl Words<'_> {
    fn load(&self, address: u64) -> u32 {
        self.0.load(Side::Device, address as usize)
    }

    fn store(&self, address: u64, value: u32) {
        self.0.store(Side::Device, address as usize, value);
    }
}

/// Sleeps until a kick; whether there was one before the driver was done.
fn sleep(world: &World) -> bool {
    world.wait(Side::Device)
}

/// Serves a split queue (specification 2.7) until the driver is done.
pub(super) fn serve_split(world: &World, queue: &Queue) {
    let words = Words(world);
    let [descriptors, avail, used] = queue.areas;
    let size = u64::from(queue.size);
    let at = |index: u16| u64::from(index % queue.size);
    let (used_event, avail_event) = (avail + 4 + 2 * size, used + 4 + 8 * size);
    let mut count = 0u16;
    loop {
        loop {
            if !queue.event_idx {
                words.store(used, 1); // no kicks
            }
            while words.load(avail + 2) as u16 != count {
                world.device_consumes();
                let head = words.load(avail + 4 + 2 * at(count));
                let (chain, added) = world.note_taken();
                if head != u32::from(added) {
                    world.fail(Fault::Stale);
                }
                if words.load(descriptors + 16 * u64::from(head) + 8) != FIRST_LENGTH + chain {
                    world.fail(Fault::Stale);
                }
                words.store(used + 4 + 8 * at(count), head);
                words.store(used + 8 + 8 * at(count), FIRST_WRITTEN + chain);
                world.device_publishes();
                let old = count;
                count = count.wrapping_add(1);
                words.store(used + 2, count.into());
                world.count_used();
                world.device_full_barrier();
                let wanted = match queue.event_idx {
                    true => need_event(words.load(used_event) as u16, count, old),
                    false => words.load(avail) & 1 == 0,
                };
                if wanted {
                    world.signal(Side::Device);
                }
            }
            match queue.event_idx {
                true => words.store(avail_event, count.into()),
                false => words.store(used, 0),
            }
            world.device_full_barrier();
            if words.load(avail + 2) as u16 == count {
                break;
            }
        }
        if !sleep(world) {
            return;
        }
    }
}

const AVAIL: u32 = 1 << 7;
const USED: u32 = 1 << 15;
/// In an event suppression structure: enabled, disabled, at a descriptor.
const DISABLE: u32 = 1 << 16;
const AT_DESCRIPTOR: u32 = 2 << 16;

/// Serves a packed queue (specification 2.8) until the driver is done.
pub(super) fn serve_packed(world: &World, queue: &Queue) {
    let words = Words(world);
    let [descriptors, driver_event, device_event] = queue.areas;
    let (mut index, mut wrap) = (0u16, true);
    loop {
        loop {
            words.store(device_event, DISABLE);
            let descriptor = |index: u16| descriptors + 16 * u64::from(index);
            let is_available = |index: u16, wrap: bool| {
                let flags = words.load(descriptor(index) + 12) >> 16;
                (flags & AVAIL != 0) == wrap && (flags & USED != 0) != wrap
            };
            while is_available(index, wrap) {
                world.device_consumes();
                let here = descriptor(index);
                let (id, length) = (words.load(here + 12) & 0xffff, words.load(here + 8));
                let (chain, added) = world.note_taken();
                if length != FIRST_LENGTH + chain || id != u32::from(added) {
                    world.fail(Fault::Stale);
                }
                words.store(here + 8, FIRST_WRITTEN + chain);
                world.device_publishes();
                let flags = if wrap { AVAIL | USED } else { 0 };
                words.store(here + 12, flags << 16 | id);
                world.count_used();
                let old = index;
                index += 1;
                if index == queue.size {
                    (index, wrap) = (0, !wrap);
                }
                world.device_full_barrier();
                let event = words.load(driver_event);
                let wanted = match event >> 16 & 3 {
                    0 => true,
                    2 => {
                        // As Linux's `vring_need_event` counts: from this lap's start.
                        let mut at = event as u16 & 0x7fff;
                        if (event & 0x8000 != 0) != wrap {
                            at = at.wrapping_sub(queue.size);
                        }
                        let old = if index == 0 {
                            old.wrapping_sub(queue.size)
                        } else {
                            old
                        };
                        need_event(at, index, old)
                    }
                    _ => false,
                };
                if wanted {
                    world.signal(Side::Device);
                }
            }
            let position = u32::from(index) | u32::from(wrap) << 15;
            let wish = if queue.event_idx {
                AT_DESCRIPTOR | position
            } else {
                0
            };
            words.store(device_event, wish);
            world.device_full_barrier();
            if !is_available(index, wrap) {
                break;
            }
        }
        if !sleep(world) {
            return;
        }
    }
}
