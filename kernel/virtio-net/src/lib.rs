#![doc = include_str!("../README.md")]
//!
//! # Where to read on
//!
//! In the order of a packet's way out: [`net::VirtioNet`] ->
//! [`net::tx::TxSlot::start_xmit`] -> [`queue::PositionalRing::add`] ->
//! [`queue::Virtqueue::kick`] -> [`doorbell::Doorbell::ring`], and how it all
//! was set up: [`vectors::find_vqs`]. Items name the Linux function that they
//! answer to, also as search aliases.
#![no_std]
#![deny(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]

pub use virtio_drivers;

#[cfg(test)]
extern crate std;

mod barrier;
pub mod doorbell;
#[cfg(feature = "faults")]
#[path = "../lab/faults.rs"]
pub mod faults;
mod hal;
pub mod interrupt;
mod mmio;
#[cfg(test)]
#[path = "../tests/model/mod.rs"]
mod model;
pub mod moderation;
pub mod net;
mod patience;
pub mod queue;
#[cfg(feature = "smoltcp")]
pub mod smoltcp;
mod trace;
pub mod transport;
pub mod vectors;
