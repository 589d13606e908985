//! Paths that carry smaller packets than the link (RFC 1191, RFC 8201).
//!
//! smoltcp 0.14 knows the link's MTU only, and the size of a connection's segments
//! cannot be changed. Segments that are too large for their path are therefore cut
//! on their way to the device ([`Narrow`]): to TCP it is the same stream.

use alloc::vec;

use smoltcp::phy::{Device, DeviceCapabilities, PacketMeta, TxToken};
use smoltcp::time::Instant;

use crate::checksum::{IPV4_HEADER, IPV6_HEADER, TCP};
use crate::packet::{Address, Content, Ends, Packet};

/// No path is taken to be narrower. IPv4: Linux `ip_rt_min_pmtu`; a forged
/// message must not make us send crumbs. IPv6: RFC 8200, 5.
const LEAST: usize = 552;
const LEAST_V6: usize = 1280;
/// What is tried when nothing gets through (Linux `TCP_BASE_MSS`, with headers).
const BASE: usize = 1024 + 40;

/// The MTU to try on a path where large packets vanish without a word (RFC 4821).
pub(crate) fn base(remote: Address) -> usize {
    match remote.is_ipv4() {
        true => BASE,
        false => LEAST_V6,
    }
}

/// A router's message that a segment of ours did not fit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooBig {
    pub(crate) ends: Ends,
    /// Of the segment.
    pub(crate) sequence: u32,
    /// Of the next link, in bytes; not below the least.
    pub(crate) mtu: usize,
}

impl TooBig {
    /// "Fragmentation needed" (RFC 792, RFC 1191) or "packet too big" (RFC 4443,
    /// 3.2) about a TCP segment.
    pub(crate) fn parse(packet: &Packet<'_>) -> Option<Self> {
        let Content::Icmp(message) = packet.content else {
            return None;
        };
        let &[kind, code, _, _, a, b, c, d, ref quoted @ ..] = message else {
            return None;
        };
        let (mtu, at, local, remote, protocol);
        match (packet.is_ipv4, kind, code) {
            (true, 3, 4) => {
                let header = quoted.first_chunk::<IPV4_HEADER>()?;
                mtu = usize::from(u16::from_be_bytes([c, d])).max(LEAST);
                at = usize::from(header[0] & 0xf) * 4;
                local = Address::v4(*header[12..].first_chunk()?);
                remote = Address::v4(*header[16..].first_chunk()?);
                protocol = header[9];
            }
            (false, 2, 0) => {
                let header = quoted.first_chunk::<IPV6_HEADER>()?;
                mtu = (u32::from_be_bytes([a, b, c, d]) as usize).max(LEAST_V6);
                at = IPV6_HEADER;
                local = Address::v6(*header[8..].first_chunk()?);
                remote = Address::v6(*header[24..].first_chunk()?);
                protocol = header[6];
            }
            _ => return None,
        }
        if protocol != TCP {
            return None;
        }
        let &[a, b, c, d, e, f, g, h] = quoted.get(at..)?.first_chunk::<8>()?;
        Some(Self {
            ends: Ends {
                local,
                remote,
                ports: [[a, b], [c, d]].map(u16::from_be_bytes),
            },
            sequence: u32::from_be_bytes([e, f, g, h]),
            mtu,
        })
    }
}

/// A device at the beginning of a narrow path, for TCP segments as smoltcp writes
/// them. It only sends.
pub(crate) struct Narrow<'d, D> {
    pub(crate) device: &'d mut D,
    /// Largest packet, in bytes without the Ethernet header.
    pub(crate) mtu: usize,
}

impl<D: Device> Device for Narrow<'_, D> {
    type RxToken<'a>
        = D::RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Cutter<'a, D>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(D::RxToken<'_>, Cutter<'_, D>)> {
        None
    }

    fn transmit(&mut self, now: Instant) -> Option<Cutter<'_, D>> {
        let has_room = self.device.transmit(now).is_some();
        has_room.then_some(Cutter {
            device: self.device,
            mtu: self.mtu,
            now,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.device.capabilities()
    }
}

pub(crate) struct Cutter<'a, D> {
    device: &'a mut D,
    mtu: usize,
    now: Instant,
}

impl<D: Device> Cutter<'_, D> {
    /// What finds no room is lost, and TCP sends it again.
    #[inline(never)]
    fn send(self, packet: &[u8]) {
        cut(packet, self.mtu, |headers, piece| {
            if let Some(token) = self.device.transmit(self.now) {
                token.consume(headers.len() + piece.len(), |out| {
                    let (head, rest) = out.split_at_mut(headers.len());
                    head.copy_from_slice(headers);
                    rest.copy_from_slice(piece);
                });
            }
        });
    }
}

impl<D: Device> TxToken for Cutter<'_, D> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.send(&packet);
        result
    }

    /// What the device was to cut is cut here.
    fn set_meta(&mut self, _meta: PacketMeta) {}
}

/// Gives the headers and the payload of each packet to `send`. Checksums are
/// filled in later.
fn cut(packet: &[u8], mtu: usize, mut send: impl FnMut(&[u8], &[u8])) {
    const FIN: u8 = 0x01;
    const PSH: u8 = 0x08;
    let is_ipv4 = packet.first().is_some_and(|first| first >> 4 == 4);
    let tcp = if is_ipv4 { IPV4_HEADER } else { IPV6_HEADER };
    let data = tcp
        + packet
            .get(tcp + 12)
            .map_or(0, |byte| usize::from(byte >> 4) * 4);
    let size = mtu.saturating_sub(data);
    let (Some((headers, payload)), 1..) = (packet.split_at_checked(data), size) else {
        return send(packet, &[]);
    };
    if payload.len() <= size {
        return send(headers, payload);
    }
    let mut headers = headers.to_vec();
    let sequence = headers[tcp + 4..].first_chunk::<4>();
    let sequence = sequence.map_or(0, |bytes| u32::from_be_bytes(*bytes));
    let flags = headers[tcp + 13];
    for (number, piece) in payload.chunks(size).enumerate() {
        let offset = number * size;
        let is_last = offset + piece.len() == payload.len();
        // The total length of IPv4, the payload's of IPv6.
        let (at, counted_from) = if is_ipv4 { (2, 0) } else { (4, tcp) };
        let length = (data - counted_from + piece.len()) as u16;
        headers[at..][..2].copy_from_slice(&length.to_be_bytes());
        let sequence = sequence.wrapping_add(offset as u32);
        headers[tcp + 4..][..4].copy_from_slice(&sequence.to_be_bytes());
        headers[tcp + 13] = if is_last { flags } else { flags & !(FIN | PSH) };
        send(&headers, piece);
    }
}
