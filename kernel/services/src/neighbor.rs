//! Pings from senders whose hardware address is not known (yet).
//!
//! smoltcp sends no answer to a neighbour that it does not know: it asks for
//! the hardware address instead, for one neighbour a second at most, and the
//! answer is lost. A sender may well be known elsewhere: where several stacks
//! share a device, another one may have heard of it, and word of that is on its
//! way. So a request that is due an answer and got none is kept, its sender
//! asked for at once, and the request handed in again when something is heard
//! of a neighbour (Linux `arp_queue` of `struct neighbour`). Nothing is learnt
//! from the request itself: its source address may be a lie.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use smoltcp::iface::{Interface, SocketSet};
use smoltcp::phy::{Device, PacketMeta, TxToken};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, HardwareAddress, Icmpv4Packet, Icmpv6Packet, Icmpv6Repr,
    IpAddress, Ipv4Packet, Ipv6Packet, NdiscRepr, RawHardwareAddress,
};

use crate::announce::{self, ARP_LENGTH, HEADERS_V6};
use crate::checksum::{Checked, Token};
use crate::ingress::OneFrame;
use crate::pool::earlier;

/// Requests that are kept at a time.
const MAX_FRAMES: usize = 16;
/// How long one is kept, and how often its sender is asked for (Linux
/// `ucast_probes` and `retrans_time`: 3 times, a second apart).
const PATIENCE: Duration = Duration::from_secs(3);
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// The requests that wait.
pub(crate) struct Waiting {
    frames: Vec<Request>,
    /// Of a frame that is kept.
    max_frame: usize,
    /// Something was heard of a neighbour since the last try.
    heard: bool,
}

struct Request {
    frame: Box<[u8]>,
    sender: IpAddress,
    ask_at: Instant,
    until: Instant,
}

/// Whether a frame looks like an ICMP echo request.
#[inline]
pub(crate) fn is_echo_request(frame: &[u8]) -> bool {
    const ICMP: u8 = 1;
    const ECHO_REQUEST: u8 = 8;
    const ICMPV6: u8 = 58;
    const ECHO_REQUEST_V6: u8 = 128;
    match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, packet @ ..] => {
            packet.get(9) == Some(&ICMP)
                && packet.get(usize::from(packet[0] & 0xf) * 4) == Some(&ECHO_REQUEST)
        }
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, packet @ ..] => {
            packet.get(6) == Some(&ICMPV6) && packet.get(40) == Some(&ECHO_REQUEST_V6)
        }
        _ => false,
    }
}

impl Waiting {
    /// `max_frame` is the length of the longest frame of the device in bytes.
    pub(crate) fn new(max_frame: usize) -> Self {
        Self {
            frames: Vec::new(),
            max_frame,
            heard: false,
        }
    }

    /// Hands an echo request to the interface, and keeps it if that could not
    /// answer.
    #[inline(never)]
    pub(crate) fn answer<T: TxToken>(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        frame: &[u8],
        meta: PacketMeta,
        token: Token<'_, T>,
    ) {
        let sent_to = hand_in(now, interface, frame, meta, token);
        if is_answer(sent_to) || self.frames.len() >= MAX_FRAMES || frame.len() > self.max_frame {
            return;
        }
        let Some(sender) = sender_to_answer(interface, frame) else {
            return;
        };
        // What left instead, if anything did, is smoltcp's own question.
        let ask_at = match sent_to {
            Some(_) => now + ASK_INTERVAL,
            None => now,
        };
        self.frames.push(Request {
            frame: frame.into(),
            sender,
            ask_at,
            until: now + PATIENCE,
        });
    }

    /// Something was heard of a neighbour.
    #[inline]
    pub(crate) fn hear(&mut self) {
        self.heard = !self.frames.is_empty();
    }

    /// Tries again what may have become possible, asks, and gives up. Returns
    /// whether anything was sent.
    #[inline]
    pub(crate) fn serve<D: Device + ?Sized>(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        device: &mut Checked<'_, D>,
    ) -> bool {
        !self.frames.is_empty() && self.try_again(now, interface, device)
    }

    #[cold]
    fn try_again<D: Device + ?Sized>(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        device: &mut Checked<'_, D>,
    ) -> bool {
        let heard = core::mem::take(&mut self.heard);
        let mut sent = false;
        self.frames.retain_mut(|request| {
            if !heard && now < request.ask_at {
                return true;
            }
            if !heard && now >= request.until {
                return false;
            }
            let Some(token) = device.transmit(now) else {
                // Later, when there is room.
                self.heard |= heard;
                return true;
            };
            let sent_to = hand_in(now, interface, &request.frame, PacketMeta::default(), token);
            sent |= sent_to.is_some();
            if is_answer(sent_to) {
                return false;
            }
            if now >= request.ask_at
                && (sent_to.is_some() || ask(now, interface, device, request.sender))
            {
                sent = true;
                request.ask_at = now + ASK_INTERVAL;
            }
            true
        });
        sent
    }

