//! Hashes of received packets: what the device is told, what it reports, and
//! what a device that does not do as it should can do.

use std::net::IpAddr;

use virtio_net::net::control::{Command, ControlError};
use virtio_net::net::flow::{self, DEFAULT_KEY, Flow, KEY_LENGTH, Protocol};
use virtio_net::net::rss::{FlowHash, HashKind, HashLimits, HashTypes, Rss};
use virtio_net::net::{Features, NetError};
use virtio_net::vectors::Rung;

use crate::support::control::{Behaviour, Hashing, Received, numbers, received};
use crate::support::net::{self, HEADER, Machine, Net, feature, high, pattern, send};

const BOTH: u32 = high::RSS | high::HASH_REPORT;
/// Length of the header with a hash (specification 5.1.6).
const HASH_HEADER: usize = 20;
/// IPv4, TCPv4, UDPv4, IPv6, TCPv6, UDPv6.
const TYPES: u32 = 0x3f;
const RSS_CONFIG: [u8; 2] = [4, 1];
const HASH_CONFIG: [u8; 2] = [4, 2];
const PAIRS_SET: [u8; 2] = [4, 0];

fn open(machine: &mut Machine, pairs: u16) -> Net {
    let mut net = machine.probe().unwrap();
    net.set_queue_pairs(pairs);
    net.open(&mut machine.controller, Rung::MsixPerQueue)
        .unwrap();
    net
}

/// Takes every received frame, and gives the buffers back.
fn receive_all(net: &mut Net) -> Vec<Vec<u8>> {
    let frames = net::receive_all(net);
    net.kick();
    frames
}

fn hashing(machine: &Machine) -> Option<Hashing> {
    machine.device().control.filter.hashing.clone()
}

/// Specification 5.1.6.5.7.1 and 5.1.6.5.6.4, byte by byte.
#[test]
fn commands_are_what_the_specification_says() {
    let limits = HashLimits {
        max_key_size: 40,
        max_table_length: 4,
        types: HashTypes::all(),
    };
    let key: [u8; KEY_LENGTH] = std::array::from_fn(|at| at as u8);
    let rss = Rss::new(&limits, key, 3);
    let mut machine = Machine::hashing(feature::IMPLEMENTED | feature::MQ, BOTH, 16);
    let mut net = open(&mut machine, 3);
    received(&machine);
    assert_eq!(net.command(&Command::RssConfig(&rss)), Ok(()));
    // hash_types, indirection_table_mask, unclassified_queue,
    // indirection_table, max_tx_vq, hash_key_length, hash_key_data
    let mut data = vec![0x3f, 0, 0, 0, 3, 0, 0, 0];
    data.extend([0, 0, 1, 0, 2, 0, 0, 0]);
    data.extend([3, 0, 40]);
    data.extend(key);
    assert_eq!(
        received(&machine),
        [Received {
            numbers: RSS_CONFIG,
            descriptors: vec![2, data.len() as u32, 1],
            data,
        }]
    );
    assert_eq!(net.command(&Command::HashConfig(&rss)), Ok(()));
    // hash_types, reserved, hash_key_length, hash_key_data
    let mut data = vec![0x3f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 40];
    data.extend(key);
    assert_eq!(
        received(&machine),
        [Received {
            numbers: HASH_CONFIG,
            descriptors: vec![2, data.len() as u32, 1],
            data,
        }]
    );
    // A command without a table is none for RSS.
    let reports = Rss::reports_only(&limits, key);
    assert_eq!(
        net.command(&Command::RssConfig(&reports)),
        Err(NetError::Control(ControlError::TooLong {
            command: "MQ_RSS_CONFIG"
        }))
    );
    assert_eq!(received(&machine), []);
}

