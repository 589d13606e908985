//! A device's registers and configuration space: virtio-mmio of both versions, legacy and
//! modern virtio-pci.
//!
//! The registers of virtio-mmio and the ports of legacy virtio-pci are those of a good
//! device, but any read may be answered by the bytes instead; a region of modern
//! virtio-pci is what was last written there, or the bytes.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ptr::NonNull;
use std::rc::Rc;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use virtio_drivers::{Hal, PAGE_SIZE, PhysAddr};
use virtio_net::interrupt::InterruptState;
use virtio_net::net::{Features, Options, VirtioNet};
use virtio_net::transport::legacy_pci::LegacyPciTransport;
use virtio_net::transport::mmio::MmioTransport;
use virtio_net::transport::modern_pci::ModernPciTransport;
use virtio_net::transport::{ConfigOps, PortAccess, PortWindow, Ports, Registers};
use virtio_net::vectors::{NoInterrupts, Rung};

use crate::input::Input;
use crate::support::memory::{GuestHal, add_mmio, take_back_leaked};

/// Where virtio-mmio's registers are, and legacy virtio-pci's ports.
pub const BASE: PhysAddr = 0x4000;
/// Where the memory is that stands for the ports at doorbells.
const PORTS: PhysAddr = 0x8000_0000;
/// Pages that one device can cost which never finishes a reset: it is opened twice.
const LEAKED_MOST: usize = 2000;

/// The registers of a queue that matter here.
#[derive(Clone, Copy, Default)]
pub struct QueueRegisters {
    /// Entries, if the driver has said.
    pub size: Option<u32>,
    pub ready: u32,
    /// Descriptor, driver and device area, in halves.
    pub areas: [u32; 6],
}

/// What kind of device the registers are of.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// Regions of modern virtio-pci.
    #[default]
    Regions,
    /// virtio-mmio of version 2.
    Mmio,
    /// virtio-mmio of version 1.
    LegacyMmio,
    /// Ports of legacy virtio-pci.
    LegacyPorts,
}

impl Kind {
    /// Whether rings are laid out as before version 1 of the specification.
    pub fn is_legacy(self) -> bool {
        matches!(self, Self::LegacyMmio | Self::LegacyPorts)
    }
}

/// What the registers hold.
#[derive(Default)]
pub struct State {
    /// What is offered.
    pub features: u64,
    /// Answers that are given instead of right ones.
    lies: VecDeque<u8>,
    pub queue_size: u32,
    pub config: Vec<u8>,
    pub queues: BTreeMap<u32, QueueRegisters>,
    written: BTreeMap<PhysAddr, u32>,
    pub kind: Kind,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
    /// What doorbells write to.
    static PAGE: Cell<Option<NonNull<u64>>> = const { Cell::new(None) };
    /// That of ports.
    static WINDOW: PortAccess = {
        add_mmio(PORTS, 1 << 14);
        // SAFETY: it is memory that stays.
        let window = unsafe { PortWindow::map::<GuestHal>(PORTS, 1 << 16) };
        window.expect("it can be mapped").access()
    };
}

/// Interrupts that nobody raises.
pub static INTERRUPTS: InterruptState = InterruptState::new();

/// Looks at the registers, or changes them.
pub fn with<R>(f: impl FnOnce(&mut State) -> R) -> R {
    STATE.with_borrow_mut(f)
}

/// A good device that offers `features`, with these lies.
pub fn install(kind: Kind, features: u64, lies: &[u8]) {
    STATE.set(State {
        features,
        lies: lies.iter().copied().collect(),
        queue_size: 16,
        config: (0..64).collect(),
        kind,
        ..State::default()
    });
}

/// The transport of such a virtio-mmio device, of either version, if its registers say so.
pub fn mmio() -> Option<MmioTransport<GuestHal, FuzzRegisters>> {
    // SAFETY: they are the thread's own.
    unsafe { MmioTransport::new(BASE, 0x200) }.ok()
}

/// The transport of such a legacy virtio-pci device, if its configuration space says so.
pub fn legacy_pci(
    space: [u32; 64],
    masks: [u32; 6],
) -> Option<LegacyPciTransport<GuestHal, Space, FuzzPorts>> {
    LegacyPciTransport::new(&Space::new(space, masks), FuzzPorts, PLACE).ok()
}

