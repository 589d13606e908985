//! A PCI function's configuration space.

use std::cell::RefCell;
use std::rc::Rc;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use super::device::LegacyDevice;

/// Where the model's device is.
pub const FUNCTION: DeviceFunction = DeviceFunction {
    bus: 0,
    device: 2,
    function: 0,
};

/// Offset of the MSI-X capability.
pub const MSIX_CAPABILITY: u8 = 0x98;
/// In the MSI-X capability's first word: MSI-X is on.
const MSIX_ENABLE: u32 = 1 << 31;
/// In the MSI-X capability's first word: all entries are masked.
const MSIX_FUNCTION_MASK: u32 = 1 << 30;

/// Bits of the command register.
pub mod command {
    pub const IO_SPACE: u32 = 1;
    pub const MEMORY_SPACE: u32 = 2;
    pub const BUS_MASTER: u32 = 4;
    pub const INTERRUPT_DISABLE: u32 = 1 << 10;
}

/// The 256 bytes, and which bits of them can be written.
pub struct PciFunction {
    words: [u32; 64],
    writable: [u32; 64],
    /// What a BAR answers when it is sized, other than what it would be.
    lies: [Option<u32>; 6],
    /// Told of each write to the first word of the MSI-X capability.
    pub on_msix: Option<Box<dyn FnMut(u32)>>,
}

impl PciFunction {
    /// A transitional virtio network device as QEMU shows it: registers in
    /// BAR 0, MSI-X table of `vectors` entries in BAR 1 (none for 0).
    pub fn network(io: u32, io_size: u32, table: u32, vectors: u16) -> Self {
        let mut pci = Self {
            words: [0; 64],
            writable: [0; 64],
            lies: [None; 6],
            on_msix: None,
        };
        pci.set(0x00, 0x1000_1af4);
        pci.set(0x04, 1 << 20); // status: there is a capability list
        pci.writable[1] = 0xffff;
        pci.set(0x08, 0x0200_0000); // network controller, revision 0
        pci.set(0x2c, 0x0001_1af4); // subsystem: network
        pci.bar(0, io | 1, !(io_size - 1) & !3);
        // A vendor capability first, so that the list is walked.
        pci.set(0x34, 0x84);
        pci.set(0x84, 0x0010_0009);
        if vectors > 0 {
            pci.bar(1, table, !0xfff);
            pci.set(0x84, 0x0010_0009 | u32::from(MSIX_CAPABILITY) << 8);
            pci.msix(MSIX_CAPABILITY, vectors, 1);
        }
        pci
    }

    /// A modern virtio network device without BARs or capabilities.
    pub fn modern() -> Self {
        let mut pci = Self {
            words: [0; 64],
            writable: [0; 64],
            lies: [None; 6],
            on_msix: None,
        };
        pci.set(0x00, 0x1041_1af4);
        pci.set(0x04, 1 << 20);
        pci.writable[1] = 0xffff;
        pci.set(0x08, 0x0200_0001);
        pci.set(0x2c, 0x1100_1af4);
        pci
    }

    /// Gives a BAR and the next one a 64-bit address.
    pub fn bar64(&mut self, index: usize, address: u64, size: u64) {
        let mask = !(size - 1);
        self.bar(index, address as u32 | 0xc, mask as u32 & !0xf);
        self.bar(index + 1, (address >> 32) as u32, (mask >> 32) as u32);
    }

    /// Links capabilities, each at its offset with its words, into the list.
    pub fn capabilities(&mut self, list: &[(u8, Vec<u32>)]) {
        self.set(
            0x34,
            list.first().map_or(0, |(offset, _)| u32::from(*offset)),
        );
        for (index, (offset, words)) in list.iter().enumerate() {
            let next = list.get(index + 1).map_or(0, |(next, _)| u32::from(*next));
            for (word, at) in words.iter().zip((*offset..=0xfc).step_by(4)) {
                self.set(at, *word);
            }
            self.set(*offset, words[0] & !0xff00 | next << 8);
        }
    }

    /// Puts an MSI-X capability at `offset`, the last of the list.
    pub fn msix(&mut self, offset: u8, vectors: u16, location: u32) {
        self.set(offset, 0x11 | u32::from(vectors - 1) << 16);
        self.writable[usize::from(offset / 4)] = MSIX_ENABLE | MSIX_FUNCTION_MASK;
        if let Some(next) = offset.checked_add(4) {
            self.set(next, location);
        }
    }

    /// Gives a BAR a value and the bits of it that can be written.
    pub fn bar(&mut self, index: usize, value: u32, writable: u32) {
        self.words[4 + index] = value;
        self.writable[4 + index] = writable;
    }

    /// Gives a BAR a value, and what it answers when it is sized, whether that
    /// goes with the value or not.
    pub fn lying_bar(&mut self, index: usize, value: u32, answer: u32) {
        self.bar(index, value, !0);
        self.lies[index] = Some(answer);
    }

    /// Sets a word, as the device's maker would.
    pub fn set(&mut self, offset: u8, value: u32) {
        self.words[usize::from(offset / 4)] = value;
    }

    /// A word as it stands.
    pub fn get(&self, offset: u8) -> u32 {
        self.words[usize::from(offset / 4)]
    }

    /// The address in BAR 0.
    pub fn io_base(&self) -> u32 {
        self.get(0x10) & !3
    }

    /// Whether all these bits of the command register are set.
    pub fn command(&self, bits: u32) -> bool {
        self.get(0x04) & bits == bits
    }

    /// Whether MSI-X is on.
    pub fn msix_enabled(&self) -> bool {
        self.get(MSIX_CAPABILITY) & MSIX_ENABLE != 0
    }

    /// Whether MSI-X is on and not all masked.
    pub fn msix_delivers(&self) -> bool {
        self.get(MSIX_CAPABILITY) & (MSIX_ENABLE | MSIX_FUNCTION_MASK) == MSIX_ENABLE
    }

    /// Number of entries of the MSI-X table.
    pub fn msix_entries(&self) -> u16 {
        let header = self.get(MSIX_CAPABILITY);
        if header as u8 == 0x11 {
            (header >> 16 & 0x7ff) as u16 + 1
        } else {
            0
        }
    }
}

/// A model of a device that is a PCI function.
pub trait HasPci {
    /// Its configuration space.
    fn pci(&mut self) -> &mut PciFunction;
}

impl HasPci for LegacyDevice {
    fn pci(&mut self) -> &mut PciFunction {
        &mut self.pci
    }
}

/// Access to the configuration space of the model's device; other places of
/// the bus are empty.
pub struct FakeAccess<D = LegacyDevice>(pub Rc<RefCell<D>>);

impl<D: HasPci> ConfigurationAccess for FakeAccess<D> {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        assert_eq!(offset % 4, 0);
        if function == FUNCTION {
            self.0.borrow_mut().pci().get(offset)
        } else {
            !0
        }
    }

    fn write_word(&mut self, function: DeviceFunction, offset: u8, value: u32) {
        assert_eq!(offset % 4, 0);
        assert_eq!(function, FUNCTION, "a write to another device");
        let mut device = self.0.borrow_mut();
        let pci = device.pci();
        let word = usize::from(offset / 4);
        let lie = word.checked_sub(4).and_then(|bar| *pci.lies.get(bar)?);
        if let (u32::MAX, Some(answer)) = (value, lie) {
            return pci.set(offset, answer);
        }
        if offset == MSIX_CAPABILITY
            && let Some(tell) = &mut pci.on_msix
        {
            tell(value);
        }
        let writable = pci.writable[word];
        pci.set(offset, pci.get(offset) & !writable | value & writable);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}
