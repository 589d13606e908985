//! A device that breaks down, lies, or changes its mind.

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use virtio_net::net::{Changes, MAX_FRAME, NetError};
use virtio_net::queue::{BrokenReason, QueueError};
use virtio_net::transport::TransportError;
use virtio_net::vectors::Rung;
use vm_memory::{Bytes, GuestAddress};

use crate::support::device::status;
use crate::support::memory::guest_memory;
use crate::support::net::{HEADER, Machine, Net, RX, TX, feature, pattern, receive_all, send};

/// Traffic both ways works.
fn assert_alive(machine: &Machine, net: &mut Net) {
    assert_eq!(net.poll(), Ok(Changes::empty()));
    assert!(send(net, &pattern(1, 300)));
    net.kick();
    assert_eq!(machine.run_transmit()[0].frame, pattern(1, 300));
    assert!(machine.receive(&pattern(2, 400)));
    assert_eq!(receive_all(net), [pattern(2, 400)]);
    net.kick();
}

/// Opened again it works, and it can be opened once more.
fn assert_opens_again(machine: &mut Machine, net: &mut Net) {
    let top = Rung::MsixPerQueue;
    net.open(&mut machine.controller, top).unwrap();
    assert_alive(machine, net);
    net.open(&mut machine.controller, top).unwrap();
}

fn jumped(queue: u16, outstanding: u16) -> NetError {
    NetError::Queue(QueueError::Broken {
        queue,
        reason: BrokenReason::UsedIndex {
            used_idx: 0x4000,
            last_used_idx: 0,
            outstanding,
        },
    })
}

#[test]
fn a_broken_receive_queue_is_reported_and_opened_again() {
    let mut machine = Machine::new(feature::ALL, 16);
    let mut net = machine.open();
    for life in 1..=3 {
        machine.device().scribble_used(RX, 2, 0x4000);
        assert_eq!(net.poll(), Ok(Changes::empty()), "nobody has looked yet");
        assert!(receive_all(&mut net).is_empty());
        assert!(net.enable_interrupts(), "it must not sleep");
        for _ in 0..3 {
            assert_eq!(net.poll(), Err(jumped(0, 16)));
            assert!(receive_all(&mut net).is_empty());
        }
        assert_eq!(net.stats().rx_errors, life);
        assert_eq!(net.stats().tx_errors, 0);
        assert_opens_again(&mut machine, &mut net);
    }
    machine.assert_no_violation();
}

#[test]
fn a_broken_transmit_queue_is_reported_and_opened_again() {
    let mut machine = Machine::new(feature::ALL, 4);
    let mut net = machine.open();
    for life in 1..=3 {
        for _ in 0..4 {
            assert!(send(&mut net, &[0; 60]));
        }
        machine.device().scribble_used(TX, 2, 0x4000);
        assert!(
            !send(&mut net, &[0; 60]),
            "there is no room and never will be"
        );
        assert!(net.enable_interrupts(), "it must not sleep");
        let error = net.poll().unwrap_err();
        assert!(
            matches!(
                error,
                NetError::Queue(QueueError::Broken {
                    queue: 1,
                    reason: BrokenReason::UsedIndex {
                        used_idx: 0x4000,
                        ..
                    }
                })
            ),
            "{error}"
        );
        assert_eq!(net.poll(), Err(error));
        assert_eq!(net.stats().tx_errors, life);
        assert_eq!(net.stats().rx_errors, 0);
        assert_opens_again(&mut machine, &mut net);
    }
    machine.assert_no_violation();
}

/// A broken transmit queue takes no more frames, even with slots that were
/// free when it broke.
#[test]
fn a_broken_transmit_queue_takes_nothing() {
    let mut machine = Machine::new(feature::ALL, 4);
    let mut net = machine.open();
    machine.device().scribble_used(TX, 2, 0x4000);
    net.queues().unwrap().1.reclaim();
    for _ in 0..5 {
        assert!(!send(&mut net, &[0; 60]));
    }
    assert_eq!(net.poll(), Err(jumped(1, 0)));
    assert_eq!(net.stats().tx_packets, 0);
}

