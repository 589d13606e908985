//! What the device is asked to do to a frame before it goes out
//! (specification 5.1.6.2): fill in the checksum of a UDP datagram or TCP
//! segment, and cut a large TCP segment into small ones. Who sends says where
//! they are: the driver reads nothing that its caller has just written.

use core::num::NonZeroU16;

use zerocopy::little_endian::U16;

use super::features::Features;
use super::header::{F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6, Header};

/// What the device is to do to one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload(Header);

impl Offload {
    /// The device is to fill in a checksum (Linux `skb_partial_csum_set`): the sum
    /// over all from `start` up to the end of the frame, which has no padding
    /// therefore, stored at `offset` behind `start`. Both are in bytes, `start`
    /// from the begin of the frame. There the frame has the sum of the
    /// pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1).
    ///
    /// Not asked of a device that has not agreed to `VIRTIO_NET_F_CSUM`
    /// ([`TxQueue::fills_checksums`](super::tx::TxQueue::fills_checksums)): the frame
    /// goes out as it is.
    #[doc(alias = "skb_partial_csum_set")]
    #[inline]
    pub const fn checksum(start: u16, offset: u16) -> Self {
        Self(Header {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_NONE,
            hdr_len: U16::ZERO,
            gso_size: U16::ZERO,
            csum_start: U16::new(start),
            csum_offset: U16::new(offset),
        })
    }

    /// The device is to cut the frame's TCP segment, too, into pieces with `size`
    /// bytes of payload each. Ethernet, IP and TCP header together have
    /// `header_length` bytes.
    ///
    /// Not asked of a device that has not agreed to `VIRTIO_NET_F_HOST_TSO4`, or
    /// `_TSO6` where the frame is not `ipv4`: that fills in the checksum only.
    #[doc(alias = "virtio_net_hdr_from_skb")]
    #[inline]
    pub const fn segmented(self, ipv4: bool, header_length: u16, size: NonZeroU16) -> Self {
        Self(Header {
            gso_type: if ipv4 { GSO_TCPV4 } else { GSO_TCPV6 },
            hdr_len: U16::new(header_length),
            gso_size: U16::new(size.get()),
            ..self.0
        })
    }

    /// What of this a device does that has agreed to these features: nothing else may
    /// be asked of it (specification 5.1.6.2.1).
    #[inline]
    pub(super) fn agreed(self, negotiated: Features) -> Option<Self> {
        if !negotiated.contains(Features::CSUM) {
            return None;
        }
        let is_agreed = match self.0.gso_type {
            GSO_NONE => true,
            GSO_TCPV4 => negotiated.contains(Features::HOST_TSO4),
            _ => negotiated.contains(Features::HOST_TSO6),
        };
        Some(if is_agreed {
            self
        } else {
            Self::checksum(self.0.csum_start.get(), self.0.csum_offset.get())
        })
    }

    /// Whether the device is to cut it into pieces.
    #[inline]
    pub fn is_segmented(&self) -> bool {
        self.0.gso_type != GSO_NONE
    }

    /// The header that says so.
    #[inline]
    pub(super) fn header(&self) -> Header {
        self.0
    }
}
