//! A legacy virtio-pci network device, register by register (specification
//! 4.1.4.10), strict: what a driver may not do is noted in
//! [`LegacyDevice::violations`], and an access that no register answers
//! panics.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use virtio_net::transport::{MsiMessage, PortAccess, Ports};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::control::{Behaviour, Control};
use super::faults::{self, Step};
use super::memory;
use super::net::{CONTROL_SIZE, Sent, TX, high};
use super::pci::{PciFunction, command};

/// First port of the device.
pub const IO_BASE: u16 = 0xc040;
/// Ports of the device.
pub const IO_SIZE: u16 = 0x40;
/// Physical address of the MSI-X table.
pub const TABLE_BASE: u64 = 0xfebd_1000;
/// What a vector register holds when no vector is assigned.
pub const NO_VECTOR: u16 = 0xffff;

/// Bits of the status register.
pub mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const NEEDS_RESET: u8 = 64;
}

/// A queue of the device.
pub struct ModelQueue {
    /// Number of descriptors, which a legacy device dictates.
    pub size: u16,
    /// The PFN register.
    pub pfn: u32,
    /// The vector register.
    pub vector: u16,
    /// The device's end of the ring, once the driver has given its address.
    pub ring: Option<Queue>,
    /// Whether the doorbell was rung and not heard yet.
    pub kicked: bool,
    /// How often the doorbell was rung.
    pub kicks: u64,
    /// Whether it was reset alone, and may be set up again.
    was_reset: bool,
}

/// An interrupt on its way to the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// An MSI-X message.
    Msi(MsiMessage),
    /// The INTx line went up.
    Intx,
}

/// Registers that another thread changes under the driver.
#[derive(Default)]
pub struct Lies {
    /// Bits of the status that read wrong.
    pub status: AtomicU8,
    /// Bits of the interrupt status that read wrong.
    pub isr: AtomicU8,
    /// Bits of each byte of the configuration that read wrong.
    pub config: [AtomicU8; 24],
}

#[allow(dead_code)] // The tests of `kernel/services` use it.
impl Lies {
    /// Nothing reads wrong any more.
    pub fn end(&self) {
        let config = self.config.iter();
        for byte in config.chain([&self.status, &self.isr]) {
            byte.store(0, Ordering::Relaxed);
        }
    }
}

/// The device.
pub struct LegacyDevice {
    /// Its configuration space.
    pub pci: PciFunction,
    /// HOST_FEATURES.
    pub offered: u32,
    /// GUEST_FEATURES.
    pub features: u32,
    /// Feature bits 32 to 63, of which the legacy interface knows nothing; see
    /// [`super::transport::Wired`].
    pub offered_high: u32,
    /// Those of them that the driver agreed to.
    pub features_high: u32,
    /// STATUS.
    pub status: u8,
    /// ISR.
    pub isr: u8,
    /// The queues: receiveq1, transmitq1, and so on; the control queue.
    pub queues: Vec<ModelQueue>,
    /// What the control queue decides about.
    pub control: Control,
    /// The first descriptor of each command.
    pub heads: Vec<u16>,
    /// What is offered from the next reset on, and from those after it.
    pub later_offers: VecDeque<u32>,
    /// Whether frames are sent while the driver rings, into `sent_at_once`.
    pub sends_at_once: bool,
    pub sent_at_once: Vec<Sent>,
    /// The configuration (specification 5.1.4).
    pub config: Vec<u8>,
    /// What the configuration becomes after so many more reads of it.
    pub later_config: Option<(u32, Vec<u8>)>,
    /// What reads wrong.
    pub lies: Arc<Lies>,
    /// CONFIG_VECTOR.
    pub config_vector: u16,
    /// Status reads that a reset takes.
    pub reset_reads: u32,
    /// What QUEUE_PFN keeps of what is written to it.
    pub pfn_mask: u32,
    /// Interrupts that were sent and not taken yet.
    pub interrupts: Vec<Interrupt>,
    /// What the driver did that it may not do.
    pub violations: Vec<String>,
    /// Every status value that was written.
    pub status_writes: Vec<u8>,
    /// Register accesses, doorbells included.
    pub accesses: u64,
    selected: u16,
    resetting: u32,
    table: NonNull<u32>,
}

