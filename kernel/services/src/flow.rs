//! Whom the UDP echo has answered lately, and how its answers get there.
//!
//! smoltcp looks up the next hop of every packet, in a table of addresses and
//! one of neighbours. A [`Flow`] keeps what it found: the Ethernet header of the
//! answer, as Linux does (`struct hh_cache`). It holds only for requests that
//! come from that very next hop, so a forged address cannot use it, nor can one
//! that has moved.

use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress};

use crate::checksum::{ETHERNET, IPV4_HEADER, IPV6_HEADER};

/// Of an IPv4 and an IPv6 header, the part with both addresses.
const IPV4_ADDRESSES: core::ops::Range<usize> = ETHERNET + 12..ETHERNET + IPV4_HEADER;
const IPV6_ADDRESSES: core::ops::Range<usize> = ETHERNET + 8..ETHERNET + IPV6_HEADER;

/// Datagrams from one sender to one of our addresses.
#[derive(Clone, Copy)]
pub(crate) struct Flow {
    /// The Ethernet header that requests have.
    request: [u8; ETHERNET],
    /// The Ethernet header for answers.
    pub(crate) answer: [u8; ETHERNET],
    /// Source and destination of requests as they are in the IP header; IPv4's
    /// are the first 8 bytes.
    addresses: [u8; 32],
    /// Valid until then, in microseconds; 0 when never used.
    until: i64,
}

/// The latest flows.
pub(crate) struct Flows {
    mac: EthernetAddress,
    /// The one that was found last, then the others.
    latest: Flow,
    others: [Flow; Flows::OTHERS],
    next: usize,
}

impl Flow {
    const NONE: Self = Self {
        request: [0; ETHERNET],
        answer: [0; ETHERNET],
        addresses: [0; 32],
        until: 0,
    };

    fn new(mac: EthernetAddress, next_hop: [u8; 6], sender: IpAddress, ours: IpAddress) -> Self {
        let mut flow = Self::NONE;
        let ethertype: [u8; 2] = match (sender, ours) {
            (IpAddress::Ipv4(sender), IpAddress::Ipv4(ours)) => {
                flow.addresses[..4].copy_from_slice(&sender.octets());
                flow.addresses[4..8].copy_from_slice(&ours.octets());
                [0x08, 0x00]
            }
            (IpAddress::Ipv6(sender), IpAddress::Ipv6(ours)) => {
                flow.addresses[..16].copy_from_slice(&sender.octets());
                flow.addresses[16..].copy_from_slice(&ours.octets());
                [0x86, 0xdd]
            }
            // A datagram has addresses of one kind.
            _ => return flow,
        };
        for (header, to, from) in [
            (&mut flow.request, mac.0, next_hop),
            (&mut flow.answer, next_hop, mac.0),
        ] {
            header[..6].copy_from_slice(&to);
            header[6..12].copy_from_slice(&from);
            header[12..].copy_from_slice(&ethertype);
        }
        flow
    }

    /// Whether this is a frame of the flow.
    #[inline(always)]
    fn has(&self, frame: &[u8]) -> bool {
        let Some(header) = frame.first_chunk::<ETHERNET>() else {
            return false;
        };
        if !same(header, &self.request) {
            return false;
        }
        if self.request[12] == 0x86 {
            return frame.get(IPV6_ADDRESSES) == Some(&self.addresses[..]);
        }
        match frame.get(IPV4_ADDRESSES).and_then(<[u8]>::first_chunk::<8>) {
            Some(addresses) => self.addresses.first_chunk() == Some(addresses),
            None => false,
        }
    }
}

/// Compares in two words, which overlap.
#[inline]
fn same(a: &[u8; ETHERNET], b: &[u8; ETHERNET]) -> bool {
    let words = |bytes: &[u8; ETHERNET]| {
        let [first @ .., _, _, _, _, _, _] = *bytes;
        let [_, _, _, _, _, _, last @ ..] = *bytes;
        (u64::from_ne_bytes(first), u64::from_ne_bytes(last))
    };
    words(a) == words(b)
}

impl Flows {
    const OTHERS: usize = 7;
    /// smoltcp keeps a neighbour for 60 s, too.
    const LIFETIME_US: i64 = 60_000_000;

    /// No flow yet; `mac` is ours.
    pub(crate) fn new(mac: EthernetAddress) -> Self {
        Self {
            mac,
            latest: Flow::NONE,
            others: [Flow::NONE; Self::OTHERS],
            next: 0,
        }
    }

    /// The flow that a frame belongs to.
    #[inline(always)]
    pub(crate) fn find(&mut self, frame: &[u8], now: Instant) -> Option<&Flow> {
        let now = now.total_micros();
        if self.latest.until <= now || !self.latest.has(frame) {
            self.search(frame, now)?;
        }
        self.latest.until = now + Self::LIFETIME_US;
        Some(&self.latest)
    }

    /// Makes the flow of a frame the latest, if it is one of the others.
    #[inline(never)]
    fn search(&mut self, frame: &[u8], now: i64) -> Option<()> {
        let mut others = self.others.iter_mut();
        let flow = others.find(|flow| flow.until > now && flow.has(frame))?;
        core::mem::swap(flow, &mut self.latest);
        Some(())
    }

    /// Notes that an answer to `sender` has gone to `next_hop`.
    pub(crate) fn insert(
        &mut self,
        sender: IpAddress,
        ours: Option<IpAddress>,
        next_hop: [u8; 6],
        now: Instant,
    ) {
        let Some(ours) = ours else { return };
        let mut flow = Flow::new(self.mac, next_hop, sender, ours);
        flow.until = now.total_micros() + Self::LIFETIME_US;
        let same = |other: &Flow| other.addresses == flow.addresses;
        if same(&self.latest) {
            self.latest = flow;
        } else if let Some(known) = self.others.iter_mut().find(|other| same(other)) {
            *known = flow;
        } else {
            self.others[self.next] = flow;
            self.next = (self.next + 1) % Self::OTHERS;
        }
    }

    /// Forgets all: addresses or routes have changed.
    pub(crate) fn clear(&mut self) {
        self.latest = Flow::NONE;
        self.others = [Flow::NONE; Self::OTHERS];
    }
}
