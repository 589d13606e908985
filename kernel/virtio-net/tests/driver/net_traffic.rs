//! Frames through the whole driver, out and in.

use std::collections::VecDeque;

use proptest::prelude::*;
use virtio_net::net::{Changes, Features, MAX_FRAME, Stats};
use virtio_net::vectors::Rung;

use crate::support::net::{HEADER, Machine, Net, RX, TX, feature, pattern, receive_all, send};

/// What a device can offer that changes how frames travel.
const WAYS: [u32; 4] = [
    0,
    feature::ANY_LAYOUT,
    feature::EVENT_IDX,
    feature::ANY_LAYOUT | feature::EVENT_IDX,
];

/// Lengths of frames: the smallest, around an Ethernet frame's bounds, the
/// largest.
const LENGTHS: [usize; 11] = [1, 2, 13, 14, 60, 64, 65, 1513, 1514, 2031, MAX_FRAME];

#[test]
fn frames_go_out_intact_behind_a_zero_header() {
    for offered in WAYS {
        let mut machine = Machine::new(offered, 16);
        let mut net = machine.open();
        let (mut packets, mut bytes) = (0, 0);
        for round in 0..5 {
            for (number, &length) in LENGTHS.iter().enumerate() {
                let frame = pattern(number + round, length);
                assert!(send(&mut net, &frame));
                assert!(machine.run_transmit().is_empty(), "seen before the kick");
                net.kick();
                let [sent] = &machine.run_transmit()[..] else {
                    panic!("not exactly one frame of {length} bytes");
                };
                assert_eq!(sent.frame, frame);
                assert_eq!(sent.header, [0; HEADER]);
                // Specification 5.1.6.6: a descriptor of its own for the
                // header, unless any layout goes.
                let (header, length) = (HEADER as u32, length as u32);
                if offered & feature::ANY_LAYOUT != 0 {
                    assert_eq!(sent.descriptors, [header + length]);
                } else {
                    assert_eq!(sent.descriptors, [header, length]);
                }
                packets += 1;
                bytes += u64::from(length);
            }
        }
        let stats = net.stats();
        assert_eq!((stats.tx_packets, stats.tx_bytes), (packets, bytes));
        assert_eq!((stats.tx_errors, stats.tx_waited), (0, 0));
        machine.assert_no_violation();
    }
}

/// In place a frame is as it is by a copy, where its buffer is, one after the other; what
/// cannot be read there comes by a copy, and a device that lies is found out.
#[test]
fn frames_are_read_where_the_device_wrote_them() {
    for offered in WAYS.map(|way| way | feature::GUEST_CSUM) {
        let mut machine = Machine::new(offered, 8);
        let mut net = machine.open();
        let in_place = offered & feature::ANY_LAYOUT != 0;
        let (mut at, mut bytes) = (Vec::new(), 0);
        for number in 0..20 {
            let frame = pattern(number, 60 + number);
            let mut header = [0; HEADER];
            // DATA_VALID; and now and then something is asked.
            header[0] = [0, 2, 1][number % 3];
            assert!(machine.receive_behind(&header, &frame));
            let (rx, _) = net.queues().unwrap();
            // SAFETY: this device writes what it was given, and when it was.
            let mut received = unsafe { rx.receive_in_place() }.unwrap();
            assert_eq!(received.is_checksum_valid(), number % 3 != 0);
            assert_eq!(*received, frame);
            received.fill(0xee);
            bytes += received.len() as u64;
            if number % 3 != 2 {
                at.push(received.as_ptr());
            }
            // SAFETY: as above.
            assert!(unsafe { rx.receive_in_place() }.is_none());
            net.kick();
        }
        at.sort();
        at.dedup();
        assert_eq!(at.len(), if in_place { 8 } else { 1 });
        let stats = net.stats();
        assert_eq!((stats.rx_packets, stats.rx_bytes), (20, bytes));
        assert_eq!((stats.rx_dropped, stats.rx_errors), (0, 0));
        // A used index that runs away.
        machine.device().scribble_used(RX, 2, 0x4000);
        let (rx, _) = net.queues().unwrap();
        // SAFETY: as above; it writes no buffer.
        assert!(unsafe { rx.receive_in_place() }.is_none());
        assert!(net.poll().is_err());
    }
}