thread_local! {
    static DEVICE: RefCell<Weak<RefCell<LegacyDevice>>> = RefCell::default();
}

/// Rings a doorbell of the thread's device, as the port write would.
pub fn ring_doorbell(queue: u16) {
    let device = DEVICE
        .with_borrow(Weak::upgrade)
        .expect("there is no device");
    device.borrow_mut().write(IO_BASE + 0x10, 2, queue.into());
}

/// Feature bits 32 to 63 that the thread's device offers.
pub fn offered_high() -> u32 {
    let device = DEVICE.with_borrow(Weak::upgrade);
    device.map_or(0, |device| device.borrow().offered_high)
}

/// The driver agrees to feature bits 32 to 63 of the thread's device.
pub fn agree_high(features: u32) {
    if let Some(device) = DEVICE.with_borrow(Weak::upgrade) {
        let mut device = device.borrow_mut();
        if features & !device.offered_high != 0 {
            device.violation(format!("features {features:#x} << 32 were not offered"));
        }
        device.features_high = features;
    }
}

/// The thread's device resets one queue (specification 2.6.1).
pub fn reset_queue(index: u16) {
    let device = DEVICE
        .with_borrow(Weak::upgrade)
        .expect("there is no device");
    let mut device = device.borrow_mut();
    if device.features_high & high::RING_RESET == 0 {
        device.violation(format!("a reset of queue {index} was not agreed on"));
    }
    let queue = &mut device.queues[usize::from(index)];
    *queue = ModelQueue {
        was_reset: true,
        ..ModelQueue::new(queue.size)
    };
}

/// Notes a violation when memory goes back that a live device may access. Whose
/// memory it is cannot be told: if a queue was reset, it may be that one's.
pub fn check_not_live(physical: u64) {
    if let Some(device) = DEVICE.with_borrow(Weak::upgrade) {
        let mut device = device.borrow_mut();
        let was_reset = device.queues.iter().any(|queue| queue.was_reset);
        if device.status & status::DRIVER_OK != 0 && !was_reset {
            device.violation(format!("{physical:#x} given back under a live device"));
        }
    }
}

impl LegacyDevice {
    /// A device with `vectors` MSI-X entries and queues of these sizes. It is
    /// the thread's device from now on.
    pub fn new(vectors: u16, sizes: &[u16], offered: u32, config: &[u8]) -> Rc<RefCell<Self>> {
        let table = memory::add_mmio(TABLE_BASE, 0x400);
        let device = Rc::new(RefCell::new(Self {
            pci: PciFunction::network(IO_BASE.into(), IO_SIZE.into(), TABLE_BASE as u32, vectors),
            offered,
            features: 0,
            offered_high: 0,
            features_high: 0,
            status: 0,
            isr: 0,
            queues: sizes.iter().map(|&size| ModelQueue::new(size)).collect(),
            control: Control::new(),
            heads: Vec::new(),
            later_offers: VecDeque::new(),
            sends_at_once: false,
            sent_at_once: Vec::new(),
            config: config.to_vec(),
            later_config: None,
            lies: Arc::default(),
            config_vector: NO_VECTOR,
            reset_reads: 0,
            pfn_mask: !0,
            interrupts: Vec::new(),
            violations: Vec::new(),
            status_writes: Vec::new(),
            accesses: 0,
            selected: 0,
            resetting: 0,
            table,
        }));
        DEVICE.set(Rc::downgrade(&device));
        device
    }

