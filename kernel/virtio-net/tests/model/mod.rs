//! A model checker over the rings' memory ordering: the driver's real code on one
//! thread, a device on another, and every way in which they may interleave and see
//! each other's stores late, within bounds.
//!
//! Built for the crate's own tests, [`crate::barrier`] has its atomics and barriers
//! from here. Where no exploration runs on a thread they are the real ones.
//!
//! **Memory.** Each word keeps every value that it ever had. A load takes any that
//! is not older than what the thread must have seen, so a store may reach the other
//! thread late, in any order. A barrier raises what must be seen: *publish* lets a
//! later store carry what was stored before; *consume* makes what the store carried
//! seen; the full one does both, and is in one order with all others. (That is the
//! language's model of relaxed accesses and fences without loads that overtake
//! stores.) What a driver's `Acquire` and `Release` say is ignored: the barriers
//! alone must do.
//!
//! **Search.** Every run is made again from the start with another choice: at each
//! load who goes on, and which value is read. At most [`SWITCHES`] times is a thread
//! interrupted that could go on, and at most [`OLD_VALUES`] loads read something old.

mod device;
mod memory;
mod queues;
mod search;

pub(crate) use memory::{AtomicU16, AtomicU32, Barrier, barrier};
