//! Where a PCI function's INTx pin leads, as ACPI says: an evaluator of AML, as
//! narrow as that question (ACPI specification 6.5, chapters 6.2.13, 19 and 20).
//!
//! The answer is in programs: `_PRT` is a method of the host bridge, and the
//! interrupts that it names are often devices of their own whose `_CRS` is one
//! again. [`route`] loads the tables, says `_PIC(1)` and asks.
//!
//! Why no crate does it: `acpi` 6.1.1 needs a nightly compiler, its interpreter
//! panics at what it does not know or what is wrong in a table (the `_PRT` of
//! QEMU's `pc` is enough), and it has no bound on a loop; this kernel does not
//! unwind. Here every table ends in a route or in an [`AmlError`]: steps,
//! nesting and memory are bounded, and `tests/hostile.rs` says so with tables
//! of nonsense.
//!
//! What AML may do is narrow, too. It may read PCI configuration, by [`Host`].
//! It may not write to anything outside of itself, nor read memory or ports:
//! that is an error.
//!
//! ```
//! use kickpath_aml::{Host, PciPath, RouteError, route};
//!
//! struct NoPci;
//!
//! impl Host for NoPci {
//!     fn pci_config(&self, _: u8, _: u8, _: u8, _: u8) -> u32 {
//!         u32::MAX
//!     }
//! }
//!
//! // No table, so there is no host bridge.
//! let path = PciPath { root_bus: 0, hops: &[(3, 0)] };
//! assert_eq!(route(&[], &NoPci, path, 1), Err(RouteError::NoHostBridge { bus: 0 }));
//! ```
#![no_std]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

extern crate alloc;

mod cursor;
mod error;
mod evaluate;
mod expression;
mod field;
mod namespace;
mod resource;
mod routing;
mod value;

pub use error::{AmlError, RouteError};
pub use resource::{Interrupt, Polarity, Source, Trigger};
pub use routing::{PciPath, route};

/// What AML may see of the machine.
pub trait Host {
    /// Reads the 32-bit register at `register` (a multiple of 4) of a PCI
    /// function's configuration; all ones where nothing is.
    fn pci_config(&self, bus: u8, device: u8, function: u8, register: u8) -> u32;
}
