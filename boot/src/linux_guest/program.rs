//! The program that serves in a Linux guest: datagrams go back as they came, or one
//! TCP connection after the other is read or written to its end. It is so small that it
//! needs no library and no compiler of its own: its machine code lies in this
//! program, and becomes an executable by a header before it.

use crate::wire::{CHARGEN_PERIOD, CHARGEN_PORT, DISCARD_PORT, ECHO_PORT, chargen};

/// Bytes that are read or written at a time: as often as it fits into 64 KiB, the text of
/// RFC 864.
const PIECE: usize = 9 * CHARGEN_PERIOD;

/// What the program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Answers each datagram by its content.
    Echo,
    /// Reads what comes by TCP.
    Discard,
    /// Writes the text of RFC 864 by TCP without end.
    Chargen,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Echo, Self::Discard, Self::Chargen];

    /// Its name.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Discard => "discard",
            Self::Chargen => "chargen",
        }
    }

    /// Where it is asked for.
    pub const fn port(self) -> u16 {
        match self {
            Self::Echo => ECHO_PORT,
            Self::Discard => DISCARD_PORT,
            Self::Chargen => CHARGEN_PORT,
        }
    }

    /// The kind of its socket, and the system call that a connection consists of (Linux,
    /// include/linux/net.h and arch/x86/entry/syscalls/syscall_64.tbl).
    #[cfg(target_arch = "x86_64")]
    const fn numbers(self) -> [u16; 2] {
        /// `SOCK_STREAM`.
        const STREAM: u16 = 1;
        /// `SOCK_DGRAM`.
        const DATAGRAMS: u16 = 2;
        match self {
            Self::Echo => [DATAGRAMS, 0],
            Self::Discard => [STREAM, 45], // recvfrom
            Self::Chargen => [STREAM, 44], // sendto
        }
    }
}

/// The executable, serving at `port`.
#[cfg(target_arch = "x86_64")]
pub fn program(service: Service, port: u16) -> Vec<u8> {
    /// Where it is loaded.
    const BASE: u64 = 0x40_0000;
    /// Length of both headers (System V ABI: `Elf64_Ehdr`, `Elf64_Phdr`).
    const HEADERS: u64 = 64 + 56;

    let mut code = code().to_vec();
    // What tells one program from the other is at the code's end.
    let [kind, call] = service.numbers();
    code.truncate(code.len() - 6);
    code.extend(port.to_be_bytes());
    code.extend([kind.to_le_bytes(), call.to_le_bytes()].concat());
    if service == Service::Chargen {
        code.extend((0..PIECE).map(chargen));
    }
    let length = HEADERS + code.len() as u64;
    // ELF of 64 bits, little-endian.
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let half = |value: u16, file: &mut Vec<u8>| file.extend(value.to_le_bytes());
    let words = |values: &[u64], file: &mut Vec<u8>| {
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    half(2, &mut file); // An executable
    half(62, &mut file); // for x86-64.
    file.extend(1u32.to_le_bytes());
    // Entry, program headers, no section headers.
    words(&[BASE + HEADERS, 64, 0], &mut file);
    file.extend(0u32.to_le_bytes());
    for value in [64, 56, 1, 0, 0, 0] {
        half(value, &mut file);
    }
    // One segment, to be loaded, read and executed: the whole file.
    file.extend(1u32.to_le_bytes());
    file.extend(5u32.to_le_bytes());
    words(&[0, BASE, BASE, length, length, 0x1000], &mut file);
    file.extend(code);
    file
}

/// No Linux guest for a host of another architecture.
#[cfg(not(target_arch = "x86_64"))]
pub fn program(_service: Service, _port: u16) -> Vec<u8> {
    Vec::new()
}

// Numbers of system calls: Linux, arch/x86/entry/syscalls/syscall_64.tbl.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .rodata",
    "kickpath_service_start:",
    // ebx = socket(AF_INET, kind, 0)
    "mov eax, 41",
    "mov edi, 2",
    "movzx esi, word ptr [rip + 7f]",
    "xor edx, edx",
    "syscall",
    "mov ebx, eax",
    // bind(ebx, address, 16): any address, the port from below.
    "sub rsp, 65536 + 4096",
    "mov qword ptr [rsp], 2",
    "mov qword ptr [rsp + 8], 0",
    "mov ax, word ptr [rip + 6f]",
    "mov word ptr [rsp + 2], ax",
    "mov eax, 49",
    "mov edi, ebx",
    "mov rsi, rsp",
    "mov edx, 16",
    "syscall",
    "movzx r13d, word ptr [rip + 8f]",
    "test r13d, r13d",
    "jnz 4f",
    // rax = recvfrom(ebx, rsp, 2048, 0, sender, length)
    "3:",
    "mov dword ptr [rsp + 2064], 16",
    "mov eax, 45",
    "mov edi, ebx",
    "mov rsi, rsp",
    "mov edx, 2048",
    "xor r10d, r10d",
    "lea r8, [rsp + 2048]",
    "lea r9, [rsp + 2064]",
    "syscall",
    "test rax, rax",
    "js 3b",
    // sendto(ebx, rsp, rax, 0, sender, 16)
    "mov rdx, rax",
    "mov eax, 44",
    "mov edi, ebx",
    "mov rsi, rsp",
    "xor r10d, r10d",
    "lea r8, [rsp + 2048]",
    "mov r9d, 16",
    "syscall",
    "jmp 3b",
    // listen(ebx, 64)
    "4:",
    "mov eax, 50",
    "mov edi, ebx",
    "mov esi, 64",
    "syscall",
    // What is written lies behind the code.
    "lea r14, [rip + 9f]",
    "cmp r13d, 44",
    "cmovne r14, rsp",
    // r12d = accept(ebx, 0, 0)
    "5:",
    "mov eax, 43",
    "mov edi, ebx",
    "xor esi, esi",
    "xor edx, edx",
    "syscall",
    "test eax, eax",
    "js 5b",
    "mov r12d, eax",
    // recvfrom or sendto(r12d, r14, PIECE, MSG_NOSIGNAL, 0, 0), until it is no number of bytes
    "2:",
    "mov eax, r13d",
    "mov edi, r12d",
    "mov rsi, r14",
    "mov edx, {piece}",
    "mov r10d, 0x4000",
    "xor r8d, r8d",
    "xor r9d, r9d",
    "syscall",
    "test rax, rax",
    "jg 2b",
    // close(r12d)
    "mov eax, 3",
    "mov edi, r12d",
    "syscall",
    "jmp 5b",
    // The port, the kind of socket, and the system call.
    "6:",
    ".short 0",
    "7:",
    ".short 0",
    "8:",
    ".short 0",
    "9:",
    "kickpath_service_end:",
    ".popsection",
    piece = const PIECE,
);

