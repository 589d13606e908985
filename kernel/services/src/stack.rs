//! The interface with its sockets, and the turn that moves everything on.
//!
//! A frame is read once ([`Parsed`]), and [`Stack::ingest`] decides by what was
//! found which way it goes:
//!
//! - what speaks of the link itself (ARP, neighbour and router discovery, DHCP)
//!   goes to `link`, an interface of smoltcp that knows Ethernet and nothing else;
//! - a packet whose sender cannot be answered yet waits (`waiting.rs`);
//! - a datagram for a UDP service goes to that service (`in_place.rs`, `udp.rs`);
//! - all other packets go to `interface`, and to the TCP sockets.

use alloc::boxed::Box;
use alloc::vec;

use kickpath_abi::config::{Config, UdpWay};
use kickpath_abi::status;
use smoltcp::iface::{self, Interface, SocketSet};
use smoltcp::phy::{Device, RxToken, TxToken};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress};

use crate::address::Ipv4State;
use crate::checksum::ETHERNET;
use crate::datagrams::{Datagrams, Received};
use crate::for_others::ForOthers;
use crate::host::{Effect, Host};
use crate::http::Report;
use crate::link::{self, Described, Fill, Link, NetworkDevice, Nowhere, OneFrame, Outgoing, Token};
use crate::neighbors::Neighbors;
use crate::netconsole::{self, Netconsole};
use crate::packet::{Content, Datagram, Packet, Parsed};
use crate::path_mtu::TooBig;
use crate::pool::{Pool, earlier};
use crate::reassembly::Reassembly;
use crate::segment::Segment;
use crate::waiting::Waiting;
use crate::{DHCP_CLIENT_PORT, announce};

/// Frames that one turn receives at most, so that a flood does not keep the
/// answers from going out.
const INGRESS_BATCH: usize = 64;
/// When to try again if frames wait for the device and it has not called.
const DEVICE_RETRY: Duration = Duration::from_millis(1);
/// When to try again if lines of the log wait for room or for ARP.
const LOG_RETRY: Duration = Duration::from_millis(20);
/// Bytes of heap that a stack takes for granted before [`Stack::set_heap`].
const HEAP: usize = 16 << 20;

/// Memory that the table of neighbours may take, in bytes.
const NEIGHBOR_MEMORY: usize = 1 << 20;

/// What became of a frame.
enum Outcome {
    /// It is answered, or was for nobody.
    Done,
    /// It may have given others than the UDP services something to do.
    Others,
    /// Others as [`Self::Others`], and fragments of an answer may be left.
    Fragments,
}