#[test]
fn a_frame_too_long_is_cut_at_the_buffer() {
    let mut machine = Machine::new(feature::ANY_LAYOUT, 4);
    let mut net = machine.open();
    let (_, tx) = net.queues().unwrap();
    let mut slot = tx.reserve().unwrap();
    assert_eq!(slot.frame_mut(usize::MAX).len(), MAX_FRAME);
    slot.frame_mut(MAX_FRAME).fill(9);
    slot.start_xmit(usize::MAX);
    net.kick();
    assert_eq!(machine.run_transmit()[0].frame, [9; MAX_FRAME]);
    assert_eq!(net.stats().tx_bytes, MAX_FRAME as u64);
}

/// A reserved slot that is dropped sends nothing and is not lost.
#[test]
fn a_reserved_slot_can_be_given_up() {
    let mut machine = Machine::new(feature::ANY_LAYOUT, 2);
    let mut net = machine.open();
    for _ in 0..10 {
        let (_, tx) = net.queues().unwrap();
        let mut slot = tx.reserve().unwrap();
        slot.frame_mut(100).fill(0xff);
    }
    net.kick();
    assert!(machine.run_transmit().is_empty());
    assert!(send(&mut net, &[1]) && send(&mut net, &[2]));
    net.kick();
    let sent = machine.run_transmit();
    assert_eq!(sent.len(), 2);
    assert_eq!(
        (&sent[0].frame[..], &sent[1].frame[..]),
        (&[1][..], &[2][..])
    );
    assert_eq!(net.stats().tx_packets, 2);
}

#[test]
fn frames_come_in_intact() {
    for offered in WAYS {
        let mut machine = Machine::new(offered, 8);
        let mut net = machine.open();
        let (mut packets, mut bytes) = (0, 0);
        for round in 0..5 {
            for (number, &length) in LENGTHS.iter().enumerate() {
                let frame = pattern(number + round, length);
                assert!(machine.receive(&frame));
                assert_eq!(receive_all(&mut net), [frame]);
                net.kick();
                packets += 1;
                bytes += length as u64;
            }
        }
        assert!(receive_all(&mut net).is_empty());
        let stats = net.stats();
        assert_eq!((stats.rx_packets, stats.rx_bytes), (packets, bytes));
        assert_eq!((stats.rx_dropped, stats.rx_errors), (0, 0));
        machine.assert_no_violation();
    }
}

/// All buffers are at the device from the start, and again after each burst.
#[test]
fn a_burst_of_the_whole_ring_is_received() {
    for (offered, size, buffers) in [
        (feature::ANY_LAYOUT, 1, 1),
        (feature::ANY_LAYOUT, 64, 64),
        (0, 2, 1),
        (0, 64, 32),
    ] {
        let mut machine = Machine::new(offered, size);
        let mut net = machine.open();
        for round in 0..3 {
            let burst: Vec<_> = (0..buffers)
                .map(|number| pattern(number + round, 200 + number))
                .collect();
            for frame in &burst {
                assert!(machine.receive(frame));
            }
            assert!(!machine.receive(&[0]), "there is a buffer too many");
            assert_eq!(receive_all(&mut net), burst);
            assert!(!machine.receive(&[0]), "seen before the kick");
            net.kick();
        }
        assert!(machine.receive(&[0]));
    }
}

/// What is not even a header holds no frame; its buffer goes back to the
/// device.
#[test]
fn runts_are_dropped_and_their_buffers_are_not() {
    for offered in WAYS {
        let mut machine = Machine::new(offered, 4);
        let mut net = machine.open();
        let mut dropped = 0;
        for _ in 0..5 {
            for length in 0..=HEADER {
                assert!(machine.receive_bytes(&vec![0xee; length]));
                assert!(machine.receive(&[7]), "the buffers ran out");
                assert_eq!(receive_all(&mut net), [[7]]);
                net.kick();
                dropped += 1;
                assert_eq!(net.stats().rx_dropped, dropped);
            }
        }
        assert_eq!(net.stats().rx_packets, dropped);
        machine.assert_no_violation();
    }
}

/// What the device writes into a buffer that it has given back, or that it has
/// again, changes no frame: the driver looks at a copy.
#[test]
fn a_buffer_that_changes_afterwards_changes_no_frame() {
    for offered in [feature::ALL, feature::ALL | feature::MRG_RXBUF] {
        let mut machine = Machine::new(offered, 4);
        let mut net = machine.open();
        for number in 0..20 {
            let sent = pattern(number, 1514);
            let (head, descriptors) = machine.device().next_chain(RX).unwrap();
            let mut bytes = vec![0; HEADER];
            if offered & feature::MRG_RXBUF != 0 {
                bytes.extend([1, 0]);
            }
            bytes.extend(&sent);
            machine.use_buffer(head, &descriptors, &bytes);
            let (rx, _) = net.queues().unwrap();
            let frame = rx.receive().unwrap();
            assert!(*frame == sent);
            machine.scribble(&descriptors);
            assert!(*frame == sent, "the frame lies where the device writes");
            net.kick();
        }
        machine.assert_no_violation();
    }
}