/// With several pairs the table is set, and nothing else; with one pair there is
/// nothing to choose. Without RSS the reports have a command of their own, after
/// that for the pairs, which would end them.
#[test]
fn the_device_is_told_what_was_agreed_on() {
    let mq = feature::IMPLEMENTED | feature::MQ;
    let no_mq = feature::IMPLEMENTED;
    for (offered, high, wanted, pairs, commands) in [
        (mq, BOTH, 3, 3, &[RSS_CONFIG][..]),
        (mq, high::RSS, 2, 2, &[RSS_CONFIG]),
        (no_mq, high::RSS, 3, 3, &[RSS_CONFIG]),
        (no_mq, BOTH, 2, 2, &[RSS_CONFIG]),
        (mq, high::HASH_REPORT, 2, 2, &[PAIRS_SET, HASH_CONFIG]),
        (no_mq, high::HASH_REPORT, 3, 1, &[HASH_CONFIG]),
        (mq, BOTH, 1, 1, &[HASH_CONFIG]),
        (mq, high::RSS, 1, 1, &[]),
        (mq, 0, 2, 2, &[PAIRS_SET]),
    ] {
        let mut machine = Machine::hashing(offered, high, 16);
        let mut net = open(&mut machine, wanted);
        let case = format!("{offered:#x} {high:#x} {wanted}");
        assert_eq!(net.queue_pairs(), pairs, "{case}");
        assert_eq!(machine.device().control.filter.queue_pairs, pairs, "{case}");
        assert_eq!(numbers(&machine), commands, "{case}");
        let has_rss = commands.contains(&RSS_CONFIG);
        let negotiated = net.info().negotiated;
        assert_eq!(negotiated.contains(Features::RSS), has_rss, "{case}");
        assert_eq!(
            negotiated.contains(Features::HASH_REPORT),
            high & high::HASH_REPORT != 0
        );
        let expected = commands.iter().any(|one| *one != PAIRS_SET).then(|| {
            let table = (0..if has_rss { 128 } else { 0 }).map(|at| at % pairs);
            Hashing {
                types: TYPES,
                key: DEFAULT_KEY.to_vec(),
                table: table.collect(),
                unclassified: 0,
            }
        });
        assert_eq!(hashing(&machine), expected, "{case}");
        assert_eq!(net.rss().is_some(), expected.is_some(), "{case}");
        if let (Some(rss), Some(expected)) = (net.rss(), &expected) {
            assert_eq!(rss.table(), expected.table);
        }
        // Opened again, it is told again.
        net.open(&mut machine.controller, Rung::MsixPerQueue)
            .unwrap();
        assert_eq!(numbers(&machine), commands, "{case}");
        assert_eq!(hashing(&machine), expected, "{case}");
        net.stop(&mut machine.controller);
        assert_eq!(net.rss(), None);
        drop(net);
        machine.assert_nothing_left();
    }
}

#[test]
fn each_can_be_refused() {
    for (refused, commands) in [
        (Features::RSS, &[PAIRS_SET, HASH_CONFIG][..]),
        (Features::HASH_REPORT, &[RSS_CONFIG]),
        (Features::RSS | Features::HASH_REPORT, &[PAIRS_SET]),
        (Features::MQ, &[RSS_CONFIG]),
        (Features::SEVERAL_PAIRS, &[HASH_CONFIG]),
        (Features::CTRL_VQ, &[]),
    ] {
        let mut machine = Machine::hashing(feature::IMPLEMENTED | feature::MQ, BOTH, 16);
        let mut net = machine.probe_refusing(refused).unwrap();
        net.set_queue_pairs(2);
        net.open(&mut machine.controller, Rung::MsixPerQueue)
            .unwrap();
        assert!(!net.info().negotiated.intersects(refused));
        assert_eq!(numbers(&machine), commands, "{refused}");
        assert!(send(&mut net, &pattern(1, 90)));
        net.kick();
        assert_eq!(machine.transmit(1)[0].frame, pattern(1, 90));
        drop(net);
        machine.assert_nothing_left();
    }
}

