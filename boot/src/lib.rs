//! Builds the guest, boots it in QEMU and is the other end of its cable.
//!
//! From the top to the bottom:
//!
//! - [`run`], [`serve`], [`bench`], [`compare`]: what the command does;
//! - [`trace`]: one packet seen at every layer;
//! - [`session`]: from what the user asked for to a running guest;
//! - [`toolchain`], [`install`], [`image`], [`command`], [`accel`], [`ports`]:
//!   what this machine has, and what completes it;
//! - [`qemu`]: one typed description of a machine, one command line;
//! - [`guest`]: a running guest, its console and QEMU's monitor;
//! - [`wire`]: the host's ends of the cable;
//! - [`terminal`], [`interrupt`]: the person in front of it.
#![deny(missing_docs)]

pub mod accel;
pub mod bench;
pub mod command;
pub mod compare;
pub mod doctor;
pub mod guest;
pub mod image;
pub mod install;
pub mod interrupt;
pub mod ports;
pub mod qemu;
pub mod run;
pub mod serve;
pub mod session;
pub mod terminal;
pub mod toolchain;
pub mod trace;
pub mod wire;
