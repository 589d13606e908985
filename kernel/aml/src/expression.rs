//! Expressions, and where their results are stored (ACPI 6.5, section 20.2.5).

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use crate::cursor::Cursor;
use crate::evaluate::{Evaluator, Frame};
use crate::field::write_bits;
use crate::namespace::{NodeId, Object};
use crate::value::{Bytes, Elements, Value, spend};
use crate::{AmlError, Host};

/// Where a result goes.
pub enum Target<'a> {
    /// Nowhere.
    Nowhere,
    /// To a local, 0 to 7.
    Local(usize),
    /// To an argument, 0 to 6.
    Argument(usize),
    /// To a named object.
    Node(NodeId),
    /// To an element of a package.
    Element(Elements<'a>, usize),
    /// To a byte of a buffer.
    Byte(Bytes, usize),
}

impl<'a, H: Host> Evaluator<'a, H> {
    /// The value of the expression at `code` as an integer.
    pub(crate) fn integer(
        &mut self,
        frame: &mut Frame<'a>,
        code: &mut Cursor<'a>,
    ) -> Result<u64, AmlError> {
        let at = code.at();
        Ok(self.expression(frame, code)?.integer(at)? & self.ones)
    }

    /// The value of the expression at `code`.
    pub(crate) fn expression(
        &mut self,
        frame: &mut Frame<'a>,
        code: &mut Cursor<'a>,
    ) -> Result<Value<'a>, AmlError> {
        self.step()?;
        self.nested(|evaluator| {
            if code.at_name() {
                evaluator.named_value(frame, code)
            } else {
                evaluator.operation(frame, code)
            }
        })
    }

    /// The value of a name; a method takes its arguments from `code`.
    fn named_value(
        &mut self,
        frame: &mut Frame<'a>,
        code: &mut Cursor<'a>,
    ) -> Result<Value<'a>, AmlError> {
        let path = code.path()?;
        let node = self.find(frame, path)?;
        let mut arguments = Vec::new();
        for _ in 0..self.arguments_of(node) {
            arguments.push(self.expression(frame, code)?);
        }
        self.value(node, arguments, path.at)
    }

    fn operation(
        &mut self,
        frame: &mut Frame<'a>,
        code: &mut Cursor<'a>,
    ) -> Result<Value<'a>, AmlError> {
        let at = code.at();
        let opcode = code.peek_opcode()?;
        code.take_opcode(opcode);
        let value = match opcode {
            0x00 => 0,
            0x01 => 1,
            0xff => self.ones,
            0x0a => code.integer(1)?,
            0x0b => code.integer(2)?,
            0x0c => code.integer(4)?,
            0x0e => code.integer(8)? & self.ones,
            0x0d => {
                let text = code.string()?;
                spend(&mut self.budget, text.len())?;
                return Ok(Value::string(text));
            }
            0x11 => return self.buffer(frame, code),
            0x12 | 0x13 => return self.package(frame, code, opcode == 0x13),
            0x60..=0x67 => return Ok(frame.locals[usize::from(opcode & 7)].clone()),
            0x68..=0x6e => {
                let place = frame.arguments.get(usize::from(opcode - 0x68));
                return place.cloned().ok_or(AmlError::OutOfBounds { at });
            }
            // Store, CopyObject
            0x70 | 0x9d => {
                // What is made here belongs to nobody yet.
                let is_new = matches!(code.peek(), Ok(0x0d | 0x11..=0x13));
                let mut value = self.expression(frame, code)?;
                if !is_new {
                    value = value.copied(&mut self.budget, at)?;
                }
                let target = self.target(frame, code)?;
                self.store(frame, target, value.clone(), at)?;
                return Ok(value);
            }
            // RefOf
            0x71 => {
                let target = self.target(frame, code)?;
                return self.reference(frame, target, at);
            }
            // DerefOf
            0x83 => {
                let value = self.expression(frame, code)?;
                return match value {
                    Value::Object(node) => self.value(node, Vec::new(), at),
                    Value::Name(scope, path) => {
                        let node = self.names.find(scope, &path);
                        self.value(node.ok_or(AmlError::NoObject { at })?, Vec::new(), at)
                    }
                    other => other.dereferenced(at),
                };
            }
            // CondRefOf
            0x5b12 => {
                let found = match code.at_name() {
                    true => {
                        let path = code.path()?;
                        self.names.find(frame.scope, &path).map(Target::Node)
                    }
                    false => Some(self.target(frame, code)?),
                };
                let target = self.target(frame, code)?;
                match found {
                    Some(found) => {
                        let value = self.reference(frame, found, at)?;
                        self.store(frame, target, value, at)?;
                        self.ones
                    }
                    None => 0,
                }
            }
            // Index
            0x88 => {
                let source = self.expression(frame, code)?.dereferenced(at)?;
                let index = self.integer(frame, code)? as usize;
                let target = self.target(frame, code)?;
                let out = AmlError::OutOfBounds { at };
                let value = match source {
                    Value::Package(elements) => {
                        elements.borrow().get(index).ok_or(out)?;
                        Value::Element(elements, index)
                    }
                    Value::Buffer(bytes) | Value::String(bytes) => {
                        bytes.borrow().get(index).ok_or(out)?;
                        Value::Byte(bytes, index)
                    }
                    _ => return Err(AmlError::WrongType { at }),
                };
                self.store(frame, target, value.clone(), at)?;
                return Ok(value);
            }
            // SizeOf
            0x87 => match self.expression(frame, code)?.dereferenced(at)? {
                Value::Package(elements) => elements.borrow().len() as u64,
                Value::Buffer(bytes) | Value::String(bytes) => bytes.borrow().len() as u64,
                _ => return Err(AmlError::WrongType { at }),
            },
            // Increment, Decrement
            0x75 | 0x76 => {
                let mut again = *code;
                let value = self.integer(frame, &mut again)?;
                let target = self.target(frame, code)?;
                let step = if opcode == 0x75 { 1 } else { u64::MAX };
                let value = value.wrapping_add(step) & self.ones;
                self.store(frame, target, Value::Integer(value), at)?;
                value
            }
            // Add and others of two operands and a target
            0x72 | 0x74 | 0x77 | 0x79..=0x7f | 0x85 => {
                let left = self.integer(frame, code)?;
                let right = self.integer(frame, code)?;
                let value = arithmetic(opcode, left, right, at)? & self.ones;
                let target = self.target(frame, code)?;
                self.store(frame, target, Value::Integer(value), at)?;
                value
            }
            // Divide: remainder, then quotient
            0x78 => {
                let left = self.integer(frame, code)?;
                let right = self.integer(frame, code)?;
                let zero = AmlError::DivisionByZero { at };
                let remainder = left.checked_rem(right).ok_or(zero)?;
                let target = self.target(frame, code)?;
                self.store(frame, target, Value::Integer(remainder), at)?;
                let target = self.target(frame, code)?;
                let quotient = left.checked_div(right).ok_or(zero)?;
                self.store(frame, target, Value::Integer(quotient), at)?;
                quotient
            }
            // Not, FindSetLeftBit, FindSetRightBit, ToInteger
            0x80 | 0x81 | 0x82 | 0x99 => {
                let value = self.integer(frame, code)?;
                let value = match opcode {
                    0x80 => !value & self.ones,
                    0x81 => u64::from(u64::BITS - value.leading_zeros()),
                    0x82 if value != 0 => u64::from(value.trailing_zeros() + 1),
                    _ => value,
                };
                let target = self.target(frame, code)?;
                self.store(frame, target, Value::Integer(value), at)?;
                value
            }
            // ToBuffer
            0x96 => {
                let value = self.expression(frame, code)?.dereferenced(at)?;
                let value = match value {
                    Value::Integer(value) => {
                        let length = if self.ones == u64::MAX { 8 } else { 4 };
                        Value::buffer(value.to_le_bytes().into_iter().take(length).collect())
                    }
                    Value::Buffer(_) => value.copied(&mut self.budget, at)?,
                    _ => return Err(AmlError::WrongType { at }),
                };
                let target = self.target(frame, code)?;
                let stored = value.clone().copied(&mut self.budget, at)?;
                self.store(frame, target, stored, at)?;
                return Ok(value);
            }
            // ObjectType
            0x8e => self.object_type(frame, code)?,
            // LAnd, LOr: both sides are evaluated (ACPI 6.5, section 19.6.73).
            0x90 | 0x91 => {
                let left = self.integer(frame, code)? != 0;
                let right = self.integer(frame, code)? != 0;
                let both = opcode == 0x90;
                self.truth(if both { left && right } else { left || right })
            }
            0x92 => {
                let value = self.integer(frame, code)?;
                self.truth(value == 0)
            }
            0x93..=0x95 => {
                let left = self.expression(frame, code)?.dereferenced(at)?;
                let right = self.expression(frame, code)?.dereferenced(at)?;
                let ordering = match (&left, &right) {
                    (Value::String(left), Value::String(right))
                    | (Value::Buffer(left), Value::Buffer(right)) => {
                        left.borrow().as_slice().cmp(right.borrow().as_slice())
                    }
                    _ => left.integer(at)?.cmp(&right.integer(at)?),
                };
                self.truth(match opcode {
                    0x93 => ordering.is_eq(),
                    0x94 => ordering.is_gt(),
                    _ => ordering.is_lt(),
                })
            }
            // Acquire: always at once, there is only one thread.
            0x5b23 => {
                self.target(frame, code)?;
                code.take(2)?;
                0
            }
            // Revision: of this evaluator.
            0x5b30 => 1,
            _ => return Err(AmlError::Opcode { opcode, at }),
        };
        Ok(Value::Integer(value))
    }

    fn truth(&self, is: bool) -> u64 {
        if is { self.ones } else { 0 }
    }

    fn buffer(
        &mut self,
        frame: &mut Frame<'a>,
        code: &mut Cursor<'a>,
    ) -> Result<Value<'a>, AmlError> {
        let mut block = code.block()?;
        let length = self.integer(frame, &mut block)?;
        let left = block.end() - block.at();
        let given = block.take(left)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX).max(left);
        spend(&mut self.budget, length)?;
        let mut bytes = Vec::from(given);
        bytes.resize(length, 0);
        Ok(Value::buffer(bytes))
    }

    fn package(
        &mut self,
        frame: &mut Frame<'a>,
        code: &mut Cursor<'a>,
        is_variable: bool,
    ) -> Result<Value<'a>, AmlError> {
        let mut block = code.block()?;
        let count = match is_variable {
            true => self.integer(frame, &mut block)?,
            false => u64::from(block.byte()?),
        };
        let count = usize::try_from(count).map_err(|_| AmlError::TooLarge)?;
        let bytes = count.checked_mul(size_of::<Value<'_>>());
        spend(&mut self.budget, bytes.ok_or(AmlError::TooLarge)?)?;
        let mut elements = Vec::with_capacity(count);
        while !block.is_empty() && elements.len() < count {
            let at = block.at();
            // Names are looked up when they are needed.
            if block.at_name() {
                elements.push(Value::Name(frame.scope, block.path()?));
                continue;
            }
            let element = self.expression(frame, &mut block)?;
            elements.push(element.copied(&mut self.budget, at)?);
        }
        elements.resize(count, Value::Nothing);
        Ok(Value::Package(Rc::new(RefCell::new(elements))))
    }

    fn object_type(
        &mut self,
        frame: &mut Frame<'a>,
        code: &mut Cursor<'a>,
    ) -> Result<u64, AmlError> {
        let at = code.at();
        let value = match self.target(frame, code)? {
            Target::Node(node) => match self.names.object(node) {
                Some(Object::Device) => return Ok(6),
                Some(Object::Method { .. }) => return Ok(8),
                Some(Object::Field { .. }) => return Ok(5),
                Some(Object::Region { .. }) => return Ok(10),
                Some(Object::BufferField { .. }) => return Ok(14),
                _ => self.value(node, Vec::new(), at)?,
            },
            Target::Local(place) => frame.locals[place & 7].clone(),
            Target::Argument(place) => {
                let value = frame.arguments.get(place).cloned();
                value.unwrap_or(Value::Nothing)
            }
            Target::Element(elements, index) => Value::Element(elements, index),
            Target::Byte(bytes, index) => Value::Byte(bytes, index),
            Target::Nowhere => Value::Nothing,
        };
        Ok(match value.dereferenced(at)? {
            Value::Integer(_) => 1,
            Value::String(_) => 2,
            Value::Buffer(_) => 3,
            Value::Package(_) => 4,
            _ => 0,
        })
    }

    /// The place that the term at `code` names (`SuperName`, `Target`).
    pub(crate) fn target(
        &mut self,
        frame: &mut Frame<'a>,
        code: &mut Cursor<'a>,
    ) -> Result<Target<'a>, AmlError> {
        self.step()?;
        let at = code.at();
        if code.at_name() {
            return Ok(Target::Node(self.find(frame, code.path()?)?));
        }
        let opcode = code.peek_opcode()?;
        match opcode {
            0x00 | 0x5b31 => {
                code.take_opcode(opcode);
                Ok(Target::Nowhere)
            }
            0x60..=0x67 => {
                code.take_opcode(opcode);
                Ok(Target::Local(usize::from(opcode - 0x60)))
            }
            0x68..=0x6e => {
                code.take_opcode(opcode);
                Ok(Target::Argument(usize::from(opcode - 0x68)))
            }
            // RefOf, DerefOf, Index
            0x71 | 0x83 | 0x88 => match self.expression(frame, code)? {
                Value::Element(elements, index) => Ok(Target::Element(elements, index)),
                Value::Byte(bytes, index) => Ok(Target::Byte(bytes, index)),
                Value::Object(node) => Ok(Target::Node(node)),
                _ => Err(AmlError::WrongType { at }),
            },
            _ => Err(AmlError::Opcode { opcode, at }),
        }
    }

    /// A value that refers to a place.
    fn reference(
        &mut self,
        frame: &Frame<'a>,
        target: Target<'a>,
        at: usize,
    ) -> Result<Value<'a>, AmlError> {
        match target {
            Target::Node(node) => Ok(Value::Object(node)),
            Target::Element(elements, index) => Ok(Value::Element(elements, index)),
            Target::Byte(bytes, index) => Ok(Value::Byte(bytes, index)),
            // What a local holds is as good, as long as it is only read.
            Target::Local(place) => Ok(frame.locals[place & 7].clone()),
            Target::Argument(place) => {
                let value = frame.arguments.get(place).cloned();
                value.ok_or(AmlError::OutOfBounds { at })
            }
            Target::Nowhere => Err(AmlError::WrongType { at }),
        }
    }

    /// Stores a value that belongs to nobody else, or a reference.
    fn store(
        &mut self,
        frame: &mut Frame<'a>,
        target: Target<'a>,
        value: Value<'a>,
        at: usize,
    ) -> Result<(), AmlError> {
        match target {
            Target::Nowhere => {}
            Target::Local(place) => frame.locals[place & 7] = value,
            Target::Argument(place) => {
                // Into what the caller passed by reference (ACPI 6.5, table
                // 19.6).
                match frame.arguments.get(place).cloned() {
                    Some(Value::Object(node)) => self.store_named(node, value, at)?,
                    Some(Value::Element(elements, index)) => {
                        self.store_element(&elements, index, value, at)?;
                    }
                    Some(Value::Byte(bytes, index)) => store_byte(&bytes, index, &value, at)?,
                    _ => {
                        if let Some(argument) = frame.arguments.get_mut(place) {
                            *argument = value;
                        }
                    }
                }
            }
            Target::Node(node) => self.store_named(node, value, at)?,
            Target::Element(elements, index) => self.store_element(&elements, index, value, at)?,
            Target::Byte(bytes, index) => store_byte(&bytes, index, &value, at)?,
        }
        Ok(())
    }

    fn store_named(&mut self, node: NodeId, value: Value<'a>, at: usize) -> Result<(), AmlError> {
        match self.names.object(node) {
            Some(Object::Value(_) | Object::Coded(_)) => {
                // A reference is not kept: see `Value::Element`.
                let value = value.dereferenced(at)?;
                self.names.set(node, Object::Value(value));
                Ok(())
            }
            Some(Object::BufferField { bytes, bit, bits }) => {
                let value = value.integer(at)?;
                write_bits(&mut bytes.borrow_mut(), *bit, *bits, value, at)
            }
            Some(Object::Field { region, .. }) => {
                let space = match self.names.object(*region) {
                    Some(Object::Region { space, .. }) => *space,
                    _ => u8::MAX,
                };
                Err(AmlError::Forbidden { space, at })
            }
            _ => Err(AmlError::WrongType { at }),
        }
    }

    /// A package owns its elements: each is a copy of its own. So packages lead
    /// neither in circles nor deeper than copying allows.
    fn store_element(
        &mut self,
        elements: &Elements<'a>,
        index: usize,
        value: Value<'a>,
        at: usize,
    ) -> Result<(), AmlError> {
        let value = match value {
            Value::Element(..) | Value::Byte(..) => value.copied(&mut self.budget, at)?,
            owned => owned,
        };
        let mut elements = elements.borrow_mut();
        let element = elements.get_mut(index);
        *element.ok_or(AmlError::OutOfBounds { at })? = value;
        Ok(())
    }
}

fn store_byte(bytes: &Bytes, index: usize, value: &Value<'_>, at: usize) -> Result<(), AmlError> {
    let value = value.integer(at)? as u8;
    let mut bytes = bytes.borrow_mut();
    *bytes.get_mut(index).ok_or(AmlError::OutOfBounds { at })? = value;
    Ok(())
}

fn arithmetic(opcode: u16, left: u64, right: u64, at: usize) -> Result<u64, AmlError> {
    let shift = u32::try_from(right).unwrap_or(u32::MAX);
    Ok(match opcode {
        0x72 => left.wrapping_add(right),
        0x74 => left.wrapping_sub(right),
        0x77 => left.wrapping_mul(right),
        0x79 => left.checked_shl(shift).unwrap_or(0),
        0x7a => left.checked_shr(shift).unwrap_or(0),
        0x7b => left & right,
        0x7c => !(left & right),
        0x7d => left | right,
        0x7e => !(left | right),
        0x7f => left ^ right,
        _ => left
            .checked_rem(right)
            .ok_or(AmlError::DivisionByZero { at })?,
    })
}
