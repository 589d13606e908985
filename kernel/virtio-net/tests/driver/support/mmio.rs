//! The registers of a virtio-mmio network device, versions 1 and 2
//! (specification 4.2.2 and 4.2.4), strict as the other models are.

use std::cell::{RefCell, RefMut};
use std::rc::Rc;

use virtio_net::transport::TransportError;
use virtio_net::transport::mmio::MmioTransport;

use super::faults::{self, Step};
use super::memory::GuestHal;
use super::registers::{FakeRegisters, Model, SlowReset, install};

/// The transport under test.
pub type Mmio = MmioTransport<GuestHal, FakeRegisters>;

/// Address and length of the registers, as QEMU's microvm has them.
pub const BASE: u64 = 0xfeb0_0e00;
pub const SIZE: usize = 512;

/// The features that the version cannot do without.
pub fn needed(version: u32) -> u64 {
    if version == 2 { 1 << 32 | 1 << 40 } else { 0 }
}

/// A queue's registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MmioQueue {
    pub max: u32,
    pub size: u32,
    pub pfn: u32,
    pub align: u32,
    pub ready: bool,
    /// Descriptor, driver and device area.
    pub areas: [u64; 3],
}

/// The device.
pub struct MmioDevice {
    pub magic: u32,
    pub version: u32,
    pub id: u32,
    pub offered: u64,
    /// Features without which it does not work.
    pub demanded: u64,
    pub features: u64,
    pub status: u32,
    pub generation: u32,
    pub interrupt: u32,
    pub page_size: u32,
    pub queues: Vec<MmioQueue>,
    pub config: Vec<u8>,
    pub reset: SlowReset,
    pub violations: Vec<String>,
    pub accesses: u64,
    pub writes: u64,
    /// Offsets that were read.
    pub reads: Vec<u64>,
    /// What was written to QUEUE_NOTIFY.
    pub notified: Vec<u32>,
    /// QUEUE_NUM_MAX of each queue.
    pub max_size: u32,
    /// Whether QUEUE_RESET works.
    pub resets_queues: bool,
    /// How often it was written.
    pub queue_resets: u64,
    selected: u32,
    /// Feature bits from 64 on.
    pub offered_beyond: u64,
    offered_select: u32,
    features_select: u32,
}

/// Where the device is held.
pub struct MmioMachine(pub Rc<RefCell<MmioDevice>>);

impl MmioMachine {
    /// A device of this version with two queues of 256.
    pub fn new(version: u32) -> Self {
        let high = if version == 2 { 1 << 32 | 1 << 40 } else { 0 };
        let device = Rc::new(RefCell::new(MmioDevice {
            magic: 0x7472_6976,
            version,
            id: 1,
            offered: high | 1 << 29 | 1 << 5,
            demanded: high & 1 << 32,
            features: 0,
            status: 0,
            generation: 0,
            interrupt: 0,
            page_size: 0,
            queues: Vec::new(),
            config: (0..64).collect(),
            reset: SlowReset::default(),
            violations: Vec::new(),
            accesses: 0,
            writes: 0,
            reads: Vec::new(),
            notified: Vec::new(),
            max_size: 256,
            resets_queues: true,
            queue_resets: 0,
            selected: 0,
            offered_beyond: 0,
            offered_select: 0,
            features_select: 0,
        }));
        device.borrow_mut().reset();
        install(device.clone());
        Self(device)
    }

    /// The device.
    pub fn device(&self) -> RefMut<'_, MmioDevice> {
        self.0.borrow_mut()
    }

    /// The transport under test.
    pub fn transport(&self) -> Result<Mmio, TransportError> {
        // SAFETY: the registers are the model's.
        unsafe { MmioTransport::new(BASE, SIZE) }
    }
}

impl MmioDevice {
    fn reset(&mut self) {
        self.status = 0;
        self.features = 0;
        self.interrupt = 0;
        self.page_size = 0;
        let queue = MmioQueue {
            max: self.max_size,
            ..MmioQueue::default()
        };
        self.queues = vec![queue; 2];
    }

    fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    fn queue(&mut self) -> Option<&mut MmioQueue> {
        self.queues.get_mut(self.selected as usize)
    }

    /// The selected queue, to be changed: only before it is enabled.
    fn queue_to_set(&mut self, what: &str) -> Option<&mut MmioQueue> {
        let selected = self.selected;
        let ready = if self.version == 1 { 3 } else { 11 };
        if self.status != ready {
            self.violation(format!("{what} of queue {selected} at {:#x}", self.status));
        }
        if self.queue().is_some_and(|queue| queue.ready) {
            self.violation(format!("{what} of queue {selected}, which is enabled"));
        }
        self.queue()
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            if self.reset.begin(faults::strikes(Step::Reset)) {
                self.reset();
            }
            return;
        }
        if self.status & !value != 0 {
            self.violation(format!("status {:#x} -> {value:#x}", self.status));
        }
        let mut value = value;
        if value & !self.status & 8 != 0 {
            if self.version == 1 {
                self.violation("FEATURES_OK in version 1".into());
            }
            let unknown = self.features & !self.offered != 0;
            let missing = self.demanded & !self.features != 0;
            if unknown || missing || faults::strikes(Step::FeaturesOk) {
                value &= !8;
            }
        }
        self.status = value;
    }
}

