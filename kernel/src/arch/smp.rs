//! The other CPUs ("application processors"): started one after the other by
//! INIT and start-up messages (Intel SDM volume 3, section 9.4), then waiting
//! for a job.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use spin::Once;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};

use super::acpi::Tables;
use super::percpu::{self, Job, PerCpu};
use super::time;
use super::trampoline::{STATE_ASLEEP, STATE_STARTED, Trampoline};
use super::{apic, descriptors, end, interrupts, timer};
use crate::memory::layout::Stack;
use crate::memory::{MapError, paging};

/// The CPU takes jobs.
const STATE_READY: u32 = 2;
/// Nobody waits for the CPU any more; the trampoline turns it away.
const STATE_GIVEN_UP: u32 = 3;

/// Pauses between INIT, start-up and start-up again, in microseconds.
const AFTER_INIT_US: u64 = 10_000;
const AFTER_STARTUP_US: u64 = 200;
/// How long a CPU has to take the trampoline, and then to become ready, in
/// microseconds. A host that is busy may not run its thread for a while.
const PATIENCE_US: u64 = 2_000_000;

/// The CPU that booted runs with these; set before another one is started.
static BOOT_CR4: Once<Cr4Flags> = Once::new();

/// Why a CPU is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum StartError {
    /// Its APIC id needs more than 8 bits, which interrupt messages have.
    #[error("its APIC id has more than 8 bits")]
    ApicId,
    #[error("no stack for it: {0}")]
    Memory(MapError),
    #[error("no sign of life within {} ms", PATIENCE_US / 1000)]
    Silent,
    #[error("not ready within {} ms", PATIENCE_US / 1000)]
    Stuck,
}

/// Starts the CPUs that ACPI names besides this one, and returns how many
/// there are now. What does not come up is reported and left out.
pub fn start_others(tables: &Tables) -> usize {
    let boot = percpu::this();
    let mut others = tables.cpus.clone();
    others.retain(|&id| id != boot.apic_id());
    if tables.cpus_left_out != 0 {
        log::warn!("{} CPUs too many are not used", tables.cpus_left_out);
    }
    if others.is_empty() {
        return 1;
    }
    BOOT_CR4.call_once(Cr4::read);
    let mut cpus = Vec::from([boot]);
    // The stacks are mapped first: the trampoline's tables copy the root's.
    let prepared = others.into_iter().zip(1..);
    let prepared = prepared.map(|(id, slot)| (id, prepare(slot, id)));
    let prepared: Vec<_> = prepared.collect();
    let Some(trampoline) = Trampoline::place(&crate::platform().memory_map, begin) else {
        log::warn!("no free memory below 640 KiB: the other CPUs are not used");
        return 1;
    };
    for (id, cpu) in &prepared {
        if cpu.is_ok() {
            apic::send(*id, apic::COMMAND_INIT);
        }
    }
    time::wait(AFTER_INIT_US, || false);
    for (id, cpu) in prepared {
        match cpu.and_then(|cpu| start(&trampoline, cpu).map(|()| cpu)) {
            Ok(cpu) => {
                cpu.set_number(cpus.len() as u32);
                cpus.push(cpu);
            }
            Err(error) => log::warn!("the CPU with APIC id {id} is not used: {error}"),
        }
    }
    let count = cpus.len();
    percpu::set_all(cpus.leak());
    count
}

/// Makes what a CPU needs before its first instruction.
fn prepare(slot: u32, apic_id: u32) -> Result<&'static PerCpu, StartError> {
    if apic_id >= 0xff {
        return Err(StartError::ApicId);
    }
    for stack in Stack::ALL {
        paging::map_stack(stack.range_of(slot)).map_err(StartError::Memory)?;
    }
    let top = Stack::Main.range_of(slot).end;
    Ok(Box::leak(Box::new(PerCpu::new(slot, apic_id, top))))
}

/// Has one CPU, which has been sent INIT, begin and waits until it is ready.
fn start(trampoline: &Trampoline, cpu: &'static PerCpu) -> Result<(), StartError> {
    trampoline.expect(cpu);
    let awake = || cpu.state.load(Ordering::Acquire) != STATE_ASLEEP;
    for _ in 0..2 {
        apic::send(cpu.apic_id(), apic::COMMAND_STARTUP | trampoline.page());
        if time::wait(AFTER_STARTUP_US, awake) {
            break;
        }
    }
    // From here the trampoline turns it away, should it come after all.
    if !time::wait(PATIENCE_US, awake) && go_on(cpu, STATE_ASLEEP, STATE_GIVEN_UP) {
        return Err(StartError::Silent);
    }
    let ready = || cpu.state.load(Ordering::Acquire) == STATE_READY;
    if !time::wait(PATIENCE_US, ready) && go_on(cpu, STATE_STARTED, STATE_GIVEN_UP) {
        return Err(StartError::Stuck);
    }
    Ok(())
}

/// Moves a CPU on if it still is where it was; returns whether it was.
fn go_on(cpu: &PerCpu, from: u32, to: u32) -> bool {
    let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
    let state = &cpu.state;
    state.compare_exchange(from, to, success, failure).is_ok()
}

/// The first function of a CPU that has left the trampoline, on its own stack.
extern "C" fn begin(cpu: &'static PerCpu) -> ! {
    percpu::install(cpu);
    descriptors::init_other(cpu.slot);
    // SAFETY: the trampoline has set what 64-bit mode needs; what is added is
    // what the CPU that booted, of the same kind, runs with.
    unsafe {
        Cr0::update(|flags| flags.insert(Cr0Flags::WRITE_PROTECT));
        if let Some(flags) = BOOT_CR4.get() {
            Cr4::write(*flags);
        }
    }
    apic::init_other();
    timer::init();
    if !go_on(cpu, STATE_STARTED, STATE_READY) {
        end::stop();
    }
    loop {
        let job = cpu.job.lock().take();
        match job {
            Some(job) => job(),
            // Interrupts are off, so that the message about a job that was
            // given since then ends the wait.
            None => timer::idle_until(None),
        }
    }
}

/// Gives a CPU that waits something to do; with interrupts off there. What it
/// has not begun yet is replaced.
pub fn run_on(cpu: &PerCpu, job: Job) {
    *cpu.job.lock() = Some(job);
    interrupts::wake(cpu);
}
