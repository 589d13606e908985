//! Received frames over several buffers (`VIRTIO_NET_F_MRG_RXBUF`), and in
//! large ones.

use proptest::prelude::*;
use virtio_net::net::{Changes, MAX_LARGE_FRAME, NetError};
use virtio_net::queue::{BrokenReason, QueueError};
use virtio_net::vectors::Rung;
use virtio_queue::desc::split::Descriptor;

use crate::support::net::{
    HEADER, Machine, Net, RX, feature, pattern, receive_all, send, writable,
};

const MERGEABLE: u32 = feature::ALL | feature::MRG_RXBUF;
const LARGE: u32 = MERGEABLE | feature::GUEST;
/// Bytes of a mergeable buffer.
const BUFFER: usize = 2048;
/// Length of its header.
const LONG_HEADER: usize = HEADER + 2;

/// The header of a large TCP segment over IPv4.
fn segment_header() -> [u8; HEADER] {
    // NEEDS_CSUM, TCPV4, hdr_len 54, gso_size 1460, csum_start 34, csum_offset 16
    [1, 1, 54, 0, 0xb4, 0x05, 34, 0, 16, 0]
}

/// Frames of every length around the bounds of buffers, through rings that they
/// do not fill evenly, so that they begin at each buffer and run over the end.
#[test]
fn frames_over_several_buffers_come_in_intact() {
    for (offered, size) in [
        (LARGE, 64),
        (LARGE, 256),
        (LARGE & !feature::ANY_LAYOUT, 128),
        (LARGE & !feature::EVENT_IDX, 64),
    ] {
        let mut machine = Machine::new(offered, size);
        let mut net = machine.open();
        let (mut packets, mut bytes, mut merged) = (0, 0, 0);
        for round in 0..4 {
            for buffers in [1, 2, 3, 5, 17, 32] {
                for length in [
                    buffers * BUFFER - LONG_HEADER - 1,
                    buffers * BUFFER - LONG_HEADER,
                    buffers * BUFFER - LONG_HEADER + 1,
                ] {
                    let frame = pattern(round + buffers, length);
                    assert!(machine.receive_behind(&segment_header(), &frame));
                    let received = receive_all(&mut net);
                    assert!(received == [frame], "{length} bytes, {buffers} buffers");
                    net.kick();
                    packets += 1;
                    bytes += length as u64;
                    merged += u64::from(length + LONG_HEADER > BUFFER);
                }
            }
        }
        let stats = net.stats();
        assert_eq!((stats.rx_packets, stats.rx_bytes), (packets, bytes));
        assert_eq!(stats.rx_merged, merged);
        assert_eq!((stats.rx_dropped, stats.rx_errors), (0, 0));
        machine.assert_no_violation();
        drop(net);
        machine.assert_nothing_left();
    }
}

/// Small frames lie in one buffer each, with the longer header, both ways.
#[test]
fn the_header_is_longer_both_ways() {
    let mut machine = Machine::new(MERGEABLE, 16);
    let mut net = machine.open();
    for number in 0..50 {
        let frame = pattern(number, 60 + number);
        assert!(machine.receive(&frame));
        assert_eq!(receive_all(&mut net), std::slice::from_ref(&frame));
        assert!(send(&mut net, &frame));
        net.kick();
        let [sent] = &machine.run_transmit()[..] else {
            panic!("not exactly one frame");
        };
        assert_eq!(sent.frame, frame);
        assert_eq!(sent.header, [0; LONG_HEADER]);
    }
    machine.assert_no_violation();
}

/// Takes `count` buffers from the receive queue.
fn take(machine: &Machine, count: usize) -> Vec<(u16, Vec<Descriptor>)> {
    let buffers: Vec<_> = (0..count)
        .map_while(|_| machine.device().next_chain(RX))
        .collect();
    assert_eq!(buffers.len(), count, "there are not so many buffers");
    buffers
}

/// Bytes of a frame with its header.
fn headed(num_buffers: u16, frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend(num_buffers.to_le_bytes());
    bytes.extend(frame);
    bytes
}

