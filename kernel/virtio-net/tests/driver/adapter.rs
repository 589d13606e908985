//! Transports of `virtio-drivers`, and what an embedder need not have as a
//! `static`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::yield_now;

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use virtio_net::doorbell::Notify;
use virtio_net::interrupt::InterruptState;
use virtio_net::net::{Features, Options, VirtioNet};
use virtio_net::transport::adapter::{Adapter, Bell};
use virtio_net::transport::{ConfigOps, RingAddresses};
use virtio_net::vectors::{NoInterrupts, Rung};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::support::inert::{InertTransport, Notes};
use crate::support::memory::{GuestHal, pages_in_use};
use crate::support::net::pattern;

/// The driver over a transport that borrows, with interrupts noted down in a
/// structure of the kernel's; a pair sends from another thread, by the same
/// transport.
#[test]
fn a_borrowing_transport_kicks_from_any_thread() {
    let notes = Notes::default();
    let interrupts = Arc::new(InterruptState::new());
    let offered = Features::VERSION_1 | Features::CTRL_VQ | Features::MAC | Features::CSUM;
    {
        let offered = offered.bits() as u64;
        let transport = InertTransport {
            offered,
            notes: &notes,
        };
        let transport = Adapter::new(transport);
        let state = Arc::clone(&interrupts);
        let mut net =
            VirtioNet::<GuestHal, _, _>::probe(transport, Options::default(), state).unwrap();
        net.set_control_patience(1);
        net.open(&mut NoInterrupts, Rung::MsixPerQueue).unwrap();
        assert_eq!(net.rung(), Some(Rung::Polling));
        assert_eq!(notes.queues.load(Ordering::Relaxed), 0b111);
        assert_eq!(notes.notified.swap(0, Ordering::Relaxed) & 0b11, 0b01);
        interrupts.vp_config_changed();
        net.poll().unwrap();
        assert!(!interrupts.take_config_changed(), "poll looked at it");
        std::thread::scope(|scope| {
            let (first, _) = net.split();
            let pair = first.unwrap();
            scope.spawn(move || {
                let (_, tx) = pair.queues();
                let mut slot = tx.reserve().unwrap();
                slot.frame_mut(60).copy_from_slice(&pattern(1, 60));
                slot.start_xmit(60);
                assert!(tx.kick());
            });
        });
        assert_eq!(notes.notified.load(Ordering::Relaxed), 0b10);
        assert_eq!(net.stats().interrupts, 1);
    }
    assert_eq!(notes.status.load(Ordering::Relaxed), 0, "it was reset");
    let agreed = notes.features.load(Ordering::Relaxed).into();
    let agreed = Features::from_bits_retain(agreed);
    assert_eq!(agreed, offered - Features::CSUM);
    assert_eq!(pages_in_use(), 0);
}

/// What [`Watched`] tells.
#[derive(Default)]
struct Watch {
    /// Somebody has the transport.
    busy: AtomicBool,
    /// How often each queue was notified.
    notified: [AtomicU64; 2],
    /// What the transport's next call is interrupted by.
    interrupt: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

/// A transport that nobody may use at the same time, and whose calls can be interrupted.
struct Watched<'n>(InertTransport<'n>, Arc<Watch>);

impl Watched<'_> {
    fn alone<R>(&self, work: impl FnOnce() -> R) -> R {
        assert!(!self.1.busy.swap(true, Ordering::Relaxed), "two at a time");
        let interrupt = self.1.interrupt.lock().unwrap().take();
        if let Some(handler) = interrupt {
            handler();
        }
        let result = work();
        self.1.busy.store(false, Ordering::Relaxed);
        result
    }
}

