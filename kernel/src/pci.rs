//! PCI: the scan, and the virtio devices. Configuration access is
//! [`PciAccess`].

mod access;
mod assign;
pub mod slot;

use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, HeaderType, PciRoot,
};
use virtio_net::transport::structures::{self, Structures};
use virtio_net::transport::{PortAccess, TransportError};

use crate::arch::interrupts::{self, Line};
pub use access::PciAccess;

/// Register offsets in the configuration header.
const VENDOR_DEVICE: u8 = 0x00;
const CLASS_REVISION: u8 = 0x08;
const HEADER_TYPE: u8 = 0x0c;
const BARS: [u8; 6] = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24];
const BRIDGE_BUSES: u8 = 0x18;
const SUBSYSTEM: u8 = 0x2c;
const INTERRUPT: u8 = 0x3c;

/// What the vendor register reads as where nothing is.
const NO_VENDOR: u16 = 0xffff;
const MULTIFUNCTION: u8 = 0x80;

const VENDOR_VIRTIO: u16 = 0x1af4;
/// First device id without a legacy interface; the type of device is added to
/// it (virtio specification 1.2, section 4.1.2.1).
const DEVICE_MODERN: u16 = 0x1040;
const DEVICES_VIRTIO: RangeInclusive<u16> = 0x1000..=0x107f;

/// Access to the machine's PCI buses.
pub fn root() -> PciRoot<PciAccess> {
    PciRoot::new(PciAccess)
}

/// A function of a device, as the scan found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    pub location: DeviceFunction,
    pub vendor: u16,
    pub device: u16,
    /// Subsystem id; for a transitional virtio device, the type of device.
    pub subsystem: u16,
    pub class: (u8, u8),
    /// Revision; 0 for a transitional virtio device.
    pub revision: u8,
    /// INTx pin, 1 to 4 for A to D; 0 when it has none.
    pub interrupt_pin: u8,
    /// Line of the 8259 controllers that firmware connected the pin to.
    pub interrupt_line: u8,
    /// The bus behind it, when it is a bridge that firmware has set up.
    pub secondary_bus: Option<u8>,
}

impl Function {
    /// What kind of virtio device it is, if it is one (virtio specification
    /// 1.2, section 4.1.2.1).
    fn virtio_type(&self) -> Option<DeviceType> {
        if self.vendor != VENDOR_VIRTIO || !DEVICES_VIRTIO.contains(&self.device) {
            return None;
        }
        let id = self.device.checked_sub(DEVICE_MODERN);
        DeviceType::try_from(id.unwrap_or(self.subsystem)).ok()
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PCI {} {:04x}:{:04x} class {:02x}{:02x}",
            self.location, self.vendor, self.device, self.class.0, self.class.1
        )
    }
}

/// Finds every function behind the host bridge, across PCI-to-PCI bridges that
/// firmware has set up. Each bus is scanned once, whatever the bridges say.
pub fn scan() -> Vec<Function> {
    let mut functions = Vec::new();
    let mut seen = [false; 256];
    let mut waiting = alloc::vec![0u8];
    while let Some(bus) = waiting.pop() {
        match seen.get_mut(usize::from(bus)) {
            Some(seen) if !*seen => *seen = true,
            _ => continue,
        }
        access::use_ecam(bus);
        for device in 0..32 {
            scan_device(bus, device, &mut functions, &mut waiting);
        }
    }
    functions
}

fn scan_device(bus: u8, device: u8, functions: &mut Vec<Function>, buses: &mut Vec<u8>) {
    for function in 0..8 {
        let location = DeviceFunction {
            bus,
            device,
            function,
        };
        let [v0, v1, d0, d1] = PciAccess.read_word(location, VENDOR_DEVICE).to_le_bytes();
        let vendor = u16::from_le_bytes([v0, v1]);
        // Firecracker's host bridge answers 0.
        if matches!(vendor, NO_VENDOR | 0) {
            if function == 0 {
                return;
            }
            continue;
        }
        let [revision, _, subclass, class] =
            PciAccess.read_word(location, CLASS_REVISION).to_le_bytes();
        let [_, _, header, _] = PciAccess.read_word(location, HEADER_TYPE).to_le_bytes();
        let [line, pin, _, _] = PciAccess.read_word(location, INTERRUPT).to_le_bytes();
        let is_bridge = HeaderType::from(header & !MULTIFUNCTION) == HeaderType::PciPciBridge;
        let secondary_bus = is_bridge
            .then(|| PciAccess.read_word(location, BRIDGE_BUSES).to_le_bytes()[1])
            // A bridge that firmware has not set up says 0.
            .filter(|&bus| bus != 0);
        buses.extend(secondary_bus);
        functions.push(Function {
            location,
            vendor,
            device: u16::from_le_bytes([d0, d1]),
            // Bridges have other registers there.
            subsystem: if is_bridge {
                0
            } else {
                (PciAccess.read_word(location, SUBSYSTEM) >> 16) as u16
            },
            class: (class, subclass),
            revision,
            interrupt_pin: pin,
            interrupt_line: line,
            secondary_bus,
        });
        if function == 0 && header & MULTIFUNCTION == 0 {
            return;
        }
    }
}

