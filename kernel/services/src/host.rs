//! This host on its link: its addresses and how it gets them, what it says of
//! itself and how it answers those who ask for it.

use alloc::boxed::Box;
use alloc::vec;

use kickpath_abi::config::Config;
use smoltcp::iface::{self, Interface, SocketSet};
use smoltcp::phy::DeviceCapabilities;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress};

use crate::address::Ipv4;
use crate::arp::{self, Arp, Conflicts};
use crate::discovery::{Kind, Message};
use crate::mld::Listener;
use crate::neighbors::Neighbors;
use crate::packet::{Address, Content, Packet};
use crate::pool::earlier;
use crate::slaac::Slaac;
use crate::stand_in::{Described, Nowhere, OneFrame, Rare};

pub(crate) struct Host {
    /// At the level of Ethernet: it has the addresses, and the DHCP client's socket.
    pub(crate) interface: Box<Interface>,
    pub(crate) ipv4: Ipv4,
    pub(crate) ipv6: Slaac,
    conflicts: Conflicts,
    pub(crate) listener: Listener,
}

/// What came of a message about the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It was for nobody here.
    None,
    /// Somebody may have something to do.
    Heard,
    /// Addresses or routes are others.
    Moved,
}

impl Host {
    /// With a configuration the host finds its addresses, without one it follows
    /// another stack.
    pub(crate) fn new(
        config: Option<&Config>,
        mac: EthernetAddress,
        capabilities: DeviceCapabilities,
        now: Instant,
        seed: u64,
    ) -> Self {
        let ip_mtu = capabilities.ip_mtu();
        let mut settings = iface::Config::new(HardwareAddress::Ethernet(mac));
        settings.random_seed = seed;
        let mut interface = Box::new(Interface::new(settings, &mut Described(capabilities), now));
        let mut ipv6 = Slaac::new(mac, &mut interface, ip_mtu, now);
        let ipv4 = match config {
            Some(config) => Ipv4::new(config, &mut interface, now),
            None => {
                ipv6.only_listen();
                Ipv4::following()
            }
        };
        Self {
            interface,
            ipv4,
            ipv6,
            conflicts: Conflicts::default(),
            listener: Listener::new(now),
        }
    }

    /// The link is up again, and may be another one.
    pub(crate) fn link_came_up(&mut self, now: Instant) {
        self.ipv4.link_came_up(now);
        self.ipv6.link_came_up(now, &mut self.interface);
    }

    /// Does what is due. Returns whether addresses or routes changed.
    pub(crate) fn poll(&mut self, now: Instant, device: &mut Rare<'_>) -> bool {
        let interface = &mut *self.interface;
        let moved = self.ipv4.poll(now, interface, device) | self.ipv6.poll(now, interface, device);
        if self.ipv6.speaks {
            self.listener.poll(now, interface, device);
        }
        moved
    }

    pub(crate) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let reports = self.listener.poll_at().filter(|_| self.ipv6.speaks);
        let ipv4 = self.ipv4.poll_at(now, &mut self.interface);
        earlier(earlier(ipv4, self.ipv6.poll_at()), reports)
    }

    /// Takes in a message of ARP, and answers.
    #[cold]
    pub(crate) fn receive_arp(
        &mut self,
        now: Instant,
        frame: &[u8],
        neighbors: &mut Neighbors,
        token: Rare<'_>,
    ) {
        let Some(arp) = Arp::parse(frame) else { return };
        let mac = neighbors.mac;
        if arp.mac == mac {
            // Our own, which somebody has sent back.
            return;
        }
        if neighbors.is_ours(Address::v4(arp.sender)) {
            if self.conflicts.notice(&arp, now) {
                arp::ask(mac, arp.sender, arp.sender, token);
            }
            return;
        }
        neighbors.learn_from_arp(&arp, now);
        if arp.asks() && neighbors.is_ours(Address::v4(arp.target)) {
            arp.answer(mac, token);
        }
        // smoltcp's DHCP client renews its lease at a server whose address it knows.
        let (mut nowhere, none) = (Nowhere, &mut SocketSet::new(vec![]));
        let mut device = OneFrame::new(frame, Rare(&mut nowhere));
        self.interface.poll_ingress_single(now, &mut device, none);
    }

    /// Takes in what else speaks of the link, and answers.
    #[cold]
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        neighbors: &mut Neighbors,
        token: Rare<'_>,
    ) -> Effect {
        let interface = &mut *self.interface;
        match packet.content {
            Content::RouterAdvertisement(message) => {
                return match self.ipv6.take_in(now, interface, packet, message) {
                    true => Effect::Moved,
                    false => Effect::Heard,
                };
            }
            Content::Neighbor(message) => {
                let message = Message::parse(packet, message);
                return message.map_or(Effect::None, |message| {
                    self.receive_discovery(now, packet, &message, neighbors, token)
                });
            }
            Content::ListenerQuery(query) => self.listener.receive_query(packet, query, now),
            // To the port of DHCP clients.
            _ if !self.ipv4.receive(now, interface, packet.frame) => return Effect::None,
            _ => (),
        }
        Effect::Heard
    }

    #[cold]
    fn receive_discovery(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        message: &Message,
        neighbors: &mut Neighbors,
        token: Rare<'_>,
    ) -> Effect {
        let mac = neighbors.mac;
        if message.from == mac {
            // Our own, which somebody has sent back.
            return Effect::None;
        }
        let is_about_us = neighbors.is_ours(Address::v6(message.target.octets()));
        let is_optimistic = self.ipv6.is_optimistic(message.target);
        let is_claim = match message.kind {
            Kind::Solicitation => message.source.is_unspecified() && is_optimistic,
            Kind::Advertisement { .. } => true,
        };
        if is_about_us && is_claim {
            let (ipv6, interface) = (&mut self.ipv6, &mut *self.interface);
            let is_lost = ipv6.notice_duplicate(interface, message.target, message.from);
            return if is_lost { Effect::Moved } else { Effect::None };
        }
        neighbors.learn_from_discovery(message, packet.destination, now);
        if is_about_us {
            message.answer(mac, is_optimistic, token);
        }
        Effect::Heard
    }
}
