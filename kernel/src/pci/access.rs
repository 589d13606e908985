//! Access to PCI's configuration space: by the memory that ACPI's MCFG names
//! (ECAM, PCI Express Base specification 5.0, section 7.2.2), else by ports
//! 0xcf8 and 0xcfc (PCI Local Bus specification 3.0, section 3.2.2.3.2).

use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering};

use spin::Once;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use x86_64::instructions::port::Port;

use crate::arch::acpi::{self, Ecam};
use crate::memory::map_mmio;

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const CONFIG_ENABLE: u32 = 1 << 31;

/// Offset of the command and status register.
pub(super) const COMMAND: u8 = 4;
/// Where capabilities begin: behind the header that all functions have.
const CAPABILITIES: u8 = 0x40;

/// Bytes of ECAM a bus: 32 devices of 8 functions of 4 KiB.
const ECAM_BUS: u64 = 1 << 20;

/// Where the ECAM of each bus is mapped; null while it is accessed by ports.
static BUSES: [AtomicPtr<u8>; 256] = [const { AtomicPtr::new(core::ptr::null_mut()) }; 256];

/// The ECAM, where the machine has one.
fn ecam() -> Option<&'static Ecam> {
    static ECAM: Once<Option<Ecam>> = Once::new();
    let find = || {
        let tables = acpi::tables()?;
        // Ports do as well, so the DSDT is read through only where there are none.
        match &tables.ecam {
            None if !has_ports() => tables.host_bridge_ecam(),
            ecam => ecam.clone(),
        }
    };
    ECAM.call_once(find).as_ref()
}

/// Whether the port of the address keeps one.
fn has_ports() -> bool {
    let mut port = Port::<u32>::new(CONFIG_ADDRESS);
    // SAFETY: the port is the host bridge's, or nothing.
    unsafe {
        port.write(CONFIG_ENABLE);
        port.read() == CONFIG_ENABLE
    }
}

/// Accesses a bus by ECAM from now on, if it is part of that. What cannot be
/// right is reported, and ports are used.
pub(super) fn use_ecam(bus: u8) {
    let Some(ecam) = ecam().filter(|ecam| ecam.buses.contains(&bus)) else {
        return;
    };
    let address = ecam.base + u64::from(bus) * ECAM_BUS;
    let registers = match map_mmio(address, ECAM_BUS) {
        Ok(registers) => registers,
        Err(error) => return log::warn!("PCI bus {bus:#04x} by ports: {error}"),
    };
    BUSES[usize::from(bus)].store(registers.as_ptr(), Ordering::Relaxed);
    // Both ways must lead to the same place: the first device's first word is
    // its vendor, or all ones where none is. A machine without those ports
    // (microvm) answers all ones there, too.
    let first = DeviceFunction {
        bus,
        device: 0,
        function: 0,
    };
    let (memory, ports) = (PciAccess.read_word(first, 0), read_ports(first, 0));
    if memory != ports && ports != u32::MAX {
        BUSES[usize::from(bus)].store(core::ptr::null_mut(), Ordering::Relaxed);
        log::warn!(
            "PCI bus {bus:#04x} by ports: at {address:#x} ECAM reads {memory:#x}, ports {ports:#x}"
        );
    } else {
        log::debug!("PCI bus {bus:#04x} by ECAM at {address:#x}");
    }
}

/// Configuration access. Only the CPU that booted uses it, and not from
/// interrupt handlers, so address and data of the port accesses belong together.
#[derive(Clone, Copy, Debug)]
pub struct PciAccess;

/// The word in the ECAM; `None` when the bus is accessed by ports.
fn in_memory(place: DeviceFunction, register: u8) -> Option<NonNull<u32>> {
    let bus = BUSES[usize::from(place.bus)].load(Ordering::Relaxed);
    let offset = usize::from(place.device & 0x1f) << 15
        | usize::from(place.function & 0x7) << 12
        | usize::from(register & 0xfc);
    // SAFETY: a bus has 1 MiB, which `use_ecam` mapped; the offset lies within.
    NonNull::new(bus).map(|bus| unsafe { bus.add(offset) }.cast())
}

fn select(place: DeviceFunction, register: u8) {
    let address = CONFIG_ENABLE
        | u32::from(place.bus) << 16
        | u32::from(place.device & 0x1f) << 11
        | u32::from(place.function & 0x7) << 8
        | u32::from(register & 0xfc);
    // SAFETY: the port is the host bridge's, or nothing.
    unsafe { Port::<u32>::new(CONFIG_ADDRESS).write(address) };
}

fn read_ports(place: DeviceFunction, register: u8) -> u32 {
    select(place, register);
    // SAFETY: reading configuration registers has no effect on memory.
    unsafe { Port::<u32>::new(CONFIG_DATA).read() }
}

/// Writes one half of a word: the lower one at an even multiple of two bytes.
fn write_half(place: DeviceFunction, register: u8, data: u16) {
    let upper = register & 2 != 0;
    match in_memory(place, register) {
        // SAFETY: a half of a mapped, aligned register; drivers of this kernel give a
        // device no more than the memory that is theirs.
        Some(word) => unsafe {
            let half = word.cast::<u16>().add(usize::from(upper));
            half.write_volatile(data.to_le());
        },
        None => {
            select(place, register);
            let port = CONFIG_DATA + if upper { 2 } else { 0 };
            // SAFETY: as above.
            unsafe { Port::<u16>::new(port).write(data) }
        }
    }
}

impl ConfigurationAccess for PciAccess {
    #[inline(never)]
    fn read_word(&self, device_function: DeviceFunction, register_offset: u8) -> u32 {
        match in_memory(device_function, register_offset) {
            // SAFETY: a mapped, aligned register; reading has no effect on
            // memory.
            Some(word) => u32::from_le(unsafe { word.read_volatile() }),
            None => read_ports(device_function, register_offset),
        }
    }

    #[inline(never)]
    fn write_word(&mut self, device_function: DeviceFunction, register_offset: u8, data: u32) {
        if register_offset == COMMAND {
            // Its upper half, the status, keeps what is not written as 1, and
            // some hypervisors (Alioth) take the command by 16 bits only.
            return write_half(device_function, COMMAND, data as u16);
        }
        if register_offset >= CAPABILITIES {
            let before = self.read_word(device_function, register_offset);
            if before as u16 == data as u16 && before != data {
                // Such as the control word of MSI-X, which crosvm takes by 16 bits only.
                return write_half(device_function, register_offset | 2, (data >> 16) as u16);
            }
        }
        match in_memory(device_function, register_offset) {
            // SAFETY: a mapped, aligned register; the users of this type move
            // no BAR onto memory.
            Some(word) => unsafe { word.write_volatile(data.to_le()) },
            None => {
                select(device_function, register_offset);
                // SAFETY: as above.
                unsafe { Port::<u32>::new(CONFIG_DATA).write(data) }
            }
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}
