//! Deliberate faults, so that a test can see how each is reported. All of them
//! end the guest, or (`hang`) never return.

use alloc::boxed::Box;
use core::arch::asm;
use core::hint::black_box;
use core::sync::atomic::{AtomicU8, Ordering};

use kickpath_abi::config::SelfTest;
use x86_64::instructions::interrupts;

use crate::arch::{percpu, smp};

/// An address that no mapping covers: between device registers and the image.
const UNMAPPED: usize = 0xffff_f000_dead_b000;

/// Data that gets a valid instruction, so that only its protection stops it
/// from being executed.
static DATA: AtomicU8 = AtomicU8::new(0);
const RET: u8 = 0xc3;

/// Commits the fault that `test` names; returns for a test that is no fault.
pub fn run(test: SelfTest) {
    match test {
        SelfTest::Off | SelfTest::Entropy | SelfTest::Block | SelfTest::Adapter => return,
        _ => log::info!("self-test: {test}"),
    }
    match test {
        SelfTest::Off | SelfTest::Entropy | SelfTest::Block | SelfTest::Adapter => {}
        SelfTest::Panic | SelfTest::PanicInTransmit => panic!("self-test"),
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
        SelfTest::WriteCode => {
            let code = run as fn(SelfTest) as *mut u8;
            // SAFETY: not at all: this is the fault.
            unsafe { code.write_volatile(0xcc) };
            survived(test, 0);
        }
        SelfTest::ExecuteData => {
            DATA.store(black_box(RET), Ordering::Relaxed);
            // SAFETY: not at all: this is the fault.
            let data: extern "C" fn() = unsafe { core::mem::transmute(DATA.as_ptr()) };
            data();
            survived(test, 0);
        }
        SelfTest::InvalidOpcode => {
            // SAFETY: `ud2` does nothing but raise #UD, which ends the guest.
            unsafe { asm!("ud2", options(nomem, nostack)) };
        }
        SelfTest::Hang => hang(),
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