#[test]
fn a_received_length_beyond_the_buffer_breaks_the_queue() {
    for offered in [feature::ANY_LAYOUT, 0] {
        let mut machine = Machine::new(offered, 16);
        let mut net = machine.open();
        // The whole buffer.
        let writable = 2048;
        let (head, _) = machine.device().next_chain(RX).unwrap();
        machine.device().use_chain(RX, head, writable);
        assert_eq!(receive_all(&mut net)[0].len(), 2048 - HEADER);
        let (head, _) = machine.device().next_chain(RX).unwrap();
        machine.device().use_chain(RX, head, writable + 1);
        assert!(receive_all(&mut net).is_empty());
        assert_eq!(
            net.poll(),
            Err(NetError::Queue(QueueError::Broken {
                queue: 0,
                reason: BrokenReason::LengthTooLong {
                    id: head,
                    length: writable + 1,
                    writable
                }
            }))
        );
        assert_eq!(net.stats().rx_packets, 1);
    }
}

/// Frames in front of a lie are handed on, also those in front of the end of the ring,
/// and nothing after it: the queue says what was wrong, and works once it is opened again.
#[test]
fn a_lie_in_the_middle_of_a_batch_breaks_the_queue() {
    const SIZE: u16 = 16;
    const FRAMES: u16 = 9;
    for first in [0, 4, 10, 15] {
        for lie in 0..FRAMES {
            let at = (first + lie) % SIZE;
            let before = (at + SIZE - 1) % SIZE;
            // Half a word of the entry, and what it is then.
            for (half, value) in [(0, SIZE), (0, 0xffff), (0, before), (2, 1), (6, 1)] {
                if lie == 0 && value == before {
                    // The device has that again, and may use it early.
                    continue;
                }
                for most in [1, 4, 32] {
                    let mut machine = Machine::new(feature::ALL, SIZE);
                    let mut net = machine.open();
                    for number in 0..usize::from(first) {
                        assert!(machine.receive(&pattern(number, 60)));
                        assert_eq!(receive_all(&mut net).len(), 1);
                        net.kick();
                    }
                    let frames: Vec<_> = (0..FRAMES.into()).map(|n| pattern(n, 70 + n)).collect();
                    assert!(frames.iter().all(|frame| machine.receive(frame)));
                    let entry = 4 + 8 * u64::from(at);
                    let mut device = machine.device();
                    device.scribble_used(RX, entry + half, value);
                    drop(device);
                    let (rx, _) = net.queues().unwrap();
                    let mut received = Vec::new();
                    while rx.receive_batch(most, |frame| {
                        received.push(frame.to_vec());
                        true
                    }) != 0
                    {}
                    assert_eq!(received, frames[..lie.into()]);
                    let Err(NetError::Queue(QueueError::Broken { queue: 0, reason })) = net.poll()
                    else {
                        panic!("it is not broken");
                    };
                    let is_right = match (half, value) {
                        (6, _) => {
                            matches!(reason, BrokenReason::LengthTooLong { id, .. } if id == at)
                        }
                        (0, SIZE | 0xffff) | (2, _) => {
                            matches!(reason, BrokenReason::IdOutOfRange { size: SIZE, .. })
                        }
                        // It has just been used.
                        _ => {
                            matches!(reason, BrokenReason::IdNotOutstanding { id } if id == before)
                        }
                    };
                    assert!(is_right, "{reason:?}");
                    assert_eq!(net.queues().unwrap().0.receive_batch(most, |_| true), 0);
                    assert_opens_again(&mut machine, &mut net);
                }
            }
        }
    }
}

/// A device that uses, as fast as buffers come back, buffers that it was not
/// shown, does not keep `receive` busy for ever.
#[test]
fn endless_runts_end() {
    let mut machine = Machine::new(feature::ANY_LAYOUT, 4);
    let mut net = machine.open();
    // All four are used with no byte in them. Each comes back, is dropped and
    // posted again, but not published: its turn comes in the next poll.
    for _ in 0..3 {
        for _ in 0..4 {
            assert!(machine.receive_bytes(&[]));
        }
        assert!(net.queues().unwrap().0.receive().is_none());
        net.kick();
    }
    assert_eq!(net.stats().rx_dropped, 12);
    for _ in 0..4 {
        assert!(machine.receive_bytes(&[]));
    }
    machine.device().scribble_used(RX, 2, 17);
    assert!(net.queues().unwrap().0.receive().is_none());
    assert!(matches!(
        net.poll(),
        Err(NetError::Queue(QueueError::Broken {
            queue: 0,
            reason: BrokenReason::UsedIndex {
                used_idx: 17,
                last_used_idx: 12,
                outstanding: 4
            }
        }))
    ));
}

