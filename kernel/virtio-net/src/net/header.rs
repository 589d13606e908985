//! `struct virtio_net_hdr` (specification 5.1.6), the header of every frame.

use super::Features;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Length in bytes of the header of a legacy device without
/// `VIRTIO_NET_F_MRG_RXBUF`.
pub const LEGACY_HEADER_LENGTH: usize = 10;

/// Length in bytes of the header with `num_buffers`, which a device of version
/// 1 has always.
pub const HEADER_LENGTH: usize = 12;

/// Length in bytes of the header that goes with these features.
pub fn header_length(negotiated: Features) -> usize {
    if negotiated.intersects(Features::VERSION_1 | Features::MRG_RXBUF) {
        HEADER_LENGTH
    } else {
        LEGACY_HEADER_LENGTH
    }
}

/// The fields that every header has, little endian. With
/// `VIRTIO_NET_F_MRG_RXBUF` or `VIRTIO_F_VERSION_1` 16 bits `num_buffers`
/// follow.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Ethernet, IP and TCP or UDP header together, in bytes.
    pub hdr_len: [u8; 2],
    /// Bytes of payload a segment.
    pub gso_size: [u8; 2],
    /// Offset from which the checksum is to be computed.
    pub csum_start: [u8; 2],
    /// Offset from `csum_start` at which the checksum is to be stored.
    pub csum_offset: [u8; 2],
}

const _: () = assert!(size_of::<Header>() == LEGACY_HEADER_LENGTH);
