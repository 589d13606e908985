//! Driver and device on two CPUs, both of which sleep. The only test in which
//! a missing store-load barrier can show: each side publishes its index and
//! reads the other's wish, and if both reads overtake the stores, both sleep
//! for ever.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use virtio_net::queue::split::EventMode;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::support::ring::{Ends, writable};

/// Longer than any scheduler keeps a thread waiting.
const PATIENCE: Duration = Duration::from_secs(10);

/// Chains that go through the ring, if time allows.
const CHAINS: u32 = 60_000;

/// Spins for a while before it sleeps, so that the two sides meet at the
/// moment of falling asleep as often as possible.
fn wait(wakeups: &Receiver<()>) -> Result<(), RecvTimeoutError> {
    wakeups.recv_timeout(PATIENCE)
}

struct Device {
    queue: Queue,
    memory: GuestMemoryMmap<()>,
    avail_ring: GuestAddress,
}

impl Device {
    fn interrupts_wanted(&mut self) -> bool {
        let needed = self.queue.needs_notification(&self.memory).unwrap();
        let flags: u16 = self.memory.load(self.avail_ring, Ordering::SeqCst).unwrap();
        needed && (self.queue.event_idx_enabled() || flags & 1 == 0)
    }

    /// Uses every chain until told to stop; interrupts and sleeps as the
    /// specification says. Returns whether it was woken every time.
    fn run(
        &mut self,
        kicks: &Receiver<()>,
        interrupt: impl Fn(),
        stop: &AtomicBool,
    ) -> Result<(), RecvTimeoutError> {
        loop {
            self.queue.disable_notification(&self.memory).unwrap();
            while let Some(head) = self
                .queue
                .iter(&self.memory)
                .unwrap()
                .next()
                .map(|chain| chain.head_index())
            {
                self.queue.add_used(&self.memory, head, 8).unwrap();
                if self.interrupts_wanted() {
                    interrupt();
                }
            }
            if self.queue.enable_notification(&self.memory).unwrap() {
                continue;
            }
            wait(kicks)?;
            if stop.load(Ordering::Acquire) {
                return Ok(());
            }
        }
    }
}

fn race(size: u16, mode: EventMode) {
    let Ends {
        mut driver,
        device,
        memory,
    } = Ends::new(size, mode);
    let avail_ring = GuestAddress(driver.driver_area());
    let mut device = Device {
        queue: device,
        memory,
        avail_ring,
    };
    let (kick, kicks) = channel();
    let (interrupt, interrupts) = channel();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        let device =
            scope.spawn(move || device.run(&kicks, || interrupt.send(()).unwrap_or(()), stop));
        let mut popped = 0u32;
        while popped < CHAINS {
            driver.disable_interrupts();
            while let Some(used) = driver.pop_used().unwrap() {
                assert_eq!(used.length, 8);
                popped += 1;
            }
            while driver.free() > 0 {
                // SAFETY: the device of this test does not touch buffers.
                unsafe { driver.add(&[writable(0x1000, 8)], 1) }.unwrap();
            }
            if driver.has_unpublished() && driver.publish() {
                kick.send(()).expect("the device has given up");
            }
            if !driver.enable_interrupts_after(0) {
                // Interrupts of the past wake early, which costs a look.
                wait(&interrupts)
                    .unwrap_or_else(|error| panic!("no interrupt after {popped} chains: {error}"));
            }
        }
        stop.store(true, Ordering::Release);
        let _ = kick.send(());
        device.join().unwrap().expect("a kick was lost");
    });
}

#[test]
fn nobody_sleeps_for_ever_by_event_index() {
    race(1, EventMode::EventIdx);
    race(16, EventMode::EventIdx);
}

#[test]
fn nobody_sleeps_for_ever_by_flags() {
    race(1, EventMode::Flags);
    race(16, EventMode::Flags);
}
