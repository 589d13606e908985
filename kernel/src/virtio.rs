//! The machine's virtio devices of a kind, on whatever bus, and the interfaces
//! by which each can be driven.

#[cfg(feature = "peer")]
pub mod other;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use kickpath_abi::config::Transport as Wanted;
use virtio_drivers::transport::{DeviceType, Transport as _};
use virtio_net::transport::any::AnyTransport;
use virtio_net::transport::legacy_pci::LegacyPciTransport;
use virtio_net::transport::mmio::Version;
use virtio_net::transport::modern_pci::ModernPciTransport;
use virtio_net::transport::structures::{Location, Structures};
use virtio_net::transport::{Ports, TransportError, X86Ports};

use crate::arch::interrupts::Line;
use crate::memory::KernelHal;
use crate::pci::{self, PciAccess, VirtioFunction};
use crate::virtio_mmio::{self, MmioDevice, OpenError};

/// The transports of this kernel.
pub type KernelTransport = AnyTransport<KernelHal, PciAccess>;

/// A device in one of the places where they are found.
#[derive(Clone, Debug)]
pub enum Device {
    Pci(VirtioFunction),
    Mmio(MmioDevice, Version),
}

/// An interface that a device offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// The legacy interface of virtio-pci, registers from this port on.
    Legacy(u16),
    Modern(Structures),
    /// virtio-mmio, registers at this address.
    Mmio(u64, Version),
}

/// The devices of a kind: PCI's, or where there is none (or none is `wanted`)
/// those of virtio-mmio. What cannot be one is reported, and why.
pub fn find(kind: DeviceType, wanted: Wanted) -> Vec<Device> {
    let functions = pci::scan();
    for function in &functions {
        log::debug!("{function}");
    }
    let on_pci = pci::find_virtio(&functions, kind);
    let mut devices: Vec<Device> = on_pci.into_iter().map(Device::Pci).collect();
    if !devices.is_empty() && wanted != Wanted::Mmio {
        return devices;
    }
    for place in virtio_mmio::devices() {
        match place.open() {
            Ok(transport) if transport.device_type() == kind => {
                devices.push(Device::Mmio(*place, transport.version()));
            }
            Ok(_) | Err(OpenError::Transport(TransportError::NoDevice)) => {}
            Err(error) => log::warn!("{place} ignored: {error}"),
        }
    }
    devices
}

impl Device {
    /// The interfaces that the device offers, the preferred one first: that is
    /// the legacy one, whose port write is what this project exists to show.
    pub fn interfaces(&self) -> Vec<Interface> {
        match self {
            Self::Mmio(place, version) => Vec::from([Interface::Mmio(place.address, *version)]),
            Self::Pci(function) => {
                let mut interfaces = Vec::new();
                interfaces.extend(function.legacy_interface().map(Interface::Legacy));
                match function.modern_interface() {
                    Ok(structures) => interfaces.push(Interface::Modern(structures)),
                    // A legacy device has no capabilities.
                    Err(TransportError::NoStructure { .. }) if !interfaces.is_empty() => {}
                    Err(error) => log::warn!("{self}: {error}"),
                }
                interfaces
            }
        }
    }

    /// Takes the device by one of its interfaces.
    pub fn open(&self, interface: Interface) -> Result<KernelTransport, OpenError> {
        // SAFETY: the kernel runs at privilege 0, and the ports are those of this
        // device's BARs, which nobody else uses.
        let ports = unsafe { X86Ports::new() };
        Ok(match (self, interface) {
            (Self::Mmio(place, _), _) => AnyTransport::Mmio(place.open()?),
            (Self::Pci(VirtioFunction { function, .. }), Interface::Modern(_)) => {
                let (location, ports) = (function.location, ports.access());
                let transport = ModernPciTransport::new(&PciAccess, ports, location)?;
                AnyTransport::ModernPci(transport.with_access_platform())
            }
            (Self::Pci(VirtioFunction { function, .. }), _) => {
                let transport = LegacyPciTransport::new(&PciAccess, ports, function.location);
                AnyTransport::LegacyPci(transport?)
            }
        })
    }

    /// Vendor and device id, such as `1af4:1000`; virtio-mmio has none, only a
    /// type.
    pub fn id(&self) -> String {
        match self {
            Self::Mmio(..) => "virtio-mmio".to_string(),
            Self::Pci(VirtioFunction { function, .. }) => {
                format!("{:04x}:{:04x}", function.vendor, function.device)
            }
        }
    }

    /// Where the device's interrupt line leads, if that is known. Finding that
    /// out takes time.
    pub fn line(&self) -> Option<Line> {
        match self {
            Self::Mmio(place, _) => Some(place.line),
            Self::Pci(function) => function.intx_line(),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(device) => device.function.fmt(f),
            Self::Mmio(place, _) => place.fmt(f),
        }
    }
}

impl Interface {
    /// The configuration's word for it.
    pub fn transport(&self) -> Wanted {
        match self {
            Self::Legacy(_) => Wanted::Legacy,
            Self::Modern(_) => Wanted::Modern,
            Self::Mmio(..) => Wanted::Mmio,
        }
    }

    /// Whether the configuration allows it.
    pub fn is_wanted(&self, wanted: Wanted) -> bool {
        wanted == Wanted::Auto || wanted == self.transport()
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Legacy(_) => "legacy PCI",
            Self::Modern(_) => "modern PCI",
            Self::Mmio(_, Version::Legacy) => "virtio-mmio version 1 (legacy)",
            Self::Mmio(_, Version::Modern) => "virtio-mmio version 2",
        }
    }

    pub fn place(&self) -> String {
        match self {
            Self::Legacy(port) => format!("ports from {port:#x} on (BAR 0)"),
            Self::Modern(structures) => format!("memory at {}", structures.common),
            Self::Mmio(address, _) => format!("memory at {address:#x}"),
        }
    }

    /// What a kick is, as far as the device's description tells: where exactly
    /// in the notification structure a queue's register is, only the device's
    /// registers say.
    pub fn kick(&self) -> String {
        match self {
            Self::Legacy(port) => format!("outw to port {:#x} (BAR 0)", port.saturating_add(0x10)),
            Self::Modern(Structures { notify, .. }) => match notify.location {
                Location::Memory(_) => format!("movw to memory from {notify} on"),
                Location::Ports(_) => format!("outw to {notify}"),
            },
            Self::Mmio(address, _) => {
                format!("movl to memory at {:#x}", address.saturating_add(0x50))
            }
        }
    }
}
