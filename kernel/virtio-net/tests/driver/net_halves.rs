//! The device in three parts: what sends, what receives, and the rest.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use virtio_net::interrupt::InterruptState;
use virtio_net::net::{Features, NetError, Options, RxHalf, TakenPair, TxHalf, VirtioNet};
use virtio_net::transport::adapter::Adapter;
use virtio_net::transport::any::AnyTransport;
use virtio_net::vectors::{NoInterrupts, Rung};

use crate::support::inert::{InertTransport, Notes, QUEUE_SIZE};
use crate::support::memory::{GuestHal, pages_in_use};
use crate::support::net::{Machine, feature, pattern, send};

fn is_send<T: Send>(_: &T) {}

/// Configuration space that any CPU may access.
struct Anywhere;

impl ConfigurationAccess for Anywhere {
    fn read_word(&self, _: DeviceFunction, _: u8) -> u32 {
        !0
    }

    fn write_word(&mut self, _: DeviceFunction, _: u8, _: u32) {}

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

/// A kernel may keep the device in a lock of its own, whatever the transport.
#[test]
fn the_device_goes_from_cpu_to_cpu() {
    is_send(&None::<VirtioNet<GuestHal, AnyTransport<GuestHal, Anywhere>>>);
}

/// Each works while the others are locked or elsewhere, with the device's model
/// as the witness.
#[test]
fn the_halves_of_the_first_pair_work_apart() {
    let mut machine = Machine::new(feature::IMPLEMENTED, 16);
    let mut net = machine.open();
    let (mut rx, mut tx) = net.take_pair(0).unwrap().halves();
    is_send(&rx);
    is_send(&tx);
    let away = NetError::NoSuchPair { number: 0 };
    assert_eq!(net.queues().err(), Some(away));
    assert_eq!(net.take_pair(0).err(), Some(away));
    assert!(!net.can_transmit());
    net.kick();
    net.poll().unwrap();
    // The control half does what it did.
    net.set_mac_address([2, 0, 0, 0, 0, 9]).unwrap();

    assert!(machine.receive(&pattern(1, 60)));
    assert!(rx.has_work());
    rx.begin_poll().unwrap();
    assert_eq!(*rx.receive().unwrap(), *pattern(1, 60));
    rx.kick();
    assert!(!rx.enable_interrupts_after(0));

    let mut slot = tx.reserve().unwrap();
    slot.frame_mut(60).copy_from_slice(&pattern(2, 60));
    slot.start_xmit(60);
    assert!(tx.kick());
    assert_eq!(machine.run_transmit()[0].frame, pattern(2, 60));
    assert_eq!(net.stats().tx_packets, 0, "it is elsewhere");

    let Ok(pair) = TakenPair::join(rx, tx) else {
        panic!("they were one pair");
    };
    net.give_back(pair);
    assert_eq!(net.stats().tx_packets, 1);
    assert!(net.can_transmit() && send(&mut net, &pattern(3, 60)));
    net.kick();
    assert_eq!(machine.run_transmit()[0].frame, pattern(3, 60));

    // Halves of another time do not fit.
    let (old_rx, old_tx) = net.take_pair(0).unwrap().halves();
    net.open(&mut machine.controller, Rung::MsixPerQueue)
        .unwrap();
    let (rx, tx) = net.take_pair(0).unwrap().halves();
    let Err((rx, old_tx)) = TakenPair::join(rx, old_tx) else {
        panic!("two openings");
    };
    let join = |rx, tx| TakenPair::join(rx, tx).unwrap_or_else(|_| panic!("one pair"));
    net.give_back(join(rx, tx));
    assert!(send(&mut net, &pattern(4, 60)));
    net.stop(&mut machine.controller);
    net.give_back(join(old_rx, old_tx));
    drop(net);
    machine.assert_nothing_left();
}

/// Room is told without a change: it is there again when the device has used
/// frames, before anybody has reclaimed them.
#[test]
fn whether_a_frame_can_be_sent_is_asked_of_a_shared_reference() {
    let mut machine = Machine::new(feature::ALL, 16);
    let mut net = machine.open();
    for number in 0..16 {
        assert!(net.can_transmit());
        assert!(send(&mut net, &pattern(number, 60)));
    }
    assert!(!net.can_transmit());
    net.kick();
    assert_eq!(machine.run_transmit().len(), 16);
    assert!(net.can_transmit());
    assert!(send(&mut net, &pattern(16, 60)));
}

/// A kernel with a lock around each part: three threads work at once, and a buffer
/// that one has filled another one sends.
#[test]
fn each_part_has_a_lock_of_its_own() {
    let notes: &Notes = Box::leak(Box::default());
    {
        let offered = Features::VERSION_1 | Features::EVENT_IDX;
        let transport = Adapter::new(InertTransport {
            offered: offered.bits() as u64,
            notes,
        });
        let state: &InterruptState = Box::leak(Box::default());
        let net = VirtioNet::<GuestHal, _>::probe(transport, Options::default(), state);
        let mut net = net.unwrap();
        net.open(&mut NoInterrupts, Rung::Polling).unwrap();
        let (rx, mut tx) = net.take_pair(0).unwrap().halves();
        let mut buffer = tx.take_buffer().unwrap();
        buffer.frame_mut(60).copy_from_slice(&pattern(0, 60));
        let (rx, tx): (Mutex<RxHalf<_, _>>, Mutex<TxHalf<_, _>>) = (Mutex::new(rx), Mutex::new(tx));
        let net = Mutex::new(net);
        std::thread::scope(|scope| {
            let receiving = rx.lock().unwrap();
            let tx = &tx;
            scope.spawn(move || {
                let mut tx = tx.lock().unwrap();
                assert!(tx.xmit_buffer(buffer, 60, None).is_ok());
                for number in 1..usize::from(QUEUE_SIZE) {
                    let mut slot = tx.reserve().unwrap();
                    slot.frame_mut(60).copy_from_slice(&pattern(number, 60));
                    slot.start_xmit(60);
                }
                assert!(!tx.can_transmit() && tx.kick());
            });
            scope.spawn(|| net.lock().unwrap().poll().unwrap());
            drop(receiving);
        });
        assert_ne!(notes.notified.load(Ordering::Relaxed) & 0b10, 0);
        let (rx, tx) = (rx.into_inner().unwrap(), tx.into_inner().unwrap());
        let pair = TakenPair::join(rx, tx).unwrap_or_else(|_| panic!("one pair"));
        net.lock().unwrap().give_back(pair);
    }
    assert_eq!(pages_in_use(), 0);
}
