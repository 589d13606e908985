//! The TCP connections of all services.
//!
//! smoltcp asks every socket of a set whether a segment is for it, and whether
//! it has something to send. Each connection is therefore alone in a set of its
//! own, and found by its two ends; only those are served for which a segment
//! came or whose time has come. A thousand idle ones cost nothing.
//!
//! smoltcp has no backlog either: a socket that listens becomes the connection.
//! One is made for each SYN, so that no socket listens in between. Where there is
//! no room, these give way, in this order:
//!
//! 1. when too many are half open, the oldest of them (a flood of SYNs only
//!    replaces its own),
//! 2. the one that is furthest behind [`LEAST_RATE`].
//!
//! When nobody does, the SYN is dropped, as Linux does: the client asks again
//! after a second.

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec;
use alloc::vec::Vec;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};

use crate::checksum::ETHERNET;
use crate::http::Report;
use crate::packet::{Address, Ends, Packet, Segment};
use crate::path_mtu::{self, Narrow, TooBig};
use crate::stand_in::OneFrame;
use crate::tcp::{Conversation, Service};
use crate::time_wait::TimeWait;

/// Bytes a second, sent or taken by the client, below which a connection gives
/// way to a new one when there is no room.
const LEAST_RATE: u64 = 500;
/// How long a new connection has before its rate counts.
const GRACE: Duration = Duration::from_millis(500);
/// How far ahead a fast client can be: so long it may pause.
const PAID_AHEAD: Duration = Duration::from_secs(2);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long an aborted connection waits to send its RST.
const RESET_TIMEOUT: Duration = Duration::from_millis(100);
/// When to look again for one that gives way.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// When to try again if frames wait for the device and it has not called.
pub(crate) const DEVICE_RETRY: Duration = Duration::from_millis(1);
/// Segments that one connection sends in one turn.
const BURST: usize = 64;

/// Nothing of what was sent arrives for so long: large packets may vanish on the
/// way. Segments are sent again after 1 s and after 3 s.
const STALL: Duration = Duration::from_millis(2500);
/// How long a destination's MTU is remembered (RFC 1191, 6.3), and how many are.
const PATH_LIFETIME: Duration = Duration::from_secs(600);
const MAX_PATHS: usize = 256;

/// What one connection may cost in bytes of the heap: its socket, the smallest
/// buffers, a request and its answer.
const COST: usize = 32 * 1024;
/// The smallest buffer: a segment and some.
const MIN_BUFFER: usize = 2 * 1024;
/// One of so many parts of the memory that is left goes to a new connection.
const SHARE: usize = 32;
/// Sockets of a service that are kept for the next connections.
const SPARE: usize = 4;

struct Connection {
    alone: Alone,
    ends: Ends,
    service: Service,
    conversation: Conversation,
    opened: Instant,
    /// When it last made progress: data came, or the client acknowledged some.
    active: Instant,
    /// Until then what it has sent and taken makes up for the [`LEAST_RATE`].
    paid_until: Instant,
    /// Bytes in the transmit buffer after the service last saw it.
    queued: usize,
    /// The last byte that the client acknowledged.
    acknowledged: u32,
    /// When it last did, or had nothing to acknowledge.
    moved: Instant,
    /// Largest packet on its path, if that is known to be less than the link's.
    path_mtu: Option<usize>,
    /// Bytes of its buffers.
    memory: usize,
    phase: Phase,
    /// It is in [`Pool::ready`].
    is_ready: bool,
    /// It is in [`Pool::timers`] with this time.
    due: Option<Instant>,
}

/// A socket alone in its set, where it stays from one connection to the next.
struct Alone {
    set: SocketSet<'static>,
    handle: SocketHandle,
}

impl Alone {
    fn new(socket: tcp::Socket<'static>) -> Self {
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        Self { set, handle }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.set.get_mut(self.handle)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Half open, and in [`Pool::opening`].
    Opening,
    Open,
    /// Aborted: only its RST is to be sent.
    Ending,
}

impl Connection {
    fn socket(&self) -> &tcp::Socket<'static> {
        self.alone.set.get(self.alone.handle)
    }

