//! TCP segments over IPv6 that the smoltcp device puts together: what a device makes
//! of them must be what the network stack has written.

use std::collections::BTreeMap;

use etherparse::TcpOptionElement;
use proptest::prelude::*;
use smoltcp::phy::{Device, PacketMeta, TxToken};
use smoltcp::time::Instant;
use virtio_net::net::{Changes, Features};
use virtio_net::smoltcp::Phy;
use virtio_net::vectors::Rung;

use crate::support::memory::GuestHal;
use crate::support::net::{Machine, Net, Sent, feature, pattern};
use crate::support::segments::{Segment, wire};
use crate::support::transport::Bell;

const MSS: usize = 1440;

/// Has the device send a frame, unless there is no room.
fn xmit(phy: &mut Phy<'_, GuestHal, Bell>, frame: &[u8]) -> bool {
    let Some(token) = phy.transmit(Instant::ZERO) else {
        return false;
    };
    token.consume(frame.len(), |bytes| bytes.copy_from_slice(frame));
    true
}

/// Segments of one connection, each of the next bytes.
struct Flow {
    port: u16,
    next: u32,
}

impl Flow {
    fn new(port: u16) -> Self {
        Self {
            port,
            // They wrap on the way.
            next: u32::MAX - 3000,
        }
    }

    fn segment(&mut self, length: usize) -> Segment {
        let payload = pattern(self.next as usize, length);
        let segment = Segment::new(self.port, self.next, payload);
        self.next = self.next.wrapping_add(length as u32);
        segment
    }
}

fn machine(offered: u32, size: u16) -> (Machine, Net) {
    let mut machine = Machine::new(offered, size);
    let net = machine.open();
    (machine, net)
}

/// Sends frames, kicks, and returns what the device got.
fn sent(machine: &Machine, net: &mut Net, frames: &[Vec<u8>]) -> Vec<Sent> {
    let mut phy = Phy::of(net);
    for frame in frames {
        assert!(xmit(&mut phy, frame));
    }
    drop(phy);
    net.kick();
    let sent = machine.transmit(usize::MAX);
    machine.assert_no_violation();
    sent
}

fn on_the_wire(sent: &[Sent]) -> Vec<Vec<u8>> {
    sent.iter().flat_map(wire).collect()
}

/// In the order of each connection; other frames are one more.
fn by_connection(frames: &[Vec<u8>]) -> BTreeMap<Option<u16>, Vec<&[u8]>> {
    let mut all = BTreeMap::<_, Vec<_>>::new();
    for frame in frames {
        let connection = Segment::parse(frame).map(|segment| segment.port());
        all.entry(connection).or_default().push(&frame[..]);
    }
    all
}

#[test]
fn segments_of_a_connection_become_one_frame() {
    for extra in [
        0,
        feature::ANY_LAYOUT,
        feature::MRG_RXBUF | feature::EVENT_IDX,
    ] {
        let (machine, mut net) = machine(feature::HOST | extra, 32);
        let mut flow = Flow::new(1000);
        let mut segments: Vec<_> = (0..20).map(|_| flow.segment(MSS)).collect();
        segments.push(flow.segment(1));
        segments[20].tcp.psh = true;
        let frames: Vec<_> = segments.iter().map(Segment::frame).collect();
        let mut phy = Phy::of(&mut net);
        for frame in &frames {
            assert!(xmit(&mut phy, frame));
        }
        drop(phy);
        assert!(machine.run_transmit().is_empty(), "nobody has kicked");
        net.kick();
        let sent = machine.run_transmit();
        assert_eq!(sent.len(), 1);
        assert!(on_the_wire(&sent) == frames);
        let stats = net.stats();
        assert_eq!((stats.tx_segmented, stats.tx_coalesced), (1, 1));
        assert_eq!((stats.tx_packets, stats.tx_checksum_offloaded), (1, 1));
        assert_eq!(stats.tx_bytes, sent[0].frame.len() as u64);
        drop(net);
        machine.assert_nothing_left();
    }
}

/// A token that is not used leaves no trace.
#[test]
fn a_token_that_is_not_used_changes_nothing() {
    let (machine, mut net) = machine(feature::HOST, 32);
    let mut flow = Flow::new(1000);
    let frames: Vec<_> = (0..6).map(|_| flow.segment(MSS).frame()).collect();
    let mut phy = Phy::of(&mut net);
    for frame in &frames {
        assert!(phy.transmit(Instant::ZERO).is_some());
        assert!(xmit(&mut phy, frame));
    }
    drop(phy);
    net.kick();
    let sent = machine.run_transmit();
    assert_eq!(sent.len(), 1);
    assert!(on_the_wire(&sent) == frames);
    assert_eq!(net.stats().tx_packets, 1);
}

