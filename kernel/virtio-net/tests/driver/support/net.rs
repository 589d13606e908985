//! A machine with the network device in it, and what the device does with its
//! queues.

use std::cell::{RefCell, RefMut};
use std::rc::Rc;

use virtio_net::interrupt::InterruptState;
use virtio_net::net::{Features, NetError, Options, VirtioNet};
use virtio_net::transport::TransportError;
use virtio_net::transport::legacy_pci::LegacyPciTransport;
use virtio_net::vectors::Rung;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::control::SUPPORTED_HASHES;
use super::controller::FakeController;
use super::device::{self, FakePorts, LegacyDevice, ModelQueue};
use super::memory::{self, GuestHal};
use super::pci::{FUNCTION, FakeAccess};
use super::transport::{Legacy, Wired};

pub const RX: usize = 0;
pub const TX: usize = 1;

/// Size of the control queue, as QEMU has it.
pub const CONTROL_SIZE: u16 = 64;

/// Length of the header of every frame, without `MRG_RXBUF`.
pub const HEADER: usize = 10;
/// The device's hardware address.
pub const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// Feature bits by number, so that a wrong number in the driver shows.
pub mod feature {
    pub const CSUM: u32 = 1;
    pub const GUEST_CSUM: u32 = 1 << 1;
    pub const MTU: u32 = 1 << 3;
    pub const MAC: u32 = 1 << 5;
    pub const GUEST_TSO4: u32 = 1 << 7;
    pub const GUEST_TSO6: u32 = 1 << 8;
    pub const HOST_TSO4: u32 = 1 << 11;
    pub const HOST_TSO6: u32 = 1 << 12;
    pub const MRG_RXBUF: u32 = 1 << 15;
    pub const STATUS: u32 = 1 << 16;
    pub const CTRL_GUEST_OFFLOADS: u32 = 1 << 2;
    pub const CTRL_VQ: u32 = 1 << 17;
    pub const CTRL_RX: u32 = 1 << 18;
    pub const CTRL_VLAN: u32 = 1 << 19;
    pub const CTRL_RX_EXTRA: u32 = 1 << 20;
    pub const GUEST_ANNOUNCE: u32 = 1 << 21;
    pub const MQ: u32 = 1 << 22;
    pub const CTRL_MAC_ADDR: u32 = 1 << 23;
    pub const ANY_LAYOUT: u32 = 1 << 27;
    pub const INDIRECT_DESC: u32 = 1 << 28;
    pub const EVENT_IDX: u32 = 1 << 29;
    /// What a device without offloads and without a control queue has.
    pub const ALL: u32 = MTU | MAC | STATUS | ANY_LAYOUT | INDIRECT_DESC | EVENT_IDX;
    /// What needs a control queue, with it.
    pub const CONTROL: u32 = CTRL_VQ
        | CTRL_RX
        | CTRL_VLAN
        | CTRL_RX_EXTRA
        | GUEST_ANNOUNCE
        | CTRL_MAC_ADDR
        | CTRL_GUEST_OFFLOADS;
    /// Offloads when sending.
    pub const HOST: u32 = CSUM | HOST_TSO4 | HOST_TSO6;
    /// Offloads when receiving.
    pub const GUEST: u32 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6;
    /// What the driver implements for one queue pair.
    pub const IMPLEMENTED: u32 = ALL | CONTROL | HOST | GUEST | MRG_RXBUF;
    /// What requires another feature (specification 5.1.3.1).
    pub const DEPENDENT: u32 = (CONTROL & !CTRL_VQ) | (HOST & !CSUM) | (GUEST & !GUEST_CSUM);
}

/// Feature bits from 32 on, less 32.
pub mod high {
    pub const VERSION_1: u32 = 1;
    pub const RING_PACKED: u32 = 1 << (34 - 32);
    pub const IN_ORDER: u32 = 1 << (35 - 32);
    pub const RING_RESET: u32 = 1 << (40 - 32);
    pub const HASH_REPORT: u32 = 1 << (57 - 32);
    pub const RSS: u32 = 1 << (60 - 32);
}

/// The driver under test.
pub type Net = VirtioNet<GuestHal, Wired>;

/// Puts a frame into the transmit queue, unless it is full.
pub fn send(net: &mut Net, frame: &[u8]) -> bool {
    let (_, tx) = net.queues().unwrap();
    let Some(mut slot) = tx.reserve() else {
        return false;
    };
    slot.frame_mut(frame.len()).copy_from_slice(frame);
    slot.start_xmit(frame.len());
    true
}

