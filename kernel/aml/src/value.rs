//! Values: what a name, a local or an expression holds.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use crate::AmlError;
use crate::cursor::{Path, little_endian};
use crate::namespace::NodeId;

/// The bytes of a buffer or string, shared by those who refer to it.
pub type Bytes = Rc<RefCell<Vec<u8>>>;
/// The elements of a package.
pub type Elements<'a> = Rc<RefCell<Vec<Value<'a>>>>;

/// A value.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// Nothing was stored yet.
    Nothing,
    /// An integer.
    Integer(u64),
    /// A string, without its end mark.
    String(Bytes),
    /// A buffer.
    Buffer(Bytes),
    /// A package.
    Package(Elements<'a>),
    /// A named object that is no value, such as a device; or a reference.
    Object(NodeId),
    /// A name in a package, looked up from this scope when it is needed.
    Name(NodeId, Path<'a>),
    /// An element of a package. Never within a package.
    Element(Elements<'a>, usize),
    /// A byte of a buffer.
    Byte(Bytes, usize),
}

/// How often a package may contain a package.
const MAX_NESTING: usize = 16;

impl<'a> Value<'a> {
    /// A buffer of these bytes.
    pub fn buffer(bytes: Vec<u8>) -> Self {
        Self::Buffer(Rc::new(RefCell::new(bytes)))
    }

    /// A string of these bytes.
    pub fn string(bytes: &[u8]) -> Self {
        Self::String(Rc::new(RefCell::new(bytes.into())))
    }

    /// What a reference to an element leads to; anything else as it is.
    pub fn dereferenced(self, at: usize) -> Result<Self, AmlError> {
        match self {
            Self::Element(elements, index) => {
                let value = elements.borrow().get(index).cloned();
                value.ok_or(AmlError::OutOfBounds { at })
            }
            Self::Byte(bytes, index) => {
                let byte = bytes.borrow().get(index).copied();
                let byte = byte.ok_or(AmlError::OutOfBounds { at })?;
                Ok(Self::Integer(byte.into()))
            }
            other => Ok(other),
        }
    }

    /// It as an integer (ACPI 6.5, section 19.3.5.7).
    pub fn integer(&self, at: usize) -> Result<u64, AmlError> {
        match self {
            Self::Integer(value) => Ok(*value),
            Self::Buffer(bytes) => Ok(little_endian(&bytes.borrow())),
            Self::Element(..) | Self::Byte(..) => {
                // One step: an element is no reference itself.
                match self.clone().dereferenced(at)? {
                    Self::Integer(value) => Ok(value),
                    Self::Buffer(bytes) => Ok(little_endian(&bytes.borrow())),
                    _ => Err(AmlError::WrongType { at }),
                }
            }
            _ => Err(AmlError::WrongType { at }),
        }
    }

    /// A copy that shares nothing with it, as a store wants it. `budget` is
    /// the memory left, in values and bytes.
    pub fn copied(self, budget: &mut usize, at: usize) -> Result<Self, AmlError> {
        self.dereferenced(at)?.deep(budget, MAX_NESTING, at)
    }

    fn deep(self, budget: &mut usize, nesting: usize, at: usize) -> Result<Self, AmlError> {
        let copied_bytes = |bytes: Bytes, budget: &mut usize| {
            spend(budget, bytes.borrow().len())?;
            let copy = bytes.borrow().clone();
            Ok(Rc::new(RefCell::new(copy)))
        };
        Ok(match self {
            Self::String(bytes) => Self::String(copied_bytes(bytes, budget)?),
            Self::Buffer(bytes) => Self::Buffer(copied_bytes(bytes, budget)?),
            Self::Package(elements) => {
                let nesting = nesting.checked_sub(1).ok_or(AmlError::TooDeep)?;
                let elements = elements.borrow();
                spend(budget, elements.len() * size_of::<Value<'_>>())?;
                let mut copy = Vec::with_capacity(elements.len());
                for element in elements.iter() {
                    copy.push(element.clone().deep(budget, nesting, at)?);
                }
                Self::Package(Rc::new(RefCell::new(copy)))
            }
            // No package holds one.
            Self::Element(..) | Self::Byte(..) => return Err(AmlError::WrongType { at }),
            plain => plain,
        })
    }
}

/// Takes `bytes` from the memory that is left.
pub fn spend(budget: &mut usize, bytes: usize) -> Result<(), AmlError> {
    *budget = budget.checked_sub(bytes).ok_or(AmlError::TooLarge)?;
    Ok(())
}