    /// Has this connection, whose index is given, served in this turn.
    #[inline]
    fn get_ready(&mut self, index: usize, ready: &mut VecDeque<usize>) {
        if !core::mem::replace(&mut self.is_ready, true) {
            ready.push_back(index);
        }
    }
}

pub(crate) struct Pool {
    connections: Vec<Option<Connection>>,
    unused: Vec<usize>,
    by_ends: HashMap<Ends, usize, FixedState>,
    ready: VecDeque<usize>,
    timers: BTreeSet<(Instant, usize)>,
    /// Half-open connections, by when they were opened.
    opening: BTreeSet<(Instant, usize)>,
    time_wait: TimeWait,
    /// Connections that are not [`Phase::Ending`], in all and of each service.
    pub(crate) count: usize,
    counts: [usize; Service::ALL.len()],
    capacity: usize,
    /// Bytes that buffers may take beyond the smallest ones, and what they take.
    memory: usize,
    used: usize,
    spare: [Vec<Alone>; Service::ALL.len()],
    /// Nobody gives way before.
    look_again_at: Instant,
    scratch: Box<[u8]>,
    /// What routers say is the link's MTU for IPv6 in bytes, if it is not the device's.
    pub(crate) mtu_v6: Option<usize>,
    /// The MTU of paths to hosts, and until when it is believed.
    paths: HashMap<Address, (usize, Instant), FixedState>,
}

impl Pool {
    pub(crate) fn new(heap: usize, seed: u64) -> Self {
        let mut this = Self {
            connections: vec![],
            unused: vec![],
            by_ends: HashMap::with_hasher(FixedState::with_seed(seed)),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            opening: BTreeSet::new(),
            time_wait: TimeWait::new(seed),
            count: 0,
            counts: Default::default(),
            capacity: 0,
            memory: 0,
            used: 0,
            spare: Default::default(),
            look_again_at: Instant::ZERO,
            scratch: vec![0; 4096].into_boxed_slice(),
            mtu_v6: None,
            paths: HashMap::with_hasher(FixedState::with_seed(seed)),
        };
        this.set_heap(heap);
        this
    }

    /// How many connections there may be follows from the bytes of heap that are
    /// left: half of them is for [`COST`], a quarter for larger buffers.
    pub(crate) fn set_heap(&mut self, heap: usize) {
        self.capacity = (heap / 2 / COST).clamp(8, 16 * 1024);
        self.memory = heap / 4;
        self.time_wait.most = 4 * self.capacity;
    }

    /// Whether there is a connection with these ends.
    pub(crate) fn knows(&self, ends: &Ends) -> bool {
        self.by_ends.contains_key(ends) || self.time_wait.contains(ends)
    }

    /// Hands a segment to its connection, or makes one.
    #[inline]
    pub(crate) fn take_in<T: TxToken>(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        device: &mut OneFrame<'_, T>,
        packet: &Packet<'_>,
        segment: &Segment,
    ) {
        let ends = packet.ends(segment);
        let mut known = self.by_ends.get(&ends).copied();
        if segment.opens {
            known = match self.connection_for(now, interface, known, ends) {
                Ok(index) => index,
                Err(Full) => return,
            };
        }
        let connection = known.and_then(|index| self.connections.get_mut(index)?.as_mut());
        let (Some(index), Some(connection)) = (known, connection) else {
            // RFC 9293, 3.10.7.1: reset; nothing that was for others than us.
            if self.time_wait.contains(&ends) {
                let packet = packet.frame.get(ETHERNET..).unwrap_or_default();
                self.time_wait.answer(packet, &ends, device, now);
            } else if interface.has_ip_addr(ends.local.ip()) {
                interface.poll_ingress_single(now, device, &mut SocketSet::new(vec![]));
            }
            return;
        };
        if let Some(acknowledged) = segment.acknowledged {
            connection.acknowledged = acknowledged;
        }
        interface.poll_ingress_single(now, device, &mut connection.alone.set);
        connection.get_ready(index, &mut self.ready);
    }

