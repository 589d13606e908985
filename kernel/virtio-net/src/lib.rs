#![doc = include_str!("../README.md")]
//!
//! # Where to read on
//!
//! In the order of a packet's way out: [`net::VirtioNet`] ->
//! [`net::tx::TxSlot::start_xmit`] -> [`queue::PositionalRing::add`] ->
//! [`queue::Virtqueue::kick`] -> [`doorbell::Notify::ring`], and how it all
//! was set up: [`vectors`]. Items name the Linux function that they
//! answer to, also as search aliases.
#![cfg_attr(not(test), no_std)]
#![deny(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]
#![allow(clippy::boxed_local, reason = "stacks are small: queues stay")]
#![allow(clippy::type_complexity, reason = "a queue has two parameters")]

pub use virtio_drivers;

#[cfg(test)]
extern crate self as virtio_net;

mod barrier;
pub mod doorbell;
#[cfg(feature = "faults")]
#[path = "../lab/faults.rs"]
pub mod faults;
mod hal;
#[cfg(test)]
#[path = "../tests/inside/mod.rs"]
mod inside;
pub mod interrupt;
mod mmio;
#[cfg(test)]
#[path = "../tests/model/mod.rs"]
mod model;
pub mod moderation;
pub mod net;
mod patience;
mod prefetch;
pub mod queue;
#[cfg(feature = "smoltcp")]
pub mod smoltcp;
#[cfg(test)]
#[allow(dead_code, reason = "the tests from outside use the rest")]
#[path = "../tests/driver/support/mod.rs"]
mod support;
mod trace;
pub mod transport;
pub mod vectors;
