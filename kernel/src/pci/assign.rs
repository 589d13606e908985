//! Addresses for the memory BARs that nobody has given any: QEMU's microvm has firmware
//! that knows no PCI, and leaves its devices to the kernel. They come from the windows
//! that ACPI names for the host bridge, one behind the other.

use core::ops::Range;

use spin::Mutex;
use virtio_drivers::transport::pci::bus::{BarInfo, DeviceFunction, MemoryBarType, PciRoot};

use super::PciAccess;
use crate::arch::acpi;

/// What is left of the host bridge's windows.
pub struct Windows {
    /// Below 4 GiB.
    low: Range<u64>,
    /// For BARs of 64 bits.
    high: Range<u64>,
}

/// The windows, once a BAR has been given an address from them.
static WINDOWS: Mutex<Option<Windows>> = Mutex::new(None);

impl Windows {
    /// Those of the machine, all of them free.
    fn of_machine() -> Option<Self> {
        let windows = acpi::tables()?.host_bridge_windows();
        let low = windows.iter().find(|window| window.end <= 1 << 32);
        let high = windows.iter().find(|window| window.start >= 1 << 32);
        (low.is_some() || high.is_some()).then(|| Self {
            low: low.cloned().unwrap_or_default(),
            high: high.cloned().unwrap_or_default(),
        })
    }

    /// Takes `size` bytes, which begin at a multiple of that (PCI Local Bus
    /// specification 3.0, section 6.2.5.1).
    fn take(&mut self, size: u64, is_64_bit: bool) -> Option<u64> {
        let from = |window: &mut Range<u64>| {
            // Address 0 means that there is none.
            let start = window.start.max(1).checked_next_multiple_of(size)?;
            let end = start.checked_add(size).filter(|&end| end <= window.end)?;
            window.start = end;
            Some(start)
        };
        let high = is_64_bit.then(|| from(&mut self.high)).flatten();
        high.or_else(|| from(&mut self.low))
    }
}

/// Gives addresses to the BARs of a function that decodes nothing at the moment, where
/// they have none. Where firmware has placed others (`is_placed`), its plan is not known,
/// and nothing is done.
pub(super) fn assign(
    root: &mut PciRoot<PciAccess>,
    function: DeviceFunction,
    bars: &mut [Option<BarInfo>; 6],
    is_placed: impl FnOnce() -> bool,
) {
    let needs = |bar: &Option<BarInfo>| matches!(bar, Some(BarInfo::Memory { address: 0, .. }));
    if !bars.iter().any(needs) {
        return;
    }
    let mut windows = WINDOWS.lock();
    if windows.is_none() && !is_placed() {
        *windows = Windows::of_machine();
    }
    let Some(windows) = windows.as_mut() else {
        return;
    };
    for (index, bar) in (0..).zip(bars) {
        let Some(BarInfo::Memory {
            address: place @ 0,
            size,
            address_type,
            ..
        }) = bar
        else {
            continue;
        };
        let is_64_bit = *address_type == MemoryBarType::Width64;
        let Some(address) = windows.take(*size, is_64_bit) else {
            continue;
        };
        match u32::try_from(address) {
            _ if is_64_bit => root.set_bar_64(function, index, address),
            Ok(address) => root.set_bar_32(function, index, address),
            Err(_) => continue,
        }
        *place = address;
        log::debug!("PCI {function}: BAR {index}, {size:#x} bytes, is given {address:#x}");
    }
}