/// A device that refuses is used without; one that does not answer costs the
/// control queue, and one pair is left.
#[test]
fn a_device_that_refuses_or_says_nothing_is_used_all_the_same() {
    for (behaviour, offered, pairs, commands) in [
        (
            Behaviour::Refuses(RSS_CONFIG),
            feature::MQ,
            2,
            &[RSS_CONFIG, PAIRS_SET, HASH_CONFIG][..],
        ),
        (
            Behaviour::Refuses(RSS_CONFIG),
            0,
            1,
            &[RSS_CONFIG, HASH_CONFIG],
        ),
        (
            Behaviour::Answers(1),
            feature::MQ,
            1,
            &[RSS_CONFIG, PAIRS_SET, HASH_CONFIG],
        ),
        (Behaviour::Silent, feature::MQ, 1, &[]),
    ] {
        let mut machine = Machine::hashing(feature::IMPLEMENTED | offered, BOTH, 16);
        let mut net = machine.probe().unwrap();
        net.set_queue_pairs(2);
        net.set_control_patience(1_000);
        net.set_hash_check(true);
        machine.device().control.behaviour = behaviour;
        net.open(&mut machine.controller, Rung::MsixPerQueue)
            .unwrap();
        assert_eq!(net.queue_pairs(), pairs, "{behaviour:?}");
        assert_eq!(numbers(&machine), commands, "{behaviour:?}");
        let reports = behaviour == Behaviour::Refuses(RSS_CONFIG);
        assert_eq!(net.rss().is_some(), reports, "{behaviour:?}");
        // The header was agreed on and is as long as that says.
        assert!(machine.receive(&pattern(2, 300)));
        assert_eq!(receive_all(&mut net), [pattern(2, 300)]);
        assert!(send(&mut net, &pattern(1, 90)));
        net.kick();
        assert_eq!(machine.transmit(1)[0].header, [0; HASH_HEADER]);
        drop(net);
        machine.assert_nothing_left();
    }
}

/// Specification 5.1.4.1: at least 40 bytes of key and 128 entries. Who offers
/// less is not told more than it can take.
#[test]
fn limits_that_cannot_be_are_no_danger() {
    let none: &[[u8; 2]] = &[PAIRS_SET];
    let reports = &[PAIRS_SET, HASH_CONFIG];
    let all = &[RSS_CONFIG];
    for (key, table, types, commands, length) in [
        (0u8, 128u16, 0x1ffu32, none, 0),
        (39, 128, 0x1ff, none, 0),
        (255, 128, 0x1ff, all, 128),
        (40, 128, 0, none, 0),
        (40, 128, 0x8000_0180, none, 0),
        (40, 128, 1, all, 128),
        (40, 0, 0x1ff, reports, 0),
        (40, 1, 0x1ff, reports, 0),
        (40, 3, 0x1ff, all, 2),
        (40, 127, 0x1ff, all, 64),
        (40, 129, 0x1ff, all, 128),
        (40, u16::MAX, u32::MAX, all, 128),
    ] {
        let mut machine = Machine::hashing(feature::IMPLEMENTED | feature::MQ, BOTH, 16);
        {
            let mut device = machine.device();
            device.config[17] = key;
            device.config[18..20].copy_from_slice(&table.to_le_bytes());
            device.config[20..24].copy_from_slice(&types.to_le_bytes());
        }
        let mut net = open(&mut machine, 2);
        let case = format!("{key} {table} {types:#x}");
        assert_eq!(numbers(&machine), commands, "{case}");
        assert_eq!(net.queue_pairs(), 2, "{case}");
        let told = hashing(&machine);
        assert_eq!(told.is_some(), commands != none, "{case}");
        if let Some(told) = told {
            assert_eq!(told.types, types & TYPES, "{case}");
            assert_eq!(told.key.len(), 40, "{case}");
            assert_eq!(told.table.len(), length, "{case}");
        }
        assert!(machine.receive(&pattern(2, 300)));
        assert_eq!(receive_all(&mut net), [pattern(2, 300)]);
    }
}