/// A device may take buffers in any order, and one that does not fill them is
/// understood.
#[test]
fn buffers_in_another_order_are_put_together() {
    let mut machine = Machine::new(LARGE, 32);
    let mut net = machine.open();
    for round in 0..40 {
        let frame = pattern(round, 4 * BUFFER + round);
        let mut buffers = take(&machine, 6);
        // Another permutation every time.
        buffers.rotate_left(round % 6);
        buffers.swap(round % 5, 5);
        let bytes = headed(6, &frame);
        let mut rest = &bytes[..];
        for (number, (head, descriptors)) in buffers.into_iter().enumerate() {
            let length = match number {
                5 => rest.len(),
                _ => (BUFFER - 300 - round).min(rest.len()),
            };
            let (now, later) = rest.split_at(length);
            machine.use_buffer(head, &descriptors, now);
            rest = later;
        }
        assert!(receive_all(&mut net) == [frame], "round {round}");
        net.kick();
    }
    // None was lost: a frame as large as the ring fits still.
    let frame = pattern(99, 31 * BUFFER);
    assert!(machine.receive_behind(&[0; HEADER], &frame));
    assert!(receive_all(&mut net) == [frame]);
    machine.assert_no_violation();
}

/// A frame in more buffers than there are used ones: the queue is broken, says
/// so, and the device is opened again.
#[test]
fn a_count_of_buffers_that_are_not_there_breaks_the_queue() {
    for (num_buffers, used) in [(2, 1), (3, 2), (9, 8), (0x7fff, 3), (0xffff, 1)] {
        let mut machine = Machine::new(LARGE, 8);
        let mut net = machine.open();
        let bytes = headed(num_buffers, &pattern(1, 100));
        for (number, (head, descriptors)) in take(&machine, used).into_iter().enumerate() {
            let bytes = if number == 0 { &bytes[..] } else { &[7; 100] };
            machine.use_buffer(head, &descriptors, bytes);
        }
        assert!(receive_all(&mut net).is_empty());
        let reason = BrokenReason::NumBuffers {
            num_buffers,
            used: used as u16,
        };
        let error = NetError::Queue(QueueError::Broken { queue: 0, reason });
        assert_eq!(net.poll(), Err(error));
        assert!(receive_all(&mut net).is_empty(), "it is broken");
        net.open(&mut machine.controller, Rung::MsixPerQueue)
            .unwrap();
        assert!(machine.receive(&[1, 2, 3]));
        assert_eq!(receive_all(&mut net), [[1, 2, 3]]);
        drop(net);
        machine.assert_nothing_left();
    }
}

/// What is longer than any frame, or in no buffer, is dropped, and all its
/// buffers go back.
#[test]
fn a_frame_too_long_or_in_no_buffer_is_dropped() {
    // Without large frames, two full buffers are too much.
    for (offered, buffers) in [(MERGEABLE, 2), (LARGE, 34)] {
        let mut machine = Machine::new(offered, 64);
        let mut net = machine.open();
        for round in 1..10 {
            let bytes = headed(buffers as u16, &[5; BUFFER - LONG_HEADER]);
            for (number, (head, descriptors)) in take(&machine, buffers).into_iter().enumerate() {
                let bytes = if number == 0 {
                    &bytes
                } else {
                    &vec![5; BUFFER]
                };
                machine.use_buffer(head, &descriptors, bytes);
            }
            let (head, descriptors) = take(&machine, 1).remove(0);
            machine.use_buffer(head, &descriptors, &headed(0, &[6; 60]));
            assert!(machine.receive(&[9]));
            assert_eq!(receive_all(&mut net), [[9]]);
            net.kick();
            assert_eq!(net.stats().rx_dropped, 2 * round);
        }
        assert_eq!(net.poll(), Ok(Changes::empty()));
    }
}

/// Without `MRG_RXBUF`, large frames need large buffers: fewer of them, so that
/// they fit into a small guest.
#[test]
fn large_frames_lie_in_large_buffers() {
    for any_layout in [feature::ANY_LAYOUT, 0] {
        let offered = feature::GUEST | feature::EVENT_IDX | any_layout;
        let mut machine = Machine::new(offered, 256);
        let mut net = machine.open();
        let buffers = {
            let mut device = machine.device();
            let mut buffers = Vec::new();
            while let Some((head, descriptors)) = device.next_chain(RX) {
                // Specification 5.1.6.3.1.
                assert!(writable(&descriptors) >= HEADER + MAX_LARGE_FRAME);
                buffers.push((head, descriptors));
            }
            buffers
        };
        let memory: usize = buffers.iter().map(|(_, d)| writable(d)).sum();
        assert!((8..=128).contains(&buffers.len()), "{}", buffers.len());
        assert!(memory <= 2 << 20, "{memory} bytes");
        for (number, (head, descriptors)) in buffers.into_iter().enumerate() {
            let frame = pattern(number, MAX_LARGE_FRAME - number);
            let mut bytes = segment_header().to_vec();
            bytes.extend(&frame);
            machine.use_buffer(head, &descriptors, &bytes);
            assert!(receive_all(&mut net) == [frame]);
        }
        net.kick();
        for number in 0..100 {
            let frame = pattern(number, 60 + number * 600);
            assert!(machine.receive_behind(&segment_header(), &frame));
            assert!(receive_all(&mut net) == [frame]);
            net.kick();
        }
        machine.assert_no_violation();
        drop(net);
        machine.assert_nothing_left();
    }
}

