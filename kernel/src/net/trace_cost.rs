//! What a tracepoint costs, measured by the guest itself: the same loop
//! without one, with one that is off, and with one that is on.

use core::hint::black_box;

use kickpath_abi::config;
use kickpath_trace::{Event, RING, tracepoint};

use crate::arch::time;

/// Tracepoints of each loop. The ring has room for them, so each that is on
/// leaves its record.
const POINTS: u64 = 1_000;

/// Measures and prints one line, `kickpath: bench {json}`. To be called while
/// tracing is off.
pub fn measure() {
    // The first pass is for QEMU's translator and for caches.
    let mut bare = 0;
    let mut off = 0;
    for _ in 0..2 {
        bare = cycles_of(|_| ());
        off = cycles_of(tracepoint);
    }
    // SAFETY: the other CPUs have no job, and so no tracepoint.
    unsafe { RING.start(time::cycles) };
    let on = cycles_of(tracepoint);
    // SAFETY: as above.
    unsafe { RING.stop() };
    log::info!(
        "kickpath: bench {{\"{}\":{{\"points\":{POINTS},\"off\":{},\"on\":{},\"lost\":{}}}}}",
        config::Bench::Trace,
        off.saturating_sub(bare),
        on.saturating_sub(bare),
        RING.lost(),
    );
}

/// Both arguments are at hand: the loop computes nothing for them.
#[inline(always)]
fn tracepoint(point: u64) {
    tracepoint!(Event::Notify, 1, point, point);
}

#[inline(never)]
fn cycles_of(work: impl Fn(u64)) -> u64 {
    let start = time::cycles();
    for point in 0..POINTS {
        black_box(point);
        work(point);
    }
    time::cycles() - start
}