/// Whatever is not alike is a frame of its own, behind what came before it.
#[test]
fn what_is_not_the_next_segment_is_sent_apart() {
    type Change = fn(&mut Segment);
    let changes: &[(&str, Change)] = &[
        ("a gap", |s| s.tcp.sequence_number += 1),
        ("a retransmission", |s| s.tcp.sequence_number -= MSS as u32),
        ("another acknowledgement", |s| {
            s.tcp.acknowledgment_number += 1
        }),
        ("another window", |s| s.tcp.window_size -= 1),
        ("no acknowledgement", |s| s.tcp.ack = false),
        ("SYN", |s| s.tcp.syn = true),
        ("RST", |s| s.tcp.rst = true),
        ("URG", |s| s.tcp.urg = true),
        ("an urgent pointer", |s| s.tcp.urgent_pointer = 1),
        ("ECE", |s| s.tcp.ece = true),
        ("CWR", |s| s.tcp.cwr = true),
        ("NS", |s| s.tcp.ns = true),
        ("options", |s| s.tcp.set_options_raw(&[1, 1, 1, 1]).unwrap()),
        ("no payload", |s| s.payload.clear()),
        ("more payload", |s| s.payload.push(1)),
        ("traffic class", |s| s.ip.traffic_class = 2),
        ("flow label", |s| s.ip.flow_label = 5.try_into().unwrap()),
        ("hop limit", |s| s.ip.hop_limit -= 1),
        ("another router", |s| s.link.destination[5] ^= 1),
        ("another sender", |s| s.link.source[5] ^= 1),
        ("a VLAN", |s| *s = s.clone().tagged(5)),
    ];
    for (what, change) in changes {
        let (machine, mut net) = machine(feature::HOST, 32);
        let mut flow = Flow::new(1000);
        let mut segments: Vec<_> = (0..4).map(|_| flow.segment(MSS)).collect();
        change(&mut segments[2]);
        let frames: Vec<_> = segments.iter().map(Segment::frame).collect();
        let sent = sent(&machine, &mut net, &frames);
        assert!(sent.len() > 1, "{what}");
        assert!(wire(&sent[0]) == frames[..2], "{what}");
        assert!(on_the_wire(&sent) == frames, "{what}");
    }
    // Frames that are not what they say.
    let malformed: [fn(&mut Vec<u8>); 5] = [
        |frame| frame.push(0),
        |frame| frame.truncate(frame.len() - 1),
        |frame| frame[18] ^= 1,
        |frame| frame[54 + 12] = 0x40,
        |frame| frame[20] = 44,
    ];
    for change in malformed {
        let (machine, mut net) = machine(feature::HOST, 32);
        let mut flow = Flow::new(1000);
        let mut frames: Vec<_> = (0..4).map(|_| flow.segment(MSS).frame()).collect();
        change(&mut frames[2]);
        let sent = sent(&machine, &mut net, &frames);
        // Nobody can say of which connection it is, so it may be early.
        let without_checksum = |frame: &[u8]| {
            let mut frame = frame.to_vec();
            frame[70..72].fill(0);
            frame
        };
        let (apart, others): (Vec<_>, Vec<_>) = sent
            .into_iter()
            .partition(|sent| without_checksum(&sent.frame) == without_checksum(&frames[2]));
        assert_eq!(apart.len(), 1);
        assert!(on_the_wire(&others) == [&frames[..2], &frames[3..]].concat());
    }
}

/// Cutting gives PSH and FIN to the last piece; the window may end anywhere.
#[test]
fn the_last_segment_may_be_short_and_have_psh_or_fin() {
    type Change = fn(&mut Segment);
    let changes: [(Change, usize); 6] = [
        (|s| s.tcp.psh = true, 2),
        (|s| s.tcp.fin = true, 2),
        (|s| (s.tcp.psh, s.tcp.fin) = (true, true), 2),
        (|s| s.payload.truncate(1), 3),
        (|s| s.payload.truncate(MSS - 1), 3),
        (|_| (), 1),
    ];
    for (change, count) in changes {
        let (machine, mut net) = machine(feature::HOST, 32);
        let mut flow = Flow::new(1000);
        let mut segments: Vec<_> = (0..6).map(|_| flow.segment(MSS)).collect();
        change(&mut segments[2]);
        let frames: Vec<_> = segments.iter().map(Segment::frame).collect();
        let sent = sent(&machine, &mut net, &frames);
        assert!(on_the_wire(&sent) == frames);
        // Behind a short segment there is a gap here.
        assert_eq!(sent.len(), count.min(2));
        if count > 1 {
            assert!(wire(&sent[0]) == frames[..3]);
        }
    }
}

