//! Builds the guest, boots it in QEMU and is the other end of its cable.

pub mod command;
pub mod image;
pub mod install;
pub mod toolchain;
