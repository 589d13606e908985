//! Queues that safe code has put elsewhere than they belong: the driver lends
//! `&mut` to them, so they can be swapped. No device may write what it does not
//! have any more.

use std::mem::swap;
use std::sync::Arc;

use virtio_net::interrupt::InterruptState;
use virtio_net::net::{Features, Options, VirtioNet};
use virtio_net::transport::adapter::Adapter;
use virtio_net::vectors::{NoInterrupts, Rung};
use virtio_queue::QueueT;

use crate::support::inert::InertTransport;
use crate::support::memory::{GuestHal, is_allocated, pages_in_use};
use crate::support::net::{Machine, Net, RX, feature, high, pattern};
use crate::support::transport::Wired;

type Inert = Wired<Adapter<InertTransport<'static>>>;
type Other = VirtioNet<GuestHal, Inert, Arc<InterruptState>>;

/// An open device that does nothing.
fn other() -> Other {
    let transport = Adapter::new(InertTransport {
        offered: Features::VERSION_1.bits() as u64,
        notes: Box::leak(Box::default()),
    });
    let transport = Wired(transport, |_| ());
    let mut net = VirtioNet::probe(transport, Options::default(), Arc::default()).unwrap();
    net.open(&mut NoInterrupts, Rung::Polling).unwrap();
    net
}

fn open(machine: &Machine) -> Net {
    let mut net = machine.probe().unwrap();
    net.open(&mut NoInterrupts, Rung::Polling).unwrap();
    net
}

/// Every ring that the device has is memory of the driver's, and so is every buffer
/// that it receives into.
fn assert_alive(machine: &Machine) {
    for (number, queue) in machine.device().queues.iter().enumerate() {
        if let Some(ring) = &queue.ring {
            for area in [ring.desc_table(), ring.avail_ring(), ring.used_ring()] {
                assert!(is_allocated(area, 64), "queue {number}: {area:#x}");
            }
        }
    }
    for number in 0..16 {
        assert!(machine.receive(&pattern(number, 60)));
    }
    machine.assert_no_violation();
}

/// Of two devices, of which one goes before the other.
#[test]
fn queues_may_be_swapped_between_devices() {
    let swaps: [fn(&mut Other, &mut Net); 4] = [
        |a, b| swap(a.queues().unwrap().0, b.queues().unwrap().0),
        |a, b| swap(a.queues().unwrap().1, b.queues().unwrap().1),
        |a, b| swap(a.pairs().next().unwrap(), b.pairs().next().unwrap()),
        |a, b| swap(a.split().0.unwrap(), b.split().0.unwrap()),
    ];
    for swap_some in swaps {
        let leaked = pages_in_use();
        let machine = Machine::new(feature::ALL, 16);
        let mut net = open(&machine);
        let own = pages_in_use() - leaked;
        let mut other = other();
        let both = pages_in_use() - leaked;
        swap_some(&mut other, &mut net);
        drop(other);
        // The model of the device takes what went back for its own.
        machine.device().violations.clear();
        assert_alive(&machine);
        assert!(pages_in_use() >= leaked + own);
        drop(net);
        let left = pages_in_use() - leaked;
        assert!(left <= own && left < both, "what was reset has gone back");
        assert_ne!(left, 0, "whose device went first is lost");
    }
}

/// Of one device, from before and after it was opened again.
#[test]
fn a_pair_of_old_may_be_swapped_with_the_present_one() {
    let machine = Machine::new(feature::ALL, 16);
    let mut net = open(&machine);
    let mut old = net.take_pair(0).unwrap();
    net.open(&mut NoInterrupts, Rung::Polling).unwrap();
    swap(&mut *old, net.pairs().next().unwrap());
    net.give_back(old);
    assert_alive(&machine);
    let live = pages_in_use();
    drop(net);
    assert!(pages_in_use() < live, "what was reset has gone back");
}

/// Of one device, whose queues are reset one by one.
#[test]
fn queues_of_two_pairs_may_be_swapped_and_reset() {
    let mut machine = Machine::hashing(feature::IMPLEMENTED, high::RING_RESET, 16);
    machine.device().offered |= feature::MQ;
    let mut net = machine.probe_refusing(Features::RSS).unwrap();
    net.set_queue_pairs(2);
    net.open(&mut machine.controller, Rung::Polling).unwrap();
    assert_eq!(net.queue_pairs(), 2);
    let mut pairs = net.pairs();
    let (one, two) = (pairs.next().unwrap(), pairs.next().unwrap());
    swap(one, two);
    drop(pairs);
    net.reset_queue(RX as u16).unwrap();
    net.reset_queue(1).unwrap();
    assert_alive(&machine);
}
