//! What the tests share.

pub mod control;
pub mod controller;
pub mod device;
pub mod faults;
pub mod memory;
pub mod net;
pub mod pci;
pub mod ring;
pub mod transport;
