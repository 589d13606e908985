//! Which TCP segments are one large segment that somebody has cut: those can be
//! put together again, and the device cuts them the same way
//! (`VIRTIO_NET_F_HOST_TSO6`). The rules are those of Linux's `tcp_gro_receive`,
//! in which whatever is not alike ends what went before.

extern crate alloc;

use alloc::vec::Vec;
use core::ops::Range;

use super::features::Features;
use super::large::LargeBuffer;

/// Length of an IPv6 header in bytes (RFC 8200, 3).
pub(crate) const IPV6_HEADER: usize = 40;
/// Largest payload of an IPv6 packet in bytes (the same).
const LARGEST_PAYLOAD: usize = u16::MAX as usize;
/// Shortest TCP header in bytes (RFC 9293, 3.1).
const TCP_HEADER: usize = 20;
/// Both together, without options.
const FIXED: usize = IPV6_HEADER + TCP_HEADER;
/// Where the TCP header begins in an IPv6 packet.
const TCP_AT: usize = IPV6_HEADER;
/// Longest header in bytes: Ethernet, two VLAN tags, IPv6, and TCP with all the
/// options that fit.
const LONGEST_HEADER: usize = 14 + 2 * 4 + IPV6_HEADER + 60;

/// Offsets in an IPv6 header.
const PAYLOAD_LENGTH: usize = 4;
const NEXT_HEADER: usize = 6;
const ADDRESSES: usize = 8;

/// Offsets in a TCP header.
const SEQUENCE: usize = 4;
const ACKNOWLEDGEMENT: usize = 8;
const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;
const WINDOW: usize = 14;
const CHECKSUM: usize = 16;
const URGENT: usize = 18;

/// Connections whose segments are put together at a time.
pub(crate) const MOST: usize = 4;

/// TCP flags.
const FIN: u8 = 1;
const PSH: u8 = 1 << 3;
const ACK: u8 = 1 << 4;

/// A TCP segment over IPv6 in a frame, with nothing behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where the IPv6 header begins, in bytes from the start of the frame.
    ip: usize,
    /// Length of all headers in bytes.
    header: usize,
    /// Length of the payload in bytes.
    payload: usize,
}

impl Segment {
    /// The one in this frame, whose TCP header begins at `tcp`, behind one of IPv6.
    #[inline]
    pub(crate) fn behind(frame: &[u8], tcp: u16) -> Option<Self> {
        let ip = usize::from(tcp).checked_sub(IPV6_HEADER)?;
        let packet = frame.get(ip..)?;
        let data_offset = usize::from(packet.get(IPV6_HEADER + DATA_OFFSET)? >> 4) * 4;
        let header = ip + IPV6_HEADER + data_offset;
        let is_segment = data_offset >= TCP_HEADER
            && header <= LONGEST_HEADER
            && be16(packet, PAYLOAD_LENGTH) == packet.len().checked_sub(IPV6_HEADER);
        Some(Self {
            ip,
            header,
            payload: frame.len().checked_sub(header).filter(|_| is_segment)?,
        })
    }

    /// Addresses and ports, which lie side by side.
    fn connection(ip: usize) -> Range<usize> {
        ip + ADDRESSES..ip + IPV6_HEADER + SEQUENCE
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes).into())
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*bytes))
}

/// A large segment that grows.
pub(crate) struct Growing {
    /// Headers of the first segment.
    header: [u8; LONGEST_HEADER],
    /// Where the IPv6 header begins, and how long all headers are.
    ip: usize,
    pub(crate) header_length: usize,
    /// Payload of every segment but the last, in bytes; not 0.
    pub(crate) size: u16,
    /// Bytes so far, headers included.
    pub(crate) length: usize,
    /// Bytes that it may have.
    limit: usize,
    /// Sequence number of what comes next.
    next: u32,
    /// PSH and FIN, which the last segment may have.
    last_flags: u8,
    /// Largest payload of what comes next, in bytes; 0 when nothing may.
    takes: usize,
}

/// What [`Growing::append`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    /// More may follow.
    Growing,
    /// Nothing may follow: it was short, had PSH or FIN, or another would not
    /// fit.
    Last,
}

impl Growing {
    /// Begins with the segment of this frame, if another may follow it in a
    /// frame of up to `limit` bytes.
    pub(crate) fn begin(frame: &[u8], segment: &Segment, limit: usize) -> Option<Self> {
        let Segment {
            ip,
            header: header_length,
            payload,
        } = *segment;
        let tcp = ip + IPV6_HEADER;
        // PSH says that the sender has no more; of the others each has a
        // meaning of its own.
        let size = u16::try_from(payload).ok().filter(|size| *size > 0)?;
        if *frame.get(tcp + FLAGS)? != ACK {
            return None;
        }
        let mut header = [0; LONGEST_HEADER];
        header
            .get_mut(..header_length)?
            .copy_from_slice(frame.get(..header_length)?);
        let growing = Self {
            takes: size.into(),
            header,
            ip,
            header_length,
            size,
            length: frame.len(),
            limit: limit.min(tcp + LARGEST_PAYLOAD),
            next: be32(frame, tcp + SEQUENCE)?.wrapping_add(size.into()),
            last_flags: 0,
        };
        growing.has_room().then_some(growing)
    }

