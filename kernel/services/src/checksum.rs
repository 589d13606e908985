//! The Internet checksum (RFC 1071) for whole packets, between smoltcp and the
//! device.
//!
//! smoltcp adds up two bytes at a time. On a target without vector instructions,
//! which the guest's is, that is most of what a large packet costs. This layer
//! tells smoltcp that the device does the checksums of IPv4, UDP and TCP, does
//! them eight bytes at a time, and leaves alone those that the device really
//! does. ICMP stays with smoltcp.

use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, PacketMeta, TxToken};
use smoltcp::time::Instant;

pub(crate) const ETHERNET: usize = 14;
pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
/// An IPv4 header without options, and UDP's.
pub(crate) const IPV4_UDP: usize = IPV4_HEADER + 8;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// A sum in one's complement, byte order as in memory: the sum does not care
/// (RFC 1071, 2 B). It is folded to 16 bits only when it is asked for; a packet's
/// words do not overflow it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum(u128);

impl Sum {
    /// The sum over a slice that begins at an even offset of the packet.
    #[inline(always)]
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let (mut sum, mut carries) = (0u64, 0u64);
        // One instruction a word: each addition takes in the carry of the one
        // before it, which has the same weight (RFC 1071, 2 C).
        let mut add = |words: &[u8]| {
            let mut carry = false;
            for word in words.as_chunks().0 {
                (sum, carry) = sum.carrying_add(u64::from_ne_bytes(*word), carry);
            }
            carries += u64::from(carry);
        };
        let (blocks, mut rest) = bytes.as_chunks::<128>();
        for block in blocks {
            add(block);
        }
        // One step a bit of the length: a loop would be unrolled.
        if let Some((words, after)) = rest.split_first_chunk::<64>() {
            add(words);
            rest = after;
        }
        if let Some((words, after)) = rest.split_first_chunk::<32>() {
            add(words);
            rest = after;
        }
        if let Some((words, after)) = rest.split_first_chunk::<16>() {
            add(words);
            rest = after;
        }
        if let Some((words, after)) = rest.split_first_chunk::<8>() {
            add(words);
            rest = after;
        }
        let mut sum = u128::from(carries) << 64 | u128::from(sum);
        if let Some((word, after)) = rest.split_first_chunk() {
            sum += u128::from(u32::from_ne_bytes(*word));
            rest = after;
        }
        if let Some((word, after)) = rest.split_first_chunk() {
            sum += u128::from(u16::from_ne_bytes(*word));
            rest = after;
        }
        if let Some(last) = rest.first() {
            sum += u128::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(sum)
    }

    /// The sum over a header, whose length is known when this is compiled.
    #[inline]
    pub(crate) fn of_header<const N: usize>(bytes: &[u8; N]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut sum = 0;
        for word in words {
            sum += u128::from(u64::from_ne_bytes(*word));
        }
        Self(sum).plus(Self::of(rest))
    }

    /// Adds another sum.
    #[inline]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The sum over the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1), of which
    /// `addresses` is the sum over both addresses.
    #[inline]
    pub(crate) fn pseudo_header(addresses: Self, protocol: u8, length: usize) -> Self {
        // IPv6 has a length of 32 bits there, but no packet here is that long.
        let rest = u32::from((length as u16).to_be()) + u32::from(u16::from(protocol).to_be());
        addresses.plus(Self(rest.into()))
    }

    /// Whether this is the sum over something with a right checksum in it.
    #[inline]
    pub(crate) fn is_right(self) -> bool {
        self.fold() == 0xffff
    }

    /// The checksum that makes it right, as it is in memory.
    #[inline]
    fn checksum(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }

    /// The same for UDP, where 0 means that there is none (RFC 768).
    #[inline]
    pub(crate) fn udp_checksum(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            checksum => checksum,
        }
    }

    /// Brings the carries back in at the bottom.
    #[inline]
    fn fold(self) -> u16 {
        let (sum, carry) = (self.0 as u64).overflowing_add((self.0 >> 64) as u64);
        let sum = sum + u64::from(carry);
        // A word and itself with its halves swapped: the upper half then has the
        // sum of both, and the carry out of the lower one.
        let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
        (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
    }
}

