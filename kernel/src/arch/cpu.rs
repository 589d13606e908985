//! What the CPU says about itself (`cpuid`).

use core::arch::x86_64::{__cpuid, _rdtsc, CpuidResult};

use heapless::String;

/// First leaf of the hypervisor's own range.
const HYPERVISOR: u32 = 0x4000_0000;
const EXTENDED: u32 = 0x8000_0000;

/// The leaf, if the range that starts at `base` reaches up to it. Leaves out
/// of range repeat another one on Intel's CPUs.
pub fn leaf(base: u32, leaf: u32) -> Option<CpuidResult> {
    let maximum = __cpuid(base).eax;
    (maximum >= leaf && leaf >= base).then(|| __cpuid(leaf))
}

fn has_hypervisor() -> bool {
    __cpuid(1).ecx & 1 << 31 != 0
}

/// A leaf of the hypervisor's range, if there is a hypervisor and it has it.
pub fn hypervisor_leaf(number: u32) -> Option<CpuidResult> {
    has_hypervisor().then(|| leaf(HYPERVISOR, number)).flatten()
}

/// The hypervisor's signature, such as `KVMKVMKVM` or `TCGTCGTCGTCG`; empty
/// without one.
pub fn hypervisor() -> String<12> {
    let mut signature = String::new();
    if has_hypervisor() {
        let words = __cpuid(HYPERVISOR);
        for byte in [words.ebx, words.ecx, words.edx]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .filter(u8::is_ascii_graphic)
        {
            // Twelve bytes always fit.
            let _ = signature.push(char::from(byte));
        }
    }
    signature
}

/// The time stamp counter.
#[inline]
pub fn cycles() -> u64 {
    // SAFETY: every CPU with 64-bit mode has `rdtsc`.
    unsafe { _rdtsc() }
}

/// Whether pages can be protected from being executed.
pub fn has_no_execute() -> bool {
    leaf(EXTENDED, 0x8000_0001).is_some_and(|leaf| leaf.edx & 1 << 20 != 0)
}

pub fn max_physical_address() -> u64 {
    let bits = leaf(EXTENDED, 0x8000_0008).map_or(36, |leaf| leaf.eax & 0xff);
    // Page tables hold 52 bits.
    (1 << bits.clamp(32, 52)) - 1
}

pub fn has_1gib_pages() -> bool {
    leaf(EXTENDED, 0x8000_0001).is_some_and(|leaf| leaf.edx & 1 << 26 != 0)
}

pub fn has_x2apic() -> bool {
    __cpuid(1).ecx & 1 << 21 != 0
}

/// Whether the local APIC's timer takes deadlines in TSC cycles.
pub fn has_tsc_deadline() -> bool {
    __cpuid(1).ecx & 1 << 24 != 0
}
