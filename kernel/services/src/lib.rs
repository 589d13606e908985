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
//! All sockets and their buffers are allocated when the [`Stack`] is made. The
//! data path of the UDP echo allocates nothing; it is the one that this project
//! measures, and `fast_echo.rs` and `ingress.rs` say how it is kept short.
//!
//! What is not here: IPv6 fragments (smoltcp 0.14 has no reassembly for them),
//! duplicate address detection, multicast group membership reports.
//!
//! ```
//! use kickpath_abi::{config::Config, status::Status};
//! use kickpath_services::{Stack, StatusSource};
//! use smoltcp::phy::{Device, DeviceCapabilities, Loopback, Medium};
//! use smoltcp::time::Instant;
//!
//! /// A network device, and what is known about it.
//! struct Nic(Loopback);
//!
//! impl Device for Nic {
//!     type RxToken<'a> = <Loopback as Device>::RxToken<'a>;
//!     type TxToken<'a> = <Loopback as Device>::TxToken<'a>;
//!     fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
//!         self.0.receive(now)
//!     }
//!     fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
//!         self.0.transmit(now)
//!     }
//!     fn capabilities(&self) -> DeviceCapabilities {
//!         self.0.capabilities()
//!     }
//! }
//!
//! impl StatusSource for Nic {
//!     fn status(&self) -> Status {
//!         Status::default()
//!     }
//! }
//!
//! let mut nic = Nic(Loopback::new(Medium::Ethernet));
//! let config = Config::parse("ip=192.0.2.7/24", |error| panic!("{error}"));
//! let mac = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
//! let mut now = Instant::ZERO;
//! let mut stack = Stack::new(&config, mac, &mut nic, now, 1);
//! for _ in 0..10 {
//!     while stack.poll(now, &mut nic) {}
//!     // Here a kernel waits for an interrupt, until this time at most.
//!     now = stack.poll_at(now).unwrap_or(now).max(now);
//! }
//! assert_eq!(stack.network().ipv4, ["192.0.2.7/24"]);
//! assert_eq!(stack.network().ipv6, ["fe80::5054:ff:fe12:3456/64"]);
//! ```
#![no_std]
#![deny(missing_docs, unsafe_code)]

extern crate alloc;

mod address;
mod address_book;
mod announce;
mod blast;
mod chargen;
mod checksum;
mod fast_echo;
mod flow;
mod http;
mod ingress;
mod neighbor;
pub mod netconsole;
mod pool;
mod shared;
mod slaac;
mod stack;
mod tcp;
mod udp;

pub use address::Ipv4State;
pub use blast::Blast;
pub use ingress::has_right_checksums;
pub use stack::{Stack, StatusSource};

/// The port of the echo protocol, TCP and UDP.
pub const ECHO_PORT: u16 = 7;
/// The port of the discard protocol, TCP and UDP.
pub const DISCARD_PORT: u16 = 9;
/// The port of the character generator protocol, TCP and UDP.
pub const CHARGEN_PORT: u16 = 19;
/// The port of the status page.
pub const HTTP_PORT: u16 = 80;

const DHCP_CLIENT_PORT: u16 = 68;
