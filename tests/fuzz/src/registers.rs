//! A device's registers and configuration space: virtio-mmio and modern virtio-pci.
//!
//! The registers are those of a good virtio-mmio device of version 2, but any read may
//! be answered by the bytes instead; a region of virtio-pci is what was last written
//! there, or the bytes.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ptr::NonNull;
use std::rc::Rc;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use virtio_drivers::{Hal, PhysAddr};
use virtio_net::interrupt::InterruptState;
use virtio_net::net::{Features, Options, VirtioNet};
use virtio_net::transport::mmio::MmioTransport;
use virtio_net::transport::modern_pci::ModernPciTransport;
use virtio_net::transport::{ConfigOps, PortAccess, Registers};
use virtio_net::vectors::{NoInterrupts, Rung};

use crate::input::Input;
use crate::support::memory::{GuestHal, pages_in_use};

/// Where virtio-mmio's registers are.
pub const BASE: PhysAddr = 0x4000;

/// The registers of a queue that matter here.
#[derive(Clone, Copy, Default)]
pub struct QueueRegisters {
    pub ready: u32,
    /// Descriptor, driver and device area, in halves.
    pub areas: [u32; 6],
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
    is_mmio: bool,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
    /// What doorbells write to.
    static PAGE: Cell<Option<NonNull<u64>>> = const { Cell::new(None) };
}

/// Interrupts that nobody raises.
pub static INTERRUPTS: InterruptState = InterruptState::new();

/// Looks at the registers, or changes them.
pub fn with<R>(f: impl FnOnce(&mut State) -> R) -> R {
    STATE.with_borrow_mut(f)
}

/// A good virtio-mmio device that offers `features`, with these lies.
pub fn mmio(features: u64, lies: &[u8]) {
    STATE.set(State {
        features,
        lies: lies.iter().copied().collect(),
        queue_size: 16,
        config: (0..64).collect(),
        is_mmio: true,
        ..State::default()
    });
}

impl State {
    fn right(&self, address: PhysAddr, width: usize) -> u32 {
        let last = |at: u64| self.written.get(&(BASE + at)).copied().unwrap_or(0);
        if !self.is_mmio {
            return self.written.get(&address).copied().unwrap_or(0);
        }
        let queue = || self.queues.get(&last(0x30)).copied().unwrap_or_default();
        match address - BASE {
            0x00 => 0x7472_6976,
            0x04 => 2,
            0x08 => 1,
            0x10 => (self.features >> (32 * last(0x14).min(1))) as u32,
            0x34 if last(0x30) < 8 => self.queue_size,
            0x44 => queue().ready,
            0x70 => last(0x70),
            at @ 0x100.. => {
                let at = at as usize - 0x100;
                let mut bytes = [0; 4];
                for (byte, from) in bytes.iter_mut().zip(at..at + width) {
                    *byte = self.config.get(from).copied().unwrap_or(0);
                }
                u32::from_le_bytes(bytes)
            }
            _ => 0,
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
        if !self.is_mmio {
            return;
        }
        let selected = self.written.get(&(BASE + 0x30)).copied().unwrap_or(0);
        match address - BASE {
            0x44 => self.queues.entry(selected).or_default().ready = value,
            at @ (0x80 | 0x84 | 0x90 | 0x94 | 0xa0 | 0xa4) => {
                let half = (at as usize - 0x80) / 16 * 2 + (at as usize & 4) / 4;
                self.queues.entry(selected).or_default().areas[half] = value;
            }
            0xc0 => self.queues.entry(selected).or_default().ready = 0,
            0x70 if value == 0 => self.queues.clear(),
            _ => (),
        }
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

/// A configuration space of the bytes' making. Words of BARs keep what their mask
/// says.
struct Space(Rc<RefCell<[u32; 64]>>, [u32; 6]);

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
    if input.pick(&[true, false]) {
        let features = 1 << 32 | u64::from(input.u32()) << 32 | u64::from(input.u32());
        mmio(features & !(1 << 33), input.0);
        // SAFETY: they are the thread's own.
        let transport = unsafe { MmioTransport::<GuestHal, FuzzRegisters>::new(BASE, 0x200) };
        if let Ok(transport) = transport {
            use_it(transport);
        }
        return;
    }
    let mut space = [0u32; 64];
    space[0] = 0x1041_1af4;
    // Capabilities like QEMU's, and over them the bytes.
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
    let mut masks = [0, 0, 0, 0, !0x3fff, u32::MAX];
    for _ in 0..input.u8() % 16 {
        let at = usize::from(input.u8() % 64);
        space[at] = input.u32();
        if let Some(mask) = at.checked_sub(4).and_then(|bar| masks.get_mut(bar)) {
            *mask = input.u32();
        }
    }
    STATE.set(State {
        lies: input.0.iter().copied().collect(),
        ..State::default()
    });
    let place = DeviceFunction {
        bus: 0,
        device: 2,
        function: 0,
    };
    let access = Space(Rc::new(RefCell::new(space)), masks);
    let transport =
        ModernPciTransport::<GuestHal, _, FuzzRegisters>::new(&access, PortAccess::NONE, place);
    if let Ok(transport) = transport {
        use_it(transport);
    }
}

fn use_it(transport: impl ConfigOps) {
    let options = Options::serving(Features::all());
    let Ok(mut net) = VirtioNet::<GuestHal, _, _>::probe(transport, options, &INTERRUPTS) else {
        return;
    };
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
    // A reset that did not end leaves its memory behind: not without bounds.
    assert!(pages_in_use() < 40_000);
}
