//! Checksums of frames for which the device does not vouch. smoltcp is told that
//! devices verify them, as it is told of all frames at once.

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6ExtHeader, Ipv6Packet,
    TcpPacket, UdpPacket,
};

/// Whether the checksum of a UDP datagram or TCP segment is right; for a frame with
/// neither, and for a fragment, which has no checksum of its own, true.
#[cold]
pub(super) fn is_right(frame: &[u8]) -> bool {
    let Ok(frame) = EthernetFrame::new_checked(frame) else {
        return true;
    };
    match frame.ethertype() {
        EthernetProtocol::Ipv4 => Ipv4Packet::new_checked(frame.payload()).is_ok_and(|packet| {
            let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
            let is_fragment = packet.more_frags() || packet.frag_offset() != 0;
            is_fragment || is_right_between(from, to, packet.next_header(), packet.payload())
        }),
        EthernetProtocol::Ipv6 => Ipv6Packet::new_checked(frame.payload()).is_ok_and(|packet| {
            let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
            match packet.next_header() {
                // The only extension header behind which smoltcp looks.
                IpProtocol::HopByHop => {
                    Ipv6ExtHeader::new_checked(packet.payload()).is_ok_and(|options| {
                        // Its length is in units of 8 bytes, without the first.
                        let length = 8 * (usize::from(options.header_len()) + 1);
                        let rest = packet.payload().get(length..).unwrap_or_default();
                        is_right_between(from, to, options.next_header(), rest)
                    })
                }
                protocol => is_right_between(from, to, protocol, packet.payload()),
            }
        }),
        _ => true,
    }
}

fn is_right_between(from: IpAddress, to: IpAddress, protocol: IpProtocol, bytes: &[u8]) -> bool {
    match protocol {
        IpProtocol::Udp => {
            UdpPacket::new_checked(bytes).is_ok_and(|packet| packet.verify_checksum(&from, &to))
        }
        IpProtocol::Tcp => {
            TcpPacket::new_checked(bytes).is_ok_and(|packet| packet.verify_checksum(&from, &to))
        }
        _ => true,
    }
}