/// The guest's network. See the crate for an example.
pub struct Stack {
    host: Host,
    /// When it has something to do.
    host_at: Option<Instant>,
    /// At the level of IP: for all others.
    interface: Box<Interface>,
    outgoing: Outgoing,
    reassembly: Reassembly,
    /// Packets that were dropped because of where they claim to be from.
    impossible_sources: u64,
    datagrams: Datagrams,
    tcp: Pool,
    report: Report,
    /// Packets that cannot be answered yet.
    waiting: Waiting,
    /// What other stacks with this address must hear.
    for_others: ForOthers,
    /// When something other than a frame needs a turn.
    deadline: Option<Instant>,
    /// Fragments are left that found no room.
    fragments_left: bool,
    /// Since the last [`Self::take_addresses_changed`].
    addresses_changed: bool,
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
        let mut stack = Self::build(Some(config), mac, device, now, seed);
        stack.datagrams.in_place = config.udp == UdpWay::InPlace;
        stack
    }

    /// With a configuration the stack finds its addresses, without one it
    /// follows another.
    fn build<D: Device + ?Sized>(
        config: Option<&Config>,
        mac: [u8; 6],
        device: &mut D,
        now: Instant,
        seed: u64,
    ) -> Self {
        let mac = EthernetAddress(mac);
        let capabilities = device.capabilities();
        let ip_mtu = capabilities.ip_mtu();
        let host = Host::new(config, mac, device, now, seed);
        let mut settings = iface::Config::new(HardwareAddress::Ip);
        settings.random_seed = seed;
        let fill = Fill::of(&capabilities);
        let mut device = Described(link::ip_capabilities(capabilities));
        let interface = Box::new(Interface::new(settings, &mut device, now));
        let mut stack = Self {
            host,
            host_at: Some(now),
            interface,
            outgoing: Outgoing {
                neighbors: Neighbors::new(mac, NEIGHBOR_MEMORY, seed),
                fill,
                of_fragments: [0, 0],
                now,
            },
            reassembly: Reassembly::default(),
            impossible_sources: 0,
            datagrams: Datagrams::new(ip_mtu),
            tcp: Pool::new(HEAP, seed),
            report: Report::default(),
            waiting: Waiting::new(ETHERNET + ip_mtu),
            for_others: ForOthers::default(),
            deadline: Some(now),
            fragments_left: false,
            addresses_changed: true,
        };
        stack.set_addresses();
        stack
    }

    /// Says how many bytes of the heap are left for this stack. How many TCP
    /// connections it has at a time follows from that: one for each 64 KiB, at
    /// least 8, and buffers of at most a quarter of it.
    pub fn set_heap(&mut self, bytes: usize) {
        self.tcp.set_heap(bytes);
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
        let mut stack = Self::build(None, mac, device, now, seed);
        stack.datagrams.in_place = udp == UdpWay::InPlace;
        stack.share_frames();
        stack
    }

    /// Has this stack keep the frames that concern every stack of the device.
    pub fn share_frames(&mut self) {
        self.for_others.start();
    }

    /// The frames that came since the last call and that every other stack of
    /// the device must [`Self::receive_shared`]; nothing without
    /// [`Self::share_frames`]. More than 16 between two calls are lost.
    pub fn take_shared(&mut self) -> impl Iterator<Item = Box<[u8]>> + use<> {
        self.for_others.take()
    }

    /// Takes in a frame that another stack of the device has received, found
    /// intact, and answers.
    #[cold]
    pub fn receive_shared(&mut self, now: Instant, frame: &[u8]) {
        self.outgoing.now = now;
        match Parsed::parse(frame, false) {
            Parsed::Arp => self.receive_arp(now, frame, Nowhere),
            Parsed::Ip(packet) => {
                self.receive_for_link(now, &packet, Nowhere);
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
        self.for_others.take_strays()
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
        self.outgoing.now = now;
        let Parsed::Ip(packet) = Parsed::parse(frame, false) else {
            return true;
        };
        let is_known = !self.is_stray(&packet);
        // Where there is no room to answer, the sender will ask again.
        if (is_known || is_last)
            && let Some(token) = device.transmit(now)
        {
            if self.outgoing.neighbors.recognize(&packet, now) {
                self.receive_other(now, &packet, token);
            } else if let Some(next_hop) = self.outgoing.neighbors.next_hop(packet.source) {
                self.waiting.keep(frame, next_hop, now);
            }
            self.deadline = Some(now);
        }
        is_known
    }

    /// Whether a packet is a TCP segment to this host of a connection that is
    /// not here.
    fn is_stray(&self, packet: &Packet<'_>) -> bool {
        let Some(segment) = Segment::of(packet) else {
            return false;
        };
        !segment.opens()
            && self.outgoing.neighbors.is_ours(packet.destination)
            && !self.tcp.knows(&segment.ends)
    }

    /// The IPv4 address and where it comes from, for
    /// [`Self::follow_ipv4`].
    pub fn ipv4(&self) -> Ipv4State {
        self.host.ipv4()
    }

    /// Takes the IPv4 address of another stack of the device.
    pub fn follow_ipv4(&mut self, now: Instant, state: Ipv4State) {
        if self.host.follow_ipv4(state) {
            self.set_addresses();
        }
        self.deadline = Some(now);
    }

    /// The addresses and routes of the link have changed: all others must know.
    #[cold]
    fn set_addresses(&mut self) {
        let link = &self.host.interface;
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            // Both have room for as many.
            let copied = addresses.extend_from_slice(link.ip_addrs());
            debug_assert!(copied.is_ok());
        });
        // Where they lead to is the affair of `neighbors`; smoltcp asks whether
        // there is one.
        self.interface.routes_mut().update(|routes| {
            routes.clear();
            let gateways = [
                link.routes().get_default_ipv4_route(),
                link.routes().get_default_ipv6_route(),
            ];
            for gateway in gateways.into_iter().flatten() {
                let copied = routes.push(gateway);
                debug_assert!(copied.is_ok());
            }
        });
        self.outgoing.neighbors.set_routes(link);
        self.host.moved(self.outgoing.now);
        self.host_at = Some(self.outgoing.now);
        self.addresses_changed = true;
    }

    /// One turn: receives up to 64 frames, lets the services answer them, sends
    /// what they have to say. Returns whether another turn at once may find more
    /// to do: not after datagrams alone, whose answers are sent.
    ///
    /// `now` must not go back. The device's tokens may be dropped unused.
    pub fn poll<D: NetworkDevice>(&mut self, now: Instant, device: &mut D) -> bool {
        self.outgoing.now = now;
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
            let stack = &mut *self;
            match receive.consume(move |frame| stack.ingest(now, frame, verify, token)) {
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
        others |= others_received | self.outgoing.neighbors.has_questions();
        if others {
            busy |= self.serve_others(now, device);
        }
        busy
    }

    /// The link is up again, and may be another one than before: tells it of this
    /// host, and asks for addresses and routers as at first.
    pub fn link_came_up(&mut self, now: Instant) {
        self.outgoing.now = now;
        self.host.link_came_up(now);
        self.set_addresses();
        self.deadline = Some(now);
    }

    /// Whether somebody has asked for the report: it is to be handed down by
    /// [`Self::set_status`] before the next [`Self::poll`].
    #[inline]
    pub fn wants_status(&self) -> bool {
        self.report.is_wanted()
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
        core::mem::take(&mut self.addresses_changed)
    }

    /// Hardware addresses of the multicast groups whose frames this host must
    /// hear; some may come twice.
    pub fn multicast_groups(&self) -> impl Iterator<Item = [u8; 6]> {
        announce::multicast_groups(&self.host.interface)
    }

    /// Tells the network of every address of this host unasked: gratuitous ARP
    /// and unsolicited neighbour advertisements. Returns whether all found
    /// room in the device; if not, the whole is to be repeated.
    pub fn announce<D: Device>(&self, now: Instant, device: &mut D) -> bool {
        announce::announce(now, &self.host.interface, device)
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
        self.outgoing.now = now;
        if !netconsole.send(&self.host.interface, &mut self.outgoing, device, next_line) {
            self.deadline = earlier(self.deadline, Some(now + LOG_RETRY));
        }
        netconsole.template(&self.host.interface, &mut self.outgoing)
    }

    /// The IP configuration.
    pub fn network(&self) -> status::Network {
        status::Network {
            impossible_sources: self.impossible_sources,
            ..self.host.report()
        }
    }

    /// As [`Self::ingest`], for the frames of which there are few.
    #[cold]
    #[inline(never)]
    fn ingest_again<T: TxToken>(
        &mut self,
        now: Instant,
        frame: &[u8],
        verify: bool,
        token: T,
    ) -> Outcome {
        self.ingest(now, frame, verify, token)
    }

    /// Decides which way a frame goes. See the module. What is on the way of a
    /// datagram becomes one function: a packet is then never written to memory.
    #[inline(always)]
    fn ingest<T: TxToken>(
        &mut self,
        now: Instant,
        frame: &[u8],
        verify: bool,
        token: T,
    ) -> Outcome {
        match Parsed::parse(frame, verify) {
            Parsed::Ip(packet) => self.receive_packet(now, &packet, token),
            Parsed::Arp => {
                self.for_others.keep(frame);
                self.receive_arp(now, frame, token);
                Outcome::Others
            }
            Parsed::Unknown => self.receive_tagged(now, frame, verify, token),
            Parsed::Corrupt => Outcome::Done,
        }
    }

    /// Takes in a frame with a tag of no VLAN, which has a priority only
    /// (IEEE 802.1Q, 9.6): a switch may send such to anybody.
    #[cold]
    #[inline(never)]
    fn receive_tagged<T: TxToken>(
        &mut self,
        now: Instant,
        frame: &[u8],
        verify: bool,
        token: T,
    ) -> Outcome {
        let Some((addresses, &[0x81, 0x00, high, low, ref rest @ ..])) = frame.split_at_checked(12)
        else {
            return Outcome::Done;
        };
        if u16::from_be_bytes([high, low]) & 0xfff != 0 {
            return Outcome::Done;
        }
        let frame = [addresses, rest].concat();
        match Parsed::parse(&frame, verify) {
            // Another tag is none of a priority only.
            Parsed::Corrupt | Parsed::Unknown => Outcome::Done,
            Parsed::Ip(_) | Parsed::Arp => self.ingest_again(now, &frame, verify, token),
        }
    }

    #[inline(always)]
    fn receive_packet<T: TxToken>(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        token: T,
    ) -> Outcome {
        if !self.outgoing.neighbors.is_addressed(packet.frame) {
            return Outcome::Done;
        }
        if packet.content == Content::Fragment {
            return self.receive_fragment(now, packet, token);
        }
        let is_for_link = match packet.content {
            Content::Neighbor | Content::RouterAdvertisement | Content::ListenerQuery(_) => true,
            Content::Udp(Datagram { to, .. }) => to == DHCP_CLIENT_PORT,
            _ => false,
        };
        if is_for_link {
            self.for_others.keep(packet.frame);
            if self.receive_for_link(now, packet, token) {
                return Outcome::Others;
            }
            return Outcome::Done;
        }
        if !self.outgoing.neighbors.recognize(packet, now) {
            self.wait(now, packet);
            return Outcome::Others;
        }
        if let Content::Udp(datagram) = &packet.content {
            let outgoing = &mut self.outgoing;
            let interface = &mut *self.interface;
            return match self
                .datagrams
                .receive(interface, packet, datagram, outgoing, token)
            {
                Ok(Received::Answered) => Outcome::Done,
                Ok(Received::InFragments) => Outcome::Fragments,
                Err(token) => self.receive_other(now, packet, token),
            };
        }
        if self.for_others.is_on() && self.is_stray(packet) {
            self.for_others.keep_stray(packet.frame);
            return Outcome::Others;
        }
        self.receive_other(now, packet, token)
    }

    fn receive_arp<T: TxToken>(&mut self, now: Instant, frame: &[u8], token: T) {
        let neighbors = &mut self.outgoing.neighbors;
        self.host.receive_arp(now, frame, neighbors, token);
        self.host_at = Some(now);
    }

    /// Takes in what speaks of the link. Returns whether it may have given
    /// others something to do.
    #[cold]
    fn receive_for_link<T: TxToken>(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        token: T,
    ) -> bool {
        let neighbors = &mut self.outgoing.neighbors;
        let effect = self.host.receive(now, packet, neighbors, token);
        self.host_at = Some(now);
        if effect == Effect::Moved {
            self.set_addresses();
        }
        self.tcp.set_mtu_v6(self.host.mtu_v6());
        effect != Effect::None
    }

    /// Keeps a packet whose sender cannot be answered yet, if it is for us and
    /// any way leads to him.
    #[cold]
    fn wait(&mut self, now: Instant, packet: &Packet<'_>) {
        if self.for_others.is_on() && self.is_stray(packet) {
            self.for_others.keep_stray(packet.frame);
            return;
        }
        let neighbors = &self.outgoing.neighbors;
        if neighbors.is_impossible(packet.source) {
            self.impossible_sources += 1;
            return;
        }
        let is_for_us = neighbors.is_ours(packet.destination);
        if is_for_us && let Some(next_hop) = neighbors.next_hop(packet.source) {
            self.waiting.keep(packet.frame, next_hop, now);
        }
    }

    /// Hands a packet to smoltcp that is for no service of UDP.
    #[inline(never)]
    fn receive_other<T: TxToken>(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        token: T,
    ) -> Outcome {
        let bytes = packet.frame.get(ETHERNET..).unwrap_or_default();
        let outgoing = &mut self.outgoing;
        let interface = &mut *self.interface;
        let mut device = OneFrame::new(bytes, Token { token, outgoing });
        if let Some(segment) = Segment::of(packet) {
            self.tcp
                .take_in(now, interface, &mut device, &segment, bytes);
        } else {
            if let Some(message) = TooBig::parse(packet.frame) {
                self.tcp.narrow(now, &message);
            }
            interface.poll_ingress_single(now, &mut device, &mut SocketSet::new(vec![]));
            // An echo's answer may go out in fragments.
            return Outcome::Fragments;
        }
        Outcome::Others
    }

    /// Takes in a fragment, and the packet that it completes.
    #[cold]
    fn receive_fragment<T: TxToken>(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        token: T,
    ) -> Outcome {
        let is_ours = self.outgoing.neighbors.is_ours(packet.destination);
        let whole = is_ours.then(|| self.reassembly.take_in(packet.frame, now));
        let Some(whole) = whole.flatten() else {
            return Outcome::Done;
        };
        // No device has seen the whole of it.
        match Parsed::parse(&whole, true) {
            // Nobody honest cuts a fragment up.
            Parsed::Ip(packet) if packet.content != Content::Fragment => {
                self.ingest_again(now, &whole, true, token)
            }
            _ => Outcome::Done,
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
            let Some(held) = self.waiting.next(&self.outgoing.neighbors) else {
                break;
            };
            busy = true;
            if let Outcome::Fragments = self.ingest_again(now, &held.frame, false, token)
                && !self.drain_fragments(now, device)
            {
                return busy;
            }
        }
        while device.transmit(now).is_some() {
            let neighbors = &mut self.outgoing.neighbors;
            let asked = self.waiting.next_question(neighbors, now);
            let Some(neighbor) = asked.or_else(|| neighbors.next_question()) else {
                break;
            };
            let is_optimistic = |address| self.host.is_optimistic(address);
            announce::ask(
                now,
                &self.host.interface,
                device,
                neighbor.ip(),
                is_optimistic,
            );
            busy = true;
        }
        busy
    }

    /// Everything but datagrams.
    fn serve_others<D: Device>(&mut self, now: Instant, device: &mut D) -> bool {
        self.interface.poll_maintenance(now);
        if self.host_at.is_some_and(|at| at <= now) {
            if self.host.poll(now, device) {
                self.set_addresses();
            }
            self.host_at = self.host.poll_at(now);
        }
        let mut busy = false;
        if !self.waiting.is_empty() || self.outgoing.neighbors.has_questions() {
            busy |= self.serve_waiting(now, device);
        }

        let interface = &mut *self.interface;
        let outgoing = &mut self.outgoing;
        let mut link = Link { device, outgoing };
        busy |= self.tcp.serve(now, interface, &mut link, &mut self.report);
        self.report.forget();
        busy |= self.report.is_wanted();
        let retry = now + DEVICE_RETRY;
        // What was due already waits for room in the device.
        let others = earlier(self.host_at, self.waiting.poll_at()).map(|at| at.max(retry));
        let fragments = self.fragments_left.then_some(retry);
        self.deadline = earlier(self.tcp.poll_at(now), earlier(others, fragments));
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
            if self.interface.poll_at(now, none).is_none() {
                self.fragments_left = false;
                return true;
            }
            if device.transmit(now).is_none() {
                return false;
            }
            let outgoing = &mut self.outgoing;
            let mut link = Link { device, outgoing };
            self.interface.poll_egress(now, &mut link, none);
        }
        false
    }
}
