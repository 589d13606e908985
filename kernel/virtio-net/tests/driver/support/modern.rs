//! The registers of a modern virtio-pci network device (specification 4.1.4.3),
//! strict: what a driver may not do is noted in [`ModernDevice::violations`],
//! and an access that no register answers panics.

use std::cell::{RefCell, RefMut};
use std::rc::Rc;

use virtio_net::transport::modern_pci::ModernPciTransport;
use virtio_net::transport::{PortAccess, TransportError};

use super::faults::{self, Step};
use super::memory::{self, GuestHal};
use super::pci::{FUNCTION, FakeAccess, HasPci, PciFunction, command};
use super::registers::{FakeRegisters, Model, SlowReset, install};

/// The transport under test.
pub type Modern = ModernPciTransport<GuestHal, FakeAccess<ModernDevice>, FakeRegisters>;

/// Address of BAR 4, above 4 GiB, and its size.
pub const BAR: u64 = 0x38_0000_0000;
pub const BAR_SIZE: u64 = 0x4000;
/// Offsets of the structures in BAR 4.
pub const COMMON: u32 = 0;
pub const ISR: u32 = 0x1000;
pub const DEVICE: u32 = 0x2000;
pub const NOTIFY: u32 = 0x3000;
/// First port of BAR 2, which may have a second notification structure.
pub const PORTS: u16 = 0xc080;
/// Physical address of the MSI-X table, BAR 1.
pub const TABLE: u64 = 0xfebd_5000;
pub const NO_VECTOR: u16 = 0xffff;
pub const VERSION_1: u64 = 1 << 32;

pub mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const FEATURES_OK: u8 = 8;
}

/// A queue's registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModernQueue {
    pub size: u16,
    pub vector: u16,
    pub enabled: bool,
    pub notify_off: u16,
    /// Descriptor, driver and device area.
    pub areas: [u64; 3],
    /// Reads that a reset of the queue takes; `u32::MAX` for ever.
    pub reset_reads: u32,
    resetting: u32,
}

/// The device.
pub struct ModernDevice {
    pub pci: PciFunction,
    pub offered: u64,
    pub features: u64,
    pub status: u8,
    pub generation: u8,
    /// Configuration accesses after each of which the generation changes, with
    /// the first byte of the configuration.
    pub restless: u32,
    pub queues: Vec<ModernQueue>,
    pub max_sizes: Vec<u16>,
    pub config: Vec<u8>,
    pub config_vector: u16,
    pub isr: u8,
    pub reset: SlowReset,
    pub violations: Vec<String>,
    /// Writes, as offset in BAR 4, width and value.
    pub writes: Vec<(u64, u8, u32)>,
    pub accesses: u64,
    selected: u16,
    /// Feature bits from 64 on.
    pub offered_beyond: u64,
    offered_select: u32,
    features_select: u32,
}

/// Words of a `virtio_pci_cap`.
pub fn capability(cfg_type: u8, bar: u8, offset: u32, length: u32) -> Vec<u32> {
    let header = 0x09 | 16 << 16 | u32::from(cfg_type) << 24;
    vec![header, bar.into(), offset, length]
}

/// Words of a `virtio_pci_notify_cap`.
pub fn notify_capability(bar: u8, offset: u32, length: u32, multiplier: u32) -> Vec<u32> {
    let mut words = capability(2, bar, offset, length);
    words[0] += 4 << 16;
    words.push(multiplier);
    words
}

/// The capabilities as QEMU has them, but for PCIe's own.
pub fn capabilities() -> Vec<(u8, Vec<u32>)> {
    vec![
        (0x98, vec![0x11 | 2 << 16, 1]),
        (0x84, capability(5, 0, 0, 0)),
        (0x70, notify_capability(4, NOTIFY, 0x1000, 4)),
        (0x60, capability(4, 4, DEVICE, 0x1000)),
        (0x50, capability(3, 4, ISR, 0x1000)),
        (0x40, capability(1, 4, COMMON, 0x1000)),
    ]
}

impl HasPci for ModernDevice {
    fn pci(&mut self) -> &mut PciFunction {
        &mut self.pci
    }
}

/// Where the device is held.
#[derive(Clone)]
pub struct ModernMachine(pub Rc<RefCell<ModernDevice>>);

