//! The interface's IPv4 address: static, or by DHCP with a fallback.

use alloc::string::ToString;
use alloc::vec;

use kickpath_abi::config::{self, Config, Ipv4Config};
use kickpath_abi::status;
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::dhcpv4;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv4Address, Ipv4Cidr};

use crate::arp;
use crate::dhcp::{self, is_host};
use crate::pool::earlier;
use crate::stand_in::{Nowhere, OneFrame, Rare};

/// How long DHCP is given before [`Ipv4Config::FALLBACK`] is taken.
pub(crate) const DHCP_TIMEOUT: Duration = Duration::from_secs(4);
/// Between two DISCOVERs while the boot waits for an address, and afterwards.
const DISCOVER_EAGERLY: Duration = Duration::from_secs(2);
const DISCOVER_PATIENTLY: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Source {
    #[default]
    None,
    Static,
    Dhcp,
    Fallback,
}

impl Source {
    /// The word for [`status::Network::ipv4_source`].
    fn word(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Static => "static",
            Self::Dhcp => "dhcp",
            Self::Fallback => "fallback",
        }
    }
}

/// The IPv4 address of a [`crate::Stack`], with its gateway and where it comes
/// from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ipv4State {
    source: Source,
    address: Option<Ipv4Cidr>,
    gateway: Option<Ipv4Address>,
}

/// The state behind the interface's IPv4 address.
pub(crate) struct Ipv4 {
    pub(crate) state: Ipv4State,
    dhcp: Option<Dhcp>,
    /// For what is worth a line of the log.
    level: log::Level,
    announces: bool,
}

/// The DHCP client's socket, in a set of its own: smoltcp builds a whole
/// message whenever it asks the socket for something to send.
struct Dhcp {
    set: SocketSet<'static>,
    socket: SocketHandle,
    filter: dhcp::Filter,
    /// When the fallback address is taken.
    fallback_at: Option<Instant>,
    /// Begun anew because the link came up: the address is kept meanwhile.
    begins_anew: bool,
}

impl Ipv4 {
    /// Without an address, until [`Self::take_over`].
    pub(crate) fn following() -> Self {
        Self {
            state: Ipv4State::default(),
            dhcp: None,
            level: log::Level::Debug,
            announces: false,
        }
    }

    /// Does as another one of the same device. Returns whether the address
    /// changed.
    pub(crate) fn take_over(&mut self, interface: &mut Interface, state: Ipv4State) -> bool {
        let changed = self.state != state;
        if changed {
            self.set_ipv4(interface, state);
        }
        changed
    }

    pub(crate) fn new(config: &Config, interface: &mut Interface, now: Instant) -> Self {
        let mut this = Self::following();
        this.level = log::Level::Info;
        match config.ipv4 {
            Ipv4Config::Static(address) => {
                let state = Ipv4State {
                    source: Source::Static,
                    address: Some(cidr(address)),
                    gateway: config.gateway,
                };
                this.set_ipv4(interface, state);
            }
            Ipv4Config::Dhcp => {
                let mut socket = dhcpv4::Socket::new();
                set_retry(&mut socket, DISCOVER_EAGERLY);
                let mut set = SocketSet::new(vec![]);
                let socket = set.add(socket);
                this.dhcp = Some(Dhcp {
                    set,
                    socket,
                    filter: dhcp::Filter::default(),
                    fallback_at: Some(now + DHCP_TIMEOUT),
                    begins_anew: false,
                });
            }
        }
        this
    }

