//! The log, sent to another host by UDP, a line a datagram (Linux netconsole).
//!
//! While all is well the lines go through the network stack, which finds out
//! where the frames must go. The headers of the last frame are kept: with them
//! [`Template`] makes further frames when there is no stack any more.

use alloc::vec;
use core::net::SocketAddrV4;

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, PacketMeta};
use smoltcp::socket::udp;
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, HardwareAddress, IpAddress,
    IpEndpoint, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

/// The port that the lines come from, Linux's for netconsole.
const LOCAL_PORT: u16 = 6665;
/// Longest datagram; a longer line goes in pieces (Linux `MAX_PRINT_CHUNK`).
pub const MAX_LINE: usize = 1000;
/// Datagrams that wait for the device or for ARP.
const QUEUE: usize = 16;
/// Ethernet, IPv4 and UDP header.
const HEADERS: usize = 14 + 20 + 8;
/// Longest frame of a [`Template`].
pub const MAX_FRAME: usize = HEADERS + MAX_LINE;
const TIME_TO_LIVE: u8 = 64;

/// Sends lines to one host.
pub struct Netconsole {
    set: SocketSet<'static>,
    socket: SocketHandle,
    target: IpEndpoint,
    template: Option<Template>,
    line: [u8; MAX_LINE],
}

/// Where lines go, and how a frame gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    source_mac: EthernetAddress,
    /// The host's own, or that of the router on the way.
    destination_mac: EthernetAddress,
    source: Ipv4Address,
    target: Ipv4Address,
    port: u16,
}

impl Netconsole {
    /// Sends to `target`.
    pub fn new(target: SocketAddrV4) -> Self {
        let buffer =
            |bytes| udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; QUEUE], vec![0; bytes]);
        let mut socket = udp::Socket::new(buffer(1), buffer(QUEUE * MAX_LINE));
        // Fails only for port 0.
        let _ = socket.bind(LOCAL_PORT);
        let mut set = SocketSet::new(vec![]);
        let socket = set.add(socket);
        Self {
            set,
            socket,
            target: IpEndpoint::new(IpAddress::Ipv4(*target.ip()), target.port()),
            template: None,
            line: [0; MAX_LINE],
        }
    }

    /// How frames get there: what the last one said or, before the first one,
    /// by broadcast. `None` while the interface has no IPv4 address.
    pub(crate) fn template(&self, interface: &Interface) -> Option<Template> {
        let source = interface.ipv4_addr()?;
        if let Some(template) = self.template
            && template.source == source
        {
            return Some(template);
        }
        let IpAddress::Ipv4(target) = self.target.addr else {
            return None;
        };
        let HardwareAddress::Ethernet(source_mac) = interface.hardware_addr() else {
            return None;
        };
        Some(Template {
            source_mac,
            destination_mac: EthernetAddress::BROADCAST,
            source,
            target,
            port: self.target.port,
        })
    }

    /// Sends what waits, and lines from `next_line` as far as there is room:
    /// it writes one into the buffer and returns its length, `None` when there
    /// is none. Nothing is taken while the interface has no IPv4 address.
    pub(crate) fn poll<D: Device + ?Sized>(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        device: &mut D,
        mut next_line: impl FnMut(&mut [u8]) -> Option<usize>,
    ) {
        if interface.ipv4_addr().is_none() {
            return;
        }
        let socket = self.set.get_mut::<udp::Socket>(self.socket);
        while socket.can_send() && socket.send_queue() + MAX_LINE <= QUEUE * MAX_LINE {
            let Some(length) = next_line(&mut self.line) else {
                break;
            };
            let line = self.line.get(..length).unwrap_or(&self.line);
            if socket.send_slice(line, self.target).is_err() {
                // The address or port is 0: there is nowhere to send to.
                break;
            }
        }
        let mut device = Watched {
            device,
            target: self.target,
            seen: &mut self.template,
        };
        // Some more than the socket holds: a turn may be an ARP request.
        for _ in 0..QUEUE + 2 {
            if interface.poll_egress(now, &mut device, &mut self.set)
                == smoltcp::iface::PollResult::None
            {
                break;
            }
        }
    }

    /// Whether lines wait for room or for ARP.
    pub fn is_waiting(&self) -> bool {
        self.set.get::<udp::Socket>(self.socket).send_queue() > 0
    }
}

impl Template {
    /// Whether the hardware address on the way is known; else frames go to
    /// all.
    pub fn is_resolved(&self) -> bool {
        !self.destination_mac.is_broadcast()
    }

    /// Writes the frame of a line and returns its length. A line beyond
    /// [`MAX_LINE`] is cut; `None` when the buffer is too small.
    pub fn write(&self, line: &[u8], buffer: &mut [u8]) -> Option<usize> {
        let line = line.get(..MAX_LINE).unwrap_or(line);
        let length = HEADERS + line.len();
        let mut frame = EthernetFrame::new_unchecked(buffer.get_mut(..length)?);
        EthernetRepr {
            src_addr: self.source_mac,
            dst_addr: self.destination_mac,
            ethertype: EthernetProtocol::Ipv4,
        }
        .emit(&mut frame);
        let udp = UdpRepr {
            src_port: LOCAL_PORT,
            dst_port: self.port,
        };
        let ip = Ipv4Repr {
            src_addr: self.source,
            dst_addr: self.target,
            next_header: IpProtocol::Udp,
            payload_len: udp.header_len() + line.len(),
            hop_limit: TIME_TO_LIVE,
        };
        let checksums = ChecksumCapabilities::default();
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &checksums);
        udp.emit(
            &mut UdpPacket::new_unchecked(packet.payload_mut()),
            &ip.src_addr.into(),
            &ip.dst_addr.into(),
            line.len(),
            |payload| payload.copy_from_slice(line),
            &checksums,
        );
        Some(length)
    }

    /// Reads one from a frame to `target`.
    fn read(frame: &[u8], target: IpEndpoint) -> Option<Self> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        if ethernet.ethertype() != EthernetProtocol::Ipv4 {
            return None;
        }
        let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
        if ip.next_header() != IpProtocol::Udp || IpAddress::Ipv4(ip.dst_addr()) != target.addr {
            return None;
        }
        let udp = UdpPacket::new_checked(ip.payload()).ok()?;
        (udp.dst_port() == target.port).then(|| Self {
            source_mac: ethernet.src_addr(),
            destination_mac: ethernet.dst_addr(),
            source: ip.src_addr(),
            target: ip.dst_addr(),
            port: target.port,
        })
    }
}

/// A device whose sent frames are looked at.
struct Watched<'a, D: ?Sized> {
    device: &'a mut D,
    target: IpEndpoint,
    seen: &'a mut Option<Template>,
}

struct Token<'a, T> {
    token: T,
    target: IpEndpoint,
    seen: &'a mut Option<Template>,
}

impl<D: Device + ?Sized> Device for Watched<'_, D> {
    type RxToken<'a>
        = D::RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Token<'a, D::TxToken<'a>>
    where
        Self: 'a;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let (received, token) = self.device.receive(now)?;
        let token = Token {
            token,
            target: self.target,
            seen: self.seen,
        };
        Some((received, token))
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        Some(Token {
            token: self.device.transmit(now)?,
            target: self.target,
            seen: self.seen,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.device.capabilities()
    }
}

impl<T: phy::TxToken> phy::TxToken for Token<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        self.token.consume(length, |frame| {
            let result = f(frame);
            if let Some(template) = Template::read(frame, self.target) {
                *self.seen = Some(template);
            }
            result
        })
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.token.set_meta(meta);
    }
}