/// A batch has what frames taken one by one are: those in one buffer and in several,
/// and none that cannot be.
#[test]
fn a_batch_has_all_kinds_of_frames() {
    // flags, gso_type: verified, nothing known, a kind that was not agreed on
    let header = |flags, gso_type| [flags, gso_type, 54, 0, 9, 0, 34, 0, 16, 0];
    for (offered, most) in [(LARGE, 1), (LARGE, 2), (LARGE, 3), (LARGE, 100), (LARGE, 7)]
        .into_iter()
        .chain([(feature::ALL | feature::GUEST_CSUM, 4)])
    {
        let mut machine = Machine::new(offered, 64);
        let mut net = machine.open();
        let is_large = offered == LARGE;
        let (mut bytes, mut dropped) = (0, 0);
        for round in 0..40 {
            let mut expected = Vec::new();
            for (number, (header, length, verified)) in [
                (header(2, 0), 60, Some(true)),
                (header(0, 0), 1514, Some(false)),
                (segment_header(), 5000, is_large.then_some(true)),
                (header(1, 0), 100, Some(true)),
                (header(1, 3), 100, None),
                (header(0, 0), 61, Some(false)),
            ]
            .into_iter()
            .enumerate()
            {
                if length > 1514 && !is_large {
                    continue;
                }
                let frame = pattern(round + number, length);
                assert!(machine.receive_behind(&header, &frame));
                match verified {
                    Some(verified) => {
                        bytes += length as u64;
                        expected.push((frame, verified));
                    }
                    None => dropped += 1,
                }
            }
            let (rx, _) = net.queues().unwrap();
            let mut received = Vec::new();
            loop {
                let take = |frame: virtio_net::net::rx::RxFrame<'_>| {
                    received.push((frame.to_vec(), frame.is_checksum_valid()));
                    // Now and then no more is wanted.
                    received.len() % 3 != 2
                };
                match rx.receive_batch(most, take) {
                    0 => break,
                    count => assert!(count <= most),
                }
            }
            assert!(received == expected, "{most} at a time");
            net.kick();
        }
        let stats = net.stats();
        let each = if is_large { (5, 3) } else { (4, 2) };
        assert_eq!((stats.rx_packets, stats.rx_bytes), (40 * each.0, bytes));
        assert_eq!(stats.rx_checksum_valid, 40 * each.1);
        assert_eq!((stats.rx_dropped, stats.rx_errors), (dropped, 0));
        machine.assert_no_violation();
        drop(net);
        machine.assert_nothing_left();
    }
}

/// What a header can claim.
fn claims(net: &mut Net, machine: &Machine, header: [u8; HEADER]) -> Option<bool> {
    let received = net.stats().rx_packets;
    assert!(machine.receive_behind(&header, &pattern(3, 100)));
    let (rx, _) = net.queues().unwrap();
    let verified = rx.receive().map(|frame| frame.is_checksum_valid());
    net.kick();
    let taken = net.stats().rx_packets - received;
    assert_eq!(taken, u64::from(verified.is_some()));
    verified
}

