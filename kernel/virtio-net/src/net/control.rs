//! The control queue (specification 5.1.6.5; Linux `virtnet_send_command`):
//! commands to the device, one at a time, each answered before the next.
//!
//! A command is a chain of a header, its data and a byte that the device
//! answers with. All of that lies in memory of the queue's own.

extern crate alloc;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal};

pub use super::error::ControlError;
use super::error::NetError;
use super::features::Features;
use super::rss::Rss;
use crate::doorbell::Notify;
use crate::patience::Patience;
use crate::queue::{Buffer, CommandRing, DmaRegion, QueueRing, Virtqueue};

/// Descriptors of the longest command: header, two tables, answer.
pub(super) const CHAIN: u16 = 4;

/// How long the device may take for an answer before it is given up, in
/// microseconds.
pub(super) const PATIENCE: u64 = 5_000_000;

/// Looks for an answer between two at the device's status.
const STATUS_LOOKS: u64 = 1024;

/// Where the parts of a command lie in the queue's memory, in bytes.
mod area {
    pub const HEADER: usize = 0;
    pub const DATA: usize = 8;
    pub const ANSWER: usize = 4095;
    pub const SIZE: usize = 4096;
}

/// The device's answer: done.
const ACK_OK: u8 = 0;
/// What the answer holds until the device writes it; no answer that a device
/// gives.
const NO_ANSWER: u8 = 0xff;

/// A hardware address.
pub type MacAddress = [u8; 6];

/// A command to the device (specification 5.1.6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Receive every frame (`VIRTIO_NET_CTRL_RX_PROMISC`), or not.
    Promiscuous(bool),
    /// Receive every multicast frame (`VIRTIO_NET_CTRL_RX_ALLMULTI`).
    AllMulticast(bool),
    /// Receive every unicast frame (`VIRTIO_NET_CTRL_RX_ALLUNI`).
    AllUnicast(bool),
    /// Receive no multicast frame (`VIRTIO_NET_CTRL_RX_NOMULTI`).
    NoMulticast(bool),
    /// Receive no unicast frame (`VIRTIO_NET_CTRL_RX_NOUNI`).
    NoUnicast(bool),
    /// Receive no broadcast frame (`VIRTIO_NET_CTRL_RX_NOBCAST`).
    NoBroadcast(bool),
    /// Receive what is addressed to these, beside the device's own address
    /// (`VIRTIO_NET_CTRL_MAC_TABLE_SET`).
    MacTables {
        /// Unicast addresses.
        unicast: &'a [MacAddress],
        /// Multicast addresses.
        multicast: &'a [MacAddress],
    },
    /// The device's own address (`VIRTIO_NET_CTRL_MAC_ADDR_SET`).
    MacAddress(MacAddress),
    /// Receive frames of this VLAN (`VIRTIO_NET_CTRL_VLAN_ADD`), 0 to 4095.
    VlanAdd(u16),
    /// No longer receive them (`VIRTIO_NET_CTRL_VLAN_DEL`).
    VlanRemove(u16),
    /// The driver has announced itself (`VIRTIO_NET_CTRL_ANNOUNCE_ACK`).
    AnnounceAck,
    /// Use this many queue pairs (`VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`).
    QueuePairs(u16),
    /// Hash what is received, and choose the pair by it
    /// (`VIRTIO_NET_CTRL_MQ_RSS_CONFIG`).
    RssConfig(&'a Rss),
    /// Hash what is received, and only report it
    /// (`VIRTIO_NET_CTRL_MQ_HASH_CONFIG`).
    HashConfig(&'a Rss),
    /// Offloads that the driver takes from now on, by their feature bits
    /// (`VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET`).
    GuestOffloads(Features),
}

impl Command<'_> {
    /// Class and command as the device knows them, the feature without which it does
    /// not, and the specification's name, without prefix.
    const fn facts(&self) -> ([u8; 2], Features, &'static str) {
        match self {
            Self::Promiscuous(_) => ([0, 0], Features::CTRL_RX, "RX_PROMISC"),
            Self::AllMulticast(_) => ([0, 1], Features::CTRL_RX, "RX_ALLMULTI"),
            Self::AllUnicast(_) => ([0, 2], Features::CTRL_RX_EXTRA, "RX_ALLUNI"),
            Self::NoMulticast(_) => ([0, 3], Features::CTRL_RX_EXTRA, "RX_NOMULTI"),
            Self::NoUnicast(_) => ([0, 4], Features::CTRL_RX_EXTRA, "RX_NOUNI"),
            Self::NoBroadcast(_) => ([0, 5], Features::CTRL_RX_EXTRA, "RX_NOBCAST"),
            Self::MacTables { .. } => ([1, 0], Features::CTRL_RX, "MAC_TABLE_SET"),
            Self::MacAddress(_) => ([1, 1], Features::CTRL_MAC_ADDR, "MAC_ADDR_SET"),
            Self::VlanAdd(_) => ([2, 0], Features::CTRL_VLAN, "VLAN_ADD"),
            Self::VlanRemove(_) => ([2, 1], Features::CTRL_VLAN, "VLAN_DEL"),
            Self::AnnounceAck => ([3, 0], Features::GUEST_ANNOUNCE, "ANNOUNCE_ACK"),
            Self::QueuePairs(_) => ([4, 0], Features::MQ, "MQ_VQ_PAIRS_SET"),
            Self::RssConfig(_) => ([4, 1], Features::RSS, "MQ_RSS_CONFIG"),
            Self::HashConfig(_) => ([4, 2], Features::HASH_REPORT, "MQ_HASH_CONFIG"),
            Self::GuestOffloads(_) => ([5, 0], Features::CTRL_GUEST_OFFLOADS, "GUEST_OFFLOADS_SET"),
        }
    }

    /// The feature without which the device does not know the command.
    pub const fn feature(&self) -> Features {
        self.facts().1
    }

    /// The specification's name, without prefix.
    pub const fn name(&self) -> &'static str {
        self.facts().2
    }

    /// Writes the data into `area` and returns the lengths of its two parts,
    /// each a descriptor of its own, as devices without `VIRTIO_F_ANY_LAYOUT`
    /// may expect. `None` when the area is too small.
    fn write(&self, area: &mut [u8]) -> Option<[usize; 2]> {
        let mut data = Data { area, length: 0 };
        match *self {
            Self::Promiscuous(on)
            | Self::AllMulticast(on)
            | Self::AllUnicast(on)
            | Self::NoMulticast(on)
            | Self::NoUnicast(on)
            | Self::NoBroadcast(on) => data.push(&[u8::from(on)])?,
            Self::MacTables { unicast, multicast } => {
                data.push_table(unicast)?;
                let first = data.length;
                data.push_table(multicast)?;
                return Some([first, data.length - first]);
            }
            Self::MacAddress(address) => data.push(&address)?,
            Self::VlanAdd(id) | Self::VlanRemove(id) => data.push(&id.to_le_bytes())?,
            Self::AnnounceAck => {}
            Self::QueuePairs(pairs) => data.push(&pairs.to_le_bytes())?,
            Self::RssConfig(rss) => data.push_rss_config(rss)?,
            Self::HashConfig(rss) => data.push_hash_config(rss)?,
            Self::GuestOffloads(offloads) => data.push(&(offloads.bits() as u64).to_le_bytes())?,
        }
        Some([data.length, 0])
    }
}

