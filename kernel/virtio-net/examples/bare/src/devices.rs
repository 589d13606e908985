//! Where the network device is: among the virtio-mmio places that the device tree
//! tells, or on the PCI bus, whose windows it tells.

use alloc::vec::Vec;

use fdt::Fdt;
use fdt::node::FdtNode;
use log::{info, warn};
use virtio_drivers::transport::pci::bus::{
    BarInfo, Cam, ConfigurationAccess, DeviceFunction, MemoryBarType, MmioCam, PciRoot,
};
use virtio_drivers::transport::{DeviceType, Transport};
use virtio_net::transport::any::AnyTransport;
use virtio_net::transport::legacy_pci::LegacyPciTransport;
use virtio_net::transport::mmio::MmioTransport;
use virtio_net::transport::modern_pci::ModernPciTransport;
use virtio_net::transport::{PortWindow, Ports, TransportError};

use crate::Machine;
use crate::memory::BareHal;

/// A transport of any kind; on this machine ports are a window of memory.
pub type AnyDevice = AnyTransport<BareHal, MmioCam<'static>, PortWindow>;

/// A device and the number of its interrupt.
pub struct Found {
    pub transport: AnyDevice,
    pub interrupt: Option<u32>,
}

/// PCI vendor id of virtio devices.
const VENDOR_VIRTIO: u16 = 0x1af4;

/// The first network device.
pub fn find<M: Machine>(tree: &Fdt) -> Option<Found> {
    let places = tree
        .all_nodes()
        .filter(|node| is_compatible(node, "virtio,mmio"));
    let mut host = tree
        .all_nodes()
        .filter(|node| is_compatible(node, "pci-host-ecam-generic"));
    places
        .filter_map(|node| at_place::<M>(&node))
        .next()
        .or_else(|| on_bus::<M>(&host.next()?))
}

fn is_compatible(node: &FdtNode, what: &str) -> bool {
    node.compatible()
        .is_some_and(|all| all.all().any(|one| one == what))
}

fn cells(node: &FdtNode, property: &str) -> Vec<u32> {
    let value = node
        .property(property)
        .map_or(&[][..], |property| property.value);
    value
        .chunks_exact(4)
        .map(|cell| u32::from_be_bytes([cell[0], cell[1], cell[2], cell[3]]))
        .collect()
}

fn is_network(transport: &impl Transport) -> bool {
    transport.device_type() == DeviceType::Network
}

/// The network device of virtio-mmio at this node, if it is one.
fn at_place<M: Machine>(node: &FdtNode) -> Option<Found> {
    let region = node.reg()?.next()?;
    // SAFETY: the device tree says that these registers are there; each node is
    // looked at once.
    let transport =
        unsafe { MmioTransport::new(region.starting_address as u64, region.size.unwrap_or(0)) };
    match transport {
        Ok(transport) if is_network(&transport) => Some(Found {
            transport: AnyTransport::Mmio(transport),
            interrupt: M::interrupt(&cells(node, "interrupts")),
        }),
        Ok(_) | Err(TransportError::NoDevice) => None,
        Err(error) => {
            warn!("{}: {error}", node.name);
            None
        }
    }
}

/// A window of the PCI host: where the bus and the CPU see it.
#[derive(Clone, Copy)]
struct Window {
    bus: u64,
    cpu: u64,
    size: u64,
}

/// The network device on the PCI bus of this host.
fn on_bus<M: Machine>(host: &FdtNode) -> Option<Found> {
    let window = |kind| {
        let ranges = cells(host, "ranges");
        let of_kind = ranges
            .chunks_exact(7)
            .find(|range| range[0] >> 24 == kind)?;
        let wide = |at: usize| u64::from(of_kind[at]) << 32 | u64::from(of_kind[at + 1]);
        Some(Window {
            bus: wide(1),
            cpu: wide(3),
            size: wide(5),
        })
    };
    let (ports, memory) = (window(1)?, window(2)?);
    let region = host.reg()?.next()?;
    // SAFETY: the device tree says that the configuration space is there.
    let cam = unsafe { MmioCam::new(region.starting_address.cast_mut(), Cam::Ecam) };
    // SAFETY: it is used to look and to assign BARs, before any driver is there.
    let mut root = PciRoot::new(unsafe { cam.unsafe_clone() });
    let (function, info) = root.enumerate_bus(0).find(|(_, info)| {
        info.vendor_id == VENDOR_VIRTIO && matches!(info.device_id, 0x1000 | 0x1041)
    })?;
    assign_bars(&mut root, function, ports, memory);
    // The pins of neighbouring devices lead to different lines.
    let pin = cam.read_word(function, 0x3c) >> 8 & 0xff;
    let interrupt = pin
        .checked_sub(1)
        .map(|pin| M::PCI_INTA + (pin + u32::from(function.device)) % 4);
    // SAFETY: the host's window; the ports in use are those of the device's BAR.
    let window = unsafe { PortWindow::map::<BareHal>(ports.cpu, ports.size as usize) }?;
    // SAFETY: the transport that is made is the device's one user.
    let modern = ModernPciTransport::new(&cam, window.access(), function);
    let transport = match modern {
        Ok(modern) => AnyTransport::ModernPci(modern),
        Err(TransportError::NoStructure { .. }) => {
            let legacy = LegacyPciTransport::new(&cam, window, function);
            AnyTransport::LegacyPci(legacy.inspect_err(|error| warn!("{info}: {error}")).ok()?)
        }
        Err(error) => {
            warn!("{info}: {error}");
            return None;
        }
    };
    info!("{info} at {function}");
    Some(Found {
        transport,
        interrupt,
    })
}

/// Firmware would have done this: gives each BAR a place in its window.
fn assign_bars(
    root: &mut PciRoot<MmioCam>,
    function: DeviceFunction,
    ports: Window,
    memory: Window,
) {
    // The first ones are left alone: an address of 0 means none.
    let mut next_port = ports.bus + 0x1000;
    let mut next_memory = memory.bus;
    let mut index = 0;
    while index < 6 {
        let Ok(Some(bar)) = root.bar_info(function, index) else {
            index += 1;
            continue;
        };
        let (next, size) = match bar {
            BarInfo::IO { size, .. } => (&mut next_port, u64::from(size & 0xffff)),
            BarInfo::Memory { size, .. } => (&mut next_memory, size),
        };
        let address = next.next_multiple_of(size);
        *next = address + size;
        match bar {
            BarInfo::Memory {
                address_type: MemoryBarType::Width64,
                ..
            } => {
                root.set_bar_64(function, index, address);
            }
            _ => root.set_bar_32(function, index, address as u32),
        }
        index += if bar.takes_two_entries() { 2 } else { 1 };
    }
}
