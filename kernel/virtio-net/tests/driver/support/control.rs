//! The device's end of the control queue: what QEMU's `virtio-net.c` does with
//! a command, and what it must not do.

use virtio_queue::desc::split::Descriptor;
use vm_memory::Bytes;

use super::device::LegacyDevice;
use super::memory;
use super::net::{Machine, feature, high};

/// Addresses to tell the device of.
pub const UNICAST: [u8; 6] = [0x02, 1, 2, 3, 4, 5];
pub const MULTICAST: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
pub const OTHER_MULTICAST: [u8; 6] = [0x01, 0x00, 0x5e, 0, 0, 1];

/// What the device does with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Carries it out.
    Honest,
    /// Refuses every command of this class and number.
    Refuses([u8; 2]),
    /// Refuses every command with this answer.
    Answers(u8),
    /// Uses the chain and writes no answer.
    SaysNothing,
    /// Does not even look.
    Silent,
    /// Uses a chain that it was not given.
    UsesChain(u16),
    /// Says that it wrote more than one byte.
    Writes(u32),
    /// Moves its index by two for one chain.
    CountsTwice,
}

/// A command as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Class and number.
    pub numbers: [u8; 2],
    /// The data, in one piece.
    pub data: Vec<u8>,
    /// Lengths of the chain's descriptors.
    pub descriptors: Vec<u32>,
}

/// What the control queue decides about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// By number: promiscuous, all-multicast, all-unicast, no multicast, no
    /// unicast, no broadcast.
    pub flags: [bool; 6],
    pub unicast: Vec<[u8; 6]>,
    pub multicast: Vec<[u8; 6]>,
    pub vlans: Vec<u16>,
    pub queue_pairs: u16,
    pub hashing: Option<Hashing>,
    pub offloads: Option<u64>,
}

impl Default for Filter {
    /// After a reset.
    fn default() -> Self {
        Self {
            flags: [true, false, false, false, false, false],
            unicast: Vec::new(),
            multicast: Vec::new(),
            vlans: Vec::new(),
            queue_pairs: 1,
            hashing: None,
            offloads: None,
        }
    }
}

/// What the device was told of hashes (specification 5.1.6.5.6.4 and
/// 5.1.6.5.7.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashing {
    pub types: u32,
    pub key: Vec<u8>,
    /// Empty where the hash is only reported.
    pub table: Vec<u16>,
    pub unclassified: u16,
}

/// The control part of the device.
pub struct Control {
    pub behaviour: Behaviour,
    /// Everything that came since the device was made.
    pub received: Vec<Received>,
    pub filter: Filter,
    /// The hardware address set by a command.
    pub mac: Option<[u8; 6]>,
    /// How often the driver said that it announced itself.
    pub announcements: usize,
}

impl Control {
    pub fn new() -> Self {
        Self {
            behaviour: Behaviour::Honest,
            received: Vec::new(),
            filter: Filter::default(),
            mac: None,
            announcements: 0,
        }
    }

    pub fn reset(&mut self) {
        self.filter = Filter::default();
        self.mac = None;
    }
}

impl LegacyDevice {
    /// Where the control queue is now.
    pub fn control_queue(&self) -> usize {
        if self.features & feature::MQ == 0 && self.features_high & high::RSS == 0 {
            2
        } else {
            2 * usize::from(self.max_queue_pairs())
        }
    }

    /// Carries out the commands that are queued.
    pub fn serve_control(&mut self) {
        let queue = self.control_queue();
        while let Some((head, descriptors)) = self.next_chain(queue) {
            self.serve_command(queue, head, &descriptors);
        }
    }

