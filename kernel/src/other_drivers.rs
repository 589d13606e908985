//! Self-tests that run `virtio-drivers`' own drivers of other devices over
//! this project's transports: the legacy one where the device offers it,
//! unless `transport=` asks for another.
//!
//! Those drivers fix their queue sizes at compile time and the legacy device
//! dictates its own, so the device must be given the driver's: 8 for entropy
//! (QEMU's own choice) and 16 for block (`queue-size=16`).

mod adapter;

use core::fmt;

use kickpath_abi::config::{Config, SelfTest, Transport};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::DeviceType;
use virtio_net::net::NetError;

use crate::memory::KernelHal;
use crate::virtio::{self, KernelTransport};
use crate::virtio_mmio::OpenError;

/// Sector that the block test overwrites.
const SECTOR: usize = 3;

/// Why a self-test failed.
#[derive(Debug)]
pub enum SelfTestError {
    /// There is no device of the kind.
    NoDevice(DeviceType),
    /// The transport refused.
    Transport(OpenError),
    /// The driver failed.
    Driver(virtio_drivers::Error),
    /// A transport of that crate refused.
    OtherTransport(alloc::string::String),
    /// Our network driver failed.
    Net(NetError),
    /// Nothing came back in time.
    NoAnswer,
    /// The data came back wrong.
    WrongData(&'static str),
}

impl fmt::Display for SelfTestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice(kind) => write!(f, "there is no {kind:?} device"),
            Self::Transport(error) => error.fmt(f),
            Self::Driver(error) => error.fmt(f),
            Self::OtherTransport(error) => f.write_str(error),
            Self::Net(error) => error.fmt(f),
            Self::NoAnswer => f.write_str("nothing came back in time"),
            Self::WrongData(what) => f.write_str(what),
        }
    }
}

impl From<NetError> for SelfTestError {
    fn from(error: NetError) -> Self {
        Self::Net(error)
    }
}

impl From<virtio_drivers::Error> for SelfTestError {
    fn from(error: virtio_drivers::Error) -> Self {
        Self::Driver(error)
    }
}

/// Runs the self-test if it is one of these; prints one line with its result.
///
/// # Errors
///
/// [`SelfTestError`].
pub fn run(config: &Config) -> Result<(), SelfTestError> {
    match config.selftest {
        SelfTest::Entropy => entropy(config.transport),
        SelfTest::Block => block(config.transport),
        SelfTest::Adapter => adapter::run(config),
        _ => Ok(()),
    }
}

fn entropy(wanted: Transport) -> Result<(), SelfTestError> {
    let mut driver = VirtIORng::<KernelHal, _>::new(open(DeviceType::EntropySource, wanted)?)?;
    let (mut first, mut second) = ([0; 64], [0; 64]);
    let lengths = (
        driver.request_entropy(&mut first)?,
        driver.request_entropy(&mut second)?,
    );
    if lengths.0 == 0 || lengths.1 == 0 || first == second {
        return Err(SelfTestError::WrongData("two draws of entropy were alike"));
    }
    log::info!(
        "kickpath: selftest entropy: {} and {} bytes",
        lengths.0,
        lengths.1
    );
    Ok(())
}

fn block(wanted: Transport) -> Result<(), SelfTestError> {
    let mut driver = VirtIOBlk::<KernelHal, _>::new(open(DeviceType::Block, wanted)?)?;
    let mut original = [0; SECTOR_SIZE];
    driver.read_blocks(SECTOR, &mut original)?;
    let mut written = original;
    written.iter_mut().for_each(|byte| *byte = !*byte);
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

/// The first device of a kind, by the first of its interfaces that is wanted.
fn open(kind: DeviceType, wanted: Transport) -> Result<KernelTransport, SelfTestError> {
    for device in virtio::find(kind, wanted) {
        for interface in device.interfaces() {
            if interface.is_wanted(wanted) {
                log::info!("{device}: {kind:?} by {}", interface.name());
                return device.open(interface).map_err(SelfTestError::Transport);
            }
        }
    }
    Err(SelfTestError::NoDevice(kind))
}