/// A segment after which nothing follows costs no more than it did.
#[test]
fn a_segment_alone_is_not_put_anywhere() {
    let (machine, mut net) = machine(feature::HOST | feature::ANY_LAYOUT, 32);
    let mut flow = Flow::new(1000);
    let mut segment = flow.segment(MSS);
    segment.tcp.psh = true;
    assert!(xmit(&mut Phy::of(&mut net), &segment.frame()));
    let free = net.snapshots().nth(1).unwrap().free;
    assert_eq!(free, 31, "it is in the queue");
    net.kick();
    assert!(on_the_wire(&machine.run_transmit()) == [segment.frame()]);
    // One that may go on, and does not.
    let segment = flow.segment(MSS);
    let all = sent(&machine, &mut net, &[segment.frame()]);
    assert_eq!(all[0].header[1], 0, "there is nothing to cut");
    assert!(on_the_wire(&all) == [segment.frame()]);
    assert_eq!(net.stats().tx_segmented, 0);
}

/// Options are the same in all pieces: with time stamps of one moment they are.
#[test]
fn options_are_those_of_every_segment() {
    let (machine, mut net) = machine(feature::HOST, 32);
    let mut flow = Flow::new(1000);
    let mut segments: Vec<_> = (0..8).map(|_| flow.segment(1428)).collect();
    for (at, segment) in segments.iter_mut().enumerate() {
        let time = if at < 5 { 100 } else { 101 };
        let options = [
            TcpOptionElement::Noop,
            TcpOptionElement::Noop,
            TcpOptionElement::Timestamp(time, 50),
        ];
        segment.tcp.set_options(&options).unwrap();
    }
    let frames: Vec<_> = segments.iter().map(Segment::frame).collect();
    let sent = sent(&machine, &mut net, &frames);
    assert_eq!(sent.len(), 2);
    assert!(wire(&sent[0]) == frames[..5]);
    assert!(on_the_wire(&sent) == frames);
}

#[test]
fn tagged_frames_grow_too() {
    let (machine, mut net) = machine(feature::HOST, 32);
    let mut flow = Flow::new(1000);
    let frames: Vec<_> = (0..30)
        .map(|_| flow.segment(MSS).tagged(7).frame())
        .collect();
    let sent = sent(&machine, &mut net, &frames);
    assert_eq!(sent.len(), 1);
    assert!(on_the_wire(&sent) == frames);
}

/// An IPv6 packet has at most 65,535 bytes of payload.
#[test]
fn a_frame_grows_to_what_an_ipv6_packet_holds() {
    // 13,103 and 4,679 divide 65,515 and its neighbours: the last fits exactly.
    for size in [1, 3, 10, 33, 54, 74, 75, 536, 1285, 1365, 1428, 1440] {
        for extra in [0, 1, 2] {
            let (machine, mut net) = machine(feature::HOST | feature::ANY_LAYOUT, 64);
            let mut flow = Flow::new(1000);
            let most = (65_535 - 20) / size;
            let frames: Vec<_> = (0..most + extra)
                .map(|_| flow.segment(size).frame())
                .collect();
            let sent = sent(&machine, &mut net, &frames);
            assert_eq!(sent.len(), if extra == 0 { 1 } else { 2 }, "{size}");
            assert_eq!(wire(&sent[0]).len(), most);
            assert!(on_the_wire(&sent) == frames, "{size}");
        }
    }
}

/// smoltcp asks every socket for one segment, and then again.
#[test]
fn several_connections_take_turns() {
    for count in 1..=7usize {
        let (machine, mut net) = machine(feature::HOST, 256);
        let mut flows: Vec<_> = (0..count).map(|n| Flow::new(1000 + n as u16)).collect();
        let mut frames = Vec::new();
        for round in 0..12 {
            for flow in &mut flows {
                frames.push(flow.segment(MSS).frame());
            }
            // Something that is none of theirs.
            if round % 5 == 0 {
                frames.push(pattern(round, 60 + round));
            }
        }
        let sent = sent(&machine, &mut net, &frames);
        let most = count.min(4);
        let apart = (count - most) * 12 + 3;
        assert_eq!(sent.len(), most + apart, "{count} connections");
        let wire = on_the_wire(&sent);
        assert!(by_connection(&wire) == by_connection(&frames));
    }
}

