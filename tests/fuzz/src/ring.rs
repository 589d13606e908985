//! A ring, of frames or of commands, whose memory the device writes as it likes.

use std::collections::BTreeMap;

use virtio_net::queue::{
    Buffer, CommandRing, EventMode, PositionalRing, QueueError, QueueRing, RingLayout, RingShape,
    SlotBuffers,
};
use vm_memory::{Bytes, GuestAddress};

use crate::input::Input;
use crate::support::memory::{DeviceWritable, GuestHal, guest_memory};
use crate::support::ring::Areas as _;

/// What is done with either kind of ring.
trait Fuzzed: QueueRing {
    /// Before anything is added.
    fn prepare(&mut self, _shape: &RingShape) {}

    /// Adds something, if there is room: its number, and the bytes that the device
    /// may write.
    fn add(&mut self, input: &mut Input<'_>) -> Option<(u16, u32)>;

    /// Takes something back: its number, and the bytes that were written.
    fn pop(&mut self) -> Result<Option<(u16, u32)>, QueueError>;

    /// Takes several back, each with so many bytes or more, where that can be done at once.
    fn pop_run(&mut self, _most: u32, _shortest: u32) -> Vec<(u16, u32)> {
        Vec::new()
    }
}

impl Fuzzed for CommandRing<GuestHal> {
    fn add(&mut self, input: &mut Input<'_>) -> Option<(u16, u32)> {
        let count = u64::from(input.u8() % 5);
        let writable = input.u8();
        let buffers: Vec<_> = (0..count)
            .map(|at| Buffer::new(0x1000 * at, 10, at >= u64::from(writable % 5)))
            .collect();
        // SAFETY: nothing accesses the buffers, which are only numbers here.
        unsafe { Self::add(self, &buffers) }.ok()?;
        let room = buffers.iter().map(|b| b.length * u32::from(b.writable));
        // There is one at a time.
        Some((0, room.sum()))
    }

    fn pop(&mut self) -> Result<Option<(u16, u32)>, QueueError> {
        Ok(self.pop_used()?.map(|length| (0, length)))
    }
}

impl Fuzzed for PositionalRing<GuestHal> {
    fn prepare(&mut self, shape: &RingShape) {
        let buffers = SlotBuffers {
            header: 4,
            capacity: 6,
            apart: shape.chain > 1,
            writable: true,
        };
        let slots = self.slots();
        // SAFETY: nothing accesses the buffers, which are only numbers here.
        unsafe { Self::prepare(self, slots, buffers, |slot| 0x1000 * u64::from(slot)) };
    }

    fn add(&mut self, input: &mut Input<'_>) -> Option<(u16, u32)> {
        let slot = self.next_slot()?;
        Self::add(self, u32::from(input.u8() % 7));
        // The room is the buffer's, however long the frame is.
        Some((slot, 10))
    }

    fn pop(&mut self) -> Result<Option<(u16, u32)>, QueueError> {
        Ok(self.pop_used()?.map(|used| (used.slot, used.length)))
    }

    fn pop_run(&mut self, most: u32, shortest: u32) -> Vec<(u16, u32)> {
        let mut taken = Vec::new();
        let count = Self::pop_run(self, most, shortest, |slot, length| {
            assert!(length >= shortest);
            taken.push((slot.try_into().expect("a slot"), length));
            // Whoever takes them may stop.
            length % 4 != 3
        });
        assert_eq!(count as usize, taken.len());
        taken
    }
}

/// Nothing panics; nothing comes back that is not outstanding, or twice; no length
/// beyond what the device could write; and a broken ring stays so.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    match input.pick(&[true, false]) {
        true => run_ring::<CommandRing<GuestHal>>(input),
        false => run_ring::<PositionalRing<GuestHal>>(input),
    }
}