impl Transport for Watched<'_> {
    fn device_type(&self) -> DeviceType {
        self.0.device_type()
    }
    fn read_device_features(&mut self) -> u64 {
        self.0.read_device_features()
    }
    fn write_driver_features(&mut self, features: u64) {
        self.0.write_driver_features(features);
    }
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.max_queue_size(queue)
    }
    fn notify(&mut self, queue: u16) {
        let count = &self.1.notified[usize::from(queue)];
        self.alone(|| count.fetch_add(1, Ordering::Relaxed));
    }
    fn get_status(&self) -> DeviceStatus {
        self.alone(|| self.0.get_status())
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.0.set_status(status);
    }
    fn set_guest_page_size(&mut self, size: u32) {
        self.0.set_guest_page_size(size);
    }
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(&mut self, queue: u16, size: u32, a: PhysAddr, b: PhysAddr, c: PhysAddr) {
        self.0.queue_set(queue, size, a, b, c);
    }
    fn queue_unset(&mut self, queue: u16) {
        self.0.queue_unset(queue);
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.queue_used(queue)
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.0.ack_interrupt()
    }
    fn read_config_generation(&self) -> u32 {
        0
    }
    fn read_config_space<V: FromBytes + IntoBytes>(&self, offset: usize) -> Result<V, Error> {
        self.0.read_config_space(offset)
    }
    fn write_config_space<V: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: V,
    ) -> Result<(), Error> {
        self.0.write_config_space(offset, value)
    }
}

/// An adapter with two queues, their bells, and what is seen of it.
fn watched(notes: &Notes) -> (Adapter<Watched<'_>>, [Bell<Watched<'_>>; 2], Arc<Watch>) {
    let watch = Arc::new(Watch::default());
    let inert = InertTransport { offered: 0, notes };
    let mut adapter = Adapter::new(Watched(inert, Arc::clone(&watch)));
    let rings = RingAddresses {
        size: 2,
        descriptors: 0x1000,
        driver: 0x2000,
        device: 0x3000,
    };
    let bells = [0, 1].map(|queue| adapter.setup_queue(queue, rings).unwrap());
    (adapter, bells, watch)
}

impl Watch {
    fn notified(&self) -> [u64; 2] {
        self.notified
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed))
    }
}

/// A handler that interrupts who has the transport kicks without waiting for it, which
/// would be for ever; the device is told when the transport is free again.
#[test]
fn a_kick_in_the_middle_of_another_access_is_not_lost() {
    let notes: &Notes = Box::leak(Box::default());
    let (adapter, [rx, tx], watch) = watched(notes);
    let interrupt_with = |handler: Box<dyn FnOnce() + Send>| {
        *watch.interrupt.lock().unwrap() = Some(handler);
    };
    let (bell, seen) = (tx.clone(), Arc::clone(&watch));
    interrupt_with(Box::new(move || {
        bell.ring();
        assert_eq!(seen.notified(), [0, 0], "it is another's turn");
    }));
    let _ = adapter.get_status();
    // Who had the transport does not know which it was.
    assert_eq!(watch.notified(), [1, 1]);

    // In the middle of a kick, and of the notifications after one.
    let (first, second, hooks) = (tx.clone(), rx.clone(), Arc::clone(&watch));
    interrupt_with(Box::new(move || {
        first.ring();
        *hooks.interrupt.lock().unwrap() = Some(Box::new(move || second.ring()));
    }));
    rx.ring();
    assert_eq!(watch.notified(), [1 + 3, 1 + 2]);
    tx.ring();
    assert_eq!(watch.notified(), [4, 4], "one kick is one notification");
}

/// Every kick of three threads is followed by a notification of its queue, and never
/// do two of them have the transport.
#[test]
fn kicks_from_everywhere_arrive() {
    const KICKS: u64 = 20_000;
    let notes: &Notes = Box::leak(Box::default());
    let (adapter, bells, watch) = watched(notes);
    std::thread::scope(|scope| {
        for bell in &bells {
            let (bell, watch) = (bell.clone(), &watch);
            scope.spawn(move || {
                let count = &watch.notified[usize::from(bell.queue())];
                for _ in 0..KICKS {
                    let before = count.load(Ordering::Relaxed);
                    bell.ring();
                    let told = || count.load(Ordering::Relaxed) != before;
                    let waited = (0..1 << 24).find(|_| told() || (yield_now(), false).1);
                    assert!(waited.is_some(), "the kick was lost");
                }
            });
        }
        for _ in 0..KICKS {
            let _ = adapter.get_status();
        }
    });
    assert!(watch.notified().iter().all(|count| *count >= KICKS));
}
