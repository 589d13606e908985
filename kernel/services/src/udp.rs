//! The UDP services: echo (RFC 862), discard (RFC 863), chargen (RFC 864).
//!
//! The echo has two paths. A datagram from a sender that was answered lately
//! takes the fast one (`fast_echo.rs`). All others, and fragmented ones, take
//! the slow path here ([`FirstContact`]). The reason is smoltcp's treatment of a
//! datagram whose next hop has no hardware address (yet): it stays at the head
//! of its socket's transmit buffer and everything behind it waits. One datagram
//! with a forged source address would silence the echo for good if everybody's
//! answers shared that buffer.

use alloc::vec;

use kickpath_trace::{Event, NO_QUEUE, tracepoint};
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::{Socket, udp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IPV4_HEADER_LEN, IpAddress, IpProtocol, UDP_HEADER_LEN};

use crate::chargen::Pattern;
use crate::checksum::{Checked, NOBODY, Sum};
use crate::flow::Flows;
use crate::stack::drain_fragments;
use crate::{CHARGEN_PORT, DISCARD_PORT, ECHO_PORT, neighbor};

/// Bytes of datagrams that wait for the slow path.
const SLOW_RECEIVE_BYTES: usize = 64 * 1024;
/// Bytes of answers on the slow path; smoltcp's fragmentation buffer bounds a
/// single one to less than 16 KiB.
const SLOW_TRANSMIT_BYTES: usize = 32 * 1024;
const SLOW_DEPTH: usize = 64;
/// How long answers wait for their next hop's hardware address.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);
/// The largest answer of chargen (RFC 864: "between 0 and 512").
const CHARGEN_PAYLOAD: usize = 512;
const CHARGEN_DEPTH: usize = 16;

pub(crate) fn buffer(datagrams: usize, bytes: usize) -> udp::PacketBuffer<'static> {
    udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; datagrams], vec![0; bytes])
}

/// Opens `socket` at `port` with empty buffers, whatever it held before.
pub(crate) fn reopen(socket: &mut udp::Socket<'_>, port: u16) {
    socket.close();
    // A closed socket binds to any port but 0, and no port here is 0.
    let bound = socket.bind(port);
    debug_assert_eq!(bound, Ok(()));
}

pub(crate) fn opened(
    receive: udp::PacketBuffer<'static>,
    transmit: udp::PacketBuffer<'static>,
    port: u16,
) -> udp::Socket<'static> {
    let mut socket = udp::Socket::new(receive, transmit);
    reopen(&mut socket, port);
    socket
}

/// A datagram has come out of a socket.
#[inline]
pub(crate) fn note_received(payload: &[u8], from: &udp::UdpMetadata) {
    tracepoint!(
        Event::SocketReceive,
        NO_QUEUE,
        payload.len() as u64,
        u64::from(from.endpoint.port)
    );
}

/// A datagram goes into a socket.
#[inline]
pub(crate) fn note_sent(payload: &[u8], to: &udp::UdpMetadata) {
    tracepoint!(
        Event::SocketSend,
        NO_QUEUE,
        payload.len() as u64,
        u64::from(to.endpoint.port)
    );
}

/// Whether an answerer of everything may have sent a datagram from this port:
/// two of those would talk to each other for ever.
#[inline]
pub(crate) fn is_answerer(port: u16) -> bool {
    const ANSWERERS: [u16; 6] = [ECHO_PORT, DISCARD_PORT, 13, 17, CHARGEN_PORT, 37];
    port <= 37 && (port == 0 || ANSWERERS.contains(&port))
}

/// Whether a datagram may be answered. Not one that was sent to a broadcast or
/// multicast address (RFC 1122, 3.2.1.3: it is no source address), nor one that
/// claims to be from ourselves or from no address, nor one from an answerer.
fn may_answer(interface: &Interface, datagram: &udp::UdpMetadata) -> bool {
    let from = datagram.endpoint;
    let to = datagram.local_address;
    !is_answerer(from.port)
        && !from.addr.is_unspecified()
        && !interface.has_ip_addr(from.addr)
        && to.is_some_and(|to| interface.has_ip_addr(to))
}

/// What a turn works with.
pub(crate) struct Context<'a, 'd, D: ?Sized> {
    pub(crate) now: Instant,
    pub(crate) interface: &'a mut Interface,
    pub(crate) device: &'a mut Checked<'d, D>,
    /// The sockets that have no set of their own.
    pub(crate) sockets: &'a mut SocketSet<'static>,
}

impl<D: Device + ?Sized> Context<'_, '_, D> {
    fn drain_fragments(&mut self) -> bool {
        drain_fragments(self.now, self.interface, self.device)
    }
}

/// A socket that only sends, alone in its set, so that a pass of the interface's
/// egress sends exactly its next datagram.
struct Lane {
    set: SocketSet<'static>,
    socket: SocketHandle,
    port: u16,
    /// Datagrams in the transmit buffer.
    queued: usize,
    /// Datagrams with a larger payload go out in fragments.
    unfragmented: usize,
    /// The checksum of the one that does.
    of_fragments: [u8; 2],
}

