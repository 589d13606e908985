//! The self-test that runs our network driver over `virtio-drivers`' own
//! transports: the gateway is asked for its hardware address, many times.

use alloc::boxed::Box;
use alloc::string::ToString;
use core::net::Ipv4Addr;

use kickpath_abi::config::{Config, Ipv4Config};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr,
};
use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::{BarInfo, Command};
use virtio_drivers::transport::{DeviceType, SomeTransport};
use virtio_net::interrupt::InterruptState;
use virtio_net::net::{Options, VirtioNet};
use virtio_net::transport::adapter::Adapter;
use virtio_net::vectors::{NoInterrupts, Rung};

use super::SelfTestError;
use crate::arch::time;
use crate::memory::{KernelHal, map_mmio};
use crate::pci;
use crate::virtio::{self, Device};
use crate::virtio_mmio::OpenError;

/// Questions that are asked, one after the other; more than the rings have
/// descriptors.
const QUESTIONS: u32 = 1000;
/// How long one answer may take, in microseconds.
const PATIENCE_US: u64 = 5_000_000;

type OtherTransport = SomeTransport<'static>;

/// Runs the self-test; prints one line with its result.
///
/// # Errors
///
/// [`SelfTestError`].
pub fn run(config: &Config) -> Result<(), SelfTestError> {
    let kind = DeviceType::Network;
    let devices = virtio::find(kind, config.transport);
    let device = devices.first().ok_or(SelfTestError::NoDevice(kind))?;
    let transport = open(device)?;
    let name = match transport {
        SomeTransport::Pci(_) => "PciTransport",
        SomeTransport::Mmio(_) => "MmioTransport",
        _ => "another transport",
    };
    let interrupts = Box::new(InterruptState::new());
    let (transport, options) = (Adapter::new(transport), Options::default());
    let mut net = VirtioNet::<KernelHal, _, _>::probe(transport, options, interrupts)?;
    net.open(&mut NoInterrupts, Rung::Polling)?;

    let own = match config.ipv4 {
        Ipv4Config::Static(cidr) => cidr.address,
        Ipv4Config::Dhcp => Ipv4Config::FALLBACK.address,
    };
    let gateway = config.gateway.unwrap_or(Ipv4Addr::new(10, 0, 2, 2));
    let mac = EthernetAddress(net.info().mac);
    let mut answer = None;
    for _ in 0..QUESTIONS {
        let question = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: mac,
            source_protocol_addr: own,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: gateway,
        };
        let (_, tx) = net.queues()?;
        let mut slot = tx.reserve().ok_or(SelfTestError::NoAnswer)?;
        let header = EthernetRepr {
            src_addr: mac,
            dst_addr: EthernetAddress::BROADCAST,
            ethertype: EthernetProtocol::Arp,
        };
        let length = header.buffer_len() + question.buffer_len();
        let mut frame = EthernetFrame::new_unchecked(slot.frame_mut(length));
        header.emit(&mut frame);
        question.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        slot.start_xmit(length);
        net.kick();

        let limit = time::now() + PATIENCE_US;
        loop {
            net.poll()?;
            let (rx, _) = net.queues()?;
            let from = rx.receive().and_then(|frame| answered_by(&frame, gateway));
            if let Some(from) = from {
                if *answer.get_or_insert(from) != from {
                    return Err(SelfTestError::WrongData("two gateways answered"));
                }
                break;
            }
            net.kick();
            if time::now() > limit {
                return Err(SelfTestError::NoAnswer);
            }
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

/// The hardware address that an answer of `gateway` tells.
fn answered_by(frame: &[u8], gateway: Ipv4Addr) -> Option<EthernetAddress> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Arp {
        return None;
    }
    match ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).ok()?).ok()? {
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr,
            source_protocol_addr,
            ..
        } if source_protocol_addr == gateway => Some(source_hardware_addr),
        _ => None,
    }
}

/// A transport of `virtio-drivers` for the device.
fn open(device: &Device) -> Result<OtherTransport, SelfTestError> {
    let other = |error: &dyn ToString| SelfTestError::OtherTransport(error.to_string());
    match device {
        Device::Pci(found) => {
            let location = found.function.location;
            // This transport does not ask whether that can be done.
            for bar in found.bars.iter().flatten() {
                if let BarInfo::Memory { address, size, .. } = *bar {
                    map_mmio(address, size).map_err(OpenError::Unmappable)?;
                }
            }
            let mut root = pci::root();
            let (_, command) = root.get_status_command(location);
            root.set_command(
                location,
                command | Command::MEMORY_SPACE | Command::BUS_MASTER,
            );
            let transport = PciTransport::new::<KernelHal, _>(&mut root, location);
            Ok(transport.map_err(|error| other(&error))?.into())
        }
        Device::Mmio(place, _) => {
            let registers =
                map_mmio(place.address, place.size as u64).map_err(OpenError::Unmappable)?;
            // SAFETY: these are virtio-mmio registers, as `virtio::find` has
            // seen, mapped for good; the device that it opened to see that is
            // closed.
            let transport = unsafe { MmioTransport::new(registers.cast(), place.size) };
            Ok(transport.map_err(|error| other(&error))?.into())
        }
    }
}
