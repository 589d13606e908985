//! The guest as a bzImage, what loaders of the Linux boot protocol take (Linux
//! `Documentation/arch/x86/boot.rst`): the section `.setup` of the guest's ELF file in
//! whole sectors, and behind it the guest as it lies in memory.

use std::fs;
use std::path::Path;

use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{LittleEndian, endian::LittleEndian as Little};
use thiserror::Error;

use super::{ImageError, file_error};

/// Where the protocol puts the image.
const ADDRESS: u64 = 1 << 20;
/// Longest image, in bytes: a guest of ours has some megabytes.
const MAX_IMAGE: u64 = 256 << 20;
const SECTOR: usize = 512;
/// The guest's 16-bit code hands the setup's first page on as the boot parameters.
const SETUP: usize = 4096;

/// Offsets of the setup's header.
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const MAGIC: usize = 0x202;
const INIT_SIZE: usize = 0x260;

/// Why an ELF file does not become a bzImage.
#[derive(Debug, Error)]
pub enum BzImageError {
    /// It is not an ELF file of 64 bits, or damaged.
    #[error("not an ELF file of 64 bits: {0}")]
    Format(#[from] object::Error),
    /// It has no setup.
    #[error("it has no section .setup that begins a bzImage: it is no guest of this version")]
    NoSetup,
    /// A segment lies where the protocol puts none.
    #[error(
        "a segment of {length:#x} bytes at {address:#x} is not within {MAX_IMAGE:#x} bytes from {ADDRESS:#x} on"
    )]
    Segment {
        /// Its physical address.
        address: u64,
        /// Its length in memory, in bytes.
        length: u64,
    },
}

/// Makes a bzImage of the guest's ELF file `kernel`. One that is a bzImage already is copied.
///
/// # Errors
/// The file cannot be read, or is no guest of ours.
pub fn make(kernel: &Path) -> Result<Vec<u8>, ImageError> {
    let elf = fs::read(kernel).map_err(|cause| file_error(kernel, cause))?;
    if elf.get(MAGIC..MAGIC + 4) == Some(b"HdrS") {
        return Ok(elf);
    }
    bzimage(&elf).map_err(|cause| ImageError::BzImage {
        path: kernel.to_owned(),
        cause,
    })
}

