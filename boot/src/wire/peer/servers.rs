//! What a network offers a new host: an address by DHCP (RFC 2131), and a
//! prefix by router advertisement (RFC 4861).

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Duration;
use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress,
    EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol,
    Ipv4Address, Ipv4Packet, Ipv4Repr, Ipv6Address, Ipv6Packet, Ipv6Repr, NdiscPrefixInfoFlags,
    NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags, UdpPacket, UdpRepr,
};

use crate::wire::Plan;
use crate::wire::plan::{ULA_PREFIX, ULA_PREFIX_LEN};

/// How long a DHCP lease lasts, in seconds: longer than any run.
const LEASE: u32 = 24 * 3600;

/// All nodes on the link (RFC 4291, 2.7.1) and their Ethernet address
/// (RFC 2464, 7).
const ALL_NODES: Ipv6Address = Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: EthernetAddress = EthernetAddress([0x33, 0x33, 0, 0, 0, 1]);

/// Neighbour discovery is only believed from the link itself (RFC 4861, 6.1).
const NDISC_HOP_LIMIT: u8 = 255;

/// What the host does besides answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerOptions {
    /// Answers DHCP with the plan's address for the guest.
    pub dhcp: bool,
    /// Answers router solicitations, so that the guest forms a unique local
    /// IPv6 address.
    pub router: bool,
}

impl PeerOptions {
    /// DHCP where the plan says so, and a router.
    pub fn of(plan: &Plan) -> Self {
        Self {
            dhcp: plan.dhcp,
            router: true,
        }
    }
}

pub(super) struct Servers {
    plan: Plan,
    options: PeerOptions,
    mac: EthernetAddress,
    link_local: Ipv6Address,
}

impl Servers {
    pub fn new(
        plan: Plan,
        options: PeerOptions,
        mac: EthernetAddress,
        link_local: Ipv6Address,
    ) -> Self {
        Self {
            plan,
            options,
            mac,
            link_local,
        }
    }

    /// The frame that answers this one, if it asks one of the servers.
    pub fn answer(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        match frame.ethertype() {
            EthernetProtocol::Ipv4 if self.options.dhcp => self.dhcp(frame.payload()),
            EthernetProtocol::Ipv6 if self.options.router => self.router(frame.payload()),
            _ => None,
        }
    }

    fn dhcp(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let caps = ChecksumCapabilities::default();
        let packet = Ipv4Packet::new_checked(packet).ok()?;
        let ip = Ipv4Repr::parse(&packet, &caps).ok()?;
        if ip.next_header != IpProtocol::Udp || packet.more_frags() || packet.frag_offset() != 0 {
            return None;
        }
        let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
        let (from, to) = (IpAddress::from(ip.src_addr), IpAddress::from(ip.dst_addr));
        let udp = UdpRepr::parse(&datagram, &from, &to, &caps).ok()?;
        if udp.dst_port != DHCP_SERVER_PORT {
            return None;
        }
        let message = DhcpPacket::new_checked(datagram.payload()).ok()?;
        let request = DhcpRepr::parse(&message).ok()?;
        let answer = self.dhcp_answer(&request)?;

        // RFC 2131, 4.1: to a client that has an address, there; to all others
        // (we do not tell those who could hear a unicast), to everybody.
        let to = if request.client_ip.is_unspecified() {
            (EthernetAddress::BROADCAST, Ipv4Address::BROADCAST)
        } else {
            (request.client_hardware_address, request.client_ip)
        };
        self.dhcp_frame(&answer, to)
    }

