//! What each CPU has for itself. The base of its GS segment leads to it, so
//! that finding it takes one instruction.

use core::arch::asm;
use core::fmt;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use alloc::boxed::Box;
use spin::{Mutex, Once};
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

/// What a CPU can be given to do.
pub type Job = Box<dyn FnOnce() + Send>;

/// What `super::timer` keeps for one CPU, written by that CPU alone.
pub(super) struct Timer {
    /// One-shot timer: its ticks a TSC cycle, times 2^32; 0 until measured.
    pub(super) ticks_per_cycle: AtomicU64,
    /// One-shot timer: when it was started for the measurement.
    pub(super) measured_since: AtomicU64,
    /// The TSC for which the timer is set; 0 when it is not.
    pub(super) armed: AtomicU64,
    /// The TSC when `hlt` was entered; 0 outside.
    pub(super) halted_since: AtomicU64,
    /// TSC cycles spent waiting in `hlt` since boot.
    pub(super) idle: AtomicU64,
}

impl Timer {
    const fn new() -> Self {
        Self {
            ticks_per_cycle: AtomicU64::new(0),
            measured_since: AtomicU64::new(0),
            armed: AtomicU64::new(0),
            halted_since: AtomicU64::new(0),
            idle: AtomicU64::new(0),
        }
    }
}

/// What a CPU has for itself. Everything in it is shared by reference; a field
/// that only its own CPU writes says so.
#[repr(C, align(64))]
pub struct PerCpu {
    /// Points to this value: read by [`this`] at offset 0.
    this: AtomicPtr<PerCpu>,
    /// Its number as tracepoints want it.
    trace: AtomicU64,
    /// First address above its main stack: read by the trampoline.
    stack_top: u64,
    /// How far its start is: see `super::smp`. Written by the trampoline too.
    pub(super) state: AtomicU32,
    /// What its local APIC answers to; 0 until known.
    apic_id: AtomicU32,
    number: AtomicU32,
    /// Which stacks it has: see `memory::layout`.
    pub(super) slot: u32,
    /// Its alarm clock; written by this CPU alone.
    pub(super) timer: Timer,
    /// What it is to do next.
    pub(super) job: Mutex<Option<Job>>,
}

const _: () = assert!(offset_of!(PerCpu, trace) == kickpath_trace::CPU_WORD);

impl PerCpu {
    /// Offset of the stack's top, for the trampoline.
    pub(super) const STACK_TOP: usize = offset_of!(Self, stack_top);
    /// Offset of the state, for the trampoline.
    pub(super) const STATE: usize = offset_of!(Self, state);
    /// Offset of the APIC id, for the trampoline.
    pub(super) const APIC_ID: usize = offset_of!(Self, apic_id);

    /// A CPU that has not been started.
    pub(super) const fn new(slot: u32, apic_id: u32, stack_top: u64) -> Self {
        Self {
            this: AtomicPtr::new(core::ptr::null_mut()),
            trace: AtomicU64::new(kickpath_trace::cpu_word(0)),
            stack_top,
            state: AtomicU32::new(0),
            apic_id: AtomicU32::new(apic_id),
            number: AtomicU32::new(0),
            slot,
            timer: Timer::new(),
            job: Mutex::new(None),
        }
    }

    /// Its number: 0 is the CPU that booted, the others count up.
    #[inline]
    pub fn number(&self) -> usize {
        self.number.load(Ordering::Relaxed) as usize
    }

    pub fn apic_id(&self) -> u32 {
        self.apic_id.load(Ordering::Relaxed)
    }

    pub(super) fn set_apic_id(&self, id: u32) {
        self.apic_id.store(id, Ordering::Relaxed);
    }

    pub(super) fn set_number(&self, number: u32) {
        self.number.store(number, Ordering::Relaxed);
        self.trace
            .store(kickpath_trace::cpu_word(number), Ordering::Relaxed);
    }
}

/// Shows ` on CPU 1`, where there is more than one CPU.
pub struct OnCpu;

impl fmt::Display for OnCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if all().len() > 1 {
            write!(f, " on CPU {}", this().number())?;
        }
        Ok(())
    }
}

static BOOT_CPU: PerCpu = PerCpu::new(0, 0, 0);
/// Every CPU that runs, in the order of their numbers.
static ALL: Once<&'static [&'static PerCpu]> = Once::new();

/// Makes [`this`] work on the CPU that boots, which must come before anything
/// else is done there.
pub(super) fn install_boot_cpu() {
    install(&BOOT_CPU);
}

/// Makes [`this`] work on the CPU that runs this.
pub(super) fn install(cpu: &'static PerCpu) {
    let pointer = core::ptr::from_ref(cpu).cast_mut();
    cpu.this.store(pointer, Ordering::Relaxed);
    // Nothing else in this kernel uses GS.
    GsBase::write(VirtAddr::from_ptr(pointer));
}

/// Says which CPUs run, once, after they were started.
pub(super) fn set_all(cpus: &'static [&'static PerCpu]) {
    ALL.call_once(|| cpus);
}

/// The CPU that runs this.
#[inline]
pub fn this() -> &'static PerCpu {
    let cpu: *const PerCpu;
    // SAFETY: every CPU calls `install` before anything else, so GS leads to a
    // `PerCpu` that lives for ever and whose first word is its own address.
    unsafe {
        asm!(
            "mov {}, gs:[0]",
            out(reg) cpu,
            options(pure, readonly, nostack, preserves_flags),
        );
        &*cpu
    }
}

/// Every CPU that runs, in the order of their numbers; the one that booted
/// until the others have been started.
pub fn all() -> &'static [&'static PerCpu] {
    static BOOT_ALONE: [&PerCpu; 1] = [&BOOT_CPU];
    ALL.get().copied().unwrap_or(&BOOT_ALONE)
}
