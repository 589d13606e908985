//! Guests of a few bytes of machine code, for tests of the runner alone.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use kickpath::command::Progress;
use kickpath::install::{self, Policy};
use kickpath::qemu::{Accel, Boot, Kind, Machine};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const BOUND: Duration = Duration::from_secs(60);

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
        install::qemu(policy, &mut show).expect("QEMU for the tests")
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

/// The command with a directory of its own for temporary files.
pub fn kickpath(directory: &TempDir) -> Command {
    let temporary = directory.path().join("tmp");
    fs::create_dir_all(&temporary).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kickpath"));
    command
        .env("TMPDIR", temporary)
        .env("NO_COLOR", "1")
        .env_remove("KICKPATH_KERNEL")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs a command to its end; returns all that it said as well.
pub fn run(mut command: Command) -> (Output, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output, text)
}

/// Waits for what must come, within a bound.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {BOUND:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a signal.
pub fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// The processes whose parent is this one.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

/// Waits for a command's end.
pub fn wait_for_end(child: &mut Child) -> ExitStatus {
    let mut status = None;
    wait_until("the command ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap_or_default()
}

/// What is in the directory for temporary files.
pub fn leftovers(directory: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(directory.path().join("tmp")).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}