/// A reply is written while the request is still there to be read.
#[test]
fn a_reply_is_written_from_the_request() {
    let mut machine = Machine::new(feature::ALL, 4);
    let mut net = machine.open();
    for number in 0..20 {
        let request = pattern(number, 1514);
        assert!(machine.receive(&request));
        let (rx, tx) = net.queues().unwrap();
        let frame = rx.receive().unwrap();
        let mut slot = tx.reserve().unwrap();
        slot.frame_mut(1514).copy_from_slice(&frame);
        slot.start_xmit(1514);
        net.kick();
        assert_eq!(machine.run_transmit()[0].frame, request);
    }
    machine.assert_no_violation();
}

/// Many frames cost one kick; a device that is awake costs none.
/// A batch sends what frames one by one would, as far as there is room.
#[test]
fn a_batch_sends_as_many_frames_as_there_is_room_for() {
    for offered in [feature::ALL, feature::ALL & !feature::ANY_LAYOUT] {
        let mut machine = Machine::new(offered, 64);
        let mut net = machine.open();
        let (_, tx) = net.queues().unwrap();
        let room = if offered & feature::ANY_LAYOUT == 0 {
            32
        } else {
            64
        };
        let write = |number: u16, frame: &mut [u8]| {
            let length = 60 + usize::from(number);
            frame[..length].copy_from_slice(&pattern(number.into(), length));
            length
        };
        assert_eq!(tx.start_xmit_batch(10, write), 10);
        assert_eq!(tx.start_xmit_batch(100, write), room - 10);
        assert_eq!(tx.start_xmit_batch(1, write), 0);
        tx.kick();
        let sent = machine.run_transmit();
        assert_eq!(sent.len(), usize::from(room));
        for (number, sent) in (0..10).chain(0..usize::from(room) - 10).zip(&sent) {
            assert_eq!(sent.frame, pattern(number, 60 + number));
            assert_eq!(sent.header, [0; HEADER]);
        }
        let bytes: u64 = sent.iter().map(|sent| sent.frame.len() as u64).sum();
        let stats = net.stats();
        assert_eq!((stats.tx_packets, stats.tx_bytes), (room.into(), bytes));
    }
}

#[test]
fn kicks_are_one_a_batch_or_none() {
    for offered in [
        feature::ANY_LAYOUT,
        feature::ANY_LAYOUT | feature::EVENT_IDX,
    ] {
        let mut machine = Machine::new(offered, 64);
        let mut net = machine.open();
        // Nobody is told of receive buffers one by one.
        assert_eq!(machine.device().queues[RX].kicks, 1);
        for batch in 1..=10 {
            let before = net.stats();
            for number in 0..batch {
                assert!(send(&mut net, &pattern(number, 64)));
            }
            net.kick();
            net.kick();
            assert_eq!(net.stats().kicks, before.kicks + 1);
            assert_eq!(machine.device().queues[TX].kicks as usize, batch);
            assert_eq!(machine.run_transmit().len(), batch);
        }
        // The device has been told of one frame and has not looked yet.
        assert!(send(&mut net, &[0]));
        net.kick();
        machine.device().stay_awake(TX);
        let before = net.stats();
        for _ in 0..10 {
            assert!(send(&mut net, &[0]));
            net.kick();
        }
        let after = net.stats();
        assert_eq!(after.kicks, before.kicks);
        assert_eq!(after.kicks_suppressed, before.kicks_suppressed + 10);
        assert_eq!(machine.run_transmit().len(), 11);
    }
}

