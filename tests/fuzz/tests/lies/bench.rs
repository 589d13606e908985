//! A driver with a device at the other end that can be told to lie, over each transport
//! and layout.

use virtio_net::interrupt::InterruptState;
use virtio_net::net::{Changes, Features, NetError, Options, RxMode, VirtioNet};
use virtio_net::queue::RingLayout;
use virtio_net::transport::ConfigOps;
use virtio_net::vectors::{NoInterrupts, Rung};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use crate::support::faults;
use crate::support::memory::{DeviceWritable, GuestHal, guest_memory, is_allocated};
use crate::support::mmio::MmioMachine;
use crate::support::modern::ModernMachine;
use crate::support::net::Machine;
use crate::support::packed::Piece;
use crate::support::ring::DeviceEnd;

/// Descriptors of each queue.
pub const SIZE: u16 = 16;
/// Queue numbers.
pub const RX: usize = 0;
pub const TX: usize = 1;
/// Features that every device here has: a hardware address, a status, the events.
const BASE: u64 = 1 << 5 | 1 << 16 | 1 << 29;
const VERSION_1: u64 = 1 << 32;
const PACKED: u64 = 1 << 34;
const MRG_RXBUF: u64 = 1 << 15;
/// The hardware address, the status (the link is up), a queue pair, an MTU.
const CONFIG: [u8; 12] = [2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0xdc, 5];

/// A transport and a layout.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Legacy,
    Modern,
    ModernPacked,
    Mmio,
    MmioPacked,
}

impl Way {
    pub const ALL: [Self; 5] = [
        Self::Legacy,
        Self::Modern,
        Self::ModernPacked,
        Self::Mmio,
        Self::MmioPacked,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy, split",
            Self::Modern => "modern, split",
            Self::ModernPacked => "modern, packed",
            Self::Mmio => "mmio, split",
            Self::MmioPacked => "mmio, packed",
        }
    }

    pub fn is_packed(self) -> bool {
        matches!(self, Self::ModernPacked | Self::MmioPacked)
    }
}

/// What is done with a driver, whatever its transport.
pub trait Driver {
    fn open(&mut self) -> Result<(), NetError>;
    fn poll(&mut self) -> Result<Changes, NetError>;
    fn send(&mut self, frame: &[u8]);
    /// Takes frames that were sent back, and those that were received.
    fn receive(&mut self) -> Vec<Vec<u8>>;
    /// The watchdog looks, after a sleep in which no interrupt came, or awake.
    fn watch(&mut self, asleep: bool);
    fn command(&mut self) -> Result<(), NetError>;
    fn check_status(&mut self) -> Result<(), NetError>;
    fn reset_queue(&mut self, queue: usize) -> Result<(), NetError>;
    fn dropped(&self) -> u64;
}

impl<T: ConfigOps> Driver for VirtioNet<GuestHal, T, &'static InterruptState> {
    fn open(&mut self) -> Result<(), NetError> {
        Self::open(self, &mut NoInterrupts, Rung::Polling)
    }

    fn poll(&mut self) -> Result<Changes, NetError> {
        Self::poll(self)
    }

    fn send(&mut self, frame: &[u8]) {
        let (_, tx) = self.queues().expect("an open device");
        let mut slot = tx.reserve().expect("room for a frame");
        slot.frame_mut(frame.len()).copy_from_slice(frame);
        slot.start_xmit(frame.len());
        self.kick();
    }

    fn receive(&mut self) -> Vec<Vec<u8>> {
        let (rx, tx) = self.queues().expect("an open device");
        tx.reclaim();
        let mut frames = Vec::new();
        while let Some(frame) = rx.receive() {
            frames.push(frame.to_vec());
        }
        self.kick();
        frames
    }

    fn watch(&mut self, asleep: bool) {
        let pair = self.pairs().next().expect("an open device");
        pair.watch(asleep.then_some(7), 7);
    }

    fn command(&mut self) -> Result<(), NetError> {
        self.set_rx_mode(RxMode::default())
    }

    fn check_status(&mut self) -> Result<(), NetError> {
        Self::check_status(self)
    }

    fn reset_queue(&mut self, queue: usize) -> Result<(), NetError> {
        Self::reset_queue(self, queue as u16)
    }

    fn dropped(&self) -> u64 {
        self.stats().rx_dropped
    }
}

