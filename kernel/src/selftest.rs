//! Deliberate faults, so that a test can see how each is reported. All of them
//! end the guest, or (`hang`) never return.

use alloc::boxed::Box;
use core::arch::asm;
use core::hint::black_box;
use core::sync::atomic::{AtomicU8, Ordering};

use kickpath_abi::config::SelfTest;
use x86_64::instructions::interrupts;
use x86_64::instructions::segmentation::{DS, Segment};
use x86_64::structures::gdt::SegmentSelector;
use x86_64::{PrivilegeLevel, VirtAddr};

use crate::arch::{percpu, smp};
use crate::memory::heap;
use crate::memory::layout::{self, Stack};
use crate::memory::paging::virtual_to_physical;

/// An address that no mapping covers: between device registers and the image.
const UNMAPPED: usize = 0xffff_f000_dead_b000;

/// Data that gets a valid instruction, so that only its protection stops it
/// from being executed.
static DATA: AtomicU8 = AtomicU8::new(0);
const RET: u8 = 0xc3;
/// Index of a segment behind the end of the descriptor table.
const NO_SEGMENT: u16 = 31;

/// Commits the fault that `test` names; returns for a test that is no fault.
pub fn run(test: SelfTest) {
    use SelfTest::{Adapter, Block, Entropy, Off, QueueReset};
    let is_fault = !matches!(test, Off | Entropy | Block | Adapter | QueueReset);
    if is_fault {
        log::info!("self-test: {test}");
    }
    match test {
        Off | Entropy | Block | Adapter | QueueReset => {}
        SelfTest::Panic | SelfTest::PanicInTransmit => panic!("self-test"),
        SelfTest::PanicInAllocator => heap::while_locked(|| panic!("self-test")),
        SelfTest::PanicOther => on_other_cpu(SelfTest::Panic),
        SelfTest::PageFaultOther => on_other_cpu(SelfTest::PageFault),
        SelfTest::StackOverflowOther => on_other_cpu(SelfTest::StackOverflow),
        SelfTest::PageFault => {
            let address = core::ptr::without_provenance::<u8>(UNMAPPED);
            // SAFETY: not at all: this is the fault.
            let byte = unsafe { address.read_volatile() };
            survived(test, byte);
        }
        SelfTest::StackOverflow => survived(test, recurse(1)),
        SelfTest::WriteCode => write(test, layout::text().start),
        SelfTest::WriteCodeAlias => {
            let code = VirtAddr::new_truncate(layout::text().start);
            let Some(physical) = virtual_to_physical(code) else {
                panic!("the kernel's code is not mapped");
            };
            write(test, layout::MEMORY_BASE + physical.as_u64());
        }
        SelfTest::WriteConstant => write(test, layout::rodata().start),
        SelfTest::ExecuteData => {
            DATA.store(RET, Ordering::Relaxed);
            execute(test, DATA.as_ptr());
        }
        SelfTest::ExecuteHeap => execute(test, Box::leak(Box::new(black_box(RET)))),
        SelfTest::ExecuteStack => execute(test, &mut black_box(RET)),
        SelfTest::InvalidOpcode => {
            // SAFETY: `ud2` does nothing but raise #UD, which ends the guest.
            unsafe { asm!("ud2", options(nomem, nostack)) };
        }
        SelfTest::GeneralProtection => {
            // SAFETY: not at all: this is the fault.
            unsafe { DS::set_reg(SegmentSelector::new(NO_SEGMENT, PrivilegeLevel::Ring0)) };
            survived(test, 0);
        }
        SelfTest::DivideError => {
            // SAFETY: a division by zero does nothing but raise #DE, which
            // ends the guest.
            unsafe {
                asm!("div {0:e}", in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _, options(nomem, nostack));
            }
        }
        SelfTest::NmiStackOverflow => recurse_on(Stack::Nmi),
        SelfTest::DoubleFaultStackOverflow => recurse_on(Stack::DoubleFault),
        SelfTest::Hang => hang(),
    }
}

/// Writes to memory that must not be written to.
fn write(test: SelfTest, address: u64) {
    let byte = core::ptr::with_exposed_provenance_mut::<u8>(address as usize);
    // SAFETY: not at all: this is the fault.
    unsafe { byte.write_volatile(0xcc) };
    survived(test, 0);
}

/// Executes the instruction at this address, which must not be.
fn execute(test: SelfTest, instruction: *mut u8) {
    // SAFETY: not at all: this is the fault.
    let function: extern "C" fn() = unsafe { core::mem::transmute(instruction) };
    function();
    survived(test, 0);
}

/// Uses up a stack of this CPU that is empty while no exception is handled.
fn recurse_on(stack: Stack) -> ! {
    extern "C" fn start() -> ! {
        panic!("self-test survived ({})", recurse(1))
    }
    // SAFETY: nothing is on that stack, it is mapped, and `start` does not
    // return to this one.
    unsafe {
        asm!(
            "mov rsp, {stack}",
            "xor ebp, ebp",
            "call {start}",
            "ud2",
            stack = in(reg) stack.top().as_u64(),
            start = sym start,
            options(noreturn),
        )
    }
}

fn hang() -> ! {
    interrupts::disable();
    loop {
        core::hint::spin_loop();
    }
}

/// Commits the fault on the last CPU, while this one is deaf to interrupts.
fn on_other_cpu(test: SelfTest) -> ! {
    let Some((last, [_, ..])) = percpu::all().split_last() else {
        panic!("this self-test needs a second CPU");
    };
    smp::run_on(last, Box::new(move || run(test)));
    hang()
}

/// A fault that had no consequence is the failure that the test looks for.
fn survived(test: SelfTest, value: u8) -> ! {
    panic!("self-test {test} survived ({value})")
}

/// Uses up the stack; `black_box` keeps this from becoming a loop.
#[inline(never)]
fn recurse(depth: u64) -> u8 {
    let frame = black_box([depth as u8; 256]);
    let below = if black_box(depth) == u64::MAX {
        0
    } else {
        recurse(depth.wrapping_add(1))
    };
    below ^ frame.first().copied().unwrap_or_default()
}
