//! How long each stage of the boot took.

use alloc::string::ToString;
use alloc::vec::Vec;

use kickpath_abi::status::Stage;
use spin::Mutex;

use crate::arch::time;

/// Most stages that are kept.
const MAX_STAGES: usize = 32;

/// Name and end, in TSC cycles since the kernel's first instruction.
static STAGES: Mutex<heapless::Vec<(&'static str, u64), MAX_STAGES>> =
    Mutex::new(heapless::Vec::new());

/// Notes that a stage of the boot has ended now.
pub fn ended(name: &'static str) {
    // One stage too many is not worth a panic.
    let _ = STAGES.lock().push((name, time::uptime_cycles()));
}

/// The stages in the order in which they ended. Needs the TSC's frequency.
pub fn report() -> Vec<Stage> {
    let stages = STAGES.lock();
    stages
        .iter()
        .map(|&(name, end)| Stage {
            name: name.to_string(),
            end_us: time::micros(end),
        })
        .collect()
}
