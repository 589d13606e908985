//! Between smoltcp and the device: smoltcp writes IP packets; here they get an
//! Ethernet header and their checksums.
//!
//! smoltcp could do both. But it looks up a neighbour by comparing with all that
//! it knows, 32 at most, and asks for one a second, whoever it is; and it adds up
//! two bytes at a time, which on a target without vector instructions is most of
//! what a large packet costs. So its interface is one at the level of IP, which
//! knows no neighbours, and is told that the device does the checksums of IPv4,
//! UDP and TCP. Those that the device really does are left to it.

use core::num::NonZeroUsize;

use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Loopback, Medium, PacketMeta,
    TxToken,
};
use smoltcp::time::Instant;

use crate::announce;
use crate::checksum::{ETHERNET, IPV4_HEADER, IPV6_HEADER, Sum, TCP, UDP};
use crate::neighbors::Neighbors;
use crate::packet::Address;
use crate::stand_in::Nothing;

/// A network device, and what it says of the frames that it receives.
pub trait NetworkDevice: Device {
    /// Whether the device has verified the checksums of this frame; those of all
    /// others are verified here.
    fn is_verified(_frame: &Self::RxToken<'_>) -> bool {
        false
    }
}

/// It verifies no checksums.
impl NetworkDevice for Loopback {}

/// What every frame that goes out needs.
pub(crate) struct Outgoing {
    pub(crate) neighbors: Neighbors,
    pub(crate) fill: Fill,
    /// The checksum of the UDP datagram that goes out in fragments next; the first
    /// fragment carries it, and has not all that it is computed from.
    pub(crate) of_fragments: [u8; 2],
    pub(crate) now: Instant,
}

/// The checksums that the device leaves to us.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) ipv4: bool,
    pub(crate) udp: bool,
    pub(crate) tcp: bool,
}

impl Fill {
    pub(crate) fn of(capabilities: &DeviceCapabilities) -> Self {
        let ChecksumCapabilities { ipv4, udp, tcp, .. } = &capabilities.checksum;
        Self {
            ipv4: ipv4.tx(),
            udp: udp.tx(),
            tcp: tcp.tx(),
        }
    }
}

/// The device as smoltcp sees it. Receiving goes past it: what is received has
/// been looked at before smoltcp is asked.
pub(crate) struct Link<'d, D: ?Sized> {
    pub(crate) device: &'d mut D,
    pub(crate) outgoing: &'d mut Outgoing,
}

/// The capabilities of a device of IP packets on this device of frames.
pub(crate) fn ip_capabilities(mut capabilities: DeviceCapabilities) -> DeviceCapabilities {
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit -= ETHERNET;
    let done = ChecksumCapabilities::ignored();
    capabilities.checksum.ipv4 = done.ipv4;
    capabilities.checksum.udp = done.udp;
    capabilities.checksum.tcp = done.tcp;
    // Verified with the packet (`packet.rs`).
    capabilities.checksum.icmpv4 = Checksum::Tx;
    capabilities.checksum.icmpv6 = Checksum::Tx;
    // smoltcp takes this for the length of a packet.
    capabilities.segmentation.tcpv4 = capabilities
        .segmentation
        .tcpv4
        .and_then(|largest| NonZeroUsize::new(largest.get().saturating_sub(ETHERNET)));
    capabilities
}

impl<D: Device + ?Sized> Device for Link<'_, D> {
    type RxToken<'a>
        = Nothing
    where
        Self: 'a;
    type TxToken<'a>
        = Token<'a, D::TxToken<'a>>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Nothing, Self::TxToken<'_>)> {
        None
    }

    #[inline]
    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        Some(Token {
            token: self.device.transmit(now)?,
            outgoing: self.outgoing,
        })
    }

    /// smoltcp asks for it at every pass, and keeps what it was made with.
    #[inline]
    fn capabilities(&self) -> DeviceCapabilities {
        DeviceCapabilities::default()
    }
}

