//! Address resolution (RFC 826): our answers, and others who claim our address
//! (RFC 5227).
//!
//! smoltcp 0.14 answers only who is in its own network: no probe, whose sender is
//! 0.0.0.0, and no gateway outside a prefix of 32 bits.

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, Ipv4Address};

use crate::checksum::ETHERNET;
use crate::stand_in::Rare;

/// Ethernet and IPv4, with the lengths of their addresses.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ETHERTYPE: [u8; 2] = [0x08, 0x06];
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
/// RFC 5227, 1.1: DEFEND_INTERVAL.
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arp {
    is_request: bool,
    pub(crate) mac: [u8; 6],
    pub(crate) sender: [u8; 4],
    pub(crate) target: [u8; 4],
}

impl Arp {
    /// `None` for what is no request or reply about IPv4 over Ethernet.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let message = ArpPacket::new_checked(frame.get(ETHERNET..)?).ok()?;
        match ArpRepr::parse(&message).ok()? {
            ArpRepr::EthernetIpv4 {
                operation: operation @ (ArpOperation::Request | ArpOperation::Reply),
                source_hardware_addr,
                source_protocol_addr,
                target_protocol_addr,
                ..
            } => Some(Self {
                is_request: operation == ArpOperation::Request,
                mac: source_hardware_addr.0,
                sender: source_protocol_addr.octets(),
                target: target_protocol_addr.octets(),
            }),
            _ => None,
        }
    }

    /// Whether it asks for the address of its target; it does not if it is an
    /// announcement.
    pub(crate) fn asks(&self) -> bool {
        self.is_request && self.sender != self.target
    }

    /// Answers a request for an address of ours.
    pub(crate) fn answer(&self, mac: [u8; 6], token: Rare<'_>) {
        let ends = [self.mac, mac];
        send(token, ends, REPLY, self.target, self.mac, self.sender);
    }
}

/// Asks everybody for the hardware address of `target`; an announcement asks for
/// the sender's own (RFC 5227, 2.3).
pub(crate) fn ask(mac: [u8; 6], sender: [u8; 4], target: [u8; 4], token: Rare<'_>) {
    send(token, [[0xff; 6], mac], REQUEST, sender, [0; 6], target);
}

/// Sends a message of which the second of `ends` is ours.
fn send(
    token: Rare<'_>,
    [to, from]: [[u8; 6]; 2],
    operation: u8,
    sender: [u8; 4],
    target_hw: [u8; 6],
    target: [u8; 4],
) {
    let head = [0, operation];
    let parts: [&[u8]; 9] = [
        &to, &from, &ETHERTYPE, &KIND, &head, &from, &sender, &target_hw, &target,
    ];
    token.0.send(&parts.concat());
}

/// What was heard of others with an address of ours.
#[derive(Default)]
pub(crate) struct Conflicts {
    defended_at: Option<Instant>,
}

impl Conflicts {
    /// Takes in that the sender of `arp` has our address. Returns whether the
    /// address is to be announced again: a server keeps it (RFC 5227, 2.4 c), and
    /// two of them must not shout at each other.
    #[cold]
    pub(crate) fn notice(&mut self, arp: &Arp, now: Instant) -> bool {
        let defended_at = self.defended_at;
        if defended_at.is_some_and(|at| now < at + DEFEND_INTERVAL) {
            return false;
        }
        self.defended_at = Some(now);
        let (mac, address) = (EthernetAddress(arp.mac), Ipv4Address::from(arp.sender));
        log::warn!("address conflict: {mac} has {address}, too");
        true
    }
}
