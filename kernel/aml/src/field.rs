//! Fields: bits of a buffer, or of PCI configuration (ACPI 6.5, sections
//! 5.5.2.4 and 19.6.48).

use alloc::vec::Vec;

use crate::cursor::Cursor;
use crate::evaluate::{Evaluator, Frame};
use crate::namespace::{NodeId, Object, ROOT};
use crate::value::Value;
use crate::{AmlError, Host};

/// The address space of PCI configuration.
const PCI_CONFIG: u8 = 2;
/// Bytes of PCI configuration that are looked at.
const CONFIG_SIZE: u64 = 256;

impl<'a, H: Host> Evaluator<'a, H> {
    /// The fields of a list, in `region`; without one they can only be named.
    pub(crate) fn fields(
        &mut self,
        frame: &Frame<'a>,
        mut list: Cursor<'a>,
        region: Option<NodeId>,
    ) -> Result<(), AmlError> {
        let mut bit = 0u64;
        while !list.is_empty() {
            self.step()?;
            match list.peek()? {
                // Reserved: only a length.
                0 => {
                    list.byte()?;
                    bit += list.length()? as u64;
                }
                // AccessField: type and attribute.
                1 => drop(list.take(3)?),
                // ConnectField: a name, or a buffer.
                2 => {
                    list.byte()?;
                    if list.at_name() {
                        list.path()?;
                    } else {
                        list.byte()?;
                        list.block()?;
                    }
                }
                // ExtendedAccessField: type, attribute and length.
                3 => drop(list.take(4)?),
                _ => {
                    let path = list.path()?;
                    let bits = list.length()? as u64;
                    let object = match region {
                        Some(region) => Object::Field { region, bit, bits },
                        None => Object::Opaque,
                    };
                    self.create(frame, path, object)?;
                    bit += bits;
                }
            }
        }
        Ok(())
    }

    /// Creates a field of a buffer (ACPI 6.5, section 19.6.18 and others).
    pub(crate) fn buffer_field(
        &mut self,
        frame: &mut Frame<'a>,
        code: &mut Cursor<'a>,
        opcode: u16,
    ) -> Result<(), AmlError> {
        let at = code.at();
        let Value::Buffer(bytes) = self.expression(frame, code)?.dereferenced(at)? else {
            return Err(AmlError::WrongType { at });
        };
        let index = self.integer(frame, code)?;
        let (scale, bits) = match opcode {
            0x8a => (8, 32),
            0x8b => (8, 16),
            0x8c => (8, 8),
            0x8d => (1, 1),
            0x8f => (8, 64),
            _ => (1, self.integer(frame, code)?),
        };
        let path = code.path()?;
        let out = AmlError::OutOfBounds { at };
        let bit = index.checked_mul(scale).ok_or(out)?;
        let end = bit.checked_add(bits).ok_or(out)?;
        if bits > 64 || end > bytes.borrow().len() as u64 * 8 {
            return Err(out);
        }
        self.create(frame, path, Object::BufferField { bytes, bit, bits })?;
        Ok(())
    }

    /// Reads a field of a region, which must be PCI configuration.
    pub(crate) fn read_field(
        &mut self,
        region: NodeId,
        bit: u64,
        bits: u64,
        at: usize,
    ) -> Result<Value<'a>, AmlError> {
        let Some(Object::Region { space, offset }) = self.names.object(region) else {
            return Err(AmlError::WrongType { at });
        };
        let (space, offset) = (*space, *offset);
        if space != PCI_CONFIG {
            return Err(AmlError::Forbidden { space, at });
        }
        let out = AmlError::OutOfBounds { at };
        let start = offset.checked_mul(8).ok_or(out)?;
        let start = start.checked_add(bit).ok_or(out)?;
        let end = start.checked_add(bits).ok_or(out)?;
        if bits > 64 || end > CONFIG_SIZE * 8 {
            return Err(out);
        }
        let (bus, device, function) = self.pci_device(region, at)?;
        // The registers that the field touches, and the bits in them.
        let first = start / 32 * 4;
        let mut bytes = Vec::new();
        for register in (first..end.div_ceil(8)).step_by(4) {
            let register = register as u8;
            let word = self.host.pci_config(bus, device, function, register);
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        read_bits(&bytes, start - first * 8, bits, at).map(Value::Integer)
    }

    /// The PCI function that a region belongs to: of the device around it,
    /// which must be right below its host bridge.
    fn pci_device(&mut self, region: NodeId, at: usize) -> Result<(u8, u8, u8), AmlError> {
        let device = self.names.parent(region);
        let wrong = AmlError::WrongType { at };
        let address = self.child_value(device, *b"_ADR")?.ok_or(wrong)?;
        let address = address.integer(at)?;
        let bridge = self.names.parent(device);
        if bridge == ROOT || !self.is_host_bridge(bridge)? {
            return Err(wrong);
        }
        let bus = self.root_bus(bridge)?;
        Ok((bus, (address >> 16) as u8 & 0x1f, address as u8 & 7))
    }
}

/// `bits` bits from `bit` on.
pub fn read_bits(bytes: &[u8], bit: u64, bits: u64, at: usize) -> Result<u64, AmlError> {
    let mut value = 0;
    for place in 0..bits.min(64) {
        let from = bit + place;
        let byte = bytes.get((from / 8) as usize);
        let byte = byte.ok_or(AmlError::OutOfBounds { at })?;
        value |= u64::from(byte >> (from % 8) & 1) << place;
    }
    Ok(value)
}

/// Writes `bits` bits from `bit` on.
pub fn write_bits(
    bytes: &mut [u8],
    bit: u64,
    bits: u64,
    value: u64,
    at: usize,
) -> Result<(), AmlError> {
    for place in 0..bits.min(64) {
        let to = bit + place;
        let byte = bytes.get_mut((to / 8) as usize);
        let byte = byte.ok_or(AmlError::OutOfBounds { at })?;
        let mask = 1 << (to % 8);
        *byte = if value >> place & 1 != 0 {
            *byte | mask
        } else {
            *byte & !mask
        };
    }
    Ok(())
}