    /// Takes in a frame to the port of DHCP clients; returns whether there is a
    /// client.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        frame: &[u8],
    ) -> bool {
        let Some(dhcp) = &mut self.dhcp else {
            return false;
        };
        if let Some(frame) = dhcp.filter.admit(frame, now) {
            let answer = Rare(&mut Nowhere);
            interface.poll_ingress_single(now, &mut OneFrame::new(&frame, answer), &mut dhcp.set);
        }
        true
    }

    /// Does what is due. Returns whether the address changed.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        device: &mut Rare<'_>,
    ) -> bool {
        let mut changed = false;
        if let Some(mut dhcp) = self.dhcp.take() {
            interface.poll_egress(now, device, &mut dhcp.set);
            changed = self.poll_dhcp(now, interface, &mut dhcp);
            self.dhcp = Some(dhcp);
        }
        if self.announces
            && let HardwareAddress::Ethernet(mac) = interface.hardware_addr()
            && let Some(token) = device.transmit(now)
        {
            self.announces = false;
            if let Some(address) = self.state.address {
                let address = address.address().octets();
                arp::ask(mac.0, address, address, token);
            }
        }
        changed
    }

    /// The link is up again, and may be another one: it hears where we are, and a
    /// DHCP server is asked anew (RFC 2131, 3.7). Until it answers, or the lease
    /// ends, the address stays.
    pub(crate) fn link_came_up(&mut self, now: Instant) {
        self.announces = true;
        let Some(dhcp) = &mut self.dhcp else { return };
        let socket = dhcp.set.get_mut::<dhcpv4::Socket>(dhcp.socket);
        socket.reset();
        set_retry(socket, DISCOVER_EAGERLY);
        dhcp.begins_anew = true;
        dhcp.fallback_at = match self.state.source {
            Source::Dhcp => dhcp.filter.lease_ends_at,
            Source::None => Some(now + DHCP_TIMEOUT),
            _ => None,
        };
    }

    fn poll_dhcp(&mut self, now: Instant, interface: &mut Interface, dhcp: &mut Dhcp) -> bool {
        let socket = dhcp.set.get_mut::<dhcpv4::Socket>(dhcp.socket);
        match socket.poll() {
            // smoltcp renews a lease at the address that the offer came from.
            // From 0.0.0.0 that would end in an assertion.
            Some(dhcpv4::Event::Configured(lease)) if lease.server.address.is_unspecified() => {
                log::warn!("DHCP: the server has no address; its lease is not taken");
                socket.reset();
                false
            }
            Some(dhcpv4::Event::Configured(lease)) => {
                let state = Ipv4State {
                    source: Source::Dhcp,
                    address: Some(lease.address),
                    gateway: lease.router,
                };
                dhcp.fallback_at = None;
                dhcp.begins_anew = false;
                self.announces = true;
                self.set_ipv4(interface, state);
                true
            }
            Some(dhcpv4::Event::Deconfigured) if dhcp.begins_anew => {
                dhcp.begins_anew = false;
                false
            }
            // Also the very first event.
            Some(dhcpv4::Event::Deconfigured) => {
                if self.state.source != Source::Dhcp {
                    return false;
                }
                log::warn!("DHCP: the lease has ended");
                set_retry(socket, DISCOVER_EAGERLY);
                dhcp.fallback_at = Some(now + DHCP_TIMEOUT);
                self.clear_ipv4(interface);
                true
            }
            None => match dhcp.fallback_at {
                Some(at) if now >= at => {
                    dhcp.fallback_at = None;
                    set_retry(socket, DISCOVER_PATIENTLY);
                    log::warn!("DHCP: no answer for {} s", DHCP_TIMEOUT.secs());
                    let state = Ipv4State {
                        source: Source::Fallback,
                        address: Some(cidr(Ipv4Config::FALLBACK)),
                        gateway: None,
                    };
                    self.set_ipv4(interface, state);
                    true
                }
                _ => false,
            },
        }
    }

    /// An address that is none clears what there is.
    fn set_ipv4(&mut self, interface: &mut Interface, state: Ipv4State) {
        self.clear_ipv4(interface);
        let Some(address) = state.address else {
            return;
        };
        if !is_host(address.address()) || address.prefix_len() > 32 {
            log::error!("IPv4 address {address} is not a host's; not taken");
            return;
        }
        interface.update_ip_addrs(|addresses| {
            // There is room: IPv6 has five addresses at most. IPv4 comes first
            // because it is looked for with every frame.
            let inserted = addresses.insert(0, IpCidr::Ipv4(address));
            debug_assert_eq!(inserted, Ok(()));
        });
        self.state = Ipv4State {
            gateway: None,
            ..state
        };
        log::log!(
            self.level,
            "IPv4 address {address} ({})",
            state.source.word()
        );
        let Some(gateway) = state.gateway else {
            return;
        };
        if !is_host(gateway) {
            log::warn!("gateway {gateway} is not a host; not taken");
            return;
        }
        let added = interface.routes_mut().add_default_ipv4_route(gateway);
        debug_assert!(added.is_ok());
        self.state.gateway = Some(gateway);
        log::log!(self.level, "IPv4 gateway {gateway}");
    }

    fn clear_ipv4(&mut self, interface: &mut Interface) {
        interface.update_ip_addrs(|addresses| {
            addresses.retain(|address| matches!(address, IpCidr::Ipv6(_)));
        });
        interface.routes_mut().remove_default_ipv4_route();
        self.state = Ipv4State::default();
    }

    pub(crate) fn poll_at(&mut self, now: Instant, interface: &mut Interface) -> Option<Instant> {
        let due = self.announces.then_some(now);
        let dhcp = self.dhcp.as_ref().map(|dhcp| {
            let at = interface.poll_at(now, &dhcp.set);
            earlier(at, dhcp.fallback_at)
        });
        earlier(due, dhcp.flatten())
    }

    pub(crate) fn report(&self, interface: &Interface) -> status::Network {
        let mut report = status::Network {
            ipv4_source: self.state.source.word().to_string(),
            gateway: self
                .state
                .gateway
                .map(|it| it.to_string())
                .unwrap_or_default(),
            ..status::Network::default()
        };
        for address in interface.ip_addrs() {
            match address {
                IpCidr::Ipv4(address) => report.ipv4.push(address.to_string()),
                IpCidr::Ipv6(address) => report.ipv6.push(address.to_string()),
            }
        }
        report
    }
}

fn set_retry(socket: &mut dhcpv4::Socket<'_>, discover: Duration) {
    let mut retry = socket.get_retry_config();
    retry.discover_timeout = discover;
    retry.initial_request_timeout = DISCOVER_EAGERLY;
    socket.set_retry_config(retry);
}

fn cidr(address: config::Ipv4Cidr) -> Ipv4Cidr {
    // Longer prefixes cannot be parsed; a hand-made one is cut.
    Ipv4Cidr::new(address.address, address.prefix.min(32))
}
