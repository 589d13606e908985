//! Reading a table from left to right (ACPI 6.5, section 20.2).

use crate::AmlError;

/// Most `^`, and most segments, of a name; real ones have some.
const MAX_WAY: usize = 32;

/// A part of a table that is yet to be read.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    table: &'a [u8],
    at: usize,
    end: usize,
}

/// A name with its way: `\`, `^`, and segments of four bytes each.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    /// It starts at the root.
    pub absolute: bool,
    /// Number of `^`.
    pub parents: usize,
    /// The segments, four bytes each.
    pub segments: &'a [u8],
    /// Where it stands.
    pub at: usize,
}

impl Path<'_> {
    /// The segments.
    pub fn names(&self) -> impl Iterator<Item = [u8; 4]> + '_ {
        self.segments
            .chunks_exact(4)
            .filter_map(|name| name.first_chunk().copied())
    }
}

impl<'a> Cursor<'a> {
    /// All of a table behind its header of `header` bytes.
    pub fn new(table: &'a [u8], header: usize) -> Self {
        Self {
            table,
            at: header,
            end: table.len(),
        }
    }

    /// Offset of the next byte in the table.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Offset of the end.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.at >= self.end
    }

    fn truncated(&self) -> AmlError {
        AmlError::Truncated { at: self.at }
    }

    /// The next byte, which stays.
    pub fn peek(&self) -> Result<u8, AmlError> {
        self.bytes_left().first().copied().ok_or(self.truncated())
    }

    fn bytes_left(&self) -> &'a [u8] {
        self.table.get(self.at..self.end).unwrap_or_default()
    }

    /// The next opcode, which stays; the prefix 0x5b is its upper byte.
    pub fn peek_opcode(&self) -> Result<u16, AmlError> {
        match *self.bytes_left() {
            [0x5b, second, ..] => Ok(0x5b00 | u16::from(second)),
            [0x5b] | [] => Err(self.truncated()),
            [opcode, ..] => Ok(u16::from(opcode)),
        }
    }

    /// Takes `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], AmlError> {
        let bytes = self.bytes_left().get(..count).ok_or(self.truncated())?;
        self.at += count;
        Ok(bytes)
    }

    /// Takes a byte.
    pub fn byte(&mut self) -> Result<u8, AmlError> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    /// Takes the opcode that [`Self::peek_opcode`] told.
    pub fn take_opcode(&mut self, opcode: u16) {
        self.at += if opcode > 0xff { 2 } else { 1 };
    }

    /// Takes an integer of `bytes` bytes, 8 at most.
    pub fn integer(&mut self, bytes: usize) -> Result<u64, AmlError> {
        Ok(little_endian(self.take(bytes)?))
    }

    /// Takes a string with its end mark.
    pub fn string(&mut self) -> Result<&'a [u8], AmlError> {
        let left = self.bytes_left();
        let length = left.iter().position(|&byte| byte == 0);
        let text = self.take(length.ok_or(self.truncated())?)?;
        self.at += 1;
        Ok(text)
    }

    /// Takes a length (`PkgLength`) and returns its value.
    pub fn length(&mut self) -> Result<usize, AmlError> {
        let lead = self.byte()?;
        let more = usize::from(lead >> 6);
        if more == 0 {
            return Ok(usize::from(lead & 0x3f));
        }
        let high = little_endian(self.take(more)?) as usize;
        Ok(high << 4 | usize::from(lead & 0x0f))
    }

    /// Takes a length and the block that has it, which is returned.
    pub fn block(&mut self) -> Result<Self, AmlError> {
        let start = self.at;
        let length = self.length()?;
        let end = start + length;
        if end < self.at || end > self.end {
            return Err(AmlError::Truncated { at: start });
        }
        let block = Self { end, ..*self };
        self.at = end;
        Ok(block)
    }

    /// Whether a name stands here (`NameString`).
    pub fn at_name(&self) -> bool {
        matches!(
            self.peek(),
            Ok(b'\\' | b'^' | b'A'..=b'Z' | b'_' | 0x2e | 0x2f)
        )
    }

    /// Takes a name.
    pub fn path(&mut self) -> Result<Path<'a>, AmlError> {
        let at = self.at;
        let absolute = self.peek()? == b'\\';
        if absolute {
            self.at += 1;
        }
        let mut parents = 0;
        while self.peek()? == b'^' {
            parents += 1;
            self.at += 1;
        }
        let count = match self.peek()? {
            0 => {
                self.at += 1;
                0
            }
            0x2e => {
                self.at += 1;
                2
            }
            0x2f => {
                self.at += 1;
                usize::from(self.byte()?)
            }
            _ => 1,
        };
        if parents > MAX_WAY || count > MAX_WAY {
            return Err(AmlError::NotAName { at });
        }
        let segments = self.take(4 * count)?;
        let valid = |name: &[u8]| {
            matches!(name.first(), Some(b'A'..=b'Z' | b'_'))
                && name
                    .iter()
                    .all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_'))
        };
        if !segments.chunks(4).all(valid) {
            return Err(AmlError::NotAName { at });
        }
        Ok(Path {
            absolute,
            parents,
            segments,
            at,
        })
    }
}

/// The value of some bytes, of which the first 8 count.
pub fn little_endian(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .take(8)
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}