impl ModernMachine {
    /// A device with two queues of 256 and three MSI-X vectors.
    pub fn new() -> Self {
        memory::add_mmio(TABLE, 0x400);
        let mut pci = PciFunction::modern();
        pci.bar(1, TABLE as u32, !0xfff);
        pci.bar64(4, BAR, BAR_SIZE);
        pci.msix(0x98, 3, 1);
        pci.capabilities(&capabilities());
        let device = Rc::new(RefCell::new(ModernDevice {
            pci,
            offered: VERSION_1 | 1 << 29 | 1 << 5 | 1 << 40,
            features: 0,
            status: 0,
            generation: 0,
            restless: 0,
            queues: vec![],
            max_sizes: vec![256, 256],
            config: (0..64).collect(),
            config_vector: NO_VECTOR,
            isr: 0,
            reset: SlowReset::default(),
            violations: Vec::new(),
            writes: Vec::new(),
            accesses: 0,
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
    pub fn device(&self) -> RefMut<'_, ModernDevice> {
        self.0.borrow_mut()
    }

    /// The transport under test.
    pub fn transport(&self) -> Result<Modern, TransportError> {
        // SAFETY: the doorbells are compared, never rung.
        let ports = unsafe { PortAccess::native() };
        ModernPciTransport::new(&FakeAccess(Rc::clone(&self.0)), ports, FUNCTION)
    }
}

impl ModernDevice {
    fn reset(&mut self) {
        self.status = 0;
        self.features = 0;
        self.isr = 0;
        self.config_vector = NO_VECTOR;
        self.queues = (0..)
            .zip(&self.max_sizes)
            .map(|(index, &size)| ModernQueue {
                size,
                vector: NO_VECTOR,
                notify_off: index,
                ..ModernQueue::default()
            })
            .collect();
    }

    fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    fn vector(&self, wanted: u16, fails: bool) -> u16 {
        let refused = fails || wanted >= self.pci.msix_entries() || !self.pci.msix_enabled();
        if refused { NO_VECTOR } else { wanted }
    }

    /// The selected queue, to be changed: only before it is enabled.
    fn queue_to_set(&mut self, what: &str) -> Option<&mut ModernQueue> {
        let selected = self.selected;
        let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        if self.status != ready {
            self.violation(format!("{what} of queue {selected} at {:#x}", self.status));
        }
        if self
            .queues
            .get(usize::from(selected))
            .is_some_and(|q| q.enabled)
        {
            self.violation(format!("{what} of queue {selected}, which is enabled"));
        }
        self.queues.get_mut(usize::from(selected))
    }

    fn read_common(&mut self, offset: u32, width: u8) -> u32 {
        let selected = self.selected;
        let index = usize::from(selected);
        let half = |value: u128, select: u32| match select {
            0..=3 => (value >> (32 * select)) as u32,
            _ => 0,
        };
        let queue = self.queues.get(index).cloned();
        match (offset, width) {
            (0x04, 4) => half(
                u128::from(self.offered_beyond) << 64 | u128::from(self.offered),
                self.offered_select,
            ),
            (0x0c, 4) => half(self.features.into(), self.features_select),
            (0x10, 2) => self.config_vector.into(),
            (0x12, 2) => self.queues.len() as u32,
            (0x14, 1) => {
                let status = self.status;
                if self.reset.read() {
                    self.reset();
                }
                status.into()
            }
            (0x15, 1) => self.generation.into(),
            (0x18, 2) => {
                let fails = faults::strikes(Step::QueueSize(selected));
                queue
                    .filter(|_| !fails)
                    .map_or(0, |queue| queue.size.into())
            }
            (0x1a, 2) => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            (0x1c, 2) => queue.is_some_and(|queue| queue.enabled).into(),
            (0x1e, 2) => queue.map_or(0, |queue| queue.notify_off).into(),
            (0x3a, 2) => {
                let Some(queue) = self.queues.get_mut(index) else {
                    return 0;
                };
                match queue.resetting {
                    0 => 0,
                    u32::MAX => 1,
                    1 => {
                        queue.resetting = 0;
                        queue.enabled = false;
                        0
                    }
                    _ => {
                        queue.resetting -= 1;
                        1
                    }
                }
            }
            _ => panic!("no common register of {width} bytes can be read at {offset:#x}"),
        }
    }

    fn write_common(&mut self, offset: u32, width: u8, value: u32) {
        match (offset, width) {
            (0x00, 4) => self.offered_select = value,
            (0x08, 4) => self.features_select = value,
            (0x0c, 4) => {
                if self.status != status::ACKNOWLEDGE | status::DRIVER {
                    self.violation(format!("features written at status {:#x}", self.status));
                }
                let shift = 32 * self.features_select;
                let mask = !(u64::from(u32::MAX) << shift);
                self.features = self.features & mask | u64::from(value) << shift;
            }
            (0x10, 2) => {
                let fails = faults::strikes(Step::ConfigVector);
                self.config_vector = self.vector(value as u16, fails);
            }
            (0x14, 1) => self.write_status(value as u8),
            (0x16, 2) => self.selected = value as u16,
            (0x18, 2) => {
                if let Some(queue) = self.queue_to_set("size") {
                    queue.size = value as u16;
                }
            }
            (0x1a, 2) => {
                let fails = faults::strikes(Step::QueueVector(self.selected));
                let vector = self.vector(value as u16, fails);
                if let Some(queue) = self.queue_to_set("vector") {
                    queue.vector = vector;
                }
            }
            (0x1c, 2) => {
                assert_eq!(value, 1, "a driver may only enable a queue");
                let fails = faults::strikes(Step::QueueEnable(self.selected));
                if let Some(queue) = self.queue_to_set("enable") {
                    assert!(queue.areas.iter().all(|&area| area != 0));
                    queue.enabled = !fails;
                }
            }
            (0x20..0x38, 4) => {
                let (area, high) = ((offset - 0x20) / 8, offset & 4 != 0);
                if let Some(queue) = self.queue_to_set("address") {
                    let address = &mut queue.areas[area as usize];
                    let shift = if high { 32 } else { 0 };
                    *address = *address & !(0xffff_ffff << shift) | u64::from(value) << shift;
                }
            }
            (0x3a, 2) => {
                assert_eq!(value, 1);
                if let Some(queue) = self.queues.get_mut(usize::from(self.selected)) {
                    queue.resetting = queue.reset_reads;
                    queue.enabled &= queue.resetting != 0;
                }
            }
            _ => panic!("no common register of {width} bytes can be written at {offset:#x}"),
        }
    }

    fn write_status(&mut self, value: u8) {
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
        if value & !self.status & status::FEATURES_OK != 0 {
            let unknown = self.features & !self.offered != 0;
            if unknown || self.features & VERSION_1 == 0 || faults::strikes(Step::FeaturesOk) {
                value &= !status::FEATURES_OK;
            }
        }
        self.status = value;
    }
}

impl Model for ModernDevice {
    fn read(&mut self, address: u64, width: u8) -> u32 {
        self.accesses += 1;
        assert!(
            self.pci.command(command::MEMORY_SPACE),
            "it does not decode"
        );
        let offset = u32::try_from(address - BAR).unwrap();
        match offset {
            ISR if width == 1 => std::mem::take(&mut self.isr).into(),
            COMMON..ISR => self.read_common(offset, width),
            DEVICE..NOTIFY => {
                let start = (offset - DEVICE) as usize;
                let mut bytes = [0; 4];
                bytes[..width.into()].copy_from_slice(&self.config[start..][..width.into()]);
                if self.restless > 0 {
                    self.restless -= 1;
                    self.generation = self.generation.wrapping_add(1);
                    self.config[0] = self.config[0].wrapping_add(1);
                }
                u32::from_le_bytes(bytes)
            }
            _ => panic!("no register of {width} bytes can be read at {offset:#x}"),
        }
    }

    fn write(&mut self, address: u64, width: u8, value: u32) {
        self.accesses += 1;
        assert!(
            self.pci.command(command::MEMORY_SPACE),
            "it does not decode"
        );
        let offset = u32::try_from(address - BAR).unwrap();
        self.writes.push((offset.into(), width, value));
        match offset {
            COMMON..ISR => self.write_common(offset, width, value),
            DEVICE..NOTIFY => {
                let start = (offset - DEVICE) as usize;
                let bytes = &value.to_le_bytes()[..width.into()];
                self.config[start..start + bytes.len()].copy_from_slice(bytes);
            }
            _ => panic!("no register of {width} bytes can be written at {offset:#x}"),
        }
    }
}
