//! Builds the guest, boots it in QEMU and is the other end of its cable.
//!
//! - [`toolchain`], [`install`], [`command`]: what this machine has, and what
//!   completes it;
//! - [`qemu`]: one typed description of a machine, one command line;
//! - [`guest`]: a running guest, its console and QEMU's monitor;
//! - [`wire`]: the host's ends of the cable.

pub mod command;
pub mod doctor;
pub mod guest;
pub mod image;
pub mod install;
pub mod interrupt;
pub mod qemu;
pub mod toolchain;
pub mod wire;
