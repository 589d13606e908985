//! What the guest sends: the requests that it answers, and its questions.

use std::net::Ipv4Addr;

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv4Type, Icmpv6Type, LaxSlicedPacket,
    PacketBuilder, TransportSlice,
};

use super::ECHO;

/// The number of the request that this frame of the guest answers.
pub fn answered(frame: &[u8]) -> Option<u16> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    match packet.transport? {
        TransportSlice::Udp(udp) if udp.source_port() == ECHO => Some(udp.destination_port()),
        TransportSlice::Tcp(tcp) if tcp.source_port() == ECHO => Some(tcp.destination_port()),
        TransportSlice::Icmpv4(icmp) => match icmp.icmp_type() {
            Icmpv4Type::EchoReply(header) => Some(header.id),
            _ => None,
        },
        TransportSlice::Icmpv6(icmp) => match icmp.icmp_type() {
            Icmpv6Type::EchoReply(header) => Some(header.id),
            _ => None,
        },
        _ => None,
    }
}

/// The ARP reply to a frame that asks for `address`, if it does.
pub fn arp_reply(frame: &[u8], address: Ipv4Addr, mac: [u8; 6]) -> Option<Vec<u8>> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let etherparse::LaxNetSlice::Arp(arp) = packet.net? else {
        return None;
    };
    if arp.operation() != ArpOperation::REQUEST || arp.target_protocol_addr() != address.octets() {
        return None;
    }
    let to: [u8; 6] = arp.sender_hw_addr().try_into().ok()?;
    let reply = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REPLY,
        &mac,
        &address.octets(),
        arp.sender_hw_addr(),
        arp.sender_protocol_addr(),
    )
    .ok()?;
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(mac, to)
        .arp(reply)
        .write(&mut bytes)
        .ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{IPV4_PAYLOAD, IPV6_PAYLOAD, somebody};

    /// The frame with which an echo service would answer.
    fn turned(mut frame: Vec<u8>, payload: usize) -> Vec<u8> {
        let (source, destination) = (payload, payload + 2);
        for byte in 0..2 {
            frame.swap(source + byte, destination + byte);
        }
        frame
    }

    #[test]
    fn an_answer_is_recognized_by_its_number() {
        let route = somebody();
        assert_eq!(
            answered(&turned(route.udp4(77, b"x"), IPV4_PAYLOAD)),
            Some(77)
        );
        assert_eq!(
            answered(&turned(route.udp6(78, b"x"), IPV6_PAYLOAD)),
            Some(78)
        );
        assert_eq!(answered(&turned(route.syn(79), IPV4_PAYLOAD)), Some(79));
        let mut reply = route.ping4(80, b"x");
        reply[IPV4_PAYLOAD] = 0;
        assert_eq!(answered(&reply), Some(80));
        let mut reply = route.ping6(81, b"x");
        reply[IPV6_PAYLOAD] = 129;
        assert_eq!(answered(&reply), Some(81));
        // A request is no answer.
        assert_eq!(answered(&route.ping4(80, b"x")), None);
        assert_eq!(answered(&[0; 60]), None);
    }
}