#[test]
fn a_device_that_does_not_cut_gets_segments() {
    for offered in [
        feature::CSUM,
        feature::CSUM | feature::HOST_TSO4,
        feature::ALL,
        0,
    ] {
        let (machine, mut net) = machine(offered, 32);
        let mut flow = Flow::new(1000);
        let frames: Vec<_> = (0..10).map(|_| flow.segment(MSS).frame()).collect();
        let sent = sent(&machine, &mut net, &frames);
        assert_eq!(sent.len(), 10);
        if offered & feature::CSUM != 0 {
            assert!(on_the_wire(&sent) == frames);
        }
        assert_eq!(net.stats().tx_coalesced, 0);
    }
}

/// A frame that is larger than a slot ends all, and stays behind them.
#[test]
fn a_frame_that_is_large_already_keeps_its_place() {
    let (machine, mut net) = machine(feature::HOST, 32);
    let mut flow = Flow::new(1000);
    let frames: Vec<_> = (0..3).map(|_| flow.segment(MSS).frame()).collect();
    let mut phy = Phy::of(&mut net);
    for frame in &frames {
        assert!(xmit(&mut phy, frame));
    }
    let large = flow.segment(20_000);
    let next = flow.segment(MSS);
    for (segment, size) in [(&large, Some(MSS)), (&next, None)] {
        let frame = segment.frame();
        let mut meta = PacketMeta::default();
        meta.segmentation_offload_size = size.and_then(|size| (size as u16).try_into().ok());
        let mut token = phy.transmit(Instant::ZERO).unwrap();
        token.set_meta(meta);
        token.consume(frame.len(), |bytes| bytes.copy_from_slice(&frame));
    }
    // Nothing is as large as this: it goes nowhere.
    let token = phy.transmit(Instant::ZERO).unwrap();
    token.consume(70_000, |bytes| assert_eq!(bytes.len(), 70_000));
    drop(phy);
    net.kick();
    let sent = machine.run_transmit();
    assert_eq!(sent.len(), 3);
    let together: Vec<u8> = on_the_wire(&sent)
        .iter()
        .flat_map(|frame| Segment::parse(frame).unwrap().payload)
        .collect();
    assert!(together == pattern_of(u32::MAX - 3000, &[MSS, MSS, MSS, 20_000, MSS]));
}

fn pattern_of(mut from: u32, lengths: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for length in lengths {
        bytes.extend(pattern(from as usize, *length));
        from = from.wrapping_add(*length as u32);
    }
    bytes
}

/// Whenever there is room for a frame, it is sent, whatever grows meanwhile.
#[test]
fn what_grows_leaves_room_for_the_next_frame() {
    for size in [2, 4, 8, 16] {
        for features in [feature::HOST, feature::HOST | feature::ANY_LAYOUT] {
            let mut machine = Machine::new(features | feature::EVENT_IDX, size);
            let mut net = machine.open();
            let mut flows: Vec<_> = (0..5).map(|n| Flow::new(1000 + n)).collect();
            let mut frames = Vec::new();
            let mut wire = Vec::new();
            let mut round = 0;
            while round < 400 {
                let mut phy = Phy::of(&mut net);
                while round < 400 {
                    let frame = match round % 11 {
                        6 => pattern(round, 60 + round % 7),
                        n => flows[n % 5].segment(MSS).frame(),
                    };
                    round += 1;
                    if !xmit(&mut phy, &frame) {
                        flows = retry(flows, &frame);
                        break;
                    }
                    frames.push(frame);
                }
                drop(phy);
                net.kick();
                let sent = machine.transmit(1 + round % 3);
                assert!(!sent.is_empty(), "the queue is full of nothing");
                wire.extend(on_the_wire(&sent));
                machine.deliver();
                assert_eq!(net.poll(), Ok(Changes::empty()));
            }
            net.kick();
            wire.extend(on_the_wire(&machine.transmit(usize::MAX)));
            assert!(
                by_connection(&wire) == by_connection(&frames),
                "size {size}"
            );
            machine.assert_no_violation();
            net.open(&mut machine.controller, Rung::MsixPerQueue)
                .unwrap();
            drop(net);
            machine.assert_nothing_left();
        }
    }
}

/// A segment that found no room comes again.
fn retry(mut flows: Vec<Flow>, frame: &[u8]) -> Vec<Flow> {
    if let Some(segment) = Segment::parse(frame)
        && let Some(flow) = flows.iter_mut().find(|flow| flow.port == segment.port())
    {
        flow.next = segment.tcp.sequence_number;
    }
    flows
}

#[derive(Clone, Debug)]
enum Step {
    Segment {
        flow: usize,
        length: usize,
        flags: u8,
    },
    Acknowledge {
        flow: usize,
    },
    GoBack {
        flow: usize,
        bytes: u32,
    },
    Other {
        length: usize,
    },
    Kick,
    Device {
        count: usize,
    },
}

