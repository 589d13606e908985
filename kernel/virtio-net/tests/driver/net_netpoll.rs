//! Last words: the device is taken from its driver in whatever state that is.

use virtio_net::net::NetError;
use virtio_net::queue::{BrokenReason, QueueError};
use virtio_net::transport::TransportError;
use virtio_net::vectors::Rung;

use crate::support::faults::{self, Step};
use crate::support::memory::{GuestHal, pages_in_use};
use crate::support::net::{Machine, TX, feature, pattern, send};
use crate::support::transport::Bell;

/// Takes the device away while its transmit queue is full of frames.
fn take(machine: &mut Machine) -> virtio_net::net::LastWords<GuestHal, Bell> {
    let mut net = machine.open();
    let reserve = net.netpoll().unwrap();
    while send(&mut net, &pattern(7, 900)) {}
    let before = pages_in_use();
    faults::plan_every(Step::Memory);
    let last_words = net.poll_controller(reserve).unwrap();
    assert_eq!(faults::take_strikes(), [], "it asked for memory");
    assert_eq!(pages_in_use(), before, "it gave memory back");
    std::mem::forget(net);
    last_words
}

#[test]
fn frames_leave_whatever_the_queues_hold() {
    for offered in [0, feature::IMPLEMENTED, feature::ALL & !feature::ANY_LAYOUT] {
        for size in [2, 16, 256] {
            let mut machine = Machine::new(offered, size);
            let mut last_words = take(&mut machine);
            machine.device().sends_at_once = true;
            for number in 0..40 {
                let frame = pattern(number, 60 + 30 * number);
                let (head, tail) = frame.split_at(14);
                last_words.send(&[head, &[], tail]).unwrap();
                let sent = std::mem::take(&mut machine.device().sent_at_once);
                assert_eq!(sent.len(), 1);
                assert_eq!(sent[0].frame, frame);
                assert!(sent[0].header.iter().all(|byte| *byte == 0));
            }
            last_words.send(&[&[1, 2, 3]]).unwrap();
            let sent = std::mem::take(&mut machine.device().sent_at_once);
            assert_eq!(sent[0].frame.len(), 60);
            assert_eq!(sent[0].frame[..4], [1, 2, 3, 0]);
            last_words.send(&[&[9; 10_000]]).unwrap();
            let sent = std::mem::take(&mut machine.device().sent_at_once);
            assert_eq!(sent[0].frame, [9; 4080]);
            assert!(machine.device().interrupts.is_empty());
            assert_eq!(machine.device().violations, [] as [String; 0]);
        }
    }
}

#[test]
fn a_device_that_sends_nothing_is_given_up() {
    let mut machine = Machine::new(feature::IMPLEMENTED, 16);
    let mut last_words = take(&mut machine);
    let kicks = machine.device().queues[TX].kicks;
    assert_eq!(last_words.send(&[&[1; 60]]), Err(NetError::NotSent));
    assert_eq!(machine.device().queues[TX].kicks, kicks + 1);
    // It is not even told of another one.
    assert_eq!(last_words.send(&[&[2; 60]]), Err(NetError::NotSent));
    assert_eq!(machine.device().queues[TX].kicks, kicks + 1);
}

#[test]
fn a_liar_is_given_up() {
    let mut machine = Machine::new(feature::IMPLEMENTED, 16);
    let mut last_words = take(&mut machine);
    machine.device().scribble_used(TX, 2, 7);
    assert_eq!(
        last_words.send(&[&[1; 60]]),
        Err(NetError::Queue(QueueError::Broken {
            queue: 1,
            reason: BrokenReason::UsedIndex {
                used_idx: 7,
                last_used_idx: 0,
                outstanding: 1
            }
        }))
    );
}

#[test]
fn a_device_that_is_not_to_be_reset_is_an_error() {
    let mut machine = Machine::new(feature::IMPLEMENTED, 16);
    let mut net = machine.open();
    let reserve = net.netpoll().unwrap();
    let before = pages_in_use();
    faults::plan_every(Step::Reset);
    let error = net.poll_controller(reserve).err();
    faults::take_strikes();
    assert!(matches!(
        error,
        Some(NetError::Transport(TransportError::ResetTimeout { .. }))
    ));
    assert_eq!(pages_in_use(), before);
}

/// A reserve that was never needed is given back.
#[test]
fn a_reserve_costs_nothing_when_it_is_dropped() {
    let mut machine = Machine::new(feature::IMPLEMENTED, 16);
    let mut net = machine.probe().unwrap();
    drop(net.netpoll().unwrap());
    net.open(&mut machine.controller, Rung::Polling).unwrap();
    let reserve = net.netpoll().unwrap();
    net.stop(&mut machine.controller);
    drop(reserve);
    drop(net);
    machine.assert_nothing_left();
}
