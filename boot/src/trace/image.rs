//! The guest's executable: where the ring lies, what a site says, and the
//! instruction that is the doorbell.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter, MemorySize, Mnemonic, OpKind};
use kickpath_trace::Event;
use kickpath_trace::layout;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Object, ObjectSegment, ObjectSymbol};

/// Longest name of a file or module that a site may have, in bytes.
const MAX_NAME: u64 = 1024;

/// Longest function of a doorbell, in bytes.
const MAX_DOORBELL: usize = 256;

/// Why the executable is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not an ELF file.
    #[error("{} is not an ELF file: {source}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Why.
        source: object::Error,
    },
    /// It has no such symbol.
    #[error("{} has no symbol {symbol}: it was built without tracepoints, or stripped", file.display())]
    NoSymbol {
        /// The file.
        file: PathBuf,
        /// The symbol.
        symbol: &'static str,
    },
}

/// The guest's executable.
#[derive(Clone, Debug)]
pub struct Image {
    file: PathBuf,
    segments: Vec<Segment>,
    symbols: Vec<(String, u64)>,
}

#[derive(Clone, Debug)]
struct Segment {
    address: u64,
    /// What is added to a virtual address to have the physical one.
    offset: u64,
    /// Bytes in memory.
    size: u64,
    bytes: Vec<u8>,
}

/// A place in the source that has a tracepoint, as the executable tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// What happens there.
    pub event: Event,
    /// The file, from the workspace's top.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// The module.
    pub module: String,
}

/// An instruction of the executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The function that holds it.
    pub symbol: &'static str,
    /// Its virtual address.
    pub address: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// As Intel writes it.
    pub text: String,
}

impl Image {
    /// Reads an executable.
    ///
    /// # Errors
    /// It cannot be read or is not ELF.
    pub fn read(file: &Path) -> Result<Self, ImageError> {
        let bytes = fs::read(file).map_err(|source| ImageError::Read {
            file: file.to_owned(),
            source,
        })?;
        let wrong = |source| ImageError::Format {
            file: file.to_owned(),
            source,
        };
        let elf = ElfFile64::<object::Endianness>::parse(&*bytes).map_err(wrong)?;
        let mut segments = Vec::new();
        for segment in elf.segments() {
            let physical = segment.elf_program_header().p_paddr(elf.endian());
            segments.push(Segment {
                address: segment.address(),
                offset: physical.wrapping_sub(segment.address()),
                size: segment.size(),
                bytes: segment.data().map_err(wrong)?.to_vec(),
            });
        }
        let symbols = elf.symbols().filter_map(|symbol| {
            let name = symbol.name().ok().filter(|name| !name.is_empty())?;
            symbol
                .is_definition()
                .then(|| (name.to_owned(), symbol.address()))
        });
        Ok(Self {
            file: file.to_owned(),
            segments,
            symbols: symbols.collect(),
        })
    }

    /// The virtual address of a symbol.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn symbol(&self, name: &'static str) -> Result<u64, ImageError> {
        let found = self.symbols.iter().find(|(symbol, _)| symbol == name);
        found
            .map(|(_, address)| *address)
            .ok_or_else(|| ImageError::NoSymbol {
                file: self.file.clone(),
                symbol: name,
            })
    }

    /// Where the loader puts what has this virtual address.
    pub fn physical(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let offset = address.checked_sub(segment.address)?;
            (offset < segment.size).then(|| address.wrapping_add(segment.offset))
        })
    }

    /// What the executable has at a virtual address, to the end of that
    /// segment in the file.
    fn memory(&self, address: u64) -> Option<&[u8]> {
        self.segments.iter().find_map(|segment| {
            let offset = address.checked_sub(segment.address)?;
            segment.bytes.get(usize::try_from(offset).ok()?..)
        })
    }

    fn word(&self, address: u64) -> Option<u64> {
        let bytes = self.memory(address)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    }

    fn number(&self, address: u64) -> Option<u32> {
        let bytes = self.memory(address)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    }

    /// A `&str`: its address and its length.
    fn text(&self, address: u64) -> Option<String> {
        let (at, length) = (self.word(address)?, self.word(address.checked_add(8)?)?);
        if length > MAX_NAME {
            return None;
        }
        let bytes = self.memory(at)?.get(..length as usize)?;
        Some(std::str::from_utf8(bytes).ok()?.to_owned())
    }

    /// The site at a virtual address, if there is one.
    pub fn site(&self, address: u64) -> Option<Site> {
        let field = |offset: usize| address.checked_add(offset as u64);
        Some(Site {
            event: Event::from_number(self.number(field(layout::SITE_EVENT)?)?)?,
            line: self.number(field(layout::SITE_LINE)?)?,
            file: self.text(field(layout::SITE_FILE)?)?,
            module: self.text(field(layout::SITE_MODULE)?)?,
        })
    }

    /// The instruction by which a doorbell of this kind (see
    /// [`Event::AttachDoorbell`]) tells the device: the port write, or the
    /// store, of the function that was made for it.
    pub fn doorbell(&self, kind: u64) -> Option<Instruction> {
        let symbol = match kind {
            0 => "vp_notify_port",
            1 => "vp_notify_mmio",
            2 => "vm_notify",
            _ => return None,
        };
        let start = self.symbol(symbol).ok()?;
        let code = self.memory(start)?;
        let code = &code[..code.len().min(MAX_DOORBELL)];
        ringing(symbol, start, code, |instruction| {
            match instruction.mnemonic() {
                Mnemonic::Out => Some(true),
                // A store by the register that holds the address, not a push.
                Mnemonic::Mov => Some(instruction.op0_kind() == OpKind::Memory),
                Mnemonic::Ret => None,
                _ => Some(false),
            }
        })
    }
}

