//! Stateless address autoconfiguration for IPv6 (RFC 4862) and the default
//! router (RFC 4861, 6.3), without duplicate address detection.
//!
//! smoltcp 0.14 has a `proto-ipv6-slaac` feature. It is off: an advertised prefix
//! longer than 128 bits or of multicast ends in one of its assertions; after the
//! last solicitation, and whenever either the sockets or the prefixes have no
//! deadline, its `Interface::poll_at` is wrong (the minimum of two `Option`s is
//! `None` if one of them is), so that a guest would spin or sleep through TCP's
//! retransmissions; and of several prefixes in an advertisement it takes the last.

use alloc::vec::Vec;

use smoltcp::iface::{Interface, Route};
use smoltcp::phy::{Device, TxToken};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, HardwareAddress, Icmpv6Message, Icmpv6Packet, Icmpv6Repr,
    IpCidr, IpProtocol, Ipv6Address, Ipv6Cidr, Ipv6Packet, NdiscOption, NdiscOptionRepr,
    NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr, RawHardwareAddress,
};

use crate::announce;
use crate::pool::earlier;

/// RFC 4861, 10: MAX_RTR_SOLICITATIONS and RTR_SOLICITATION_INTERVAL.
const SOLICITATIONS: u8 = 3;
const SOLICITATION_INTERVAL: Duration = Duration::from_secs(4);
/// Addresses that are held at a time; further prefixes are ignored.
const MAX_ADDRESSES: usize = 4;
/// Routers that are held at a time; the oldest is the one in use.
const MAX_ROUTERS: usize = 2;
/// RFC 4862, 5.5.3 e: an advertisement cannot bring an address's remaining life
/// time below this.
const TWO_HOURS: Duration = Duration::from_secs(2 * 60 * 60);

const LINK_LOCAL_PREFIX: Ipv6Address = Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
const ALL_ROUTERS: Ipv6Address = Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// RFC 4861, 4.1: the hop limit that shows that a packet is from this link.
const HOP_LIMIT: u8 = 255;
/// RFC 4861, 4.1 with a source link-layer address option.
const SOLICITATION_LENGTH: usize = announce::HEADERS_V6 + 16;

/// Something that ends.
#[derive(Clone, Copy)]
struct Until<T> {
    value: T,
    end: Instant,
}

/// See the module.
pub(crate) struct Slaac {
    mac: EthernetAddress,
    link_local: Ipv6Cidr,
    /// For what is worth a line of the log.
    level: log::Level,
    solicitations_left: u8,
    solicit_at: Instant,
    addresses: Vec<Until<Ipv6Cidr>>,
    routers: Vec<Until<Ipv6Address>>,
}

/// Whether a frame looks like a router advertisement.
#[inline]
pub(crate) fn is_advertisement(frame: &[u8]) -> bool {
    const ICMPV6: u8 = 58;
    const ROUTER_ADVERTISEMENT: u8 = 134;
    frame.len() > 54
        && frame[12..14] == [0x86, 0xdd]
        && frame[20] == ICMPV6
        && frame[54] == ROUTER_ADVERTISEMENT
}

impl Slaac {
    /// Gives the interface its link-local address.
    pub(crate) fn new(mac: EthernetAddress, interface: &mut Interface, now: Instant) -> Self {
        let prefix = Ipv6Cidr::new(LINK_LOCAL_PREFIX, 64);
        // An Ethernet address has an EUI-64, and the prefix is 64 bits long.
        let link_local = address_under(&prefix, mac).unwrap_or(prefix);
        let mut this = Self {
            mac,
            link_local,
            level: log::Level::Info,
            solicitations_left: SOLICITATIONS,
            solicit_at: now,
            addresses: Vec::with_capacity(MAX_ADDRESSES),
            routers: Vec::with_capacity(MAX_ROUTERS),
        };
        this.apply(interface);
        this
    }

    /// Solicits no routers: another one does, and tells what it hears.
    pub(crate) fn only_listen(&mut self) {
        self.solicitations_left = 0;
        self.level = log::Level::Debug;
    }

    /// Solicits routers and ends what has expired. Returns whether an address or
    /// the route changed.
    pub(crate) fn poll<D: Device + ?Sized>(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        device: &mut D,
    ) -> bool {
        if self.solicitations_left > 0
            && now >= self.solicit_at
            && let Some(token) = device.transmit(now)
        {
            token.consume(SOLICITATION_LENGTH, |frame| self.write_solicitation(frame));
            self.solicitations_left -= 1;
            self.solicit_at = now + SOLICITATION_INTERVAL;
        }
        let before = (self.addresses.len(), self.routers.len());
        self.addresses.retain(|address| address.end > now);
        self.routers.retain(|router| router.end > now);
        let changed = before != (self.addresses.len(), self.routers.len());
        if changed {
            self.apply(interface);
        }
        changed
    }

    /// When [`Self::poll`] is due.
    pub(crate) fn poll_at(&self) -> Option<Instant> {
        let solicit = (self.solicitations_left > 0).then_some(self.solicit_at);
        let addresses = self.addresses.iter().map(|address| address.end).min();
        let routers = self.routers.iter().map(|router| router.end).min();
        earlier(solicit, earlier(addresses, routers))
    }

    /// Takes a router advertisement in. Returns whether an address or the route
    /// changed; what is not valid by RFC 4861, 6.1.2 is ignored.
    pub(crate) fn hear(&mut self, now: Instant, interface: &mut Interface, frame: &[u8]) -> bool {
        let changed = self.take_in(now, frame).unwrap_or(false);
        if changed {
            self.apply(interface);
        }
        changed
    }

