//! Multicast listener discovery (RFC 3810, and RFC 2710 where the querier speaks
//! that): a switch that snoops sends a group's frames only to those who say that
//! they listen, and neighbour discovery is such a group's.

use alloc::vec::Vec;

use smoltcp::iface::Interface;
use smoltcp::phy::Device;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, Ipv6Address};

use crate::announce::{self, ipv6_addresses};
use crate::checksum::Sum;
use crate::packet::{HOP_BY_HOP, ICMPV6, Packet};
use crate::stand_in::Rare;

const REPORT_V1: u8 = 131;
const REPORT: u8 = 143;
/// RFC 3810, 5.2.14.
const ALL_ROUTERS: Ipv6Address = Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
/// A hop-by-hop header before ICMPv6 with the router alert of RFC 2711.
const ALERT: [u8; 8] = [ICMPV6, 0, 5, 2, 0, 0, 1, 0];
/// Of a group of which everybody is listened to: what is, and what has become so.
const MODE_IS_EXCLUDE: u8 = 2;
const CHANGE_TO_EXCLUDE: u8 = 4;
/// RFC 3810, 9.1 and 9.11: a report that nobody asked for is sent twice.
const UNSOLICITED: u8 = 2;
const UNSOLICITED_INTERVAL: Duration = Duration::from_secs(1);
/// RFC 3810, 9.12.
const OLDER_QUERIER: Duration = Duration::from_secs(260);
/// Bytes of a query of the first version; later ones are longer.
const QUERY_V1: usize = 24;

/// Says which groups are listened to.
pub(crate) struct Listener {
    /// Reports that are still to be sent, and when the next one is.
    left: u8,
    due: Instant,
    /// The groups have changed since the last query.
    is_change: bool,
    /// Until then the querier speaks the first version only.
    v1_until: Option<Instant>,
}

impl Listener {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            left: 0,
            due: now,
            is_change: false,
            v1_until: None,
        }
    }

    /// The groups have changed, or who listens behind the link has.
    pub(crate) fn announce(&mut self, now: Instant) {
        *self = Self {
            left: UNSOLICITED,
            due: now,
            is_change: true,
            ..*self
        };
    }

    /// Takes in a query, whose ICMP message is `query`.
    #[cold]
    pub(crate) fn receive_query(&mut self, packet: &Packet<'_>, query: &[u8], now: Instant) {
        const FROM_THIS_LINK: u8 = 1;
        let &[_, _, _, _, high, low, ..] = query else {
            return;
        };
        if packet.hop_limit != FROM_THIS_LINK || query.len() < QUERY_V1 {
            return;
        }
        let code = u16::from_be_bytes([high, low]);
        let longest = if query.len() == QUERY_V1 {
            self.v1_until = Some(now + OLDER_QUERIER);
            u64::from(code)
        } else if code < 0x8000 {
            u64::from(code)
        } else {
            // RFC 3810, 5.1.3.
            u64::from(code & 0xfff | 0x1000) << ((code >> 12 & 7) + 3)
        };
        // Not all at once: two hosts hear it at different times, to a microsecond.
        let random = now.total_micros().unsigned_abs().wrapping_mul(0x9e37_79b9) >> 8;
        let at = now + Duration::from_millis(random % longest.max(1));
        if self.left == 0 {
            self.left = 1;
            self.due = at;
            self.is_change = false;
        }
        self.due = self.due.min(at);
    }

    pub(crate) fn poll_at(&self) -> Option<Instant> {
        (self.left > 0).then_some(self.due)
    }

    pub(crate) fn poll(&mut self, now: Instant, interface: &Interface, device: &mut Rare<'_>) {
        if self.left == 0 || now < self.due {
            return;
        }
        let mut groups: Vec<Ipv6Address> = Vec::new();
        for group in ipv6_addresses(interface).map(announce::solicited_node) {
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        if self.v1_until.is_some_and(|until| now < until) {
            for group in groups {
                let message = [&[REPORT_V1, 0, 0, 0, 0, 0, 0, 0], &group.octets()[..]].concat();
                if !send(now, interface, device, group, message) {
                    return;
                }
            }
        } else {
            let kind = match self.is_change {
                true => CHANGE_TO_EXCLUDE,
                false => MODE_IS_EXCLUDE,
            };
            let mut message = Vec::from([REPORT, 0, 0, 0, 0, 0, 0, groups.len() as u8]);
            for group in groups {
                message.extend([kind, 0, 0, 0]);
                message.extend(group.octets());
            }
            if !send(now, interface, device, ALL_ROUTERS, message) {
                return;
            }
        }
        self.left -= 1;
        self.due = now + UNSOLICITED_INTERVAL;
    }
}

/// Sends an ICMPv6 message from the link-local address, which comes first.
/// Returns whether there was room.
fn send(
    now: Instant,
    interface: &Interface,
    device: &mut Rare<'_>,
    group: Ipv6Address,
    mut message: Vec<u8>,
) -> bool {
    let (HardwareAddress::Ethernet(mac), Some(source)) =
        (interface.hardware_addr(), ipv6_addresses(interface).next())
    else {
        return true;
    };
    let Some(token) = device.transmit(now) else {
        return false;
    };
    let ends = [source.octets(), group.octets()].concat();
    let sum = Sum::pseudo_header(Sum::of(&ends), ICMPV6, message.len()).plus(Sum::of(&message));
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.checksum());
    }
    let payload = [&ALERT, &message[..]].concat();
    let macs = announce::to_group(mac, group);
    announce::send_ipv6(token, macs, [source, group], [HOP_BY_HOP, 1], &payload);
    true
}
