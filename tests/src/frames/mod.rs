//! Frames that no honest host would send, and the honest ones that they are
//! made from.
//!
//! Every frame that asks for an answer carries a number (as its UDP or TCP
//! source port, or as its ICMP identifier), and [`answered`] reads it from the
//! guest's answer.

mod checksum;
mod flood;
mod forbidden;
mod junk;
mod random;
mod reply;
mod route;

pub use checksum::fix_ipv4_checksum;
pub use flood::{Flood, KINDS};
pub use forbidden::{FORBIDDEN, Forbidden, forbidden};
pub use junk::junk;
pub use random::random;
pub use reply::{answered, arp_reply};
pub use route::Route;

/// Offset of the IP header in a frame.
pub const IP: usize = 14;
/// Offset of what an IPv4 header without options carries.
pub const IPV4_PAYLOAD: usize = IP + 20;
/// Offset of what an IPv6 header carries.
pub const IPV6_PAYLOAD: usize = IP + 40;

/// Port of the echo services.
const ECHO: u16 = 7;

/// Somebody, for the tests of these frames.
#[cfg(test)]
fn somebody() -> Route {
    use std::net::Ipv4Addr;

    Route {
        from: [2, 0, 0, 0, 0, 1],
        from_ipv4: Ipv4Addr::new(10, 0, 2, 2),
        from_ipv6: "fe80::1".parse().unwrap(),
        to: [2, 0, 0, 0, 0, 2],
        to_ipv4: Ipv4Addr::new(10, 0, 2, 15),
        to_ipv6: "fe80::2".parse().unwrap(),
    }
}
