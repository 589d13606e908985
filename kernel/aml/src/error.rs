//! What can go wrong, and where in a table.

use core::fmt;

/// Why AML cannot be evaluated. `at` is an offset in bytes from the start of
/// the table, its header included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AmlError {
    /// The table, or the block in it, ends in the middle of something.
    Truncated {
        /// Where.
        at: usize,
    },
    /// An opcode that is none, or one that this evaluator does not know.
    Opcode {
        /// The opcode; one with the prefix 0x5b has that in its upper byte.
        opcode: u16,
        /// Where.
        at: usize,
    },
    /// Four bytes that are no name.
    NotAName {
        /// Where.
        at: usize,
    },
    /// A name that stands for nothing.
    NoObject {
        /// Where it is used.
        at: usize,
    },
    /// A value of another type is wanted.
    WrongType {
        /// Where.
        at: usize,
    },
    /// An index or a field beyond the end of what it is in.
    OutOfBounds {
        /// Where.
        at: usize,
    },
    /// A division by zero.
    DivisionByZero {
        /// Where.
        at: usize,
    },
    /// A field that may not be read or written here.
    Forbidden {
        /// Its address space: 0 memory, 1 ports, 2 PCI configuration.
        space: u8,
        /// Where it is used.
        at: usize,
    },
    /// Something that contains itself too often.
    TooDeep,
    /// Too many steps: an endless loop, presumably.
    TooLong,
    /// Too much memory.
    TooLarge,
}

impl fmt::Display for AmlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated { at } => write!(f, "AML ends too early at {at:#x}"),
            Self::Opcode { opcode, at } => {
                write!(f, "AML opcode {opcode:#x} at {at:#x} is not known here")
            }
            Self::NotAName { at } => write!(f, "AML has no name at {at:#x}"),
            Self::NoObject { at } => write!(f, "AML names what is not there at {at:#x}"),
            Self::WrongType { at } => write!(f, "AML has a value of a wrong type at {at:#x}"),
            Self::OutOfBounds { at } => write!(f, "AML reaches out of bounds at {at:#x}"),
            Self::DivisionByZero { at } => write!(f, "AML divides by zero at {at:#x}"),
            Self::Forbidden { space, at } => write!(
                f,
                "AML wants to access address space {space} at {at:#x}, which it may not"
            ),
            Self::TooDeep => f.write_str("AML is nested too deeply"),
            Self::TooLong => f.write_str("AML takes too many steps"),
            Self::TooLarge => f.write_str("AML takes too much memory"),
        }
    }
}

impl core::error::Error for AmlError {}

/// Why it is not known where a pin leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// AML could not be evaluated.
    Aml(AmlError),
    /// No host bridge has this bus.
    NoHostBridge {
        /// The bus.
        bus: u8,
    },
    /// No `_PRT` on the way up from the device has an entry for it.
    NoEntry,
    /// The entry, or the link device that it names, is not as it must be.
    BadEntry,
    /// The link device leads nowhere: firmware left it disabled.
    Unconnected,
}

impl From<AmlError> for RouteError {
    fn from(error: AmlError) -> Self {
        Self::Aml(error)
    }
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aml(error) => error.fmt(f),
            Self::NoHostBridge { bus } => write!(f, "ACPI has no host bridge with bus {bus:#04x}"),
            Self::NoEntry => f.write_str("no _PRT has an entry for the pin"),
            Self::BadEntry => f.write_str("the _PRT's entry for the pin is not understood"),
            Self::Unconnected => f.write_str("the pin's interrupt link leads nowhere"),
        }
    }
}

impl core::error::Error for RouteError {}
