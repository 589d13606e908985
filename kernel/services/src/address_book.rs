//! Whom ARP and neighbour discovery have told us of, for longer than smoltcp
//! remembers it.
//!
//! smoltcp keeps a few neighbours, and asks for one a second at most, whoever it
//! is. A stranger who floods the guest with made-up senders would so cut off
//! every host that it knows: first they are pushed out of the table, then nobody
//! can be asked for them. A host that has been heard of is therefore put back
//! into the table, before smoltcp sees its next packet
//! ([`AddressBook::missing`]). Nothing is learnt from packets: their source
//! address may be a lie. (What becomes of those whom nobody has heard of:
//! `neighbor.rs`.)

use alloc::boxed::Box;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::iface::Interface;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv6Packet, Icmpv6Repr, IpAddress, IpCidr, IpProtocol, Ipv6Packet, Ipv6Repr,
    NdiscNeighborFlags, NdiscRepr,
};

use crate::checksum::{ETHERNET, IPV6_HEADER};

/// A host that smoltcp was told of stays until it learns of so many others. It
/// keeps 32 (its feature `iface-neighbor-cache-count-32`), and those go first
/// that were not heard for longest; half of the places are left to hosts that
/// stay because they are heard.
const SAFE: u32 = 16;
/// smoltcp keeps a neighbour for 60 s after it was heard last.
const LIFETIME_US: i64 = 50_000_000;

const ARP: [u8; 2] = [0x08, 0x06];

/// Offset of the sender's hardware address in an Ethernet header.
const SOURCE: usize = 6;

/// What was said of a host.
#[derive(Clone, Copy)]
struct Neighbour {
    address: IpAddr,
    mac: [u8; 6],
    /// Value of [`AddressBook::learnt_before`] when smoltcp was told last.
    learnt: u32,
    /// Until then, in microseconds, smoltcp does not forget it for its age; 0
    /// when never told.
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
pub(crate) struct AddressBook {
    mac: [u8; 6],
    /// Each host has one place, which it shares with none of its IPv4 network
    /// if that has 256 addresses or less.
    places: Box<[Neighbour; Self::PLACES]>,
    /// How many times smoltcp may have learnt of a host.
    learnt: u32,
    /// The same before the time of the latest one. Of hosts that were heard at
    /// the same time any may go first.
    learnt_before: u32,
    latest: Instant,
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

impl AddressBook {
    const PLACES: usize = 256;

    /// `mac` is ours.
    pub(crate) fn new(mac: EthernetAddress) -> Self {
        Self {
            mac: mac.0,
            places: Box::new([Neighbour::NONE; Self::PLACES]),
            learnt: 0,
            learnt_before: 0,
            latest: Instant::ZERO,
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
            ARP | [0x86, 0xdd] => {
                self.note(header, packet, now);
                return None;
            }
            _ => return None,
        };
        let known = &self.places[place(source)];
        if known.address != source {
            return None;
        }
        let is_there = self.learnt.wrapping_sub(known.learnt) < SAFE;
        if is_there && now.total_micros() < known.until {
            return None;
        }
        self.teach(interface, header, source, now)
    }

    /// Notes what smoltcp learns of a host by itself, or would if it were for
    /// us.
    #[cold]
    fn note(&mut self, header: &[u8; ETHERNET], packet: &[u8], now: Instant) -> Option<()> {
        let (address, mac) = if header[12..] == ARP {
            let sender = packet.get(14..)?.first_chunk::<4>()?;
            (IpAddr::V4((*sender).into()), packet.get(8..)?)
        } else {
            let sender = packet.get(8..)?.first_chunk::<16>()?;
            (IpAddr::V6((*sender).into()), header.get(SOURCE..)?)
        };
        self.count(now);
        self.places[place(address)] = Neighbour {
            address,
            mac: *mac.first_chunk::<6>()?,
            learnt: self.learnt_before,
            // Its next packet makes sure.
            until: 0,
        };
        Some(())
    }

    /// smoltcp may learn of a host.
    fn count(&mut self, now: Instant) {
        if now != self.latest {
            self.latest = now;
            self.learnt_before = self.learnt;
        }
        self.learnt = self.learnt.wrapping_add(1);
    }

    /// Has smoltcp know the sender of a packet, if that is who it says.
    #[cold]
    fn teach(
        &mut self,
        interface: &Interface,
        header: &[u8; ETHERNET],
        source: IpAddr,
        now: Instant,
    ) -> Option<Lesson> {
        let known = self.places[place(source)];
        let is_it = known.address == source && header[SOURCE..][..6] == known.mac;
        if !is_it || header[..6] != self.mac {
            return None;
        }
        let ours = our_address_beside(interface, source)?;
        self.count(now);
        self.places[place(source)] = Neighbour {
            learnt: self.learnt_before,
            until: now.total_micros() + LIFETIME_US,
            ..known
        };
        lesson(self.mac, ours, known.mac, source)
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
    (low ^ low >> 8 ^ low >> 16) as usize % AddressBook::PLACES
}

/// Whether an IPv6 packet is a neighbour solicitation or advertisement: from
/// those smoltcp learns itself.
#[inline]
fn is_discovery(packet: &[u8]) -> bool {
    const ICMPV6: u8 = 58;
    packet.get(6) == Some(&ICMPV6) && matches!(packet.get(IPV6_HEADER), Some(135 | 136))
}

/// An address of ours in the network of this host, if it is a host on the link.
fn our_address_beside(interface: &Interface, host: IpAddr) -> Option<IpAddr> {
    let host = IpAddress::from(host);
    let networks = interface.ip_addrs().iter();
    let network = { networks }.find(|network| network.contains_addr(&host))?;
    let is_broadcast = match network {
        IpCidr::Ipv4(network) => network.broadcast().map(IpAddress::from) == Some(host),
        IpCidr::Ipv6(_) => false,
    };
    let is_host = host.is_unicast() && !is_broadcast && !interface.has_ip_addr(host);
    is_host.then(|| network.address().into())
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
