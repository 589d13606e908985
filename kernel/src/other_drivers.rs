//! Self-tests that run `virtio-drivers`' own drivers of other devices over
//! this project's transports: the legacy one where the device offers it,
//! unless `transport=` asks for another.
//!
//! Those drivers fix their queue sizes at compile time and the legacy device
//! dictates its own, so the device must be given the driver's: 8 for entropy
//! (QEMU's own choice) and 16 for block (`queue-size=16`).

mod other_transports;

use kickpath_abi::config::{Config, SelfTest, Transport};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::{DeviceType, Transport as _};
use virtio_net::net::NetError;

use crate::memory::KernelHal;
use crate::virtio::other::OtherError;
use crate::virtio::{self, Interface, KernelTransport};
use crate::virtio_mmio::OpenError;

/// Sizes of those drivers' queues.
const ENTROPY_QUEUE: u32 = 8;
const BLOCK_QUEUE: u32 = 16;

const SECTOR: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    #[error("there is no {0:?} device")]
    NoDevice(DeviceType),
    #[error("the device dictates a queue of {device}, the driver's has {driver}")]
    QueueSize { device: u32, driver: u32 },
    #[error(transparent)]
    Transport(#[from] OpenError),
    #[error(transparent)]
    Driver(#[from] virtio_drivers::Error),
    #[error(transparent)]
    OtherTransport(#[from] OtherError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("nothing came back in time")]
    NoAnswer,
    #[error("{0}")]
    WrongData(&'static str),
}

/// Runs the self-test if it is one of these; prints one line with its result.
pub fn run(config: &Config) -> Result<(), SelfTestError> {
    match config.selftest {
        SelfTest::Entropy => entropy(config.transport),
        SelfTest::Block => block(config.transport),
        SelfTest::Adapter => other_transports::run(config),
        _ => Ok(()),
    }
}

fn entropy(wanted: Transport) -> Result<(), SelfTestError> {
    let mut driver =
        VirtIORng::<KernelHal, _>::new(open(DeviceType::EntropySource, wanted, ENTROPY_QUEUE)?)?;
    let (mut first, mut second) = ([0; 64], [0; 64]);
    let one = driver.request_entropy(&mut first)?;
    let other = driver.request_entropy(&mut second)?;
    if one == 0 || other == 0 || first == second {
        return Err(SelfTestError::WrongData("two draws of entropy were alike"));
    }
    log::info!("kickpath: selftest entropy: {one} and {other} bytes");
    Ok(())
}

fn block(wanted: Transport) -> Result<(), SelfTestError> {
    let mut driver = VirtIOBlk::<KernelHal, _>::new(open(DeviceType::Block, wanted, BLOCK_QUEUE)?)?;
    let mut original = [0; SECTOR_SIZE];
    driver.read_blocks(SECTOR, &mut original)?;
    let written = original.map(|byte| !byte);
    driver.write_blocks(SECTOR, &written)?;
    let mut read = [0; SECTOR_SIZE];
    driver.read_blocks(SECTOR, &mut read)?;
    if read != written {
        return Err(SelfTestError::WrongData(
            "the sector read is not the one written",
        ));
    }
    log::info!(
        "kickpath: selftest block: {} sectors, sector {SECTOR} inverted",
        driver.capacity()
    );
    Ok(())
}

/// The first device of a kind, by the first of its interfaces that is wanted, for a
/// driver whose queue has so many descriptors.
fn open(
    kind: DeviceType,
    wanted: Transport,
    driver: u32,
) -> Result<KernelTransport, SelfTestError> {
    for device in virtio::find(kind, wanted) {
        for interface in device.interfaces() {
            if interface.is_wanted(wanted) {
                log::info!("{device}: {kind:?} by {}", interface.name());
                let mut transport = device.open(interface)?;
                if let Interface::Legacy(_) = interface {
                    // The driver would not notice, and wait for ever.
                    let device = transport.max_queue_size(0);
                    if device != driver {
                        return Err(SelfTestError::QueueSize { device, driver });
                    }
                }
                return Ok(transport);
            }
        }
    }
    Err(SelfTestError::NoDevice(kind))
}