    /// Notes what the driver may not do.
    pub fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Says which entries of the MSI-X table are masked by themselves, as they are when
    /// it is asked.
    #[allow(dead_code)] // The driver's tests of MSI-X use it.
    pub fn own_masks(&self) -> impl Fn() -> Vec<bool> + use<> {
        let (table, entries) = (self.table, usize::from(self.pci.msix_entries()));
        let masked = move |entry| {
            // SAFETY: the table has so many entries, and stays for ever.
            unsafe { table.add(4 * entry + 3).read_volatile() & 1 != 0 }
        };
        move || (0..entries).map(masked).collect()
    }

    /// Interrupts for a queue, by what is on.
    pub fn interrupt_for_queue(&mut self, queue: usize) {
        let vector = self.queues[queue].vector;
        self.interrupt(vector, 1);
    }

    /// Interrupts for a change of the configuration.
    pub fn interrupt_for_config(&mut self) {
        self.interrupt(self.config_vector, 2);
    }

    fn interrupt(&mut self, vector: u16, isr: u8) {
        if !self.pci.msix_enabled() {
            self.isr |= isr;
            if !self.pci.command(command::INTERRUPT_DISABLE) {
                self.interrupts.push(Interrupt::Intx);
            }
        } else if vector != NO_VECTOR && self.pci.msix_delivers() {
            // SAFETY: the vector register only takes vectors of the table.
            let [low, high, data, control] = unsafe {
                let entry = self.table.add(4 * usize::from(vector));
                [0, 1, 2, 3].map(|word| u32::from_le(entry.add(word).read_volatile()))
            };
            if control & 1 == 0 {
                self.interrupts.push(Interrupt::Msi(MsiMessage {
                    address: u64::from(high) << 32 | u64::from(low),
                    data,
                }));
            }
        }
    }

    /// Offset of a port in the BAR, of which `width` bytes are accessed.
    fn offset(&mut self, port: u16, width: u16) -> u16 {
        self.accesses += 1;
        assert!(
            self.pci.command(command::IO_SPACE),
            "an access while the device does not decode its ports"
        );
        let offset = u32::from(port)
            .checked_sub(self.pci.io_base())
            .and_then(|offset| u16::try_from(offset).ok())
            .filter(|offset| offset + width <= IO_SIZE);
        offset.unwrap_or_else(|| panic!("{width} bytes at port {port:#x} are not the device's"))
    }

    /// Where the device's configuration is.
    fn config_offset(&self) -> u16 {
        if self.pci.msix_enabled() { 0x18 } else { 0x14 }
    }

    fn queue(&mut self) -> Option<&mut ModelQueue> {
        self.queues.get_mut(usize::from(self.selected))
    }

    /// A port read of `width` bytes.
    pub fn read(&mut self, port: u16, width: u16) -> u32 {
        let offset = self.offset(port, width);
        let selected = self.selected;
        match (offset, width) {
            (0x00, 4) => self.offered,
            (0x04, 4) => self.features,
            (0x08, 4) => self.queue().map_or(0, |queue| queue.pfn),
            (0x0c, 2) => {
                let fails = faults::strikes(Step::QueueSize(selected));
                let size = self.queue().map_or(0, |queue| queue.size);
                if fails { 0 } else { size.into() }
            }
            (0x0e, 2) => selected.into(),
            (0x12, 1) => {
                let status = self.status;
                match self.resetting {
                    0 => {}
                    u32::MAX => {}
                    1 => self.reset(),
                    _ => self.resetting -= 1,
                }
                (status ^ self.lies.status.load(Ordering::Relaxed)).into()
            }
            (0x13, 1) => {
                let isr = std::mem::take(&mut self.isr);
                (isr ^ self.lies.isr.load(Ordering::Relaxed)).into()
            }
            (0x14, 2) if self.pci.msix_enabled() => self.config_vector.into(),
            (0x16, 2) if self.pci.msix_enabled() => {
                self.queue().map_or(NO_VECTOR, |queue| queue.vector).into()
            }
            (offset, width) if offset >= self.config_offset() => {
                match self.later_config.take() {
                    Some((0, config)) => self.config = config,
                    Some((reads, config)) => self.later_config = Some((reads - 1, config)),
                    None => {}
                }
                let start = usize::from(offset - self.config_offset());
                let mut bytes = [0; 4];
                for (byte, at) in bytes.iter_mut().zip(start..start + usize::from(width)) {
                    *byte = self.config.get(at).copied().unwrap_or(0);
                    let lie = self.lies.config.get(at);
                    *byte ^= lie.map_or(0, |lie| lie.load(Ordering::Relaxed));
                }
                u32::from_le_bytes(bytes)
            }
            _ => panic!("no register of {width} bytes can be read at {offset:#x}"),
        }
    }