/// Takes every received frame.
pub fn receive_all(net: &mut Net) -> Vec<Vec<u8>> {
    let (rx, _) = net.queues().unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = rx.receive() {
        frames.push(frame.to_vec());
    }
    frames
}

/// A frame of `length` bytes that is different for every `number`.
pub fn pattern(number: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| {
            (at ^ at >> 8)
                .wrapping_mul(31)
                .wrapping_add(number.wrapping_mul(89) + 7) as u8
        })
        .collect()
}

/// Device, interrupt controller and what the handlers share with the driver.
pub struct Machine {
    pub device: Rc<RefCell<LegacyDevice>>,
    pub controller: FakeController,
    pub state: &'static InterruptState,
}

/// A frame as the device sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Lengths of the chain's descriptors.
    pub descriptors: Vec<u32>,
    /// The header.
    pub header: Vec<u8>,
    /// The frame.
    pub frame: Vec<u8>,
}

impl Machine {
    /// A device that offers `offered`, with queues of `size`, a control queue
    /// of 64 if it is among that, and MSI-X vectors for all that interrupt. Its MTU is 1500 and its link up.
    pub fn new(offered: u32, size: u16) -> Self {
        Self::with_vectors(offered, size, 3)
    }

    /// The same with `vectors` MSI-X vectors.
    pub fn with_vectors(offered: u32, size: u16, vectors: u16) -> Self {
        let mut config = MAC.to_vec();
        config.extend([1, 0]); // status: the link is up
        config.extend([1, 0]); // max_virtqueue_pairs
        config.extend(1500u16.to_le_bytes());
        let control = (offered & feature::CTRL_VQ != 0).then_some(CONTROL_SIZE);
        let sizes: Vec<_> = [size, size].into_iter().chain(control).collect();
        Self {
            device: LegacyDevice::new(vectors, &sizes, offered, &config),
            controller: FakeController::new(),
            state: Box::leak(Box::default()),
        }
    }

    /// A device of up to 3 queue pairs and a control queue.
    pub fn multiqueue(offered: u32, size: u16) -> Self {
        let offered = offered | feature::MQ | feature::CTRL_VQ;
        let machine = Self::with_vectors(offered, size, 7);
        {
            let mut device = machine.device();
            device.config[8..10].copy_from_slice(&3u16.to_le_bytes());
            device.queues.resize_with(7, || ModelQueue::new(size));
        }
        machine
    }

    /// The same of version 1, with RSS, hash reports or both as `high` says,
    /// and limits as QEMU has them.
    pub fn hashing(offered: u32, high: u32, size: u16) -> Self {
        let machine = Self::multiqueue(offered, size);
        {
            let mut device = machine.device();
            device.offered = offered | feature::CTRL_VQ;
            device.offered_high = high::VERSION_1 | high;
            device.config.resize(17, 0);
            device.config.push(40); // rss_max_key_size
            device.config.extend(128u16.to_le_bytes()); // rss_max_indirection_table_length
            device.config.extend(SUPPORTED_HASHES.to_le_bytes());
        }
        machine
    }

