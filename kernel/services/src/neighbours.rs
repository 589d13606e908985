//! Whom the interface can answer without asking where they are.
//!
//! smoltcp learns hardware addresses from ARP and neighbour discovery only,
//! keeps a few of them, and asks for one a second at most, whoever it is. A
//! stranger who floods the guest with made-up senders would so cut off every
//! host that it knows: first they are pushed out of the table, then nobody can
//! be asked for them. An answer therefore goes where the request came from: a
//! host on the link that is not, or may not be, in the table is put into it,
//! before smoltcp sees its packet ([`Neighbours::missing`]). What ARP and
//! discovery have said counts more: no packet moves a host that is known.
//!
//! Like ARP, this believes what it hears: a forged sender gets the answers.

use alloc::boxed::Box;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::iface::Interface;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
};

use crate::checksum::{ETHERNET, IPV6_HEADER};

/// Neighbours that smoltcp keeps (its feature `iface-neighbor-cache-count-32`).
/// When it learns of more, those go first that were not heard for longest.
const CACHE: u32 = 32;
/// smoltcp keeps a neighbour for 60 s after it was heard last.
const LIFETIME_US: i64 = 50_000_000;

/// Offset of the sender's hardware address in an Ethernet header.
const SOURCE: usize = 6;

/// A host that was put into smoltcp's table.
#[derive(Clone, Copy)]
struct Neighbour {
    address: IpAddr,
    mac: [u8; 6],
    /// Value of [`Neighbours::learnt`] then.
    learnt: u32,
    /// Valid until then, in microseconds.
    until: i64,
}

impl Neighbour {
    const NONE: Self = Self {
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        mac: [0; 6],
        learnt: 0,
        until: 0,
    };
}

/// See the module.
pub(crate) struct Neighbours {
    mac: [u8; 6],
    /// Each host has one place, which it shares with none of its IPv4 network
    /// if that has 256 addresses or less.
    places: Box<[Neighbour; Self::PLACES]>,
    /// How many times smoltcp may have learnt of a host.
    learnt: u32,
}

/// A frame that makes smoltcp learn of a neighbour.
pub(crate) struct Lesson {
    bytes: [u8; Lesson::MAX],
    length: usize,
}

impl Lesson {
    /// A neighbour advertisement with the option of a hardware address.
    const MAX: usize = ETHERNET + IPV6_HEADER + 32;

