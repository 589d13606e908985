//! A device's registers in memory, as a trait so that tests can put a device
//! there, and the count of the accesses to them.

use core::cell::Cell;
use core::ptr::NonNull;

use virtio_drivers::{Hal, PhysAddr};

use crate::{hal, mmio};

/// Counts the accesses to a device's registers.
#[derive(Debug, Default)]
pub(super) struct Accesses(Cell<u64>);

impl Accesses {
    /// Counts this many more.
    #[inline]
    pub(super) fn count(&self, more: u64) {
        self.0.set(self.0.get() + more);
    }

    /// How many there were.
    pub(super) fn total(&self) -> u64 {
        self.0.get()
    }
}

/// A region of device registers in memory, little endian.
///
/// # Safety
///
/// An implementation must do nothing but the access: no memory of the program
/// may change by it, other than through what a device does by DMA. What
/// [`Self::pointer`] returns must be a register of the region, for as long as
/// the program runs.
pub unsafe trait Registers: Sized {
    /// Makes `size` bytes of registers at a physical address accessible. `None`
    /// where that cannot be: where `Hal::mmio_phys_to_virt`, which has no error,
    /// returns [`NonNull::dangling`].
    ///
    /// # Safety
    ///
    /// The range must hold registers of one device that the caller owns, and
    /// no memory.
    unsafe fn map<H: Hal>(physical: PhysAddr, size: usize) -> Option<Self>;

    /// Length of the region in bytes.
    fn size(&self) -> usize;

    /// Where the register of type `V` at `offset` is; `None` when it is not
    /// wholly within the region, or not aligned.
    fn pointer<V>(&self, offset: usize) -> Option<NonNull<V>>;

    /// Reads a byte; all ones where there is no register.
    fn read8(&self, offset: usize) -> u8;
    /// Reads 16 bits; all ones where there is no register.
    fn read16(&self, offset: usize) -> u16;
    /// Reads 32 bits; all ones where there is no register.
    fn read32(&self, offset: usize) -> u32;
    /// Writes a byte; nothing happens where there is no register.
    fn write8(&mut self, offset: usize, value: u8);
    /// Writes 16 bits; nothing happens where there is no register.
    fn write16(&mut self, offset: usize, value: u16);
    /// Writes 32 bits; nothing happens where there is no register.
    fn write32(&mut self, offset: usize, value: u32);
}

/// Registers that `Hal::mmio_phys_to_virt` has mapped, accessed by single
/// loads and stores.
#[derive(Debug)]
pub struct MappedRegisters {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: it is the address of a device's registers, owned by this value; any
// CPU may access them.
unsafe impl Send for MappedRegisters {}

impl MappedRegisters {
    /// Registers that are mapped at `base`.
    ///
    /// # Safety
    ///
    /// As for [`Registers::map`], for as long as the program runs.
    pub(super) unsafe fn at(base: NonNull<u8>, size: usize) -> Self {
        Self { base, size }
    }
}

macro_rules! access {
    ($read:ident, $write:ident, $type:ty) => {
        #[inline]
        fn $read(&self, offset: usize) -> $type {
            match self.pointer::<$type>(offset) {
                // SAFETY: `pointer` checked that the register lies within what
                // `map` has mapped, and its alignment.
                Some(register) => <$type>::from_le(unsafe { mmio::read(register) }),
                None => !0,
            }
        }

        #[inline]
        fn $write(&mut self, offset: usize, value: $type) {
            if let Some(register) = self.pointer::<$type>(offset) {
                // SAFETY: as for the read; registers are no memory of the
                // program.
                unsafe { mmio::write(register, value.to_le()) }
            }
        }
    };
}

// SAFETY: each access is one load or store in the range that `map`'s caller
// answers for.
unsafe impl Registers for MappedRegisters {
    unsafe fn map<H: Hal>(physical: PhysAddr, size: usize) -> Option<Self> {
        // SAFETY: the caller's promise.
        let base = unsafe { hal::map_registers::<H>(physical, size) }?;
        Some(Self { base, size })
    }

    fn size(&self) -> usize {
        self.size
    }

    #[inline]
    fn pointer<V>(&self, offset: usize) -> Option<NonNull<V>> {
        let end = offset.checked_add(size_of::<V>())?;
        if end > self.size {
            return None;
        }
        // SAFETY: the offset lies within the mapped region.
        let register = unsafe { self.base.add(offset) }.cast::<V>();
        register.is_aligned().then_some(register)
    }

    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
}
