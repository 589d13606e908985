//! The UDP echo for senders that have been answered lately: the path that this
//! project measures.
//!
//! A datagram goes through an interface and two sockets of smoltcp like any
//! other, at once and alone, so that nothing is ever queued. What makes it short
//! is what the interface has not to do: it is one at the level of IP, since the
//! [`Flow`](crate::flow) knows the Ethernet header of the answer; it has no
//! addresses to compare with, since the flow is to one that was compared; each
//! socket is alone in its set; and the answer has the checksum of the request,
//! whose words are the same in another order (RFC 1071, 2 A).

use alloc::boxed::Box;
use alloc::vec;

use smoltcp::iface::{self, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::socket::udp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress};

use crate::ECHO_PORT;
use crate::checksum::{Duties, ETHERNET, Token};
use crate::flow::Flows;
use crate::ingress::{OneFrame, PlainEcho};
use crate::udp::{buffer, is_answerer, note_received, note_sent, opened, reopen};

/// See the module.
pub(crate) struct FastEcho {
    pub(crate) flows: Flows,
    interface: Box<Interface>,
    receive: (SocketSet<'static>, SocketHandle),
    transmit: (SocketSet<'static>, SocketHandle),
    /// Of a frame that can be answered in one.
    max_frame: usize,
}

impl FastEcho {
    /// `mac` is ours, `ip_mtu` the largest IP packet of the device in bytes.
    pub(crate) fn new(mac: EthernetAddress, ip_mtu: usize, now: Instant) -> Self {
        let config = iface::Config::new(HardwareAddress::Ip);
        let mut interface = Box::new(Interface::new(config, &mut IpLink { ip_mtu }, now));
        // Which are ours, the flow knows.
        interface.set_any_ip(true);
        let alone = |socket| {
            let mut set = SocketSet::new(vec![]);
            let handle = set.add(socket);
            (set, handle)
        };
        Self {
            flows: Flows::new(mac),
            interface,
            receive: alone(opened(buffer(1, ip_mtu), buffer(0, 0), ECHO_PORT)),
            transmit: alone(opened(buffer(0, 0), buffer(1, ip_mtu), ECHO_PORT)),
            max_frame: ETHERNET + ip_mtu,
        }
    }

    /// Whether [`Self::answer`] may have this frame, and what it needs to know:
    /// the Ethernet header of the answer and the checksum of the datagram, if
    /// that was verified. What it says no to may be an echo request all the same,
    /// also from a known sender.
    #[inline(always)]
    pub(crate) fn recognize(
        &mut self,
        frame: &[u8],
        duties: &Duties,
        now: Instant,
    ) -> Option<([u8; ETHERNET], Option<[u8; 2]>)> {
        let datagram = PlainEcho::parse(frame)?;
        if is_answerer(datagram.port) {
            return None;
        }
        let header = self.header(frame, now)?;
        Some((header, datagram.verify(duties)?))
    }

    /// The Ethernet header for the answer to a datagram for the echo port, if
    /// [`Self::answer`] may have it.
    #[inline(always)]
    pub(crate) fn header(&mut self, frame: &[u8], now: Instant) -> Option<[u8; ETHERNET]> {
        if frame.len() > self.max_frame {
            return None;
        }
        Some(self.flows.find(frame, now)?.answer)
    }

    /// Answers a datagram for the echo port behind this Ethernet header.
    /// `checksum` is that of the datagram, if it was verified.
    #[inline(always)]
    pub(crate) fn answer<T: phy::TxToken>(
        &mut self,
        now: Instant,
        frame: &[u8],
        header: &[u8; ETHERNET],
        checksum: Option<[u8; 2]>,
        token: Token<'_, T>,
    ) {
        let packet = frame.get(ETHERNET..).unwrap_or_default();
        let (set, handle) = &mut self.receive;
        let mut device = OneFrame::new(packet, PacketMeta::default(), Nowhere);
        self.interface.poll_ingress_single(now, &mut device, set);
        // smoltcp may have found it too short or in contradiction to itself.
        let Ok((payload, from)) = set.get_mut::<udp::Socket>(*handle).recv() else {
            return;
        };
        note_received(payload, &from);
        let (set, handle) = &mut self.transmit;
        let socket = set.get_mut::<udp::Socket>(*handle);
        note_sent(payload, &from);
        if socket.send_slice(payload, from).is_err() {
            return;
        }
        let mut device = OneAnswer {
            token: Some(token),
            header,
            checksum,
        };
        let result = self.interface.poll_egress(now, &mut device, set);
        if result == PollResult::None {
            self.forget();
        }
    }

    /// [`Self::answer`] as a function of its own: that is all in its caller's.
    #[inline(never)]
    pub(crate) fn answer_apart<T: phy::TxToken>(
        &mut self,
        now: Instant,
        frame: &[u8],
        header: &[u8; ETHERNET],
        checksum: Option<[u8; 2]>,
        token: Token<'_, T>,
    ) {
        self.answer(now, frame, header, checksum, token);
    }

    /// Takes back an answer that was not sent; the next one finds room again.
    #[cold]
    fn forget(&mut self) {
        let (set, handle) = &mut self.transmit;
        reopen(set.get_mut::<udp::Socket>(*handle), ECHO_PORT);
    }
}

/// Sends one IP packet behind an Ethernet header.
struct OneAnswer<'a, T> {
    token: Option<Token<'a, T>>,
    header: &'a [u8; ETHERNET],
    checksum: Option<[u8; 2]>,
}

struct Answer<'a, T> {
    token: Token<'a, T>,
    header: &'a [u8; ETHERNET],
    checksum: Option<[u8; 2]>,
}

impl<'a, T: phy::TxToken> Device for OneAnswer<'a, T> {
    type RxToken<'b>
        = Nothing
    where
        Self: 'b;
    type TxToken<'b>
        = Answer<'a, T>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Nothing, Answer<'a, T>)> {
        None
    }

    #[inline]
    fn transmit(&mut self, _now: Instant) -> Option<Answer<'a, T>> {
        Some(Answer {
            token: self.token.take()?,
            header: self.header,
            checksum: self.checksum,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // The interface keeps those that it was made with.
        DeviceCapabilities::default()
    }
}

impl<T: phy::TxToken> phy::TxToken for Answer<'_, T> {
    #[inline]
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.token
            .consume_packet(self.header, self.checksum, len, f)
    }
}

/// What the interface is made with.
struct IpLink {
    ip_mtu: usize,
}

impl Device for IpLink {
    type RxToken<'a> = Nothing;
    type TxToken<'a> = Nowhere;

    fn receive(&mut self, _now: Instant) -> Option<(Nothing, Nowhere)> {
        None
    }

    fn transmit(&mut self, _now: Instant) -> Option<Nowhere> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.ip_mtu;
        // See `checksum.rs`.
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }
}

/// No frame is ever received by this.
enum Nothing {}

impl phy::RxToken for Nothing {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, _f: F) -> R {
        match self {}
    }
}

/// Where smoltcp's own answers would go, ICMP errors. A datagram for a socket
/// that is there causes none.
pub(crate) struct Nowhere;

impl phy::TxToken for Nowhere {
    #[cold]
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        f(&mut vec![0; len])
    }
}
