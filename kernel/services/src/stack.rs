//! The network of one queue, and the turn that moves everything on: `ingress.rs`
//! takes frames in, and all that answers later is served here.

use alloc::boxed::Box;
use alloc::vec;

use kickpath_abi::config::{Config, UdpWay};
use kickpath_abi::status;
use smoltcp::iface::SocketSet;
use smoltcp::phy::{Device, RxToken};
use smoltcp::time::{Duration, Instant};

use crate::address::Ipv4State;
use crate::announce;
use crate::host::Host;
use crate::http::Report;
use crate::ingress::{Ingress, Outcome};
use crate::link::{Link, NetworkDevice};
use crate::netconsole::{self, Netconsole};
use crate::packet::Parsed;
use crate::pool::{DEVICE_RETRY, earlier};
use crate::stand_in::{Nowhere, Rare, Through};

/// Frames that one turn receives at most, so that a flood does not keep the
/// answers from going out.
const INGRESS_BATCH: usize = 64;
/// When to try again if lines of the log wait for room or for ARP.
const LOG_RETRY: Duration = Duration::from_millis(20);

/// The guest's network. See the crate for an example.
pub struct Stack {
    ingress: Ingress,
    report: Report,
    /// When something other than a frame needs a turn.
    deadline: Option<Instant>,
    /// Fragments are left that found no room.
    fragments_left: bool,
}

impl Stack {
    /// Makes the interface and its services, and allocates the buffers of all but
    /// TCP connections.
    ///
    /// `mac` is the device's address, `seed` should differ from boot to boot: it
    /// decides TCP's sequence numbers.
    ///
    /// # Panics
    /// When the device's medium is not Ethernet.
    pub fn new<D: Device + ?Sized>(
        config: &Config,
        mac: [u8; 6],
        device: &mut D,
        now: Instant,
        seed: u64,
    ) -> Self {
        let ingress = Ingress::new(Some(config), mac, device, now, seed);
        Self::on(now, ingress, config.udp)
    }

    fn on(now: Instant, mut ingress: Ingress, udp: UdpWay) -> Self {
        ingress.datagrams.in_place = udp == UdpWay::InPlace;
        Self {
            ingress,
            report: Report::default(),
            deadline: Some(now),
            fragments_left: false,
        }
    }

    /// Says how many bytes of the heap are left for this stack. How many TCP
    /// connections it has at a time follows from that: one for each 64 KiB, at
    /// least 8, and buffers of at most a quarter of it.
    pub fn set_heap(&mut self, bytes: usize) {
        self.ingress.tcp.set_heap(bytes);
    }

    /// As [`Self::new`], for a further queue of a device that has a stack
    /// already: the two have the same addresses. This one asks neither for an
    /// IPv4 address ([`Self::follow_ipv4`] tells it) nor for routers, and both
    /// tell each other by [`Self::take_shared`] and [`Self::receive_shared`], by
    /// [`Self::take_strays`] and [`Self::receive_stray`].
    ///
    /// # Panics
    /// When the device's medium is not Ethernet.
    pub fn following<D: Device + ?Sized>(
        udp: UdpWay,
        mac: [u8; 6],
        device: &mut D,
        now: Instant,
        seed: u64,
    ) -> Self {
        let mut stack = Self::on(now, Ingress::new(None, mac, device, now, seed), udp);
        stack.share_frames();
        stack
    }

    /// Has this stack keep the frames that concern every stack of the device.
    pub fn share_frames(&mut self) {
        self.ingress.for_others.on = true;
    }

    /// The frames that came since the last call and that every other stack of
    /// the device must [`Self::receive_shared`]; nothing without
    /// [`Self::share_frames`]. More than 16 between two calls are lost.
    pub fn take_shared(&mut self) -> impl Iterator<Item = Box<[u8]>> + use<> {
        self.ingress.for_others.take()
    }

    /// Takes in a frame that another stack of the device has received, found
    /// intact, and answers.
    #[cold]
    pub fn receive_shared(&mut self, now: Instant, frame: &[u8]) {
        self.ingress.outgoing.now = now;
        match Parsed::parse_again(frame) {
            Parsed::Arp => self.ingress.receive_arp(frame, Rare(&mut Nowhere)),
            Parsed::Ip(packet) => {
                self.ingress.receive_for_link(&packet, Rare(&mut Nowhere));
            }
            Parsed::Corrupt | Parsed::Unknown => (),
        }
        self.deadline = Some(now);
    }

    /// TCP segments that came since the last call and whose connection this
    /// stack does not have; nothing without [`Self::share_frames`]. Another
    /// stack must [`Self::receive_stray`] each: a device may move a flow to
    /// another queue at any time. More than 16 between two calls are lost.
    pub fn take_strays(&mut self) -> impl Iterator<Item = Box<[u8]>> + use<> {
        self.ingress.for_others.take_strays()
    }

