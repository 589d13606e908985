//! A device's own configuration where it lies in memory: virtio-pci's modern
//! interface and virtio-mmio (specification 2.5).

use virtio_drivers::Error;
use zerocopy::{FromBytes, IntoBytes};

use super::registers::{Accesses, Registers};

/// Times that a field is read anew because the device changed its configuration
/// meanwhile. A device that changes it faster than it can be read is broken.
const ATTEMPTS: u32 = 16;

/// Checks that `length` bytes at `offset` lie within the configuration, which
/// begins at `base` of the region. Returns their offset in the region.
fn place<R: Registers>(
    registers: &R,
    base: usize,
    offset: usize,
    length: usize,
) -> Result<usize, Error> {
    let start = base.checked_add(offset).ok_or(Error::ConfigSpaceTooSmall)?;
    let end = start
        .checked_add(length)
        .ok_or(Error::ConfigSpaceTooSmall)?;
    if end > registers.size() {
        return Err(Error::ConfigSpaceTooSmall);
    }
    Ok(start)
}

/// Width of the access at `offset` when `left` bytes are to come: a field is
/// accessed at its own width (specification 4.1.3.1, 4.2.2.2), which for one
/// of 64 bits is twice 32. Anything longer is an array, accessed by bytes.
fn width(offset: usize, length: usize) -> usize {
    match length {
        2 if offset.is_multiple_of(2) => 2,
        4 | 8 if offset.is_multiple_of(4) => 4,
        _ => 1,
    }
}

/// Reads a field, in one piece even if that takes several accesses:
/// `generation` reads the configuration's generation.
pub(super) fn read<T: FromBytes + IntoBytes, R: Registers>(
    registers: &R,
    base: usize,
    offset: usize,
    generation: impl Fn() -> u32,
    accesses: &Accesses,
) -> Result<T, Error> {
    let mut value = T::new_zeroed();
    let bytes = value.as_mut_bytes();
    let start = place(registers, base, offset, bytes.len())?;
    let width = width(start, bytes.len());
    let mut read = || {
        for (at, piece) in (start..).step_by(width).zip(bytes.chunks_mut(width)) {
            accesses.count(1);
            let word = match width {
                1 => u32::from(registers.read8(at)),
                2 => u32::from(registers.read16(at)),
                _ => registers.read32(at),
            };
            piece
                .iter_mut()
                .zip(word.to_le_bytes())
                .for_each(|(byte, read)| *byte = read);
        }
    };
    if size_of::<T>() == width {
        read();
        return Ok(value);
    }
    // Specification 2.5.1.
    let mut before = generation();
    for _ in 0..ATTEMPTS {
        read();
        let after = generation();
        if before == after {
            return Ok(value);
        }
        before = after;
    }
    Err(Error::IoError)
}

/// Writes a field.
pub(super) fn write<R: Registers>(
    registers: &mut R,
    base: usize,
    offset: usize,
    value: &[u8],
    accesses: &Accesses,
) -> Result<(), Error> {
    let start = place(registers, base, offset, value.len())?;
    let width = width(start, value.len());
    for (at, piece) in (start..).step_by(width).zip(value.chunks(width)) {
        accesses.count(1);
        match *piece {
            [a, b] => registers.write16(at, u16::from_le_bytes([a, b])),
            [a, b, c, d] => registers.write32(at, u32::from_le_bytes([a, b, c, d])),
            _ => piece.iter().for_each(|&byte| registers.write8(at, byte)),
        }
    }
    Ok(())
}
