//! Packets that come in fragments (RFC 791, 3.2; RFC 815; RFC 8200, 4.5).
//!
//! They are put together here and not in smoltcp, so that whoever decides where
//! a frame goes sees whole packets only. smoltcp 0.14 also keeps at most eight
//! pieces of a packet, lets nobody new in while four packets are incomplete, and
//! puts nothing of IPv6 together.

use alloc::boxed::Box;
use alloc::vec::Vec;

use smoltcp::time::{Duration, Instant};

use crate::checksum::{ETHERNET, IPV4_HEADER, IPV6_HEADER, Sum};
use crate::packet::{HOP_BY_HOP, behind_options};

/// How long fragments wait for the rest of their packet.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Packets that are incomplete at a time; the oldest gives way. They bound the
/// memory that this takes to 16 times 64 KiB.
const MAX_PACKETS: usize = 16;
/// Offsets count units of 8 bytes.
const UNIT: usize = 8;
const MAX_LENGTH: usize = 65_535 - IPV4_HEADER;

/// The packets that are incomplete, the oldest first.
#[derive(Default)]
pub(crate) struct Reassembly {
    packets: Vec<Partial>,
}

struct Partial {
    key: Key,
    /// The Ethernet header, an IP header without options, and the payload.
    frame: Vec<u8>,
    /// A bit for each unit that is there.
    there: Box<[u64; MAX_LENGTH / UNIT / 64 + 1]>,
    received: usize,
    /// Bytes of the payload, known from the last fragment.
    total: Option<usize>,
    expires_at: Instant,
}

/// What the fragments of a packet have in common: source and destination,
/// protocol (0 for IPv6, where that of the first one counts) and identification.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key([u8; 32], u8, [u8; 4]);

/// A fragment that may be right.
struct Fragment<'f> {
    key: Key,
    /// The header of the packet that it is of, once that is complete.
    header: &'f [u8],
    protocol: u8,
    /// Where in the whole payload this part is.
    offset: usize,
    is_last: bool,
    payload: &'f [u8],
}

impl<'f> Fragment<'f> {
    fn parse_ipv4(packet: &'f [u8]) -> Option<Self> {
        let (header, _) = packet.split_first_chunk::<IPV4_HEADER>()?;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let mut ends = [0; 32];
        ends[..8].copy_from_slice(&header[12..]);
        Some(Self {
            key: Key(ends, header[9], [0, 0, header[4], header[5]]),
            header,
            protocol: header[9],
            offset: usize::from(u16::from_be_bytes([header[6] & 0x1f, header[7]])) * UNIT,
            is_last: header[6] & 0x20 == 0,
            payload: packet.get(usize::from(header[0] & 0xf) * 4..total)?,
        })
    }

    fn parse_ipv6(packet: &'f [u8]) -> Option<Self> {
        let (header, payload) = packet.split_first_chunk::<IPV6_HEADER>()?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let mut payload = payload.get(..length)?;
        if header[6] == HOP_BY_HOP {
            (_, payload) = behind_options(payload)?;
        }
        let (&[protocol, _, high, low, a, b, c, d], payload) = payload.split_first_chunk()?;
        Some(Self {
            key: Key(*header.last_chunk()?, 0, [a, b, c, d]),
            header,
            protocol,
            offset: usize::from(u16::from_be_bytes([high, low & !7])),
            is_last: low & 1 == 0,
            payload,
        })
    }
}

impl Reassembly {
    /// Takes in a fragment whose header is right. Returns the frame with the whole
    /// packet when this was the last missing one.
    ///
    /// What comes twice is ignored; a packet of which parts overlap is given up
    /// (RFC 5722 demands it of IPv6, Linux does it for both).
    pub(crate) fn take_in(&mut self, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        let (ethernet, packet) = frame.split_first_chunk::<ETHERNET>()?;
        let fragment = match packet.first()? >> 4 {
            4 => Fragment::parse_ipv4(packet)?,
            _ => Fragment::parse_ipv6(packet)?,
        };
        let (header, payload) = (fragment.header, fragment.payload);
        let (offset, is_last) = (fragment.offset, fragment.is_last);
        let end = offset + payload.len();
        if payload.is_empty() || end > MAX_LENGTH || (!is_last && payload.len() % UNIT != 0) {
            return None;
        }
        let headers = ETHERNET + header.len();
        let index = self.place(ethernet, header, fragment.key, now);
        let partial = self.packets.get_mut(index)?;
        let units = offset / UNIT..end.div_ceil(UNIT);
        let is_there = |unit: usize| partial.there[unit / 64] >> (unit % 64) & 1 != 0;
        let known = units.clone().filter(|&unit| is_there(unit)).count();
        let ends_wrong = match partial.total {
            Some(total) => end > total || (is_last && end != total),
            None => is_last && partial.frame.len() > headers + end,
        };
        if ends_wrong || (known > 0 && known < units.len()) {
            self.packets.remove(index);
            return None;
        }
        if known == units.len() {
            return None;
        }
        units.for_each(|unit| partial.there[unit / 64] |= 1 << (unit % 64));
        let at = headers + offset;
        if partial.frame.len() < at + payload.len() {
            partial.frame.resize(at + payload.len(), 0);
        }
        partial.frame[at..][..payload.len()].copy_from_slice(payload);
        partial.received += payload.len();
        if is_last {
            partial.total = Some(end);
        }
        if offset == 0 && header.len() == IPV6_HEADER {
            partial.frame[ETHERNET + 6] = fragment.protocol;
        }
        if partial.total != Some(partial.received) {
            return None;
        }
        let received = partial.received;
        let mut frame = self.packets.remove(index).frame;
        let packet = frame.get_mut(ETHERNET..)?;
        if header.len() == IPV6_HEADER {
            packet[4..6].copy_from_slice(&(received as u16).to_be_bytes());
            return Some(frame);
        }
        let header = packet.first_chunk_mut::<IPV4_HEADER>()?;
        header[0] = 0x45;
        let length = (IPV4_HEADER + received) as u16;
        header[2..4].copy_from_slice(&length.to_be_bytes());
        header[6..8].fill(0);
        header[10..12].fill(0);
        let checksum = Sum::of_header(header).checksum();
        header[10..12].copy_from_slice(&checksum);
        Some(frame)
    }

    /// Where a packet is, or is begun.
    fn place(&mut self, ethernet: &[u8; ETHERNET], header: &[u8], key: Key, now: Instant) -> usize {
        self.packets.retain(|packet| packet.expires_at > now);
        if let Some(index) = self.packets.iter().position(|packet| packet.key == key) {
            return index;
        }
        if self.packets.len() >= MAX_PACKETS {
            self.packets.remove(0);
        }
        let mut frame = Vec::with_capacity(ETHERNET + IPV6_HEADER + 3000);
        frame.extend_from_slice(ethernet);
        frame.extend_from_slice(header);
        self.packets.push(Partial {
            key,
            frame,
            there: Box::new([0; _]),
            received: 0,
            total: None,
            expires_at: now + TIMEOUT,
        });
        self.packets.len() - 1
    }
}