    fn serve_command(&mut self, queue: usize, head: u16, descriptors: &[Descriptor]) {
        let received = read_command(descriptors);
        let answer = descriptors.last().unwrap();
        self.control.received.push(received.clone());
        self.heads.push(head);
        let ack = match self.control.behaviour {
            Behaviour::Refuses(numbers) if numbers == received.numbers => Some(1),
            Behaviour::Answers(ack) => Some(ack),
            Behaviour::SaysNothing => None,
            _ => Some(u8::from(!self.carry_out(&received))),
        };
        if let Some(ack) = ack {
            memory::guest_memory()
                .write_obj(ack, answer.addr())
                .unwrap();
        }
        match self.control.behaviour {
            Behaviour::UsesChain(other) => self.use_chain(queue, other, 1),
            Behaviour::Writes(length) => self.use_chain(queue, head, length),
            Behaviour::CountsTwice => {
                self.use_chain(queue, head, 1);
                self.use_chain(queue, head, 1);
            }
            _ => self.use_chain(queue, head, 1),
        }
    }

    /// Returns whether it could be done.
    fn carry_out(&mut self, command: &Received) -> bool {
        let negotiated = |feature| self.features & feature != 0;
        let negotiated_high = |feature| self.features_high & feature != 0;
        let pairs_there_are = 1..=self.max_queue_pairs();
        let data = &command.data[..];
        let filter = &mut self.control.filter;
        match (command.numbers, data) {
            ([0, number @ 0..=1], [on @ 0..=1]) if negotiated(feature::CTRL_RX) => {
                filter.flags[usize::from(number)] = *on == 1;
            }
            ([0, number @ 2..=5], [on @ 0..=1]) if negotiated(feature::CTRL_RX_EXTRA) => {
                filter.flags[usize::from(number)] = *on == 1;
            }
            ([1, 0], data) if negotiated(feature::CTRL_RX) => {
                let Some((unicast, rest)) = take_table(data) else {
                    return false;
                };
                let Some((multicast, [])) = take_table(rest) else {
                    return false;
                };
                (filter.unicast, filter.multicast) = (unicast, multicast);
            }
            ([1, 1], data) if negotiated(feature::CTRL_MAC_ADDR) => {
                self.control.mac = data.try_into().ok();
                return self.control.mac.is_some();
            }
            ([2, number @ 0..=1], &[low, high]) if negotiated(feature::CTRL_VLAN) => {
                let id = u16::from_le_bytes([low, high]);
                filter.vlans.retain(|kept| *kept != id);
                if number == 0 {
                    filter.vlans.push(id);
                }
                return id < 4096;
            }
            ([3, 0], []) if negotiated(feature::GUEST_ANNOUNCE) => self.control.announcements += 1,
            ([4, 0], &[low, high]) if negotiated(feature::MQ) => {
                let pairs = u16::from_le_bytes([low, high]);
                filter.queue_pairs = pairs;
                filter.hashing = None;
                return pairs_there_are.contains(&pairs);
            }
            ([4, 1], data) if negotiated_high(high::RSS) => {
                let Some((hashing, pairs)) = take_rss_config(data) else {
                    return false;
                };
                let mut leads = hashing.table.clone();
                leads.push(hashing.unclassified);
                let is_right = pairs_there_are.contains(&pairs)
                    && leads
                        .iter()
                        .all(|pair| pairs_there_are.contains(&(pair + 1)))
                    && hashing.types & !SUPPORTED_HASHES == 0;
                filter.queue_pairs = pairs;
                filter.hashing = Some(hashing);
                return is_right;
            }
            ([4, 2], data) if negotiated_high(high::HASH_REPORT) => {
                filter.hashing = take_hash_config(data);
                return filter.hashing.is_some();
            }
            ([5, 0], data) if negotiated(feature::CTRL_GUEST_OFFLOADS) => {
                filter.offloads = data.try_into().ok().map(u64::from_le_bytes);
                return filter.offloads.is_some();
            }
            _ => return false,
        }
        true
    }
}