/// The configuration space of a transitional network device with ports at [`BASE`].
pub const TRANSITIONAL: [u32; 64] = {
    let mut space = [0; 64];
    space[0] = 0x1000_1af4;
    space[4] = BASE as u32 | 1;
    space[0x2c / 4] = 0x0001_1af4;
    space
};
/// What its BARs keep of what is written: there are 64 ports.
pub const TRANSITIONAL_MASKS: [u32; 6] = [!0x3f, 0, 0, 0, 0, 0];

impl State {
    fn last(&self, at: u64) -> u32 {
        self.written.get(&(BASE + at)).copied().unwrap_or(0)
    }

    /// The number of the selected queue.
    fn selected(&self) -> u32 {
        match self.kind {
            Kind::LegacyPorts => self.last(0x0e),
            _ => self.last(0x30),
        }
    }

    /// A value of the device's configuration.
    fn config(&self, at: u64, width: usize) -> u32 {
        let mut bytes = [0; 4];
        for (byte, from) in bytes.iter_mut().zip(at as usize..at as usize + width) {
            *byte = self.config.get(from).copied().unwrap_or(0);
        }
        u32::from_le_bytes(bytes)
    }

    fn right(&self, address: PhysAddr, width: usize) -> u32 {
        let queue = || self.queues.get(&self.selected()).copied();
        let queue = || queue().unwrap_or_default();
        let size = if self.selected() < 8 {
            self.queue_size
        } else {
            0
        };
        match (self.kind, address.wrapping_sub(BASE)) {
            (Kind::Regions, _) => self.written.get(&address).copied().unwrap_or(0),
            (Kind::LegacyPorts, at) => match at {
                0x00 => self.features as u32,
                0x08 => queue().areas[0],
                0x0c => size,
                0x12 => self.last(0x12),
                0x14.. => self.config(at - 0x14, width),
                _ => 0,
            },
            (kind, at) => match at {
                0x00 => 0x7472_6976,
                0x04 if kind == Kind::Mmio => 2,
                0x04 | 0x08 => 1,
                0x10 => (self.features >> (32 * self.last(0x14).min(1))) as u32,
                0x34 => size,
                0x40 => queue().areas[0],
                0x44 => queue().ready,
                0x70 => self.last(0x70),
                0x100.. => self.config(at - 0x100, width),
                _ => 0,
            },
        }
    }

    fn read(&mut self, address: PhysAddr, width: usize) -> u32 {
        match self.lies.pop_front() {
            Some(kind @ 0x80..) => match kind & 3 {
                0 => u32::MAX,
                1 => self.right(address, width) ^ 1 << (kind >> 2 & 0x1f),
                _ => {
                    let mut bytes = [0; 4];
                    bytes.fill_with(|| self.lies.pop_front().unwrap_or(0));
                    u32::from_le_bytes(bytes)
                }
            },
            _ => self.right(address, width),
        }
    }

    fn write(&mut self, address: PhysAddr, value: u32) {
        self.written.insert(address, value);
        if self.kind == Kind::Regions {
            return;
        }
        let selected = self.selected();
        let ports = self.kind == Kind::LegacyPorts;
        match address.wrapping_sub(BASE) {
            0x12 if ports && value == 0 => self.queues.clear(),
            0x70 if !ports && value == 0 => self.queues.clear(),
            at => {
                let queue = self.queues.entry(selected).or_default();
                match at {
                    0x08 if ports => queue.areas[0] = value,
                    _ if ports => (),
                    0x38 => queue.size = Some(value),
                    0x40 => queue.areas[0] = value,
                    0x44 => queue.ready = value,
                    0x80 | 0x84 | 0x90 | 0x94 | 0xa0 | 0xa4 => {
                        let half = (at as usize - 0x80) / 16 * 2 + (at as usize & 4) / 4;
                        queue.areas[half] = value;
                    }
                    0xc0 => queue.ready = 0,
                    _ => (),
                }
            }
        }
    }

    /// Whether rings are packed, if the driver has taken what was offered.
    pub fn is_packed(&self) -> bool {
        self.kind == Kind::Mmio && self.features >> 34 & 1 == 1
    }

