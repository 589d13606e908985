//! The machine's virtio-mmio devices: by the words that QEMU's microvm adds to
//! the command line, else by ACPI.

use core::fmt;

use heapless::Vec;
use kickpath_abi::config::DeviceWord;
use spin::Once;
use virtio_net::transport::TransportError;
use virtio_net::transport::mmio::MmioTransport;

use crate::arch::acpi::{self, Gsi, Input, MAX_VIRTIO_MMIO, Polarity, Trigger};
use crate::arch::interrupts::{self, Line};
use crate::config::virtio_mmio_devices;
use crate::memory::{KernelHal, MapError, map_mmio};

/// A place with virtio-mmio registers; whether a device is there is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// Physical address of the registers.
    pub address: u64,
    /// Length of the registers in bytes.
    pub size: usize,
    /// Where its interrupt line leads.
    pub line: Line,
}

impl fmt::Display for MmioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "virtio-mmio {:#x}", self.address)
    }
}

/// Why a device's registers cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum OpenError {
    Unmappable(#[from] MapError),
    Transport(#[from] TransportError),
}

impl MmioDevice {
    /// Takes the device that is there, if one is.
    pub fn open(&self) -> Result<MmioTransport<KernelHal>, OpenError> {
        map_mmio(self.address, self.size as u64)?;
        // SAFETY: the machine's description says that these are registers of
        // virtio-mmio, and no memory is there, as was just checked. The
        // transport is the only user: devices are opened by their one driver.
        let transport = unsafe { MmioTransport::new(self.address, self.size) }?;
        Ok(transport.with_access_platform())
    }
}

static DEVICES: Once<Vec<MmioDevice, MAX_VIRTIO_MMIO>> = Once::new();

/// Finds the devices. What is not understood is reported.
fn find() -> Vec<MmioDevice, MAX_VIRTIO_MMIO> {
    let mut devices = Vec::new();
    for word in virtio_mmio_devices(crate::platform()) {
        match word.parse::<DeviceWord>() {
            Ok(word) => {
                // As the ISA bus has its lines, which is how Linux takes the
                // word, too.
                let input = Input {
                    gsi: Gsi(word.interrupt),
                    trigger: Trigger::Edge,
                    polarity: Polarity::High,
                };
                add(&mut devices, word.address, word.size, input);
            }
            Err(error) => log::warn!("virtio_mmio.device={word} ignored: {error}"),
        }
    }
    if let (true, Some(tables)) = (devices.is_empty(), acpi::tables()) {
        for device in tables.virtio_mmio() {
            add(&mut devices, device.address, device.size, device.input);
        }
    }
    devices
}

fn add(devices: &mut Vec<MmioDevice, MAX_VIRTIO_MMIO>, address: u64, size: usize, input: Input) {
    let device = MmioDevice {
        address,
        size,
        line: interrupts::io_apic_line(input),
    };
    match devices.push(device) {
        Ok(()) => log::debug!("{device}, {size} bytes, {input}"),
        Err(_) => log::warn!("{device} ignored: one too many"),
    }
}

/// The devices, which are looked for when first asked for.
pub fn devices() -> &'static [MmioDevice] {
    DEVICES.call_once(find)
}