    /// Takes in a TCP segment that another stack of the device has received,
    /// found intact, and does not know; returns whether this one knows it. The
    /// last one that is asked answers what nobody knows, with RST.
    #[cold]
    pub fn receive_stray<D: Device>(
        &mut self,
        now: Instant,
        frame: &[u8],
        is_last: bool,
        device: &mut D,
    ) -> bool {
        self.ingress.outgoing.now = now;
        let Parsed::Ip(packet) = Parsed::parse_again(frame) else {
            return true;
        };
        let is_known = !self.ingress.is_stray(&packet);
        // Where there is no room to answer, the sender will ask again.
        if (is_known || is_last)
            && let Some(token) = device.transmit(now)
        {
            let neighbors = &mut self.ingress.outgoing.neighbors;
            if neighbors.recognize(frame, packet.source, now).is_some() {
                self.ingress.receive_other(&packet, token);
            } else if let Some(next_hop) = self.ingress.outgoing.neighbors.next_hop(packet.source) {
                self.ingress.waiting.keep(frame, next_hop, now);
            }
            self.deadline = Some(now);
        }
        is_known
    }

    /// The IPv4 address and where it comes from, for
    /// [`Self::follow_ipv4`].
    pub fn ipv4(&self) -> Ipv4State {
        self.ingress.host.ipv4.state
    }

    /// Takes the IPv4 address of another stack of the device.
    pub fn follow_ipv4(&mut self, now: Instant, state: Ipv4State) {
        let host = &mut self.ingress.host;
        if host.ipv4.take_over(&mut host.interface, state) {
            self.ingress.set_addresses();
        }
        self.deadline = Some(now);
    }

    /// One turn: receives up to 64 frames, lets the services answer them, sends
    /// what they have to say. Returns whether another turn at once may find more
    /// to do: not after datagrams alone, whose answers are sent.
    ///
    /// `now` must not go back. The device's tokens may be dropped unused.
    pub fn poll<D: NetworkDevice>(&mut self, now: Instant, device: &mut D) -> bool {
        self.ingress.outgoing.now = now;
        if self.fragments_left && !self.drain_fragments(now, device) {
            // The next answer in fragments would overwrite them.
            self.deadline = Some(now + DEVICE_RETRY);
            return false;
        }
        let mut busy = true;
        let mut others = self.deadline.is_some_and(|deadline| now >= deadline);
        let mut others_received = false;
        for _ in 0..INGRESS_BATCH {
            let Some((receive, token)) = device.receive(now) else {
                busy = others_received;
                break;
            };
            let verify = !D::is_verified(&receive);
            let ingress = &mut self.ingress;
            match receive.consume(move |frame| ingress.ingest(frame, verify, token)) {
                Outcome::Done => {}
                Outcome::Others => others_received = true,
                Outcome::Fragments => {
                    others_received = true;
                    if !self.drain_fragments(now, device) {
                        break;
                    }
                }
            }
        }
        others |= others_received | self.ingress.outgoing.neighbors.has_questions();
        if others {
            busy |= self.serve_others(now, device);
        }
        busy
    }

    /// The link is up again, and may be another one than before: tells it of this
    /// host, and asks for addresses and routers as at first.
    pub fn link_came_up(&mut self, now: Instant) {
        self.ingress.outgoing.now = now;
        self.ingress.host.link_came_up(now);
        self.ingress.set_addresses();
        self.deadline = Some(now);
    }

    /// Whether somebody has asked for the report: it is to be handed down by
    /// [`Self::set_status`] before the next [`Self::poll`].
    #[inline]
    pub fn wants_status(&self) -> bool {
        self.report.is_wanted
    }

    /// The report as of now, for those who ask in the next turn; what it says of
    /// the network is filled in here.
    #[cold]
    pub fn set_status(&mut self, mut status: status::Status) {
        status.network = self.network();
        self.report.set(status);
    }

