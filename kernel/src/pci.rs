//! PCI: the scan, and the virtio devices. Configuration access is
//! [`PciAccess`].

mod access;
mod intx;

use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, HeaderType, PciRoot,
};
use virtio_net::transport::TransportError;
use virtio_net::transport::structures::{self, Structures};

use crate::memory;
pub use access::{PciAccess, init};
pub use intx::intx_line;

/// Register offsets in the configuration header.
const VENDOR_DEVICE: u8 = 0x00;
const CLASS_REVISION: u8 = 0x08;
const HEADER_TYPE: u8 = 0x0c;
const BRIDGE_BUSES: u8 = 0x18;
const SUBSYSTEM: u8 = 0x2c;
const INTERRUPT: u8 = 0x3c;

/// What the vendor register reads as where nothing is.
const NO_VENDOR: u16 = 0xffff;
const MULTIFUNCTION: u8 = 0x80;

/// PCI vendor id of virtio devices.
const VENDOR_VIRTIO: u16 = 0x1af4;
/// First device id without a legacy interface; the type of device is added to
/// it (virtio specification 1.2, section 4.1.2.1).
const DEVICE_MODERN: u16 = 0x1040;
/// Device ids that virtio devices have.
const DEVICES_VIRTIO: RangeInclusive<u16> = 0x1000..=0x107f;

/// Access to the machine's PCI buses.
pub fn root() -> PciRoot<PciAccess> {
    PciRoot::new(PciAccess)
}

/// A function of a device, as the scan found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Bus, device and function.
    pub location: DeviceFunction,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem id; for a transitional virtio device, the type of device.
    pub subsystem: u16,
    /// Class and subclass.
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
        let id = match self.device.checked_sub(DEVICE_MODERN) {
            Some(id) => id,
            None => self.subsystem,
        };
        DeviceType::try_from(id).ok()
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
        if vendor == NO_VENDOR {
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
    /// The function.
    pub function: Function,
    /// Its BARs, those that firmware assigned and the kernel can reach.
    pub bars: [Option<BarInfo>; 6],
    /// The bridges between the root bus and it, that on the root bus first.
    pub bridges: Vec<DeviceFunction>,
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
        Structures::find(&root(), &PciAccess, self.function.location, &self.bars)
    }
}

/// The usable virtio devices of a kind among `functions`, in their order. What
/// is not usable is reported, and why.
pub fn find_virtio(functions: &[Function], kind: DeviceType) -> Vec<VirtioFunction> {
    functions
        .iter()
        .filter(|function| function.virtio_type() == Some(kind))
        .filter_map(|function| probe(*function, functions))
        .collect()
}

/// The bridges on the way to a bus, that on the root bus first.
fn bridges_to(mut bus: u8, functions: &[Function]) -> Vec<DeviceFunction> {
    let mut bridges = Vec::new();
    // No way has more bridges than there are.
    for _ in functions {
        let bridge = functions
            .iter()
            .find(|function| function.secondary_bus == Some(bus));
        let Some(bridge) = bridge else { break };
        bus = bridge.location.bus;
        bridges.push(bridge.location);
    }
    bridges.reverse();
    bridges
}

fn probe(function: Function, functions: &[Function]) -> Option<VirtioFunction> {
    let mut root = root();
    // Sizing a BAR moves it around; off once is cheaper than off for each, as
    // every change makes the hypervisor lay out its address space anew. The
    // transport that takes the device turns it on again.
    let (_, command) = root.get_status_command(function.location);
    root.set_command(
        function.location,
        command - Command::IO_SPACE - Command::MEMORY_SPACE,
    );
    let mut bars = structures::bars(&mut root, function.location);
    for (index, bar) in bars.iter_mut().enumerate() {
        match bar.as_ref().and_then(unusable) {
            None => {}
            // A driver would find the BAR all the same, and want it mapped.
            Some(problem @ Unusable::Unmappable(_)) => {
                log::warn!("{function} ignored: BAR {index} {problem}");
                return None;
            }
            Some(problem) => {
                log::warn!("{function}: BAR {index} {problem}");
                *bar = None;
            }
        }
    }
    if bars.iter().all(Option::is_none) {
        log::warn!("{function} ignored: it has no usable BAR");
        return None;
    }
    Some(VirtioFunction {
        function,
        bars,
        bridges: bridges_to(function.location.bus, functions),
    })
}

/// Why a BAR cannot be used.
enum Unusable {
    Unassigned,
    OutOfPorts(u32),
    Unmappable(memory::MapError),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unassigned => f.write_str("was left unassigned by the firmware"),
            Self::OutOfPorts(address) => write!(f, "is at port {address:#x}, which is none"),
            Self::Unmappable(error) => write!(f, "cannot be used: {error}"),
        }
    }
}

/// Memory BARs are mapped here, so that a driver finds them mapped.
fn unusable(bar: &BarInfo) -> Option<Unusable> {
    match *bar {
        BarInfo::IO { address: 0, .. } | BarInfo::Memory { address: 0, .. } => {
            Some(Unusable::Unassigned)
        }
        BarInfo::IO { address, size } => address
            .checked_add(size)
            .is_none_or(|end| end > 1 << 16)
            .then_some(Unusable::OutOfPorts(address)),
        BarInfo::Memory { address, size, .. } => memory::map_mmio(address, size)
            .err()
            .map(Unusable::Unmappable),
    }
}