/// The instruction by which Linux's `iowrite16`, whose `code` lies at `start`, writes to a
/// port (`kind` 0) or to memory (1, see [`Event::AttachDoorbell`]): it has one for each.
pub fn iowrite16(start: u64, code: &[u8], kind: u64) -> Option<Instruction> {
    ringing("iowrite16", start, code, |instruction| {
        Some(match instruction.mnemonic() {
            Mnemonic::Out => kind == 0,
            Mnemonic::Mov => {
                kind == 1
                    && instruction.op0_kind() == OpKind::Memory
                    && instruction.memory_size() == MemorySize::UInt16
            }
            _ => false,
        })
    })
}

/// The first instruction of `code` that `rings`; `None` from that means that the function
/// ends.
fn ringing(
    symbol: &'static str,
    start: u64,
    code: &[u8],
    rings: impl Fn(&iced_x86::Instruction) -> Option<bool>,
) -> Option<Instruction> {
    let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return None;
        }
        if rings(&instruction)? {
            let offset = (instruction.ip() - start) as usize;
            let mut text = String::new();
            IntelFormatter::new().format(&instruction, &mut text);
            return Some(Instruction {
                symbol,
                address: instruction.ip(),
                bytes: code[offset..offset + instruction.len()].to_vec(),
                text,
            });
        }
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An executable of one segment with these symbols.
    pub fn image(address: u64, bytes: Vec<u8>, symbols: &[(&str, u64)]) -> Image {
        Image {
            file: "test".into(),
            segments: vec![Segment {
                address,
                offset: 0,
                size: bytes.len() as u64,
                bytes,
            }],
            symbols: symbols
                .iter()
                .map(|(name, address)| ((*name).to_owned(), *address))
                .collect(),
        }
    }

    /// A site at `base`, with its texts behind it.
    pub fn site_bytes(base: u64, event: u32, line: u32, file: &str, module: &str) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        put(layout::SITE_EVENT, &event.to_le_bytes());
        put(layout::SITE_LINE, &line.to_le_bytes());
        put(layout::SITE_FILE, &(base + 64).to_le_bytes());
        put(layout::SITE_FILE + 8, &(file.len() as u64).to_le_bytes());
        let at = base + 64 + file.len() as u64;
        put(layout::SITE_MODULE, &at.to_le_bytes());
        put(
            layout::SITE_MODULE + 8,
            &(module.len() as u64).to_le_bytes(),
        );
        bytes.extend(file.bytes());
        bytes.extend(module.bytes());
        bytes
    }

    #[test]
    fn a_site_is_read_and_nonsense_is_none() {
        const BASE: u64 = 0xffff_ffff_8010_0000;
        let bytes = site_bytes(BASE, 15, 489, "kernel/a.rs", "a::b");
        let image = image(BASE, bytes, &[]);
        let site = image.site(BASE).unwrap();
        assert_eq!(site.event, Event::Publish);
        assert_eq!((site.file.as_str(), site.line), ("kernel/a.rs", 489));
        assert_eq!(site.module, "a::b");
        for wrong in [0, BASE - 1, BASE + 8, BASE + 70, BASE + 1000, u64::MAX] {
            assert_eq!(image.site(wrong), None, "{wrong:#x}");
        }
    }

    #[test]
    fn the_doorbell_is_the_out_or_the_store() {
        // push rbp; mov rbp,rsp; mov edx,esi; mov eax,edi; out dx,ax; ret
        let port = [
            0x55, 0x48, 0x89, 0xe5, 0x89, 0xf2, 0x89, 0xf8, 0x66, 0xef, 0xc3,
        ];
        // mov word ptr [rsi],di; ret
        let store = [0x66, 0x89, 0x3e, 0xc3];
        let mut code = port.to_vec();
        code.extend(store);
        // A function that rings nothing: ret.
        code.push(0xc3);
        let symbols = [
            ("vp_notify_port", 0x1000),
            ("vp_notify_mmio", 0x1000 + 11),
            ("vm_notify", 0x1000 + 15),
        ];
        let image = image(0x1000, code, &symbols);
        let out = image.doorbell(0).unwrap();
        assert_eq!((out.address, out.text.as_str()), (0x1008, "out dx,ax"));
        assert_eq!(out.bytes, [0x66, 0xef]);
        let store = image.doorbell(1).unwrap();
        assert_eq!(store.address, 0x100b);
        assert_eq!(store.text, "mov [rsi],di");
        assert_eq!(image.doorbell(2), None);
        assert_eq!(image.doorbell(3), None);
    }

    #[test]
    fn a_file_that_is_no_executable_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(
            Image::read(file.path()),
            Err(ImageError::Format { .. })
        ));
        assert!(matches!(
            Image::read(Path::new("/does/not/exist")),
            Err(ImageError::Read { .. })
        ));
    }
}
