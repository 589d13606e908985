//! The evaluator: tables are loaded, methods called, statements executed
//! (ACPI 6.5, sections 5.5.2 and 19.6).

use alloc::vec::Vec;

use crate::cursor::{Cursor, Path};
use crate::namespace::{Namespace, NodeId, Object, ROOT};
use crate::value::Value;
use crate::{AmlError, Host};

/// Length of a table's header in bytes.
const HEADER: usize = 36;
/// Where the header has the table's revision.
const REVISION: usize = 8;
/// Most steps: terms and turns of loops. A big table has some thousands.
const MAX_STEPS: u32 = 100_000;
/// Most nodes looked at in search of names.
const MAX_VISITS: u32 = 10_000_000;
/// Most terms within each other, the terms of called methods included. Each
/// takes some hundred bytes of stack.
const MAX_DEPTH: usize = 48;
/// Most memory for values, in bytes, all that were ever made taken together.
const MAX_MEMORY: usize = 512 << 10;

/// What AML was read, and where.
pub struct Evaluator<'a, H> {
    pub(crate) names: Namespace<'a>,
    pub(crate) host: &'a H,
    /// Memory that values may still take, in bytes.
    pub(crate) budget: usize,
    /// The largest integer: tables of revision 1 have 32 bits.
    pub(crate) ones: u64,
    steps: u32,
    depth: usize,
}

/// What a method works with.
pub struct Frame<'a> {
    pub(crate) scope: NodeId,
    pub(crate) locals: [Value<'a>; 8],
    pub(crate) arguments: [Value<'a>; 7],
}

impl Frame<'_> {
    fn new(scope: NodeId) -> Self {
        Self {
            scope,
            locals: [const { Value::Nothing }; 8],
            arguments: [const { Value::Nothing }; 7],
        }
    }
}

/// How a statement ended.
pub enum Flow<'a> {
    /// The next one follows.
    Next,
    /// Out of the loop.
    Break,
    /// To the loop's condition.
    Continue,
    /// Out of the method.
    Return(Value<'a>),
}

impl<'a, H: Host> Evaluator<'a, H> {
    /// Loads tables, the DSDT first.
    pub fn load(tables: &[&'a [u8]], host: &'a H) -> Result<Self, AmlError> {
        let revision = tables.first().and_then(|dsdt| dsdt.get(REVISION));
        let mut evaluator = Self {
            names: Namespace::new(),
            host,
            budget: MAX_MEMORY,
            ones: match revision {
                Some(0 | 1) => u64::from(u32::MAX),
                _ => u64::MAX,
            },
            steps: 0,
            depth: 0,
        };
        for table in tables {
            evaluator.block(&mut Frame::new(ROOT), Cursor::new(table, HEADER))?;
        }
        Ok(evaluator)
    }

    /// The value of a node: a method is called with these arguments.
    pub fn value(
        &mut self,
        node: NodeId,
        arguments: Vec<Value<'a>>,
        at: usize,
    ) -> Result<Value<'a>, AmlError> {
        let missing = AmlError::NoObject { at };
        let node = self.names.target(node).ok_or(missing)?;
        let object = self.names.object(node).ok_or(missing)?;
        match object {
            Object::Value(value) => Ok(value.clone()),
            Object::Method { body, .. } => {
                let body = *body;
                self.call(node, body, arguments)
            }
            Object::Coded(code) => {
                let mut code = *code;
                let scope = self.names.parent(node);
                let value = self.expression(&mut Frame::new(scope), &mut code)?;
                self.names.set(node, Object::Value(value.clone()));
                Ok(value)
            }
            Object::Field { region, bit, bits } => {
                let (region, bit, bits) = (*region, *bit, *bits);
                self.read_field(region, bit, bits, at)
            }
            Object::BufferField { bytes, bit, bits } => {
                crate::field::read_bits(&bytes.borrow(), *bit, *bits, at).map(Value::Integer)
            }
            Object::Opaque => Err(AmlError::WrongType { at }),
            _ => Ok(Value::Object(node)),
        }
    }

