//! Stateless address autoconfiguration for IPv6 (RFC 4862), duplicate address
//! detection with it, and what routers say of the link (RFC 4861, 6.3).
//!
//! An address is used while it is being asked for (RFC 4429, "optimistic"): a guest
//! that is up in a tenth of a second does not wait for one.
//!
//! smoltcp 0.14 has a `proto-ipv6-slaac` feature. It is off: an advertised prefix
//! longer than 128 bits or of multicast ends in one of its assertions; after the
//! last solicitation, and whenever either the sockets or the prefixes have no
//! deadline, its `Interface::poll_at` is wrong (the minimum of two `Option`s is
//! `None` if one of them is), so that a guest would spin or sleep through TCP's
//! retransmissions; and of several prefixes in an advertisement it takes the last.

use alloc::vec::Vec;

use smoltcp::iface::{Interface, Route};
use smoltcp::phy::Device;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, Icmpv6Packet, Icmpv6Repr, IpCidr, Ipv6Address, Ipv6Cidr,
    NdiscOption, NdiscOptionRepr, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr,
    RawHardwareAddress,
};

use crate::announce;
use crate::discovery;
use crate::packet::Packet;
use crate::stand_in::Rare;

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

/// RFC 4862, 5.1: DupAddrDetectTransmits is 1, and so long is its answer waited
/// for (RFC 4861, 10: RETRANS_TIMER).
const DUPLICATE_WAIT: Duration = Duration::from_secs(1);
/// RFC 8200, 5: no link has less.
const LEAST_MTU: u32 = 1280;

struct Address {
    cidr: Ipv6Cidr,
    /// Never, of the link-local one.
    end: Option<Instant>,
    check: Check,
}

/// How far duplicate address detection is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    Due,
    /// Asked for; an answer may come until then.
    Asked(Instant),
    Unique,
    /// Somebody else's, and not used.
    Duplicate,
}

impl Address {
    fn new(cidr: Ipv6Cidr, end: Option<Instant>) -> Self {
        Self {
            cidr,
            end,
            check: Check::Due,
        }
    }
}

pub(crate) struct Slaac {
    mac: EthernetAddress,
    /// This stack speaks for the host; if not, another one does.
    pub(crate) speaks: bool,
    /// For what is worth a line of the log.
    level: log::Level,
    solicitations_left: u8,
    solicit_at: Instant,
    /// What the device says, in bytes.
    link_mtu: u32,
    /// The link-local one first.
    addresses: Vec<Address>,
    /// Each with its end.
    routers: Vec<(Ipv6Address, Instant)>,
    /// The link's MTU in bytes, as a router says it.
    pub(crate) mtu: Option<usize>,
}

impl Slaac {
    /// Gives the interface its link-local address.
    pub(crate) fn new(
        mac: EthernetAddress,
        interface: &mut Interface,
        ip_mtu: usize,
        now: Instant,
    ) -> Self {
        let prefix = Ipv6Cidr::new(LINK_LOCAL_PREFIX, 64);
        // An Ethernet address has an EUI-64, and the prefix is 64 bits long.
        let link_local = address_under(&prefix, mac).unwrap_or(prefix);
        let mut this = Self {
            mac,
            speaks: true,
            link_mtu: ip_mtu as u32,
            level: log::Level::Info,
            solicitations_left: SOLICITATIONS,
            solicit_at: now,
            addresses: Vec::from([Address::new(link_local, None)]),
            routers: Vec::with_capacity(MAX_ROUTERS),
            mtu: None,
        };
        this.apply(interface);
        this
    }

    /// Asks for nothing: another one does, and tells what it hears.
    pub(crate) fn only_listen(&mut self) {
        self.speaks = false;
        self.solicitations_left = 0;
        self.level = log::Level::Debug;
    }

    /// The link is up again, and may be another one: everything is asked for again
    /// (RFC 4862, 5.4; RFC 4861, 6.3.7).
    pub(crate) fn link_came_up(&mut self, now: Instant, interface: &mut Interface) {
        for address in &mut self.addresses {
            address.check = Check::Due;
        }
        if self.speaks {
            self.solicitations_left = SOLICITATIONS;
            self.solicit_at = now;
        }
        self.apply(interface);
    }

