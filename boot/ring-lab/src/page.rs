//! What the page calls. Its script finds the ring in the module's memory, at [`area`].
//!
//! There is one ring in a module: for another one the page starts another module, so that
//! nothing is ever given back.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::wasm32;
use core::panic::PanicInfo;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use spin::Mutex;
use virtio_net::queue::{EventMode, QueueRing, RingLayout};

use crate::{Device, Lab};

/// Bytes of a page of a module's memory.
const PAGE: usize = 1 << 16;

/// Takes the next free bytes of the module's memory, for ever.
struct Bump(AtomicUsize);

#[global_allocator]
static HEAP: Bump = Bump(AtomicUsize::new(0));

unsafe extern "C" {
    /// Where the linker has put nothing any more.
    static __heap_base: u8;
}

// SAFETY: no byte is handed out twice, and all that is handed out is in the memory.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let free = match self.0.load(Ordering::Relaxed) {
            0 => (&raw const __heap_base).expose_provenance(),
            free => free,
        };
        let start = free.next_multiple_of(layout.align());
        let end = start + layout.size();
        let missing = end
            .saturating_sub(wasm32::memory_size(0) * PAGE)
            .div_ceil(PAGE);
        if missing > 0 && wasm32::memory_grow(0, missing) == usize::MAX {
            return ptr::null_mut();
        }
        self.0.store(end, Ordering::Relaxed);
        ptr::with_exposed_provenance_mut(start)
    }

    unsafe fn dealloc(&self, _pointer: *mut u8, _layout: Layout) {}
}

#[panic_handler]
fn panic(_info: &PanicInfo<'_>) -> ! {
    // The page sees an exception.
    wasm32::unreachable()
}

static LAB: Mutex<Option<Lab<Device>>> = Mutex::new(None);

/// Does something with the ring; 0 where there is none.
fn with(f: impl FnOnce(&mut Lab<Device>) -> u32) -> u32 {
    LAB.lock().as_mut().map_or(0, f)
}

/// Makes the ring; whether there is one.
#[unsafe(no_mangle)]
pub extern "C" fn open(size: u32, packed: u32, event_idx: u32) -> u32 {
    let layout = match packed {
        0 => RingLayout::Split,
        _ => RingLayout::Packed,
    };
    let mode = match event_idx {
        0 => EventMode::Flags,
        _ => EventMode::EventIdx,
    };
    let lab = Lab::new(size as u16, layout, mode).ok();
    let is_there = lab.is_some();
    *LAB.lock() = lab;
    is_there.into()
}

/// Address of the descriptor (0), driver (1) or device area (2).
#[unsafe(no_mangle)]
pub extern "C" fn area(number: u32) -> u32 {
    with(|lab| {
        let areas = lab.driver().ring().areas();
        areas.get(number as usize).map_or(0, |area| *area as u32)
    })
}

/// What stands in no shared memory, by number: what the driver has added (0), shown to the
/// device (1) and taken back (2), its next position (3); what the device has taken (4) and used
/// (5), whether it is awake (6); kicks (7), kicks suppressed (8), interrupts (9). The first six
/// modulo 65536.
#[unsafe(no_mangle)]
pub extern "C" fn told(number: u32) -> u32 {
    with(|lab| {
        let counts = lab.counts();
        let ring = lab.driver().ring();
        let (last_used, published) = (ring.last_used_idx(), ring.published());
        match number {
            0 => ring.avail_idx().into(),
            1 => last_used.wrapping_add(published).into(),
            2 => last_used.into(),
            3 => ring.next_avail().into(),
            4 => lab.device().taken() as u16 as u32,
            5 => lab.device().used() as u16 as u32,
            6 => lab.is_awake().into(),
            7 => counts.kicks as u32,
            8 => counts.suppressed as u32,
            9 => counts.interrupts as u32,
            _ => 0,
        }
    })
}

/// Adds a frame; whether there was room.
#[unsafe(no_mangle)]
pub extern "C" fn add(length: u32) -> u32 {
    with(|lab| lab.add(length).into())
}

/// Publishes: nothing new (0), no kick wanted (1), a kick wanted (2).
#[unsafe(no_mangle)]
pub extern "C" fn publish() -> u32 {
    with(|lab| match lab.publish() {
        None => 0,
        Some(false) => 1,
        Some(true) => 2,
    })
}

/// Rings the doorbell.
#[unsafe(no_mangle)]
pub extern "C" fn kick() {
    with(|lab| {
        lab.kick();
        0
    });
}

/// Lets the device use up to `most` frames: 0 while it sleeps; else 1, 2 more where it has
/// interrupted, 4 more where it has gone to sleep, and what it used in bits 8 and above.
#[unsafe(no_mangle)]
pub extern "C" fn run(most: u32) -> u32 {
    with(|lab| {
        lab.run(most).map_or(0, |ran| {
            1 | u32::from(ran.interrupt) << 1 | u32::from(ran.asleep) << 2 | ran.used << 8
        })
    })
}

/// Takes used frames back: how many, or 2^32 - 1 where the ring is broken.
#[unsafe(no_mangle)]
pub extern "C" fn take_back(most: u32) -> u32 {
    with(|lab| lab.take_back(most).unwrap_or(u32::MAX))
}

/// Asks for no interrupts.
#[unsafe(no_mangle)]
pub extern "C" fn disable_interrupts() {
    with(|lab| {
        lab.disable_interrupts();
        0
    });
}

/// Asks for an interrupt after `more` further frames; whether they are used already.
#[unsafe(no_mangle)]
pub extern "C" fn enable_interrupts(more: u32) -> u32 {
    with(|lab| lab.enable_interrupts(more as u16).into())
}

/// Has the device ask for a kick after `more` further frames.
#[unsafe(no_mangle)]
pub extern "C" fn ask_after(more: u32) {
    with(|lab| {
        lab.device().ask_after(more as u16);
        0
    });
}

/// Sends frames until the driver's index is this; whether that could be.
#[unsafe(no_mangle)]
pub extern "C" fn jump(index: u32) -> u32 {
    with(|lab| lab.jump(index as u16).is_ok().into())
}
