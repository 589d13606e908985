//! Which network device is taken, and by which transport.

use alloc::vec::Vec;
use core::fmt;

use kickpath_abi::config::Config;
use virtio_drivers::transport::DeviceType;
use virtio_net::net::{Features, NetError, VirtioNet};
use virtio_net::transport::BusName;

use super::NetworkError;
use super::device::{Nic, NicTransport};
use super::interrupts;
use crate::stages;
use crate::virtio::{self, Device, Interface};
use crate::virtio_mmio::OpenError;

/// The device that was taken.
pub struct Found {
    /// The driver, probed.
    pub nic: Nic,
    /// The device.
    pub device: Device,
    /// The interface that was taken.
    pub interface: Interface,
    /// The other interfaces that the device offers.
    pub others: Vec<Interface>,
}

/// Takes the first network device that can be driven and that `open` brings
/// up, by the best of its interfaces that `config` allows.
pub fn probe<O>(
    config: &Config,
    refused: Features,
    mut open: impl FnMut(Found) -> Result<O, NetError>,
) -> Result<O, NetworkError> {
    let devices = virtio::find(DeviceType::Network, config.transport);
    stages::ended("devices found");
    if devices.is_empty() {
        return Err(NetworkError::NoDevice);
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
            let opened = take(device, interface, refused).and_then(|nic| {
                let found = Found {
                    nic,
                    device: device.clone(),
                    interface,
                    others: others.filter(|other| *other != interface).collect(),
                };
                found.announce(devices.len());
                open(found).map_err(TakeError::Net)
            });
            match opened {
                Ok(opened) => return Ok(opened),
                Err(error) => log::warn!("{device}, {}: {error}", interface.name()),
            }
        }
    }
    if suitable {
        Err(NetworkError::NoUsableDevice)
    } else {
        Err(NetworkError::NoTransport(config.transport))
    }
}

fn take(device: &Device, interface: Interface, refused: Features) -> Result<Nic, TakeError> {
    let transport = device.open(interface).map_err(TakeError::Open)?;
    VirtioNet::probe(transport, refused, &interrupts::STATE).map_err(TakeError::Net)
}

impl Found {
    fn announce(&self, devices: usize) {
        let info = self.nic.info();
        log::info!(
            "{}: virtio-net by {}, {}",
            BusName::<NicTransport>(self.nic.transport()),
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

/// Why a device could not be taken.
enum TakeError {
    Open(OpenError),
    Net(NetError),
}

impl fmt::Display for TakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => error.fmt(f),
            Self::Net(error) => error.fmt(f),
        }
    }
}
