//! The driver's paths alone, measured by the guest itself: frames are added,
//! published, kicked and reclaimed, or checked, copied out and posted again, without
//! a network stack.
//!
//! What is counted lies between two reads of the time stamp counter. Under
//! QEMU's `-icount shift=0` that counter advances by one an instruction. Waits
//! for the device lie outside.

#[cfg(feature = "peer")]
mod peer;
mod receive;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use kickpath_abi::config;
use kickpath_services::Blast;
use virtio_net::net::offload::Offload;
use virtio_net::net::{NetError, QueueRole, Stats};

use super::device::{NetDevice, Nic};
use super::gateway::{FRAME_LENGTH, Frame, unanswered};
use super::idle;
use crate::arch::time;
use crate::memory::heap;
#[cfg(feature = "peer")]
pub use peer::peer;
pub use receive::receive;

/// Frames outstanding at most.
const DEPTH: u16 = 64;
/// Rounds of [`DEPTH`] frames that are measured.
const ROUNDS: u32 = 1_000;
/// Frames a kick, where the kick is measured.
const BURSTS: [u16; 2] = [1, 32];
/// Batches that are measured of each of those, so that one that the host
/// disturbed can be told from the others.
const KICK_BATCHES: usize = 10;
const BATCH_ROUNDS: u32 = 100;
/// Rounds before that, for caches and QEMU's translator.
const WARM_UP: u16 = 10;
/// Answers that are received at a time.
const BURST: u16 = 32;
/// Rounds after which the gateway is asked for again, so that it does not forget us.
const ASK_EVERY: u32 = 100;
/// How long the device may take for a round before the bench gives up, in
/// microseconds.
const PATIENCE_US: u64 = 5_000_000;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("the device kept {outstanding} frames for more than {PATIENCE_US} us")]
    Stuck { outstanding: u16 },
    /// Nobody is at the far end that answers, or it answered too few.
    #[error("the gateway does not answer")]
    NoAnswer,
    #[cfg(feature = "peer")]
    #[error(transparent)]
    Transport(#[from] crate::virtio::other::OtherError),
    #[cfg(feature = "peer")]
    #[error("virtio-drivers: {0}")]
    Peer(#[from] virtio_drivers::Error),
}

/// Sends frames in four ways and prints one line, `kickpath: bench {json}`: those
/// that lie ready, in batches, one by one, and one by one with a checksum to fill in, and
/// those that are copied in, in batches.
pub fn transmit(nic: &mut Nic) -> Result<(), BenchError> {
    warm_up(nic, DEPTH)?;
    let frame = unanswered(nic.info().mac);
    let prepared = measure_sent(nic, |nic| batch(nic, |_| ()))?;
    let each = measure_sent(nic, |nic| frames(nic, DEPTH, |_| ()))?;
    let offloaded = measure_sent(nic, offloaded)?;
    let copied = measure_sent(nic, |nic| batch(nic, |buffer| copy(buffer, &frame)))?;
    log::info!(
        "kickpath: bench {{\"{}\":{{{prepared}}},\"tx_each\":{{{each}}},\"tx_copied\":{{{copied}}},\
         \"tx_offloaded\":{{{offloaded}}}}}",
        config::Bench::Tx,
    );
    Ok(())
}

/// What [`ROUNDS`] rounds of so many packets cost, as members of a JSON object; `round`
/// is told its number, and returns what is counted of it.
fn measure(
    nic: &mut Nic,
    packets: u16,
    mut round: impl FnMut(&mut Nic, u32) -> Result<u64, BenchError>,
) -> Result<String, BenchError> {
    for _ in 0..WARM_UP {
        round(nic, 1)?;
    }
    let before = nic.stats();
    let allocations = heap::stats().allocations;
    let mut cycles = 0;
    for number in 0..ROUNDS {
        cycles += round(nic, number)?;
    }
    let allocations = heap::stats().allocations - allocations;
    let packets = u64::from(ROUNDS) * u64::from(packets);
    Ok(sums(packets, &before, &nic.stats(), cycles, allocations))
}

/// [`measure`]s a way to send [`DEPTH`] frames.
fn measure_sent(
    nic: &mut Nic,
    mut add: impl FnMut(&mut Nic) -> Result<(), BenchError>,
) -> Result<String, BenchError> {
    measure(nic, DEPTH, |nic, _| Ok(round(nic, &mut add)?.driver()))
}

/// Adds [`DEPTH`] frames at once.
#[inline(always)]
fn batch(nic: &mut Nic, build: impl Fn(&mut [u8])) -> Result<(), BenchError> {
    let (_, tx) = nic.queues()?;
    tx.start_xmit_batch(DEPTH, |_, buffer| {
        build(buffer);
        FRAME_LENGTH
    });
    Ok(())
}

/// Writes a frame into its buffer, which has room for it.
#[inline(always)]
fn copy(buffer: &mut [u8], frame: &Frame) {
    if let Some(place) = buffer.first_chunk_mut() {
        *place = *frame;
    }
}

/// Sends datagrams from a socket, the network stack included, and prints one
/// line, `kickpath: bench {json}`.
pub fn datagrams(nic: &mut Nic) -> Result<(), BenchError> {
    let mac = nic.info().mac;
    let now = idle::now();
    let mut report = Vec::new();
    for payload in [&[0x42; 64][..], &[0x42; 1400]] {
        let mut blast = Blast::new(mac, &mut NetDevice::first(nic, None), now);
        let sums = measure_sent(nic, |nic| {
            // Once a poll, as in the network's loop.
            let device = &mut NetDevice::first(nic, None);
            for _ in 0..DEPTH {
                blast.send(now, device, payload);
            }
            Ok(())
        })?;
        report.push(format!("{{\"size\":{},{sums}}}", payload.len()));
    }
    print_list(config::Bench::Udp, &report);
    Ok(())
}

fn print_list(name: config::Bench, objects: &[String]) {
    log::info!("kickpath: bench {{\"{name}\":[{}]}}", objects.join(","));
}

/// What was counted between two readings, as members of a JSON object.
fn sums(packets: u64, before: &Stats, after: &Stats, cycles: u64, allocations: u64) -> String {
    format!(
        "\"packets\":{packets},\"instructions\":{cycles},\"kicks\":{},\"kicks_suppressed\":{},\
         \"register_accesses\":{},\"heap_allocations\":{allocations}",
        after.kicks - before.kicks,
        after.kicks_suppressed - before.kicks_suppressed,
        after.register_accesses - before.register_accesses,
    )
}

/// Measures the kick itself, after one frame and after a burst of 32, and
/// prints one line, `kickpath: bench {json}`.
pub fn kick(nic: &mut Nic) -> Result<(), BenchError> {
    let reading = reading();
    let mut report = Vec::new();
    for burst in BURSTS {
        warm_up(nic, burst)?;
        let before = nic.stats();
        let (mut kicks, mut driver) = (0, 0);
        let mut journeys = [0; KICK_BATCHES];
        for journey in &mut journeys {
            for _ in 0..BATCH_ROUNDS {
                let round = round(nic, |nic| frames(nic, burst, |_| ()))?;
                if round.kicked {
                    kicks += round.kick.saturating_sub(reading);
                }
                driver += round.driver();
                *journey += round.kick + round.wait;
            }
        }
        let after = nic.stats();
        report.push(format!(
            "{{\"burst\":{burst},\"packets\":{},\
             \"kicks\":{},\"kicks_suppressed\":{},\"register_accesses\":{},\
             \"kick_cycles\":{kicks},\"driver_cycles\":{driver},\
             \"batch_rounds\":{BATCH_ROUNDS},\"journey_cycles\":{journeys:?}}}",
            after.tx_packets - before.tx_packets,
            after.kicks - before.kicks,
            after.kicks_suppressed - before.kicks_suppressed,
            after.register_accesses - before.register_accesses,
        ));
    }
    print_list(config::Bench::Kick, &report);
    Ok(())
}

/// What it costs to read the time stamp counter, in its cycles.
fn reading() -> u64 {
    let readings = (0..16).map(|_| {
        let start = time::cycles();
        time::cycles() - start
    });
    readings.min().unwrap_or(0)
}

/// Leaves a frame in every buffer, and warms caches and QEMU's translator.
fn warm_up(nic: &mut Nic, burst: u16) -> Result<(), BenchError> {
    let frame = unanswered(nic.info().mac);
    let transmit = nic
        .snapshots()
        .find(|queue| queue.role == QueueRole::Transmit)
        .ok_or(NetError::NotOpen)?;
    for _ in 0..transmit.size.div_ceil(burst).max(WARM_UP) {
        round(nic, |nic| {
            frames(nic, burst, |buffer| buffer.copy_from_slice(&frame))
        })?;
    }
    Ok(())
}

/// Cycles of the parts of a round.
struct Round {
    add: u64,
    /// Publishing them, the decision, and the doorbell if it was rung.
    kick: u64,
    kicked: bool,
    /// Until the device had used all of them.
    wait: u64,
    reclaim: u64,
}

impl Round {
    fn driver(&self) -> u64 {
        self.add + self.kick + self.reclaim
    }
}

/// Adds `burst` frames of [`FRAME_LENGTH`].
#[inline(always)]
fn frames(nic: &mut Nic, burst: u16, build: impl Fn(&mut [u8])) -> Result<(), BenchError> {
    let (_, tx) = nic.queues()?;
    for _ in 0..burst {
        if let Some(mut slot) = tx.reserve() {
            build(slot.frame_mut(FRAME_LENGTH));
            slot.start_xmit(FRAME_LENGTH);
        }
    }
    Ok(())
}

/// Adds [`DEPTH`] frames that lie ready, and has the device fill in a checksum of each if
/// it can: that of UDP behind IPv4.
#[inline(always)]
fn offloaded(nic: &mut Nic) -> Result<(), BenchError> {
    let (_, tx) = nic.queues()?;
    for _ in 0..DEPTH {
        if let Some(slot) = tx.reserve() {
            slot.start_xmit_offloaded(FRAME_LENGTH, Some(Offload::checksum(34, 6)));
        }
    }
    Ok(())
}

/// Has `add` send frames, waits until the device has used them and reclaims
/// them.
#[inline(never)]
fn round(
    nic: &mut Nic,
    add: impl FnOnce(&mut Nic) -> Result<(), BenchError>,
) -> Result<Round, BenchError> {
    let start = time::cycles();
    add(nic)?;
    let (_, tx) = nic.queues()?;
    let added = time::cycles();
    let kicked = tx.kick();
    let sent = time::cycles();

    if !time::wait(PATIENCE_US, || tx.all_used()) {
        let outstanding = tx.outstanding();
        return Err(BenchError::Stuck { outstanding });
    }

    let resumed = time::cycles();
    tx.reclaim();
    let end = time::cycles();
    nic.poll()?;
    Ok(Round {
        add: added - start,
        kick: sent - added,
        kicked,
        wait: resumed - sent,
        reclaim: end - resumed,
    })
}