#[cfg(target_arch = "x86_64")]
fn code() -> &'static [u8] {
    unsafe extern "C" {
        static kickpath_service_start: u8;
        static kickpath_service_end: u8;
    }
    let start = &raw const kickpath_service_start;
    let end = &raw const kickpath_service_end;
    // SAFETY: the two are labels of one read-only section of this program, the second behind
    // the first, and what lies between them never changes.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Child, Command};
    use std::time::Duration;

    use super::*;

    /// A process that ends with its handle.
    struct Running(Child, #[expect(dead_code)] tempfile::TempDir);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn run(service: Service, port: u16) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(service.word());
        std::fs::write(&file, program(service, port)).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        Running(Command::new(&file).spawn().unwrap(), directory)
    }

    /// Until it has bound its port, nobody answers.
    fn until<T>(mut attempt: impl FnMut() -> std::io::Result<T>) -> T {
        let mut results = (0..2000)
            .map(|_| attempt().inspect_err(|_| std::thread::sleep(Duration::from_millis(5))));
        results.find_map(Result::ok).unwrap()
    }

    #[test]
    fn what_is_sent_comes_back() {
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let _running = run(Service::Echo, port);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        socket.connect(("127.0.0.1", port)).unwrap();
        let mut answer = [0; 2048];
        for bytes in [1, 64, 2000] {
            let text: Vec<u8> = (0..bytes).map(|n| n as u8).collect();
            let come = until(|| socket.send(&text).and_then(|_| socket.recv(&mut answer)));
            assert_eq!(&answer[..come], text);
        }
    }

    #[test]
    fn streams_are_read_and_written_one_after_the_other() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        {
            let _running = run(Service::Discard, port);
            for _ in 0..3 {
                let mut stream = until(|| TcpStream::connect(("127.0.0.1", port)));
                stream.write_all(&[7; 200_000]).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                // It closes when it has read all.
                assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            }
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let _running = run(Service::Chargen, port);
        for _ in 0..3 {
            let mut stream = until(|| TcpStream::connect(("127.0.0.1", port)));
            let mut read = vec![0; 200_000];
            stream.read_exact(&mut read).unwrap();
            assert!(read.into_iter().eq((0..200_000).map(chargen)));
        }
    }
}
