//! The MSI-X capability of a PCI function (PCI Local Bus 3.0, 6.8.2).

use core::marker::PhantomData;
use core::ptr::NonNull;

use virtio_drivers::Hal;
use virtio_drivers::transport::pci::bus::{BarInfo, ConfigurationAccess, DeviceFunction, PciRoot};

use super::structures::capabilities;
use super::{MsiMessage, TransportError};
use crate::{hal, mmio};

/// PCI capability id of MSI-X.
const CAPABILITY_ID: u8 = 0x11;
/// In the message control word: MSI-X is on.
const CONTROL_ENABLE: u32 = 1 << 31;
/// In the message control word: all entries are masked.
const CONTROL_FUNCTION_MASK: u32 = 1 << 30;
/// Words of 32 bits an entry: address low, address high, data, control.
const ENTRY_WORDS: usize = 4;
/// In an entry's control word: it is masked.
const ENTRY_MASKED: u32 = 1;

/// The MSI-X table of a function, with every entry masked while MSI-X is off.
pub struct Msix<H> {
    function: DeviceFunction,
    capability: u8,
    table: NonNull<u32>,
    entries: u16,
    hal: PhantomData<H>,
}

// SAFETY: it is the address of a table in a device's BAR, owned by this value.
unsafe impl<H> Send for Msix<H> {}

/// Why a function's MSI-X capability cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MsixUnusable {
    #[error("the MSI-X capability at {offset:#x} reaches beyond the configuration space")]
    Truncated { offset: u8 },
    /// The BAR that it names, 0 to 7, is missing, of ports, has no address, ends beyond
    /// the last one or cannot be mapped.
    #[error("the MSI-X table's BAR {bar} is unusable")]
    Bar { bar: u8 },
    #[error(
        "the MSI-X table ({entries} entries at {offset:#x}) is outside its BAR of {size} bytes"
    )]
    TableOutsideBar {
        offset: u32,
        entries: u16,
        size: u64,
    },
}

impl<H: Hal> Msix<H> {
    /// Finds the capability, turns MSI-X off if a boot loader or another kernel
    /// left it on (Linux `pci_msix_init`), and maps its table. `Ok(None)` when
    /// the function, whose BARs are `bars`, has no MSI-X.
    pub fn find<C: ConfigurationAccess>(
        root: &mut PciRoot<C>,
        access: &mut C,
        function: DeviceFunction,
        bars: &[Option<BarInfo>; 6],
    ) -> Result<Option<Self>, MsixUnusable> {
        let found = capabilities(root, function).find(|capability| capability.id == CAPABILITY_ID);
        let Some(capability) = found else {
            return Ok(None);
        };
        let offset = capability.offset;
        control(access, function, offset, 0);
        // Message control: table size - 1 in bits 0 to 10.
        let entries = (capability.private_header & 0x7ff) + 1;
        let Some(location) = offset.checked_add(4) else {
            return Err(MsixUnusable::Truncated { offset });
        };
        let location = access.read_word(function, location);
        let (bar, offset) = ((location & 7) as u8, location & !7);
        let (address, size) = match bars.get(usize::from(bar)) {
            Some(&Some(BarInfo::Memory { address, size, .. }))
                if address != 0 && address.checked_add(size).is_some() =>
            {
                (address, size)
            }
            _ => return Err(MsixUnusable::Bar { bar }),
        };
        let bytes = usize::from(entries) * ENTRY_WORDS * 4;
        if u64::from(offset) + bytes as u64 > size {
            return Err(MsixUnusable::TableOutsideBar {
                offset,
                entries,
                size,
            });
        }
        // SAFETY: the range was checked to lie within a memory BAR that has
        // an address.
        let table = unsafe { hal::map_registers::<H>(address + u64::from(offset), bytes) };
        let table = table.ok_or(MsixUnusable::Bar { bar })?;
        Ok(Some(Self {
            function,
            capability: capability.offset,
            table: table.cast(),
            entries,
            hal: PhantomData,
        }))
    }

