//! Registers in memory with a model behind them: each access is a call.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;

use virtio_drivers::{Hal, PhysAddr};
use virtio_net::transport::Registers;

/// A device whose registers are in memory.
pub trait Model {
    /// A read of `width` bytes at a physical address.
    fn read(&mut self, address: PhysAddr, width: u8) -> u32;
    /// A write of `width` bytes.
    fn write(&mut self, address: PhysAddr, width: u8, value: u32);
}

thread_local! {
    static MODEL: RefCell<Option<Rc<RefCell<dyn Model>>>> = RefCell::default();
    /// Every address that was mapped, with its length.
    static MAPPED: RefCell<Vec<(PhysAddr, usize)>> = RefCell::default();
    /// Addresses that cannot be.
    static UNMAPPABLE: RefCell<Vec<PhysAddr>> = RefCell::default();
}

/// What was mapped since the last call.
pub fn take_mapped() -> Vec<(PhysAddr, usize)> {
    MAPPED.take()
}

/// From now on nothing can be mapped at these addresses.
pub fn refuse_to_map(addresses: &[PhysAddr]) {
    UNMAPPABLE.set(addresses.to_vec());
}

/// Makes this the thread's device, whatever the address.
pub fn install(model: Rc<RefCell<dyn Model>>) {
    MODEL.set(Some(model));
}

/// A region of the thread's device.
pub struct FakeRegisters {
    model: Rc<RefCell<dyn Model>>,
    base: PhysAddr,
    size: usize,
    /// What doorbells and interrupt handlers access: mere memory.
    memory: NonNull<u8>,
}

impl FakeRegisters {
    fn check(&self, offset: usize, width: usize) -> PhysAddr {
        assert!(offset + width <= self.size, "{offset:#x} is beyond the end");
        assert_eq!(offset % width, 0, "{offset:#x} is not aligned");
        self.base + offset as u64
    }
}

// SAFETY: nothing but the model changes; the memory stays for ever.
unsafe impl Registers for FakeRegisters {
    unsafe fn map<H: Hal>(physical: PhysAddr, size: usize) -> Option<Self> {
        MAPPED.with_borrow_mut(|mapped| mapped.push((physical, size)));
        if UNMAPPABLE.with_borrow(|unmappable| unmappable.contains(&physical)) {
            return None;
        }
        let memory = NonNull::from(vec![0u64; size.div_ceil(8) + 2].leak()).cast::<u8>();
        Some(Self {
            model: MODEL.with_borrow(Clone::clone).expect("there is no device"),
            base: physical,
            size,
            // SAFETY: less than 8 of the 16 bytes that there are more. What is
            // aligned at the device is here, too.
            memory: unsafe { memory.add((physical % 8) as usize) },
        })
    }

    fn size(&self) -> usize {
        self.size
    }

    fn pointer<V>(&self, offset: usize) -> Option<NonNull<V>> {
        let fits = offset + size_of::<V>() <= self.size && offset.is_multiple_of(align_of::<V>());
        // SAFETY: the offset lies within the memory.
        fits.then(|| unsafe { self.memory.add(offset) }.cast())
    }

    fn read8(&self, offset: usize) -> u8 {
        let at = self.check(offset, 1);
        self.model.borrow_mut().read(at, 1) as u8
    }
    fn read16(&self, offset: usize) -> u16 {
        let at = self.check(offset, 2);
        self.model.borrow_mut().read(at, 2) as u16
    }
    fn read32(&self, offset: usize) -> u32 {
        let at = self.check(offset, 4);
        self.model.borrow_mut().read(at, 4)
    }
    fn write8(&mut self, offset: usize, value: u8) {
        let at = self.check(offset, 1);
        self.model.borrow_mut().write(at, 1, value.into());
    }
    fn write16(&mut self, offset: usize, value: u16) {
        let at = self.check(offset, 2);
        self.model.borrow_mut().write(at, 2, value.into());
    }
    fn write32(&mut self, offset: usize, value: u32) {
        let at = self.check(offset, 4);
        self.model.borrow_mut().write(at, 4, value);
    }
}

/// A reset that may take its time.
#[derive(Default)]
pub struct SlowReset {
    /// Status reads that a reset takes; `u32::MAX` for ever.
    pub reads: u32,
    left: Option<u32>,
}

impl SlowReset {
    /// A reset begins. Returns whether it is done at once.
    pub fn begin(&mut self, fails: bool) -> bool {
        let reads = if fails { u32::MAX } else { self.reads };
        self.left = Some(reads).filter(|&reads| reads > 0);
        self.left.is_none()
    }

    /// The status is read. Returns whether that ends the reset.
    pub fn read(&mut self) -> bool {
        match self.left {
            Some(u32::MAX) | None => false,
            Some(1) => {
                self.left = None;
                true
            }
            Some(left) => {
                self.left = Some(left - 1);
                false
            }
        }
    }
}
