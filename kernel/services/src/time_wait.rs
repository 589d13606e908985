//! Connections in TIME-WAIT (RFC 9293, 3.6.1), of which nothing is left but the ends
//! (Linux `struct inet_timewait_sock`): a server that closes first has many.
//!
//! What may still come is the other end's FIN again, if our acknowledgment was
//! lost. It says itself what the acknowledgment must say.

use alloc::collections::VecDeque;

use foldhash::fast::FixedState;
use hashbrown::HashSet;
use smoltcp::phy::{ChecksumCapabilities, Device, TxToken};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet, TcpControl, TcpPacket, TcpRepr,
};

use crate::in_place::HOP_LIMIT;
use crate::packet::Ends;

/// As in smoltcp; twice the longest that a segment lives in networks of today.
const TIME_WAIT: Duration = Duration::from_secs(10);

pub(crate) struct TimeWait {
    ends: HashSet<Ends, FixedState>,
    /// The oldest first.
    until: VecDeque<(Instant, Ends)>,
    /// How many there may be; the oldest gives way.
    pub(crate) most: usize,
}

impl TimeWait {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            ends: HashSet::with_hasher(FixedState::with_seed(seed)),
            until: VecDeque::new(),
            most: 0,
        }
    }

    #[inline]
    pub(crate) fn contains(&self, ends: &Ends) -> bool {
        self.ends.contains(ends)
    }

    pub(crate) fn insert(&mut self, ends: Ends, now: Instant) {
        while self.until.len() >= self.most
            && let Some((_, oldest)) = self.until.pop_front()
        {
            self.ends.remove(&oldest);
        }
        if self.ends.insert(ends) {
            self.until.push_back((now + TIME_WAIT, ends));
        }
    }

    /// It is over: a new connection begins.
    pub(crate) fn remove(&mut self, ends: &Ends) {
        if self.ends.remove(ends) {
            self.until.retain(|(_, known)| known != ends);
        }
    }

    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(&(until, ends)) = self.until.front()
            && until <= now
        {
            self.until.pop_front();
            self.ends.remove(&ends);
        }
    }

    /// Acknowledges a FIN that came again in an IP packet of a connection that is
    /// here. Nothing else is answered (RFC 1337).
    #[cold]
    pub(crate) fn answer<D: Device>(
        &self,
        packet: &[u8],
        ends: &Ends,
        device: &mut D,
        now: Instant,
    ) {
        let ignored = ChecksumCapabilities::ignored();
        let (source, destination) = (ends.local.ip(), ends.remote.ip());
        let read = || {
            let payload = match source {
                IpAddress::Ipv4(_) => Ipv4Packet::new_checked(packet).ok()?.payload(),
                IpAddress::Ipv6(_) => Ipv6Packet::new_checked(packet).ok()?.payload(),
            };
            let tcp = TcpPacket::new_checked(payload).ok()?;
            let acknowledges = tcp.ack() && tcp.fin() && !tcp.rst() && !tcp.syn();
            acknowledges.then_some(tcp)
        };
        let (Some(fin), Some(token)) = (read(), device.transmit(now)) else {
            return;
        };
        let tcp = TcpRepr {
            src_port: fin.dst_port(),
            dst_port: fin.src_port(),
            control: TcpControl::None,
            seq_number: fin.ack_number(),
            ack_number: Some(fin.seq_number() + fin.segment_len()),
            window_len: 0,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let length = tcp.buffer_len();
        let ip = IpRepr::new(source, destination, IpProtocol::Tcp, length, HOP_LIMIT);
        token.consume(ip.buffer_len(), |packet| {
            // Checksums are filled in on the way (`link.rs`).
            ip.emit(&mut *packet, &ignored);
            let segment = packet.get_mut(ip.header_len()..).unwrap_or_default();
            let mut segment = TcpPacket::new_unchecked(segment);
            tcp.emit(&mut segment, &source, &destination, &ignored);
        });
    }
}