/// What is done in this layer, each way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Duties {
    ipv4: Duty,
    udp: Duty,
    tcp: Duty,
}

#[derive(Clone, Copy, Debug)]
struct Duty {
    verify: bool,
    fill: bool,
}

impl Duties {
    /// The device does nothing.
    pub(crate) const ALL: Self = Self::everywhere(true);
    /// The device does everything.
    #[cfg(test)]
    pub(crate) const NONE: Self = Self::everywhere(false);

    const fn everywhere(here: bool) -> Self {
        let duty = Duty {
            verify: here,
            fill: here,
        };
        Self {
            ipv4: duty,
            udp: duty,
            tcp: duty,
        }
    }
}

impl Duties {
    pub(crate) fn of<D: Device + ?Sized>(device: &D) -> Self {
        let ChecksumCapabilities { ipv4, udp, tcp, .. } = device.capabilities().checksum;
        let [ipv4, udp, tcp] = [ipv4, udp, tcp].map(|checksum| Duty {
            verify: checksum.rx(),
            fill: checksum.tx(),
        });
        Self { ipv4, udp, tcp }
    }

    /// Whether the checksum of a received IPv4 header is verified here.
    #[inline]
    pub(crate) fn verify_ipv4(&self) -> bool {
        self.ipv4.verify
    }

    /// Whether that of a received UDP datagram is.
    #[inline]
    pub(crate) fn verify_udp(&self) -> bool {
        self.udp.verify
    }

    fn transport(&self, protocol: u8) -> Option<(Duty, usize)> {
        match protocol {
            UDP => Some((self.udp, 6)),
            TCP => Some((self.tcp, 16)),
            _ => None,
        }
    }
}

/// A received IPv4 packet.
pub(crate) struct Ipv4<'a> {
    /// The header without options.
    pub(crate) header: &'a [u8; IPV4_HEADER],
    options: &'a [u8],
    /// Without what Ethernet padded.
    pub(crate) payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    #[inline]
    pub(crate) fn parse(packet: &'a [u8]) -> Option<Self> {
        let header = packet.first_chunk::<IPV4_HEADER>()?;
        let options = (usize::from(header[0] & 0xf) * 4).checked_sub(IPV4_HEADER)?;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let (options, payload) = packet.get(IPV4_HEADER..total)?.split_at_checked(options)?;
        Some(Self {
            header,
            options,
            payload,
        })
    }

    /// The sum over both addresses.
    #[inline]
    pub(crate) fn addresses(&self) -> Sum {
        let [.., a, b, c, d, e, f, g, h] = *self.header;
        Sum::of_header(&[a, b, c, d, e, f, g, h])
    }

    /// Whether the header's checksum is right, or not ours to verify.
    #[inline]
    pub(crate) fn is_header_right(&self, duties: &Duties) -> bool {
        let mut sum = Sum::of_header(self.header);
        if !self.options.is_empty() {
            sum = sum.plus(Sum::of(self.options));
        }
        !duties.ipv4.verify || sum.is_right()
    }
}

/// What is known of the checksum of a UDP datagram or TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was added up and is right.
    Right([u8; 2]),
    /// There is none, or it is not ours to verify. What is too short for one is
    /// for smoltcp to refuse.
    Unknown,
    Wrong,
}

/// Verifies the checksum of a whole UDP datagram or TCP segment.
#[inline]
pub(crate) fn verify_transport(
    addresses: Sum,
    is_ipv4: bool,
    protocol: u8,
    segment: &[u8],
    duties: &Duties,
) -> Verdict {
    let Some((duty, at)) = duties.transport(protocol) else {
        return Verdict::Unknown;
    };
    let checksum = segment.get(at..).and_then(<[u8]>::first_chunk::<2>);
    // RFC 768: none in this datagram. RFC 8200, 8.1: IPv6 has no such thing.
    let is_optional = is_ipv4 && protocol == UDP;
    if !duty.verify || (is_optional && checksum == Some(&[0, 0])) {
        return Verdict::Unknown;
    }
    let sum = Sum::pseudo_header(addresses, protocol, segment.len()).plus(Sum::of(segment));
    match checksum {
        _ if !sum.is_right() => Verdict::Wrong,
        Some(checksum) => Verdict::Right(*checksum),
        None => Verdict::Unknown,
    }
}

