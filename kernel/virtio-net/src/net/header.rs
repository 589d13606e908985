//! `struct virtio_net_hdr` (specification 5.1.6), the header of every frame.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::features::Features;

/// In [`Header::flags`]: the checksum is that of the pseudo-header only.
pub const F_NEEDS_CSUM: u8 = 1;
/// In [`Header::flags`]: the device has found the checksum right.
pub const F_DATA_VALID: u8 = 2;

/// In [`Header::gso_type`]: an ordinary frame.
pub const GSO_NONE: u8 = 0;
/// In [`Header::gso_type`]: TCP over IPv4 in one large piece.
pub const GSO_TCPV4: u8 = 1;
/// In [`Header::gso_type`]: TCP over IPv6 in one large piece.
pub const GSO_TCPV6: u8 = 4;
/// In [`Header::gso_type`], with another value: the segment has TCP's flag CWR.
pub const GSO_ECN: u8 = 0x80;

/// The fields that every header has.
///
/// Their byte order is little endian; the legacy interface has the guest's
/// (specification 5.1.6.1), which is the same on x86.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Header {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Ethernet, IP and TCP or UDP header together, in bytes.
    pub hdr_len: U16,
    /// Bytes of payload a segment.
    pub gso_size: U16,
    /// Where the checksum's sum begins, in bytes from the start of the frame.
    pub csum_start: U16,
    /// Where it is stored, in bytes from `csum_start`.
    pub csum_offset: U16,
}

/// The header with `VIRTIO_NET_F_MRG_RXBUF` or `VIRTIO_F_VERSION_1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MergeableHeader {
    pub header: Header,
    /// Buffers over which a received frame is spread; 0 in a sent one.
    pub num_buffers: U16,
}

/// The header with `VIRTIO_NET_F_HASH_REPORT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct HashHeader {
    pub mergeable: MergeableHeader,
    pub hash_value: U32,
    /// `VIRTIO_NET_HASH_REPORT_*`: what was hashed.
    pub hash_report: U16,
    pub padding_reserved: U16,
}

const _: () = assert!(
    size_of::<Header>() == 10
        && size_of::<MergeableHeader>() == 12
        && size_of::<HashHeader>() == 20
);

/// Length in bytes of the header of every frame, both ways, which follows from
/// the features (specification 5.1.6 and 5.1.6.3).
pub const fn header_length(negotiated: Features) -> usize {
    const WITH_NUM_BUFFERS: Features = Features::MRG_RXBUF.union(Features::VERSION_1);
    if negotiated.contains(Features::HASH_REPORT) {
        size_of::<HashHeader>()
    } else if negotiated.intersects(WITH_NUM_BUFFERS) {
        size_of::<MergeableHeader>()
    } else {
        size_of::<Header>()
    }
}
