//! UDP services by sockets, the ordinary way.
//!
//! Each service has its sockets for itself, so that no datagram is offered to
//! another one's: smoltcp asks every socket of a set in turn. One receives and
//! one sends, because smoltcp lends only one of a socket's buffers at a time.
//! A datagram goes through at once, from a sender whose hardware address is
//! known, so that nothing is ever queued.

use alloc::vec;

use kickpath_trace::{Event, NO_QUEUE, tracepoint};
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::TxToken;
use smoltcp::socket::udp;
use smoltcp::wire::{IPV4_HEADER_LEN, IpAddress, IpProtocol, UDP_HEADER_LEN};

use crate::checksum::{ETHERNET, Sum};
use crate::datagram::DatagramService;
use crate::link::{Outgoing, Token};
use crate::stand_in::{Nowhere, OneFrame};

/// The largest datagram that comes in fragments.
pub(crate) const MAX_DATAGRAM: usize = 65_535;
/// Bytes of the largest answer; smoltcp's fragmentation buffer bounds it.
const MAX_ANSWER: usize = 16 * 1024;

pub(crate) fn buffer(datagrams: usize, bytes: usize) -> udp::PacketBuffer<'static> {
    udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; datagrams], vec![0; bytes])
}

/// Opens `socket` at `port` with empty buffers, whatever it held before.
fn reopen(socket: &mut udp::Socket<'_>, port: u16) {
    socket.close();
    // A closed socket binds to any port but 0, and no port here is 0.
    let bound = socket.bind(port);
    debug_assert_eq!(bound, Ok(()));
}

pub(crate) type Alone = (SocketSet<'static>, SocketHandle);

/// A socket that is open at `port`, alone in its set.
pub(crate) fn alone(
    receive: udp::PacketBuffer<'static>,
    transmit: udp::PacketBuffer<'static>,
    port: u16,
) -> Alone {
    let mut socket = udp::Socket::new(receive, transmit);
    reopen(&mut socket, port);
    let mut set = SocketSet::new(vec![]);
    let handle = set.add(socket);
    (set, handle)
}

pub(crate) struct Sockets<S> {
    pub(crate) service: S,
    receive: Alone,
    transmit: Alone,
    /// Datagrams with a larger payload go out in fragments.
    unfragmented: usize,
}

impl<S: DatagramService> Sockets<S> {
    /// `largest` is the payload of the largest datagram that it takes.
    pub(crate) fn new(service: S, largest: usize, ip_mtu: usize) -> Self {
        Self {
            service,
            receive: alone(buffer(1, largest), buffer(0, 0), S::PORT),
            transmit: alone(buffer(0, 0), buffer(1, largest.min(MAX_ANSWER)), S::PORT),
            unfragmented: ip_mtu.saturating_sub(IPV4_HEADER_LEN + UDP_HEADER_LEN),
        }
    }

    /// Hands the IP packet in a frame to the socket, and answers. Returns whether
    /// fragments of the answer are left to be sent.
    #[inline(never)]
    pub(crate) fn ingest<T: TxToken>(
        &mut self,
        interface: &mut Interface,
        frame: &[u8],
        outgoing: &mut Outgoing,
        token: T,
    ) -> bool {
        let now = outgoing.now;
        let bytes = frame.get(ETHERNET..).unwrap_or_default();
        let (set, handle) = &mut self.receive;
        interface.poll_ingress_single(now, &mut OneFrame::new(bytes, Nowhere), set);
        // smoltcp may have found it too short or in contradiction to itself, or
        // it was a fragment.
        let Ok((request, from)) = set.get_mut::<udp::Socket>(*handle).recv() else {
            return false;
        };
        tracepoint!(
            Event::SocketReceive,
            NO_QUEUE,
            request.len() as u64,
            u64::from(from.endpoint.port)
        );
        let Some(length) = self.service.length(request) else {
            return false;
        };
        let (set, handle) = &mut self.transmit;
        let socket = set.get_mut::<udp::Socket>(*handle);
        tracepoint!(
            Event::SocketSend,
            NO_QUEUE,
            length as u64,
            u64::from(from.endpoint.port)
        );
        let Ok(answer) = socket.send(length, from) else {
            return false;
        };
        self.service.answer(request, answer);
        let in_fragments = length > self.unfragmented;
        if in_fragments {
            let checksum = checksum_of_fragments(S::PORT, answer, &from);
            outgoing.of_fragments = checksum.unwrap_or_default();
            if checksum.is_none() {
                // smoltcp does not fragment IPv6.
                reopen(socket, S::PORT);
                return false;
            }
        }
        let mut device = OneFrame::answer(Token { token, outgoing });
        if interface.poll_egress(now, &mut device, set) == PollResult::None {
            // Not sent: the next one finds room again.
            reopen(set.get_mut::<udp::Socket>(*handle), S::PORT);
        }
        in_fragments
    }
}

/// The checksum for the first fragment of a datagram by IPv4.
#[cold]
fn checksum_of_fragments(port: u16, payload: &[u8], to: &udp::UdpMetadata) -> Option<[u8; 2]> {
    let (Some(IpAddress::Ipv4(source)), IpAddress::Ipv4(destination)) =
        (to.local_address, to.endpoint.addr)
    else {
        return None;
    };
    let addresses = [source.octets(), destination.octets()];
    let length = UDP_HEADER_LEN + payload.len();
    // But for the checksum, which is 0 meanwhile.
    let header = [port, to.endpoint.port, length as u16].map(u16::to_be_bytes);
    let addresses = Sum::of(addresses.as_flattened());
    let sum = Sum::pseudo_header(addresses, IpProtocol::Udp.into(), length)
        .plus(Sum::of(header.as_flattened()))
        .plus(Sum::of(payload));
    Some(sum.udp_checksum())
}
