//! Builds the guest, boots it in QEMU or another VMM and is the other end of its cable.
//!
//! From the top to the bottom:
//!
//! - [`run`], [`serve`], [`mod@bench`], [`compare`], [`soak`]: what the command does;
//! - [`gallery`]: all of it as a site for a web server;
//! - [`lab`]: the driver with a mistake, and what comes of it;
//! - [`nested`]: the same commands on a KVM of an emulated CPU;
//! - [`trace`]: one packet seen at every layer;
//! - [`session`]: from what the user asked for to a running guest;
//! - [`toolchain`], [`install`], [`linux`], [`image`], [`command`], [`accel`], [`ports`]:
//!   what this machine has, and what completes it;
//! - [`vmm`]: what the VMMs take for a machine, a back end each;
//! - [`qemu`]: one typed description of a machine, and QEMU's command line;
//! - [`guest`]: a running guest, its console and QEMU's monitor;
//! - [`wire`]: the host's ends of the cable;
//! - [`terminal`], [`interrupt`], [`lang`]: the person in front of it.
#![deny(missing_docs)]

pub mod accel;
pub mod bench;
pub mod command;
pub mod compare;
pub mod doctor;
pub mod gallery;
pub mod guest;
mod html;
pub mod image;
pub mod install;
pub mod interrupt;
pub mod lab;
pub mod lang;
mod leftover;
pub mod linux;
pub mod linux_guest;
pub mod nested;
pub mod output;
pub mod ports;
mod publish;
pub mod qemu;
pub mod run;
pub mod scratch;
pub mod serve;
pub mod session;
pub mod soak;
pub mod terminal;
pub mod toolchain;
pub mod trace;
pub mod vmm;
pub mod wire;
