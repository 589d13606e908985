//! Which way a frame goes.
//!
//! A frame is read once ([`Parsed`]), and [`Ingress::ingest`] decides by what was
//! found:
//!
//! - what speaks of the link itself (ARP, neighbour and router discovery, DHCP)
//!   goes to `link`, an interface of smoltcp that knows Ethernet and nothing else;
//! - a packet whose sender cannot be answered yet waits (`waiting.rs`);
//! - a datagram for a UDP service goes to that service (`in_place.rs`, `udp.rs`);
//! - all other packets go to `interface`, and to the TCP sockets.

use alloc::boxed::Box;
use alloc::vec;

use kickpath_abi::config::Config;
use smoltcp::iface::{self, Interface, SocketSet};
use smoltcp::phy::{Device, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress};

use crate::DHCP_CLIENT_PORT;
use crate::checksum::ETHERNET;
use crate::datagrams::Datagrams;
use crate::for_others::ForOthers;
use crate::host::{Effect, Host};
use crate::link::{self, Fill, Outgoing, Token};
use crate::neighbors::Neighbors;
use crate::packet::{Content, Datagram, Packet, Parsed};
use crate::path_mtu::TooBig;
use crate::pool::Pool;
use crate::reassembly::Reassembly;
use crate::stand_in::{Described, OneFrame, Rare};
use crate::waiting::Waiting;

/// Bytes of heap that are taken for granted before [`Pool::set_heap`].
const HEAP: usize = 16 << 20;
/// Memory that the table of neighbours may take, in bytes.
const NEIGHBOR_MEMORY: usize = 1 << 20;

pub(crate) enum Outcome {
    /// It is answered, or was for nobody.
    Done,
    /// It may have given others than the UDP services something to do.
    Others,
    /// Others as [`Self::Others`], and fragments of an answer may be left.
    Fragments,
}

/// Everybody who takes frames in. See the module.
pub(crate) struct Ingress {
    pub(crate) host: Host,
    /// When it has something to do.
    pub(crate) host_at: Option<Instant>,
    /// At the level of IP: for all others.
    pub(crate) interface: Box<Interface>,
    pub(crate) outgoing: Outgoing,
    reassembly: Reassembly,
    /// Packets that were dropped because of where they claim to be from.
    pub(crate) impossible_sources: u64,
    pub(crate) datagrams: Datagrams,
    pub(crate) tcp: Pool,
    pub(crate) waiting: Waiting,
    /// What other stacks with this address must hear.
    pub(crate) for_others: ForOthers,
    /// Since they were last asked for.
    pub(crate) addresses_changed: bool,
}

impl Ingress {
    /// With a configuration it finds its addresses, without one it follows another.
    pub(crate) fn new<D: Device + ?Sized>(
        config: Option<&Config>,
        mac: [u8; 6],
        device: &mut D,
        now: Instant,
        seed: u64,
    ) -> Self {
        let mac = EthernetAddress(mac);
        let capabilities = device.capabilities();
        let ip_mtu = capabilities.ip_mtu();
        let host = Host::new(config, mac, capabilities.clone(), now, seed);
        let mut settings = iface::Config::new(HardwareAddress::Ip);
        settings.random_seed = seed;
        let fill = Fill::of(&capabilities);
        let mut device = Described(link::ip_capabilities(capabilities));
        let mut this = Self {
            host,
            host_at: Some(now),
            interface: Box::new(Interface::new(settings, &mut device, now)),
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
            waiting: Waiting::new(ETHERNET + ip_mtu),
            for_others: ForOthers::default(),
            addresses_changed: true,
        };
        this.set_addresses();
        this
    }

    /// As [`Self::ingest`], for the frames of which there are few.
    #[cold]
    #[inline(never)]
    pub(crate) fn ingest_again<T: TxToken>(
        &mut self,
        frame: &[u8],
        verify: bool,
        token: T,
    ) -> Outcome {
        self.ingest(frame, verify, token)
    }