/// A full ring: the sender waits, is woken, and no frame is lost, whether
/// there are one or many.
#[test]
fn a_full_ring_makes_the_sender_wait_and_wakes_it() {
    for (offered, size, buffers) in [
        (0, 2, 1),
        (feature::ANY_LAYOUT, 1, 1),
        (feature::ANY_LAYOUT, 2, 2),
        (feature::ANY_LAYOUT | feature::EVENT_IDX, 1, 1),
        (feature::ANY_LAYOUT | feature::EVENT_IDX, 2, 2),
        (feature::ANY_LAYOUT | feature::EVENT_IDX, 64, 64),
        (feature::EVENT_IDX, 64, 32),
    ] {
        let mut machine = Machine::new(offered, size);
        let mut net = machine.open();
        for round in 0..3 {
            assert_eq!(net.poll(), Ok(Changes::empty()));
            for number in 0..buffers {
                assert!(send(&mut net, &pattern(number, 100)));
            }
            // Nobody told the device yet: asking for room does.
            assert!(!net.queues().unwrap().1.has_room());
            assert!(!send(&mut net, &[0]), "there is no room");
            assert_eq!(net.stats().tx_waited, round + 1, "counted once");
            assert!(!net.has_work());
            assert!(!net.enable_interrupts(), "there is nothing to poll for");

            let interrupts = net.stats().interrupts;
            let sent = machine.run_transmit();
            assert_eq!(sent.len(), buffers, "the device was not told");
            for (number, sent) in sent.iter().enumerate() {
                assert_eq!(sent.frame, pattern(number, 100));
            }
            machine.deliver();
            assert!(
                net.stats().interrupts > interrupts,
                "nobody woke the sender"
            );
            assert!(net.has_work());
            assert_eq!(net.poll(), Ok(Changes::empty()));
            assert!(net.queues().unwrap().1.has_room());
        }
        machine.assert_no_violation();
    }
}

/// Transmit buffers that come back while nobody waits interrupt nobody.
#[test]
fn sent_frames_are_nobodys_business() {
    for offered in [
        feature::ANY_LAYOUT,
        feature::ANY_LAYOUT | feature::EVENT_IDX,
    ] {
        let mut machine = Machine::new(offered, 64);
        let mut net = machine.open();
        for number in 0..500 {
            assert_eq!(net.poll(), Ok(Changes::empty()));
            assert!(send(&mut net, &pattern(number, 60)));
            net.kick();
            assert!(!net.enable_interrupts());
            assert_eq!(machine.run_transmit().len(), 1);
            assert!(!net.has_work());
        }
        assert!(machine.device().interrupts.is_empty());
    }
}

/// Polls until there is nothing to do and goes to sleep. Returns the frames.
fn poll_until_idle(net: &mut Net) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    loop {
        net.poll().unwrap();
        frames.extend(receive_all(net));
        net.kick();
        if !net.enable_interrupts() {
            return frames;
        }
    }
}

/// On every rung a frame that arrives while the driver sleeps wakes it.
#[test]
fn a_frame_wakes_the_sleeper_on_every_rung() {
    for offered in WAYS {
        for rung in Rung::LADDER {
            let mut machine = Machine::new(offered, 8);
            let mut net = machine.probe().unwrap();
            net.open(&mut machine.controller, rung).unwrap();
            assert_eq!(net.rung(), Some(rung));
            for number in 0..20 {
                assert_eq!(poll_until_idle(&mut net), [[0u8; 0]; 0]);
                assert!(!net.has_work());
                let frame = pattern(number, 99);
                assert!(machine.receive(&frame));
                assert!(net.has_work());
                let before = net.stats().interrupts;
                machine.deliver();
                let interrupts = u64::from(rung != Rung::Polling);
                assert_eq!(net.stats().interrupts, before + interrupts);
                assert_eq!(poll_until_idle(&mut net), [frame]);
            }
            // An INTx that is not this device's.
            if rung == Rung::Intx {
                crate::support::transport::isr_byte(0);
                machine.state.vp_interrupt(machine.controller.line.unwrap());
                assert_eq!(net.stats().interrupts_spurious, 1);
            }
            machine.assert_no_violation();
        }
    }
}

/// What arrives between the last look and the request for interrupts is seen
/// by the second look, in `enable_interrupts`.
#[test]
fn a_frame_on_the_verge_of_sleep_is_not_slept_over() {
    for offered in WAYS {
        let mut machine = Machine::new(offered, 8);
        let mut net = machine.open();
        for number in 0..20 {
            assert_eq!(net.poll(), Ok(Changes::empty()));
            assert!(receive_all(&mut net).is_empty());
            net.kick();
            assert!(machine.receive(&pattern(number, 70)));
            assert!(machine.device().interrupts.is_empty(), "masked");
            assert!(net.enable_interrupts(), "it must not sleep");
            assert_eq!(receive_all(&mut net), [pattern(number, 70)]);
        }
    }
}