/// The device.
pub enum Device {
    Legacy(Machine),
    Modern(ModernMachine),
    Mmio(MmioMachine),
}

/// Both ends.
pub struct Bench {
    pub driver: Box<dyn Driver>,
    pub device: Device,
    /// The device's ends of the rings, receive queue first.
    pub ends: Vec<DeviceEnd>,
    pub way: Way,
    header: usize,
    /// What a poll found that was not asked of the poll.
    pub found: Option<NetError>,
}

fn probe<T: ConfigOps + 'static>(transport: T) -> Box<dyn Driver> {
    let state: &InterruptState = Box::leak(Box::default());
    let options = Options::serving(Features::OPT_IN);
    let probed = VirtioNet::<GuestHal, T, _>::probe(transport, options, state);
    let mut net = probed.expect("an honest device");
    net.set_queue_size(SIZE);
    net.set_control_patience(1);
    Box::new(net)
}

impl Bench {
    /// An honest device with these features beside [`BASE`], and a driver that has
    /// agreed to them.
    pub fn new(way: Way, features: u64) -> Self {
        let mut offered = BASE | features;
        if way != Way::Legacy {
            offered |= VERSION_1;
        }
        if way.is_packed() {
            offered |= PACKED;
        }
        let mut config = CONFIG.to_vec();
        config.resize(64, 0);
        let (device, driver) = match way {
            Way::Legacy => {
                let machine = Machine::new(offered as u32, SIZE);
                let driver = probe(machine.transport());
                (Device::Legacy(machine), driver)
            }
            Way::Modern | Way::ModernPacked => {
                let machine = ModernMachine::new();
                machine.device().offered = offered;
                machine.device().config = config;
                let driver = probe(machine.transport().expect("an honest device"));
                (Device::Modern(machine), driver)
            }
            Way::Mmio | Way::MmioPacked => {
                let machine = MmioMachine::new(2);
                machine.device().offered = offered;
                machine.device().config = config;
                let driver = probe(machine.transport().expect("an honest device"));
                (Device::Mmio(machine), driver)
            }
        };
        let longer = way != Way::Legacy || features & MRG_RXBUF != 0;
        Self {
            driver,
            device,
            ends: Vec::new(),
            way,
            header: if longer { 12 } else { 10 },
            found: None,
        }
    }

    /// Where the parts of a queue's ring are.
    pub fn areas(&self, queue: usize) -> [u64; 3] {
        match &self.device {
            Device::Legacy(machine) => {
                let device = machine.device();
                let ring = device.queues[queue].ring.as_ref().expect("a queue");
                [ring.desc_table(), ring.avail_ring(), ring.used_ring()]
            }
            Device::Modern(machine) => machine.device().queues[queue].areas,
            Device::Mmio(machine) => machine.device().queues[queue].areas,
        }
    }

    /// The device looks where the driver has put a ring.
    pub fn find_ring(&self, queue: usize) -> DeviceEnd {
        let layout = match self.way.is_packed() {
            true => RingLayout::Packed,
            false => RingLayout::Split,
        };
        DeviceEnd::at(self.areas(queue), SIZE, layout, true)
    }

    /// And both.
    pub fn find_rings(&mut self) {
        self.ends = vec![self.find_ring(RX), self.find_ring(TX)];
    }

    /// No more lies about registers.
    pub fn make_honest(&mut self) {
        faults::take_strikes();
        if let Device::Legacy(machine) = &self.device {
            machine.device().lies.end();
            machine.device().control.behaviour = crate::support::control::Behaviour::Honest;
        }
        self.found = None;
    }

