//! The Internet checksum (RFC 1071), many bytes at a time.

mod sum;

pub(crate) use sum::Sum;

pub(crate) const ETHERNET: usize = 14;
pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
