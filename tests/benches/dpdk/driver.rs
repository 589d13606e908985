//! The driver of this project, measured as `peer.c` measures DPDK's.

use std::arch::x86_64::{_mm_mfence, _rdtsc};
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use virtio_net::interrupt::InterruptState;
use virtio_net::net::{Features, Options, VirtioNet};
use virtio_net::vectors::{NoInterrupts, Rung};

use super::front_end::{SharedHal, VhostUser};
use super::{Case, Direction, SAMPLE};

/// How long a measurement may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Cycles of a sample that are told apart from more.
const LONGEST: usize = 1 << 16;

static FRAME: [u8; 60] = {
    let mut frame = [0; 60];
    let head = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5,
    ];
    let mut at = 0;
    while at < head.len() {
        frame[at] = head[at];
        at += 1;
    }
    frame
};

/// Cycles a frame.
///
/// # Errors
/// The back end does not answer, breaks the protocol, or is too slow.
pub fn measure(socket: &Path, case: Case, frames: u64) -> Result<f64> {
    // The second CPU, on this thread alone.
    std::thread::scope(|scope| {
        scope
            .spawn(|| measure_here(socket, case, frames))
            .join()
            .map_err(|_| anyhow!("the measurement panicked"))?
    })
}

type Device = VirtioNet<SharedHal, VhostUser>;

fn measure_here(socket: &Path, case: Case, frames: u64) -> Result<f64> {
    let mut cpus = CpuSet::new();
    cpus.set(1)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    let allowed = if case.packed {
        Features::all()
    } else {
        Features::all() - Features::RING_PACKED
    };
    static INTERRUPTS: InterruptState = InterruptState::new();
    let transport = VhostUser::connect(socket, allowed)?;
    let mut net = Device::probe(transport, Options::default(), &INTERRUPTS)?;
    net.open(&mut NoInterrupts, Rung::Polling)?;
    let burst = match case.direction {
        Direction::Transmit => transmit,
        Direction::Receive => receive,
    };
    let mut counted = 0;
    let (mut frames_of_sample, mut cycles_of_sample) = (0, 0);
    let mut samples = vec![0_u64; LONGEST];
    let deadline = Instant::now() + PATIENCE;
    while counted < frames {
        net.poll()?;
        let start = cycles();
        let count = burst(&mut net, case.burst)?;
        let took = cycles() - start;
        if count == case.burst {
            counted += u64::from(count);
            frames_of_sample += count;
            cycles_of_sample += took;
            if frames_of_sample == SAMPLE {
                samples[LONGEST.min(cycles_of_sample as usize + 1) - 1] += 1;
                (frames_of_sample, cycles_of_sample) = (0, 0);
            }
        } else {
            for _ in 0..2000 {
                std::hint::spin_loop();
            }
            ensure!(
                Instant::now() < deadline,
                "{counted} of {frames} frames in {PATIENCE:?}"
            );
        }
    }
    Ok(median(&samples) / f64::from(SAMPLE))
}

/// The time stamp counter, when all that was done before has reached the memory:
/// else who looks at nothing of a frame would seem not to wait for it.
fn cycles() -> u64 {
    // SAFETY: every x86-64 CPU has both, and they have no other effect.
    unsafe {
        _mm_mfence();
        _rdtsc()
    }
}

/// The median of values, of which this is how often each came.
fn median(counts: &[u64]) -> f64 {
    let half = counts.iter().sum::<u64>().div_ceil(2);
    let mut below = 0;
    let reaches_half = |count: &u64| {
        below += count;
        below >= half
    };
    counts.iter().position(reaches_half).unwrap_or(0) as f64
}

/// One burst of frames out: written, queued, published. Returns how many went.
#[inline(never)]
fn transmit(net: &mut Device, burst: u32) -> Result<u32> {
    let (_, tx) = net.queues()?;
    let write = |frame: &mut [u8]| {
        frame[..FRAME.len()].copy_from_slice(&FRAME);
        FRAME.len()
    };
    let sent = if burst != 1 {
        tx.start_xmit_batch(burst as u16, |_, frame| write(frame))
    } else if let Some(mut slot) = tx.reserve() {
        let length = write(slot.frame_mut(FRAME.len()));
        slot.start_xmit(length);
        1
    } else {
        0
    };
    tx.kick();
    Ok(sent.into())
}

/// One burst of frames in: taken, copied out, their buffers posted again.
#[inline(never)]
fn receive(net: &mut Device, burst: u32) -> Result<u32> {
    let (rx, _) = net.queues()?;
    let received = if burst == 1 {
        let frame = rx.receive().map(|frame| _ = black_box(&frame[..]));
        u32::from(frame.is_some())
    } else {
        rx.receive_batch(burst, |frame| {
            black_box(&frame[..]);
            true
        })
    };
    net.kick();
    Ok(received)
}
