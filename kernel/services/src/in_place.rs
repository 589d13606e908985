//! Datagrams in place (`udp=in-place`): the answer is written straight behind the
//! headers that it needs, with no socket and no network stack between.
//!
//! Everything is checked that a socket checks: that the datagram is for us and
//! intact, and that the way back is known (all of it before this is called).
//! What goes missing is what sockets have beside that: a queue between stack and
//! service, fragments, ICMP errors, and the trace of the way through them. What
//! cannot be answered here goes the way of the sockets.

use smoltcp::phy::TxToken;

use crate::checksum::{ETHERNET, IPV4_HEADER, IPV6_HEADER, Sum, UDP};
use crate::datagram::DatagramService;
use crate::link::Outgoing;
use crate::packet::{Datagram, Packet, UDP_HEADER};

/// Of the packets that are sent (smoltcp's default).
pub(crate) const HOP_LIMIT: u8 = 64;

/// The ends of a datagram that is sent.
pub(crate) struct Ends<'a> {
    pub(crate) header: &'a [u8; ETHERNET],
    pub(crate) addresses: Addresses<'a>,
    pub(crate) from: u16,
    pub(crate) to: u16,
}

/// Ours and the other's, as they are in a packet.
pub(crate) enum Addresses<'a> {
    /// As one word.
    V4(u64),
    /// As they are in one that came: the other's is the first.
    V6(&'a [u8; 32]),
}

impl Ends<'_> {
    /// Bytes in a frame before the payload.
    #[inline(always)]
    pub(crate) fn headers(&self) -> usize {
        let ip = match self.addresses {
            Addresses::V4(_) => IPV4_HEADER,
            Addresses::V6(_) => IPV6_HEADER,
        };
        ETHERNET + ip + UDP_HEADER
    }

    /// Writes a datagram into a frame that is [`Self::headers`] longer than the
    /// payload that `payload` writes. `fill_ipv4` and `fill_udp` say which
    /// checksums are ours to fill in.
    #[inline(always)]
    pub(crate) fn write(
        &self,
        frame: &mut [u8],
        (fill_ipv4, fill_udp): (bool, bool),
        payload: impl FnOnce(&mut [u8]),
    ) {
        let Some((ethernet, packet)) = frame.split_first_chunk_mut::<ETHERNET>() else {
            return;
        };
        *ethernet = *self.header;
        let (addresses, datagram) = match &self.addresses {
            Addresses::V4(addresses) => {
                let length = packet.len();
                let Some((header, datagram)) = packet.split_first_chunk_mut::<IPV4_HEADER>() else {
                    return;
                };
                let [high, low] = (length as u16).to_be_bytes();
                // Version and length; "don't fragment" (RFC 791, 3.1).
                *header = [
                    0x45, 0, high, low, 0, 0, 0x40, 0, HOP_LIMIT, UDP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                ];
                let addresses = addresses.to_ne_bytes();
                header[12..].copy_from_slice(&addresses);
                if fill_ipv4 {
                    let checksum = Sum::of_header(header).checksum();
                    header[10..12].copy_from_slice(&checksum);
                }
                (Sum::of_header(&addresses), datagram)
            }
            Addresses::V6(addresses) => {
                let Some((header, datagram)) = packet.split_first_chunk_mut::<IPV6_HEADER>() else {
                    return;
                };
                let [high, low] = (datagram.len() as u16).to_be_bytes();
                header[..8].copy_from_slice(&[0x60, 0, 0, 0, high, low, UDP, HOP_LIMIT]);
                header[8..24].copy_from_slice(&addresses[16..]);
                header[24..].copy_from_slice(&addresses[..16]);
                (Sum::of_header(addresses), datagram)
            }
        };
        let length = datagram.len();
        let Some((header, rest)) = datagram.split_first_chunk_mut::<UDP_HEADER>() else {
            return;
        };
        let [a, b] = self.from.to_be_bytes();
        let [c, d] = self.to.to_be_bytes();
        let [e, f] = (length as u16).to_be_bytes();
        *header = [a, b, c, d, e, f, 0, 0];
        payload(rest);
        if fill_udp {
            fill_in(Sum::pseudo_header(addresses, UDP, length), datagram);
        }
    }
}

/// Fills in the checksum of a datagram with this pseudo-header. Apart: what writes the
/// headers is then short enough to be put where they are known.
#[inline(never)]
fn fill_in(pseudo_header: Sum, datagram: &mut [u8]) {
    let checksum = pseudo_header.plus(Sum::of(datagram)).udp_checksum();
    if let Some(field) = datagram.get_mut(6..8) {
        field.copy_from_slice(&checksum);
    }
}

/// Answers a datagram to an address of ours by the neighbour in a place, in a frame as
/// long as may be; gives the token back if this way cannot.
#[inline(always)]
pub(crate) fn answer<S: DatagramService, T: TxToken>(
    service: &mut S,
    packet: &Packet<'_>,
    datagram: &Datagram<'_>,
    (place, max_frame): (usize, usize),
    outgoing: &mut Outgoing,
    token: T,
) -> Result<(), T> {
    let Some(length) = service.length(datagram.payload) else {
        return Ok(());
    };
    let now = outgoing.now;
    let fill = (outgoing.fill.ipv4, outgoing.fill.udp);
    let (Some(header), Some(addresses)) = (
        outgoing.neighbors.header_at(place, now),
        addresses_of_answer(packet),
    ) else {
        return Err(token);
    };
    let ends = Ends {
        header,
        addresses,
        from: datagram.to,
        to: datagram.from,
    };
    let frame = ends.headers() + length;
    if frame > max_frame {
        return Err(token);
    }
    let request = datagram.payload;
    token.consume(frame, |frame| {
        ends.write(frame, fill, |answer| service.answer(request, answer));
    });
    Ok(())
}

/// The addresses of the answer to a packet.
#[inline(always)]
fn addresses_of_answer<'f>(packet: &Packet<'f>) -> Option<Addresses<'f>> {
    let ip = packet.frame.get(ETHERNET..)?;
    Some(if packet.is_ipv4 {
        let addresses = ip.first_chunk::<IPV4_HEADER>()?.last_chunk()?;
        // Changed about.
        Addresses::V4(u64::from_ne_bytes(*addresses).rotate_left(32))
    } else {
        Addresses::V6(ip.first_chunk::<IPV6_HEADER>()?.last_chunk()?)
    })
}
