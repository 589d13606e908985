//! The honest frames of one sender.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::err::packet::BuildWriteError;
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, IpHeaders};
use etherparse::{PacketBuilder, PacketBuilderStep, VlanId};

use super::{ECHO, IP, IPV6_PAYLOAD};

/// Where frames claim to come from, and where they go.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The sender's hardware address.
    pub from: [u8; 6],
    /// The sender.
    pub from_ipv4: Ipv4Addr,
    /// The sender.
    pub from_ipv6: Ipv6Addr,
    /// The guest's hardware address.
    pub to: [u8; 6],
    /// The guest.
    pub to_ipv4: Ipv4Addr,
    /// The guest.
    pub to_ipv6: Ipv6Addr,
}

/// What a builder writes.
fn frame_of(write: impl FnOnce(&mut Vec<u8>) -> Result<(), BuildWriteError>) -> Vec<u8> {
    let mut frame = Vec::new();
    write(&mut frame).expect("fits into a frame");
    frame
}

impl Route {
    fn over_ipv4(&self) -> PacketBuilderStep<IpHeaders> {
        let (from, to) = (self.from_ipv4.octets(), self.to_ipv4.octets());
        PacketBuilder::ethernet2(self.from, self.to).ipv4(from, to, 64)
    }

    fn over_ipv6(&self, hop_limit: u8) -> PacketBuilderStep<IpHeaders> {
        let (from, to) = (self.from_ipv6.octets(), self.to_ipv6.octets());
        PacketBuilder::ethernet2(self.from, self.to).ipv6(from, to, hop_limit)
    }

    /// A UDP echo request over IPv4.
    pub fn udp4(&self, number: u16, payload: &[u8]) -> Vec<u8> {
        let builder = self.over_ipv4().udp(number, ECHO);
        frame_of(|frame| builder.write(frame, payload))
    }

    /// A UDP echo request over IPv6.
    pub fn udp6(&self, number: u16, payload: &[u8]) -> Vec<u8> {
        let builder = self.over_ipv6(64).udp(number, ECHO);
        frame_of(|frame| builder.write(frame, payload))
    }

    /// The first segment of a TCP connection to the echo service.
    pub fn syn(&self, number: u16) -> Vec<u8> {
        let builder = self.over_ipv4().tcp(number, ECHO, 0x1234_5678, 4096).syn();
        frame_of(|frame| builder.write(frame, &[]))
    }

    /// A ping.
    pub fn ping4(&self, number: u16, payload: &[u8]) -> Vec<u8> {
        let builder = self.over_ipv4().icmpv4_echo_request(number, 1);
        frame_of(|frame| builder.write(frame, payload))
    }

    /// A ping over IPv6.
    pub fn ping6(&self, number: u16, payload: &[u8]) -> Vec<u8> {
        let builder = self.over_ipv6(64).icmpv6_echo_request(number, 1);
        frame_of(|frame| builder.write(frame, payload))
    }

    /// An ARP message from the sender to the guest.
    pub fn arp(&self, operation: ArpOperation) -> Vec<u8> {
        let arp = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            operation,
            &self.from,
            &self.from_ipv4.octets(),
            &[0; 6],
            &self.to_ipv4.octets(),
        )
        .expect("addresses of the right lengths");
        let builder = PacketBuilder::ethernet2(self.from, [0xff; 6]).arp(arp);
        frame_of(|frame| builder.write(frame))
    }

    /// An ICMPv6 message with any type and body.
    pub fn icmpv6(&self, hop_limit: u8, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
        let (head, payload) = body.split_first_chunk::<4>().expect("at least four bytes");
        let builder = self.over_ipv6(hop_limit).icmpv6_raw(kind, code, *head);
        frame_of(|frame| builder.write(frame, payload))
    }

    /// An IPv6 packet with any payload.
    pub fn ipv6(&self, next_header: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.udp6(1, &vec![0; payload.len().saturating_sub(8)]);
        frame.truncate(IPV6_PAYLOAD);
        frame.extend_from_slice(payload);
        frame[IP + 6] = next_header;
        frame[IP + 4..IP + 6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        frame
    }

    /// A UDP echo request inside of a VLAN tag.
    pub fn vlan(&self, number: u16) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.from, self.to)
            .single_vlan(VlanId::try_new(5).expect("12 bits"))
            .ipv4(self.from_ipv4.octets(), self.to_ipv4.octets(), 64)
            .udp(number, ECHO);
        frame_of(|frame| builder.write(frame, b"tagged"))
    }

    /// A neighbour solicitation for the guest (RFC 4861, 4.3).
    pub fn neighbor_solicitation(&self) -> Vec<u8> {
        let mut body = vec![0; 4];
        body.extend(self.to_ipv6.octets());
        body.extend([1, 1]);
        body.extend(self.from);
        self.icmpv6(255, 135, 0, &body)
    }

    /// A router advertisement of a prefix (RFC 4861, 4.2).
    pub fn router_advertisement(&self, prefix_length: u8, prefix: [u8; 2]) -> Vec<u8> {
        // Hop limit, flags, lifetime 0, reachable and retransmission time.
        let mut body = vec![64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        // Prefix information, RFC 4861 4.6.2: on link, for addresses.
        body.extend([
            3,
            4,
            prefix_length,
            0xc0,
            0,
            0,
            0,
            30,
            0,
            0,
            0,
            30,
            0,
            0,
            0,
            0,
        ]);
        body.extend(prefix);
        body.extend([0; 14]);
        self.icmpv6(255, 134, 0, &body)
    }
}