/// Most addresses that fit the two tables of [`Command::MacTables`] together.
pub const MAC_TABLE_ENTRIES: usize = (area::ANSWER - area::DATA - 2 * 4) / 6;

/// What has been written of a command's data.
struct Data<'a> {
    area: &'a mut [u8],
    length: usize,
}

impl Data<'_> {
    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.length + bytes.len();
        self.area.get_mut(self.length..end)?.copy_from_slice(bytes);
        self.length = end;
        Some(())
    }

    /// `struct virtio_net_ctrl_mac`.
    fn push_table(&mut self, addresses: &[MacAddress]) -> Option<()> {
        self.push(&u32::try_from(addresses.len()).ok()?.to_le_bytes())?;
        addresses.iter().try_for_each(|address| self.push(address))
    }

    /// `struct virtio_net_rss_config`.
    fn push_rss_config(&mut self, rss: &Rss) -> Option<()> {
        let last = rss.table().len().checked_sub(1)?;
        let unclassified = rss.pair_of(None);
        self.push(&rss.types().bits().to_le_bytes())?;
        self.push(&u16::try_from(last).ok()?.to_le_bytes())?;
        self.push(&unclassified.to_le_bytes())?;
        for pair in rss.table() {
            self.push(&pair.to_le_bytes())?;
        }
        self.push(&rss.pairs().to_le_bytes())?;
        self.push_key(rss)
    }

    /// `struct virtio_net_hash_config`.
    fn push_hash_config(&mut self, rss: &Rss) -> Option<()> {
        self.push(&rss.types().bits().to_le_bytes())?;
        self.push(&[0; 4 * 2])?;
        self.push_key(rss)
    }

    fn push_key(&mut self, rss: &Rss) -> Option<()> {
        let key = rss.key();
        self.push(&[u8::try_from(key.len()).ok()?])?;
        self.push(key)
    }
}

