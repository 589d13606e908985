//! Several pairs of queues.

use virtio_net::net::{Features, QueueRole};
use virtio_net::vectors::{Rung, VectorUse};

use crate::net_control::assert_alive;
use crate::support::control::{Behaviour, filter, numbers};
use crate::support::device::NO_VECTOR;
use crate::support::net::{CONTROL_SIZE, Machine, feature, pattern};

/// Index of the control queue of one pair.
const CONTROL: usize = 2;

/// Pairs, control queue, vectors: each at its place (specification 5.1.2).
/// A device that lied about its pairs when it was probed has the control queue
/// elsewhere.
#[test]
fn the_number_of_pairs_is_read_again() {
    for lie in [1u16, 2, 100, 0, 0xffff] {
        let mut machine = Machine::multiqueue(feature::IMPLEMENTED, 16);
        machine.device().config[8..10].copy_from_slice(&lie.to_le_bytes());
        let mut net = machine.probe().unwrap();
        machine.device().config[8..10].copy_from_slice(&3u16.to_le_bytes());
        net.set_queue_pairs(3);
        net.open(&mut machine.controller, Rung::MsixPerQueue)
            .unwrap();
        assert_eq!(net.queue_pairs(), 3, "{lie}");
        machine.assert_no_violation();
    }
}

#[test]
fn queue_pairs_are_as_many_as_wanted() {
    for wanted in [1, 2, 3, 4, u16::MAX] {
        let mut machine = Machine::multiqueue(feature::IMPLEMENTED, 16);
        let mut net = machine.probe().unwrap();
        assert_eq!(net.info().max_queue_pairs, 3);
        net.set_queue_pairs(wanted);
        net.open(&mut machine.controller, Rung::MsixPerQueue)
            .unwrap();
        let pairs = wanted.min(3);
        let data = 2 * pairs;
        // With one pair MQ is not asked for, and the control queue is the
        // third; else it comes after all that the device has.
        let control = if pairs == 1 { 2 } else { 6 };
        assert_eq!(net.queue_pairs(), pairs);
        assert_eq!(net.info().negotiated.contains(Features::MQ), pairs > 1);
        let snapshots: Vec<_> = net
            .snapshots()
            .map(|queue| (queue.role, queue.index, queue.size))
            .collect();
        let mut expected: Vec<_> = (0..pairs)
            .flat_map(|pair| {
                [
                    (QueueRole::Receive, 2 * pair, 16),
                    (QueueRole::Transmit, 2 * pair + 1, 16),
                ]
            })
            .collect();
        expected.push((QueueRole::Control, control, CONTROL_SIZE));
        assert_eq!(snapshots, expected);
        let mut uses = vec![VectorUse::Config];
        uses.extend((0..data).map(VectorUse::Queue));
        assert_eq!(machine.controller.purposes(), uses);
        for (index, queue) in (0..).zip(&machine.device().queues) {
            let vector = if index < data { 1 + index } else { NO_VECTOR };
            assert_eq!(queue.vector, vector, "queue {index}");
            let used = index < data || index == control;
            assert_eq!(queue.ring.is_some(), used, "queue {index}");
        }
        assert_eq!(filter(&machine).queue_pairs, pairs);
        assert_eq!(numbers(&machine).len(), usize::from(pairs > 1));
        // Every pair sends.
        for (pair, queues) in net.pairs().enumerate() {
            let (_, tx) = queues.queues();
            let mut slot = tx.reserve().unwrap();
            slot.frame_mut(60).copy_from_slice(&pattern(pair, 60));
            slot.start_xmit(60);
            queues.kick();
            assert!(machine.device().queues[2 * pair + 1].kicked);
        }
        assert_eq!(net.stats().tx_packets, u64::from(pairs));
        net.set_queue_pairs(1);
        net.open(&mut machine.controller, Rung::MsixShared).unwrap();
        assert_eq!(net.queue_pairs(), 1);
        assert_eq!(net.stats().tx_packets, u64::from(pairs));
        assert_eq!(machine.device().queues[CONTROL].size, CONTROL_SIZE);
        assert_eq!(net.vlan_add(3), Ok(()));
        drop(net);
        machine.assert_nothing_left();
    }
}

#[test]
fn a_device_that_refuses_several_pairs_is_used_with_one() {
    let mut machine = Machine::multiqueue(feature::IMPLEMENTED, 16);
    let mut net = machine.probe().unwrap();
    net.set_queue_pairs(2);
    machine.device().control.behaviour = Behaviour::Refuses([4, 0]);
    net.open(&mut machine.controller, Rung::MsixPerQueue)
        .unwrap();
    assert_eq!(net.queue_pairs(), 1);
    assert_alive(&machine, &mut net);
    drop(net);
    machine.assert_nothing_left();

    // Nor are more used of one that has no control queue.
    let mut net = machine.probe_refusing(Features::CTRL_VQ).unwrap();
    net.set_queue_pairs(2);
    net.open(&mut machine.controller, Rung::MsixPerQueue)
        .unwrap();
    assert_eq!(net.queue_pairs(), 1);
    assert_eq!(net.snapshots().count(), 2);
}

/// Each rung is agreed on anew: a device that no longer has several pairs then
/// is opened with one.
#[test]
fn a_device_that_takes_its_pairs_back_is_used_with_one() {
    let mut machine = Machine::multiqueue(feature::IMPLEMENTED, 16);
    let mut net = machine.probe().unwrap();
    net.set_queue_pairs(2);
    // Too few for a vector a queue. The device is reset before and after that.
    machine.controller.limit = 2;
    let offers = [
        feature::IMPLEMENTED | feature::MQ,
        feature::IMPLEMENTED,
        feature::IMPLEMENTED,
    ];
    machine.device().later_offers.extend(offers);
    net.open(&mut machine.controller, Rung::MsixPerQueue)
        .unwrap();
    assert_eq!(net.rung(), Some(Rung::MsixShared));
    assert_eq!(net.queue_pairs(), 1);
    assert_eq!(net.snapshots().count(), 3);
    assert_alive(&machine, &mut net);
}

/// Nonsense in the configuration.
#[test]
fn an_impossible_number_of_pairs_is_one() {
    for pairs in [0u16, 0x8001, u16::MAX] {
        let machine = Machine::multiqueue(feature::IMPLEMENTED, 16);
        machine.device().config[8..10].copy_from_slice(&pairs.to_le_bytes());
        assert_eq!(machine.probe().unwrap().info().max_queue_pairs, 1);
    }
}
