//! The transports of `virtio-drivers` itself, which are measured and tested beside ours.

use alloc::string::{String, ToString};

use virtio_drivers::transport::SomeTransport;
use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::{BarInfo, Command};

use super::Device;
use crate::memory::{KernelHal, MapError, map_mmio};
use crate::pci;

/// Why a transport of `virtio-drivers` itself does not take a device.
#[derive(Debug, thiserror::Error)]
pub enum OtherError {
    #[error(transparent)]
    Unmappable(#[from] MapError),
    #[error("{0}")]
    Refused(String),
    #[error("the device is not on PCI")]
    NoPci,
}

impl Device {
    /// Takes the device by a transport of `virtio-drivers` itself, which speaks no
    /// legacy virtio-pci.
    pub fn open_other(&self) -> Result<SomeTransport<'static>, OtherError> {
        match self {
            Self::Pci(found) => {
                let location = found.function.location;
                // That transport does not ask whether its registers can be mapped.
                for bar in found.bars.iter().flatten() {
                    if let BarInfo::Memory { address, size, .. } = *bar {
                        map_mmio(address, size)?;
                    }
                }
                let mut root = pci::root();
                let (_, command) = root.get_status_command(location);
                let wanted = Command::MEMORY_SPACE | Command::BUS_MASTER;
                root.set_command(location, command | wanted);
                let transport = PciTransport::new::<KernelHal, _>(&mut root, location);
                let transport = transport.map_err(|error| OtherError::Refused(error.to_string()));
                Ok(transport?.into())
            }
            Self::Mmio(place, _) => {
                let registers = map_mmio(place.address, place.size as u64)?;
                // SAFETY: these are virtio-mmio registers, as `find` has seen, mapped
                // for good; the device that it opened to see that is closed.
                let transport = unsafe { MmioTransport::new(registers.cast(), place.size) };
                let transport = transport.map_err(|error| OtherError::Refused(error.to_string()));
                Ok(transport?.into())
            }
        }
    }
}
