//! PCI: configuration access by ports 0xcf8 and 0xcfc (PCI Local Bus
//! specification 3.0, section 3.2.2.3.2), the scan, and the network devices.

use alloc::vec::Vec;
use core::fmt;

use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, HeaderType, PCI_CAP_ID_VNDR, PciRoot,
};
use x86_64::instructions::port::Port;

use crate::memory;

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const CONFIG_ENABLE: u32 = 1 << 31;

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
pub const VENDOR_VIRTIO: u16 = 0x1af4;
/// The virtio network device with a legacy interface (virtio specification
/// 1.2, section 4.1.2.1).
const DEVICE_NET_TRANSITIONAL: u16 = 0x1000;
/// The virtio network device without one.
const DEVICE_NET_MODERN: u16 = 0x1041;

/// Configuration access by ports. Only the CPU that booted uses it, and not
/// from interrupt handlers, so address and data belong together.
#[derive(Clone, Copy, Debug)]
pub struct PortAccess;

impl PortAccess {
    fn select(device_function: DeviceFunction, register: u8) {
        let address = CONFIG_ENABLE
            | u32::from(device_function.bus) << 16
            | u32::from(device_function.device & 0x1f) << 11
            | u32::from(device_function.function & 0x7) << 8
            | u32::from(register & 0xfc);
        // SAFETY: the port is the host bridge's, or nothing.
        unsafe { Port::<u32>::new(CONFIG_ADDRESS).write(address) };
    }
}

impl ConfigurationAccess for PortAccess {
    fn read_word(&self, device_function: DeviceFunction, register_offset: u8) -> u32 {
        Self::select(device_function, register_offset);
        // SAFETY: reading configuration registers has no effect on memory.
        unsafe { Port::<u32>::new(CONFIG_DATA).read() }
    }

    fn write_word(&mut self, device_function: DeviceFunction, register_offset: u8, data: u32) {
        Self::select(device_function, register_offset);
        // SAFETY: the users of this type move no BAR onto memory.
        unsafe { Port::<u32>::new(CONFIG_DATA).write(data) }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}

/// Access to the machine's PCI buses.
pub fn root() -> PciRoot<PortAccess> {
    PciRoot::new(PortAccess)
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
        let [v0, v1, d0, d1] = PortAccess.read_word(location, VENDOR_DEVICE).to_le_bytes();
        let vendor = u16::from_le_bytes([v0, v1]);
        if vendor == NO_VENDOR {
            if function == 0 {
                return;
            }
            continue;
        }
        let [revision, _, subclass, class] =
            PortAccess.read_word(location, CLASS_REVISION).to_le_bytes();
        let [_, _, header, _] = PortAccess.read_word(location, HEADER_TYPE).to_le_bytes();
        let [line, pin, _, _] = PortAccess.read_word(location, INTERRUPT).to_le_bytes();
        let is_bridge = HeaderType::from(header & !MULTIFUNCTION) == HeaderType::PciPciBridge;
        if is_bridge {
            let [_, secondary, _, _] = PortAccess.read_word(location, BRIDGE_BUSES).to_le_bytes();
            // A bridge that firmware has not set up says 0.
            buses.push(secondary);
        }
        functions.push(Function {
            location,
            vendor,
            device: u16::from_le_bytes([d0, d1]),
            // Bridges have other registers there.
            subsystem: if is_bridge {
                0
            } else {
                (PortAccess.read_word(location, SUBSYSTEM) >> 16) as u16
            },
            class: (class, subclass),
            revision,
            interrupt_pin: pin,
            interrupt_line: line,
        });
        if function == 0 && header & MULTIFUNCTION == 0 {
            return;
        }
    }
}

/// A virtio network device whose BARs can be used. It does not decode them
/// until [`VirtioNic::enable`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioNic {
    /// The function.
    pub function: Function,
    /// Its BARs, those that firmware assigned and the kernel can reach.
    pub bars: [Option<BarInfo>; 6],
}

impl VirtioNic {
    /// Whether the device has the modern interface too: only then it has
    /// virtio's capabilities (virtio specification 1.2, section 4.1.4).
    pub fn has_modern_interface(&self) -> bool {
        root()
            .capabilities(self.function.location)
            // The list has at most 48 members; more is a loop.
            .take(48)
            .any(|capability| capability.id == PCI_CAP_ID_VNDR)
    }
}

/// The usable virtio network devices among `functions`, in their order. What
/// is not usable is reported, and why.
pub fn find_virtio_net(functions: &[Function]) -> Vec<VirtioNic> {
    functions
        .iter()
        .filter(|function| {
            function.vendor == VENDOR_VIRTIO
                && matches!(function.device, DEVICE_NET_TRANSITIONAL | DEVICE_NET_MODERN)
        })
        .filter_map(|function| probe(*function))
        .collect()
}

fn probe(function: Function) -> Option<VirtioNic> {
    let mut root = root();
    // Sizing a BAR moves it around; off once is cheaper than off for each, as
    // every change makes the hypervisor lay out its address space anew. `enable`
    // turns the device that is taken on again.
    let (_, command) = root.get_status_command(function.location);
    root.set_command(
        function.location,
        command - Command::IO_SPACE - Command::MEMORY_SPACE,
    );
    let mut bars = match root.bars(function.location) {
        Ok(bars) => bars,
        Err(error) => {
            log::warn!("{function} ignored: {error}");
            return None;
        }
    };
    for (index, bar) in bars.iter_mut().enumerate() {
        if let Some(problem) = bar.as_ref().and_then(unusable) {
            log::warn!("{function}: BAR {index} {problem}");
            *bar = None;
        }
    }
    if bars.iter().all(Option::is_none) {
        log::warn!("{function} ignored: it has no usable BAR");
        return None;
    }
    Some(VirtioNic { function, bars })
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