impl Step {
    /// Whether the network stack does it.
    fn is_in_a_poll(&self) -> bool {
        !matches!(self, Self::Kick | Self::Device { .. })
    }
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![4 => Just(MSS), 1 => 1..MSS, 1 => 1..90usize];
    prop_oneof![
        12 => (0..6usize, length, 0..10u8)
            .prop_map(|(flow, length, flags)| Step::Segment { flow, length, flags }),
        1 => (0..6usize).prop_map(|flow| Step::Acknowledge { flow }),
        1 => (0..6usize, 0..5000u32).prop_map(|(flow, bytes)| Step::GoBack { flow, bytes }),
        1 => (0..1500usize).prop_map(|length| Step::Other { length }),
        1 => Just(Step::Kick),
        2 => (1..8usize).prop_map(|count| Step::Device { count }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is sent in whichever order, with whatever a device does
    /// meanwhile, arrives once and unchanged, in the order of its connection.
    #[test]
    fn everything_arrives(
        size in prop::sample::select(vec![2u16, 8, 64]),
        any_layout: bool,
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let layout = if any_layout { feature::ANY_LAYOUT } else { 0 };
        let mut machine = Machine::new(feature::HOST | feature::EVENT_IDX | layout, size);
        let mut net = machine.open();
        let mut flows: Vec<_> = (0..6).map(|n| Flow::new(1000 + n)).collect();
        let (mut frames, mut wire) = (Vec::new(), Vec::new());
        let mut steps = steps.into_iter().peekable();
        while steps.peek().is_some() {
            let mut phy = Phy::of(&mut net);
            while let Some(step) = steps.next_if(Step::is_in_a_poll) {
                let segment = match step {
                    Step::Segment { flow, length, flags } => {
                        let mut segment = flows[flow].segment(length);
                        segment.tcp.psh = flags == 0;
                        segment.tcp.fin = flags == 1;
                        segment
                    }
                    Step::Acknowledge { flow } => flows[flow].segment(0),
                    Step::GoBack { flow, bytes } => {
                        flows[flow].next = flows[flow].next.wrapping_sub(bytes);
                        continue;
                    }
                    Step::Other { length } => {
                        let frame = pattern(length, 15 + length);
                        if xmit(&mut phy, &frame) {
                            frames.push(frame);
                        }
                        continue;
                    }
                    Step::Kick | Step::Device { .. } => unreachable!(),
                };
                let frame = segment.frame();
                if xmit(&mut phy, &frame) {
                    frames.push(frame);
                } else {
                    flows = retry(flows, &frame);
                }
            }
            drop(phy);
            match steps.next() {
                Some(Step::Device { count }) => {
                    wire.extend(on_the_wire(&machine.transmit(count)));
                    machine.deliver();
                    prop_assert_eq!(net.poll(), Ok(Changes::empty()));
                }
                _ => net.kick(),
            }
        }
        net.kick();
        wire.extend(on_the_wire(&machine.transmit(usize::MAX)));
        prop_assert!(by_connection(&wire) == by_connection(&frames));
        machine.assert_no_violation();
        drop(net);
        machine.assert_nothing_left();
    }

    /// Nothing that a stack may write makes it panic, or changes another frame.
    #[test]
    fn any_bytes_are_survived(
        mut bytes in prop::collection::vec(any::<u8>(), 1..200),
        at in 0..4usize,
    ) {
        let (machine, mut net) = machine(feature::HOST, 32);
        let mut flow = Flow::new(1000);
        let mut frames: Vec<_> = (0..5).map(|_| flow.segment(100).frame()).collect();
        for (byte, right) in bytes.iter_mut().zip(&frames[at + 1]) {
            if *byte & 3 != 0 {
                *byte = *right;
            }
        }
        frames.insert(at + 1, bytes.clone());
        let mut phy = Phy::of(&mut net);
        for frame in &frames {
            prop_assert!(xmit(&mut phy, frame));
        }
        drop(phy);
        net.kick();
        let sent = machine.transmit(usize::MAX);
        let all: usize = sent.iter().map(|sent| sent.frame.len()).sum();
        prop_assert!(all >= bytes.len() + 54 + 500);
        machine.assert_no_violation();
    }
}

#[test]
fn the_feature_is_refused_by_name() {
    let machine = Machine::new(feature::HOST, 8);
    let refused = Features::by_name("host_tso6").unwrap();
    let _net = machine.probe_refusing(refused).unwrap();
    assert_eq!(
        machine.device().features,
        feature::CSUM | feature::HOST_TSO4
    );
}