    /// The value of a node's child of this name; `None` when it has none.
    pub fn child_value(
        &mut self,
        node: NodeId,
        name: [u8; 4],
    ) -> Result<Option<Value<'a>>, AmlError> {
        match self.names.child(node, name) {
            Some(child) => self.value(child, Vec::new(), 0).map(Some),
            None => Ok(None),
        }
    }

    /// Number of arguments that the object of a node takes.
    pub(crate) fn arguments_of(&self, node: NodeId) -> u8 {
        match self.names.object(node) {
            Some(Object::Method { arguments, .. }) => *arguments,
            _ => 0,
        }
    }

    fn call(
        &mut self,
        method: NodeId,
        body: Cursor<'a>,
        arguments: Vec<Value<'a>>,
    ) -> Result<Value<'a>, AmlError> {
        let mut frame = Frame::new(method);
        for (place, argument) in frame.arguments.iter_mut().zip(arguments) {
            *place = argument;
        }
        // What a method names is gone when it is over.
        let names = self.names.len();
        let flow = self.nested(|evaluator| evaluator.block(&mut frame, body));
        self.names.truncate(names);
        match flow? {
            Flow::Return(value) => Ok(value),
            _ => Ok(Value::Nothing),
        }
    }

    /// Does something that is within something else.
    pub(crate) fn nested<R>(
        &mut self,
        action: impl FnOnce(&mut Self) -> Result<R, AmlError>,
    ) -> Result<R, AmlError> {
        if self.depth >= MAX_DEPTH {
            return Err(AmlError::TooDeep);
        }
        self.depth += 1;
        let result = action(self);
        self.depth -= 1;
        result
    }

    /// Counts a step.
    pub(crate) fn step(&mut self) -> Result<(), AmlError> {
        self.steps += 1;
        if self.steps > MAX_STEPS || self.names.visits() > MAX_VISITS {
            return Err(AmlError::TooLong);
        }
        Ok(())
    }

    /// Executes the terms of a block.
    pub(crate) fn block(
        &mut self,
        frame: &mut Frame<'a>,
        mut code: Cursor<'a>,
    ) -> Result<Flow<'a>, AmlError> {
        while !code.is_empty() {
            match self.statement(frame, &mut code)? {
                Flow::Next => {}
                flow => return Ok(flow),
            }
        }
        Ok(Flow::Next)
    }

    /// Executes the terms of a block in another scope.
    fn block_in(
        &mut self,
        frame: &mut Frame<'a>,
        scope: NodeId,
        code: Cursor<'a>,
    ) -> Result<Flow<'a>, AmlError> {
        let outer = core::mem::replace(&mut frame.scope, scope);
        let result = self.nested(|evaluator| evaluator.block(frame, code));
        frame.scope = outer;
        result
    }

    fn statement(
        &mut self,
        frame: &mut Frame<'a>,
        code: &mut Cursor<'a>,
    ) -> Result<Flow<'a>, AmlError> {
        self.step()?;
        let opcode = code.peek_opcode()?;
        if self.named(frame, code, opcode)? {
            return Ok(Flow::Next);
        }
        let start = *code;
        code.take_opcode(opcode);
        match opcode {
            // If, Else
            0xa0 => {
                let mut then = code.block()?;
                let condition = self.integer(frame, &mut then)?;
                let otherwise = match code.peek() {
                    Ok(0xa1) => {
                        code.take_opcode(0xa1);
                        Some(code.block()?)
                    }
                    _ => None,
                };
                match (condition != 0, otherwise) {
                    (true, _) => self.nested(|evaluator| evaluator.block(frame, then)),
                    (false, Some(code)) => self.nested(|evaluator| evaluator.block(frame, code)),
                    (false, None) => Ok(Flow::Next),
                }
            }
            // While
            0xa2 => {
                let whole = code.block()?;
                loop {
                    self.step()?;
                    let mut body = whole;
                    if self.integer(frame, &mut body)? == 0 {
                        return Ok(Flow::Next);
                    }
                    match self.nested(|evaluator| evaluator.block(frame, body))? {
                        Flow::Next | Flow::Continue => {}
                        Flow::Break => return Ok(Flow::Next),
                        flow @ Flow::Return(_) => return Ok(flow),
                    }
                }
            }
            0x9f => Ok(Flow::Continue),
            0xa5 => Ok(Flow::Break),
            0xa4 => Ok(Flow::Return(self.expression(frame, code)?)),
            // Noop, BreakPoint
            0xa3 | 0xcc => Ok(Flow::Next),
            // Notify: nobody listens.
            0x86 => {
                self.target(frame, code)?;
                self.expression(frame, code)?;
                Ok(Flow::Next)
            }
            // Release, Signal, Reset: there is only one thread.
            0x5b27 | 0x5b24 | 0x5b26 => {
                self.target(frame, code)?;
                Ok(Flow::Next)
            }
            // Stall, Sleep: nothing that is asked for here takes time.
            0x5b21 | 0x5b22 => {
                self.expression(frame, code)?;
                Ok(Flow::Next)
            }
            _ => {
                *code = start;
                self.expression(frame, code)?;
                Ok(Flow::Next)
            }
        }
    }

    /// Defines what the term at `code` names, if it is such a term.
    fn named(
        &mut self,
        frame: &mut Frame<'a>,
        code: &mut Cursor<'a>,
        opcode: u16,
    ) -> Result<bool, AmlError> {
        let start = *code;
        code.take_opcode(opcode);
        match opcode {
            // Alias
            0x06 => {
                let source = self.find(frame, code.path()?)?;
                self.create(frame, code.path()?, Object::Alias(source))?;
            }
            // Name
            0x08 => {
                let path = code.path()?;
                let object = match data_end(code)? {
                    Some(end) => Object::Coded(core::mem::replace(code, end)),
                    None => Object::Value(self.expression(frame, code)?),
                };
                self.create(frame, path, object)?;
            }
            // Scope
            0x10 => {
                let mut body = code.block()?;
                let scope = self.find(frame, body.path()?)?;
                self.block_in(frame, scope, body)?;
            }
            // Method
            0x14 => {
                let mut body = code.block()?;
                let path = body.path()?;
                let arguments = body.byte()? & 7;
                self.create(frame, path, Object::Method { arguments, body })?;
            }
            // External: what another table has.
            0x15 => {
                code.path()?;
                code.take(2)?;
            }
            // Mutex
            0x5b01 => {
                let path = code.path()?;
                code.byte()?;
                self.create(frame, path, Object::Opaque)?;
            }
            // Event
            0x5b02 => {
                self.create(frame, code.path()?, Object::Opaque)?;
            }
            // OperationRegion
            0x5b80 => {
                let path = code.path()?;
                let space = code.byte()?;
                let offset = self.integer(frame, code)?;
                self.integer(frame, code)?;
                self.create(frame, path, Object::Region { space, offset })?;
            }
            // DataTableRegion
            0x5b88 => {
                let path = code.path()?;
                for _ in 0..3 {
                    self.expression(frame, code)?;
                }
                self.create(frame, path, Object::Opaque)?;
            }
            // Field
            0x5b81 => {
                let mut list = code.block()?;
                let region = self.find(frame, list.path()?)?;
                list.byte()?;
                self.fields(frame, list, Some(region))?;
            }
            // IndexField, BankField
            0x5b86 | 0x5b87 => {
                let mut list = code.block()?;
                self.find(frame, list.path()?)?;
                self.find(frame, list.path()?)?;
                if opcode == 0x5b87 {
                    self.expression(frame, &mut list)?;
                }
                list.byte()?;
                self.fields(frame, list, None)?;
            }
            // Device, Processor, PowerResource, ThermalZone
            0x5b82..=0x5b85 => {
                let mut body = code.block()?;
                let path = body.path()?;
                let (object, skipped) = match opcode {
                    0x5b82 => (Object::Device, 0),
                    0x5b83 => (Object::Scope, 6),
                    0x5b84 => (Object::Scope, 3),
                    _ => (Object::Scope, 0),
                };
                body.take(skipped)?;
                let scope = self.create(frame, path, object)?;
                self.block_in(frame, scope, body)?;
            }
            // CreateDWordField, CreateWordField, CreateByteField,
            // CreateBitField, CreateQWordField, CreateField
            0x8a..=0x8d | 0x8f | 0x5b13 => self.buffer_field(frame, code, opcode)?,
            _ => {
                *code = start;
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(crate) fn find(&self, frame: &Frame<'a>, path: Path<'a>) -> Result<NodeId, AmlError> {
        self.names
            .find(frame.scope, &path)
            .ok_or(AmlError::NoObject { at: path.at })
    }

    pub(crate) fn create(
        &mut self,
        frame: &Frame<'a>,
        path: Path<'a>,
        object: Object<'a>,
    ) -> Result<NodeId, AmlError> {
        self.names.create(frame.scope, &path, object)
    }
}

/// Where the constant that starts at `code` ends; `None` when it is none.
/// Most names of a table are never asked for, so they stay encoded.
fn data_end<'a>(code: &Cursor<'a>) -> Result<Option<Cursor<'a>>, AmlError> {
    let mut end = *code;
    let opcode = end.peek_opcode()?;
    end.take_opcode(opcode);
    match opcode {
        0x00 | 0x01 | 0xff => {}
        0x0a => drop(end.take(1)?),
        0x0b => drop(end.take(2)?),
        0x0c => drop(end.take(4)?),
        0x0e => drop(end.take(8)?),
        0x0d => drop(end.string()?),
        0x11 | 0x12 => drop(end.block()?),
        _ => return Ok(None),
    }
    Ok(Some(end))
}