fn bzimage(elf: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let header = FileHeader64::<Little>::parse(elf)?;
    let sections = header.sections(LittleEndian, elf)?;
    let (_, section) = sections
        .section_by_name(LittleEndian, b".setup")
        .ok_or(BzImageError::NoSetup)?;
    let mut setup = section.data(LittleEndian, elf)?.to_vec();
    if setup.get(MAGIC..MAGIC + 4) != Some(b"HdrS")
        || !(INIT_SIZE + 4..=SETUP).contains(&setup.len())
    {
        return Err(BzImageError::NoSetup);
    }
    setup.resize(SETUP, 0);

    let mut image = Vec::new();
    for segment in header.program_headers(LittleEndian, elf)? {
        let length = segment.p_memsz(LittleEndian);
        if segment.p_type(LittleEndian) != PT_LOAD || length == 0 {
            continue;
        }
        let address = segment.p_paddr(LittleEndian);
        let wrong = || BzImageError::Segment { address, length };
        let data = segment.data(LittleEndian, elf).map_err(|()| wrong())?;
        let start = address.checked_sub(ADDRESS).ok_or_else(wrong)?;
        let end = start.checked_add(length).filter(|&end| end <= MAX_IMAGE);
        let end = end.ok_or_else(wrong)? as usize;
        // What a loader of this protocol does not clear is in the file.
        image.resize(image.len().max(end), 0);
        let place = image.get_mut(start as usize..end);
        let place = place.and_then(|place| place.get_mut(..data.len()));
        place.ok_or_else(wrong)?.copy_from_slice(data);
    }
    let size = image.len().next_multiple_of(16);
    image.resize(size, 0);

    setup[SETUP_SECTS] = (SETUP / SECTOR - 1) as u8;
    setup[SYSSIZE..SYSSIZE + 4].copy_from_slice(&((size / 16) as u32).to_le_bytes());
    setup[INIT_SIZE..INIT_SIZE + 4].copy_from_slice(&(size as u32).to_le_bytes());
    setup.append(&mut image);
    Ok(setup)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETUP_LENGTH: usize = 0x280;

    /// An ELF file of one segment and one section.
    fn elf(segment: &[u8], address: u64, in_memory: u64, section: &str) -> Vec<u8> {
        let names = format!("\0{section}\0.names\0");
        let mut setup = vec![0u8; SETUP_LENGTH];
        setup[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        let program = 64;
        let data = program + 56;
        let setup_at = data + segment.len();
        let names_at = setup_at + setup.len();
        let sections = names_at + names.len();
        let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let short = |elf: &mut Vec<u8>, value: u16| elf.extend(value.to_le_bytes());
        let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
        let long = |elf: &mut Vec<u8>, value: u64| elf.extend(value.to_le_bytes());
        short(&mut elf, 2);
        short(&mut elf, 62);
        word(&mut elf, 1);
        for value in [0, program as u64, sections as u64] {
            long(&mut elf, value);
        }
        word(&mut elf, 0);
        for value in [64, 56, 1, 64, 3, 2] {
            short(&mut elf, value);
        }
        word(&mut elf, PT_LOAD.0);
        word(&mut elf, 7);
        let length = segment.len() as u64;
        for value in [data as u64, address, address, length, in_memory, 1] {
            long(&mut elf, value);
        }
        elf.extend(segment);
        elf.extend(&setup);
        elf.extend(names.as_bytes());
        let places = [
            (0, 0, 0, 0),
            (1, 1, setup_at, setup.len()),
            (2 + section.len() as u32, 3, names_at, names.len()),
        ];
        for (name, kind, at, length) in places {
            word(&mut elf, name);
            word(&mut elf, kind);
            for value in [0, 0, at as u64, length as u64] {
                long(&mut elf, value);
            }
            elf.extend([0; 24]);
        }
        elf
    }

    #[test]
    fn the_setup_comes_first_and_memory_behind_it() {
        let elf = elf(b"guest", ADDRESS + 3, 30, ".setup");
        let image = bzimage(&elf).unwrap();
        assert_eq!(image.len(), SETUP + 48);
        assert_eq!(image[SETUP_SECTS], 7);
        assert_eq!(image[SYSSIZE..SYSSIZE + 4], 3u32.to_le_bytes());
        assert_eq!(image[INIT_SIZE..INIT_SIZE + 4], 48u32.to_le_bytes());
        assert_eq!(image[SETUP..SETUP + 9], *b"\0\0\0guest\0");
    }

    #[test]
    fn what_is_no_guest_is_refused_with_the_reason() {
        let refused = |elf: &[u8]| bzimage(elf).unwrap_err().to_string();
        assert!(refused(b"\x7fELF").contains("not an ELF file"));
        let other = elf(b"x", ADDRESS, 1, ".other");
        assert!(refused(&other).contains("no section .setup"));
        for (address, length) in [
            (ADDRESS - 1, 1),
            (ADDRESS, MAX_IMAGE + 1),
            (u64::MAX, u64::MAX),
        ] {
            let text = refused(&elf(b"x", address, length, ".setup"));
            assert!(text.contains(&format!("at {address:#x}")), "{text}");
        }
        // Less memory than bytes in the file.
        assert!(refused(&elf(b"xxxx", ADDRESS, 2, ".setup")).contains("0x2 bytes"));
        // Cut anywhere: an error, never a panic.
        let whole = elf(b"guest", ADDRESS, 30, ".setup");
        for length in 0..whole.len() {
            let _ = bzimage(&whole[..length]);
        }
    }
}