    /// A router says that a segment was too large. It is believed if it knows a
    /// connection and what is on its way there.
    #[cold]
    pub(crate) fn narrow(&mut self, now: Instant, message: &TooBig) {
        let index = self.by_ends.get(&message.ends).copied();
        let Some(connection) = index.and_then(|index| self.connections.get_mut(index)?.as_mut())
        else {
            return;
        };
        let queued = connection.socket().send_queue();
        let ahead = message.sequence.wrapping_sub(connection.acknowledged) as usize;
        let path_mtu = &mut connection.path_mtu;
        if path_mtu.is_some_and(|known| known <= message.mtu) || ahead >= queued {
            return;
        }
        *path_mtu = Some(message.mtu);
        if self.paths.len() >= MAX_PATHS {
            self.paths.retain(|_, path| path.1 > now);
        }
        if self.paths.len() < MAX_PATHS {
            let path = (message.mtu, now + PATH_LIFETIME);
            self.paths.insert(message.ends.remote, path);
        }
    }

    /// The connection of a SYN, if anybody serves its port.
    #[cold]
    fn connection_for(
        &mut self,
        now: Instant,
        interface: &Interface,
        known: Option<usize>,
        ends: Ends,
    ) -> Result<Option<usize>, Full> {
        if let Some(index) = known {
            let connection = self.connections[index].as_ref();
            let state = connection.map(|connection| connection.socket().state());
            if !matches!(
                state,
                None | Some(tcp::State::TimeWait | tcp::State::Closed)
            ) {
                return Ok(known);
            }
            self.release(index);
        }
        // RFC 9293, 3.6.1: a new connection may end TIME-WAIT.
        self.time_wait.remove(&ends);
        match Service::at(ends.ports[0]) {
            Some(service) if interface.has_ip_addr(ends.local.ip()) => {
                self.open(now, service, ends).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn open(&mut self, now: Instant, service: Service, ends: Ends) -> Result<usize, Full> {
        self.make_room(now, service)?;
        let (alone, memory) = self.take_socket(service);
        let path = self.paths.get(&ends.remote);
        let path_mtu = path.filter(|path| path.1 > now).map(|path| path.0);
        let link_mtu = self.mtu_v6.filter(|_| !ends.remote.is_ipv4());
        let path_mtu = path_mtu.into_iter().chain(link_mtu).min();
        let connection = Connection {
            alone,
            ends,
            service,
            conversation: service.conversation(),
            opened: now,
            active: now,
            paid_until: now + GRACE,
            queued: 0,
            acknowledged: 0,
            moved: now,
            path_mtu,
            memory,
            phase: Phase::Opening,
            is_ready: false,
            due: None,
        };
        let index = self.unused.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.connections[index] = Some(connection);
        self.by_ends.insert(ends, index);
        self.opening.insert((now, index));
        self.count += 1;
        self.counts[service as usize] += 1;
        Ok(index)
    }

    /// A socket that listens, with buffers as large as there is memory for, and
    /// the bytes of these.
    fn take_socket(&mut self, service: Service) -> (Alone, usize) {
        let limits = service.limits();
        let share = self.memory.saturating_sub(self.used) / SHARE;
        let [receive, transmit] =
            [limits.receive, limits.transmit].map(|limit| limit.min(share.max(MIN_BUFFER)));
        let is_full_size = (receive, transmit) == (limits.receive, limits.transmit);
        let mut alone = match self.spare[service as usize].pop() {
            Some(spare) if is_full_size => spare,
            _ => {
                let mut socket = tcp::Socket::new(
                    tcp::SocketBuffer::new(vec![0; receive]),
                    tcp::SocketBuffer::new(vec![0; transmit]),
                );
                // Answers go out as they are written; no service writes in crumbs.
                socket.set_nagle_enabled(false);
                Alone::new(socket)
            }
        };
        // A closed socket listens at any port but 0.
        let listening = alone.socket().listen(limits.port);
        debug_assert_eq!(listening, Ok(()));
        self.used += receive + transmit;
        (alone, receive + transmit)
    }

    /// Has somebody give way if there is no room for a further connection.
    fn make_room(&mut self, now: Instant, service: Service) -> Result<(), Full> {
        if self.opening.len() >= (self.capacity / 4).max(4)
            && let Some(&(_, oldest)) = self.opening.first()
        {
            self.release(oldest);
        }
        // No service takes the room of all.
        let most = self.capacity - self.capacity / 4;
        while self.count >= self.capacity || self.counts[service as usize] >= most {
            if now < self.look_again_at
                || self.connections.len() > self.capacity + self.capacity / 4
            {
                return Err(Full);
            }
            let behind = |connection: &&mut Connection| {
                connection.phase == Phase::Open && connection.paid_until <= now
            };
            let connections = self.connections.iter_mut().flatten();
            let slowest = connections.filter(behind).min_by_key(|c| c.paid_until);
            let Some(slowest) = slowest else {
                self.look_again_at = now + LOOK_AGAIN;
                return Err(Full);
            };
            slowest.alone.socket().abort();
            slowest.phase = Phase::Ending;
            slowest.active = now;
            self.count -= 1;
            self.counts[slowest.service as usize] -= 1;
            if let Some(&index) = self.by_ends.get(&slowest.ends) {
                slowest.get_ready(index, &mut self.ready);
            }
        }
        Ok(())
    }

    fn release(&mut self, index: usize) {
        let Some(mut connection) = self.connections[index].take() else {
            return;
        };
        self.unused.push(index);
        self.by_ends.remove(&connection.ends);
        if let Some(due) = connection.due {
            self.timers.remove(&(due, index));
        }
        let service = connection.service as usize;
        if connection.phase == Phase::Opening {
            self.opening.remove(&(connection.opened, index));
        }
        if connection.phase != Phase::Ending {
            self.count -= 1;
            self.counts[service] -= 1;
        }
        self.used -= connection.memory;
        let limits = connection.service.limits();
        if connection.memory == limits.receive + limits.transmit
            && self.spare[service].len() < SPARE
        {
            connection.alone.socket().abort();
            self.spare[service].push(connection.alone);
        }
    }

    /// Serves every connection for which something happened or is due, and sends
    /// what they have to say. Returns whether anything was sent.
    pub(crate) fn serve<D: Device>(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        device: &mut D,
        report: &mut Report,
    ) -> bool {
        self.time_wait.expire(now);
        while let Some(&(due, index)) = self.timers.first()
            && due <= now
        {
            self.timers.pop_first();
            if let Some(connection) = &mut self.connections[index] {
                connection.due = None;
                connection.get_ready(index, &mut self.ready);
            }
        }
        let mut sent = false;
        for _ in 0..self.ready.len() {
            let Some(index) = self.ready.pop_front() else {
                break;
            };
            match self.serve_one(now, index, interface, device, report) {
                Served::Idle => {}
                Served::Sent => sent = true,
                Served::NoRoom => {
                    // The next one finds no room either.
                    self.ready.push_front(index);
                    break;
                }
            }
        }
        sent
    }

    fn serve_one<D: Device>(
        &mut self,
        now: Instant,
        index: usize,
        interface: &mut Interface,
        device: &mut D,
        report: &mut Report,
    ) -> Served {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else {
            return Served::Idle;
        };
        let socket = connection.alone.socket();
        let taken = connection.queued.saturating_sub(socket.send_queue());
        let progress = socket.recv_queue() + taken;
        if progress > 0 {
            connection.active = now;
            let worth = Duration::from_micros(progress as u64 * 1_000_000 / LEAST_RATE);
            let paid_until = connection.paid_until.max(now) + worth;
            connection.paid_until = paid_until.min(now + PAID_AHEAD);
        }
        let idle_at = match connection.phase {
            Phase::Opening => connection.opened + HANDSHAKE,
            Phase::Ending => connection.active + RESET_TIMEOUT,
            _ => connection.active + connection.service.limits().idle,
        };
        if connection.phase == Phase::Opening && socket.state() != tcp::State::SynReceived {
            connection.phase = Phase::Open;
            self.opening.remove(&(connection.opened, index));
        }
        if now >= idle_at {
            if connection.phase != Phase::Open {
                self.release(index);
                return Served::Idle;
            }
            socket.abort();
        } else if connection.phase == Phase::Open {
            let scratch = &mut self.scratch;
            connection.conversation.serve(now, socket, scratch, report);
        }
        if taken > 0 || connection.queued == 0 {
            connection.moved = now;
        } else if now >= connection.moved + STALL {
            let base = path_mtu::base(connection.ends.remote);
            connection.path_mtu = Some(connection.path_mtu.map_or(base, |mtu| mtu.min(base)));
        }
        connection.queued = socket.send_queue();

        let set = &mut connection.alone.set;
        let mut passes = 0;
        let mut due = interface.poll_at(now, set);
        while passes < BURST
            && due.is_some_and(|due| due <= now)
            && PollResult::None
                != match connection.path_mtu {
                    None => interface.poll_egress(now, device, set),
                    Some(mtu) => interface.poll_egress(now, &mut Narrow { device, mtu }, set),
                }
        {
            passes += 1;
            due = interface.poll_at(now, set);
        }
        let served = match passes {
            0 => Served::Idle,
            _ => Served::Sent,
        };

        let socket = connection.alone.socket();
        match socket.state() {
            // Reset in its handshake, or no SYN after all; or aborted and reset.
            tcp::State::Listen => {
                self.release(index);
                return Served::Idle;
            }
            tcp::State::Closed if socket.remote_endpoint().is_none() => {
                self.release(index);
                return served;
            }
            tcp::State::Closed if connection.phase == Phase::Open => {
                connection.phase = Phase::Ending;
                connection.active = now;
                self.count -= 1;
                self.counts[connection.service as usize] -= 1;
            }
            // All that it had to say is said.
            tcp::State::TimeWait if due.is_none_or(|due| due > now) => {
                let ends = connection.ends;
                self.release(index);
                self.time_wait.insert(ends, now);
                return served;
            }
            _ => {}
        }
        let http = connection.conversation.http();
        let mut due = earlier(due, http.and_then(|http| http.deadline));
        if connection.phase == Phase::Ending {
            due = earlier(due, Some(connection.active + RESET_TIMEOUT));
        }
        let mut due = earlier(due, Some(idle_at.max(now + DEVICE_RETRY)));
        if due.is_some_and(|due| due <= now) {
            if device.transmit(now).is_none() {
                return Served::NoRoom;
            }
            if passes == BURST {
                self.ready.push_back(index);
                return Served::Sent;
            }
            due = Some(now + DEVICE_RETRY);
        }
        let http = connection.conversation.http();
        connection.is_ready = http.is_some_and(|http| http.waits_for_report());
        if connection.is_ready {
            self.ready.push_back(index);
        }
        // A time that is put off is looked at when it comes.
        if let Some(due) = due
            && connection.due.is_none_or(|known| due < known)
        {
            if let Some(known) = connection.due.replace(due) {
                self.timers.remove(&(known, index));
            }
            self.timers.insert((due, index));
        }
        served
    }

    pub(crate) fn poll_at(&self, now: Instant) -> Option<Instant> {
        // What was not served waits for room in the device.
        let waiting = (!self.ready.is_empty()).then_some(now + DEVICE_RETRY);
        earlier(waiting, self.timers.first().map(|&(due, _)| due))
    }
}

struct Full;

enum Served {
    Idle,
    Sent,
    /// The device has no room for what there is to send.
    NoRoom,
}

/// The earlier of two times, either of which may be never.
pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}