/// A hardware address that no frame goes to.
pub(crate) const NOBODY: [u8; 6] = [0; 6];

/// The device, with this layer on top. Receiving goes past it, because what is
/// received is looked at before smoltcp is asked (`ingress.rs`).
pub(crate) struct Checked<'d, D: ?Sized> {
    pub(crate) device: &'d mut D,
    pub(crate) sending: Sending,
}

/// What is known to all tokens of the layer. They have it by one reference,
/// because a token is moved several times for each packet.
pub(crate) struct Sending {
    duties: Duties,
    /// The checksum of the UDP datagram that goes out in fragments next; the first
    /// fragment carries it, and has not all that it is computed from.
    pub(crate) of_fragments: [u8; 2],
    /// The hardware address that the last frame was sent to.
    pub(crate) sent_to: [u8; 6],
}

impl<'d, D: Device + ?Sized> Checked<'d, D> {
    pub(crate) fn new(device: &'d mut D, duties: Duties) -> Self {
        Self {
            device,
            sending: Sending {
                duties,
                of_fragments: [0, 0],
                sent_to: NOBODY,
            },
        }
    }
}

impl<D: Device + ?Sized> Device for Checked<'_, D> {
    type RxToken<'a>
        = D::RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Token<'a, D::TxToken<'a>>
    where
        Self: 'a;

    #[inline]
    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let (received, token) = self.device.receive(now)?;
        let token = Token {
            token,
            sending: &mut self.sending,
        };
        Some((received, token))
    }

    #[inline]
    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        Some(Token {
            token: self.device.transmit(now)?,
            sending: &mut self.sending,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = self.device.capabilities();
        let done = ChecksumCapabilities::ignored();
        capabilities.checksum.ipv4 = done.ipv4;
        capabilities.checksum.udp = done.udp;
        capabilities.checksum.tcp = done.tcp;
        capabilities
    }
}

/// A frame to send, whose checksums are filled in once it is written.
pub(crate) struct Token<'a, T> {
    token: T,
    sending: &'a mut Sending,
}

impl<T: TxToken> Token<'_, T> {
    /// Gives the token away; returns the hardware address that something was
    /// sent to with it.
    pub(crate) fn watch(self, f: impl FnOnce(Token<'_, T>)) -> Option<[u8; 6]> {
        let Self { token, sending } = self;
        sending.sent_to = NOBODY;
        f(Token {
            token,
            sending: &mut *sending,
        });
        (sending.sent_to != NOBODY).then_some(sending.sent_to)
    }

    /// Sends an IP packet behind an Ethernet header that is known, and, if that
    /// is known too, with this UDP checksum.
    #[inline(always)]
    pub(crate) fn consume_packet<R>(
        self,
        ethernet: &[u8; ETHERNET],
        checksum: Option<[u8; 2]>,
        len: usize,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        self.token.consume(ETHERNET + len, |frame| {
            let Some((header, packet)) = frame.split_first_chunk_mut::<ETHERNET>() else {
                return f(&mut []);
            };
            *header = *ethernet;
            let result = f(packet);
            match (packet.first_chunk_mut::<IPV4_UDP>(), checksum) {
                // It has no options: smoltcp writes none.
                (Some(headers), Some(checksum)) if ethernet[12..] == [0x08, 0x00] => {
                    fill_known(headers, &self.sending.duties, checksum);
                }
                _ => {
                    let ethertype = [ethernet[12], ethernet[13]];
                    fill(ethertype, packet, self.sending, checksum);
                }
            }
            result
        })
    }
}

impl<T: TxToken> TxToken for Token<'_, T> {
    #[inline]
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.token.consume(len, |frame| {
            let result = f(frame);
            if let Some((ethernet, packet)) = frame.split_first_chunk_mut::<ETHERNET>() {
                self.sending.sent_to.copy_from_slice(&ethernet[..6]);
                let ethertype = [ethernet[12], ethernet[13]];
                fill(ethertype, packet, self.sending, None);
            }
            result
        })
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.token.set_meta(meta);
    }
}