/// A driver that is always awake is never interrupted, over more than a turn
/// of the 16-bit index.
#[test]
fn polling_is_not_interrupted() {
    for offered in [
        feature::ANY_LAYOUT,
        feature::ANY_LAYOUT | feature::EVENT_IDX,
    ] {
        let mut machine = Machine::new(offered, 32);
        let mut net = machine.open();
        let mut received = 0;
        while received < 70_000 {
            assert_eq!(net.poll(), Ok(Changes::empty()));
            for _ in 0..32 {
                assert!(machine.receive_bytes(&[0; HEADER + 1]));
            }
            let (rx, _) = net.queues().unwrap();
            while rx.receive().is_some() {
                received += 1;
            }
            net.kick();
        }
        assert!(machine.device().interrupts.is_empty());
        assert_eq!(net.stats().rx_packets, received);
    }
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Send(usize),
    Transmit(usize),
    Arrive(usize),
    Poll,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..10usize).prop_map(Step::Send),
        2 => (1..10usize).prop_map(Step::Transmit),
        3 => (1..10usize).prop_map(Step::Arrive),
        3 => Just(Step::Poll),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever the order: each frame arrives once, in order, intact, and the
    /// counters are exact.
    #[test]
    fn nothing_is_lost(
        way in 0..WAYS.len(),
        shift in 1..5u32,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut machine = Machine::new(WAYS[way], 1 << shift);
        let mut net = machine.open();
        let (mut to_send, mut to_receive) = (VecDeque::new(), VecDeque::new());
        let mut expected = Stats::default();
        let (mut waiting, mut number, mut awake) = (VecDeque::new(), 0, false);
        for step in steps {
            match step {
                Step::Send(count) => {
                    for _ in 0..count {
                        number += 1;
                        waiting.push_back(pattern(number, 1 + number % 1514));
                    }
                }
                Step::Transmit(count) => {
                    // A device that has seen all sleeps until it is kicked.
                    awake |= std::mem::take(&mut machine.device().queues[TX].kicked);
                    let sent = machine.transmit(if awake { count } else { 0 });
                    awake &= sent.len() == count;
                    for sent in sent {
                        prop_assert_eq!(Some(sent.frame), to_send.pop_front());
                        prop_assert_eq!(sent.header, vec![0; HEADER]);
                    }
                }
                Step::Arrive(count) => {
                    for _ in 0..count {
                        number += 1;
                        let frame = pattern(number, 1 + number % 1514);
                        if machine.receive(&frame) {
                            to_receive.push_back(frame);
                        }
                    }
                }
                Step::Poll => {
                    prop_assert_eq!(net.poll(), Ok(Changes::empty()));
                    for frame in receive_all(&mut net) {
                        expected.rx_packets += 1;
                        expected.rx_bytes += frame.len() as u64;
                        prop_assert_eq!(Some(frame), to_receive.pop_front());
                    }
                    prop_assert!(to_receive.is_empty(), "a frame was not received");
                    while let Some(frame) = waiting.pop_front() {
                        if send(&mut net, &frame) {
                            expected.tx_packets += 1;
                            expected.tx_bytes += frame.len() as u64;
                            to_send.push_back(frame);
                        } else {
                            waiting.push_front(frame);
                            break;
                        }
                    }
                    net.kick();
                    prop_assert!(!net.enable_interrupts());
                }
            }
        }
        if awake || machine.device().queues[TX].kicked {
            for sent in machine.transmit(usize::MAX) {
                prop_assert_eq!(Some(sent.frame), to_send.pop_front());
            }
        }
        prop_assert!(to_send.is_empty(), "the device sleeps on frames");
        let kicks = machine.device().queues.iter().map(|queue| queue.kicks).sum::<u64>();
        let stats = net.stats();
        prop_assert_eq!(stats.kicks, kicks);
        prop_assert_eq!(
            Stats {
                tx_waited: 0,
                kicks: 0,
                kicks_suppressed: 0,
                register_accesses: 0,
                interrupts: 0,
                ..stats
            },
            expected
        );
        machine.assert_no_violation();
        drop(net);
        machine.assert_nothing_left();
    }
}

#[test]
fn the_negotiated_features_decide() {
    let mut machine = Machine::new(feature::ALL, 8);
    let mut net = machine.probe_refusing(Features::ANY_LAYOUT).unwrap();
    net.open(&mut machine.controller, Rung::Polling).unwrap();
    assert!(send(&mut net, &[1, 2, 3]));
    net.kick();
    assert_eq!(machine.run_transmit()[0].descriptors, [HEADER as u32, 3]);
}