    /// The device.
    pub fn device(&self) -> RefMut<'_, LegacyDevice> {
        self.device.borrow_mut()
    }

    /// The transport under test, as it is.
    pub fn legacy(&self) -> Result<Legacy, TransportError> {
        LegacyPciTransport::new(
            &FakeAccess(Rc::clone(&self.device)),
            FakePorts(Rc::clone(&self.device)),
            FUNCTION,
        )
    }

    /// The transport for a process without a device.
    pub fn transport(&self) -> Wired {
        Wired(self.legacy().unwrap(), device::ring_doorbell)
    }

    /// The driver, probed by a caller that can serve whatever is offered.
    pub fn probe(&self) -> Result<Net, NetError> {
        self.probe_refusing(Features::empty())
    }

    /// The driver, probed with these features refused.
    pub fn probe_refusing(&self, refused: Features) -> Result<Net, NetError> {
        let options = Options::serving(Features::OPT_IN).refusing(refused);
        VirtioNet::probe(self.transport(), options, self.state)
    }

    /// The driver, probed and open at the best rung.
    pub fn open(&mut self) -> Net {
        let mut net = self.probe().unwrap();
        net.open(&mut self.controller, Rung::MsixPerQueue).unwrap();
        net
    }

    /// Calls the handlers of the interrupts that the device has sent.
    pub fn deliver(&self) {
        self.controller.deliver(&mut self.device(), self.state);
    }

    /// The device hears its transmit doorbell: sends what is queued, interrupts
    /// if it must and goes back to sleep. A device that was not kicked does
    /// nothing.
    pub fn run_transmit(&self) -> Vec<Sent> {
        if std::mem::take(&mut self.device().queues[TX].kicked) {
            self.transmit(usize::MAX)
        } else {
            Vec::new()
        }
    }

    /// The device, awake, sends at most `count` of the frames that are queued.
    pub fn transmit(&self, count: usize) -> Vec<Sent> {
        self.device().transmit(count)
    }

    /// A frame arrives from the wire. Returns whether there was a buffer.
    pub fn receive(&self, frame: &[u8]) -> bool {
        self.receive_behind(&[0; HEADER], frame)
    }

    /// A frame arrives, in as many buffers as it takes, behind a header that
    /// begins with these bytes. Returns whether there were buffers enough.
    pub fn receive_behind(&self, header: &[u8; HEADER], frame: &[u8]) -> bool {
        self.receive_behind_all(header, frame)
    }

    /// The same, with more of the header; its `num_buffers` is the device's.
    pub fn receive_behind_all(&self, header: &[u8], frame: &[u8]) -> bool {
        let length = self.device().header_length();
        let mut bytes = header.to_vec();
        bytes.resize(length, 0);
        bytes.extend(frame);
        if length == HEADER {
            return self.receive_bytes(&bytes);
        }
        let mut chains = Vec::new();
        let mut room = 0;
        while room < bytes.len() {
            let Some(chain) = self.device().next_chain(RX) else {
                assert!(chains.is_empty(), "half a frame is left over");
                return false;
            };
            room += writable(&chain.1);
            chains.push(chain);
        }
        bytes[HEADER..HEADER + 2].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        let mut rest = &bytes[..];
        for (head, descriptors) in chains {
            let (now, later) = rest.split_at(rest.len().min(writable(&descriptors)));
            self.use_buffer(head, &descriptors, now);
            rest = later;
        }
        true
    }

    /// Writes bytes into a buffer that was taken from the receive queue, and
    /// uses it.
    pub fn use_buffer(&self, head: u16, descriptors: &[Descriptor], bytes: &[u8]) {
        let mut rest = bytes;
        for descriptor in descriptors {
            assert!(descriptor.is_write_only(), "a receive buffer to read");
            let (now, later) = rest.split_at(rest.len().min(descriptor.len() as usize));
            check_memory(descriptor);
            memory::guest_memory()
                .write_slice(now, descriptor.addr())
                .unwrap();
            rest = later;
        }
        assert!(rest.is_empty(), "the receive buffer is too small");
        self.device().use_chain(RX, head, bytes.len() as u32);
    }

    /// Writes over all of a receive buffer, as a device can at any time.
    pub fn scribble(&self, descriptors: &[Descriptor]) {
        for descriptor in descriptors {
            check_memory(descriptor);
            memory::guest_memory()
                .write_slice(&vec![0xff; descriptor.len() as usize], descriptor.addr())
                .unwrap();
        }
    }

    /// Header and frame arrive, or part of them.
    pub fn receive_bytes(&self, bytes: &[u8]) -> bool {
        let Some((head, descriptors)) = self.device().next_chain(RX) else {
            return false;
        };
        self.use_buffer(head, &descriptors, bytes);
        true
    }

    /// Serves both queues without a look at what is in them, as far as the
    /// device finds its way.
    pub fn serve_blindly(&self) {
        let memory = memory::guest_memory();
        let mut device = self.device();
        for queue in [RX, TX] {
            let ring = device.ring(queue);
            let Some(chain) = ring.pop_descriptor_chain(&memory) else {
                continue;
            };
            let head = chain.head_index();
            if head < ring.size() {
                device.use_chain(queue, head, 70);
            }
        }
    }

    /// Address and length of a queue's ring, from the first descriptor to the
    /// end of the used ring.
    pub fn ring_memory(&self, queue: usize) -> (u64, usize) {
        let mut device = self.device();
        let ring = device.ring(queue);
        let end = ring.used_ring() + 6 + 8 * u64::from(ring.size());
        (ring.desc_table(), (end - ring.desc_table()) as usize)
    }

    /// Changes the configuration, and says so.
    pub fn change_config(&self, offset: usize, bytes: &[u8]) {
        let mut device = self.device();
        device.config[offset..offset + bytes.len()].copy_from_slice(bytes);
        device.interrupt_for_config();
    }

    /// What must hold whatever the driver did.
    pub fn assert_no_violation(&self) {
        let device = self.device();
        assert!(device.violations.is_empty(), "{:#?}", device.violations);
    }

    /// The driver is gone: nothing is left of it.
    pub fn assert_nothing_left(&self) {
        self.assert_no_violation();
        let device = self.device();
        assert_eq!(device.status, 0, "the device was not reset");
        assert!(!device.pci.msix_enabled(), "MSI-X is on");
        assert!(device.queues.iter().all(|queue| queue.pfn == 0));
        assert_eq!(memory::pages_in_use(), 0, "pages are missing");
    }
}

