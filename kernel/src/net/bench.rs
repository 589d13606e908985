//! The driver's transmit path alone, measured by the guest itself: prebuilt
//! frames, 64 outstanding, add, publish, reclaim; no network stack.
//!
//! What is counted lies between two reads of the time stamp counter. Under
//! QEMU's `-icount shift=0` that counter advances by one an instruction. Waits
//! for the device lie outside.

use kickpath_abi::config;
use virtio_net::net::{NetError, QueueRole};

use super::device::Nic;
use crate::arch::time;
use crate::memory::heap;

/// Frames outstanding at most.
const DEPTH: u16 = 64;
/// Rounds of [`DEPTH`] frames that are measured.
const ROUNDS: u32 = 1_000;
/// Rounds before that, for caches and QEMU's translator.
const WARM_UP: u16 = 10;
/// Length of each frame in bytes: the smallest that Ethernet has.
const FRAME_LENGTH: usize = 60;
/// How long the device may take for a round before the bench gives up, in
/// microseconds.
const PATIENCE_US: u64 = 5_000_000;
/// EtherType for local experiments (IEEE 802), so that nobody answers.
const ETHERTYPE_EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// Why there is no result.
#[derive(Debug)]
pub enum BenchError {
    /// The device failed.
    Net(NetError),
    /// The device did not use the frames in time.
    Stuck {
        /// Frames that it still had.
        outstanding: u16,
    },
}

impl core::fmt::Display for BenchError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Net(error) => error.fmt(f),
            Self::Stuck { outstanding } => write!(
                f,
                "the device kept {outstanding} frames for more than {PATIENCE_US} us"
            ),
        }
    }
}

impl From<NetError> for BenchError {
    fn from(error: NetError) -> Self {
        Self::Net(error)
    }
}

/// Runs the bench and prints one line, `kickpath: bench {json}`.
///
/// # Errors
///
/// [`BenchError`], when the device fails or stalls.
pub fn transmit(nic: &mut Nic) -> Result<(), BenchError> {
    let mac = nic.info().mac;
    // The warm-up leaves the frame in every buffer.
    let mut frame = [0; FRAME_LENGTH];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&ETHERTYPE_EXPERIMENTAL);
    let transmit = nic
        .snapshots()
        .find(|queue| queue.role == QueueRole::Transmit)
        .ok_or(NetError::NotOpen)?;
    for _ in 0..transmit.size.div_ceil(DEPTH).max(WARM_UP) {
        round(nic, |buffer| buffer.copy_from_slice(&frame))?;
    }
    let before = nic.stats();
    let allocations = heap::stats().allocations;
    let mut cycles = 0;
    for _ in 0..ROUNDS {
        cycles += round(nic, |_| ())?;
    }
    let after = nic.stats();
    let allocations = heap::stats().allocations - allocations;
    log::info!(
        "kickpath: bench {{\"{}\":{{\"packets\":{},\"instructions\":{},\"kicks\":{},\
         \"kicks_suppressed\":{},\"register_accesses\":{},\"heap_allocations\":{}}}}}",
        config::Bench::Tx,
        after.tx_packets - before.tx_packets,
        cycles,
        after.kicks - before.kicks,
        after.kicks_suppressed - before.kicks_suppressed,
        after.register_accesses - before.register_accesses,
        allocations,
    );
    Ok(())
}

/// Sends [`DEPTH`] frames, waits until the device has used them and reclaims
/// them; returns the cycles of all but the wait.
#[inline]
fn round(nic: &mut Nic, build: impl Fn(&mut [u8])) -> Result<u64, BenchError> {
    let (_, tx) = nic.queues()?;
    let start = time::cycles();
    for _ in 0..DEPTH {
        if let Some(mut slot) = tx.reserve() {
            build(slot.frame_mut(FRAME_LENGTH));
            slot.start_xmit(FRAME_LENGTH);
        }
    }
    tx.kick();
    let sent = time::cycles();

    let limit = time::now() + PATIENCE_US;
    while !tx.all_used() {
        if time::now() > limit {
            let outstanding = tx.outstanding();
            return Err(BenchError::Stuck { outstanding });
        }
        core::hint::spin_loop();
    }

    let resumed = time::cycles();
    tx.reclaim();
    let end = time::cycles();
    nic.poll()?;
    Ok((sent - start) + (end - resumed))
}