/// Which frames the device vouches for, and which cannot be.
#[test]
fn headers_are_believed_as_far_as_agreed() {
    // flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
    let header = |flags, gso_type, gso_size: u8, start: u16, offset: u16| {
        let ([a, b], [c, d]) = (start.to_le_bytes(), offset.to_le_bytes());
        [flags, gso_type, 54, 0, gso_size, 0, a, b, c, d]
    };
    let both = feature::GUEST_TSO4 | feature::GUEST_TSO6;
    for mergeable in [0, feature::MRG_RXBUF] {
        let base = feature::ALL | mergeable;
        for (offered, header, expected) in [
            (feature::GUEST_CSUM, header(0, 0, 0, 0, 0), Some(false)),
            (feature::GUEST_CSUM, header(2, 0, 0, 0, 0), Some(true)),
            (feature::GUEST_CSUM, header(1, 0, 0, 34, 6), Some(true)),
            (feature::GUEST_CSUM, header(1, 0, 0, 34, 64), Some(true)),
            // The checksum lies behind the frame.
            (feature::GUEST_CSUM, header(1, 0, 0, 34, 65), None),
            (feature::GUEST_CSUM, header(1, 0, 0, 0xffff, 0xffff), None),
            // Bits that nobody knows yet say nothing.
            (feature::GUEST_CSUM, header(0xfc, 0, 0, 0, 0), Some(false)),
            // Not agreed: no flag says anything (specification 5.1.6.4.1), but that the
            // checksum was left out.
            (0, header(2, 0, 0, 0, 0), Some(false)),
            (0, header(1, 0, 0, 34, 6), Some(true)),
            (0, header(3, 0, 0, 34, 6), Some(true)),
            (0, header(1, 0, 0, 0xffff, 0xffff), Some(false)),
            (feature::GUEST, header(1, 1, 9, 34, 16), Some(true)),
            (feature::GUEST, header(1, 4, 9, 54, 16), Some(true)),
            (feature::GUEST, header(1, 0x81, 9, 34, 16), Some(true)),
            (feature::GUEST, header(0, 1, 9, 34, 16), Some(false)),
            // No size of segments.
            (feature::GUEST, header(1, 1, 0, 34, 16), None),
            // Kinds of segments that were not agreed on.
            (feature::GUEST, header(1, 3, 9, 34, 6), None),
            (feature::GUEST, header(1, 5, 9, 34, 6), None),
            (
                feature::GUEST & !feature::GUEST_TSO4,
                header(1, 1, 9, 34, 16),
                None,
            ),
            (
                feature::GUEST & !feature::GUEST_TSO6,
                header(1, 4, 9, 34, 16),
                None,
            ),
            (feature::GUEST & !both, header(1, 1, 9, 34, 16), None),
        ] {
            let mut machine = Machine::new(base | offered, 8);
            let mut net = machine.open();
            for _ in 0..10 {
                let verified = claims(&mut net, &machine, header);
                assert_eq!(verified, expected, "{offered:#x}: {header:?}");
            }
            let dropped = if expected.is_none() { 10 } else { 0 };
            assert_eq!(net.stats().rx_dropped, dropped);
            let valid = if expected == Some(true) { 10 } else { 0 };
            assert_eq!(net.stats().rx_checksum_valid, valid);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the device says in its headers and lengths: no frame is longer
    /// than what it wrote, and no buffer is lost for good.
    #[test]
    fn any_header_is_survived(
        mergeable: bool,
        offered in prop::sample::select(vec![0, feature::GUEST_CSUM, feature::GUEST]),
        frames in prop::collection::vec(
            (any::<[u8; HEADER]>(), 0u16..5, prop::collection::vec(0usize..=BUFFER, 1..5)),
            1..60,
        ),
    ) {
        let mergeable = if mergeable { feature::MRG_RXBUF } else { 0 };
        let mut machine = Machine::new(feature::ALL | mergeable | offered, 16);
        let mut net = machine.open();
        for (header, num_buffers, lengths) in frames {
            let mut written = 0;
            for (number, length) in lengths.into_iter().enumerate() {
                let Some((head, descriptors)) = machine.device().next_chain(RX) else {
                    break;
                };
                let mut bytes = headed(num_buffers, &[0xee; BUFFER]);
                bytes[..HEADER].copy_from_slice(&header);
                if number > 0 {
                    bytes.fill(number as u8);
                }
                bytes.truncate(length.min(writable(&descriptors)));
                written += bytes.len();
                machine.use_buffer(head, &descriptors, &bytes);
            }
            for frame in receive_all(&mut net) {
                prop_assert!(frame.len() <= written);
            }
            net.kick();
            if net.poll().is_err() {
                net.open(&mut machine.controller, Rung::MsixPerQueue).unwrap();
            }
        }
        while net.poll().is_err() || machine.device().next_chain(RX).is_none() {
            net.open(&mut machine.controller, Rung::MsixPerQueue).unwrap();
        }
        machine.assert_no_violation();
        drop(net);
        machine.assert_nothing_left();
    }
}