    /// RFC 2131, table 4 and 4.3.
    fn dhcp_answer(&self, request: &DhcpRepr<'_>) -> Option<DhcpRepr<'static>> {
        let host = self.plan.host;
        let ours = self.plan.guest.address;
        if !request.client_hardware_address.is_unicast() {
            return None;
        }
        let (message_type, your_ip) = match request.message_type {
            DhcpMessageType::Discover => (DhcpMessageType::Offer, ours),
            DhcpMessageType::Request => {
                if request
                    .server_identifier
                    .is_some_and(|server| server != host)
                {
                    return None;
                }
                let wanted = request.requested_ip.unwrap_or(request.client_ip);
                if wanted == ours {
                    (DhcpMessageType::Ack, ours)
                } else {
                    (DhcpMessageType::Nak, Ipv4Address::UNSPECIFIED)
                }
            }
            DhcpMessageType::Inform => (DhcpMessageType::Ack, Ipv4Address::UNSPECIFIED),
            _ => return None,
        };
        let nak = message_type == DhcpMessageType::Nak;
        let lease = (!nak && !your_ip.is_unspecified()).then_some(LEASE);
        Some(DhcpRepr {
            message_type,
            transaction_id: request.transaction_id,
            secs: 0,
            client_hardware_address: request.client_hardware_address,
            client_ip: if nak {
                Ipv4Address::UNSPECIFIED
            } else {
                request.client_ip
            },
            your_ip,
            server_ip: Ipv4Address::UNSPECIFIED,
            router: (!nak).then_some(host),
            subnet_mask: (!nak).then(|| self.plan.netmask()),
            relay_agent_ip: Ipv4Address::UNSPECIFIED,
            broadcast: request.broadcast,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(host),
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: lease,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        })
    }

    fn dhcp_frame(
        &self,
        answer: &DhcpRepr<'_>,
        (mac, address): (EthernetAddress, Ipv4Address),
    ) -> Option<Vec<u8>> {
        let caps = ChecksumCapabilities::default();
        let udp = UdpRepr {
            src_port: DHCP_SERVER_PORT,
            dst_port: DHCP_CLIENT_PORT,
        };
        let ip = Ipv4Repr {
            src_addr: self.plan.host,
            dst_addr: address,
            next_header: IpProtocol::Udp,
            payload_len: udp.header_len() + answer.buffer_len(),
            hop_limit: 64,
        };
        let ethernet = EthernetRepr {
            src_addr: self.mac,
            dst_addr: mac,
            ethertype: EthernetProtocol::Ipv4,
        };
        let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + ip.payload_len];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        ethernet.emit(&mut frame);
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &caps);
        let mut result = Ok(());
        udp.emit(
            &mut UdpPacket::new_unchecked(packet.payload_mut()),
            &ip.src_addr.into(),
            &ip.dst_addr.into(),
            answer.buffer_len(),
            |payload| result = answer.emit(&mut DhcpPacket::new_unchecked(payload)),
            &caps,
        );
        result.ok().map(|()| bytes)
    }

    fn router(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let packet = Ipv6Packet::new_checked(packet).ok()?;
        let ip = Ipv6Repr::parse(&packet).ok()?;
        if ip.next_header != IpProtocol::Icmpv6 || ip.hop_limit != NDISC_HOP_LIMIT {
            return None;
        }
        let caps = ChecksumCapabilities::default();
        let message = Icmpv6Packet::new_checked(packet.payload()).ok()?;
        match Icmpv6Repr::parse(&ip.src_addr, &ip.dst_addr, &message, &caps).ok()? {
            Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { .. }) => Some(self.advertisement()),
            _ => None,
        }
    }

    fn advertisement(&self) -> Vec<u8> {
        let day = Duration::from_secs(24 * 3600);
        let message = Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
            hop_limit: 64,
            flags: NdiscRouterFlags::empty(),
            router_lifetime: Duration::from_secs(1800),
            // Zero: "unspecified by this router".
            reachable_time: Duration::ZERO,
            retrans_time: Duration::ZERO,
            lladdr: Some(self.mac.into()),
            mtu: None,
            prefix_info: Some(NdiscPrefixInformation {
                prefix_len: ULA_PREFIX_LEN,
                flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
                valid_lifetime: day,
                preferred_lifetime: day,
                prefix: ULA_PREFIX,
            }),
        });
        let ip = Ipv6Repr {
            src_addr: self.link_local,
            dst_addr: ALL_NODES,
            next_header: IpProtocol::Icmpv6,
            payload_len: message.buffer_len(),
            hop_limit: NDISC_HOP_LIMIT,
        };
        let ethernet = EthernetRepr {
            src_addr: self.mac,
            dst_addr: ALL_NODES_MAC,
            ethertype: EthernetProtocol::Ipv6,
        };
        let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + ip.payload_len];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        ethernet.emit(&mut frame);
        let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet);
        message.emit(
            &ip.src_addr,
            &ip.dst_addr,
            &mut Icmpv6Packet::new_unchecked(packet.payload_mut()),
            &ChecksumCapabilities::default(),
        );
        bytes
    }
}
