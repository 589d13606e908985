//! The end of the guest. One CPU tells of it; the others stop where they are.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use x86_64::instructions::{hlt, interrupts as interrupt_flag};

use super::percpu::{self, PerCpu};
use super::time::cycles;
use super::{apic, power};
use crate::console::print_verdict;

/// How long the other CPUs are waited for, in TSC cycles: some milliseconds.
/// Who does not stop by then may garble the last words.
const PATIENCE: u64 = 50_000_000;

/// How the guest ended. QEMU's exit status is `value << 1 | 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All that was asked for was done; QEMU exits with 33.
    Success = 0x10,
    /// A panic, an exception, or nothing to run on; QEMU exits with 35.
    Failure = 0x11,
}

/// Ends the guest. The console hears how it went, because only QEMU's exit status
/// says so, too: elsewhere the machine is turned off or reset.
pub fn exit(exit: Exit) -> ! {
    interrupt_flag::disable();
    static SAID: AtomicBool = AtomicBool::new(false);
    // An exception while it is said comes here again.
    if !SAID.swap(true, Ordering::Relaxed) {
        print_verdict(match exit {
            Exit::Success => "success",
            Exit::Failure => "failure",
        });
    }
    power::off(exit as u8)
}

pub fn stop() -> ! {
    interrupt_flag::disable();
    loop {
        hlt();
    }
}

/// Whether a CPU is telling of the end.
pub fn is_near() -> bool {
    TELLER.load(Ordering::Acquire) != NOBODY
}

/// The slot of the CPU that tells of the end.
static TELLER: AtomicU32 = AtomicU32::new(NOBODY);
const NOBODY: u32 = u32::MAX;
static STOPPED: AtomicUsize = AtomicUsize::new(0);

/// To be called first by whoever has last words. On the first CPU it stops the
/// others and returns, there also when called again; on any other it does not
/// return.
pub fn begin_last_words() {
    interrupt_flag::disable();
    let me = percpu::this();
    let claim = TELLER.compare_exchange(NOBODY, me.slot, Ordering::AcqRel, Ordering::Acquire);
    match claim {
        Ok(_) => stop_others(me),
        Err(teller) if teller == me.slot => (),
        Err(_) => {
            STOPPED.fetch_add(1, Ordering::AcqRel);
            stop()
        }
    }
}

/// Has every other CPU come to [`begin_last_words`], by a non-maskable
/// interrupt: it may wait with interrupts disabled for a lock that it will
/// never get.
fn stop_others(me: &PerCpu) {
    let others = || percpu::all().iter().filter(|cpu| cpu.slot != me.slot);
    others().for_each(|cpu| apic::send(cpu.apic_id(), apic::COMMAND_NMI));
    let start = cycles();
    while STOPPED.load(Ordering::Acquire) < others().count()
        && cycles().wrapping_sub(start) < PATIENCE
    {
        core::hint::spin_loop();
    }
}
