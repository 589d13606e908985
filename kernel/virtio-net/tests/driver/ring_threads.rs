//! Driver and device on two CPUs. The only tests in which a missing store-load
//! barrier can show: each side stores its own index and then reads the other's
//! wish, and if both reads overtake the stores, one sleeps for ever. The two
//! must meet within some ten nanoseconds, so the one that does not sleep
//! spins, and waits a little longer every time.
//!
//! In a debug build the steps of the device take longer than a store can hide:
//! there these tests only show that two threads work together. With
//! `--release` and two CPUs to themselves they find a missing barrier.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;
use virtio_net::queue::QueueRing;

use virtio_net::queue::{EventMode, PositionalRing, RingShape, SlotBuffers};

use crate::support::memory::GuestHal;
use crate::support::ring::{DeviceEnd, shapes};

/// Longer than any scheduler keeps a thread waiting.
const PATIENCE: Duration = Duration::from_secs(10);

/// Chains that go through the ring in each direction of the race.
const CHAINS: usize = if cfg!(debug_assertions) {
    5_000
} else {
    50_000
};

/// Who sleeps when there is nothing to do; the other side spins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sleeper {
    Driver,
    Device,
}

/// Lets some nanoseconds go by, other ones every time.
fn jitter(round: usize) {
    for _ in 0..round % 61 {
        spin_loop();
    }
}

/// The device's end.
struct Device {
    end: DeviceEnd,
    sleeper: Sleeper,
    kicks: Receiver<()>,
    interrupts: Sender<()>,
}

impl Device {
    /// Uses a chain and interrupts if it must.
    fn use_chain(&mut self, head: u16) {
        self.end.give_back(head, 8);
        if self.end.must_interrupt() {
            // A driver that is through listens no more.
            let _ = self.interrupts.send(());
        }
    }

    /// Uses every chain until told to stop, or until it slept for too long.
    fn run(&mut self, stop: &AtomicBool) -> Result<(), &'static str> {
        self.end.disable_notification();
        for round in 0.. {
            while let Some((head, _)) = self.end.take() {
                if self.sleeper == Sleeper::Driver {
                    jitter(round);
                }
                self.use_chain(head);
            }
            if stop.load(Ordering::Acquire) {
                break;
            }
            if self.sleeper == Sleeper::Device && !self.end.enable_notification() {
                if self.kicks.recv_timeout(PATIENCE).is_err() {
                    return Err("a kick was lost");
                }
                self.end.disable_notification();
            }
        }
        Ok(())
    }
}

/// The driver's end: keeps the ring full until enough chains went through.
fn drive(
    driver: &mut PositionalRing<GuestHal>,
    sleeper: Sleeper,
    kicks: &Sender<()>,
    interrupts: &Receiver<()>,
    has_given_up: impl Fn() -> bool,
) {
    let mut popped = 0;
    while popped < CHAINS {
        driver.disable_interrupts();
        while let Some(used) = driver.pop_used().unwrap() {
            assert_eq!(used.length, 8);
            popped += 1;
        }
        if driver.free() == 0 {
            assert!(!has_given_up(), "the device has given up");
        }
        driver.refill();
        if driver.has_unpublished() {
            if sleeper == Sleeper::Device {
                jitter(popped);
            }
            if driver.publish() {
                // A device that has given up is noticed above.
                let _ = kicks.send(());
            }
        }
        if sleeper == Sleeper::Driver && !driver.enable_interrupts_after(0) {
            // Interrupts of the past wake early, which costs a look.
            interrupts
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|error| panic!("no interrupt after {popped} chains: {error}"));
        }
    }
}

fn race(size: u16, shape: RingShape, sleeper: Sleeper) {
    let mut driver = PositionalRing::new(7, size.into(), shape).unwrap();
    let buffers = SlotBuffers {
        header: 0,
        capacity: 8,
        apart: false,
        writable: true,
    };
    // SAFETY: the device of this test does not touch buffers.
    unsafe { driver.prepare(size, buffers, |_| 0x1000) };
    let end = DeviceEnd::new(&driver, shape);
    let (kick, kicks) = channel();
    let (interrupt, interrupts) = channel();
    let mut device = Device {
        end,
        sleeper,
        kicks,
        interrupts: interrupt,
    };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        let device = scope.spawn(move || device.run(stop));
        // However `drive` ends, the device must.
        let driven = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            drive(&mut driver, sleeper, &kick, &interrupts, || {
                device.is_finished()
            });
        }));
        stop.store(true, Ordering::Release);
        let _ = kick.send(());
        device.join().unwrap().unwrap();
        driven.unwrap();
    });
}

/// The shapes that tell of events in this way, in either layout.
fn by(mode: EventMode) -> impl Iterator<Item = RingShape> {
    shapes().into_iter().filter(move |shape| shape.mode == mode)
}

#[test]
fn no_kick_is_lost_by_event_index() {
    by(EventMode::EventIdx).for_each(|shape| race(1, shape, Sleeper::Device));
}

#[test]
fn no_kick_is_lost_by_flags() {
    by(EventMode::Flags).for_each(|shape| race(1, shape, Sleeper::Device));
}

#[test]
fn no_interrupt_is_lost_by_event_index() {
    by(EventMode::EventIdx).for_each(|shape| race(1, shape, Sleeper::Driver));
}

#[test]
fn no_interrupt_is_lost_by_flags() {
    by(EventMode::Flags).for_each(|shape| race(1, shape, Sleeper::Driver));
}

#[test]
fn nothing_is_lost_with_several_chains() {
    for shape in by(EventMode::EventIdx) {
        race(16, shape, Sleeper::Device);
        race(16, shape, Sleeper::Driver);
    }
}