fn run_ring<R: Fuzzed>(mut input: Input<'_>) {
    let mode = input.pick(&[EventMode::Flags, EventMode::EventIdx]);
    let chain = input.pick(&[1u16, 2, 4]);
    let mut shape = match input.pick(&[true, false]) {
        true => RingShape::split(chain, mode),
        false => RingShape::packed(chain, mode),
    };
    shape.indirect = input.pick(&[false, true]);
    shape.in_order = input.pick(&[false, true]);
    let size = input.pick(&[4u32, 8, 16, 32, 5, 1, 2]);
    let Ok(mut ring) = R::new(7, size, shape) else {
        return;
    };
    ring.prepare(&shape);
    let areas: Vec<(u64, usize)> = DeviceWritable::of_this_thread().with(|regions| {
        let regions = regions.iter();
        regions
            .map(|(start, region)| (*start, region.length))
            .collect()
    });
    let memory = guest_memory();
    // Bytes that the device may write of each that it has.
    let mut outstanding = BTreeMap::new();
    let mut broken: Option<QueueError> = None;
    let give_back = |outstanding: &mut BTreeMap<u16, u32>, number, length| {
        let room = outstanding.remove(&number);
        let room = room.unwrap_or_else(|| panic!("{number} is not outstanding"));
        assert!(length <= room, "{length} of {number}, room for {room}");
    };
    while !input.is_at_end() {
        let operation = input.u8();
        match if operation < 240 { operation % 8 } else { 8 } {
            0 => {
                if let Some((number, room)) = ring.add(&mut input) {
                    assert!(outstanding.insert(number, room).is_none());
                    assert_eq!(broken, None);
                }
            }
            1 => {
                if ring.has_unpublished() {
                    ring.publish();
                }
            }
            2 => match ring.pop() {
                Ok(Some((number, length))) => {
                    give_back(&mut outstanding, number, length);
                    assert_eq!(broken, None);
                }
                Ok(None) => assert_eq!(broken, None),
                Err(error) => assert_eq!(*broken.get_or_insert(error), error),
            },
            // The device writes anywhere, or near the beginning of a page.
            3 | 4 => {
                let at = usize::from(input.u8()) % areas.len();
                let (start, length) = areas[at];
                let page = usize::from(input.u8()) << 12;
                let offset = (page + usize::from(input.u16() & 0xfff)) % length;
                let bytes = usize::from(input.u8() % 16);
                let bytes = input.bytes(bytes.min(length - offset));
                let to = GuestAddress(start + offset as u64);
                memory.write_slice(bytes, to).unwrap();
            }
            // The device uses something and says so.
            5 if shape.layout == RingLayout::Packed => {
                let slot = u64::from(input.u8()) % u64::from(ring.size());
                let length = u32::from(input.u8());
                let id = u32::from(input.u8());
                // As of a lap in which it is used, or of one in which it is not.
                let flags = input.pick(&[0x8080u32, 0, 0x8082, 2, 0x80, 0x8000]);
                let element = [length, id | flags << 16];
                let to = GuestAddress(ring.descriptor_area() + 16 * slot + 8);
                memory.write_obj(element, to).unwrap();
            }
            5 => {
                let used = ring.device_area();
                let index: u16 = memory.read_obj(GuestAddress(used + 2)).unwrap();
                let slot = u64::from(index) % u64::from(ring.size());
                let element = [u32::from(input.u8()), u32::from(input.u8())];
                let to = GuestAddress(used + 4 + 8 * slot);
                memory.write_obj(element, to).unwrap();
                let to = GuestAddress(used + 2);
                memory.write_obj(index.wrapping_add(1), to).unwrap();
            }
            6 => {
                ring.disable_interrupts();
            }
            8 => {
                let (most, shortest) = (input.u8(), input.u8() % 12);
                for (number, length) in ring.pop_run(most.into(), shortest.into()) {
                    give_back(&mut outstanding, number, length);
                    assert_eq!(broken, None);
                }
            }
            _ => {
                ring.enable_interrupts_after(u16::from(input.u8()));
                assert!(usize::from(ring.published()) <= outstanding.len());
                ring.free();
                ring.has_used();
                ring.used_idx();
            }
        }
    }
}