    /// When [`Self::poll`] wants its next turn if no frame comes; `None` for
    /// never. A time that is not after `now` means at once.
    pub fn poll_at(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether addresses came or went since the last call, so that
    /// [`Self::multicast_groups`] are others.
    #[inline]
    pub fn take_addresses_changed(&mut self) -> bool {
        core::mem::take(&mut self.ingress.addresses_changed)
    }

    /// Hardware addresses of the multicast groups whose frames this host must
    /// hear; some may come twice.
    pub fn multicast_groups(&self) -> impl Iterator<Item = [u8; 6]> {
        announce::multicast_groups(&self.ingress.host.interface)
    }

    /// Tells the network of every address of this host unasked: gratuitous ARP
    /// and unsolicited neighbour advertisements. Returns whether all found
    /// room in the device; if not, the whole is to be repeated.
    pub fn announce<D: Device>(&self, now: Instant, device: &mut D) -> bool {
        let interface = &self.ingress.host.interface;
        announce::announce(now, interface, &mut Rare(&mut Through(device, now)))
    }

    /// Sends lines of the log, as far as there is room, each a datagram;
    /// `next_line` writes one into a buffer and returns its length. Returns
    /// how a frame gets there without this stack, once there is an address.
    pub fn send_log<D: Device>(
        &mut self,
        now: Instant,
        device: &mut D,
        netconsole: &mut Netconsole,
        next_line: impl FnMut(&mut [u8]) -> Option<usize>,
    ) -> Option<netconsole::Template> {
        let Ingress { host, outgoing, .. } = &mut self.ingress;
        outgoing.now = now;
        let device = &mut Rare(&mut Through(device, now));
        if !netconsole.send(&host.interface, outgoing, device, next_line) {
            self.deadline = earlier(self.deadline, Some(now + LOG_RETRY));
        }
        netconsole.template(&host.interface, outgoing)
    }

    /// The IP configuration.
    pub fn network(&self) -> status::Network {
        let host = &self.ingress.host;
        status::Network {
            impossible_sources: self.ingress.impossible_sources,
            tcp_connections: self.ingress.tcp.count as u64,
            ..host.ipv4.report(&host.interface)
        }
    }

    /// Takes in what waited, and asks for whom more waits.
    #[cold]
    fn serve_waiting<D: Device>(&mut self, now: Instant, device: &mut D) -> bool {
        let mut busy = false;
        loop {
            let Some(token) = device.transmit(now) else {
                return busy;
            };
            let Some(held) = self.ingress.waiting.next(&self.ingress.outgoing.neighbors) else {
                break;
            };
            busy = true;
            if let Outcome::Fragments = self.ingress.ingest_again(&held.frame, false, token)
                && !self.drain_fragments(now, device)
            {
                return busy;
            }
        }
        while device.transmit(now).is_some() {
            let neighbors = &mut self.ingress.outgoing.neighbors;
            let asked = self.ingress.waiting.next_question(neighbors, now);
            let Some(neighbor) = asked.or_else(|| neighbors.next_question()) else {
                break;
            };
            let Host {
                interface, ipv6, ..
            } = &self.ingress.host;
            let is_optimistic = |address| ipv6.is_optimistic(address);
            let outlet = &mut Rare(&mut Through(device, now));
            announce::ask(now, interface, outlet, neighbor.ip(), is_optimistic);
            busy = true;
        }
        busy
    }

    /// Everything but datagrams.
    fn serve_others<D: Device>(&mut self, now: Instant, device: &mut D) -> bool {
        self.ingress.interface.poll_maintenance(now);
        if self.ingress.host_at.is_some_and(|at| at <= now) {
            let host = &mut self.ingress.host;
            if host.poll(now, &mut Rare(&mut Through(device, now))) {
                self.ingress.set_addresses();
            }
            self.ingress.host_at = self.ingress.host.poll_at(now);
        }
        let mut busy = false;
        if !self.ingress.waiting.is_empty() || self.ingress.outgoing.neighbors.has_questions() {
            busy |= self.serve_waiting(now, device);
        }

        let interface = &mut *self.ingress.interface;
        let outgoing = &mut self.ingress.outgoing;
        let mut link = Link { device, outgoing };
        let tcp = &mut self.ingress.tcp;
        busy |= tcp.serve(now, interface, &mut link, &mut self.report);
        self.report.forget();
        busy |= self.report.is_wanted;
        let retry = now + DEVICE_RETRY;
        // What was due already waits for room in the device.
        let others =
            earlier(self.ingress.host_at, self.ingress.waiting.poll_at()).map(|at| at.max(retry));
        let fragments = self.fragments_left.then_some(retry);
        self.deadline = earlier(self.ingress.tcp.poll_at(now), earlier(others, fragments));
        busy
    }

    /// Sends what is left of a packet that goes out in fragments. Returns whether
    /// nothing is left.
    ///
    /// smoltcp has one buffer for this and does not look whether it is in use.
    #[cold]
    fn drain_fragments<D: Device>(&mut self, now: Instant, device: &mut D) -> bool {
        let none = &mut SocketSet::new(vec![]);
        self.fragments_left = true;
        // More than the fragments of its buffer's 16 KiB at the smallest MTU that
        // virtio-net has (68 bytes: 48 of payload).
        for _ in 0..400 {
            // With no socket, only fragments can be due.
            if self.ingress.interface.poll_at(now, none).is_none() {
                self.fragments_left = false;
                return true;
            }
            if device.transmit(now).is_none() {
                return false;
            }
            let outgoing = &mut self.ingress.outgoing;
            let mut link = Link { device, outgoing };
            self.ingress.interface.poll_egress(now, &mut link, none);
        }
        false
    }
}