/// Its registers read as all ones: that ends each step at once, and when it is back
/// it is opened.
#[test]
fn a_device_that_is_gone_is_waited_for() {
    let gone = NetError::Transport(TransportError::Gone);
    let mut machine = Machine::new(feature::ALL, 16);
    let mut net = machine.open();
    assert_eq!(net.check_status(), Ok(()));
    let lies = machine.device().lies.clone();
    let live = machine.device().status;
    lies.status.store(!live, Ordering::Relaxed);
    assert_eq!(net.check_status(), Err(gone));
    assert_eq!(net.look_at_config(), Err(gone));
    // What is written does not arrive.
    lies.status.store(0xff, Ordering::Relaxed);
    let before = machine.device().accesses;
    for _ in 0..3 {
        let opened = net.open(&mut machine.controller, Rung::MsixPerQueue);
        assert_eq!(opened, Err(gone));
        assert_eq!(net.poll(), Err(NetError::NotOpen));
    }
    assert!(machine.device().accesses < before + 30);
    lies.end();
    net.open(&mut machine.controller, Rung::MsixPerQueue)
        .unwrap();
    assert_alive(&machine, &mut net);
}

#[test]
fn a_device_that_asks_for_a_reset_gets_it() {
    for rung in [Rung::MsixPerQueue, Rung::MsixShared, Rung::Intx] {
        let mut machine = Machine::new(feature::ALL, 16);
        let mut net = machine.probe().unwrap();
        for _ in 0..3 {
            net.open(&mut machine.controller, rung).unwrap();
            assert_alive(&machine, &mut net);
            machine.device().status |= status::NEEDS_RESET;
            machine.device().interrupt_for_config();
            machine.deliver();
            assert_eq!(net.poll(), Err(NetError::NeedsReset));
        }
        net.open(&mut machine.controller, rung).unwrap();
        assert_eq!(machine.device().status & status::NEEDS_RESET, 0);
        assert_alive(&machine, &mut net);
        machine.assert_no_violation();
    }
}

#[test]
fn the_link_goes_down_and_up() {
    for rung in [Rung::MsixPerQueue, Rung::MsixShared, Rung::Intx] {
        let mut machine = Machine::new(feature::ALL, 16);
        let mut net = machine.probe().unwrap();
        net.open(&mut machine.controller, rung).unwrap();
        for (byte, changed, up) in [
            (1, false, true),
            (0, true, false),
            (0, false, false),
            (3, true, true),
            (1, false, true),
        ] {
            machine.change_config(6, &[byte]);
            assert_eq!(net.info().link_up, up ^ changed, "before the interrupt");
            machine.deliver();
            let changed = if changed {
                Changes::LINK
            } else {
                Changes::empty()
            };
            assert_eq!(net.poll(), Ok(changed), "status {byte}");
            assert_eq!(net.info().link_up, up);
            assert_eq!(net.poll(), Ok(Changes::empty()), "reported twice");
        }
        assert_alive(&machine, &mut net);
    }
}

/// The interrupt of a change that comes after the poll wakes nobody who goes to
/// sleep then; and a device that is not live yet has none.
#[test]
fn no_change_of_the_link_is_slept_through() {
    for rung in [Rung::MsixPerQueue, Rung::MsixShared, Rung::Intx] {
        let mut machine = Machine::new(feature::ALL, 16);
        let mut net = machine.probe().unwrap();
        net.open(&mut machine.controller, rung).unwrap();
        assert_eq!(net.poll(), Ok(Changes::empty()));
        assert!(!net.enable_interrupts());
        assert_eq!(net.poll(), Ok(Changes::empty()));
        machine.change_config(6, &[0]);
        machine.deliver();
        assert!(net.enable_interrupts(), "there is something to do");
        assert_eq!(net.poll(), Ok(Changes::LINK));
        assert!(!net.enable_interrupts());

        net.stop(&mut machine.controller);
        machine.change_config(6, &[1]);
        machine.deliver();
        net.open(&mut machine.controller, rung).unwrap();
        assert!(net.enable_interrupts());
        assert_eq!(net.poll(), Ok(Changes::LINK));
        assert!(net.info().link_up);
        assert_alive(&machine, &mut net);
    }
}