    /// A port write of `width` bytes.
    pub fn write(&mut self, port: u16, width: u16, value: u32) {
        let offset = self.offset(port, width);
        match (offset, width) {
            (0x04, 4) => self.write_features(value),
            (0x08, 4) => self.write_pfn(value),
            (0x0e, 2) => self.selected = value as u16,
            (0x10, 2) => self.notify(value as u16),
            (0x12, 1) => self.write_status(value as u8),
            (0x14, 2) if self.pci.msix_enabled() => {
                let fails = faults::strikes(Step::ConfigVector);
                self.config_vector = self.vector(value as u16, fails);
            }
            (0x16, 2) if self.pci.msix_enabled() => {
                let fails = faults::strikes(Step::QueueVector(self.selected));
                let vector = self.vector(value as u16, fails);
                if let Some(queue) = self.queue() {
                    queue.vector = vector;
                }
            }
            (offset, width) if offset >= self.config_offset() => {
                let start = usize::from(offset - self.config_offset());
                let bytes = &value.to_le_bytes()[..usize::from(width)];
                self.config[start..start + bytes.len()].copy_from_slice(bytes);
            }
            _ => panic!("no register of {width} bytes can be written at {offset:#x}"),
        }
    }

    fn vector(&self, wanted: u16, fails: bool) -> u16 {
        if fails || wanted >= self.pci.msix_entries() {
            NO_VECTOR
        } else {
            wanted
        }
    }

    fn write_features(&mut self, value: u32) {
        if self.status != status::ACKNOWLEDGE | status::DRIVER {
            self.violation(format!("features written at status {:#x}", self.status));
        }
        if value & !self.offered != 0 {
            self.violation(format!("features {value:#x} were not offered"));
        }
        self.features = value;
        if self.max_queue_pairs() > 1 {
            // The control queue comes after those of the pairs.
            let [size, control] = [self.queues[0].size, CONTROL_SIZE];
            let at = self.control_queue();
            for (index, queue) in self.queues.iter_mut().enumerate() {
                queue.size = if index == at { control } else { size };
            }
        }
    }

    /// Queue pairs that the configuration speaks of.
    pub fn max_queue_pairs(&self) -> u16 {
        match self.config[..] {
            [_, _, _, _, _, _, _, _, low, high, ..] => u16::from_le_bytes([low, high]),
            _ => 1,
        }
    }

    fn write_pfn(&mut self, value: u32) {
        if value == 0 {
            // QEMU's answer to a queue that is taken back.
            return self.reset();
        }
        let was_reset = self.queue().is_some_and(|queue| queue.was_reset);
        if self.status != status::ACKNOWLEDGE | status::DRIVER && !was_reset {
            self.violation(format!("a queue set up at status {:#x}", self.status));
        }
        if faults::strikes(Step::QueuePfn(self.selected)) {
            return;
        }
        let event_idx = self.features & 1 << 29 != 0;
        let kept = value & self.pfn_mask;
        if let Some(queue) = self.queue() {
            queue.pfn = kept;
            queue.find_ring(event_idx);
        }
    }

