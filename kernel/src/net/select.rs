//! Which network device is taken, and by which transport.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use kickpath_abi::config::{self, Config};
use kickpath_abi::status::{self, Boot, Status};
use virtio_drivers::transport::DeviceType;
use virtio_net::net::{NetError, Options, VirtioNet};
use virtio_net::transport::BusName;

use super::device::Nic;
use super::interrupts;
use crate::arch::time;
use crate::stages;
use crate::virtio::{self, Device, Interface, KernelTransport};
use crate::virtio_mmio::OpenError;

/// The device that was taken.
pub struct Found {
    pub nic: Nic,
    pub device: Device,
    pub interface: Interface,
    /// The other interfaces that the device offers.
    pub others: Vec<Interface>,
}

/// Takes the first network device that can be driven and that `open` brings
/// up, by the best of its interfaces that `config` allows.
pub fn select<O>(
    config: &Config,
    options: Options,
    mut open: impl FnMut(Found) -> Result<O, NetError>,
) -> Result<O, SelectError> {
    let devices = virtio::find(DeviceType::Network, config.transport);
    stages::ended("devices found");
    if devices.is_empty() {
        return Err(SelectError::Absent);
    }
    let mut suitable = false;
    for device in &devices {
        let interfaces = device.interfaces();
        for &interface in &interfaces {
            if !interface.is_wanted(config.transport) {
                continue;
            }
            suitable = true;
            let others = interfaces.iter().copied();
            let opened = take(device, interface, options).and_then(|nic| {
                let found = Found {
                    nic,
                    device: device.clone(),
                    interface,
                    others: others.filter(|other| *other != interface).collect(),
                };
                found.announce(devices.len());
                Ok(open(found)?)
            });
            match opened {
                Ok(opened) => return Ok(opened),
                Err(error) => log::warn!("{device}, {}: {error}", interface.name()),
            }
        }
    }
    if suitable {
        Err(SelectError::Unusable)
    } else {
        Err(SelectError::Unoffered(config.transport))
    }
}

fn take(device: &Device, interface: Interface, options: Options) -> Result<Nic, TakeError> {
    let transport = device.open(interface)?;
    let mut nic = VirtioNet::probe(transport, options, &interrupts::STATE);
    if let Ok(nic) = &mut nic {
        nic.set_clock(time::now);
    }
    Ok(nic?)
}

impl Found {
    /// What the report says of it that does not change.
    pub fn fixed(&self, boot: Boot) -> Status {
        let others = || self.others.iter();
        let kick = |other: &Interface| format!("{}: {}", other.transport(), other.kick());
        let device = status::Device {
            id: self.device.id(),
            transport: self.interface.transport().to_string(),
            transport_alternatives: others().map(|it| it.transport().to_string()).collect(),
            transport_place: self.interface.place(),
            alternative_kicks: others().map(kick).collect(),
            ..Default::default()
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_string(),
            boot,
            device,
            ..Default::default()
        }
    }

    fn announce(&self, devices: usize) {
        let info = self.nic.info();
        log::info!(
            "{}: virtio-net by {}, {}",
            BusName::<KernelTransport>(self.nic.transport()),
            self.interface.name(),
            self.interface.place(),
        );
        for other in &self.others {
            log::info!("by {} a kick would be {}", other.name(), other.kick());
        }
        log::info!("features offered:    {}", info.offered);
        log::info!("features negotiated: {}", info.negotiated);
        if devices > 1 {
            log::info!("{devices} network devices, the first usable one is taken");
        }
    }
}

/// Why no device was taken.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    #[error("there is no virtio network device")]
    Absent,
    #[error("no virtio network device is usable")]
    Unusable,
    #[error("no virtio network device offers transport={0}")]
    Unoffered(config::Transport),
}

/// Why a device could not be taken.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
enum TakeError {
    Open(#[from] OpenError),
    Net(#[from] NetError),
}