/// The header has 20 bytes both ways, whatever else was agreed on.
#[test]
fn the_header_with_a_hash_is_everywhere_as_long() {
    let mergeable = feature::ALL | feature::MRG_RXBUF;
    for offered in [
        feature::ALL,
        feature::ALL & !feature::ANY_LAYOUT,
        mergeable,
        feature::ALL | feature::GUEST,
        mergeable | feature::GUEST,
        feature::IMPLEMENTED,
    ] {
        let mut machine = Machine::hashing(offered, high::HASH_REPORT, 64);
        let mut net = open(&mut machine, 1);
        assert_eq!(numbers(&machine), [HASH_CONFIG]);
        for (number, length) in [1, 14, 60, 1514].into_iter().enumerate() {
            let frame = pattern(number, length);
            assert!(send(&mut net, &frame));
            net.kick();
            let sent = machine.run_transmit();
            assert_eq!(sent[0].frame, frame);
            assert_eq!(sent[0].header, [0; HASH_HEADER]);
            assert_eq!(sent[0].descriptors, [(HASH_HEADER + length) as u32]);
            assert!(machine.receive(&frame));
            assert_eq!(receive_all(&mut net), [frame]);
        }
        // A header and nothing behind it, and less than that.
        for length in [0, 12, HASH_HEADER - 1, HASH_HEADER] {
            let mut header = vec![0; length];
            if let Some(num_buffers) = header.get_mut(HEADER) {
                *num_buffers = 1;
            }
            assert!(machine.receive_bytes(&header));
        }
        assert_eq!(receive_all(&mut net), Vec::<Vec<u8>>::new());
        assert_eq!(net.stats().rx_dropped, 4);
        // Over several buffers, also around the end of the memory.
        if offered & feature::MRG_RXBUF != 0 && offered & feature::GUEST != 0 {
            for number in 0..200 {
                let frame = pattern(number, 2000 + 97 * number);
                assert!(machine.receive(&frame));
                assert_eq!(receive_all(&mut net), [frame]);
            }
            assert!(net.stats().rx_merged > 150);
            let largest = pattern(3, 65_000);
            assert!(machine.receive(&largest));
            assert_eq!(receive_all(&mut net), [largest]);
        }
        if offered & feature::HOST_TSO4 != 0 {
            let (_, tx) = net.queues().unwrap();
            let frame = pattern(5, 40_000);
            let mut slot = tx.reserve_large().unwrap();
            slot.frame_mut(frame.len()).copy_from_slice(&frame);
            slot.start_xmit_offloaded(frame.len(), None);
            net.kick();
            let sent = machine.run_transmit();
            assert_eq!(sent[0].frame, frame);
            assert_eq!(sent[0].header, [0; HASH_HEADER]);
        }
        drop(net);
        machine.assert_nothing_left();
    }
}

/// A UDP datagram over IPv4 between the hosts of the published values.
fn datagram(source_port: u16, length: usize) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend([66, 9, 149, 187, 161, 142, 100, 80]);
    frame.extend(source_port.to_be_bytes());
    frame.extend(1766u16.to_be_bytes());
    frame.resize(frame.len() + 4 + length, 0x5a);
    frame
}

/// The header of 20 bytes with this hash and report.
fn header(hash: u32, report: u16) -> Vec<u8> {
    let mut header = vec![0; HEADER + 2];
    header.extend(hash.to_le_bytes());
    header.extend(report.to_le_bytes());
    header.extend([0, 0]);
    header
}

/// Receives one frame: its hash, and its bytes.
fn receive_hashed(net: &mut Net) -> (Option<FlowHash>, Vec<u8>) {
    let (rx, _) = net.queues().unwrap();
    let frame = rx.receive().unwrap();
    let hashed = (frame.hash(), frame.to_vec());
    net.kick();
    hashed
}

#[test]
fn reported_hashes_come_with_their_frames() {
    let merged = feature::IMPLEMENTED;
    for offered in [feature::ALL, feature::ALL | feature::GUEST_CSUM, merged] {
        let mut machine = Machine::hashing(offered, high::HASH_REPORT, 16);
        let mut net = open(&mut machine, 1);
        for round in 0..40u32 {
            let length = if offered == merged { 5000 } else { 200 };
            let frame = datagram(2794, length);
            for (report, kind) in [
                (0, None),
                (1, Some(HashKind::Ipv4)),
                (3, Some(HashKind::Udpv4)),
                (9, Some(HashKind::Udpv6Ex)),
                (10, None),
                (u16::MAX, None),
            ] {
                let value = 0xdead_0000 + round;
                assert!(machine.receive_behind_all(&header(value, report), &frame));
                let expected = kind.map(|kind| FlowHash { value, kind });
                assert_eq!(receive_hashed(&mut net), (expected, frame.clone()));
            }
        }
        let stats = net.stats();
        assert_eq!(stats.rx_packets, 6 * 40);
        assert_eq!(stats.rx_hashed, 3 * 40);
        // Nobody asked for them to be verified.
        assert_eq!((stats.rx_hash_wrong, stats.rx_missteered), (0, 0));
        net.stop(&mut machine.controller);
        assert_eq!(net.stats().rx_hashed, 3 * 40);
    }
    // Without the feature there is none.
    let mut machine = Machine::hashing(merged, 0, 16);
    let mut net = open(&mut machine, 1);
    assert!(machine.receive(&datagram(2794, 20)));
    assert_eq!(receive_hashed(&mut net).0, None);
}

