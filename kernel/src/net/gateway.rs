//! The gateway as measurements and self-tests know it, and the frames that they
//! exchange with it without a network stack.

use core::net::Ipv4Addr;

use kickpath_abi::config::{Config, Ipv4Config};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr,
};
use virtio_net::interrupt::StateRef;
use virtio_net::net::{NetError, VirtioNet};
use virtio_net::transport::ConfigOps;

use crate::arch::time;
use crate::memory::KernelHal;

/// Length of each frame in bytes: the smallest that Ethernet has.
pub const FRAME_LENGTH: usize = 60;
/// How long one answer may take, in microseconds.
const PATIENCE_US: u64 = 5_000_000;
/// The gateway of QEMU's own network.
const DEFAULT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// EtherType for local experiments (IEEE 802).
const EXPERIMENTAL: EthernetProtocol = EthernetProtocol::Unknown(0x88b5);

/// A frame that is as short as may be.
pub type Frame = [u8; FRAME_LENGTH];

/// The gateway, and who speaks with it.
pub struct Gateway {
    mac: EthernetAddress,
    own: Ipv4Addr,
    address: Ipv4Addr,
}

impl Gateway {
    /// The configured one, for the device with this address.
    pub fn of(config: &Config, mac: [u8; 6]) -> Self {
        let own = match config.ipv4 {
            Ipv4Config::Static(own) => own,
            Ipv4Config::Dhcp => Ipv4Config::FALLBACK,
        };
        Self {
            mac: EthernetAddress(mac),
            own: own.address,
            address: config.gateway.unwrap_or(DEFAULT),
        }
    }

    /// Asks for the gateway's hardware address (ARP).
    pub fn question(&self) -> Frame {
        let arp = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: self.mac,
            source_protocol_addr: self.own,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: self.address,
        };
        let (mac, to) = (self.mac, EthernetAddress::BROADCAST);
        framed(mac, to, EthernetProtocol::Arp, |payload| {
            arp.emit(&mut ArpPacket::new_unchecked(payload));
        })
    }

    /// The hardware address, if this frame is the gateway's answer.
    pub fn answer(&self, frame: &[u8]) -> Option<EthernetAddress> {
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
            } if source_protocol_addr == self.address => Some(source_hardware_addr),
            _ => None,
        }
    }

    /// Asks, and waits for the answer, so that the gateway knows us too; `None` if there
    /// is none in time.
    pub fn ask<T: ConfigOps, S: StateRef>(
        &self,
        net: &mut VirtioNet<KernelHal, T, S>,
    ) -> Result<Option<EthernetAddress>, NetError> {
        let question = self.question();
        let (_, tx) = net.queues()?;
        tx.reclaim();
        if let Some(mut slot) = tx.reserve() {
            slot.frame_mut(question.len()).copy_from_slice(&question);
            slot.start_xmit(question.len());
        }
        let limit = time::now() + PATIENCE_US;
        while time::now() <= limit {
            net.kick();
            net.poll()?;
            let (rx, _) = net.queues()?;
            let answer = rx.receive().and_then(|frame| self.answer(&frame));
            if answer.is_some() {
                return Ok(answer);
            }
        }
        Ok(None)
    }

    /// An echo request (ICMP) to the gateway at this hardware address.
    pub fn ping(&self, to: EthernetAddress) -> Frame {
        let checksums = ChecksumCapabilities::default();
        let icmp = Icmpv4Repr::EchoRequest {
            ident: 1,
            seq_no: 1,
            data: &[0x42; FRAME_LENGTH - 14 - 20 - 8],
        };
        let ip = Ipv4Repr {
            src_addr: self.own,
            dst_addr: self.address,
            next_header: IpProtocol::Icmp,
            payload_len: icmp.buffer_len(),
            hop_limit: 64,
        };
        framed(self.mac, to, EthernetProtocol::Ipv4, |payload| {
            let mut packet = Ipv4Packet::new_unchecked(payload);
            ip.emit(&mut packet, &checksums);
            let mut message = Icmpv4Packet::new_unchecked(packet.payload_mut());
            icmp.emit(&mut message, &checksums);
        })
    }
}

/// A frame of the device with this address that nobody answers.
pub fn unanswered(mac: [u8; 6]) -> Frame {
    let broadcast = EthernetAddress::BROADCAST;
    framed(EthernetAddress(mac), broadcast, EXPERIMENTAL, |_| ())
}

fn framed(
    mac: EthernetAddress,
    to: EthernetAddress,
    ethertype: EthernetProtocol,
    write: impl FnOnce(&mut [u8]),
) -> Frame {
    let mut bytes = [0; FRAME_LENGTH];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    let link = EthernetRepr {
        src_addr: mac,
        dst_addr: to,
        ethertype,
    };
    link.emit(&mut frame);
    write(frame.payload_mut());
    bytes
}
