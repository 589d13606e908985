//! Who is on the link, and by whom all others are reached.
//!
//! What ARP and neighbour discovery say of a host is kept as the Ethernet header
//! of frames to it, as Linux does (`struct hh_cache`). Nothing is learnt from
//! other packets: their source address may be a lie. The table is one of four
//! places a bucket, looked up in constant time, and grows while there is memory.
//! Of a full bucket the host goes that was not heard for longest.

use alloc::vec::Vec;
use core::net::IpAddr;

use smoltcp::iface::Interface;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use crate::arp::Arp;
use crate::checksum::ETHERNET;
use crate::discovery::{Kind, Message};
use crate::packet::Address;

const WAYS: usize = 4;
const FIRST_BUCKETS: usize = 64;
/// What one host is known for without being heard, as in smoltcp. Then it is
/// asked for when it is needed, while its old address is still used (Linux
/// `NUD_STALE` and `NUD_PROBE`).
const REACHABLE: Duration = Duration::from_secs(60);
/// Between two questions for one host, and how many there are (Linux
/// `retrans_time`, `ucast_probes`).
pub(crate) const ASK_INTERVAL: Duration = Duration::from_secs(1);
pub(crate) const QUESTIONS: u8 = 3;
/// Hosts to be asked for that are kept between two turns.
const MAX_QUESTIONS: usize = 16;

#[derive(Clone, Copy)]
struct Neighbor {
    address: Address,
    header: [u8; ETHERNET],
    /// Questions since it was heard last.
    asked: u8,
    /// When it was heard last, in microseconds; [`Neighbor::NONE`]'s is never.
    heard: i64,
    ask_at: i64,
}

impl Neighbor {
    const NONE: Self = Self {
        // The address of nobody (RFC 4291, 2.5.2).
        address: Address(0),
        header: [0; ETHERNET],
        asked: 0,
        heard: i64::MIN,
        ask_at: 0,
    };
}

/// One of this host's addresses, and the network that it is in.
#[derive(Clone, Copy)]
struct Network {
    ours: Address,
    mask: u128,
    broadcast: Option<Address>,
}

pub(crate) struct Neighbors {
    pub(crate) mac: [u8; 6],
    places: Vec<Neighbor>,
    max_buckets: usize,
    /// Makes it hard to guess who shares a bucket.
    seed: u64,
    networks: Vec<Network>,
    gateways: [Option<Address>; 2],
    /// The place of the next hop to the host that was looked up last.
    latest: (Address, usize),
    questions: Vec<Address>,
}

impl Neighbors {
    /// `mac` is ours; the table may have up to `memory` bytes.
    pub(crate) fn new(mac: EthernetAddress, memory: usize, seed: u64) -> Self {
        let bucket = WAYS * size_of::<Neighbor>();
        Self {
            mac: mac.0,
            places: alloc::vec![Neighbor::NONE; FIRST_BUCKETS * WAYS],
            max_buckets: memory / bucket,
            seed,
            networks: Vec::new(),
            gateways: [None; 2],
            latest: (Address(0), 0),
            questions: Vec::new(),
        }
    }

    /// Whether the hardware address that a frame is sent to is ours or a group.
    #[inline]
    pub(crate) fn is_addressed(&self, frame: &[u8]) -> bool {
        const GROUP: u8 = 1;
        let [a, b, c, d, e, f] = self.mac;
        // As words, of which the lower two bytes, as they are in memory, do not count.
        let ours = u64::from_be_bytes([a, b, c, d, e, f, 0, 0]);
        frame.first_chunk::<8>().is_some_and(|destination| {
            (u64::from_be_bytes(*destination) ^ ours) >> 16 == 0 || destination[0] & GROUP != 0
        })
    }

    /// The Ethernet header of a packet to `address` that goes to `mac`.
    pub(crate) fn header(&self, mac: [u8; 6], address: Address) -> [u8; ETHERNET] {
        let ethertype: [u8; 2] = match address.ip() {
            IpAddress::Ipv4(_) => [0x08, 0x00],
            IpAddress::Ipv6(_) => [0x86, 0xdd],
        };
        let mut header = [0; ETHERNET];
        header[..6].copy_from_slice(&mac);
        header[6..12].copy_from_slice(&self.mac);
        header[12..].copy_from_slice(&ethertype);
        header
    }