    /// Decides which way a frame goes. See the module. What is on the way of a
    /// datagram becomes one function: a packet is then never written to memory.
    #[inline(always)]
    pub(crate) fn ingest<T: TxToken>(&mut self, frame: &[u8], verify: bool, token: T) -> Outcome {
        match Parsed::parse(frame, verify) {
            Parsed::Ip(packet) => self.receive_packet(packet, token),
            Parsed::Arp => self.receive_of_link(frame, token),
            Parsed::Unknown => self.receive_tagged(frame, verify, token),
            Parsed::Corrupt => Outcome::Done,
        }
    }

    /// Takes in a frame with a tag of no VLAN, which has a priority only
    /// (IEEE 802.1Q, 9.6): a switch may send such to anybody.
    #[cold]
    #[inline(never)]
    fn receive_tagged<T: TxToken>(&mut self, frame: &[u8], verify: bool, token: T) -> Outcome {
        let Some((addresses, &[0x81, 0x00, high, low, ref rest @ ..])) = frame.split_at_checked(12)
        else {
            return Outcome::Done;
        };
        if u16::from_be_bytes([high, low]) & 0xfff != 0 {
            return Outcome::Done;
        }
        let frame = [addresses, rest].concat();
        match Parsed::parse_again(&frame) {
            // Another tag is none of a priority only.
            Parsed::Corrupt | Parsed::Unknown => Outcome::Done,
            Parsed::Ip(_) | Parsed::Arp => self.ingest_again(&frame, verify, token),
        }
    }

    /// The packet is taken apart, and put together again for those who take the whole:
    /// so a datagram's need not be in memory.
    #[inline(always)]
    fn receive_packet<T: TxToken>(&mut self, packet: Packet<'_>, token: T) -> Outcome {
        let frame = packet.frame;
        if !self.outgoing.neighbors.is_addressed(frame) {
            return Outcome::Done;
        }
        let is_for_link = match packet.content {
            Content::Fragment => return self.receive_fragment(frame, token),
            Content::Neighbor(_) | Content::RouterAdvertisement(_) | Content::ListenerQuery(_) => {
                true
            }
            Content::Udp(Datagram { to, .. }) => to == DHCP_CLIENT_PORT,
            _ => false,
        };
        if is_for_link {
            return self.receive_of_link(frame, token);
        }
        let neighbors = &mut self.outgoing.neighbors;
        let Some(place) = neighbors.recognize(frame, packet.source, self.outgoing.now) else {
            self.wait(frame);
            return Outcome::Others;
        };
        let mut token = token;
        if let Content::Udp(datagram) = &packet.content {
            let (datagrams, outgoing) = (&mut self.datagrams, &mut self.outgoing);
            let interface = &mut *self.interface;
            token = match datagrams.receive(interface, &packet, datagram, place, outgoing, token) {
                Ok(false) => return Outcome::Done,
                Ok(true) => return Outcome::Fragments,
                Err(token) => token,
            };
        }
        let packet = Packet { frame, ..packet };
        if self.for_others.on && self.is_stray(&packet) {
            self.for_others.keep_stray(packet.frame);
            return Outcome::Others;
        }
        self.receive_other(&packet, token)
    }

    /// Takes in what speaks of the link: a packet, or a message of ARP.
    #[cold]
    #[inline(never)]
    fn receive_of_link<T: TxToken>(&mut self, frame: &[u8], token: T) -> Outcome {
        self.for_others.keep(frame);
        let token = Rare(&mut Some(token));
        match Parsed::parse_again(frame) {
            Parsed::Arp => self.receive_arp(frame, token),
            Parsed::Ip(packet) if self.receive_for_link(&packet, token) => (),
            _ => return Outcome::Done,
        }
        Outcome::Others
    }

    pub(crate) fn receive_arp(&mut self, frame: &[u8], token: Rare<'_>) {
        let now = self.outgoing.now;
        let neighbors = &mut self.outgoing.neighbors;
        self.host.receive_arp(now, frame, neighbors, token);
        self.host_at = Some(now);
    }

