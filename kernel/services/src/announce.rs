//! What a host tells the network of itself unasked: gratuitous ARP (RFC 5227,
//! 3) and unsolicited neighbour advertisements (RFC 4861, 7.2.6), after it moved
//! (Linux `netdev_notify_peers`); and the multicast groups that it must hear.

use alloc::vec;

use smoltcp::iface::Interface;
use smoltcp::phy::{ChecksumCapabilities, Device};
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, Icmpv6Packet, Icmpv6Repr, IpAddress, IpCidr, Ipv4Address,
    Ipv6Address, NdiscNeighborFlags, NdiscRepr, RawHardwareAddress,
};

use crate::arp;
use crate::packet::ICMPV6;
use crate::stand_in::Rare;

pub(crate) const ALL_NODES: Ipv6Address = Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_SYSTEMS: Ipv4Address = Ipv4Address::new(224, 0, 0, 1);
/// RFC 4861, 4.1 to 4.4: the hop limit that shows that a packet is from this link.
pub(crate) const HOP_LIMIT: u8 = 255;

/// Sends one frame for each address of the interface. Returns whether all of
/// them found room.
pub(crate) fn announce(now: Instant, interface: &Interface, device: &mut Rare<'_>) -> bool {
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
                let address = address.address().octets();
                arp::ask(mac.0, address, address, token);
            }
            IpCidr::Ipv6(address) => {
                let icmp = advertisement(mac, address.address(), NdiscNeighborFlags::OVERRIDE);
                let ends = [address.address(), ALL_NODES];
                send_icmpv6(token, to_group(mac, ALL_NODES), ends, &icmp);
            }
        }
        true
    })
}

/// The hardware addresses of the groups that the interface's addresses make it
/// a member of: all systems (RFC 1112, 4), all nodes and, for each IPv6
/// address, its solicited-node group (RFC 4291, 2.8). Some may come twice.
pub(crate) fn multicast_groups(interface: &Interface) -> impl Iterator<Item = [u8; 6]> {
    let has_ipv4 = interface.ipv4_addr().is_some();
    let all_systems = has_ipv4.then(|| ethernet_of_ipv4(ALL_SYSTEMS));
    let solicited = ipv6_addresses(interface).map(solicited_node);
    let groups = [ALL_NODES].into_iter().chain(solicited);
    all_systems.into_iter().chain(groups.map(ethernet_of_ipv6))
}

pub(crate) fn ipv6_addresses(interface: &Interface) -> impl Iterator<Item = Ipv6Address> {
    let addresses = interface.ip_addrs().iter();
    addresses.filter_map(|address| match address {
        IpCidr::Ipv6(address) => Some(address.address()),
        IpCidr::Ipv4(_) => None,
    })
}

/// The hardware address of a multicast group or of everybody.
pub(crate) fn ethernet_of_group(group: IpAddress) -> Option<[u8; 6]> {
    match group {
        _ if group.is_broadcast() => Some(EthernetAddress::BROADCAST.0),
        IpAddress::Ipv4(group) if group.is_multicast() => Some(ethernet_of_ipv4(group)),
        IpAddress::Ipv6(group) if group.is_multicast() => Some(ethernet_of_ipv6(group)),
        _ => None,
    }
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

/// Asks for the hardware address of a neighbour, if there is room. A question from
/// an address that may be somebody else's (RFC 4429, 3.2) tells nobody ours.
pub(crate) fn ask(
    now: Instant,
    interface: &Interface,
    device: &mut Rare<'_>,
    neighbor: IpAddress,
    is_optimistic: impl Fn(Ipv6Address) -> bool,
) {
    let HardwareAddress::Ethernet(mac) = interface.hardware_addr() else {
        return;
    };
    let Some(token) = device.transmit(now) else {
        return;
    };
    match neighbor {
        IpAddress::Ipv4(neighbor) => {
            if let Some(source) = interface.get_source_address_ipv4(&neighbor) {
                arp::ask(mac.0, source.octets(), neighbor.octets(), token);
            }
        }
        IpAddress::Ipv6(neighbor) => {
            let source = interface.get_source_address_ipv6(&neighbor);
            let ours = RawHardwareAddress::from(HardwareAddress::Ethernet(mac));
            let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
                target_addr: neighbor,
                lladdr: (!is_optimistic(source)).then_some(ours),
            });
            let group = solicited_node(neighbor);
            send_icmpv6(token, to_group(mac, group), [source, group], &icmp);
        }
    }
}

/// Says where an address is.
pub(crate) fn advertisement(
    mac: EthernetAddress,
    address: Ipv6Address,
    flags: NdiscNeighborFlags,
) -> Icmpv6Repr<'static> {
    Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags,
        target_addr: address,
        lladdr: Some(RawHardwareAddress::from(HardwareAddress::Ethernet(mac))),
    })
}

/// Where a frame to a group goes, and where it comes from.
pub(crate) fn to_group(mac: EthernetAddress, group: Ipv6Address) -> [EthernetAddress; 2] {
    [EthernetAddress(ethernet_of_ipv6(group)), mac]
}

/// Sends a message of neighbour discovery: destination and source of the frame,
/// source and destination of the packet.
pub(crate) fn send_icmpv6(
    token: Rare<'_>,
    macs: [EthernetAddress; 2],
    ends: [Ipv6Address; 2],
    icmp: &Icmpv6Repr<'_>,
) {
    let checksums = ChecksumCapabilities::default();
    let mut bytes = vec![0; icmp.buffer_len()];
    let mut message = Icmpv6Packet::new_unchecked(&mut bytes);
    icmp.emit(&ends[0], &ends[1], &mut message, &checksums);
    send_ipv6(token, macs, ends, [ICMPV6, HOP_LIMIT], &bytes);
}

/// Sends an IPv6 packet, of which `kind` is the next header and the hop limit.
pub(crate) fn send_ipv6(
    token: Rare<'_>,
    [to, from]: [EthernetAddress; 2],
    [source, destination]: [Ipv6Address; 2],
    kind: [u8; 2],
    payload: &[u8],
) {
    let [high, low] = (payload.len() as u16).to_be_bytes();
    let head = [0x86, 0xdd, 0x60, 0, 0, 0, high, low];
    let (source, destination) = (source.octets(), destination.octets());
    let parts: [&[u8]; 7] = [&to.0, &from.0, &head, &kind, &source, &destination, payload];
    token.0.send(&parts.concat());
}