    /// Takes over the addresses and routes of the interface.
    pub(crate) fn set_routes(&mut self, interface: &Interface) {
        self.latest = (Address(0), 0);
        let network = |cidr: &IpCidr| {
            let (bits, broadcast) = match cidr {
                IpCidr::Ipv4(cidr) => (96, cidr.broadcast().map(Address::from)),
                IpCidr::Ipv6(_) => (0, None),
            };
            let prefix = u32::from(cidr.prefix_len()) + bits;
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            Network {
                ours: cidr.address().into(),
                mask: mask.to_be(),
                broadcast,
            }
        };
        self.networks = interface.ip_addrs().iter().map(network).collect();
        let routes = interface.routes();
        let gateways = [
            routes.get_default_ipv4_route(),
            routes.get_default_ipv6_route(),
        ];
        self.gateways = gateways.map(|route| route.map(|route| route.via_router.into()));
    }

    #[inline]
    pub(crate) fn is_ours(&self, address: Address) -> bool {
        self.networks.iter().any(|network| network.ours == address)
    }

    /// Whether a packet cannot come from there: no host has that address, or we do
    /// (RFC 1122, 3.2.1.3; Linux `ip_route_input_slow` calls it a martian source).
    #[cold]
    pub(crate) fn is_impossible(&self, source: Address) -> bool {
        let ip = source.ip();
        let is_broadcast = |network: &Network| Some(source) == network.broadcast;
        IpAddr::from(ip).is_loopback()
            || !ip.is_unicast()
            || self.is_ours(source)
            || self.networks.iter().any(is_broadcast)
    }

    /// Who a packet to this host is handed to; `None` for what is not a host's
    /// address, for our own, and where no way leads.
    #[inline]
    pub(crate) fn next_hop(&self, host: Address) -> Option<Address> {
        for network in &self.networks {
            if (network.ours.0 ^ host.0) & network.mask == 0 {
                let is_host = host != network.ours && Some(host) != network.broadcast;
                return is_host.then_some(host);
            }
        }
        self.gateway_to(host)
    }

    #[inline(never)]
    fn gateway_to(&self, host: Address) -> Option<Address> {
        let ip = host.ip();
        let [v4, v6] = self.gateways;
        match ip {
            _ if !ip.is_unicast() => None,
            IpAddress::Ipv4(address) => v4.filter(|_| !address.is_loopback()),
            IpAddress::Ipv6(address) => {
                v6.filter(|_| !address.is_loopback() && !address.is_unicast_link_local())
            }
        }
    }

    /// The place of him to whom the answer to a packet from `source` goes, for
    /// [`Self::header_at`], if it has a way. Who sent its frame is heard.
    #[inline]
    pub(crate) fn recognize(
        &mut self,
        frame: &[u8],
        source: Address,
        now: Instant,
    ) -> Option<usize> {
        let place = self.place_to(source)?;
        let neighbor = self.places.get_mut(place)?;
        if frame.get(6..12) == Some(&neighbor.header[..6]) {
            neighbor.heard = now.total_micros();
            neighbor.asked = 0;
        }
        Some(place)
    }

    /// The Ethernet header of frames to a host.
    #[inline]
    pub(crate) fn header_to(&mut self, host: Address, now: Instant) -> Option<&[u8; ETHERNET]> {
        let place = self.place_to(host)?;
        self.header_at(place, now)
    }

    /// The same, by the host's place.
    #[inline]
    pub(crate) fn header_at(&mut self, place: usize, now: Instant) -> Option<&[u8; ETHERNET]> {
        let neighbor = self.places.get(place)?;
        if now.total_micros() > neighbor.heard + REACHABLE.total_micros() as i64 {
            self.probe(place, now)?;
        }
        self.places.get(place).map(|neighbor| &neighbor.header)
    }

    #[inline]
    fn place_to(&mut self, host: Address) -> Option<usize> {
        if self.latest.0 == host && host.0 != 0 {
            return Some(self.latest.1);
        }
        let place = self.find(self.next_hop(host)?)?;
        self.latest = (host, place);
        Some(place)
    }

    /// Has a host asked for that was not heard for long, and forgets it when it
    /// does not answer.
    #[cold]
    fn probe(&mut self, place: usize, now: Instant) -> Option<()> {
        let now = now.total_micros();
        let neighbor = self.places.get_mut(place)?;
        if now < neighbor.ask_at {
            return Some(());
        }
        if neighbor.asked >= QUESTIONS {
            *neighbor = Neighbor::NONE;
            self.latest = (Address(0), 0);
            return None;
        }
        neighbor.asked += 1;
        neighbor.ask_at = now + ASK_INTERVAL.total_micros() as i64;
        let address = neighbor.address;
        self.question(address);
        Some(())
    }

    /// Has a host asked for at the end of the turn.
    #[cold]
    pub(crate) fn question(&mut self, address: Address) {
        if self.questions.len() < MAX_QUESTIONS && !self.questions.contains(&address) {
            self.questions.push(address);
        }
    }