    fn take_in(&mut self, now: Instant, frame: &[u8]) -> Option<bool> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
        let router = ip.src_addr();
        if ip.hop_limit() != HOP_LIMIT
            || !Ipv6Cidr::new(LINK_LOCAL_PREFIX, 64).contains_addr(&router)
            || ip.next_header() != IpProtocol::Icmpv6
        {
            return None;
        }
        let icmp = Icmpv6Packet::new_checked(ip.payload()).ok()?;
        if icmp.msg_type() != Icmpv6Message::RouterAdvert
            || icmp.msg_code() != 0
            || !icmp.verify_checksum(&router, &ip.dst_addr())
        {
            return None;
        }
        // An option of length 0 makes the whole message invalid, so all are read
        // before any is taken.
        let mut prefixes = [None; MAX_ADDRESSES];
        let mut options = icmp.payload();
        let mut slots = prefixes.iter_mut();
        while !options.is_empty() {
            let option = NdiscOption::new_checked(options).ok()?;
            let length = usize::from(option.data_len()) * 8;
            if length == 0 {
                return None;
            }
            if let Ok(NdiscOptionRepr::PrefixInformation(prefix)) = NdiscOptionRepr::parse(&option)
                && let Some(slot) = slots.next()
            {
                *slot = Some(prefix);
            }
            options = options.get(length..)?;
        }

        let lifetime = icmp.router_lifetime();
        let mut changed = self.set_router(router, now, lifetime);
        if lifetime > Duration::ZERO {
            self.solicitations_left = 0;
        }
        for prefix in prefixes.iter().flatten() {
            changed |= self.set_prefix(prefix, now);
        }
        Some(changed)
    }

    /// RFC 4861, 6.3.4.
    fn set_router(&mut self, router: Ipv6Address, now: Instant, lifetime: Duration) -> bool {
        let end = now + lifetime;
        let known = self.routers.iter().position(|known| known.value == router);
        match known {
            Some(index) if lifetime == Duration::ZERO => {
                self.routers.remove(index);
                true
            }
            Some(index) => {
                self.routers[index].end = end;
                false
            }
            None if lifetime > Duration::ZERO && self.routers.len() < MAX_ROUTERS => {
                self.routers.push(Until { value: router, end });
                true
            }
            None => false,
        }
    }

    /// RFC 4862, 5.5.3.
    fn set_prefix(&mut self, prefix: &NdiscPrefixInformation, now: Instant) -> bool {
        let valid = prefix.valid_lifetime;
        if !prefix.flags.contains(NdiscPrefixInfoFlags::ADDRCONF)
            || prefix.preferred_lifetime > valid
            // An Ethernet interface identifier has 64 bits (RFC 2464, 4).
            || prefix.prefix_len != 64
            || prefix.prefix.is_multicast()
            || prefix.prefix.is_unspecified()
            || prefix.prefix.is_loopback()
            || Ipv6Cidr::new(LINK_LOCAL_PREFIX, 10).contains_addr(&prefix.prefix)
        {
            return false;
        }
        let prefix = Ipv6Cidr::new(prefix.prefix, prefix.prefix_len);
        let Some(address) = address_under(&prefix, self.mac) else {
            return false;
        };
        let end = now + valid;
        if let Some(known) = self
            .addresses
            .iter_mut()
            .find(|known| known.value == address)
        {
            known.end = if valid > TWO_HOURS || end > known.end {
                end
            } else {
                known.end.min(now + TWO_HOURS)
            };
            return false;
        }
        let has_room = self.addresses.len() < MAX_ADDRESSES;
        if valid == Duration::ZERO || !has_room {
            return false;
        }
        log::log!(self.level, "IPv6 address {address}");
        self.addresses.push(Until {
            value: address,
            end,
        });
        true
    }

    /// Makes the interface's IPv6 addresses and route the ones known here.
    fn apply(&mut self, interface: &mut Interface) {
        interface.update_ip_addrs(|addresses| {
            addresses.retain(|address| matches!(address, IpCidr::Ipv4(_)));
            let ours = self.addresses.iter().map(|address| address.value);
            for address in core::iter::once(self.link_local).chain(ours) {
                let pushed = addresses.push(IpCidr::Ipv6(address));
                debug_assert_eq!(pushed, Ok(()));
            }
        });
        interface.routes_mut().update(|routes| {
            routes.retain(|route| !route.is_ipv6_gateway());
            if let Some(router) = self.routers.first() {
                let pushed = routes.push(Route::new_ipv6_gateway(router.value));
                debug_assert!(pushed.is_ok());
            }
        });
    }

    /// Writes a router solicitation (RFC 4861, 4.1) into
    /// [`SOLICITATION_LENGTH`] bytes.
    fn write_solicitation(&self, frame: &mut [u8]) {
        let icmp = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit {
            lladdr: Some(RawHardwareAddress::from(HardwareAddress::Ethernet(
                self.mac,
            ))),
        });
        let source = self.link_local.address();
        announce::write_icmpv6(frame, self.mac, source, ALL_ROUTERS, &icmp);
    }
}

/// The address of this interface under a prefix of 64 bits.
fn address_under(prefix: &Ipv6Cidr, mac: EthernetAddress) -> Option<Ipv6Cidr> {
    Ipv6Cidr::from_link_prefix(prefix, HardwareAddress::Ethernet(mac))
}
