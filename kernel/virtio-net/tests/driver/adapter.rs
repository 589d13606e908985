//! Transports of `virtio-drivers`, and what an embedder need not have as a
//! `static`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_net::interrupt::InterruptState;
use virtio_net::net::{Features, Options, VirtioNet};
use virtio_net::transport::adapter::Adapter;
use virtio_net::vectors::{NoInterrupts, Rung};

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
        // SAFETY: all that is made of it is gone by the end of this block.
        let transport = unsafe { Adapter::borrowing(transport) };
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
