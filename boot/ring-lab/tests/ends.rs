//! The model's device against others: `virtio-queue` for the split layout, for the packed one
//! the device of the driver's own tests. After each of many random steps both rings hold the
//! same bytes, and both devices have decided the same.

use std::sync::atomic::Ordering;

use kickpath_ring_lab::{Counts, Device, DeviceEnd, Lab, Ran};
use virtio_net::queue::{EventMode, QueueRing, RingLayout};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

#[allow(dead_code)]
#[path = "../../../kernel/virtio-net/tests/driver/support/packed.rs"]
mod packed;

use packed::PackedDevice;

const SIZE: u16 = 8;

/// The memory of a ring that lies in this process, by its own addresses.
fn memory([start, _, last]: [u64; 3]) -> GuestMemoryMmap<()> {
    let size = ((last - start) as usize + 1).next_multiple_of(4096);
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
    // SAFETY: the ring's pages are allocated for longer than its device lives.
    let region = unsafe { MmapRegion::build_raw(start as *mut u8, size, prot, flags) };
    let region = GuestRegionMmap::new(region.unwrap(), GuestAddress(start)).unwrap();
    GuestMemoryMmap::from_regions(vec![region]).unwrap()
}

enum Other {
    Split(Queue, GuestMemoryMmap<()>),
    Packed(PackedDevice),
}

impl DeviceEnd for Other {
    unsafe fn new(areas: [u64; 3], size: u16, layout: RingLayout, event_idx: bool) -> Self {
        let memory = memory(areas);
        if layout == RingLayout::Packed {
            return Self::Packed(PackedDevice::new(memory, size, areas, event_idx));
        }
        let [descriptors, driver, device] = areas.map(GuestAddress);
        let mut queue = Queue::new(size).unwrap();
        queue.try_set_desc_table_address(descriptors).unwrap();
        queue.try_set_avail_ring_address(driver).unwrap();
        queue.try_set_used_ring_address(device).unwrap();
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        Self::Split(queue, memory)
    }

    fn take(&mut self) -> Option<u16> {
        match self {
            Self::Split(queue, memory) => {
                let chain = queue.iter(&*memory).unwrap().next()?;
                Some(chain.head_index())
            }
            Self::Packed(device) => device.take().map(|(id, _)| id),
        }
    }

    fn give_back(&mut self, head: u16) {
        match self {
            Self::Split(queue, memory) => queue.add_used(memory, head, 0).unwrap(),
            Self::Packed(device) => device.give_back(head, 0),
        }
    }

    fn must_interrupt(&mut self) -> bool {
        match self {
            Self::Split(queue, memory) => {
                let needed = queue.needs_notification(memory).unwrap();
                // The flag it leaves to its user.
                let flags: u16 = memory
                    .load(GuestAddress(queue.avail_ring()), Ordering::SeqCst)
                    .unwrap();
                needed && (queue.event_idx_enabled() || u16::from_le(flags) & 1 == 0)
            }
            Self::Packed(device) => device.must_interrupt(),
        }
    }

    fn disable_notification(&mut self) {
        match self {
            Self::Split(queue, memory) => queue.disable_notification(memory).unwrap(),
            Self::Packed(device) => device.disable_notification(),
        }
    }

    fn enable_notification(&mut self) -> bool {
        match self {
            Self::Split(queue, memory) => queue.enable_notification(memory).unwrap(),
            Self::Packed(device) => device.enable_notification(),
        }
    }
}

fn rings() -> impl Iterator<Item = (RingLayout, EventMode)> {
    let layouts = [RingLayout::Split, RingLayout::Packed];
    let modes = [EventMode::Flags, EventMode::EventIdx];
    layouts
        .into_iter()
        .flat_map(move |layout| modes.map(|mode| (layout, mode)))
}

/// All that both sides see.
fn bytes<D: DeviceEnd>(lab: &Lab<D>) -> Vec<u8> {
    let areas = lab.driver().ring().areas();
    let memory = memory(areas);
    let mut bytes = vec![0; (areas[2] - areas[0]) as usize + 4 + 8 * usize::from(SIZE) + 2];
    memory
        .read_slice(&mut bytes, GuestAddress(areas[0]))
        .unwrap();
    bytes
}

/// One step, by number; what came of it.
fn step<D: DeviceEnd>(lab: &mut Lab<D>, number: u32) -> (u32, Option<Ran>) {
    let most = if number & 0x100 == 0 { 1 } else { u32::MAX };
    match number % 8 {
        0 | 1 => (lab.add(number >> 16).into(), None),
        2 => (lab.publish().map_or(2, u32::from), None),
        3 => {
            lab.kick();
            (0, None)
        }
        4 => (0, lab.run(most)),
        5 => (lab.take_back(most).unwrap(), None),
        6 => {
            lab.disable_interrupts();
            (0, None)
        }
        _ => {
            let more = (number >> 9 & 7) as u16;
            (lab.enable_interrupts(more).into(), None)
        }
    }
}

