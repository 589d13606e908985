//! The device's end of a packed virtqueue, written from the specification
//! (1.2, section 2.8) and not from the driver: `virtio-queue` has none.
//!
//! Positions are counted from the start in 64 bits, so that nothing here
//! wraps; laps and wrap counters follow from them.

use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
pub const AVAIL: u16 = 1 << 7;
pub const USED: u16 = 1 << 15;

/// Flags of an event structure.
const ENABLE: u16 = 0;
pub const DISABLE: u16 = 1;
pub const DESC: u16 = 2;

/// Length of a descriptor in bytes.
const DESCRIPTOR: u64 = 16;

/// A buffer of a chain as the device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub address: u64,
    pub length: u32,
    pub writable: bool,
}

/// A descriptor as it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawDescriptor {
    pub address: u64,
    pub length: u32,
    pub id: u16,
    pub flags: u16,
}

/// The device's end of a packed ring.
pub struct PackedDevice {
    memory: GuestMemoryMmap<()>,
    descriptors: u64,
    driver_event: u64,
    device_event: u64,
    size: u64,
    event_idx: bool,
    /// Descriptors taken, and descriptors used or skipped as used.
    avail: u64,
    used: u64,
    /// `used` when the driver was last told.
    signalled: u64,
    /// Descriptors of the ring that the chain of an id takes.
    lengths: BTreeMap<u16, u64>,
}

impl PackedDevice {
    /// Finds the parts where the registers say that they are.
    pub fn new(
        memory: GuestMemoryMmap<()>,
        size: u16,
        [descriptors, driver_event, device_event]: [u64; 3],
        event_idx: bool,
    ) -> Self {
        // Specification 2.8.4 and 2.8.10: alignment of the parts.
        assert_eq!(descriptors % 16, 0);
        assert_eq!(driver_event % 4, 0);
        assert_eq!(device_event % 4, 0);
        assert!((1..=1 << 15).contains(&size));
        Self {
            memory,
            descriptors,
            driver_event,
            device_event,
            size: size.into(),
            event_idx,
            avail: 0,
            used: 0,
            signalled: 0,
            lengths: BTreeMap::new(),
        }
    }

    /// The wrap counter at a position: 1 in the first lap.
    fn wrap(&self, position: u64) -> bool {
        (position / self.size).is_multiple_of(2)
    }

    /// Position and wrap counter as event structures and notifications have
    /// them.
    fn word(&self, position: u64) -> u16 {
        (position % self.size) as u16 | u16::from(self.wrap(position)) << 15
    }

    fn address(&self, position: u64) -> u64 {
        self.descriptors + DESCRIPTOR * (position % self.size)
    }

    fn load16(&self, address: u64, ordering: Ordering) -> u16 {
        u16::from_le(self.memory.load(GuestAddress(address), ordering).unwrap())
    }

    fn store16(&self, address: u64, value: u16, ordering: Ordering) {
        let address = GuestAddress(address);
        self.memory.store(value.to_le(), address, ordering).unwrap();
    }

    /// Reads a descriptor of the ring or of a table.
    fn read(&self, address: u64) -> RawDescriptor {
        let memory = &self.memory;
        let length: u32 = memory
            .load(GuestAddress(address + 8), Ordering::Relaxed)
            .unwrap();
        let address_of_buffer: u64 = memory
            .load(GuestAddress(address), Ordering::Relaxed)
            .unwrap();
        RawDescriptor {
            address: u64::from_le(address_of_buffer),
            length: u32::from_le(length),
            id: self.load16(address + 12, Ordering::Relaxed),
            flags: self.load16(address + 14, Ordering::Relaxed),
        }
    }

    /// The descriptor at a number of the ring, as it is.
    pub fn raw(&self, index: u16) -> RawDescriptor {
        self.read(self.address(index.into()))
    }

    /// Whether the descriptor at a position is available (specification
    /// 2.8.1): AVAIL is the wrap counter, USED is not.
    fn is_available(&self, position: u64) -> bool {
        let flags = self.load16(self.address(position) + 14, Ordering::Acquire);
        let (avail, used) = (flags & AVAIL != 0, flags & USED != 0);
        avail != used && avail == self.wrap(position)
    }

    /// Whether there is a chain to take.
    pub fn has_available(&self) -> bool {
        self.is_available(self.avail)
    }

