//! The words by which a command line tells of virtio-mmio devices.

use core::str::FromStr;

/// A device as Linux's kernel parameter `virtio_mmio.device=` describes it:
/// `SIZE@ADDRESS:INTERRUPT[:ID]`, SIZE with an optional K or M. QEMU's microvm
/// adds such words to the command line.
#[doc(alias = "vm_cmdline_set")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceWord {
    /// Physical address of the registers.
    pub address: u64,
    /// Length of the registers in bytes.
    pub size: usize,
    /// Number of the interrupt, counted as ACPI's global system interrupts are:
    /// on a PC the input of the I/O APICs. Any 32 bits; what the machine does
    /// not have is the embedder's to refuse.
    pub interrupt: u32,
}

/// A text that is not `SIZE@ADDRESS:INTERRUPT[:ID]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected SIZE@ADDRESS:INTERRUPT, such as 512@0xfeb00000:5")]
pub struct NotADevice;

/// A number, hexadecimal after `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        // `from_str_radix` would take a sign.
        Some(digits) if digits.starts_with(|c: char| c.is_ascii_hexdigit()) => {
            u64::from_str_radix(digits, 16).ok()
        }
        None if text.starts_with(|c: char| c.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

impl FromStr for DeviceWord {
    type Err = NotADevice;

    fn from_str(text: &str) -> Result<Self, NotADevice> {
        let read = || {
            let (size, place) = text.split_once('@')?;
            let mut place = place.split(':');
            let (address, interrupt) = (place.next()?, place.next()?);
            if let Some(id) = place.next() {
                number(id)?;
            }
            let (size, scale) = match size.as_bytes().last()? {
                b'K' | b'k' => (size.get(..size.len() - 1)?, 1 << 10),
                b'M' | b'm' => (size.get(..size.len() - 1)?, 1 << 20),
                _ => (size, 1),
            };
            let device = Self {
                address: number(address)?,
                size: usize::try_from(number(size)?.checked_mul(scale)?).ok()?,
                interrupt: u32::try_from(number(interrupt)?).ok()?,
            };
            place.next().is_none().then_some(device)
        };
        read().ok_or(NotADevice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_command_line_are_read() {
        for (word, expected) in [
            ("512@0xfeb00e00:12", (512, 0xfeb0_0e00, 12)),
            ("0x200@0xd0000000:5:1", (512, 0xd000_0000, 5)),
            ("4K@4096:0", (4096, 4096, 0)),
            ("1M@0x0:0x10", (1 << 20, 0, 16)),
        ] {
            let read = word.parse::<DeviceWord>();
            let read = read.map(|it| (it.size, it.address, it.interrupt));
            assert_eq!(read, Ok(expected), "{word}");
        }
        let bad = " 512 512@ 512@0xfeb00e00 512@0xfeb00e00: @0xfeb00e00:5 K@0x1000:5 512@feb00e00:5 \
                   512@0x:5 512@0x+1:5 -1@0x1000:5 512@0x1000:x 512@1:2:y 512@1:2:3:4 \
                   99999999999999999999@0:1 18446744073709551615M@0:1 1@1:4294967296 1\u{20ac}@1:1";
        // The first one is empty.
        for word in bad.split(' ') {
            assert_eq!(word.parse::<DeviceWord>(), Err(NotADevice), "{word}");
        }
    }
}