    /// The driver looks at both queues, and says whether it is well.
    pub fn look(&mut self) -> Result<(), NetError> {
        if let Some(error) = self.found {
            return Err(error);
        }
        self.driver.receive();
        self.driver.poll().map(drop)
    }

    /// The device takes a buffer of the receive queue, or a frame to be sent.
    pub fn take(&mut self, queue: usize) -> (u16, Vec<Piece>) {
        let (id, pieces) = self.ends[queue].take().expect("a chain");
        // No lie has the driver give away memory that is not for this.
        for Piece {
            address, length, ..
        } in &pieces
        {
            let length = u64::from(*length);
            assert!(is_allocated(*address, length), "{address:#x}, {length}");
            let is_to_write = DeviceWritable::of_this_thread().is_for_received(*address, length);
            assert_eq!(is_to_write, queue == RX, "{address:#x}, {length}");
        }
        (id, pieces)
    }

    /// The device writes bytes into a receive buffer, without using it.
    pub fn fill(&self, pieces: &[Piece], mut bytes: &[u8]) {
        for piece in pieces {
            assert!(piece.writable, "a receive buffer to read");
            let (now, later) = bytes.split_at(bytes.len().min(piece.length as usize));
            let to = GuestAddress(piece.address);
            guest_memory().write_slice(now, to).expect("memory");
            bytes = later;
        }
        assert!(bytes.is_empty(), "the receive buffer is too small");
    }

    /// A header, and a frame of this length behind it.
    pub fn bytes(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.header];
        if self.header == 12 {
            // num_buffers (specification 5.1.6.4).
            bytes[10] = 1;
        }
        bytes.extend((0..length).map(|at| at as u8));
        bytes
    }

    /// Writes a used entry where the driver looks for the next one, of any id.
    pub fn lie(&mut self, queue: usize, id: u32, length: u32) {
        if let DeviceEnd::Packed(device) = &mut self.ends[queue] {
            return device.write_used(id as u16, length);
        }
        let index = self.used_index(queue);
        let element = self.areas(queue)[2] + 4 + 8 * u64::from(index % SIZE);
        let entry = [id.to_le(), length.to_le()];
        guest_memory()
            .write_obj(entry, GuestAddress(element))
            .expect("memory");
        self.set_used_index(queue, index.wrapping_add(1));
    }

    /// The index of a split queue's used ring.
    pub fn used_index(&self, queue: usize) -> u16 {
        let at = GuestAddress(self.areas(queue)[2] + 2);
        u16::from_le(guest_memory().read_obj(at).expect("memory"))
    }

    /// Moves it.
    pub fn set_used_index(&self, queue: usize, index: u16) {
        let at = GuestAddress(self.areas(queue)[2] + 2);
        guest_memory().write_obj(index.to_le(), at).expect("memory");
    }

    /// Frames go out and come in, as they were.
    pub fn assert_service(&mut self) {
        for length in [60, 300, 1514] {
            let frame: Vec<u8> = (0..length).map(|at| at as u8 ^ 0x5a).collect();
            self.driver.send(&frame);
            let (id, pieces) = self.take(TX);
            let mut sent = Vec::new();
            for piece in &pieces {
                let mut bytes = vec![0; piece.length as usize];
                let from = GuestAddress(piece.address);
                guest_memory().read_slice(&mut bytes, from).expect("memory");
                sent.append(&mut bytes);
            }
            assert_eq!(sent[self.header..], frame);
            self.ends[TX].give_back(id, 0);
            let bytes = self.bytes(length);
            let (id, pieces) = self.take(RX);
            self.fill(&pieces, &bytes);
            self.ends[RX].give_back(id, bytes.len() as u32);
            assert_eq!(self.driver.receive(), [&bytes[self.header..]]);
            assert_eq!(self.driver.poll(), Ok(Changes::empty()));
        }
    }
}