    pub(crate) fn frame(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Neighbours {
    const PLACES: usize = 256;

    /// `mac` is ours.
    pub(crate) fn new(mac: EthernetAddress) -> Self {
        Self {
            mac: mac.0,
            places: Box::new([Neighbour::NONE; Self::PLACES]),
            learnt: 0,
        }
    }

    /// What smoltcp must be told before it sees this frame, so that it can
    /// answer.
    #[inline]
    pub(crate) fn missing(
        &mut self,
        interface: &Interface,
        frame: &[u8],
        now: Instant,
    ) -> Option<Lesson> {
        let (header, packet) = frame.split_first_chunk::<ETHERNET>()?;
        let source = match [header[12], header[13]] {
            [0x08, 0x00] => IpAddr::V4(Ipv4Addr::from(*packet.get(12..)?.first_chunk::<4>()?)),
            [0x86, 0xdd] if !is_discovery(packet) => {
                IpAddr::V6(Ipv6Addr::from(*packet.get(8..)?.first_chunk::<16>()?))
            }
            [0x08, 0x06] | [0x86, 0xdd] => {
                self.note(header, packet, now);
                return None;
            }
            _ => return None,
        };
        let place = &self.places[place(source)];
        if place.address == source
            && place.until > now.total_micros()
            && self.learnt.wrapping_sub(place.learnt) < CACHE
        {
            return None;
        }
        self.teach(interface, header, source, now)
    }

    /// Notes what smoltcp learns of a host by itself, or would if it were for
    /// us.
    #[cold]
    fn note(&mut self, header: &[u8; ETHERNET], packet: &[u8], now: Instant) -> Option<()> {
        let (address, mac) = if header[12..] == [0x08, 0x06] {
            let sender = packet.get(14..)?.first_chunk::<4>()?;
            (IpAddr::V4((*sender).into()), packet.get(8..)?)
        } else {
            let sender = packet.get(8..)?.first_chunk::<16>()?;
            (IpAddr::V6((*sender).into()), header.get(SOURCE..)?)
        };
        self.learnt = self.learnt.wrapping_add(1);
        self.places[place(address)] = Neighbour {
            address,
            mac: *mac.first_chunk::<6>()?,
            // Its next packet makes sure.
            learnt: self.learnt.wrapping_sub(CACHE),
            until: now.total_micros() + LIFETIME_US,
        };
        Some(())
    }

    #[cold]
    fn teach(
        &mut self,
        interface: &Interface,
        header: &[u8; ETHERNET],
        source: IpAddr,
        now: Instant,
    ) -> Option<Lesson> {
        let mac = *header.get(SOURCE..)?.first_chunk::<6>()?;
        let known = self.places[place(source)];
        let now = now.total_micros();
        let has_moved = known.address == source && known.until > now && known.mac != mac;
        // What is for a group has no answer that matters, and a group sends
        // nothing (IEEE 802, 9.2.3).
        if header[..6] != self.mac || mac[0] & 1 != 0 || mac == self.mac || has_moved {
            return None;
        }
        let (ours, is_neighbour) = ours(interface, source)?;
        if !is_neighbour {
            return None;
        }
        self.learnt = self.learnt.wrapping_add(1);
        self.places[place(source)] = Neighbour {
            address: source,
            mac,
            learnt: self.learnt,
            until: now + LIFETIME_US,
        };
        lesson(self.mac, ours, mac, source)
    }
}

/// Where a host has its place.
#[inline]
fn place(address: IpAddr) -> usize {
    let low = match address {
        IpAddr::V4(address) => u32::from(address),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            (bits ^ bits >> 64) as u32 ^ (bits >> 32 ^ bits >> 96) as u32
        }
    };
    (low ^ low >> 8 ^ low >> 16) as usize % Neighbours::PLACES
}

/// Whether an IPv6 packet is a neighbour solicitation or advertisement: from
/// those smoltcp learns itself.
#[inline]
fn is_discovery(packet: &[u8]) -> bool {
    const ICMPV6: u8 = 58;
    packet.get(6) == Some(&ICMPV6) && matches!(packet.get(IPV6_HEADER), Some(135 | 136))
}

/// An address of ours of that kind, and whether the other one is a host on the
/// link.
fn ours(interface: &Interface, source: IpAddr) -> Option<(IpAddr, bool)> {
    let source = smoltcp::wire::IpAddress::from(source);
    let on_link = interface.ip_addrs().iter().find(|cidr| {
        let is_broadcast = match cidr {
            smoltcp::wire::IpCidr::Ipv4(cidr) => cidr.broadcast().map(Into::into) == Some(source),
            smoltcp::wire::IpCidr::Ipv6(_) => false,
        };
        cidr.contains_addr(&source) && !is_broadcast
    })?;
    let is_ours = interface.has_ip_addr(source);
    Some((on_link.address().into(), source.is_unicast() && !is_ours))
}

/// The ARP reply or neighbour advertisement by which this neighbour would have
/// told us of itself.
fn lesson(our_mac: [u8; 6], ours: IpAddr, mac: [u8; 6], neighbour: IpAddr) -> Option<Lesson> {
    let (our_mac, mac) = (EthernetAddress(our_mac), EthernetAddress(mac));
    let mut lesson = Lesson {
        bytes: [0; Lesson::MAX],
        length: 0,
    };
    let mut frame = EthernetFrame::new_unchecked(&mut lesson.bytes[..]);
    frame.set_dst_addr(our_mac);
    frame.set_src_addr(mac);
    let length = match (neighbour, ours) {
        (IpAddr::V4(neighbour), IpAddr::V4(ours)) => {
            frame.set_ethertype(EthernetProtocol::Arp);
            let reply = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr: mac,
                source_protocol_addr: neighbour,
                target_hardware_addr: our_mac,
                target_protocol_addr: ours,
            };
            reply.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
            reply.buffer_len()
        }
        (IpAddr::V6(neighbour), IpAddr::V6(ours)) => {
            frame.set_ethertype(EthernetProtocol::Ipv6);
            let advert = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
                flags: NdiscNeighborFlags::OVERRIDE,
                target_addr: neighbour,
                lladdr: Some(mac.into()),
            });
            let header = Ipv6Repr {
                src_addr: neighbour,
                dst_addr: ours,
                next_header: IpProtocol::Icmpv6,
                payload_len: advert.buffer_len(),
                hop_limit: 255,
            };
            let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
            header.emit(&mut packet);
            advert.emit(
                &neighbour,
                &ours,
                &mut Icmpv6Packet::new_unchecked(packet.payload_mut()),
                // Ours are verified before the interface, see `checksum.rs`.
                &ChecksumCapabilities::default(),
            );
            header.buffer_len() + advert.buffer_len()
        }
        _ => return None,
    };
    lesson.length = ETHERNET + length;
    Some(lesson)
}
