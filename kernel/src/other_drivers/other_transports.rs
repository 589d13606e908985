//! The self-test that runs our network driver over `virtio-drivers`' own
//! transports: the gateway is asked for its hardware address, many times.

use alloc::boxed::Box;

use kickpath_abi::config::Config;
use smoltcp::wire::EthernetAddress;
use virtio_drivers::transport::{DeviceType, SomeTransport};
use virtio_net::interrupt::InterruptState;
use virtio_net::net::{Options, VirtioNet};
use virtio_net::transport::adapter::Adapter;
use virtio_net::vectors::{NoInterrupts, Rung};

use super::SelfTestError;
use crate::memory::KernelHal;
use crate::net::gateway::Gateway;
use crate::virtio;

/// Questions that are asked, one after the other; more than the rings have
/// descriptors.
const QUESTIONS: u32 = 1000;

/// Runs the self-test; prints one line with its result.
pub fn run(config: &Config) -> Result<(), SelfTestError> {
    let kind = DeviceType::Network;
    let devices = virtio::find(kind, config.transport);
    let device = devices.first().ok_or(SelfTestError::NoDevice(kind))?;
    let transport = device.open_other()?;
    let name = match transport {
        SomeTransport::Pci(_) => "PciTransport",
        SomeTransport::Mmio(_) => "MmioTransport",
        _ => "another transport",
    };
    let interrupts = Box::new(InterruptState::new());
    let (transport, options) = (Adapter::new(transport), Options::default());
    let mut net = VirtioNet::<KernelHal, _, _>::probe(transport, options, interrupts)?;
    net.open(&mut NoInterrupts, Rung::Polling)?;

    let gateway = Gateway::of(config, net.info().mac);
    let mut answer = None;
    for _ in 0..QUESTIONS {
        let from = gateway.ask(&mut net)?.ok_or(SelfTestError::NoAnswer)?;
        if *answer.get_or_insert(from) != from {
            return Err(SelfTestError::WrongData("two gateways answered"));
        }
    }
    let stats = net.stats();
    log::info!(
        "kickpath: selftest adapter: {QUESTIONS} answers by {name} from {}, {} kicks",
        answer.unwrap_or(EthernetAddress([0; 6])),
        stats.kicks
    );
    Ok(())
}
