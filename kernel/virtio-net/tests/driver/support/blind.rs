//! A device that believes whatever it reads, for rings in which anything may stand.
//! It uses every chain at once.
#![allow(dead_code)] // The tests of `kernel/services` use it.

use std::cell::{RefCell, RefMut};
use std::rc::Rc;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::Bytes;

use super::device::LegacyDevice;
use super::memory::{self, DeviceWritable};
use super::net::{RX, TX, high};
use super::packed::PackedDevice;

/// See the module.
pub struct BlindDevice {
    device: Rc<RefCell<LegacyDevice>>,
    /// The ends of receive and transmit queue, where they are packed.
    packed: Option<[PackedDevice; 2]>,
    /// What the driver lets it write.
    pub writable: DeviceWritable,
}

impl BlindDevice {
    pub fn new(device: &Rc<RefCell<LegacyDevice>>) -> Self {
        let mut this = Self {
            device: Rc::clone(device),
            packed: None,
            writable: DeviceWritable::of_this_thread(),
        };
        this.find_rings();
        this
    }

    fn device(&self) -> RefMut<'_, LegacyDevice> {
        self.device.borrow_mut()
    }

    /// To be called when the driver has set up its queues again.
    pub fn find_rings(&mut self) {
        let is_packed = self.device().features_high & high::RING_PACKED != 0;
        self.packed = is_packed.then(|| {
            let rings = self.hot();
            let device = self.device();
            [RX, TX].map(|queue| {
                let (ring, size) = (rings[queue], device.queues[queue].size);
                // It asks for no kick, and interrupts by none.
                PackedDevice::new(memory::guest_memory(), size, [ring; 3], false)
            })
        });
    }

    /// Where the device writes into the rings of receive and transmit queue.
    pub fn hot(&self) -> Vec<u64> {
        let device = self.device();
        let is_packed = device.features_high & high::RING_PACKED != 0;
        let places = [RX, TX].map(|queue| {
            let queue = &device.queues[queue];
            match &queue.ring {
                Some(ring) if !is_packed => ring.used_ring(),
                _ => u64::from(queue.pfn) << 12,
            }
        });
        places.into()
    }

    /// The next chain of a queue, if the device finds one.
    fn next_chain(&mut self, queue: usize) -> Option<(u16, Vec<Descriptor>)> {
        if let Some(packed) = &mut self.packed {
            let next = packed[queue].take_blindly()?;
            let buffer = Descriptor::new(next.address, next.length, next.flags, 0);
            return Some((next.id, vec![buffer]));
        }
        let memory = memory::guest_memory();
        let mut device = self.device();
        let ring = device.queues[queue].ring.as_mut()?;
        let chain = ring.iter(&memory).ok()?.next()?;
        let head = chain.head_index();
        (head < ring.size()).then(|| (head, chain.collect()))
    }

    fn use_chain(&mut self, queue: usize, head: u16, length: usize) {
        let length = u32::try_from(length).unwrap();
        match &mut self.packed {
            Some(packed) => packed[queue].give_back_blindly(head, length),
            None => self.device().use_chain(queue, head, length),
        }
    }

    /// The next frame that the driver sends, with the checksum that its header asks
    /// for; as much of it as is the driver's memory.
    pub fn send(&mut self) -> Option<Vec<u8>> {
        loop {
            let (head, descriptors) = self.next_chain(TX)?;
            let mut bytes = Vec::new();
            for descriptor in &descriptors {
                let (address, length) = (descriptor.addr(), descriptor.len());
                if memory::is_allocated(address.0, length.into()) && bytes.len() < 1 << 17 {
                    let start = bytes.len();
                    bytes.resize(start + length as usize, 0);
                    let read = memory::guest_memory().read_slice(&mut bytes[start..], address);
                    read.unwrap();
                }
            }
            self.use_chain(TX, head, 0);
            let header_length = self.device().header_length();
            if let Some((header, frame)) = bytes.split_at_checked(header_length) {
                let mut frame = frame.to_vec();
                fill_checksum(header, &mut frame);
                return Some(frame);
            }
        }
    }

    /// A frame arrives, in one buffer, as far as that has room. Returns whether there
    /// was one.
    pub fn receive(&mut self, frame: &[u8]) -> bool {
        let Some((head, descriptors)) = self.next_chain(RX) else {
            return false;
        };
        let mut bytes = vec![0; self.device().header_length()];
        if let Some(num_buffers) = bytes.get_mut(10) {
            *num_buffers = 1;
        }
        bytes.extend(frame);
        let mut rest = &bytes[..];
        for descriptor in &descriptors {
            let (address, room) = (descriptor.addr().0, descriptor.len());
            if self.writable.is_for_received(address, room.into()) {
                let (now, later) = rest.split_at(rest.len().min(room as usize));
                let written = memory::guest_memory().write_slice(now, descriptor.addr());
                written.unwrap();
                rest = later;
            }
        }
        self.use_chain(RX, head, bytes.len() - rest.len());
        true
    }
}

/// What the header asks for, if it can be (specification 5.1.6.2.2); large
/// segments stay as they are.
fn fill_checksum(header: &[u8], frame: &mut [u8]) {
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (start, offset) = (field(6), field(8));
    if header[0] & 1 == 0 || start + offset + 2 > frame.len() {
        return;
    }
    let sum = frame[start..].chunks(2).fold(0, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))
    });
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !((folded & 0xffff) + (folded >> 16)) as u16;
    frame[start + offset..][..2].copy_from_slice(&sum.to_be_bytes());
}
