//! The virtual address space.
//!
//! ```text
//! 0xffff_8000_0000_0000  all memory but the kernel's code, cached
//! 0xffff_a000_0000_0000  device registers, uncached (`map_mmio`)
//! 0xffff_c000_0000_0000  stacks of the CPUs that did not boot (`map_stack`)
//! 0xffff_d000_0000_0000  device registers far up, in windows of 1 GiB (`map_mmio`)
//! 0xffff_ffff_8000_0000  the kernel's image (`kernel.ld`)
//! ```
//!
//! Nothing else is mapped; address 0 is not.

use core::ops::Range;

use x86_64::VirtAddr;

/// Virtual minus physical address of the kernel's image, where PVH and Linux's boot protocol load it.
pub const IMAGE_OFFSET: u64 = 0xffff_ffff_8000_0000;
/// Where all of memory is mapped.
pub const MEMORY_BASE: u64 = 0xffff_8000_0000_0000;
/// Memory above this physical address is not used.
pub const MEMORY_LIMIT: u64 = 1 << 45;
/// Where device registers are mapped, each at its physical address plus this.
pub const MMIO_BASE: u64 = 0xffff_a000_0000_0000;
/// Device registers above this physical address are mapped in windows instead.
pub const MMIO_LIMIT: u64 = 1 << 45;
/// Where the windows are. Cloud Hypervisor places BARs at the end of what the CPU
/// can address, which may be up to 2^52.
pub const WINDOWS_BASE: u64 = 0xffff_d000_0000_0000;
/// Length of a window, in bytes; one begins at a multiple of it.
pub const WINDOW: u64 = 1 << 30;
/// The unit of protection, in bytes.
pub const PAGE: u64 = 4096;
/// Where the stacks of the CPUs are that did not boot, [`STACKS_STRIDE`] bytes
/// of addresses for each; what is not a stack is never mapped.
const STACKS_BASE: u64 = 0xffff_c000_0000_0000;
const STACKS_STRIDE: u64 = 256 << 10;
pub const MAX_CPUS: usize = 64;

unsafe extern "C" {
    static __image_start: u8;
    static __rodata_start: u8;
    static __data_start: u8;
    static __image_end: u8;
    static __guard_main: u8;
    static __stack_main: u8;
    static __guard_double_fault: u8;
    static __stack_double_fault: u8;
    static __guard_nmi: u8;
    static __stack_nmi: u8;
}

/// The address of a symbol of the linker script.
macro_rules! symbol {
    ($name:ident) => {
        // The symbol's address is all that is used of it.
        (&raw const $name).addr() as u64
    };
}

/// The kernel's code.
pub fn text() -> Range<u64> {
    symbol!(__image_start)..symbol!(__rodata_start)
}

/// The kernel's constants.
pub fn rodata() -> Range<u64> {
    symbol!(__rodata_start)..symbol!(__data_start)
}

/// The kernel's variables and stacks.
pub fn data() -> Range<u64> {
    symbol!(__data_start)..symbol!(__image_end)
}

pub fn image() -> Range<u64> {
    symbol!(__image_start)..symbol!(__image_end)
}

/// A stack in the kernel's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// The one that everything runs on.
    Main,
    /// For double faults: the main one may be exhausted.
    DoubleFault,
    /// For non-maskable interrupts and machine checks.
    Nmi,
}

impl Stack {
    pub const ALL: [Self; 3] = [Self::Main, Self::DoubleFault, Self::Nmi];

    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main stack",
            Self::DoubleFault => "double-fault stack",
            Self::Nmi => "NMI stack",
        }
    }

    /// The stack of this kind that another CPU than the one that booted has;
    /// `slot` is 1 to [`MAX_CPUS`]. The page below it is never mapped.
    pub fn range_of(self, slot: u32) -> Range<u64> {
        // In ascending order, each behind its guard page.
        let (start, size) = match self {
            Self::DoubleFault => (PAGE, 16 << 10),
            Self::Nmi => (2 * PAGE + (16 << 10), 16 << 10),
            Self::Main => (3 * PAGE + (32 << 10), 128 << 10),
        };
        let start = STACKS_BASE + u64::from(slot) * STACKS_STRIDE + start;
        start..start + size
    }

    /// The page below it, which is never mapped.
    pub fn guard(self) -> Range<u64> {
        let start = match self {
            Self::Main => symbol!(__guard_main),
            Self::DoubleFault => symbol!(__guard_double_fault),
            Self::Nmi => symbol!(__guard_nmi),
        };
        start..start + PAGE
    }

    /// The address that its first push goes below.
    pub fn top(self) -> VirtAddr {
        VirtAddr::new_truncate(match self {
            Self::Main => symbol!(__stack_main),
            Self::DoubleFault => symbol!(__stack_double_fault),
            Self::Nmi => symbol!(__stack_nmi),
        })
    }
}

/// The stack whose guard page contains `address`, of whatever CPU.
pub fn guarded_stack(address: u64) -> Option<Stack> {
    Stack::ALL.into_iter().find(|stack| {
        let of_others = || {
            let slot = address.checked_sub(STACKS_BASE)? / STACKS_STRIDE;
            let slot = u32::try_from(slot).ok()?;
            (1..=MAX_CPUS as u32).contains(&slot).then(|| {
                let start = stack.range_of(slot).start;
                start - PAGE..start
            })
        };
        stack.guard().contains(&address)
            || of_others().is_some_and(|guard| guard.contains(&address))
    })
}
