//! The thread that writes what the device may write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use fastrand::Rng;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::support::device::Lies;
use crate::support::memory::{self, DeviceWritable};

/// What it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Receive buffers: headers and frames.
    Buffers,
    /// The used rings and the events behind them.
    Used,
    /// All of the rings, and what else both sides write: the control queue's
    /// memory.
    Shared,
    /// Status, interrupt status and configuration.
    Registers,
    /// All of it.
    Everything,
}

impl Target {
    pub const ALL: [Self; 5] = [
        Self::Buffers,
        Self::Used,
        Self::Shared,
        Self::Registers,
        Self::Everything,
    ];
}

/// `KICKPATH_SEED`, or one that differs from run to run.
pub fn seed() -> u64 {
    match std::env::var("KICKPATH_SEED") {
        Ok(seed) => seed.parse().expect("KICKPATH_SEED is no number"),
        Err(_) => fastrand::u64(..),
    }
}

/// The running thread.
pub struct Scribbler {
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

/// What the thread has.
struct Hand {
    random: Rng,
    memory: GuestMemoryMmap<()>,
    writable: DeviceWritable,
    lies: Arc<Lies>,
    /// Where used rings begin.
    hot: Vec<u64>,
}

impl Scribbler {
    pub fn start(
        target: Target,
        seed: u64,
        writable: DeviceWritable,
        lies: Arc<Lies>,
        hot: Vec<u64>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writes = Arc::new(AtomicU64::new(0));
        let mut hand = Hand {
            random: Rng::with_seed(seed),
            // Of the thread that has the driver.
            memory: memory::guest_memory(),
            writable,
            lies,
            hot,
        };
        let (stopped, count) = (stop.clone(), writes.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                hand.write(target);
                // Release: who waits for it has the writes before it behind him.
                count.fetch_add(1, Ordering::Release);
            }
        });
        Self {
            stop,
            writes,
            thread,
        }
    }

    /// Waits until it has made so many more writes.
    pub fn wait_for(&self, more: u64) {
        let until = self.writes.load(Ordering::Acquire) + more;
        while self.writes.load(Ordering::Acquire) < until {
            assert!(!self.thread.is_finished(), "the writing thread has ended");
            std::thread::yield_now();
        }
    }

    /// Ends it; returns how many writes it made.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writing thread");
        self.writes.load(Ordering::Acquire)
    }
}

impl Hand {
    fn write(&mut self, target: Target) {
        let kinds = &Target::ALL[..4];
        match target {
            Target::Everything => {
                let kind = kinds[self.random.usize(..kinds.len())];
                self.write(kind);
            }
            Target::Registers => self.lie(),
            Target::Used => {
                let Some(&start) = self.random.choice(&self.hot) else {
                    return;
                };
                // Flags, index, elements, and far behind them the event.
                let offset = match self.random.u64(..4) {
                    0 => 2,
                    1 => 2 * self.random.u64(..4),
                    2 => 4 + 4 * self.random.u64(..128),
                    _ => 4 + 8 * 64,
                };
                self.write_word(start + offset);
            }
            Target::Buffers | Target::Shared => {
                let wants_buffers = target == Target::Buffers;
                let random = &mut self.random;
                let place = self.writable.with(|regions| {
                    let fitting = || {
                        regions
                            .iter()
                            .filter(|(_, region)| region.only_written == wants_buffers)
                    };
                    let which = random.usize(..fitting().count().max(1));
                    let (start, region) = fitting().nth(which)?;
                    // In a buffer mostly the headers, which say how long it is.
                    let offset = if wants_buffers && random.u64(..4) > 0 {
                        let blocks = (region.length / 64) as u64;
                        64 * random.u64(..blocks.max(1)) + random.u64(..60)
                    } else {
                        random.u64(..region.length as u64)
                    };
                    Some(start + offset)
                });
                if let Some(place) = place {
                    self.write_word(place);
                }
            }
        }
    }

    /// Writes one to eight bytes, if they are the device's to write.
    fn write_word(&mut self, place: u64) {
        let length = 1 << self.random.u64(..4);
        let place = place - place % length;
        let memory = &self.memory;
        let random = &mut self.random;
        self.writable.with(|regions| {
            let is_writable = regions
                .range(..=place)
                .next_back()
                .is_some_and(|(start, region)| place - start + length <= region.length as u64);
            if !is_writable {
                return;
            }
            let old: u64 = {
                let mut bytes = [0; 8];
                let bytes_read = &mut bytes[..length as usize];
                memory.read_slice(bytes_read, GuestAddress(place)).unwrap();
                u64::from_le_bytes(bytes)
            };
            let new = match random.u64(..8) {
                0 => old.wrapping_add(1),
                1 => old.wrapping_sub(1),
                2 => old ^ 1 << random.u64(..8 * length),
                3 => 0,
                4 => u64::MAX,
                5 => random.u64(..64),
                6 => random.u64(..1 << 16),
                _ => random.u64(..),
            };
            let bytes = new.to_le_bytes();
            memory
                .write_slice(&bytes[..length as usize], GuestAddress(place))
                .unwrap();
        });
    }

    fn lie(&mut self) {
        let lies = &self.lies;
        let bits = match self.random.u64(..4) {
            0 => 0,
            1 => 0xff,
            2 => 1 << self.random.u64(..8),
            _ => self.random.u8(..),
        };
        match self.random.u64(..8) {
            // Mostly true, or nothing but resets would happen.
            0 => lies.status.store(bits, Ordering::Relaxed),
            1..=3 => lies.status.store(0, Ordering::Relaxed),
            4 => lies.isr.store(bits, Ordering::Relaxed),
            _ => {
                let at = self.random.usize(..lies.config.len());
                lies.config[at].store(bits, Ordering::Relaxed);
            }
        }
    }
}