/// A frame to send, whose header and checksums are written once its packet is.
pub(crate) struct Token<'a, T> {
    pub(crate) token: T,
    pub(crate) outgoing: &'a mut Outgoing,
}

impl<T: TxToken> TxToken for Token<'_, T> {
    #[inline]
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Self { token, outgoing } = self;
        token.consume(ETHERNET + len, |frame| {
            let Some((ethernet, packet)) = frame.split_first_chunk_mut::<ETHERNET>() else {
                return f(&mut []);
            };
            let result = f(packet);
            let destination = outgoing.fill_in(packet);
            *ethernet = outgoing.header_to(destination);
            result
        })
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.token.set_meta(meta);
    }
}

impl Outgoing {
    /// The Ethernet header of a packet to this address. A packet to somebody who
    /// is not known (any more) is addressed to ourselves, so that it goes
    /// nowhere, and he is asked for: TCP sends it again.
    #[inline]
    fn header_to(&mut self, destination: Address) -> [u8; ETHERNET] {
        match self.neighbors.header_to(destination, self.now) {
            Some(header) => *header,
            None => self.other_header(destination),
        }
    }

    #[cold]
    fn other_header(&mut self, destination: Address) -> [u8; ETHERNET] {
        let group = announce::ethernet_of_group(destination.ip());
        let mac = group.unwrap_or_else(|| {
            if let Some(next_hop) = self.neighbors.next_hop(destination) {
                self.neighbors.question(next_hop);
            }
            self.neighbors.mac
        });
        self.neighbors.header(mac, destination)
    }

    /// Fills in the checksums of a packet that smoltcp wrote: no IPv4 options, no
    /// IPv6 extension headers in front of UDP or TCP, and 0 where they go.
    /// Returns where it goes.
    #[inline]
    fn fill_in(&self, packet: &mut [u8]) -> Address {
        let is_ipv4 = packet.first().is_some_and(|first| first >> 4 == 4);
        if is_ipv4 && let Some((header, payload)) = packet.split_first_chunk_mut::<IPV4_HEADER>() {
            if self.fill.ipv4 {
                let checksum = Sum::of_header(header).checksum();
                header[10..12].copy_from_slice(&checksum);
            }
            let [.., a, b, c, d, e, f, g, h] = *header;
            let (flags, offset) = (header[6] & 0x3f, header[7]);
            if flags | offset == 0 {
                self.fill_transport(&[a, b, c, d, e, f, g, h], header[9], payload);
            } else if (flags, offset, header[9]) == (0x20, 0, UDP)
                // No device sees the whole of it.
                && let Some(field) = payload.get_mut(6..8)
            {
                field.copy_from_slice(&self.of_fragments);
            }
            return Address::v4([e, f, g, h]);
        }
        let Some((header, payload)) = packet.split_first_chunk_mut::<IPV6_HEADER>() else {
            return Address(0);
        };
        if let Some(addresses) = header.last_chunk::<32>() {
            self.fill_transport(addresses, header[6], payload);
        }
        header
            .last_chunk()
            .map_or(Address(0), |to| Address::v6(*to))
    }

    #[inline]
    fn fill_transport<const N: usize>(
        &self,
        addresses: &[u8; N],
        protocol: u8,
        payload: &mut [u8],
    ) {
        let (fill, at) = match protocol {
            UDP => (self.fill.udp, 6),
            TCP => (self.fill.tcp, 16),
            _ => return,
        };
        if !fill {
            return;
        }
        let addresses = Sum::of_header(addresses);
        let sum = Sum::pseudo_header(addresses, protocol, payload.len()).plus(Sum::of(payload));
        let checksum = match protocol {
            UDP => sum.udp_checksum(),
            _ => sum.checksum(),
        };
        if let Some(field) = payload.get_mut(at..at + 2) {
            field.copy_from_slice(&checksum);
        }
    }
}
