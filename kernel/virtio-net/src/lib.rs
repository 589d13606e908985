//! A guest-side virtio-net driver without an operating system under it.
//!
//! It speaks the traits of the `virtio-drivers` crate: [`Hal`] gives it memory
//! to share with the device, [`Transport`] its registers. What that crate
//! lacks is here: the legacy port-I/O transport, MSI-X and the interrupt
//! ladder, virtqueues sized at run time, kicks that are one store and happen
//! only when the device wants one, interrupts that are masked while polling.
//!
//! Where to read on, in the order of a packet's way out:
//! [`net::VirtioNet`] -> [`net::tx::TxQueue::start_xmit`] ->
//! [`queue::split::SplitRing::add`] -> [`queue::Virtqueue::kick`] ->
//! [`doorbell::Doorbell::ring`], and how it all was set up: [`vectors::find_vqs`].
//! Items name the Linux function that they answer to, also as search aliases.
//!
//! [`Hal`]: virtio_drivers::Hal
//! [`Transport`]: virtio_drivers::transport::Transport
#![no_std]
#![deny(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod doorbell;
pub mod interrupt;
pub mod net;
pub mod queue;
pub mod transport;
pub mod vectors;