    /// Takes in what speaks of the link. Returns whether it may have given
    /// others something to do.
    #[cold]
    pub(crate) fn receive_for_link(&mut self, packet: &Packet<'_>, token: Rare<'_>) -> bool {
        let now = self.outgoing.now;
        let neighbors = &mut self.outgoing.neighbors;
        let effect = self.host.receive(now, packet, neighbors, token);
        self.host_at = Some(now);
        if effect == Effect::Moved {
            self.set_addresses();
        }
        self.tcp.mtu_v6 = self.host.ipv6.mtu;
        effect != Effect::None
    }

    /// Keeps a packet whose sender cannot be answered yet, if it is for us and
    /// any way leads to him.
    #[cold]
    fn wait(&mut self, frame: &[u8]) {
        let Parsed::Ip(packet) = Parsed::parse_again(frame) else {
            return;
        };
        if self.for_others.on && self.is_stray(&packet) {
            self.for_others.keep_stray(frame);
            return;
        }
        let neighbors = &self.outgoing.neighbors;
        if neighbors.is_impossible(packet.source) {
            self.impossible_sources += 1;
            return;
        }
        let is_for_us = neighbors.is_ours(packet.destination);
        if is_for_us && let Some(next_hop) = neighbors.next_hop(packet.source) {
            self.waiting.keep(frame, next_hop, self.outgoing.now);
        }
    }

    /// Hands a packet to smoltcp that is for no service of UDP.
    #[inline(never)]
    pub(crate) fn receive_other<T: TxToken>(&mut self, packet: &Packet<'_>, token: T) -> Outcome {
        let bytes = packet.frame.get(ETHERNET..).unwrap_or_default();
        let outgoing = &mut self.outgoing;
        let now = outgoing.now;
        let interface = &mut *self.interface;
        let mut device = OneFrame::new(bytes, Token { token, outgoing });
        if let Content::Tcp(segment) = &packet.content {
            self.tcp
                .take_in(now, interface, &mut device, packet, segment);
            return Outcome::Others;
        }
        if let Some(message) = TooBig::parse(packet) {
            self.tcp.narrow(now, &message);
        }
        interface.poll_ingress_single(now, &mut device, &mut SocketSet::new(vec![]));
        // An echo's answer may go out in fragments.
        Outcome::Fragments
    }

    /// Takes in a fragment, and the packet that it completes.
    #[cold]
    fn receive_fragment<T: TxToken>(&mut self, frame: &[u8], token: T) -> Outcome {
        let whole = match Parsed::parse_again(frame) {
            Parsed::Ip(packet) if self.outgoing.neighbors.is_ours(packet.destination) => {
                self.reassembly.take_in(frame, self.outgoing.now)
            }
            _ => None,
        };
        let Some(whole) = whole else {
            return Outcome::Done;
        };
        // No device has seen the whole of it.
        match Parsed::parse(&whole, true) {
            // Nobody honest cuts a fragment up.
            Parsed::Ip(packet) if packet.content != Content::Fragment => {
                self.ingest_again(&whole, true, token)
            }
            _ => Outcome::Done,
        }
    }

    /// Whether a packet is a TCP segment to this host of a connection that is
    /// not here.
    pub(crate) fn is_stray(&self, packet: &Packet<'_>) -> bool {
        let Content::Tcp(segment) = &packet.content else {
            return false;
        };
        !segment.opens
            && self.outgoing.neighbors.is_ours(packet.destination)
            && !self.tcp.knows(&packet.ends(segment))
    }

    /// The addresses and routes of the link have changed: all others must know.
    #[cold]
    pub(crate) fn set_addresses(&mut self) {
        let link = &mut self.host.interface;
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            // Both have room for as many.
            let copied = addresses.extend_from_slice(link.ip_addrs());
            debug_assert!(copied.is_ok());
        });
        // Where they lead to is the affair of `neighbors`; smoltcp asks whether
        // there is one.
        let routes = self.interface.routes_mut();
        link.routes_mut()
            .update(|known| routes.update(|copy| copy.clone_from(known)));
        self.outgoing.neighbors.set_routes(link);
        self.host.listener.announce(self.outgoing.now);
        self.host_at = Some(self.outgoing.now);
        self.addresses_changed = true;
    }
}