    /// Number of entries, 1 to 2048 (6.8.2.3: the table size).
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// Writes the messages into the first entries, masks the others and turns
    /// MSI-X on. Returns the number of accesses to the table. On an error nothing
    /// has changed.
    pub fn enable<C: ConfigurationAccess>(
        &mut self,
        access: &mut C,
        messages: &[MsiMessage],
    ) -> Result<u64, TransportError> {
        if messages.len() > usize::from(self.entries) {
            return Err(TransportError::TooFewVectors {
                needed: u16::try_from(messages.len()).unwrap_or(u16::MAX),
                available: self.entries,
            });
        }
        // The table may be written only while MSI-X is on (some devices
        // forget it otherwise), so it is turned on with everything masked.
        self.control(access, CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        for entry in 0..self.entries {
            let message = messages.get(usize::from(entry));
            if let Some(message) = message {
                self.write_message(entry, *message);
            }
            self.write(entry, 3, ENTRY_MASKED);
        }
        self.control(access, CONTROL_ENABLE);
        // Last, as Linux does (`pci_msi_unmask_irq`): some devices (crosvm's) take a vector
        // into use when its own mask goes, and then only.
        for (entry, _) in (0..self.entries).zip(messages) {
            self.write(entry, 3, 0);
        }
        Ok(u64::from(self.entries) + 4 * messages.len() as u64)
    }

    /// Replaces an entry's message while MSI-X is on. Returns the number of
    /// accesses to the table. On an error nothing has changed.
    pub fn set_message(&mut self, entry: u16, message: MsiMessage) -> Result<u64, TransportError> {
        if entry >= self.entries {
            return Err(TransportError::TooFewVectors {
                needed: entry.saturating_add(1),
                available: self.entries,
            });
        }
        // Masked meanwhile: half a message must not be sent (PCI 6.8.3).
        self.write(entry, 3, ENTRY_MASKED);
        self.write_message(entry, message);
        self.write(entry, 3, 0);
        Ok(5)
    }

    fn write_message(&mut self, entry: u16, message: MsiMessage) {
        self.write(entry, 0, message.address as u32);
        self.write(entry, 1, (message.address >> 32) as u32);
        self.write(entry, 2, message.data);
    }

    /// Turns MSI-X off (6.8.2.3: the enable bit; Linux `pci_disable_msix`).
    pub fn disable<C: ConfigurationAccess>(&mut self, access: &mut C) {
        self.control(access, 0);
    }

    fn control<C: ConfigurationAccess>(&mut self, access: &mut C, bits: u32) {
        control(access, self.function, self.capability, bits);
    }

    fn write(&mut self, entry: u16, word: usize, value: u32) {
        debug_assert!(entry < self.entries && word < ENTRY_WORDS);
        // SAFETY: `find` mapped `entries` entries of four words each.
        unsafe {
            let register = self.table.add(usize::from(entry) * ENTRY_WORDS + word);
            mmio::write(register, value.to_le());
        }
    }
}

/// Sets the enable and the mask bit in the first word of the capability at
/// `offset`.
fn control<C: ConfigurationAccess>(
    access: &mut C,
    function: DeviceFunction,
    offset: u8,
    bits: u32,
) {
    let word = access.read_word(function, offset);
    let word = word & !(CONTROL_ENABLE | CONTROL_FUNCTION_MASK) | bits;
    access.write_word(function, offset, word);
}

/// `VIRTIO_MSI_NO_VECTOR`: what a vector register reads when the device could
/// not take the vector.
const NO_VECTOR: u16 = 0xffff;

/// Specification 4.1.5.1.2: the driver verifies that the vector was taken by
/// reading it back.
pub(super) fn vector_taken(
    queue: Option<u16>,
    wrote: u16,
    read: u16,
) -> Result<(), TransportError> {
    if read == wrote && read != NO_VECTOR {
        Ok(())
    } else {
        Err(TransportError::VectorNotTaken { queue, wrote, read })
    }
}