fn take(ring: &mut virtio_queue::Queue) -> Option<(u16, Vec<Descriptor>)> {
    let memory = memory::guest_memory();
    let areas = [ring.desc_table(), ring.avail_ring(), ring.used_ring()];
    memory::check_ring(areas, ring.size(), false);
    let chain = ring.iter(&memory).unwrap().next()?;
    Some((chain.head_index(), chain.collect()))
}

/// Bytes that the device may write into a chain.
pub fn writable(descriptors: &[Descriptor]) -> usize {
    descriptors.iter().map(|d| d.len() as usize).sum()
}

fn check_memory(descriptor: &Descriptor) {
    assert!(
        memory::is_allocated(descriptor.addr().0, descriptor.len().into()),
        "{:#x}, {} bytes, is not the driver's memory",
        descriptor.addr().0,
        descriptor.len()
    );
}

/// Reads what the driver wants sent. The header's length is the device's
/// knowledge, not the number of descriptors (specification 2.7.4.3).
fn read_frame(descriptors: &[Descriptor], header_length: usize) -> Sent {
    let mut bytes = Vec::new();
    for descriptor in descriptors {
        assert!(!descriptor.is_write_only(), "a frame to send to write");
        assert_ne!(descriptor.len(), 0, "a buffer of no bytes");
        check_memory(descriptor);
        let mut piece = vec![0; descriptor.len() as usize];
        memory::guest_memory()
            .read_slice(&mut piece, descriptor.addr())
            .unwrap();
        bytes.append(&mut piece);
    }
    let frame = bytes.split_off(header_length);
    Sent {
        descriptors: descriptors.iter().map(Descriptor::len).collect(),
        header: bytes,
        frame,
    }
}

impl LegacyDevice {
    /// Length of the header of every frame (specification 5.1.6.3).
    pub fn header_length(&self) -> usize {
        if self.features_high & high::HASH_REPORT != 0 {
            HEADER + 2 + 8
        } else if self.features & feature::MRG_RXBUF != 0
            || self.features_high & high::VERSION_1 != 0
        {
            HEADER + 2
        } else {
            HEADER
        }
    }

    fn ring(&mut self, queue: usize) -> &mut virtio_queue::Queue {
        let ModelQueue { ring, .. } = &mut self.queues[queue];
        ring.as_mut().expect("the queue is not set up")
    }

    /// Sends at most `count` of the frames that are queued.
    pub fn transmit(&mut self, count: usize) -> Vec<Sent> {
        let mut sent = Vec::new();
        while sent.len() < count {
            let Some((head, descriptors)) = self.next_chain(TX) else {
                break;
            };
            sent.push(read_frame(&descriptors, self.header_length()));
            self.use_chain(TX, head, 0);
        }
        sent
    }

    /// The next chain of a queue. When there is none, the device asks to be
    /// kicked for the next.
    pub fn next_chain(&mut self, queue: usize) -> Option<(u16, Vec<Descriptor>)> {
        let memory = memory::guest_memory();
        let ring = self.ring(queue);
        loop {
            ring.disable_notification(&memory).unwrap();
            if let Some(chain) = take(ring) {
                return Some(chain);
            }
            if !ring.enable_notification(&memory).unwrap() {
                return None;
            }
        }
    }

    /// Uses a chain, and interrupts if the driver wants it.
    pub fn use_chain(&mut self, queue: usize, head: u16, length: u32) {
        let memory = memory::guest_memory();
        let ring = self.ring(queue);
        ring.add_used(&memory, head, length).unwrap();
        // The flag is left to the user of `virtio-queue`.
        let flags: u16 = memory.read_obj(GuestAddress(ring.avail_ring())).unwrap();
        let wanted = ring.event_idx_enabled() || u16::from_le(flags) & 1 == 0;
        if ring.needs_notification(&memory).unwrap() && wanted {
            self.interrupt_for_queue(queue);
        }
    }

    /// The device needs no kicks for a queue until it sleeps again.
    pub fn stay_awake(&mut self, queue: usize) {
        let memory = memory::guest_memory();
        self.ring(queue).disable_notification(&memory).unwrap();
    }

    /// Writes 16 bits into a queue's used ring, `offset` bytes from its start.
    pub fn scribble_used(&mut self, queue: usize, offset: u64, value: u16) {
        let address = self.ring(queue).used_ring() + offset;
        memory::guest_memory()
            .write_obj(value.to_le(), GuestAddress(address))
            .unwrap();
    }
}