/// `struct virtio_net_ctrl_mac`.
fn take_table(data: &[u8]) -> Option<(Vec<[u8; 6]>, &[u8])> {
    let (count, rest) = data.split_at_checked(4)?;
    let count = u32::from_le_bytes(count.try_into().ok()?) as usize;
    let (table, rest) = rest.split_at_checked(6 * count)?;
    let table = table.chunks(6).map(|mac| mac.try_into().unwrap());
    Some((table.collect(), rest))
}

/// The hash types that QEMU has.
pub const SUPPORTED_HASHES: u32 = 0x1ff;

fn take<const N: usize>(data: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = data.split_first_chunk()?;
    *data = rest;
    Some(*taken)
}

/// `struct virtio_net_rss_config`, and the number of transmit queues.
fn take_rss_config(mut data: &[u8]) -> Option<(Hashing, u16)> {
    let data = &mut data;
    let types = u32::from_le_bytes(take(data)?);
    let mask = u16::from_le_bytes(take(data)?);
    let unclassified = u16::from_le_bytes(take(data)?);
    let length = u32::from(mask) + 1;
    if !length.is_power_of_two() {
        return None;
    }
    let table = (0..length).map(|_| take(data).map(u16::from_le_bytes));
    let table = table.collect::<Option<Vec<_>>>()?;
    let pairs = u16::from_le_bytes(take(data)?);
    let key = take_key(data)?;
    let hashing = Hashing {
        types,
        key,
        table,
        unclassified,
    };
    Some((hashing, pairs))
}

/// `struct virtio_net_hash_config`.
fn take_hash_config(mut data: &[u8]) -> Option<Hashing> {
    let data = &mut data;
    let types = u32::from_le_bytes(take(data)?);
    let reserved: [u8; 8] = take(data)?;
    let key = take_key(data)?;
    (reserved == [0; 8]).then_some(Hashing {
        types,
        key,
        table: vec![],
        unclassified: 0,
    })
}

fn take_key(data: &mut &[u8]) -> Option<Vec<u8>> {
    let [length] = take(data)?;
    (data.len() == usize::from(length)).then(|| data.to_vec())
}

/// Reads a command and checks the chain: all to read but the last, which is
/// the answer's byte.
fn read_command(descriptors: &[Descriptor]) -> Received {
    let memory = memory::guest_memory();
    let (answer, rest) = descriptors.split_last().unwrap();
    assert!(answer.is_write_only(), "no answer is possible");
    assert_eq!(answer.len(), 1, "the answer is one byte");
    assert!(memory::is_allocated(answer.addr().0, 1));
    // Nothing may be left of an earlier answer, or a device that says nothing
    // would seem to have said it.
    let before: u8 = memory.read_obj(answer.addr()).unwrap();
    assert_ne!(before, 0, "the answer is there before it is given");
    let mut bytes = Vec::new();
    for descriptor in rest {
        assert!(!descriptor.is_write_only(), "a command to write");
        assert_ne!(descriptor.len(), 0, "a buffer of no bytes");
        let length = descriptor.len();
        assert!(memory::is_allocated(descriptor.addr().0, length.into()));
        let mut piece = vec![0; length as usize];
        memory.read_slice(&mut piece, descriptor.addr()).unwrap();
        bytes.append(&mut piece);
    }
    assert_eq!(rest[0].len(), 2, "the header is a descriptor of its own");
    let data = bytes.split_off(2);
    Received {
        numbers: bytes.try_into().unwrap(),
        data,
        descriptors: descriptors.iter().map(Descriptor::len).collect(),
    }
}

/// The commands that came since the last call.
pub fn received(machine: &Machine) -> Vec<Received> {
    std::mem::take(&mut machine.device().control.received)
}

/// The classes and numbers of those.
pub fn numbers(machine: &Machine) -> Vec<[u8; 2]> {
    let commands = received(machine);
    commands.iter().map(|command| command.numbers).collect()
}

/// What the device lets through now.
pub fn filter(machine: &Machine) -> Filter {
    machine.device().control.filter.clone()
}
