//! What a host tells the network of itself unasked: gratuitous ARP (RFC 5227,
//! 3) and unsolicited neighbour advertisements (RFC 4861, 7.2.6), after it moved
//! (Linux `netdev_notify_peers`); and the multicast groups that it must hear.

use smoltcp::iface::Interface;
use smoltcp::phy::{ChecksumCapabilities, Device, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, HardwareAddress, Icmpv6Packet, Icmpv6Repr, IpCidr, IpProtocol, Ipv4Address,
    Ipv6Address, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr, RawHardwareAddress,
};

const ALL_NODES: Ipv6Address = Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_SYSTEMS: Ipv4Address = Ipv4Address::new(224, 0, 0, 1);
/// RFC 4861, 4.4: the hop limit that shows that a packet is from this link.
const HOP_LIMIT: u8 = 255;
/// Length in bytes of a frame of ARP.
pub(crate) const ARP_LENGTH: usize = 14 + 28;
/// Bytes in a frame before a message of ICMPv6.
pub(crate) const HEADERS_V6: usize = 14 + 40;

/// Sends one frame for each address of the interface. Returns whether all of
/// them found room.
pub(crate) fn announce<D: Device + ?Sized>(
    now: Instant,
    interface: &Interface,
    device: &mut D,
) -> bool {
    let HardwareAddress::Ethernet(mac) = interface.hardware_addr() else {
        // Nobody asks for the hardware address of what has none.
        return true;
    };
    interface.ip_addrs().iter().all(|address| {
        let Some(token) = device.transmit(now) else {
            return false;
        };
        match address {
            IpCidr::Ipv4(address) => {
                // A request for our own address, as Linux sends it: everybody's
                // cache learns from it.
                token.consume(ARP_LENGTH, |frame| {
                    write_arp(frame, mac, address.address(), address.address());
                });
            }
            IpCidr::Ipv6(address) => {
                let icmp = advertisement(mac, address.address());
                token.consume(HEADERS_V6 + icmp.buffer_len(), |frame| {
                    write_icmpv6(frame, mac, address.address(), ALL_NODES, &icmp);
                });
            }
        }
        true
    })
}

/// The hardware addresses of the groups that the interface's addresses make it
/// a member of: all systems (RFC 1112, 4), all nodes and, for each IPv6
/// address, its solicited-node group (RFC 4291, 2.8). Some may come twice.
pub(crate) fn multicast_groups(interface: &Interface) -> impl Iterator<Item = [u8; 6]> {
    let addresses = interface.ip_addrs();
    let has_ipv4 = addresses.iter().any(|a| matches!(a, IpCidr::Ipv4(_)));
    let solicited = addresses.iter().filter_map(|address| match address {
        IpCidr::Ipv6(address) => {
            let group = solicited_node(address.address());
            Some(ethernet_of_ipv6(group))
        }
        IpCidr::Ipv4(_) => None,
    });
    has_ipv4
        .then(|| ethernet_of_ipv4(ALL_SYSTEMS))
        .into_iter()
        .chain(core::iter::once(ethernet_of_ipv6(ALL_NODES)))
        .chain(solicited)
}

/// RFC 1112, 6.4.
fn ethernet_of_ipv4(group: Ipv4Address) -> [u8; 6] {
    let [_, b, c, d] = group.octets();
    [0x01, 0x00, 0x5e, b & 0x7f, c, d]
}

/// RFC 2464, 7.
fn ethernet_of_ipv6(group: Ipv6Address) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// The solicited-node group of an address (RFC 4291, 2.7.1).
pub(crate) fn solicited_node(address: Ipv6Address) -> Ipv6Address {
    let [.., a, b, c] = address.octets();
    let (high, low) = (0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    Ipv6Address::new(0xff02, 0, 0, 0, 0, 1, high, low)
}

/// Writes a request for the hardware address of `target` into a frame of
/// [`ARP_LENGTH`]; `source` and `mac` are ours.
pub(crate) fn write_arp(
    frame: &mut [u8],
    mac: EthernetAddress,
    source: Ipv4Address,
    target: Ipv4Address,
) {
    let mut frame = EthernetFrame::new_unchecked(frame);
    EthernetRepr {
        src_addr: mac,
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Arp,
    }
    .emit(&mut frame);
    ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: mac,
        source_protocol_addr: source,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    }
    .emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
}

fn advertisement(mac: EthernetAddress, address: Ipv6Address) -> Icmpv6Repr<'static> {
    Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::OVERRIDE,
        target_addr: address,
        lladdr: Some(RawHardwareAddress::from(HardwareAddress::Ethernet(mac))),
    })
}

/// Writes a message of neighbour discovery to a multicast group into a frame
/// that has [`HEADERS_V6`] more bytes; `source` and `mac` are ours.
pub(crate) fn write_icmpv6(
    frame: &mut [u8],
    mac: EthernetAddress,
    source: Ipv6Address,
    group: Ipv6Address,
    icmp: &Icmpv6Repr<'_>,
) {
    let mut frame = EthernetFrame::new_unchecked(frame);
    EthernetRepr {
        src_addr: mac,
        dst_addr: EthernetAddress(ethernet_of_ipv6(group)),
        ethertype: EthernetProtocol::Ipv6,
    }
    .emit(&mut frame);
    let ip = Ipv6Repr {
        src_addr: source,
        dst_addr: group,
        next_header: IpProtocol::Icmpv6,
        payload_len: icmp.buffer_len(),
        hop_limit: HOP_LIMIT,
    };
    let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet);
    icmp.emit(
        &ip.src_addr,
        &ip.dst_addr,
        &mut Icmpv6Packet::new_unchecked(packet.payload_mut()),
        &ChecksumCapabilities::default(),
    );
}
