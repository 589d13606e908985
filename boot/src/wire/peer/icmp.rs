//! Pings.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use smoltcp::iface::SocketHandle;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp::{self, Endpoint};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, Ipv6Address};

use super::stack::{MAX_PACKET, Stack};
use crate::wire::far_end::{check_datagram, fill_pattern};
use crate::wire::{PingReport, WireError};

/// Largest content: an IPv4 packet less its header and that of ICMP.
const MAX_SIZE: usize = MAX_PACKET - 20 - 8;

/// The identifier that all our requests carry.
const IDENT: u16 = 0x4b50;

/// Bytes of an ICMP echo header.
const HEADER: usize = 8;

impl Stack {
    pub fn ping(
        &mut self,
        guest: IpAddr,
        count: u32,
        size: usize,
        bound: Duration,
    ) -> Result<PingReport, WireError> {
        if size > MAX_SIZE {
            return Err(WireError::Argument(format!(
                "a ping of {size} bytes: at most {MAX_SIZE} fit into a packet"
            )));
        }
        let buffer = || {
            let metadata = vec![icmp::PacketMetadata::EMPTY; 4];
            icmp::PacketBuffer::new(metadata, vec![0; 4 * (size + HEADER)])
        };
        let mut socket = icmp::Socket::new(buffer(), buffer());
        // A fresh socket takes every identifier but 0.
        let bound_socket = socket.bind(Endpoint::Ident(IDENT));
        debug_assert!(bound_socket.is_ok());
        let handle = self.sockets.add(socket);
        let result = self.ping_all(handle, guest, count, size, bound);
        self.sockets.remove(handle);
        result
    }

    fn ping_all(
        &mut self,
        handle: SocketHandle,
        guest: IpAddr,
        count: u32,
        size: usize,
        bound: Duration,
    ) -> Result<PingReport, WireError> {
        let mut report = PingReport::default();
        let what = format!("ping of {guest}");
        for number in 0..count {
            // The field has 16 bits; the content tells requests further apart.
            let sequence = number as u16;
            let mut content = vec![0; size];
            fill_pattern(number.into(), 0, &mut content);
            let sent = Instant::now();
            self.send_echo(handle, guest, sequence, &content);
            report.sent += 1;
            let reply = self.run(&what, bound, |stack| {
                let came = stack.last_frame;
                let content = stack.echo_reply(handle, guest, sequence)?;
                Some((came.saturating_duration_since(sent), content))
            });
            match reply {
                Ok((rtt, got)) => match check_datagram(&what, number.into(), size, &got) {
                    Ok(()) => report.add(rtt),
                    Err(error) => {
                        log::warn!("{error}");
                        report.corrupted += 1;
                    }
                },
                Err(WireError::Timeout { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(report)
    }

    fn send_echo(&mut self, handle: SocketHandle, guest: IpAddr, seq_no: u16, data: &[u8]) {
        let socket = self.sockets.get_mut::<icmp::Socket>(handle);
        let caps = ChecksumCapabilities::default();
        // A full buffer (four requests that nobody could be reached for) makes
        // this one lost, too.
        let Ok(buffer) = socket.send(HEADER + data.len(), guest.into()) else {
            return;
        };
        match guest {
            IpAddr::V4(_) => {
                let repr = Icmpv4Repr::EchoRequest {
                    ident: IDENT,
                    seq_no,
                    data,
                };
                repr.emit(&mut Icmpv4Packet::new_unchecked(buffer), &caps);
            }
            IpAddr::V6(guest) => {
                let repr = Icmpv6Repr::EchoRequest {
                    ident: IDENT,
                    seq_no,
                    data,
                };
                // The checksum covers the source address, which the interface
                // chooses when it sends, and then fills in.
                let source = Ipv6Address::UNSPECIFIED;
                let mut packet = Icmpv6Packet::new_unchecked(buffer);
                repr.emit(&source, &guest, &mut packet, &caps);
            }
        }
    }

    /// The content of the reply to this request, if it is there. Others are
    /// late, and forgotten.
    fn echo_reply(
        &mut self,
        handle: SocketHandle,
        guest: IpAddr,
        sequence: u16,
    ) -> Option<Vec<u8>> {
        let socket = self.sockets.get_mut::<icmp::Socket>(handle);
        while let Ok((bytes, from)) = socket.recv() {
            // The interface has verified checksums already.
            let caps = ChecksumCapabilities::ignored();
            let (number, content) = match (guest, from) {
                (IpAddr::V4(guest), IpAddress::Ipv4(from)) if guest == from => {
                    let Ok(packet) = Icmpv4Packet::new_checked(bytes) else {
                        continue;
                    };
                    match Icmpv4Repr::parse(&packet, &caps) {
                        Ok(Icmpv4Repr::EchoReply { seq_no, data, .. }) => (seq_no, data.to_vec()),
                        _ => continue,
                    }
                }
                (IpAddr::V6(guest), IpAddress::Ipv6(from)) if guest == from => {
                    let Ok(packet) = Icmpv6Packet::new_checked(bytes) else {
                        continue;
                    };
                    match Icmpv6Repr::parse(&from, &guest, &packet, &caps) {
                        Ok(Icmpv6Repr::EchoReply { seq_no, data, .. }) => (seq_no, data.to_vec()),
                        _ => continue,
                    }
                }
                _ => continue,
            };
            if number == sequence {
                return Some(content);
            }
        }
        None
    }
}