/// Without `VIRTIO_NET_F_STATUS` the field means nothing.
#[test]
fn a_link_that_was_not_negotiated_stays_up() {
    let mut machine = Machine::new(feature::ALL & !feature::STATUS, 16);
    let mut net = machine.open();
    machine.change_config(6, &[0]);
    machine.deliver();
    assert_eq!(net.poll(), Ok(Changes::empty()));
    assert!(net.info().link_up);
}

/// A device may offer other features after a reset.
#[test]
fn features_are_agreed_anew_at_open() {
    let mut machine = Machine::new(feature::ALL, 16);
    let mut net = machine.open();
    assert_alive(&machine, &mut net);
    machine.device().offered = 0;
    net.open(&mut machine.controller, Rung::MsixPerQueue)
        .unwrap();
    assert_eq!(machine.device().features, 0);
    assert_eq!(net.info().negotiated.bits(), 0);
    assert_alive(&machine, &mut net);
    assert!(send(&mut net, &[0; 60]));
    net.kick();
    assert_eq!(machine.run_transmit()[0].descriptors, [10, 60]);
}

/// What the device writes while the driver works.
#[derive(Clone, Debug)]
enum Step {
    Send,
    Poll,
    Serve,
    Scribble {
        queue: bool,
        at: prop::sample::Index,
        bytes: Vec<u8>,
    },
    UsedIndex {
        queue: bool,
        ahead: u16,
    },
    Config {
        at: prop::sample::Index,
        byte: u8,
    },
    NeedsReset,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop::collection::vec(any::<u8>(), 1..40);
    prop_oneof![
        4 => Just(Step::Send),
        6 => Just(Step::Poll),
        4 => Just(Step::Serve),
        3 => (any::<bool>(), any::<prop::sample::Index>(), bytes)
            .prop_map(|(queue, at, bytes)| Step::Scribble { queue, at, bytes }),
        2 => (any::<bool>(), 0..20u16)
            .prop_map(|(queue, ahead)| Step::UsedIndex { queue, ahead }),
        1 => (any::<prop::sample::Index>(), any::<u8>())
            .prop_map(|(at, byte)| Step::Config { at, byte }),
        1 => Just(Step::NeedsReset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Random writes to rings and configuration: never a panic, never a frame
    /// beyond its buffer; and opened again, an honest device works.
    #[test]
    fn a_device_gone_mad_is_survived(
        any_layout: bool,
        event_idx: bool,
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut offered = feature::MAC | feature::STATUS | feature::MTU;
        offered |= if any_layout { feature::ANY_LAYOUT } else { 0 };
        offered |= if event_idx { feature::EVENT_IDX } else { 0 };
        let mut machine = Machine::new(offered, 8);
        let mut net = machine.open();
        for step in steps {
            match step {
                Step::Send => {
                    send(&mut net, &pattern(1, 100));
                }
                Step::Poll => {
                    machine.deliver();
                    match net.poll() {
                        Ok(_) => {
                            for frame in receive_all(&mut net) {
                                prop_assert!(frame.len() <= MAX_FRAME);
                            }
                            net.queues().unwrap().1.reclaim();
                            net.kick();
                            let _ = net.enable_interrupts();
                        }
                        Err(_) => net.open(&mut machine.controller, Rung::MsixPerQueue).unwrap(),
                    }
                }
                Step::Serve => machine.serve_blindly(),
                Step::Scribble { queue, at, bytes } => {
                    let (start, length) = machine.ring_memory(queue.into());
                    let at = at.index(length);
                    let bytes = &bytes[..bytes.len().min(length - at)];
                    guest_memory()
                        .write_slice(bytes, GuestAddress(start + at as u64))
                        .unwrap();
                }
                Step::UsedIndex { queue, ahead } => {
                    let snapshot = net.snapshots().nth(queue.into()).unwrap();
                    let index = snapshot.last_used_idx.wrapping_add(ahead);
                    machine.device().scribble_used(queue.into(), 2, index);
                }
                Step::Config { at, byte } => {
                    machine.change_config(at.index(12), &[byte]);
                }
                Step::NeedsReset => {
                    machine.device().status |= status::NEEDS_RESET;
                    machine.device().interrupt_for_config();
                }
            }
        }
        machine.deliver();
        net.open(&mut machine.controller, Rung::MsixPerQueue).unwrap();
        let _ = net.poll();
        assert_alive(&machine, &mut net);
        drop(net);
        machine.assert_nothing_left();
    }
}
