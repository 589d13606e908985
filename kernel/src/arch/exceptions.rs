//! Exceptions: all of them are defects (or self-tests) in this kernel, so each
//! is reported in full and ends the guest.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use x86_64::registers::control::{Cr2, Cr3};
use x86_64::structures::idt::PageFaultErrorCode;

use super::{Exit, begin_last_words, end, exit, percpu};
use crate::console::emergency;
use crate::memory::layout;

/// What the stub and the CPU push, the last first.
#[repr(C)]
pub struct Frame {
    /// Those of [`REGISTERS`].
    registers: [u64; 15],
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// The registers that the stub pushes, in the order in which a frame has them.
const REGISTERS: [&str; 15] = [
    "r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rbp", "rdi", "rsi", "rdx", "rcx", "rbx",
    "rax",
];

/// Every register, those of [`REGISTERS`] in lines of four.
impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pushed = REGISTERS.into_iter().zip(self.registers).rev();
        // The stack pointer, which the CPU pushes, comes after the frame pointer.
        let (before, after) = (pushed.clone().take(7), pushed.skip(7));
        let registers = before.chain([("rsp", self.rsp)]).chain(after);
        for (number, (name, value)) in registers.enumerate() {
            let end = if number % 4 == 3 { "\n" } else { "" };
            write!(f, "  {name:3} {value:016x}{end}")?;
        }
        write!(f, "  rip {:016x}  rflags {:08x}", self.rip, self.rflags)?;
        write!(f, "  cs {:04x}  ss {:04x}", self.cs, self.ss)
    }
}

/// Mnemonic and name of each exception (Intel SDM volume 3, table 6-1).
fn name(vector: u64) -> &'static str {
    match vector {
        0 => "#DE divide error",
        1 => "#DB debug",
        2 => "non-maskable interrupt",
        3 => "#BP breakpoint",
        4 => "#OF overflow",
        5 => "#BR bound range exceeded",
        6 => "#UD invalid opcode",
        7 => "#NM device not available",
        8 => "#DF double fault",
        10 => "#TS invalid TSS",
        11 => "#NP segment not present",
        12 => "#SS stack-segment fault",
        13 => "#GP general protection",
        14 => "#PF page fault",
        16 => "#MF x87 floating point",
        17 => "#AC alignment check",
        18 => "#MC machine check",
        19 => "#XM SIMD floating point",
        20 => "#VE virtualization",
        21 => "#CP control protection",
        28 => "#HV hypervisor injection",
        29 => "#VC VMM communication",
        30 => "#SX security",
        _ => "reserved exception",
    }
}

const NMI: u64 = 2;
const DOUBLE_FAULT: u64 = 8;
const PAGE_FAULT: u64 = 14;

/// Non-maskable interrupts that nobody asked for, not logged yet: their handler
/// may have interrupted whoever holds the console.
static NMIS: AtomicU32 = AtomicU32::new(0);

/// Logs the non-maskable interrupts that came since it was called last.
pub fn log_nmis() {
    // A plain look first: this is called for each wait.
    if NMIS.load(Ordering::Relaxed) != 0 {
        let count = NMIS.swap(0, Ordering::Relaxed);
        log::warn!("non-maskable interrupts: {count}, ignored");
    }
}

/// Called by the stubs. Returns from a non-maskable interrupt (QEMU's
/// `inject-nmi`) only: all else ends the guest.
pub extern "C" fn exception(frame: &Frame) {
    if frame.vector == NMI && !end::is_near() {
        NMIS.fetch_add(1, Ordering::Relaxed);
        return;
    }
    report(frame)
}

fn report(frame: &Frame) -> ! {
    static REPORTING: AtomicBool = AtomicBool::new(false);
    // Where another CPU reports, this is its NMI, and does not return.
    begin_last_words();
    if REPORTING.swap(true, Ordering::Relaxed) {
        // An exception while one is reported: no more words.
        exit(Exit::Failure);
    }
    let fault_address = Cr2::read_raw();
    emergency(format_args!(
        "exception {} {}, error code {:#x}, at rip {:#018x}{}",
        frame.vector,
        name(frame.vector),
        frame.error_code,
        frame.rip,
        percpu::OnCpu,
    ));
    if matches!(frame.vector, PAGE_FAULT | DOUBLE_FAULT) {
        explain_fault(frame, fault_address);
    }
    let cr3 = Cr3::read().0.start_address().as_u64();
    emergency(format_args!(
        "{frame}\n  cr2 {fault_address:016x}  cr3 {cr3:016x}"
    ));
    exit(Exit::Failure)
}

fn explain_fault(frame: &Frame, address: u64) {
    if let Some(stack) = layout::guarded_stack(address) {
        emergency(format_args!(
            "  stack overflow: {:#018x} is in the guard page of the {} (rsp {:#018x})",
            address,
            stack.name(),
            frame.rsp,
        ));
        return;
    }
    if frame.vector == DOUBLE_FAULT {
        // A double fault's cause leaves no error code; CR2 may be older.
        emergency(format_args!(
            "  while another exception was being delivered; the last fault address is {address:#018x}"
        ));
        return;
    }
    let code = PageFaultErrorCode::from_bits_truncate(frame.error_code);
    let access = if code.contains(PageFaultErrorCode::INSTRUCTION_FETCH) {
        "execution"
    } else if code.contains(PageFaultErrorCode::CAUSED_BY_WRITE) {
        "write"
    } else {
        "read"
    };
    let place = [
        (layout::text(), "in the kernel's code"),
        (layout::rodata(), "in the kernel's constants"),
        (layout::data(), "in the kernel's data"),
    ]
    .into_iter()
    .find(|(range, _)| range.contains(&address))
    .map_or("outside the kernel's image", |(_, place)| place);
    let reason = if code.contains(PageFaultErrorCode::PROTECTION_VIOLATION) {
        "forbidden by the page's protection"
    } else {
        "where no page is mapped"
    };
    emergency(format_args!(
        "  {access} at {address:#018x} {place}, {reason}"
    ));
}
