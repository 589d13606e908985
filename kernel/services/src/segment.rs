//! The part of a TCP segment that tells whose it is.

use crate::packet::{Address, Content, Packet};

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    /// Ours.
    pub(crate) local: Address,
    pub(crate) remote: Address,
    /// Ours, then the other's.
    pub(crate) ports: [u16; 2],
}

/// What a packet says of the segment in it.
pub(crate) struct Segment {
    pub(crate) ends: Ends,
    /// What it acknowledges, if anything.
    pub(crate) acknowledged: Option<u32>,
    /// It is to open a connection.
    pub(crate) opens: bool,
}

impl Segment {
    /// `None` when there is no segment in the packet.
    #[inline]
    pub(crate) fn of(packet: &Packet<'_>) -> Option<Self> {
        let Content::Tcp {
            from,
            to,
            acknowledged,
            opens,
        } = packet.content
        else {
            return None;
        };
        let ends = Ends {
            local: packet.destination,
            remote: packet.source,
            ports: [to, from],
        };
        Some(Self {
            ends,
            acknowledged,
            opens,
        })
    }
}
