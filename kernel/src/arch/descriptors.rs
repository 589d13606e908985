//! The descriptor tables: segments and the task state with its interrupt
//! stacks, for each CPU, and the interrupt gates, for all.

use alloc::boxed::Box;

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

use super::{percpu, stubs};
use crate::memory::layout::Stack;

/// Slot of the interrupt stack table for double faults.
const IST_DOUBLE_FAULT: u16 = 0;
/// Slot of the interrupt stack table for NMIs and machine checks.
const IST_NMI: u16 = 1;

static TASK_STATE: Once<TaskStateSegment> = Once::new();
static SEGMENTS: Once<Segments> = Once::new();
/// The same for every CPU.
static GATES: Once<InterruptDescriptorTable> = Once::new();

/// The segments of one CPU: its task state is one of them.
struct Segments {
    table: GlobalDescriptorTable,
    code: SegmentSelector,
    data: SegmentSelector,
    task: SegmentSelector,
}

/// Loads all tables on the CPU that boots. From here on every exception is
/// reported.
pub fn init() {
    percpu::install_boot_cpu();
    let task_state =
        TASK_STATE.call_once(|| task_state(Stack::DoubleFault.top(), Stack::Nmi.top()));
    SEGMENTS.call_once(|| Segments::new(task_state)).load();
    GATES.call_once(gates).load();
}

/// Loads all tables on another CPU, whose stacks are in `slot`.
pub fn init_other(slot: u32) {
    let top = |stack: Stack| VirtAddr::new_truncate(stack.range_of(slot).end);
    let task_state = task_state(top(Stack::DoubleFault), top(Stack::Nmi));
    let segments = Segments::new(Box::leak(Box::new(task_state)));
    Box::leak(Box::new(segments)).load();
    GATES.call_once(gates).load();
}

fn task_state(double_fault: VirtAddr, nmi: VirtAddr) -> TaskStateSegment {
    let mut task_state = TaskStateSegment::new();
    task_state.interrupt_stack_table[usize::from(IST_DOUBLE_FAULT)] = double_fault;
    task_state.interrupt_stack_table[usize::from(IST_NMI)] = nmi;
    task_state
}

impl Segments {
    fn new(task_state: &'static TaskStateSegment) -> Self {
        let mut table = GlobalDescriptorTable::new();
        let code = table.append(Descriptor::kernel_code_segment());
        let data = table.append(Descriptor::kernel_data_segment());
        let task = table.append(Descriptor::tss_segment(task_state));
        Self {
            table,
            code,
            data,
            task,
        }
    }

    fn load(&'static self) {
        self.table.load();
        // SAFETY: the selectors are those of the table just loaded; in 64-bit
        // mode a flat code segment and any data segment give the same address
        // space.
        unsafe {
            CS::set_reg(self.code);
            SS::set_reg(self.data);
            DS::set_reg(self.data);
            ES::set_reg(self.data);
            load_tss(self.task);
        }
    }
}

fn gates() -> InterruptDescriptorTable {
    let mut gates = InterruptDescriptorTable::new();
    let stub = |vector: u8| VirtAddr::from_ptr(stubs::address(vector));

    /// Sets gates of different types alike, some with a stack of their own.
    macro_rules! exceptions {
        ($($field:ident = $vector:literal $(on $stack:ident)?,)+) => {
            $(
                // SAFETY: the stub is written for this vector: it knows whether
                // the CPU pushes an error code; the task state has a stack in
                // each of the slots.
                unsafe {
                    gates.$field.set_handler_addr(stub($vector))$(.set_stack_index($stack))?;
                }
            )+
        };
    }
    exceptions! {
        divide_error = 0, debug = 1, breakpoint = 3, overflow = 4, bound_range_exceeded = 5,
        invalid_opcode = 6, device_not_available = 7, invalid_tss = 10,
        segment_not_present = 11, stack_segment_fault = 12, general_protection_fault = 13,
        page_fault = 14, x87_floating_point = 16, alignment_check = 17,
        simd_floating_point = 19, virtualization = 20, cp_protection_exception = 21,
        hv_injection_exception = 28, vmm_communication_exception = 29, security_exception = 30,
        non_maskable_interrupt = 2 on IST_NMI, double_fault = 8 on IST_DOUBLE_FAULT,
        machine_check = 18 on IST_NMI,
    }
    for vector in stubs::FIRST_INTERRUPT..=u8::MAX {
        // SAFETY: the stub is written for this vector.
        unsafe { gates[vector].set_handler_addr(stub(vector)) };
    }
    gates
}
