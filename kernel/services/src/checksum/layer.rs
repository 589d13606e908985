//! The layer between smoltcp and the device.

use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, PacketMeta, TxToken};
use smoltcp::time::Instant;

use super::{Duties, ETHERNET, IPV4_HEADER, IPV4_UDP, IPV6_HEADER, Sum, UDP};

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
