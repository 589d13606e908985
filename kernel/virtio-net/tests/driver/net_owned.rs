//! Frames that are sent from elsewhere than the queue's own buffers.

use std::num::NonZeroU16;

use virtio_net::net::offload::Offload;

use crate::support::memory::pages_in_use;
use crate::support::net::{Machine, feature, pattern, send};

/// With one descriptor a frame and with two, with and without headers that are
/// written.
const OFFERS: [u32; 4] = [
    feature::ALL,
    feature::ALL & !feature::ANY_LAYOUT,
    feature::ALL & !feature::EVENT_IDX,
    feature::IMPLEMENTED,
];

/// Buffers are filled on another thread, kept, and sent in another order,
/// between frames of the queue's own; the slots have their own buffers again
/// afterwards.
#[test]
fn owned_buffers_are_sent_when_their_owner_likes() {
    for offered in OFFERS {
        let mut machine = Machine::new(offered, 16);
        let mut net = machine.open();
        for round in 0..5 {
            let (_, tx) = net.queues().unwrap();
            let mut buffers: Vec<_> = (0..4).map(|_| tx.take_buffer().unwrap()).collect();
            std::thread::scope(|scope| {
                for (number, buffer) in (1..).zip(&mut buffers) {
                    let frame = buffer.frame_mut(100 + number);
                    scope.spawn(move || frame.copy_from_slice(&pattern(number, frame.len())));
                }
            });
            let mut expected = Vec::new();
            for (number, buffer) in (1..5).zip(buffers).rev() {
                assert!(send(&mut net, &pattern(number + round, 60)));
                let (_, tx) = net.queues().unwrap();
                assert!(tx.xmit_buffer(buffer, 100 + number, None).is_ok());
                expected.extend([pattern(number + round, 60), pattern(number, 100 + number)]);
            }
            net.kick();
            let sent = machine.run_transmit();
            assert!(sent.iter().all(|sent| sent.header.iter().all(|b| *b == 0)));
            let frames: Vec<_> = sent.into_iter().map(|sent| sent.frame).collect();
            assert_eq!(frames, expected, "{offered:#x}");
            net.queues().unwrap().1.reclaim();
            let pages = pages_in_use();
            assert!(send(&mut net, &pattern(9, 60)));
            net.kick();
            assert_eq!(machine.run_transmit()[0].frame, pattern(9, 60));
            assert_eq!(pages_in_use(), pages);
        }
        assert_eq!(net.stats().tx_packets, 45);
        drop(net);
        machine.assert_nothing_left();
    }
}

/// The caller's memory is shared while the device has it, and no longer.
#[test]
fn memory_of_the_caller_is_sent_without_a_copy() {
    for offered in OFFERS {
        let mut machine = Machine::new(offered, 16);
        let mut net = machine.open();
        let pages = pages_in_use();
        for number in 0..40 {
            let (_, tx) = net.queues().unwrap();
            let mut memory = vec![0xff; tx.headroom()];
            memory.extend(pattern(number, 61 + number));
            assert!(tx.xmit_shared(memory.into(), None).is_ok());
            assert_eq!(pages_in_use(), pages + 1);
            net.kick();
            let sent = machine.run_transmit();
            assert_eq!(sent[0].frame, pattern(number, 61 + number));
            assert!(sent[0].header.iter().all(|byte| *byte == 0));
            net.queues().unwrap().1.reclaim();
            assert_eq!(pages_in_use(), pages);
        }
        // Nothing that cannot be a frame is shared.
        let (_, tx) = net.queues().unwrap();
        let headroom = tx.headroom();
        for length in [0, headroom, headroom + tx.capacity() + 1] {
            let refused = tx.xmit_shared(vec![0; length].into(), None);
            assert_eq!(refused.unwrap_err().len(), length);
        }
        // What is on its way when the device is closed comes back, too.
        assert!(tx.xmit_shared(vec![1; 100].into(), None).is_ok());
        drop(net);
        machine.assert_nothing_left();
    }
}

/// A full queue gives back what it cannot send.
#[test]
fn what_finds_no_room_stays_its_owners() {
    let mut machine = Machine::new(feature::ALL, 16);
    let mut net = machine.open();
    let (_, tx) = net.queues().unwrap();
    let mut kept = tx.take_buffer().unwrap();
    for number in 0..16 {
        let mut buffer = tx.take_buffer().unwrap();
        buffer.frame_mut(60).copy_from_slice(&pattern(number, 60));
        assert!(tx.xmit_buffer(buffer, 60, None).is_ok());
    }
    kept.frame_mut(70).copy_from_slice(&pattern(16, 70));
    let Err(kept) = tx.xmit_buffer(kept, 70, None) else {
        panic!("the queue is full");
    };
    assert!(tx.xmit_shared(vec![0; 100].into(), None).is_err());
    let sent = machine.run_transmit();
    assert_eq!(sent.len(), 16, "it was kicked");
    let (_, tx) = net.queues().unwrap();
    assert!(tx.xmit_buffer(kept, 70, None).is_ok());
    net.kick();
    assert_eq!(machine.run_transmit()[0].frame, pattern(16, 70));
    drop(net);
    machine.assert_nothing_left();
}

/// A sender may ask for what the device has not agreed to; the device must not be
/// asked (specification 5.1.6.2.1).
#[test]
fn nothing_is_asked_that_was_not_agreed_to() {
    let size = NonZeroU16::new(1000).unwrap();
    let checksum = Offload::checksum(34, 16);
    let asked = [true, false].map(|ipv4| checksum.segmented(ipv4, 54, size));
    let features = [
        (0, [0; 2], 0),
        (feature::CSUM, [0; 2], 1),
        (feature::CSUM | feature::HOST_TSO4, [1, 0], 1),
        (feature::CSUM | feature::HOST_TSO6, [0, 4], 1),
        (feature::HOST, [1, 4], 1),
    ];
    for (offered, gso_types, flags) in features {
        let mut machine = Machine::new(offered | feature::ANY_LAYOUT, 8);
        let mut net = machine.open();
        for (offload, gso_type) in asked.into_iter().zip(gso_types) {
            let (_, tx) = net.queues().unwrap();
            let slot = tx.reserve().unwrap();
            slot.start_xmit_offloaded(60, Some(offload));
            let buffer = tx.take_buffer().unwrap();
            assert!(tx.xmit_buffer(buffer, 60, Some(offload)).is_ok());
            let memory = vec![0; tx.headroom() + 60];
            assert!(tx.xmit_shared(memory.into(), Some(offload)).is_ok());
            let mut frames = 3;
            if let Some(slot) = tx.reserve_large() {
                slot.start_xmit_offloaded(60, Some(offload));
                frames += 1;
            }
            net.kick();
            let sent = machine.run_transmit();
            assert_eq!(sent.len(), frames);
            for sent in sent {
                assert_eq!(sent.header[..2], [flags, gso_type], "{offered:#x}");
                let (header_length, size) = if gso_type == 0 { (0, 0) } else { (54, 1000) };
                let field = |at| u16::from_le_bytes([sent.header[at], sent.header[at + 1]]);
                assert_eq!((field(2), field(4)), (header_length, size));
            }
        }
        let stats = net.stats();
        assert_eq!(stats.tx_checksum_offloaded != 0, flags != 0);
        assert_eq!(stats.tx_segmented != 0, gso_types != [0; 2]);
    }
}
