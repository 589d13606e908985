//! QEMU's firmware configuration device (QEMU `docs/specs/fw_cfg.rst`), by its
//! I/O ports.

use alloc::vec::Vec;
use core::arch::asm;

use x86_64::instructions::port::Port;

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const KEY_SIGNATURE: u16 = 0x0000;
const KEY_DIRECTORY: u16 = 0x0019;
/// Length of a directory entry in bytes: size, key, reserved, name.
const ENTRY: usize = 64;
/// Most entries that are looked at.
const MAX_ENTRIES: u32 = 1024;

/// Why a file could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FwCfgError {
    #[error("no fw_cfg device")]
    NoDevice,
    #[error("no such fw_cfg file")]
    NoFile,
    #[error("the fw_cfg file has {size} bytes, more than {limit}")]
    TooLong { size: u32, limit: usize },
}

fn select(key: u16) {
    // SAFETY: the port is QEMU's device, or nothing.
    unsafe { Port::<u16>::new(SELECTOR).write(key) };
}

/// Reads on in the selected item. One string instruction: a hypervisor may
/// handle all of it in one exit.
fn read(buffer: &mut [u8]) {
    // SAFETY: writes exactly the buffer's bytes; the port as in `select`.
    unsafe {
        asm!(
            "rep insb",
            in("dx") DATA,
            inout("rdi") buffer.as_mut_ptr() => _,
            inout("rcx") buffer.len() => _,
            options(nostack, preserves_flags),
        );
    }
}

fn read_u32_be() -> u32 {
    let mut bytes = [0; 4];
    read(&mut bytes);
    u32::from_be_bytes(bytes)
}

/// Reads the file `name`, if it has at most `limit` bytes; there is
/// [`FwCfgError::NoDevice`] on anything but QEMU.
pub fn read_file(name: &str, limit: usize) -> Result<Vec<u8>, FwCfgError> {
    let mut signature = [0; 4];
    select(KEY_SIGNATURE);
    read(&mut signature);
    if &signature != b"QEMU" {
        return Err(FwCfgError::NoDevice);
    }
    select(KEY_DIRECTORY);
    for _ in 0..read_u32_be().min(MAX_ENTRIES) {
        let mut entry = [0; ENTRY];
        read(&mut entry);
        let [s0, s1, s2, s3, k0, k1, _, _, entry_name @ ..] = entry;
        let entry_name = entry_name.split(|&byte| byte == 0).next();
        if entry_name != Some(name.as_bytes()) {
            continue;
        }
        let size = u32::from_be_bytes([s0, s1, s2, s3]);
        let length = size as usize;
        if length > limit {
            return Err(FwCfgError::TooLong { size, limit });
        }
        let mut contents = alloc::vec![0; length];
        select(u16::from_be_bytes([k0, k1]));
        read(&mut contents);
        return Ok(contents);
    }
    Err(FwCfgError::NoFile)
}
