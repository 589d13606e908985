//! The log, sent to another host by UDP, a line a datagram (Linux netconsole).
//!
//! Its datagrams go in place (`in_place.rs`): what a frame needs is known once
//! the target is, and is kept, so that [`Template`] makes further frames when
//! there is no stack any more.

use core::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::iface::Interface;
use smoltcp::phy::{Device, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;

use crate::checksum::ETHERNET;
use crate::in_place::{Addresses, Ends};
use crate::link::Outgoing;
use crate::neighbors::ASK_INTERVAL;
use crate::packet::Address;
use crate::stand_in::Rare;

/// The port that the lines come from, Linux's for netconsole.
const LOCAL_PORT: u16 = 6665;
/// Longest datagram; a longer line goes in pieces (Linux `MAX_PRINT_CHUNK`).
pub const MAX_LINE: usize = 1000;
/// Ethernet, IPv4 and UDP header.
const HEADERS: usize = 14 + 20 + 8;
/// Longest frame of a [`Template`].
pub const MAX_FRAME: usize = HEADERS + MAX_LINE;

/// Sends lines to one host.
pub struct Netconsole {
    target: SocketAddrV4,
    asked_at: Option<Instant>,
    line: [u8; MAX_LINE],
}

/// Where lines go, and how a frame gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    /// To the host, or to the router on the way.
    header: [u8; ETHERNET],
    source: Ipv4Addr,
    target: Ipv4Addr,
    port: u16,
}

impl Netconsole {
    /// Sends to `target`.
    pub fn new(target: SocketAddrV4) -> Self {
        Self {
            target,
            asked_at: None,
            line: [0; MAX_LINE],
        }
    }

    /// How frames get there, by broadcast as long as nobody has said where it
    /// is. `None` while the interface has no IPv4 address.
    pub(crate) fn template(
        &self,
        interface: &Interface,
        outgoing: &mut Outgoing,
    ) -> Option<Template> {
        let source = interface.ipv4_addr()?;
        let (host, now) = (Address::v4(self.target.ip().octets()), outgoing.now);
        let neighbors = &mut outgoing.neighbors;
        let header = match neighbors.header_to(host, now) {
            Some(header) => *header,
            None => neighbors.header(EthernetAddress::BROADCAST.0, host),
        };
        Some(Template {
            header,
            source,
            target: *self.target.ip(),
            port: self.target.port(),
        })
    }

    /// Sends lines from `next_line` as far as there is room: it writes one into
    /// the buffer and returns its length, `None` when there is none. Nothing is
    /// taken while the interface has no IPv4 address, or nobody has said where
    /// the target is. Returns whether there are no more.
    pub(crate) fn send(
        &mut self,
        interface: &Interface,
        outgoing: &mut Outgoing,
        device: &mut Rare<'_>,
        mut next_line: impl FnMut(&mut [u8]) -> Option<usize>,
    ) -> bool {
        let Some(template) = self.template(interface, outgoing) else {
            return false;
        };
        if !template.is_resolved() {
            let host = Address::v4(self.target.ip().octets());
            let due = self
                .asked_at
                .is_none_or(|at| outgoing.now >= at + ASK_INTERVAL);
            if due && let Some(next_hop) = outgoing.neighbors.next_hop(host) {
                self.asked_at = Some(outgoing.now);
                outgoing.neighbors.question(next_hop);
            }
            return false;
        }
        let ends = template.ends();
        let fill = (outgoing.fill.ipv4, outgoing.fill.udp);
        while let Some(token) = device.transmit(outgoing.now) {
            let Some(length) = next_line(&mut self.line) else {
                return true;
            };
            let line = self.line.get(..length).unwrap_or(&self.line);
            token.consume(HEADERS + line.len(), |frame| {
                ends.write(frame, fill, |payload| payload.copy_from_slice(line));
            });
        }
        false
    }
}

impl Template {
    /// Whether the hardware address on the way is known; else frames go to
    /// all.
    pub fn is_resolved(&self) -> bool {
        self.header[..6] != EthernetAddress::BROADCAST.0
    }

    fn ends(&self) -> Ends<'_> {
        let mut addresses = [0; 8];
        addresses[..4].copy_from_slice(&self.source.octets());
        addresses[4..].copy_from_slice(&self.target.octets());
        Ends {
            header: &self.header,
            addresses: Addresses::V4(u64::from_ne_bytes(addresses)),
            from: LOCAL_PORT,
            to: self.port,
        }
    }

    /// Writes the frame of a line and returns its length. A line beyond
    /// [`MAX_LINE`] is cut; `None` when the buffer is too small.
    pub fn write(&self, line: &[u8], buffer: &mut [u8]) -> Option<usize> {
        let line = line.get(..MAX_LINE).unwrap_or(line);
        let length = HEADERS + line.len();
        let frame = buffer.get_mut(..length)?;
        let ends = self.ends();
        ends.write(frame, (true, true), |payload| payload.copy_from_slice(line));
        Some(length)
    }
}
