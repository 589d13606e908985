//! What the tests share.

pub mod blind;
pub mod control;
pub mod controller;
pub mod device;
pub mod faults;
pub mod inert;
pub mod memory;
pub mod mmio;
pub mod modern;
pub mod net;
pub mod packed;
pub mod pci;
pub mod registers;
pub mod ring;
pub mod segments;
pub mod transport;
