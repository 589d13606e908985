//! What the guest and the program that runs it agree on, and nothing else:
//! the configuration keys ([`config`], [`steps`]) and the status report ([`status`]).
#![no_std]
#![deny(missing_docs)]

extern crate alloc;

pub mod config;
pub mod status;
pub mod steps;
