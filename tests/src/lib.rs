//! What the guest tests share: the machine made ready ([`setup`]), a guest
//! with a host at the far end of its cable ([`Lab`]), the driver's example
//! kernels for other CPUs ([`bare`]), the transports that a test
//! runs over ([`Way`]), a list of tests with reasons for those that cannot run
//! here ([`Suite`]), a browser ([`browser`]), the documents and pictures of recorded runs
//! ([`documents`]), frames that no honest host would
//! send ([`frames`]), what no honest device would write ([`memory`]), a guest
//! that goes on in another QEMU ([`migration`]), other VMMs ([`vmms`]), and what Linux counts
//! of pings ([`ping`]).

pub mod bare;
pub mod browser;
pub mod documents;
pub mod frames;
mod lab;
pub mod ping;
pub mod program;
/// Of the kernel, which runs on bare metal only: here its tests run.
#[cfg(test)]
#[path = "../../kernel/src/arch/rate.rs"]
mod rate;
mod raw_wire;
pub mod setup;
mod suite;
pub mod vmms;
mod way;

pub use kickpath::guest::{memory, migration};
pub use lab::{Lab, Spec, UP, parse_address};
pub use raw_wire::RawWire;
pub use suite::{Skip, Suite};
pub use way::Way;
