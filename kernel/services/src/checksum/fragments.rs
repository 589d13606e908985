//! Packets that come in fragments.

use smoltcp::time::Instant;

use super::{Duties, ETHERNET, Ipv4, Sum, UDP};

/// The sums of UDP and TCP packets that come in fragments.
///
/// A sum can be added up in any order, so each fragment is added as it comes,
/// and the one that completes its packet is refused if the whole is corrupt:
/// smoltcp, which reassembles, then never completes it. A packet of which a
/// fragment comes twice is taken for corrupt.
#[derive(Default)]
pub(crate) struct Fragments {
    packets: [Option<Partial>; Fragments::COUNT],
}

#[derive(Clone, Copy)]
struct Partial {
    /// Source, destination, protocol and identification (RFC 791, 3.2).
    key: ([u8; 8], u8, [u8; 2]),
    sum: Sum,
    received: usize,
    /// Length of the payload, known from the last fragment.
    total: Option<usize>,
    /// The sender has not computed a checksum (UDP).
    without: bool,
    expires_at: Instant,
}

impl Fragments {
    /// As many as smoltcp reassembles at a time.
    const COUNT: usize = 4;

    /// Takes in an IPv4 fragment whose header is right; returns whether it
    /// may be passed on.
    pub(crate) fn admit(
        &mut self,
        frame: &[u8],
        duties: &Duties,
        expires_at: Instant,
        now: Instant,
    ) -> bool {
        let Some(packet) = frame.get(ETHERNET..).and_then(Ipv4::parse) else {
            return false;
        };
        let (header, payload, addresses) = (packet.header, packet.payload, packet.addresses());
        let protocol = header[9];
        // No device sees the whole of it, so it is verified here in any case.
        let Some((_, checksum_at)) = duties.transport(protocol) else {
            return true;
        };
        let offset = usize::from(u16::from_be_bytes([header[6] & 0x1f, header[7]])) * 8;
        let more = header[6] & 0x20 != 0;
        // RFC 791, 3.2: all but the last are multiples of 8 bytes.
        if more && payload.len() % 8 != 0 {
            return false;
        }
        let mut key = ([0; 8], protocol, [header[4], header[5]]);
        key.0.copy_from_slice(&header[12..20]);
        let Some(slot) = self.slot(&key, now) else {
            return false;
        };
        let packet = slot.get_or_insert(Partial {
            key,
            sum: Sum::default(),
            received: 0,
            total: None,
            without: false,
            expires_at,
        });
        packet.sum = packet.sum.plus(Sum::of(payload));
        packet.received += payload.len();
        if offset == 0 && protocol == UDP {
            packet.without = payload.get(checksum_at..checksum_at + 2) == Some(&[0, 0]);
        }
        if !more {
            packet.total = Some(offset + payload.len());
        }
        match packet.total {
            Some(total) if packet.received == total => {
                let pseudo_header = Sum::pseudo_header(addresses, protocol, total);
                let is_right = packet.without || packet.sum.plus(pseudo_header).is_right();
                // What is refused is remembered until smoltcp has forgotten it.
                if is_right {
                    *slot = None;
                } else {
                    packet.total = Some(0);
                }
                is_right
            }
            Some(total) => packet.received < total,
            None => true,
        }
    }

    /// The place of a packet, or an empty one.
    fn slot(&mut self, key: &([u8; 8], u8, [u8; 2]), now: Instant) -> Option<&mut Option<Partial>> {
        for slot in &mut self.packets {
            if slot.is_some_and(|packet| packet.expires_at < now) {
                *slot = None;
            }
        }
        let known = |slot: &Option<Partial>| slot.is_some_and(|packet| packet.key == *key);
        let index = self
            .packets
            .iter()
            .position(known)
            .or_else(|| self.packets.iter().position(Option::is_none))?;
        self.packets.get_mut(index)
    }
}