#[test]
fn both_devices_write_the_same_and_decide_the_same() {
    for (layout, mode) in rings() {
        let mut ours = Lab::<Device>::new(SIZE, layout, mode).unwrap();
        let mut other = Lab::<Other>::new(SIZE, layout, mode).unwrap();
        let mut random = 0x9e37_79b9_u32;
        let mut seen = Counts::default();
        for round in 0..6_000 {
            if round == 3_000 {
                // The 16-bit index wraps in what follows.
                ours.jump(65_530).unwrap();
                other.jump(65_530).unwrap();
            }
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            let what = format!("{layout:?} {mode:?}, step {round}: {random:#x}");
            assert_eq!(step(&mut ours, random), step(&mut other, random), "{what}");
            assert_eq!(bytes(&ours), bytes(&other), "{what}");
            assert_eq!(ours.counts(), other.counts(), "{what}");
            assert_eq!(ours.is_awake(), other.is_awake(), "{what}");
            seen = ours.counts();
        }
        assert!(
            seen.kicks > 30 && seen.suppressed > 30 && seen.interrupts > 30,
            "{layout:?} {mode:?}: {seen:?}"
        );
    }
}

#[test]
fn a_device_that_sleeps_and_is_not_told_does_nothing() {
    for (layout, mode) in rings() {
        let mut lab = Lab::<Device>::new(SIZE, layout, mode).unwrap();
        assert!(lab.add(60) && lab.publish() == Some(true));
        assert_eq!(lab.run(u32::MAX), None, "{layout:?} {mode:?}");
        lab.kick();
        let ran = lab.run(u32::MAX).unwrap();
        assert_eq!((ran.used, ran.asleep, ran.interrupt), (1, true, true));
        assert_eq!(lab.take_back(u32::MAX), Ok(1));
        assert_eq!(lab.publish(), None);
    }
}

#[test]
fn while_the_device_is_awake_no_kick_is_wanted() {
    for (layout, mode) in rings() {
        let mut lab = Lab::<Device>::new(SIZE, layout, mode).unwrap();
        assert!(lab.add(60) && lab.publish() == Some(true));
        lab.kick();
        assert_eq!(lab.run(1).unwrap().used, 1);
        assert!(lab.add(60));
        assert_eq!(lab.publish(), Some(false), "{layout:?} {mode:?}");
        let ran = lab.run(u32::MAX).unwrap();
        assert_eq!((ran.used, ran.asleep), (1, true));
        assert!(lab.add(60));
        assert_eq!(lab.publish(), Some(true), "it has asked again");
    }
}

#[test]
fn the_index_wraps_and_a_kick_is_wanted_there_too() {
    for (layout, mode) in rings() {
        let mut lab = Lab::<Device>::new(SIZE, layout, mode).unwrap();
        lab.jump(65_534).unwrap();
        assert_eq!(lab.counts(), Counts::default());
        for index in [65_535u16, 0, 1] {
            assert!(lab.add(60));
            assert_eq!(lab.publish(), Some(true), "{layout:?} {mode:?} {index}");
            assert_eq!(lab.driver().ring().avail_idx(), index);
            lab.kick();
            assert_eq!(lab.run(u32::MAX).unwrap().used, 1);
            assert_eq!(lab.take_back(u32::MAX), Ok(1));
        }
        assert_eq!(lab.counts().kicks, 3);
    }
}

#[test]
fn interrupts_come_when_they_are_asked_for() {
    for (layout, mode) in rings() {
        let mut lab = Lab::<Device>::new(SIZE, layout, mode).unwrap();
        lab.disable_interrupts();
        let send = |lab: &mut Lab<Device>, frames: u32| {
            (0..frames).for_each(|_| assert!(lab.add(60)));
            lab.publish();
            lab.kick();
        };
        send(&mut lab, 2);
        assert!(!lab.run(u32::MAX).unwrap().interrupt, "{layout:?} {mode:?}");
        // What is there already comes without one, and the driver is told.
        assert!(lab.enable_interrupts(0));
        assert_eq!(lab.take_back(u32::MAX), Ok(2));
        assert!(!lab.enable_interrupts(0));
        send(&mut lab, 1);
        assert!(lab.run(u32::MAX).unwrap().interrupt);
        assert_eq!(lab.take_back(u32::MAX), Ok(1));
        // After two more than the next, with EVENT_IDX.
        send(&mut lab, 4);
        assert!(!lab.enable_interrupts(2));
        let one_by_one: Vec<bool> = (0..4).map(|_| lab.run(1).unwrap().interrupt).collect();
        let expected = match mode {
            EventMode::Flags => [true; 4],
            EventMode::EventIdx => [false, false, true, false],
        };
        assert_eq!(one_by_one, expected, "{layout:?} {mode:?}");
    }
}

#[test]
fn a_full_ring_takes_no_more() {
    for (layout, mode) in rings() {
        let mut lab = Lab::<Device>::new(SIZE, layout, mode).unwrap();
        for _ in 0..SIZE {
            assert!(lab.add(60));
        }
        assert!(!lab.add(60));
        lab.publish();
        lab.kick();
        assert_eq!(lab.run(u32::MAX).unwrap().used, u32::from(SIZE));
        assert!(!lab.add(60), "they were not taken back");
        assert_eq!(lab.take_back(1), Ok(1));
        assert!(lab.add(60) && !lab.add(60));
    }
}

#[test]
fn a_device_that_asks_for_a_later_kick_gets_it_there() {
    let mut lab = Lab::<Device>::new(SIZE, RingLayout::Split, EventMode::EventIdx).unwrap();
    lab.device().ask_after(2);
    let wanted: Vec<_> = (0..4)
        .map(|_| {
            assert!(lab.add(60));
            lab.publish()
        })
        .collect();
    assert_eq!(wanted, [false, false, true, false].map(Some));
}