    /// Entries of a queue, and where its parts are: descriptors, available ring, used ring
    /// (in a packed ring the event suppression structures).
    pub fn ring(&self, queue: u32) -> Option<(u64, [u64; 3])> {
        let registers = self.queues.get(&queue)?;
        let size = u64::from(registers.size.unwrap_or(self.queue_size));
        let area = |at: usize| u64::from(registers.areas[at]);
        if !self.kind.is_legacy() {
            return Some((size, [0, 2, 4].map(|at| area(at) | area(at + 1) << 32)));
        }
        // Specification 2.7.2: the used ring is at the next page.
        let page = PAGE_SIZE as u64;
        let (table, available) = (page * area(0), page * area(0) + 16 * size);
        let used = (available + 6 + 2 * size).next_multiple_of(page);
        (table != 0).then_some((size, [table, available, used]))
    }
}

/// A region of the thread's registers.
pub struct FuzzRegisters {
    base: PhysAddr,
    size: usize,
}

// SAFETY: nothing but the thread's state changes; what `pointer` gives is memory that
// stays for as long as the program runs.
unsafe impl Registers for FuzzRegisters {
    unsafe fn map<H: Hal>(physical: PhysAddr, size: usize) -> Option<Self> {
        assert!(size <= 1 << 16, "{size} bytes are mapped");
        Some(Self {
            base: physical,
            size,
        })
    }

    fn size(&self) -> usize {
        self.size
    }

    fn pointer<V>(&self, offset: usize) -> Option<NonNull<V>> {
        let fits = offset + size_of::<V>() <= self.size && offset.is_multiple_of(align_of::<V>());
        let page = PAGE.get().unwrap_or_else(|| {
            let page = NonNull::from(Box::leak(Box::new([0u64; 512]))).cast();
            PAGE.set(Some(page));
            page
        });
        // SAFETY: the page has 4096 bytes, and the offset in it leaves 16.
        fits.then(|| unsafe { page.cast::<u8>().add(offset % 4080 / 16 * 16) }.cast())
    }

    fn read8(&self, offset: usize) -> u8 {
        with(|state| state.read(self.base + offset as u64, 1)) as u8
    }
    fn read16(&self, offset: usize) -> u16 {
        with(|state| state.read(self.base + offset as u64, 2)) as u16
    }
    fn read32(&self, offset: usize) -> u32 {
        with(|state| state.read(self.base + offset as u64, 4))
    }
    fn write8(&mut self, offset: usize, value: u8) {
        with(|state| state.write(self.base + offset as u64, value.into()));
    }
    fn write16(&mut self, offset: usize, value: u16) {
        with(|state| state.write(self.base + offset as u64, value.into()));
    }
    fn write32(&mut self, offset: usize, value: u32) {
        with(|state| state.write(self.base + offset as u64, value));
    }
}

/// The thread's registers as ports.
pub struct FuzzPorts;

// SAFETY: nothing but the thread's state changes; doorbells write to memory that stays.
unsafe impl Ports for FuzzPorts {
    fn read8(&self, port: u16) -> u8 {
        with(|state| state.read(port.into(), 1)) as u8
    }
    fn read16(&self, port: u16) -> u16 {
        with(|state| state.read(port.into(), 2)) as u16
    }
    fn read32(&self, port: u16) -> u32 {
        with(|state| state.read(port.into(), 4))
    }
    fn write8(&mut self, port: u16, value: u8) {
        with(|state| state.write(port.into(), value.into()));
    }
    fn write16(&mut self, port: u16, value: u16) {
        with(|state| state.write(port.into(), value.into()));
    }
    fn write32(&mut self, port: u16, value: u32) {
        with(|state| state.write(port.into(), value));
    }
    fn access(&self) -> PortAccess {
        WINDOW.with(|window| *window)
    }
}

/// Where the device is on its bus.
const PLACE: DeviceFunction = DeviceFunction {
    bus: 0,
    device: 2,
    function: 0,
};

/// A configuration space of the bytes' making. Words of BARs keep what their mask
/// says.
pub struct Space(Rc<RefCell<[u32; 64]>>, [u32; 6]);

impl Space {
    fn new(words: [u32; 64], masks: [u32; 6]) -> Self {
        Self(Rc::new(RefCell::new(words)), masks)
    }
}

