//! Neighbour discovery for IPv6 (RFC 4861, 7): what others ask and say, and what we
//! answer.
//!
//! smoltcp 0.14 answers a question from the unspecified address, by which another
//! host finds out whether its own is in use (RFC 4862, 5.4), with a packet to `::`.

use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, Ipv6Address, NdiscNeighborFlags, NdiscRepr,
};

use crate::announce::{self, ALL_NODES, HOP_LIMIT};
use crate::packet::Packet;
use crate::stand_in::Rare;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    pub(crate) source: Ipv6Address,
    pub(crate) target: Ipv6Address,
    pub(crate) kind: Kind,
    /// Of whom it speaks, in its option; else the frame's sender.
    pub(crate) mac: [u8; 6],
    pub(crate) from: [u8; 6],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Solicitation,
    /// Whether it is to replace what is known otherwise.
    Advertisement {
        overrides: bool,
    },
}

impl Message {
    /// Reads what is valid by RFC 4861, 7.1.1 and 7.1.2, of which `packet` has looked
    /// at the checksum.
    pub(crate) fn parse(packet: &Packet<'_>, message: &[u8]) -> Option<Self> {
        let from = *packet.frame.get(6..)?.first_chunk::<6>()?;
        let (source, destination) = (packet.source.ipv6(), packet.destination.ipv6());
        let icmp = Icmpv6Packet::new_checked(message).ok()?;
        if packet.hop_limit != HOP_LIMIT || icmp.msg_code() != 0 {
            return None;
        }
        let (target, option, kind) = match NdiscRepr::parse(&icmp).ok()? {
            NdiscRepr::NeighborSolicit {
                target_addr,
                lladdr,
            } => (target_addr, lladdr, Kind::Solicitation),
            NdiscRepr::NeighborAdvert {
                flags,
                target_addr,
                lladdr,
            } => {
                let is_asked_for = flags.contains(NdiscNeighborFlags::SOLICITED);
                if is_asked_for && destination.is_multicast() {
                    return None;
                }
                let overrides = flags.contains(NdiscNeighborFlags::OVERRIDE);
                (target_addr, lladdr, Kind::Advertisement { overrides })
            }
            _ => return None,
        };
        // Who has no address yet says nothing of himself, and asks all whom the
        // target's address makes listen.
        let is_nobody = source.is_unspecified();
        let is_valid = match kind {
            _ if target.is_multicast() || source.is_multicast() => false,
            Kind::Solicitation if is_nobody => {
                option.is_none() && destination == announce::solicited_node(target)
            }
            _ => !is_nobody,
        };
        let mac = option.and_then(|option| option.as_bytes().first_chunk::<6>().copied());
        is_valid.then_some(Self {
            source,
            target,
            kind,
            // 7.2.5: who is asked directly may leave the option out.
            mac: mac.unwrap_or(from),
            from,
        })
    }

    /// Answers a solicitation of an address of ours (RFC 4861, 7.2.4). While
    /// `is_optimistic` it does not override what is known (RFC 4429, 3.3).
    pub(crate) fn answer(&self, mac: [u8; 6], is_optimistic: bool, token: Rare<'_>) {
        let mut flags = match is_optimistic {
            true => NdiscNeighborFlags::empty(),
            false => NdiscNeighborFlags::OVERRIDE,
        };
        let (to, destination) = if self.source.is_unspecified() {
            let group = announce::ethernet_of_group(ALL_NODES.into());
            (group.unwrap_or(self.from), ALL_NODES)
        } else {
            flags |= NdiscNeighborFlags::SOLICITED;
            (self.mac, self.source)
        };
        let ours = EthernetAddress(mac);
        let icmp = announce::advertisement(ours, self.target, flags);
        let ends = [self.target, destination];
        announce::send_icmpv6(token, [EthernetAddress(to), ours], ends, &icmp);
    }
}

/// Asks whether anybody has an address that is to be ours (RFC 4862, 5.4.2).
pub(crate) fn ask_for_duplicates(mac: EthernetAddress, address: Ipv6Address, token: Rare<'_>) {
    let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
        target_addr: address,
        lladdr: None,
    });
    let group = announce::solicited_node(address);
    let ends = [Ipv6Address::UNSPECIFIED, group];
    announce::send_icmpv6(token, announce::to_group(mac, group), ends, &icmp);
}