    /// Asks for routers and whether addresses are others', and ends what has
    /// expired. Returns whether an address or the route changed.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        device: &mut Rare<'_>,
    ) -> bool {
        for address in &mut self.addresses {
            match address.check {
                Check::Due if !self.speaks => address.check = Check::Asked(now + DUPLICATE_WAIT),
                Check::Due => {
                    if let Some(token) = device.transmit(now) {
                        discovery::ask_for_duplicates(self.mac, address.cidr.address(), token);
                        address.check = Check::Asked(now + DUPLICATE_WAIT);
                    }
                }
                Check::Asked(until) if now >= until => address.check = Check::Unique,
                _ => (),
            }
        }
        if self.solicitations_left > 0
            && now >= self.solicit_at
            && let Some(source) = self.link_local()
            && let Some(token) = device.transmit(now)
        {
            let icmp = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit {
                // RFC 4429, 3.3.
                lladdr: (!self.is_optimistic(source))
                    .then(|| RawHardwareAddress::from(HardwareAddress::Ethernet(self.mac))),
            });
            let to = announce::to_group(self.mac, ALL_ROUTERS);
            announce::send_icmpv6(token, to, [source, ALL_ROUTERS], &icmp);
            self.solicitations_left -= 1;
            self.solicit_at = now + SOLICITATION_INTERVAL;
        }
        let before = (self.addresses.len(), self.routers.len());
        self.addresses
            .retain(|address| address.end.is_none_or(|end| end > now));
        self.routers.retain(|(_, end)| *end > now);
        let changed = before != (self.addresses.len(), self.routers.len());
        if changed {
            self.apply(interface);
        }
        changed
    }

    /// The link-local address, if it is ours alone.
    fn link_local(&self) -> Option<Ipv6Address> {
        let first = self.addresses.first()?;
        (first.check != Check::Duplicate).then_some(first.cidr.address())
    }

    /// Whether an address of ours may still turn out to be somebody else's.
    pub(crate) fn is_optimistic(&self, address: Ipv6Address) -> bool {
        let mut addresses = self.addresses.iter();
        let known = addresses.find(|known| known.cidr.address() == address);
        known.is_some_and(|known| matches!(known.check, Check::Due | Check::Asked(_)))
    }

    /// Somebody else has or wants an address of ours. Returns whether it is given
    /// up, which it is not any more once it was found to be ours alone.
    #[cold]
    pub(crate) fn notice_duplicate(
        &mut self,
        interface: &mut Interface,
        address: Ipv6Address,
        from: [u8; 6],
    ) -> bool {
        let is_optimistic = self.is_optimistic(address);
        let from = EthernetAddress(from);
        if !is_optimistic {
            log::warn!("address conflict: {from} has {address}, too");
            return false;
        }
        log::error!("IPv6 address {address} is in use by {from}; not used");
        for known in &mut self.addresses {
            if known.cidr.address() == address {
                known.check = Check::Duplicate;
            }
        }
        self.apply(interface);
        true
    }

    pub(crate) fn poll_at(&self) -> Option<Instant> {
        let solicits = self.solicitations_left > 0 && self.link_local().is_some();
        let solicit = solicits.then_some(self.solicit_at);
        let ends = self.addresses.iter().filter_map(|address| address.end);
        let checks = self.addresses.iter().map(|address| address.check);
        let checks = checks.filter_map(|check| match check {
            Check::Due => Some(Instant::ZERO),
            Check::Asked(until) => Some(until),
            _ => None,
        });
        let routers = self.routers.iter().map(|(_, end)| *end);
        let times = solicit.into_iter().chain(ends).chain(checks);
        times.chain(routers).min()
    }

    /// Takes a router advertisement in. Returns whether an address or the route
    /// changed; what is not valid by RFC 4861, 6.1.2 is ignored.
    pub(crate) fn take_in(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        packet: &Packet<'_>,
        message: &[u8],
    ) -> bool {
        let changed = self.read(now, packet, message).unwrap_or(false);
        if changed {
            self.apply(interface);
        }
        changed
    }

    fn read(&mut self, now: Instant, packet: &Packet<'_>, message: &[u8]) -> Option<bool> {
        let router = packet.source.ipv6();
        let icmp = Icmpv6Packet::new_checked(message).ok()?;
        if packet.hop_limit != announce::HOP_LIMIT
            || !Ipv6Cidr::new(LINK_LOCAL_PREFIX, 64).contains_addr(&router)
            || icmp.msg_code() != 0
        {
            return None;
        }
        // An option of length 0 makes the whole message invalid, so all are read
        // before any is taken.
        let mut prefixes = [None; MAX_ADDRESSES];
        let mut mtu = None;
        let mut options = icmp.payload();
        let mut slots = prefixes.iter_mut();
        while !options.is_empty() {
            let option = NdiscOption::new_checked(options).ok()?;
            let length = usize::from(option.data_len()) * 8;
            if length == 0 {
                return None;
            }
            match NdiscOptionRepr::parse(&option) {
                Ok(NdiscOptionRepr::PrefixInformation(prefix)) => {
                    if let Some(slot) = slots.next() {
                        *slot = Some(prefix);
                    }
                }
                // RFC 4861, 6.3.4.
                Ok(NdiscOptionRepr::Mtu(bytes)) if bytes >= LEAST_MTU => mtu = Some(bytes),
                _ => (),
            }
            options = options.get(length..)?;
        }

        if let Some(mtu) = mtu {
            self.mtu = (mtu < self.link_mtu).then_some(mtu as usize);
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
        let known = self.routers.iter().position(|known| known.0 == router);
        match known {
            Some(index) if lifetime == Duration::ZERO => {
                self.routers.remove(index);
                true
            }
            Some(index) => {
                self.routers[index].1 = end;
                false
            }
            None if lifetime > Duration::ZERO && self.routers.len() < MAX_ROUTERS => {
                self.routers.push((router, end));
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
        let is_on_link = prefix.flags.contains(NdiscPrefixInfoFlags::ON_LINK);
        let prefix = Ipv6Cidr::new(prefix.prefix, prefix.prefix_len);
        let Some(address) = address_under(&prefix, self.mac) else {
            return false;
        };
        // RFC 4861, 6.3.4: without that flag nothing is said of the neighbours.
        let address = match is_on_link {
            true => address,
            false => Ipv6Cidr::new(address.address(), 128),
        };
        let end = now + valid;
        let mut ours = self.addresses.iter_mut();
        if let Some(known) = ours.find(|known| known.cidr.address() == address.address()) {
            known.end = known.end.map(|before| {
                if valid > TWO_HOURS || end > before {
                    end
                } else {
                    before.min(now + TWO_HOURS)
                }
            });
            return false;
        }
        let has_room = self.addresses.len() <= MAX_ADDRESSES;
        if valid == Duration::ZERO || !has_room {
            return false;
        }
        log::log!(self.level, "IPv6 address {address}");
        self.addresses.push(Address::new(address, Some(end)));
        true
    }

    /// Makes the interface's IPv6 addresses and route the ones known here.
    fn apply(&mut self, interface: &mut Interface) {
        interface.update_ip_addrs(|addresses| {
            addresses.retain(|address| matches!(address, IpCidr::Ipv4(_)));
            let ours = self.addresses.iter();
            // RFC 4862, 5.4.5: without a link-local address there is no IPv6.
            let ours = ours
                .filter(|address| self.link_local().is_some() && address.check != Check::Duplicate);
            for address in ours {
                let pushed = addresses.push(IpCidr::Ipv6(address.cidr));
                debug_assert_eq!(pushed, Ok(()));
            }
        });
        interface.routes_mut().update(|routes| {
            routes.retain(|route| !route.is_ipv6_gateway());
            if let Some((router, _)) = self.routers.first() {
                let pushed = routes.push(Route::new_ipv6_gateway(*router));
                debug_assert!(pushed.is_ok());
            }
        });
    }
}

/// The address of this interface under a prefix of 64 bits.
fn address_under(prefix: &Ipv6Cidr, mac: EthernetAddress) -> Option<Ipv6Cidr> {
    Ipv6Cidr::from_link_prefix(prefix, HardwareAddress::Ethernet(mac))
}