impl ConfigurationAccess for Space {
    fn read_word(&self, _: DeviceFunction, offset: u8) -> u32 {
        self.0.borrow()[usize::from(offset / 4)]
    }

    fn write_word(&mut self, _: DeviceFunction, offset: u8, value: u32) {
        let word = usize::from(offset / 4);
        let mask = match word {
            4..10 => self.1[word - 4],
            _ => u32::MAX,
        };
        let space = &mut self.0.borrow_mut()[word];
        *space = *space & !mask | value & mask;
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self(self.0.clone(), self.1)
    }
}

/// Nothing panics and every wait ends; nothing of a device that could not be opened is
/// kept but what the device may still write.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.pick(&[
        Kind::Mmio,
        Kind::Regions,
        Kind::LegacyMmio,
        Kind::LegacyPorts,
    ]);
    let offered = match kind {
        Kind::Mmio => 1 << 32 | u64::from(input.u32()) << 32 | u64::from(input.u32()),
        Kind::Regions => 0,
        Kind::LegacyMmio | Kind::LegacyPorts => u64::from(input.u32()),
    };
    let mut space = match kind {
        Kind::LegacyPorts => (TRANSITIONAL, TRANSITIONAL_MASKS),
        _ => modern_space(),
    };
    if matches!(kind, Kind::LegacyPorts | Kind::Regions) {
        change(&mut space, &mut input);
    }
    install(kind, offered & !(1 << 33), input.0);
    match kind {
        Kind::Mmio | Kind::LegacyMmio => {
            if let Some(transport) = mmio() {
                use_it(transport);
            }
        }
        Kind::LegacyPorts => {
            if let Some(transport) = legacy_pci(space.0, space.1) {
                use_it(transport);
            }
        }
        Kind::Regions => {
            let access = Space::new(space.0, space.1);
            let transport = ModernPciTransport::<GuestHal, _, FuzzRegisters>::new(
                &access,
                PortAccess::NONE,
                PLACE,
            );
            if let Ok(transport) = transport {
                use_it(transport);
            }
        }
    }
}

/// A configuration space with capabilities like QEMU's, and what its BARs keep.
fn modern_space() -> ([u32; 64], [u32; 6]) {
    let mut space = [0u32; 64];
    space[0] = 0x1041_1af4;
    space[0x34 / 4] = 0x40;
    for (at, next, kind, offset) in [
        (0x40, 0x50, 1, 0),
        (0x50, 0x60, 3, 0x1000),
        (0x60, 0x74, 4, 0x2000),
        (0x74, 0, 2, 0x3000),
    ] {
        let words = [0x14_0009 | next << 8 | kind << 24, 4, offset, 0x1000, 4];
        for (word, value) in space[at / 4..].iter_mut().zip(words) {
            *word = value;
        }
    }
    space[4 + 4] = 0xfeb0_0004;
    (space, [0, 0, 0, 0, !0x3fff, u32::MAX])
}

/// The bytes change words of it.
fn change((space, masks): &mut ([u32; 64], [u32; 6]), input: &mut Input<'_>) {
    for _ in 0..input.u8() % 16 {
        let at = usize::from(input.u8() % 64);
        space[at] = input.u32();
        if let Some(mask) = at.checked_sub(4).and_then(|bar| masks.get_mut(bar)) {
            *mask = input.u32();
        }
    }
}

fn use_it(transport: impl ConfigOps) {
    let options = Options::serving(Features::all());
    if let Ok(mut net) = VirtioNet::<GuestHal, _, _>::probe(transport, options, &INTERRUPTS) {
        net.set_queue_size(16);
        net.set_queue_pairs(2);
        net.set_control_patience(1);
        for _ in 0..2 {
            if net.open(&mut NoInterrupts, Rung::MsixPerQueue).is_ok() {
                let _ = net.poll();
                let _ = net.look_at_config();
                let _ = net.set_mac_address([2, 0, 0, 0, 0, 1]);
                net.kick();
            }
        }
        with(|state| state.lies.clear());
        net.stop(&mut NoInterrupts);
    }
    // A reset that did not end leaves its memory behind: not without bounds.
    let leaked = take_back_leaked();
    assert!(leaked < LEAKED_MOST, "{leaked} pages");
}
