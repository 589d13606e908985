//! The program that answers datagrams in a Linux guest: each goes back as it came. It
//! is so small that it needs no library and no compiler of its own: its machine
//! code lies in this program, and becomes an executable by a header before it.

/// The executable, answering at `port`.
#[cfg(target_arch = "x86_64")]
pub fn program(port: u16) -> Vec<u8> {
    /// Where it is loaded.
    const BASE: u64 = 0x40_0000;
    /// Length of both headers (System V ABI: `Elf64_Ehdr`, `Elf64_Phdr`).
    const HEADERS: u64 = 64 + 56;

    let mut code = code().to_vec();
    // The port is the code's last two bytes.
    let place = code.len() - 2;
    code[place..].copy_from_slice(&port.to_be_bytes());
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
pub fn program(_port: u16) -> Vec<u8> {
    Vec::new()
}

// Numbers of system calls: Linux, arch/x86/entry/syscalls/syscall_64.tbl.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .rodata",
    "kickpath_echo_start:",
    // ebx = socket(AF_INET, SOCK_DGRAM, 0)
    "mov eax, 41",
    "mov edi, 2",
    "mov esi, 2",
    "xor edx, edx",
    "syscall",
    "mov ebx, eax",
    // bind(ebx, address, 16): any address, the port from below.
    "sub rsp, 4096",
    "mov qword ptr [rsp], 2",
    "mov qword ptr [rsp + 8], 0",
    "mov ax, word ptr [rip + 5f]",
    "mov word ptr [rsp + 2], ax",
    "mov eax, 49",
    "mov edi, ebx",
    "mov rsi, rsp",
    "mov edx, 16",
    "syscall",
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
    "5:",
    ".short 0",
    "kickpath_echo_end:",
    ".popsection",
);

#[cfg(target_arch = "x86_64")]
fn code() -> &'static [u8] {
    unsafe extern "C" {
        static kickpath_echo_start: u8;
        static kickpath_echo_end: u8;
    }
    let (start, end) = (&raw const kickpath_echo_start, &raw const kickpath_echo_end);
    // SAFETY: the two are labels of one read-only section of this program, the second behind
    // the first, and what lies between them never changes.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tests {
    use std::net::UdpSocket;
    use std::process::{Child, Command};
    use std::time::Duration;

    use super::*;

    /// A process that ends with its handle.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn what_is_sent_comes_back() {
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("echo");
        std::fs::write(&file, program(port)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&file, mode).unwrap();
        let _running = Running(Command::new(&file).spawn().unwrap());
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        socket.connect(("127.0.0.1", port)).unwrap();
        let mut answer = [0; 2048];
        for bytes in [1, 64, 2000] {
            let text: Vec<u8> = (0..bytes).map(|n| n as u8).collect();
            // Until it has bound its port, nobody answers.
            let come = (0..2000).find_map(|_| {
                let sent = socket.send(&text).and_then(|_| socket.recv(&mut answer));
                sent.inspect_err(|_| std::thread::sleep(Duration::from_millis(5)))
                    .ok()
            });
            assert_eq!(&answer[..come.unwrap()], text);
        }
    }
}
