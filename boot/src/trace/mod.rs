//! The kick trace: what the guest, QEMU, KVM and the wire recorded while one
//! datagram went into the guest and one came out, joined into one
//! [`Timeline`].
//!
//! A value of a timeline was recorded in the run that it tells of, or it is
//! absent; nothing is filled in from expectation. What explains a step (the
//! sentence, the Linux function, the section of the specification) is ours.

pub mod html;
pub mod perfetto;
#[cfg(test)]
mod sample;
pub mod timeline;

pub use timeline::Timeline;