/// [`fill`] for the headers of an unfragmented IPv4 packet with a UDP datagram
/// in it, whose checksum is known.
#[inline]
fn fill_known(headers: &mut [u8; IPV4_UDP], duties: &Duties, checksum: [u8; 2]) {
    if duties.ipv4.fill
        && let Some(header) = headers.first_chunk::<IPV4_HEADER>()
    {
        let checksum = Sum::of_header(header).checksum();
        headers[10..12].copy_from_slice(&checksum);
    }
    if duties.udp.fill {
        headers[IPV4_HEADER + 6..].copy_from_slice(&checksum);
    }
}

/// Fills in a packet that smoltcp wrote: no IPv4 options, no IPv6 extension
/// headers in front of UDP or TCP, and 0 where the checksums go. `known` is the
/// checksum of UDP or TCP, if it needs no computing.
#[inline]
fn fill(ethertype: [u8; 2], packet: &mut [u8], sending: &Sending, known: Option<[u8; 2]>) {
    let duties = &sending.duties;
    match ethertype {
        [0x08, 0x00] => {
            let Some((header, payload)) = packet.split_first_chunk_mut::<IPV4_HEADER>() else {
                return;
            };
            if duties.ipv4.fill {
                let checksum = Sum::of_header(header).checksum();
                header[10..12].copy_from_slice(&checksum);
            }
            let (flags, offset) = (header[6] & 0x3f, header[7]);
            if flags | offset == 0 {
                let [.., a, b, c, d, e, f, g, h] = *header;
                let addresses = [a, b, c, d, e, f, g, h];
                fill_transport(&addresses, header[9], payload, duties, known);
            } else if (flags, offset, header[9]) == (0x20, 0, UDP)
                // No device sees the whole of it.
                && let Some(field) = payload.get_mut(6..8)
            {
                field.copy_from_slice(&sending.of_fragments);
            }
        }
        [0x86, 0xdd] => {
            if let Some((header, payload)) = packet.split_first_chunk_mut::<IPV6_HEADER>()
                && let Some(addresses) = header.last_chunk::<32>()
            {
                fill_transport(addresses, header[6], payload, duties, known);
            }
        }
        _ => {}
    }
}

#[inline]
fn fill_transport<const N: usize>(
    addresses: &[u8; N],
    protocol: u8,
    payload: &mut [u8],
    duties: &Duties,
    known: Option<[u8; 2]>,
) {
    let Some((duty, at)) = duties.transport(protocol) else {
        return;
    };
    if !duty.fill {
        return;
    }
    let checksum = known.unwrap_or_else(|| {
        let addresses = Sum::of_header(addresses);
        let sum = Sum::pseudo_header(addresses, protocol, payload.len()).plus(Sum::of(payload));
        match protocol {
            UDP => sum.udp_checksum(),
            _ => sum.checksum(),
        }
    });
    if let Some(field) = payload.get_mut(at..at + 2) {
        field.copy_from_slice(&checksum);
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// RFC 1071, 4.1, in the plainest way.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).checksum(), (!0xddf2u16).to_be_bytes());
    }

    #[test]
    fn the_greatest_sums_are_folded() {
        for length in [0, 1, 2, 7, 8, 9, 128, 255, 256, 65_535] {
            let bytes = alloc::vec![0xff; length];
            assert_eq!(
                Sum::of(&bytes).checksum(),
                plain(&bytes).to_be_bytes(),
                "{length}"
            );
        }
        assert_eq!(Sum(u128::MAX).fold(), 0xffff);
        assert_eq!(Sum(0x1_0000_ffff).fold(), 1);
    }

    proptest! {
        #[test]
        fn it_is_what_the_rfc_says(bytes in vec(any::<u8>(), 0..600), split in 0usize..300) {
            let expected = plain(&bytes).to_be_bytes();
            prop_assert_eq!(Sum::of(&bytes).checksum(), expected);
            let (first, second) = bytes.split_at((split * 2).min(bytes.len()));
            prop_assert_eq!(Sum::of(second).plus(Sum::of(first)).checksum(), expected);
        }
    }
}