/// A virtio device whose BARs can be used. It does not decode them until a
/// transport takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioFunction {
    pub function: Function,
    /// Its BARs, those that firmware assigned and the kernel can reach.
    pub bars: [Option<BarInfo>; 6],
}

impl VirtioFunction {
    /// The port of the legacy interface's first register, where the device has
    /// that interface (virtio specification 1.2, section 4.1.2.3: a
    /// transitional device has revision 0).
    pub fn legacy_interface(&self) -> Option<u16> {
        let function = &self.function;
        match self.bars.first() {
            Some(Some(BarInfo::IO { address, .. }))
                if function.device < DEVICE_MODERN && function.revision == 0 =>
            {
                u16::try_from(*address).ok()
            }
            _ => None,
        }
    }

    /// The structures of the modern interface, where the device has a usable
    /// one (virtio specification 1.2, section 4.1.4).
    pub fn modern_interface(&self) -> Result<Structures, TransportError> {
        // SAFETY: the kernel runs at privilege 0.
        let ports = unsafe { PortAccess::native() };
        let location = self.function.location;
        Structures::find(&root(), &PciAccess, location, &self.bars, ports)
    }

    /// Where the function's INTx pin leads, by the interrupt line register; how it
    /// was found is logged. ACPI's `_PRT` would tell the I/O APIC's input instead,
    /// but that is a program, and the 8259 controllers do as well.
    #[doc(alias = "acpi_pci_irq_enable")]
    pub fn intx_line(&self) -> Option<Line> {
        let Function {
            interrupt_pin: pin,
            interrupt_line: register,
            ..
        } = self.function;
        if !(1..=4).contains(&pin) {
            log::info!("INTx: the device has no interrupt pin");
            return None;
        }
        let line = interrupts::pci_line(register);
        match line {
            Some(line) => log::info!("INTx: {line}, by the interrupt line register"),
            None => log::info!("INTx: the interrupt line register names none: {register:#x}"),
        }
        line
    }
}

/// The usable virtio devices of a kind among `functions`, in their order. What
/// is not usable is reported, and why.
pub fn find_virtio(functions: &[Function], kind: DeviceType) -> Vec<VirtioFunction> {
    let is_wanted = |function: &&Function| function.virtio_type() == Some(kind);
    let wanted = functions.iter().filter(is_wanted);
    wanted.filter_map(|it| probe(*it, functions)).collect()
}

/// Whether firmware has given an address to a memory BAR of any of these.
fn is_placed(functions: &[Function]) -> bool {
    /// Of bridges, which have other registers there.
    const BRIDGE: u8 = 6;
    let devices = functions
        .iter()
        .filter(|function| function.class.0 != BRIDGE);
    let mut bars = devices
        .flat_map(|function| BARS.map(|register| PciAccess.read_word(function.location, register)));
    // The lowest bit is set in those of ports, the other three tell what memory it is.
    bars.any(|bar| bar & 1 == 0 && bar & !0xf != 0)
}

/// Makes a function usable that is one of `all`.
fn probe(function: Function, all: &[Function]) -> Option<VirtioFunction> {
    let mut root = root();
    // Sizing a BAR moves it around; off once is cheaper than off for each, as
    // every change makes the hypervisor lay out its address space anew. The
    // transport that takes the device turns it on again.
    let (_, command) = root.get_status_command(function.location);
    let off = command - Command::IO_SPACE - Command::MEMORY_SPACE;
    root.set_command(function.location, off);
    let mut bars = structures::bars(&mut root, function.location);
    assign::assign(&mut root, function.location, &mut bars, || is_placed(all));
    for (index, bar) in bars.iter_mut().enumerate() {
        // Whether memory can be mapped shows when a driver wants some of it.
        match *bar {
            Some(BarInfo::IO { address: 0, .. } | BarInfo::Memory { address: 0, .. }) => {
                log::warn!("{function}: BAR {index} was left unassigned by the firmware");
            }
            Some(BarInfo::IO { address, size }) if address.saturating_add(size) > 1 << 16 => {
                log::warn!("{function}: BAR {index} is at port {address:#x}, which is none");
            }
            _ => continue,
        }
        *bar = None;
    }
    if bars.iter().all(Option::is_none) {
        log::warn!("{function} ignored: it has no usable BAR");
        return None;
    }
    Some(VirtioFunction { function, bars })
}