impl Lane {
    fn new(port: u16, datagrams: usize, bytes: usize, ip_mtu: usize) -> Self {
        let mut set = SocketSet::new(vec![]);
        // One more entry, for the gap before the buffer's wrap.
        let socket = set.add(opened(buffer(0, 0), buffer(datagrams + 1, bytes), port));
        Self {
            set,
            socket,
            port,
            queued: 0,
            unfragmented: ip_mtu.saturating_sub(IPV4_HEADER_LEN + UDP_HEADER_LEN),
            of_fragments: [0, 0],
        }
    }

    /// Copies a datagram in; returns whether there was room.
    #[inline]
    fn push(&mut self, payload: &[u8], to: udp::UdpMetadata) -> bool {
        if payload.len() > self.unfragmented && !self.prepare_fragments(payload, &to) {
            return false;
        }
        note_sent(payload, &to);
        let socket = self.set.get_mut::<udp::Socket>(self.socket);
        let pushed = socket.send_slice(payload, to).is_ok();
        self.queued += usize::from(pushed);
        pushed
    }

    /// Computes the checksum for the first fragment. Only one datagram that goes
    /// out in fragments is taken at a time.
    #[cold]
    fn prepare_fragments(&mut self, payload: &[u8], to: &udp::UdpMetadata) -> bool {
        let (Some(IpAddress::Ipv4(source)), IpAddress::Ipv4(destination)) =
            (to.local_address, to.endpoint.addr)
        else {
            // smoltcp does not fragment IPv6.
            return false;
        };
        if self.queued > 0 {
            return false;
        }
        let mut addresses = [0; 8];
        addresses[..4].copy_from_slice(&source.octets());
        addresses[4..].copy_from_slice(&destination.octets());
        let length = UDP_HEADER_LEN + payload.len();
        let mut header = [0; UDP_HEADER_LEN];
        header[..2].copy_from_slice(&self.port.to_be_bytes());
        header[2..4].copy_from_slice(&to.endpoint.port.to_be_bytes());
        header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        self.of_fragments = Sum::pseudo_header(Sum::of(&addresses), IpProtocol::Udp.into(), length)
            .plus(Sum::of(&header))
            .plus(Sum::of(payload))
            .udp_checksum();
        true
    }

    /// Sends the next datagram, if it can be sent now.
    #[inline]
    fn send_one<D: Device + ?Sized>(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        device: &mut Checked<'_, D>,
    ) -> bool {
        device.sending.of_fragments = self.of_fragments;
        let sent = interface.poll_egress(now, device, &mut self.set) != PollResult::None;
        self.queued -= usize::from(sent);
        sent
    }

    /// Sends until the lane is empty (`true`) or the next datagram cannot be
    /// sent now.
    #[inline]
    fn flush<D: Device + ?Sized>(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        device: &mut Checked<'_, D>,
    ) -> bool {
        while self.queued > 0 {
            if !self.send_one(now, interface, device) {
                return false;
            }
        }
        true
    }

    /// Forgets what is queued. Taken out of the set and put back, the socket
    /// also loses the memory of the neighbour that it waited for, which would
    /// hold back its next datagram.
    fn clear(&mut self) {
        let mut socket = self.set.remove(self.socket);
        if let Socket::Udp(socket) = &mut socket {
            reopen(socket, self.port);
        }
        self.socket = self.set.add(socket);
        self.queued = 0;
    }
}

/// The UDP echo to senders that have not been answered lately; see also
/// `fast_echo.rs`.
pub(crate) struct Echo(FirstContact);

impl Echo {
    /// Makes the sockets; the one that receives is added to `others`.
    pub(crate) fn new(others: &mut SocketSet<'static>, ip_mtu: usize) -> Self {
        Self(FirstContact::new(
            others,
            ECHO_PORT,
            (SLOW_DEPTH, SLOW_RECEIVE_BYTES),
            (SLOW_DEPTH, SLOW_TRANSMIT_BYTES),
            ip_mtu,
        ))
    }

    /// Answers what has come; notes in `flows` to whom. Returns whether anything
    /// was sent.
    pub(crate) fn serve<D: Device + ?Sized>(
        &mut self,
        context: &mut Context<'_, '_, D>,
        flows: &mut Flows,
    ) -> bool {
        self.0
            .serve(context, flows, |lane, payload, to| lane.push(payload, to))
    }

    /// Whether answers wait for a neighbour.
    pub(crate) fn is_waiting(&self) -> bool {
        self.0.waiting.is_some()
    }
}

/// A service to senders that have not been answered lately. Each answer is tried
/// at once and alone. Those to one sender whose next hop must be resolved first
/// wait in a lane of their own; while they do, answers to other such senders
/// are dropped, and answers to everybody else are not delayed.
struct FirstContact {
    receive_socket: SocketHandle,
    fresh: Lane,
    parked: Lane,
    /// Whose answers are parked, and since when.
    waiting: Option<(IpAddress, Instant)>,
}

