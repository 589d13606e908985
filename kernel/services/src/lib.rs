//! The guest's network: an IPv4 and IPv6 interface on smoltcp and the services
//! on it, over any [`smoltcp::phy::Device`] whose medium is Ethernet.
//!
//! | service | port | reference |
//! | --- | --- | --- |
//! | echo | UDP 7, TCP 7 | RFC 862 |
//! | discard | UDP 9, TCP 9 | RFC 863 |
//! | chargen | UDP 19, TCP 19 | RFC 864 |
//! | status page, `/stats.json`, `/metrics` | TCP 80 | RFC 9110, RFC 9112 |
//! | ping | ICMP, ICMPv6 | RFC 792, RFC 4443 |
//!
//! A TCP connection gets its buffers when it is opened, all else is allocated when
//! the [`Stack`] is made; an echo allocates nothing. `ingress.rs` says which way a frame goes.
//!
//! What is not here: IPv6 packets larger than the link's MTU are taken in, and not sent
//! (smoltcp 0.14 makes no fragments of them).
//!
//! ```
//! use kickpath_abi::{config::Config, status::Status};
//! use kickpath_services::Stack;
//! use smoltcp::phy::{Loopback, Medium};
//! use smoltcp::time::Instant;
//!
//! // Any device for which there is a `NetworkDevice`.
//! let mut nic = Loopback::new(Medium::Ethernet);
//! let config = Config::parse("ip=192.0.2.7/24", |error| panic!("{error}"));
//! let mac = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
//! let mut now = Instant::ZERO;
//! let mut stack = Stack::new(&config, mac, &mut nic, now, 1);
//! for _ in 0..10 {
//!     while stack.poll(now, &mut nic) {
//!         if stack.wants_status() {
//!             stack.set_status(Status::default());
//!         }
//!     }
//!     // Here a kernel waits for an interrupt, until this time at most.
//!     now = stack.poll_at().unwrap_or(now).max(now);
//! }
//! assert_eq!(stack.network().ipv4, ["192.0.2.7/24"]);
//! assert_eq!(stack.network().ipv6, ["fe80::5054:ff:fe12:3456/64"]);
//! ```
#![no_std]
#![deny(missing_docs, unsafe_code)]

extern crate alloc;

mod address;
mod announce;
mod arp;
mod blast;
mod chargen;
mod checksum;
mod datagram;
mod datagrams;
mod dhcp;
mod discovery;
mod for_others;
mod host;
mod http;
mod in_place;
mod ingress;
mod link;
mod mld;
mod neighbors;
pub mod netconsole;
mod packet;
mod path_mtu;
mod pool;
mod reassembly;
mod slaac;
mod stack;
mod stand_in;
mod streams;
mod tcp;
mod time_wait;
mod udp;
mod waiting;

pub use address::Ipv4State;
pub use blast::Blast;
pub use link::NetworkDevice;
pub use stack::Stack;

/// The port of the echo protocol, TCP and UDP.
pub const ECHO_PORT: u16 = 7;
/// The port of the discard protocol, TCP and UDP.
pub const DISCARD_PORT: u16 = 9;
/// The port of the character generator protocol, TCP and UDP.
pub const CHARGEN_PORT: u16 = 19;
/// The port of the status page.
pub const HTTP_PORT: u16 = 80;

const DHCP_CLIENT_PORT: u16 = 68;
