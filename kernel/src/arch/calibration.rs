//! How fast the time stamp counter counts: told by KVM or the CPU, or else
//! measured. Every wait here has a bound, so that a clock that is missing or
//! stands still costs time but does not hang.

use core::ops::RangeInclusive;
use core::ptr;

use x86_64::VirtAddr;
use x86_64::instructions::port::{Port, PortReadOnly};
use x86_64::registers::model_specific::Msr;

use super::acpi::PmTimer;
use super::apic::{self, Register};
use super::cpu::{self, cycles};
use super::rate;
use crate::memory::paging::virtual_to_physical;

/// Frequencies of a TSC that are believed, in Hz.
const PLAUSIBLE: RangeInclusive<u64> = 1_000_000..=100_000_000_000;
/// Taken when nothing at all tells the time.
const ASSUMED_HZ: u64 = 1_000_000_000;

/// How fast the TSC counts, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frequency {
    pub hz: u64,
    /// What told it; `None` where nothing did and this is a guess.
    pub source: Option<&'static str>,
}

/// Finds the frequency of the TSC: asks one after the other who may know, and measures
/// where nobody does.
pub fn tsc_frequency(pm_timer: Option<PmTimer>) -> Frequency {
    let against_pm_timer = || pm_timer.and_then(against_pm_timer);
    let ways: [(&str, &dyn Fn() -> Option<u64>); 6] = [
        ("hypervisor leaf", &hypervisor_leaf),
        ("CPU leaf", &cpu_leaf),
        ("KVM clock", &kvm_clock),
        ("PM timer", &against_pm_timer),
        ("PIT", &against_pit),
        ("APIC timer", &against_apic_timer),
    ];
    let mut ways = ways.into_iter();
    let told = ways.find_map(|(name, way)| Some((way()?, name)));
    let (hz, source) = told.unzip();
    silence_pit();
    Frequency {
        hz: hz.unwrap_or(ASSUMED_HZ),
        source,
    }
}

fn plausible(hz: u64) -> Option<u64> {
    PLAUSIBLE.contains(&hz).then_some(hz)
}

/// Leaf 0x4000_0010, "timing information": EAX is the TSC's frequency in kHz.
fn hypervisor_leaf() -> Option<u64> {
    let leaf = cpu::hypervisor_leaf(0x4000_0010)?;
    plausible(u64::from(leaf.eax) * 1000)
}

/// Leaf 0x15: the ratio EBX / EAX of the TSC to a crystal of ECX Hz. Where the
/// crystal is not told, leaf 0x16 has the base frequency in MHz (Intel SDM
/// volume 3, section 19.7.3).
fn cpu_leaf() -> Option<u64> {
    let ratio = cpu::leaf(0, 0x15)?;
    if ratio.eax == 0 || ratio.ebx == 0 {
        return None;
    }
    if ratio.ecx != 0 {
        let hz = u128::from(ratio.ecx) * u128::from(ratio.ebx) / u128::from(ratio.eax);
        return u64::try_from(hz).ok().and_then(plausible);
    }
    let base = cpu::leaf(0, 0x16)?;
    plausible(u64::from(base.eax) * 1_000_000)
}

/// What KVM writes when its clock is enabled (Linux
/// `Documentation/virt/kvm/x86/msr.rst`).
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
struct KvmClock {
    version: u32,
    _pad0: u32,
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    flags: u8,
    _pad: [u8; 2],
}