    /// Takes the next chain: its id and its buffers. Panics on what a driver
    /// may not do.
    pub fn take(&mut self) -> Option<(u16, Vec<Piece>)> {
        if !self.is_available(self.avail) {
            return None;
        }
        let mut pieces = Vec::new();
        let mut length = 0;
        let id = loop {
            assert!(length < self.size, "a chain longer than the ring");
            let position = self.avail + length;
            // Specification 2.8.6: the whole chain is available when its
            // first descriptor is.
            assert!(self.is_available(position), "a chain with a hole");
            let descriptor = self.read(self.address(position));
            length += 1;
            let known = NEXT | WRITE | INDIRECT | AVAIL | USED;
            assert_eq!(descriptor.flags & !known, 0, "reserved flags");
            if descriptor.flags & INDIRECT != 0 {
                // Specification 2.8.19: no NEXT and no WRITE beside it.
                assert_eq!(descriptor.flags & (NEXT | WRITE), 0);
                assert_eq!(u64::from(descriptor.length) % DESCRIPTOR, 0);
                assert_eq!(descriptor.address % DESCRIPTOR, 0);
                let entries = u64::from(descriptor.length) / DESCRIPTOR;
                assert!((1..=self.size).contains(&entries));
                for entry in 0..entries {
                    let descriptor = self.read(descriptor.address + DESCRIPTOR * entry);
                    // Specification 2.8.7: only WRITE is looked at.
                    assert_eq!(descriptor.flags & INDIRECT, 0);
                    pieces.push(piece(descriptor));
                }
            } else {
                pieces.push(piece(descriptor));
            }
            if descriptor.flags & NEXT == 0 {
                break descriptor.id;
            }
        };
        assert!(u64::from(id) < self.size, "id {id} beyond the ring");
        let known = self.lengths.insert(id, length);
        assert_eq!(known, None, "id {id} is in use");
        self.avail += length;
        Some((id, pieces))
    }

    /// Takes the next descriptor, whatever it says.
    pub fn take_blindly(&mut self) -> Option<RawDescriptor> {
        let is_there = self.is_available(self.avail);
        is_there.then(|| {
            self.avail += 1;
            self.read(self.address(self.avail - 1))
        })
    }

    /// Uses what was taken so, in the same order.
    pub fn give_back_blindly(&mut self, id: u16, length: u32) {
        self.write_used(id, length);
        self.used += 1;
    }

    /// Uses a chain.
    pub fn give_back(&mut self, id: u16, length: u32) {
        let skip = self.lengths.remove(&id).expect("a chain that was taken");
        self.write_used(id, length);
        self.used += skip;
    }

    /// Uses chains in the order in which they came, and writes one used
    /// descriptor for all (specification 2.8.8).
    pub fn give_back_batch(&mut self, ids: &[u16], length_of_last: u32) {
        let skip: u64 = ids
            .iter()
            .map(|id| self.lengths.remove(id).expect("a chain that was taken"))
            .sum();
        self.write_used(*ids.last().expect("a batch"), length_of_last);
        self.used += skip;
    }

    /// Writes a used descriptor where the next one belongs, and stays there.
    /// The flags last.
    pub fn write_used(&mut self, id: u16, length: u32) {
        let address = self.address(self.used);
        let memory = &self.memory;
        memory
            .store(length.to_le(), GuestAddress(address + 8), Ordering::Relaxed)
            .unwrap();
        self.store16(address + 12, id, Ordering::Relaxed);
        let flags = if self.wrap(self.used) {
            AVAIL | USED
        } else {
            0
        };
        self.store16(address + 14, flags, Ordering::Release);
    }

    /// Whether an event structure names one of the positions.
    fn names(&self, word: u16, positions: std::ops::Range<u64>) -> bool {
        positions
            .into_iter()
            .any(|position| self.word(position) == word)
    }

    /// Whether the driver must be interrupted for what was used since this was
    /// last asked (specification 2.8.10).
    pub fn must_interrupt(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let event: u32 = self
            .memory
            .load(GuestAddress(self.driver_event), Ordering::Relaxed)
            .unwrap();
        let event = u32::from_le(event);
        let new = self.signalled..self.used;
        self.signalled = self.used;
        match (event >> 16) as u16 {
            ENABLE => !new.is_empty(),
            DISABLE => false,
            DESC if self.event_idx => self.names(event as u16, new),
            flags => panic!("the driver wrote event flags {flags}"),
        }
    }

    /// The driver event structure: position and wrap counter, flags.
    pub fn driver_event(&self) -> (u16, u16) {
        (
            self.load16(self.driver_event, Ordering::Relaxed),
            self.load16(self.driver_event + 2, Ordering::Relaxed),
        )
    }

    /// Asks for no kicks.
    pub fn disable_notification(&mut self) {
        self.set_device_event(0, DISABLE);
    }

    /// Asks for a kick at the next chain. Returns whether it is there already.
    pub fn enable_notification(&mut self) -> bool {
        if self.event_idx {
            self.set_device_event(self.word(self.avail), DESC);
        } else {
            self.set_device_event(0, ENABLE);
        }
        fence(Ordering::SeqCst);
        self.has_available()
    }

    /// Writes the device event structure: the position first, as the flags
    /// say whether it counts.
    pub fn set_device_event(&self, word: u16, flags: u16) {
        self.store16(self.device_event, word, Ordering::Relaxed);
        self.store16(self.device_event + 2, flags, Ordering::Release);
    }

    /// The next descriptor that the driver will make available, by the
    /// device's count of what it has taken: what a notification with data says
    /// when the device has taken all.
    pub fn next_avail(&self) -> u16 {
        self.word(self.avail)
    }
}

fn piece(descriptor: RawDescriptor) -> Piece {
    Piece {
        address: descriptor.address,
        length: descriptor.length,
        writable: descriptor.flags & WRITE != 0,
    }
}