    pub(crate) fn next_question(&mut self) -> Option<Address> {
        self.questions.pop()
    }

    #[inline]
    pub(crate) fn has_questions(&self) -> bool {
        !self.questions.is_empty()
    }

    pub(crate) fn knows(&self, neighbor: Address) -> bool {
        self.find(neighbor).is_some()
    }

    #[inline]
    fn bucket(&self, address: Address) -> usize {
        // Fibonacci hashing; the number of buckets is a power of two. What tells
        // IPv4 addresses apart is at the upper end.
        let folded = (address.0 as u64) ^ (address.0 >> 64) as u64 ^ self.seed;
        let folded = folded ^ folded >> 32;
        let hash = folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (hash as usize & (self.places.len() / WAYS - 1)) * WAYS
    }

    #[inline]
    fn find(&self, address: Address) -> Option<usize> {
        let first = self.bucket(address);
        let ways = self.places.get(first..)?.first_chunk::<WAYS>()?;
        let way = ways.iter().position(|known| known.address == address)?;
        Some(first + way)
    }

    /// Notes where a host is. One that is not on the link of an address of ours
    /// is not believed; one that has not spoken to us is only noted anew if it
    /// is known, and elsewhere than before only if the word `overrides` that.
    pub(crate) fn note(
        &mut self,
        address: Address,
        mac: [u8; 6],
        is_to_us: bool,
        overrides: bool,
        now: Instant,
    ) {
        let is_on_link =
            self.next_hop(address) == Some(address) || self.gateways.contains(&Some(address));
        if !is_on_link || mac[0] & 1 != 0 || mac == [0; 6] {
            return;
        }
        let known = self.find(address);
        if known.is_none() && !is_to_us {
            return;
        }
        let header = self.header(mac, address);
        let place = known.unwrap_or_else(|| self.make_room(address, now));
        if let Some(neighbor) = self.places.get_mut(place)
            && (overrides || known.is_none() || neighbor.header == header)
        {
            self.latest = (Address(0), 0);
            *neighbor = Neighbor {
                address,
                header,
                asked: 0,
                heard: now.total_micros(),
                ask_at: 0,
            };
        }
    }

    /// The place for a new host.
    #[cold]
    fn make_room(&mut self, address: Address, now: Instant) -> usize {
        loop {
            let first = self.bucket(address);
            let bucket = self.places.iter().zip(0..).skip(first).take(WAYS);
            let oldest = bucket.min_by_key(|(known, _)| known.heard);
            let Some((oldest, place)) = oldest else {
                return first;
            };
            let is_gone = oldest.heard < now.total_micros() - REACHABLE.total_micros() as i64;
            if is_gone || !self.grow() {
                return place;
            }
        }
    }

    /// Doubles the table. Returns whether there was memory.
    fn grow(&mut self) -> bool {
        let places = self.places.len() * 2;
        let mut larger = Vec::new();
        if places / WAYS > self.max_buckets || larger.try_reserve_exact(places).is_err() {
            return false;
        }
        larger.resize(places, Neighbor::NONE);
        let known = core::mem::replace(&mut self.places, larger);
        for neighbor in known.into_iter().filter(|known| known.address.0 != 0) {
            // A bucket of half the size has room for all that it had.
            let first = self.bucket(neighbor.address);
            let mut ways = self.places.iter_mut().skip(first).take(WAYS);
            if let Some(free) = ways.find(|place| place.address.0 == 0) {
                *free = neighbor;
            }
        }
        true
    }

    /// Takes in a message of ARP (RFC 826): every one tells of its sender.
    #[cold]
    pub(crate) fn learn_from_arp(&mut self, arp: &Arp, now: Instant) {
        let is_to_us = self.is_ours(Address::v4(arp.target));
        self.note(Address::v4(arp.sender), arp.mac, is_to_us, true, now);
    }

    /// Takes in a neighbour solicitation or advertisement (RFC 4861, 7.2.3 and
    /// 7.2.5) that was sent to `destination`.
    #[cold]
    pub(crate) fn learn_from_discovery(
        &mut self,
        message: &Message,
        destination: Address,
        now: Instant,
    ) {
        let target = Address::v6(message.target.octets());
        let (host, is_to_us, overrides) = match message.kind {
            Kind::Solicitation => {
                let source = Address::v6(message.source.octets());
                (source, self.is_ours(target), true)
            }
            Kind::Advertisement { overrides } => (target, self.is_ours(destination), overrides),
        };
        self.note(host, message.mac, is_to_us, overrides, now);
    }
}