    /// When [`Self::serve`] is due.
    #[inline]
    pub(crate) fn poll_at(&self) -> Option<Instant> {
        let asks = self.frames.iter().map(|request| request.ask_at);
        asks.fold(None, |first, at| earlier(first, Some(at)))
    }
}

/// Hands a frame without a socket to the interface; returns the hardware
/// address to which it sent something.
fn hand_in<T: TxToken>(
    now: Instant,
    interface: &mut Interface,
    frame: &[u8],
    meta: PacketMeta,
    token: Token<'_, T>,
) -> Option<[u8; 6]> {
    let none = &mut SocketSet::new(vec![]);
    token.watch(|token| {
        interface.poll_ingress_single(now, &mut OneFrame::new(frame, meta, token), none);
    })
}

/// Whether what was sent there can be the answer to a ping. The questions for a
/// neighbour go to several.
fn is_answer(sent_to: Option<[u8; 6]>) -> bool {
    const GROUP: u8 = 1;
    sent_to.is_some_and(|[first, ..]| first & GROUP == 0)
}

/// The sender of an echo request that is due an answer.
fn sender_to_answer(interface: &Interface, frame: &[u8]) -> Option<IpAddress> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let (is_right, sender, target) = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
            let icmp = Icmpv4Packet::new_checked(ip.payload()).ok()?;
            let (from, to) = (ip.src_addr(), ip.dst_addr());
            (
                icmp.verify_checksum(),
                IpAddress::from(from),
                IpAddress::from(to),
            )
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
            let icmp = Icmpv6Packet::new_checked(ip.payload()).ok()?;
            let (from, to) = (ip.src_addr(), ip.dst_addr());
            let is_right = icmp.verify_checksum(&from, &to);
            (is_right, IpAddress::from(from), IpAddress::from(to))
        }
        _ => return None,
    };
    let is_due = is_right
        && interface.has_ip_addr(target)
        && !interface.has_ip_addr(sender)
        && !sender.is_unspecified();
    is_due.then_some(sender)
}

/// Asks for the hardware address on the way to a host, however lately smoltcp
/// did for another. Returns whether there was room.
pub(crate) fn ask<D: Device + ?Sized>(
    now: Instant,
    interface: &Interface,
    device: &mut D,
    host: IpAddress,
) -> bool {
    let HardwareAddress::Ethernet(mac) = interface.hardware_addr() else {
        return true;
    };
    let Some(next_hop) = next_hop(interface, host) else {
        return true;
    };
    let Some(token) = device.transmit(now) else {
        return false;
    };
    match next_hop {
        IpAddress::Ipv4(next_hop) => {
            if let Some(source) = interface.get_source_address_ipv4(&next_hop) {
                token.consume(ARP_LENGTH, |frame| {
                    announce::write_arp(frame, mac, source, next_hop);
                });
            }
        }
        IpAddress::Ipv6(next_hop) => {
            let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
                target_addr: next_hop,
                lladdr: Some(RawHardwareAddress::from(HardwareAddress::Ethernet(mac))),
            });
            let source = interface.get_source_address_ipv6(&next_hop);
            let group = announce::solicited_node(next_hop);
            token.consume(HEADERS_V6 + icmp.buffer_len(), |frame| {
                announce::write_icmpv6(frame, mac, source, group, &icmp);
            });
        }
    }
    true
}

/// The neighbour on the way to a host.
fn next_hop(interface: &Interface, host: IpAddress) -> Option<IpAddress> {
    let mut networks = interface.ip_addrs().iter();
    if networks.any(|network| network.contains_addr(&host)) {
        return Some(host);
    }
    let route = match host {
        IpAddress::Ipv4(_) => interface.routes().get_default_ipv4_route(),
        IpAddress::Ipv6(_) => interface.routes().get_default_ipv6_route(),
    };
    Some(route?.via_router)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    #[test]
    fn echo_requests_are_told_from_all_else() {
        let mut requests = [vec![], vec![]];
        let builder = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let v4 = builder().ipv4([10, 0, 2, 2], [10, 0, 2, 15], 64);
        v4.icmpv4_echo_request(1, 2)
            .write(&mut requests[0], b"data")
            .unwrap();
        let v6 = builder().ipv6([1; 16], [3; 16], 64);
        v6.icmpv6_echo_request(1, 2)
            .write(&mut requests[1], b"data")
            .unwrap();
        for (request, at) in requests.iter().zip([34, 54]) {
            assert!(is_echo_request(request));
            for length in 0..=at {
                assert!(!is_echo_request(&request[..length]), "{length}");
            }
            for (at, value) in [(at, 0), (13, 6), (if at == 34 { 23 } else { 20 }, 17)] {
                let mut other = request.clone();
                other[at] = value;
                assert!(!is_echo_request(&other), "{at}");
            }
        }
    }
}