/// Enables KVM's clock for as long as it takes to read its rate.
fn kvm_clock() -> Option<u64> {
    const FEATURES: u32 = 0x4000_0001;
    const FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
    const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
    const ENABLED: u64 = 1;

    let kvm = cpu::hypervisor().starts_with("KVM");
    let features = cpu::hypervisor_leaf(FEATURES).filter(|_| kvm)?;
    if features.eax & FEATURE_CLOCKSOURCE2 == 0 {
        return None;
    }
    let mut clock = KvmClock::default();
    let clock = &raw mut clock;
    let address = virtual_to_physical(VirtAddr::from_ptr(clock))?;
    let mut msr = Msr::new(MSR_KVM_SYSTEM_TIME_NEW);
    // SAFETY: KVM says that it has this register. It writes to the structure
    // until the second write to the register, within one aligned 64 bytes.
    let clock = unsafe {
        msr.write(address.as_u64() | ENABLED);
        let written = ptr::read_volatile(clock);
        msr.write(0);
        written
    };
    // nanoseconds = (cycles << tsc_shift) * tsc_to_system_mul >> 32
    if clock.version == 0 || clock.version & 1 != 0 || clock.tsc_to_system_mul == 0 {
        return None;
    }
    let hz = (1_000_000_000u64 << 32) / u64::from(clock.tsc_to_system_mul);
    let places = u32::from(clock.tsc_shift.unsigned_abs());
    let hz = if clock.tsc_shift < 0 {
        u64::try_from(u128::from(hz).checked_shl(places)?).ok()?
    } else {
        hz.checked_shr(places)?
    };
    plausible(hz)
}

/// Measures the TSC against a counter that counts up; see [`rate::measure`].
fn measure(read: impl FnMut() -> u32, mask: u32, reference_hz: u64) -> Option<u64> {
    rate::measure(read, cycles, mask, reference_hz).and_then(plausible)
}

/// ACPI specification 6.5, section 4.8.3.3.
fn against_pm_timer(timer: PmTimer) -> Option<u64> {
    const HZ: u64 = 3_579_545;
    let mut port = PortReadOnly::<u32>::new(timer.port);
    // SAFETY: ACPI says that the timer is at this port; reading has no effect.
    measure(|| unsafe { port.read() }, timer.mask, HZ)
}

const PIT_COUNTER_0: u16 = 0x40;
const PIT_CONTROL: u16 = 0x43;

fn pit_write(control: u8, count: u16) {
    let [low, high] = count.to_le_bytes();
    // SAFETY: these ports are the interval timer, or nothing. Its interrupt is
    // masked.
    unsafe {
        Port::<u8>::new(PIT_CONTROL).write(control);
        let mut counter = Port::<u8>::new(PIT_COUNTER_0);
        counter.write(low);
        counter.write(high);
    }
}

/// Counter 0 of the 8254, as rate generator: 16 bits, counting down. (Counter
/// 2 needs the gate of port 0x61, which QEMU's microvm does not have.)
fn against_pit() -> Option<u64> {
    const HZ: u64 = 1_193_182;
    const MODE_2: u8 = 0x34;
    const LATCH: u8 = 0x00;
    pit_write(MODE_2, 0);
    let mut control = Port::<u8>::new(PIT_CONTROL);
    let mut counter = Port::<u8>::new(PIT_COUNTER_0);
    measure(
        || {
            // SAFETY: as in `pit_write`; a latched count is read in two halves.
            let bytes = unsafe {
                control.write(LATCH);
                [counter.read(), counter.read()]
            };
            u32::from(u16::from_le_bytes(bytes).wrapping_neg())
        },
        0xffff,
        HZ,
    )
}

/// Firmware leaves the interval timer running at 18 Hz, each tick of which
/// wakes QEMU up for nothing. In mode 0 it counts down once.
fn silence_pit() {
    const MODE_0: u8 = 0x30;
    pit_write(MODE_0, 1);
}

/// The local APIC's timer; only emulated ones have a known frequency, QEMU's and KVM's.
fn against_apic_timer() -> Option<u64> {
    const HZ: u64 = 1_000_000_000;
    const DIVIDE_BY_1: u32 = 0b1011;
    if !matches!(cpu::hypervisor().get(..3), Some("KVM" | "TCG")) {
        return None;
    }
    apic::write(Register::TimerDivide, DIVIDE_BY_1);
    apic::write(Register::TimerInitialCount, u32::MAX);
    let hz = measure(|| !apic::read(Register::TimerCurrentCount), u32::MAX, HZ);
    apic::write(Register::TimerInitialCount, 0);
    hz
}