impl FirstContact {
    /// `receive` and `transmit` are the numbers of datagrams and of their bytes
    /// that are held each way; the receiving socket is added to `others`.
    fn new(
        others: &mut SocketSet<'static>,
        port: u16,
        receive: (usize, usize),
        transmit: (usize, usize),
        ip_mtu: usize,
    ) -> Self {
        let lane = || Lane::new(port, transmit.0, transmit.1, ip_mtu);
        Self {
            receive_socket: others.add(opened(buffer(receive.0, receive.1), buffer(0, 0), port)),
            fresh: lane(),
            parked: lane(),
            waiting: None,
        }
    }

    /// Answers what has come. `answer` writes the answer to a datagram into a
    /// lane and returns whether there was room. Returns whether anything was sent.
    fn serve<D: Device + ?Sized>(
        &mut self,
        context: &mut Context<'_, '_, D>,
        flows: &mut Flows,
        mut answer: impl FnMut(&mut Lane, &[u8], udp::UdpMetadata) -> bool,
    ) -> bool {
        let now = context.now;
        let mut sent = self.serve_parked(context);
        while context
            .sockets
            .get::<udp::Socket>(self.receive_socket)
            .can_recv()
            && context.drain_fragments()
            && context.device.transmit(now).is_some()
        {
            let receive = context.sockets.get_mut::<udp::Socket>(self.receive_socket);
            let Ok((payload, from)) = receive.recv() else {
                break;
            };
            note_received(payload, &from);
            if !may_answer(context.interface, &from) {
                continue;
            }
            let sender = from.endpoint.addr;
            if self.waiting.is_some_and(|(waiting, _)| waiting == sender) {
                // When it is full, datagrams are lost, as anywhere on their way.
                answer(&mut self.parked, payload, from);
                continue;
            }
            if !answer(&mut self.fresh, payload, from) {
                continue;
            }
            context.device.sending.sent_to = NOBODY;
            if self.fresh.flush(now, context.interface, context.device) {
                let next_hop = context.device.sending.sent_to;
                flows.insert(sender, from.local_address, next_hop, now);
                sent = true;
            } else if self.waiting.is_none() {
                core::mem::swap(&mut self.fresh, &mut self.parked);
                self.waiting = Some((sender, now));
                if context.device.sending.sent_to == NOBODY {
                    // smoltcp has asked for another one too lately to ask.
                    neighbor::ask(now, context.interface, context.device, sender);
                }
            } else {
                self.fresh.clear();
            }
        }
        context.drain_fragments();
        sent
    }

    fn serve_parked<D: Device + ?Sized>(&mut self, context: &mut Context<'_, '_, D>) -> bool {
        let Some((_, since)) = self.waiting else {
            return false;
        };
        let now = context.now;
        let before = self.parked.queued;
        // Fragments of one before the next, which would overwrite them.
        while self.parked.queued > 0 && context.drain_fragments() {
            if !self.parked.send_one(now, context.interface, context.device) {
                break;
            }
        }
        let sent = self.parked.queued < before;
        if self.parked.queued == 0 {
            self.waiting = None;
        } else if now - since >= RESOLVE_TIMEOUT {
            self.parked.clear();
            self.waiting = None;
        }
        sent
    }
}

/// UDP chargen. Discard needs no code: a socket without room for anything
/// discards everything.
pub(crate) struct Chargen {
    pattern: Pattern,
    contact: FirstContact,
}

impl Chargen {
    /// Adds the sockets of chargen and discard to `others`.
    pub(crate) fn new(others: &mut SocketSet<'static>, ip_mtu: usize) -> Self {
        others.add(opened(buffer(0, 0), buffer(0, 0), DISCARD_PORT));
        let receive = (CHARGEN_DEPTH, CHARGEN_DEPTH * CHARGEN_PAYLOAD);
        let transmit = (CHARGEN_DEPTH, CHARGEN_DEPTH * CHARGEN_PAYLOAD);
        Self {
            pattern: Pattern::default(),
            contact: FirstContact::new(others, CHARGEN_PORT, receive, transmit, ip_mtu),
        }
    }

    /// Answers every datagram with [`CHARGEN_PAYLOAD`] characters. Returns
    /// whether anything was sent.
    pub(crate) fn serve<D: Device + ?Sized>(
        &mut self,
        context: &mut Context<'_, '_, D>,
        flows: &mut Flows,
    ) -> bool {
        let pattern = &mut self.pattern;
        self.contact.serve(context, flows, |lane, _, to| {
            let mut text = [0; CHARGEN_PAYLOAD];
            pattern.fill(&mut text);
            lane.push(&text, to)
        })
    }

    /// Whether answers wait for a neighbour.
    pub(crate) fn is_waiting(&self) -> bool {
        self.contact.waiting.is_some()
    }
}
