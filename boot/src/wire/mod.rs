//! The host's ends of the guest's network cable.
//!
//! | end | needs | who is there |
//! | --- | --- | --- |
//! | [`Dgram`] and [`Peer`] | nothing | a host of our own on smoltcp, every frame in our hands |
//! | [`HostSockets`] over `-netdev user` | nothing | this machine's sockets, by ports of 127.0.0.1 |
//! | [`Tap`] | root | the kernel's network stack in a namespace of its own |
//!
//! Every wait has a bound, and nothing that a guest sends can make an end
//! panic, hang or grow without limit.

mod capture;
mod dgram;
mod dump;
mod far_end;
mod host;
pub mod http;
mod namespace;
pub mod peer;
mod plan;
mod record;
mod tap;
mod watch;

use std::time::{Duration, Instant};

pub use capture::Capture;
pub use dgram::{Dgram, WireCounters};
pub use far_end::{Echo, FarEnd, PingReport, WireError};
pub use host::{BURST, Bursts, HostSockets};
pub(crate) use host::{CHARGEN_PERIOD, chargen};
pub use peer::Peer;
pub use plan::{Plan, PlanError};
pub use record::{FrameLog, LoggedFrame, Recorder};
pub use tap::{Tap, TapError};
pub use watch::Watch;

/// Port of the echo services (RFC 862), UDP and TCP.
pub const ECHO_PORT: u16 = 7;

/// Port of the discard service (RFC 863).
pub const DISCARD_PORT: u16 = 9;

/// Port of the character generator (RFC 864).
pub const CHARGEN_PORT: u16 = 19;

/// Port of the status page.
pub const HTTP_PORT: u16 = 80;

/// Longest frame that a wire carries, in bytes: an Ethernet header and the
/// largest IP packet.
pub const MAX_FRAME: usize = 14 + 65_535;

/// An Ethernet frame, checksum left out, and when it came.
#[derive(Clone, Debug)]
pub struct Frame {
    /// When the wire's reader had it.
    pub at: Instant,
    /// From the destination address on.
    pub bytes: Vec<u8>,
}

/// Time left until `deadline`, zero when it has passed.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