/// What a device gets wrong is counted where it is asked for.
#[test]
fn hashes_are_verified() {
    let mut machine = Machine::hashing(feature::ALL | feature::MQ, BOTH, 16);
    let mut net = machine.probe().unwrap();
    net.set_queue_pairs(2);
    net.set_hash_check(true);
    net.open(&mut machine.controller, Rung::MsixPerQueue)
        .unwrap();
    let rss = *net.rss().unwrap();
    let mut wrong = 0;
    let mut missteered = 0;
    let mut seen = [0, 0];
    for port in 0..64 {
        let frame = datagram(port, 20);
        let flow = Flow::of(&frame).unwrap();
        assert_eq!(flow.ports, Some((Protocol::Udp, [port, 1766])));
        let right = flow.hash(&DEFAULT_KEY);
        let pair = rss.table()[(right & 127) as usize];
        seen[usize::from(pair)] += 1;
        for (hash, report) in [(right, 3), (right, 2), (!right, 3), (0, 0)] {
            assert!(machine.receive_behind_all(&header(hash, report), &frame));
            assert_eq!(receive_all(&mut net).len(), 1);
            wrong += u64::from((hash, report) != (right, 3));
            missteered += u64::from(pair != 0);
        }
        assert_eq!(net.stats().rx_hash_wrong, wrong);
        assert_eq!(net.stats().rx_missteered, missteered);
    }
    assert!(seen.iter().all(|count| *count > 16), "{seen:?}");
    // What is not IP has no hash and belongs to the first pair.
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    assert!(machine.receive_behind_all(&header(0, 0), &arp));
    assert_eq!(receive_all(&mut net), [arp]);
    assert_eq!(net.stats().rx_hash_wrong, wrong);
    assert_eq!(net.stats().rx_missteered, missteered);
}

/// A device that had no buffer in one queue may keep a frame for it at another,
/// and is told of that, too.
#[test]
fn a_queue_that_ran_dry_is_told_of_by_all_doorbells() {
    for (high, rings) in [(BOTH, 1), (high::HASH_REPORT, 0)] {
        let mut machine = Machine::hashing(feature::IMPLEMENTED | feature::MQ, high, 16);
        let mut net = open(&mut machine, 3);
        let kicks = |machine: &Machine| {
            let queues = &machine.device().queues;
            [0, 2, 4].map(|queue: usize| queues[queue].kicks)
        };
        let (before, counted) = (kicks(&machine), net.stats().kicks);
        let header = vec![0; HASH_HEADER];
        let mut count = 0;
        while machine.receive_behind_all(&header, &pattern(1, 60)) {
            count += 1;
        }
        assert!(count >= 8, "{count} frames fit");
        assert_eq!(receive_all(&mut net).len(), count);
        let after = kicks(&machine);
        assert_eq!(after[0] - before[0], 1, "the device had none left");
        assert_eq!(after[1] - before[1], rings, "{high:#x}");
        assert_eq!(after[2] - before[2], rings, "{high:#x}");
        assert_eq!(net.stats().kicks - counted, 1 + 2 * rings);
    }
}

/// Who begins a flow knows where the answers will come.
#[test]
fn a_flow_is_sent_by_the_pair_of_its_answers() {
    let flow = |port| Flow {
        addresses: [IpAddr::from([10, 0, 2, 15]), IpAddr::from([10, 0, 2, 2])],
        ports: Some((Protocol::Tcp, [port, 80])),
    };
    let mut machine = Machine::hashing(feature::IMPLEMENTED | feature::MQ, BOTH, 16);
    let mut net = machine.probe().unwrap();
    let key = std::array::from_fn(|at| (at * 7 + 3) as u8);
    net.set_hash_key(key);
    net.set_queue_pairs(3);
    net.open(&mut machine.controller, Rung::MsixPerQueue)
        .unwrap();
    assert_eq!(hashing(&machine).unwrap().key, key);
    for port in 0..100 {
        let answer = flow(port).reversed().hash(&key);
        let expected = (answer & 127) as u16 % 3;
        assert_eq!(net.select_queue(&flow(port)), expected);
    }
    // Without RSS it is the driver's to choose, and the device follows.
    let mut machine = Machine::multiqueue(feature::IMPLEMENTED, 16);
    let net = open(&mut machine, 3);
    for port in 0..100 {
        let expected = flow::select_queue(flow(port).hash(&DEFAULT_KEY), 3);
        assert_eq!(net.select_queue(&flow(port)), expected);
    }
}
