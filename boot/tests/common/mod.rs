//! Guests of a few bytes of machine code, for tests of the runner alone.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::PathBuf;
use std::sync::OnceLock;

use kickpath::command::Progress;
use kickpath::install::{self, Host, Policy};
use kickpath::qemu::{Accel, Boot, Kind, Machine};
use tempfile::TempDir;

/// Stops for good, with interrupts off.
pub const HANG: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd]; // cli; hlt; jmp to the hlt

/// Writes a byte to isa-debug-exit.
pub fn exit_with(value: u8) -> Vec<u8> {
    vec![0xb0, value, 0xe6, 0xf4] // mov al, value; out 0xf4, al
}

/// Prints a text on the serial port (QEMU's takes bytes at any rate).
pub fn print(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    code
}

/// Makes the CPU reset: an exception with no table of handlers.
pub const TRIPLE_FAULT: &[u8] = &[
    0x6a, 0x00, 0x6a, 0x00, // push 0; push 0
    0x0f, 0x01, 0x1c, 0x24, // lidt [esp]: a limit of 0
    0x0f, 0x0b, // ud2
];

/// Tells pvpanic's port that the guest has panicked.
pub const PVPANIC: &[u8] = &[0x66, 0xba, 0x05, 0x05, 0xb0, 0x01, 0xee, 0xf4];

/// A file that QEMU boots by `-kernel` (Multiboot specification 0.6.96, 3.1:
/// the header holds the addresses, so the file needs no other format).
pub fn kernel(directory: &TempDir, name: &str, code: &[&[u8]]) -> PathBuf {
    const MAGIC: u32 = 0x1bad_b002;
    const ADDRESSES: u32 = 1 << 16;
    const LOAD: u32 = 0x10_0000;
    let code = code.concat();
    let entry = LOAD + 32;
    let end = entry + code.len() as u32;
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(ADDRESSES);
    let mut file = Vec::new();
    for word in [MAGIC, ADDRESSES, checksum, LOAD, LOAD, end, end, entry] {
        file.extend(word.to_le_bytes());
    }
    // A stack for those who push: it lies in zeroed low memory anyway.
    file.extend([0xbc, 0x00, 0x00, 0x09, 0x00]); // mov esp, 0x90000
    file.extend(&code);
    let length = file.len() as u32;
    for field in [20, 24] {
        file[field..field + 4].copy_from_slice(&(LOAD + length).to_le_bytes());
    }
    let path = directory.path().join(name);
    std::fs::write(&path, file).unwrap();
    path
}

/// The QEMU program, installed if need be and possible.
pub fn qemu() -> PathBuf {
    static QEMU: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let mut show = |progress: Progress<'_>| {
            if let Progress::Step(step) = progress {
                eprintln!("{step}");
            }
        };
        let forbid = std::env::var_os("KICKPATH_NO_INSTALL");
        let policy = match forbid {
            Some(value) if !value.is_empty() && value != "0" => Policy::Forbid,
            _ => Policy::Install,
        };
        install::ensure(&[install::QEMU], policy, &mut show).expect("QEMU for the tests");
        let found = Host::detect().find(&install::QEMU);
        found.expect("QEMU, which is installed")
    };
    QEMU.get_or_init(find).clone()
}

/// A machine without a network that boots this file.
pub fn machine(kernel: PathBuf) -> Machine {
    Machine::new(qemu(), Kind::Pc, Accel::Tcg, Boot::Kernel(kernel))
}

/// Whether a process runs (a zombie does not).
pub fn runs(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .trim_start()
            .starts_with('Z'),
        Err(_) => false,
    }
}
