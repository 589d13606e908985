//! TCP segments over IPv6 that are put together on their way out, so that the
//! device cuts them again (`VIRTIO_NET_F_HOST_TSO6`).
//!
//! A network stack that cannot hand over a large segment hands over one
//! segment after the other. What follows the one before it in the same
//! connection, and is alike in all that segments cut from one are alike in, is
//! appended to it (the rules are those of Linux's receive side, `tcp_gro_receive`).
//! What goes over the wire is the same, byte for byte; the device and
//! the host see one frame instead of dozens.
//!
//! A frame grows for as long as the driver has not kicked: nothing waits longer
//! than it would without this. Frames of a connection stay in order, those of
//! others may overtake them. Nothing is copied but the first segment, and what
//! was written where another connection's was expected.

use core::num::NonZeroU16;

use virtio_drivers::Hal;

use super::TxQueue;
use crate::net::offload::{ETHERTYPE_IPV6, Offload, TCP, network_header};
use crate::queue::Head;

/// Frames that grow at the same time, each for a connection. They take large
/// buffers, of which others must be left.
const MOST: usize = 4;

/// Length of an IPv6 header in bytes (RFC 8200, 3).
const IPV6: usize = 40;
/// Longest header: Ethernet, two VLAN tags, IPv6, and TCP with all options.
const LONGEST_HEADER: usize = 14 + 2 * 4 + IPV6 + 60;

/// Offsets in an IPv6 header.
const PAYLOAD_LENGTH: usize = 4;
const NEXT_HEADER: usize = 6;
const ADDRESSES: usize = 8;

/// Offsets in a TCP header (RFC 9293, 3.1).
const SEQUENCE: usize = 4;
const ACKNOWLEDGEMENT: usize = 8;
const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;
const WINDOW: usize = 14;
const CHECKSUM: usize = 16;
const URGENT: usize = 18;

/// TCP flags.
const FIN: u8 = 1;
const PSH: u8 = 1 << 3;
const ACK: u8 = 1 << 4;

/// A frame with a TCP segment over IPv6, and nothing behind it. All in bytes.
#[derive(Clone, Copy)]
struct Segment {
    /// Where the IPv6 header begins.
    ip: usize,
    /// Where the TCP header begins.
    tcp: usize,
    /// Length of all headers.
    header: usize,
    /// Length of the whole frame.
    length: usize,
}

impl Segment {
    fn find(frame: &[u8]) -> Option<Self> {
        let (ip, ethertype) = network_header(frame)?;
        if ethertype != ETHERTYPE_IPV6 {
            return None;
        }
        let packet = frame.get(ip..)?;
        let next_header = *packet.get(NEXT_HEADER)?;
        let [a, b] = *packet.get(PAYLOAD_LENGTH..)?.first_chunk()?;
        let is_whole = packet.len() == IPV6 + usize::from(u16::from_be_bytes([a, b]));
        let tcp = packet.get(IPV6 + DATA_OFFSET)?;
        let segment = Self {
            ip,
            tcp: ip + IPV6,
            header: ip + IPV6 + usize::from(tcp >> 4) * 4,
            length: frame.len(),
        };
        let has_header = (segment.tcp + 20..=frame.len()).contains(&segment.header)
            && segment.header <= LONGEST_HEADER;
        (next_header == TCP && is_whole && has_header).then_some(segment)
    }

    /// Bytes of payload.
    fn payload(&self) -> usize {
        self.length - self.header
    }
}

fn sequence(frame: &[u8], tcp: usize) -> Option<u32> {
    let bytes = frame.get(tcp + SEQUENCE..)?.first_chunk()?;
    Some(u32::from_be_bytes(*bytes))
}

/// A frame in a large buffer to which segments are appended.
pub(super) struct Growing {
    /// Of the large buffer.
    number: u16,
    /// The large buffer's, for the chain.
    token: u16,
    /// The first segment, whose header is the frame's.
    first: Segment,
    /// Bytes of payload that every segment but the last has.
    size: NonZeroU16,
    /// Bytes so far, with the header.
    length: usize,
    /// Sequence number of what comes next.
    next: u32,
    /// What the last segment has: PSH and FIN.
    flags: u8,
}

impl Growing {
    /// `None` when nothing may follow the segment in this frame.
    fn begin(frame: &[u8], first: Segment, number: u16, token: u16) -> Option<Self> {
        let size = NonZeroU16::new(u16::try_from(first.payload()).ok()?)?;
        Some(Self {
            number,
            token,
            first,
            size,
            length: first.length,
            next: sequence(frame, first.tcp)?.wrapping_add(size.get().into()),
            flags: 0,
        })
    }

    /// Where a frame would begin whose payload comes behind what is there, if
    /// one of `length` bytes can be appended. What its header covers is part of
    /// the payload, not of the header.
    fn place_for(&self, length: usize) -> Option<usize> {
        let payload = length.checked_sub(self.first.header)?;
        let is_possible = payload > 0
            && payload <= usize::from(self.size.get())
            && self.length >= 2 * self.first.header;
        is_possible.then(|| self.length - self.first.header)
    }

    /// Whether the frame is of this connection; `mine` is the frame's header.
    fn has_connection_of(&self, mine: &[u8], frame: &[u8], segment: &Segment) -> bool {
        let connection = |frame: &[u8], segment: &Segment| {
            let addresses = segment.ip + ADDRESSES..segment.ip + IPV6;
            let ports = segment.tcp..segment.tcp + SEQUENCE;
            // They lie side by side.
            frame.get(addresses.start..ports.end).map(<[u8]>::as_ptr_range);
            frame.get(addresses.start..ports.end).map(|bytes| bytes.to_owned_array())
        };
        let _ = connection;
        false
    }
}