/// The control virtqueue with the memory of its command.
pub(super) struct ControlQueue<H: Hal, N> {
    pub(super) queue: Virtqueue<CommandRing<H>, N>,
    memory: DmaRegion<H>,
    /// Whether the device may still have the memory, or is not to be trusted.
    given_up: bool,
    /// How the device was told to hash what it receives, if it was.
    pub(super) rss: Option<Arc<Rss>>,
}

impl<H: Hal, N: Notify> ControlQueue<H, N> {
    pub(super) fn new(queue: Virtqueue<CommandRing<H>, N>) -> Result<Box<Self>, NetError> {
        let memory = DmaRegion::new(area::SIZE, BufferDirection::Both).ok_or_else(|| {
            NetError::NoBuffers {
                queue: queue.ring().queue(),
                count: 1,
                size: area::SIZE,
            }
        })?;
        Ok(Box::new(Self {
            queue,
            memory,
            given_up: false,
            rss: None,
        }))
    }

    /// Sends a command and waits for its answer, as long as the device is not broken
    /// (Linux `virtnet_send_command`).
    #[doc(alias = "virtnet_send_command")]
    pub(super) fn execute(
        &mut self,
        command: &Command<'_>,
        patience: Patience,
        is_broken: impl Fn() -> bool,
    ) -> Result<(), ControlError> {
        let name = command.name();
        if self.given_up {
            return Err(ControlError::GivenUp { command: name });
        }
        let lengths = self
            .write(command)
            .ok_or(ControlError::TooLong { command: name })?;
        self.send(lengths)
            .and_then(|()| self.wait(name, patience, is_broken))
            .inspect_err(|_| self.given_up = true)?;
        // SAFETY: the answer lies within the memory, which this queue owns.
        match unsafe { self.pointer(area::ANSWER).read_volatile() } {
            ACK_OK => Ok(()),
            ack => Err(ControlError::Refused { command: name, ack }),
        }
    }

    /// Writes a command into the memory and returns the lengths of the parts
    /// of its data.
    fn write(&mut self, command: &Command<'_>) -> Option<[usize; 2]> {
        // SAFETY: the memory has this size and was zeroed. The device has
        // given it back: the last command was answered, else the queue would
        // have been given up.
        let memory: &mut [u8; area::SIZE] = unsafe { self.memory.pointer().cast().as_mut() };
        let [header, number, ..] = memory;
        [*header, *number] = command.facts().0;
        let (rest, answer) = memory.split_at_mut(area::ANSWER);
        answer.fill(NO_ANSWER);
        command.write(rest.get_mut(area::DATA..)?)
    }

    /// Offers the command to the device.
    fn send(&mut self, [first, second]: [usize; 2]) -> Result<(), ControlError> {
        let at = |offset: usize, length: usize, writable| {
            // At most the size of the area.
            Buffer::new(
                self.memory.physical() + offset as u64,
                length as u32,
                writable,
            )
        };
        let header = at(area::HEADER, 2, false);
        let data = at(area::DATA, first, false);
        let more = at(area::DATA + first, second, false);
        let answer = at(area::ANSWER, 1, true);
        let chain = [header, data, more, answer];
        let short = [header, data, answer];
        let shortest = [header, answer];
        let chain: &[Buffer] = match (first, second) {
            (0, _) => &shortest,
            (_, 0) => &short,
            _ => &chain,
        };
        self.queue.disable_interrupts();
        // SAFETY: the buffers lie in `memory`, which lives until the device
        // was reset (`into_parts`), and which is not touched until the device
        // has given the chain back, or never again.
        unsafe { self.queue.ring_mut().add(chain) }.map_err(ControlError::Queue)?;
        self.queue.kick();
        Ok(())
    }

    /// Waits for the answer, not for ever, nor for a device that broke.
    fn wait(
        &mut self,
        command: &'static str,
        patience: Patience,
        is_broken: impl Fn() -> bool,
    ) -> Result<(), ControlError> {
        let mut wait = patience.start();
        while self
            .queue
            .ring_mut()
            .pop_used()
            .map_err(ControlError::Queue)?
            .is_none()
        {
            // The device's status is asked for now and then: it costs an exit.
            if wait.is_over() || (wait.looks().is_multiple_of(STATUS_LOOKS) && is_broken()) {
                return Err(ControlError::NoAnswer { command });
            }
        }
        Ok(())
    }

    fn pointer(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset < area::SIZE);
        // SAFETY: the offsets are those of `area`, and the memory has its size.
        unsafe { self.memory.pointer().add(offset) }
    }
}