    fn notify(&mut self, index: u16) {
        if self.status & status::DRIVER_OK == 0 {
            self.violation(format!("queue {index} notified before DRIVER_OK"));
        }
        match self.queues.get_mut(usize::from(index)) {
            Some(queue) if queue.ring.is_some() => {
                queue.kicked = true;
                queue.kicks += 1;
                if self.sends_at_once && usize::from(index) == TX {
                    let mut sent = self.transmit(usize::MAX);
                    self.sent_at_once.append(&mut sent);
                }
                let control = usize::from(index) == self.control_queue();
                if control && self.control.behaviour != Behaviour::Silent {
                    // The driver waits for the answer.
                    self.serve_control();
                }
            }
            _ => self.violation(format!("notified of queue {index}, which is not set up")),
        }
    }

    fn write_status(&mut self, value: u8) {
        self.status_writes.push(value);
        if value != 0 {
            if self.status & !value & !status::NEEDS_RESET != 0 {
                self.violation(format!("status {:#x} -> {value:#x}", self.status));
            }
            if value & status::DRIVER_OK != 0 && !self.pci.command(command::BUS_MASTER) {
                self.violation("DRIVER_OK without bus mastering".into());
            }
            self.status = value | self.status & status::NEEDS_RESET;
        } else if faults::strikes(Step::Reset) {
            self.status |= status::ACKNOWLEDGE;
            self.resetting = u32::MAX;
        } else if self.reset_reads == 0 {
            self.reset();
        } else {
            self.status |= status::ACKNOWLEDGE;
            self.resetting = self.reset_reads;
        }
    }

    fn reset(&mut self) {
        if let Some(offered) = self.later_offers.pop_front() {
            self.offered = offered;
        }
        self.status = 0;
        self.resetting = 0;
        self.isr = 0;
        self.features = 0;
        self.features_high = 0;
        self.selected = 0;
        self.config_vector = NO_VECTOR;
        self.control.reset();
        for queue in &mut self.queues {
            *queue = ModelQueue {
                kicks: queue.kicks,
                ..ModelQueue::new(queue.size)
            };
        }
    }
}

impl ModelQueue {
    /// A queue that nobody has set up.
    pub fn new(size: u16) -> Self {
        Self {
            size,
            pfn: 0,
            vector: NO_VECTOR,
            ring: None,
            kicked: false,
            kicks: 0,
            was_reset: false,
        }
    }

    /// Lays the ring out as the legacy interface says (specification 2.7.2):
    /// the available ring behind the descriptors, the used ring at the next
    /// multiple of 4096.
    fn find_ring(&mut self, event_idx: bool) {
        let size = u64::from(self.size);
        let descriptors = u64::from(self.pfn) << 12;
        let available = descriptors + 16 * size;
        let used = (available + 4 + 2 * size + 2).next_multiple_of(4096);
        let mut ring = Queue::new(self.size).unwrap();
        ring.try_set_desc_table_address(GuestAddress(descriptors))
            .unwrap();
        ring.try_set_avail_ring_address(GuestAddress(available))
            .unwrap();
        ring.try_set_used_ring_address(GuestAddress(used)).unwrap();
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        self.ring = ring.is_valid(&memory::guest_memory()).then_some(ring);
    }
}

/// The CPU's ports, where nothing but the device answers.
pub struct FakePorts(pub Rc<RefCell<LegacyDevice>>);

// SAFETY: nothing but the model changes.
unsafe impl Ports for FakePorts {
    fn read8(&self, port: u16) -> u8 {
        self.0.borrow_mut().read(port, 1) as u8
    }
    fn read16(&self, port: u16) -> u16 {
        self.0.borrow_mut().read(port, 2) as u16
    }
    fn read32(&self, port: u16) -> u32 {
        self.0.borrow_mut().read(port, 4)
    }
    fn write8(&mut self, port: u16, value: u8) {
        self.0.borrow_mut().write(port, 1, value.into());
    }
    fn write16(&mut self, port: u16, value: u16) {
        self.0.borrow_mut().write(port, 2, value.into());
    }
    fn write32(&mut self, port: u16, value: u32) {
        self.0.borrow_mut().write(port, 4, value);
    }
    fn access(&self) -> PortAccess {
        // SAFETY: the doorbells are compared, never rung.
        unsafe { PortAccess::native() }
    }
}
