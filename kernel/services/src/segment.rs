//! The part of a TCP segment that tells whose it is.

use smoltcp::wire::IpEndpoint;

use crate::packet::{Content, Packet};

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    pub(crate) local: IpEndpoint,
    pub(crate) remote: IpEndpoint,
}

/// What a packet says of the segment in it.
pub(crate) struct Segment {
    pub(crate) ends: Ends,
    /// What it acknowledges, if anything.
    pub(crate) acknowledged: Option<u32>,
    opens: bool,
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
            local: IpEndpoint::new(packet.destination.ip(), to),
            remote: IpEndpoint::new(packet.source.ip(), from),
        };
        Some(Self {
            ends,
            acknowledged,
            opens,
        })
    }

    /// Whether it is to open a connection.
    #[inline]
    pub(crate) fn opens(&self) -> bool {
        self.opens
    }
}