impl Model for MmioDevice {
    fn read(&mut self, address: u64, width: u8) -> u32 {
        let offset = address - BASE;
        self.accesses += 1;
        self.reads.push(offset);
        if offset >= 0x100 {
            let start = (offset - 0x100) as usize;
            let mut bytes = [0; 4];
            bytes[..width.into()].copy_from_slice(&self.config[start..][..width.into()]);
            return u32::from_le_bytes(bytes);
        }
        assert_eq!(width, 4, "registers have 32 bits");
        let modern = self.version != 1;
        let half = |value: u128, select: u32| match select {
            0..=3 => (value >> (32 * select)) as u32,
            _ => 0,
        };
        match offset {
            0x000 => self.magic,
            0x004 => self.version,
            0x008 => self.id,
            0x010 => half(
                u128::from(self.offered_beyond) << 64 | u128::from(self.offered),
                self.offered_select,
            ),
            0x034 => {
                let fails = faults::strikes(Step::QueueSize(self.selected as u16));
                self.queue().filter(|_| !fails).map_or(0, |queue| queue.max)
            }
            0x040 if !modern => self.queue().map_or(0, |queue| queue.pfn),
            0x044 if modern => self.queue().is_some_and(|queue| queue.ready).into(),
            0x060 => self.interrupt,
            0x070 => {
                let status = self.status;
                if self.reset.read() {
                    self.reset();
                }
                status
            }
            0x0c0 if modern => 0,
            0x0fc if modern => self.generation,
            _ => panic!(
                "no register can be read at {offset:#x} in version {}",
                self.version
            ),
        }
    }

    fn write(&mut self, address: u64, width: u8, value: u32) {
        let offset = address - BASE;
        self.accesses += 1;
        self.writes += 1;
        if offset >= 0x100 {
            let start = (offset - 0x100) as usize;
            let bytes = &value.to_le_bytes()[..width.into()];
            self.config[start..start + bytes.len()].copy_from_slice(bytes);
            return;
        }
        assert_eq!(width, 4, "registers have 32 bits");
        let modern = self.version != 1;
        let selected = self.selected as u16;
        match offset {
            0x014 => self.offered_select = value,
            0x020 => {
                if self.status != 3 {
                    self.violation(format!("features written at status {:#x}", self.status));
                }
                let shift = 32 * self.features_select;
                let mask = !(u64::from(u32::MAX) << shift);
                self.features = self.features & mask | u64::from(value) << shift;
            }
            0x024 => self.features_select = value,
            0x028 if !modern => self.page_size = value,
            0x030 => self.selected = value,
            0x038 => {
                if let Some(queue) = self.queue_to_set("size") {
                    queue.size = value;
                }
            }
            0x03c if !modern => {
                if let Some(queue) = self.queue_to_set("align") {
                    queue.align = value;
                }
            }
            0x040 if !modern => {
                if self.page_size != 4096 {
                    self.violation(format!("a PFN with pages of {}", self.page_size));
                }
                let fails = faults::strikes(Step::QueuePfn(selected));
                if let Some(queue) = self.queue_to_set("pfn") {
                    queue.pfn = if fails { 0 } else { value };
                }
            }
            0x044 if modern && value == 0 => {
                if let Some(queue) = self.queue() {
                    queue.ready = false;
                }
            }
            0x044 if modern => {
                let fails = faults::strikes(Step::QueueEnable(selected));
                if let Some(queue) = self.queue_to_set("ready") {
                    queue.ready = !fails;
                }
            }
            0x050 => self.notified.push(value),
            0x064 => self.interrupt &= !value,
            0x070 => self.write_status(value),
            0x080..0x0b0 if modern => {
                let (area, high) = (((offset - 0x80) / 0x10) as usize, offset & 4 != 0);
                if let Some(queue) = self.queue_to_set("address") {
                    let address = &mut queue.areas[area];
                    let shift = if high { 32 } else { 0 };
                    *address = *address & !(0xffff_ffff << shift) | u64::from(value) << shift;
                }
            }
            0x0c0 if modern => {
                let works = self.resets_queues;
                self.queue_resets += 1;
                if self.features >> 40 & 1 == 0 {
                    self.violation("a queue reset without RING_RESET".into());
                }
                if let Some(queue) = self.queue() {
                    queue.ready &= !works;
                }
            }
            _ => panic!(
                "no register can be written at {offset:#x} in version {}",
                self.version
            ),
        }
    }
}