    /// Whether a frame of that many bytes can follow, and its payload fits.
    #[inline]
    pub(crate) fn takes_length(&self, length: usize) -> bool {
        let payload = length.wrapping_sub(self.header_length);
        payload.wrapping_sub(1) < self.takes
    }

    /// Whether another segment fits in.
    fn has_room(&self) -> bool {
        self.length + usize::from(self.size) <= self.limit
    }

    /// Whether this frame follows the segments so far, and is like them in
    /// everything that cutting copies: all of the headers but the length, the
    /// sequence number, the checksum, and PSH and FIN.
    #[inline]
    pub(crate) fn is_followed_by(&self, frame: &[u8]) -> bool {
        self.takes_length(frame.len()) && self.follows(frame).unwrap_or(false)
    }

    /// As above; compares pieces of constant length, of which the compiler makes
    /// words.
    #[inline]
    fn follows(&self, frame: &[u8]) -> Option<bool> {
        let theirs = frame.get(..self.header_length)?;
        let ours = self.header.get(..self.header_length)?;
        let ((their_link, theirs), (our_link, ours)) = (
            theirs.split_at_checked(self.ip)?,
            ours.split_at_checked(self.ip)?,
        );
        let (theirs, their_options) = theirs.split_first_chunk::<FIXED>()?;
        let (ours, our_options) = ours.split_first_chunk::<FIXED>()?;
        let (their_addresses, their_tags) = their_link.split_first_chunk::<14>()?;
        let (our_addresses, our_tags) = our_link.split_first_chunk::<14>()?;
        let length = (frame.len() - self.ip - IPV6_HEADER) as u16;
        Some(
            theirs[TCP_AT + SEQUENCE..TCP_AT + ACKNOWLEDGEMENT] == self.next.to_be_bytes()
                && theirs[PAYLOAD_LENGTH..NEXT_HEADER] == length.to_be_bytes()
                && theirs[TCP_AT + FLAGS] & !(PSH | FIN) == ACK
                && theirs[..PAYLOAD_LENGTH] == ours[..PAYLOAD_LENGTH]
                && theirs[NEXT_HEADER..TCP_AT + SEQUENCE] == ours[NEXT_HEADER..TCP_AT + SEQUENCE]
                && theirs[TCP_AT + ACKNOWLEDGEMENT..TCP_AT + FLAGS]
                    == ours[TCP_AT + ACKNOWLEDGEMENT..TCP_AT + FLAGS]
                && theirs[TCP_AT + WINDOW..TCP_AT + CHECKSUM]
                    == ours[TCP_AT + WINDOW..TCP_AT + CHECKSUM]
                && theirs[TCP_AT + URGENT..] == ours[TCP_AT + URGENT..]
                && their_addresses == our_addresses
                && (their_tags.is_empty() || their_tags == our_tags)
                && (their_options.is_empty() || their_options == our_options),
        )
    }

    /// Whether a segment is of the same connection, in the same direction.
    pub(crate) fn has_connection_of(&self, frame: &[u8], segment: &Segment) -> bool {
        frame.get(Segment::connection(segment.ip)) == self.header.get(Segment::connection(self.ip))
    }

    /// Takes in what was found to follow; its payload lies behind the rest now.
    #[inline]
    pub(crate) fn append(&mut self, frame: &[u8]) -> Appended {
        let payload = frame.len().saturating_sub(self.header_length);
        self.length += payload;
        // It is at most `size`.
        self.next = self.next.wrapping_add(payload as u32);
        let flags = frame.get(self.ip + IPV6_HEADER + FLAGS);
        self.last_flags = flags.map_or(0, |flags| flags & (PSH | FIN));
        if payload < self.size.into() || self.last_flags != 0 || !self.has_room() {
            self.takes = 0;
            Appended::Last
        } else {
            Appended::Growing
        }
    }

    /// Makes one segment of the frame that has grown: its length is that of
    /// all, and the flags of the last one are its own, which cutting gives to
    /// the last one only.
    pub(crate) fn finish(&self, frame: &mut [u8]) {
        let payload = self.length.saturating_sub(self.ip + IPV6_HEADER);
        if let Some(place) = frame.get_mut(self.ip + PAYLOAD_LENGTH..)
            && let Some(place) = place.first_chunk_mut()
        {
            // It fits: what had no room was not appended.
            *place = (payload as u16).to_be_bytes();
        }
        if let Some(flags) = frame.get_mut(self.ip + IPV6_HEADER + FLAGS) {
            *flags |= self.last_flags;
        }
    }
}

/// Segments of a transmit queue that grow, until a poll is over.
#[derive(Default)]
pub(crate) struct Segments {
    /// With room for [`MOST`], or none.
    pub(crate) frames: Vec<SuperFrame>,
}

/// A large segment that is not sent yet, and the buffer in which it is.
pub(crate) struct SuperFrame {
    pub(crate) growing: Growing,
    pub(crate) buffer: LargeBuffer,
}

impl Segments {
    /// None grow yet; none ever do, if the device does not cut them.
    pub(crate) fn new(negotiated: Features) -> Self {
        let cuts = negotiated.contains(Features::HOST_TSO6);
        Self {
            frames: Vec::with_capacity(if cuts { MOST } else { 0 }),
        }
    }

    /// Whether the device cuts them.
    #[inline]
    pub(crate) fn may_grow(&self) -> bool {
        self.frames.capacity() != 0
    }
}
