//! The control queue: what the device is told, and what a device that does not
//! do as it should can do to its driver.

use std::time::{Duration, Instant};

use virtio_net::net::control::{Command, ControlError, MAC_TABLE_ENTRIES};
use virtio_net::net::{Changes, Features, NetError, QueueRole, RxFlags, RxMode};
use virtio_net::queue::{BrokenReason, QueueError};
use virtio_net::vectors::{Rung, VectorUse};

use crate::support::control::{Behaviour, Filter, Received};
use crate::support::device::NO_VECTOR;
use crate::support::memory::pages_in_use;
use crate::support::net::{CONTROL_SIZE, MAC, Machine, Net, feature, pattern, receive_all, send};

const CONTROL: usize = 2;
const UNICAST: [u8; 6] = [0x02, 1, 2, 3, 4, 5];
const MULTICAST: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const OTHER_MULTICAST: [u8; 6] = [0x01, 0x00, 0x5e, 0, 0, 1];

fn machine() -> Machine {
    Machine::new(feature::IMPLEMENTED, 16)
}

/// The commands that came since the last call.
fn received(machine: &Machine) -> Vec<Received> {
    std::mem::take(&mut machine.device().control.received)
}

fn numbers(machine: &Machine) -> Vec<[u8; 2]> {
    let commands = received(machine);
    commands.iter().map(|command| command.numbers).collect()
}

fn filter(machine: &Machine) -> Filter {
    machine.device().control.filter.clone()
}

/// Frames go and come.
fn assert_alive(machine: &Machine, net: &mut Net) {
    assert!(send(net, &pattern(1, 200)));
    net.kick();
    assert_eq!(machine.transmit(9).last().unwrap().frame, pattern(1, 200));
    assert!(machine.receive(&pattern(2, 300)));
    assert_eq!(receive_all(net), [pattern(2, 300)]);
    assert_eq!(net.poll(), Ok(Changes::empty()));
}

/// Every command, as its bytes (specification 5.1.6.5).
#[test]
fn commands_are_what_the_specification_says() {
    let tables = Command::MacTables {
        unicast: &[UNICAST],
        multicast: &[MULTICAST, OTHER_MULTICAST],
    };
    let mut table = vec![1, 0, 0, 0];
    table.extend(UNICAST);
    table.extend([2, 0, 0, 0]);
    table.extend(MULTICAST);
    table.extend(OTHER_MULTICAST);
    let offloads = Features::GUEST_CSUM | Features::GUEST_TSO4 | Features::GUEST_UFO;
    let commands: [(_, [u8; 2], &[u8], &[u32]); 14] = [
        (Command::Promiscuous(true), [0, 0], &[1], &[2, 1, 1]),
        (Command::AllMulticast(false), [0, 1], &[0], &[2, 1, 1]),
        (Command::AllUnicast(true), [0, 2], &[1], &[2, 1, 1]),
        (Command::NoMulticast(true), [0, 3], &[1], &[2, 1, 1]),
        (Command::NoUnicast(false), [0, 4], &[0], &[2, 1, 1]),
        (Command::NoBroadcast(true), [0, 5], &[1], &[2, 1, 1]),
        (tables, [1, 0], &table, &[2, 10, 16, 1]),
        (Command::MacAddress(UNICAST), [1, 1], &UNICAST, &[2, 6, 1]),
        (Command::VlanAdd(0x123), [2, 0], &[0x23, 1], &[2, 2, 1]),
        (Command::VlanRemove(4095), [2, 1], &[0xff, 15], &[2, 2, 1]),
        (Command::AnnounceAck, [3, 0], &[], &[2, 1]),
        (Command::AnnounceAck, [3, 0], &[], &[2, 1]),
        (
            Command::GuestOffloads(offloads),
            [5, 0],
            &[0x82, 4, 0, 0, 0, 0, 0, 0],
            &[2, 8, 1],
        ),
        (
            Command::MacTables {
                unicast: &[],
                multicast: &[],
            },
            [1, 0],
            &[0; 8],
            &[2, 4, 4, 1],
        ),
    ];
    for without in [0, feature::ANY_LAYOUT, feature::EVENT_IDX] {
        let mut machine = Machine::new(feature::IMPLEMENTED & !without, 16);
        let mut net = machine.open();
        assert_eq!(received(&machine), []);
        for (command, numbers, data, descriptors) in &commands {
            assert_eq!(net.command(command), Ok(()), "{command:?}");
            let expected = Received {
                numbers: *numbers,
                data: data.to_vec(),
                descriptors: descriptors.to_vec(),
            };
            assert_eq!(received(&machine), [expected], "{command:?}");
        }
        assert!(machine.device().interrupts.is_empty());
        assert_alive(&machine, &mut net);
        drop(net);
        machine.assert_nothing_left();
    }
}

/// Around the ring, and around 16 bits, many times.
#[test]
fn many_commands_interrupt_nobody() {
    for (without, rung, count) in [
        (0, Rung::MsixShared, 70_000),
        (feature::EVENT_IDX, Rung::Intx, 200),
    ] {
        let mut machine = Machine::new(feature::IMPLEMENTED & !without, 16);
        let mut net = machine.probe().unwrap();
        net.open(&mut machine.controller, rung).unwrap();
        for round in 0..count {
            let command = Command::Promiscuous(round % 2 == 0);
            assert_eq!(net.command(&command), Ok(()));
        }
        assert!(machine.device().interrupts.is_empty());
        assert_eq!(received(&machine).len(), count);
        assert_alive(&machine, &mut net);
    }
}

#[test]
fn what_was_not_negotiated_is_not_sent() {
    let refusals = [
        (Command::Promiscuous(true), Features::CTRL_RX),
        (Command::NoBroadcast(true), Features::CTRL_RX_EXTRA),
        (Command::VlanAdd(1), Features::CTRL_VLAN),
        (Command::MacAddress(UNICAST), Features::CTRL_MAC_ADDR),
        (Command::AnnounceAck, Features::GUEST_ANNOUNCE),
        (Command::QueuePairs(1), Features::MQ),
        (
            Command::GuestOffloads(Features::empty()),
            Features::CTRL_GUEST_OFFLOADS,
        ),
    ];
    for (command, feature) in refusals {
        let error = NetError::Control(ControlError::NotNegotiated {
            command: command.name(),
            feature,
        });
        for refused in [feature, Features::CTRL_VQ] {
            let mut machine = machine();
            let mut net = machine.probe_refusing(refused).unwrap();
            assert_eq!(net.command(&command), Err(NetError::NotOpen));
            net.open(&mut machine.controller, Rung::MsixPerQueue)
                .unwrap();
            assert_eq!(net.command(&command), Err(error));
            assert_eq!(received(&machine), []);
            assert_alive(&machine, &mut net);
        }
    }
}

#[test]
fn a_refusal_is_an_error_and_no_more() {
    for ack in [1, 2, 0xfe] {
        let mut machine = machine();
        let mut net = machine.open();
        machine.device().control.behaviour = Behaviour::Answers(ack);
        for _ in 0..100 {
            assert_eq!(
                net.vlan_add(7),
                Err(NetError::Control(ControlError::Refused {
                    command: "VLAN_ADD",
                    ack
                }))
            );
        }
        machine.device().control.behaviour = Behaviour::Honest;
        assert_eq!(net.vlan_add(8), Ok(()));
        assert_eq!(filter(&machine).vlans, [8]);
        // What was refused is not repeated.
        net.open(&mut machine.controller, Rung::MsixPerQueue)
            .unwrap();
        assert_eq!(filter(&machine).vlans, [8]);
        assert_alive(&machine, &mut net);
    }
}

/// An answer that nobody wrote is none, even if the last one was good.
#[test]
fn a_chain_used_without_an_answer_is_no_success() {
    let mut machine = machine();
    let mut net = machine.open();
    assert_eq!(net.vlan_add(7), Ok(()));
    machine.device().control.behaviour = Behaviour::SaysNothing;
    assert_eq!(
        net.vlan_add(8),
        Err(NetError::Control(ControlError::Refused {
            command: "VLAN_ADD",
            ack: 0xff
        }))
    );
}

/// A device that never answers costs one error, in bounded time; what it
/// might still write is not used again until it was reset.
#[test]
fn a_device_that_never_answers_is_given_up_once() {
    for (late, without) in [(false, 0), (true, 0), (true, feature::EVENT_IDX)] {
        let mut machine = Machine::new(feature::IMPLEMENTED & !without, 16);
        let mut net = machine.open();
        let pages = pages_in_use();
        machine.device().control.behaviour = Behaviour::Silent;
        net.set_control_patience(50_000_000);
        let start = Instant::now();
        assert_eq!(
            net.vlan_add(7),
            Err(NetError::Control(ControlError::NoAnswer {
                command: "VLAN_ADD"
            }))
        );
        let waited = start.elapsed();
        assert!(waited > Duration::from_millis(5), "{waited:?}");
        assert!(waited < Duration::from_secs(5), "{waited:?}");
        let start = Instant::now();
        net.set_control_patience(u64::MAX);
        for _ in 0..1000 {
            assert_eq!(
                net.command(&Command::AnnounceAck),
                Err(NetError::Control(ControlError::GivenUp {
                    command: "ANNOUNCE_ACK"
                }))
            );
        }
        assert!(start.elapsed() < Duration::from_secs(1), "it waited again");
        assert_eq!(pages_in_use(), pages);
        assert_alive(&machine, &mut net);
        if late {
            machine.device().serve_control();
            assert!(net.announced().is_err());
            assert_alive(&machine, &mut net);
        }
        machine.device().control.behaviour = Behaviour::Honest;
        net.open(&mut machine.controller, Rung::MsixPerQueue)
            .unwrap();
        assert_eq!(net.vlan_add(9), Ok(()));
        assert_eq!(filter(&machine).vlans, [9]);
        drop(net);
        machine.assert_nothing_left();
    }
}

/// A device that lies on the control queue loses that queue, and nothing else.
#[test]
fn a_liar_is_given_up() {
    let broken =
        |reason| NetError::Control(ControlError::Queue(QueueError::Broken { queue: 2, reason }));
    let lies = [
        (
            Behaviour::UsesChain(4),
            BrokenReason::IdNotOutstanding { id: 4 },
        ),
        (
            Behaviour::UsesChain(1),
            BrokenReason::IdNotOutstanding { id: 1 },
        ),
        (
            Behaviour::Writes(2),
            BrokenReason::LengthTooLong {
                id: 0,
                length: 2,
                writable: 1,
            },
        ),
        (
            Behaviour::Writes(u32::MAX),
            BrokenReason::LengthTooLong {
                id: 0,
                length: u32::MAX,
                writable: 1,
            },
        ),
        (
            Behaviour::CountsTwice,
            BrokenReason::UsedIndex {
                used_idx: 2,
                last_used_idx: 0,
                outstanding: 1,
            },
        ),
    ];
    for (behaviour, reason) in lies {
        let mut machine = machine();
        let mut net = machine.open();
        machine.device().control.behaviour = behaviour;
        assert_eq!(net.vlan_add(7), Err(broken(reason)), "{behaviour:?}");
        machine.device().control.behaviour = Behaviour::Honest;
        assert!(matches!(
            net.vlan_add(7),
            Err(NetError::Control(ControlError::GivenUp { .. }))
        ));
        assert_alive(&machine, &mut net);
        drop(net);
        machine.assert_nothing_left();
    }
}

#[test]
fn the_receive_mode_reaches_the_device() {
    let mut machine = machine();
    let mut net = machine.open();
    let mode = RxMode {
        flags: RxFlags::empty(),
        unicast: vec![UNICAST],
        multicast: vec![MULTICAST, OTHER_MULTICAST],
    };
    net.set_rx_mode(mode.clone()).unwrap();
    let expected = Filter {
        flags: [false; 6],
        unicast: mode.unicast.clone(),
        multicast: mode.multicast.clone(),
        ..Filter::default()
    };
    assert_eq!(filter(&machine), expected);
    // The tables first: nothing that is wanted is lost on the way.
    assert_eq!(numbers(&machine), [[1, 0], [0, 1], [0, 0]]);
    // Another list costs one command.
    let mut mode = mode;
    mode.multicast.pop();
    net.set_rx_mode(mode.clone()).unwrap();
    assert_eq!(numbers(&machine), [[1, 0]]);
    assert_eq!(filter(&machine).multicast, [MULTICAST]);
    for bit in 0..6 {
        mode.flags = RxFlags::from_bits_retain(1 << bit);
        net.set_rx_mode(mode.clone()).unwrap();
        let mut flags = [false; 6];
        flags[bit] = true;
        assert_eq!(filter(&machine).flags, flags);
    }
    // After a reset it is told all of it again.
    let before = filter(&machine);
    for rung in Rung::LADDER {
        net.open(&mut machine.controller, rung).unwrap();
        assert_eq!(filter(&machine), before);
    }
    net.stop(&mut machine.controller);
    assert_eq!(filter(&machine), Filter::default());
    mode.flags = RxFlags::NO_BROADCAST;
    assert_eq!(net.set_rx_mode(mode), Err(NetError::NotOpen));
    net.open(&mut machine.controller, Rung::Polling).unwrap();
    assert_eq!(
        filter(&machine).flags,
        [false, false, false, false, false, true]
    );
    machine.assert_no_violation();
}

/// More addresses than fit become all of their kind; as much as fits stays
/// exact.
#[test]
fn tables_that_overflow_become_all() {
    let many = |count: usize| -> Vec<[u8; 6]> {
        (0..count)
            .map(|number| [2, 0, 0, 0, (number >> 8) as u8, number as u8])
            .collect()
    };
    let most = MAC_TABLE_ENTRIES;
    // Lengths of the lists; what of them is kept; promiscuous, all-multicast,
    // all-unicast.
    let cases = [
        ((1, most - 1), (1, most - 1), [false, false, false]),
        ((1, most), (1, 0), [false, true, false]),
        ((most, 0), (most, 0), [false, false, false]),
        ((most, 1), (0, 1), [false, false, true]),
        ((most + 1, 3), (0, 3), [false, false, true]),
        ((most + 1, most + 2), (0, 0), [false, true, true]),
        ((most + 2, most + 1), (0, 0), [false, true, true]),
    ];
    for (lengths, kept, [promiscuous, all_multicast, all_unicast]) in cases {
        for extra in [true, false] {
            let without = if extra { 0 } else { feature::CTRL_RX_EXTRA };
            let mut machine = Machine::new(feature::IMPLEMENTED & !without, 16);
            let mut net = machine.open();
            net.set_rx_mode(RxMode {
                flags: RxFlags::empty(),
                unicast: many(lengths.0),
                multicast: many(lengths.1),
            })
            .unwrap();
            let filter = filter(&machine);
            assert_eq!(filter.unicast, many(kept.0), "{lengths:?}");
            assert_eq!(filter.multicast, many(kept.1), "{lengths:?}");
            // Without CTRL_RX_EXTRA there is no "all unicast".
            let flags = [
                promiscuous || all_unicast && !extra,
                all_multicast,
                all_unicast && extra,
            ];
            assert_eq!(filter.flags[..3], flags, "{lengths:?}");
        }
    }
    // The command alone says so.
    let mut machine = machine();
    let mut net = machine.open();
    let table = many(MAC_TABLE_ENTRIES + 1);
    assert_eq!(
        net.command(&Command::MacTables {
            unicast: &[],
            multicast: &table
        }),
        Err(NetError::Control(ControlError::TooLong {
            command: "MAC_TABLE_SET"
        }))
    );
    assert_eq!(received(&machine), []);
    assert_eq!(net.vlan_add(7), Ok(()), "the queue is still good");
}

#[test]
fn a_refused_table_becomes_all() {
    let mut machine = machine();
    let mut net = machine.open();
    machine.device().control.behaviour = Behaviour::Refuses([1, 0]);
    net.set_rx_mode(RxMode {
        flags: RxFlags::empty(),
        unicast: vec![],
        multicast: vec![MULTICAST],
    })
    .unwrap();
    assert_eq!(
        filter(&machine).flags,
        [false, true, false, false, false, false]
    );
    net.set_rx_mode(RxMode {
        flags: RxFlags::empty(),
        unicast: vec![UNICAST],
        multicast: vec![],
    })
    .unwrap();
    assert_eq!(
        filter(&machine).flags,
        [false, false, true, false, false, false]
    );
}

#[test]
fn an_address_that_cannot_be_one_is_refused() {
    let mut machine = machine();
    let mut net = machine.open();
    for mac in [[0; 6], [0xff; 6], MULTICAST, [1, 0, 0, 0, 0, 0]] {
        assert_eq!(net.set_mac_address(mac), Err(NetError::InvalidMac { mac }),);
    }
    assert_eq!(net.info().mac, MAC);
    assert_eq!(received(&machine), []);
}

#[test]
fn the_address_is_set_by_command_or_by_configuration() {
    // By command, which is repeated after a reset.
    let mut machine = machine();
    let mut net = machine.open();
    net.set_mac_address(UNICAST).unwrap();
    assert_eq!(machine.device().control.mac, Some(UNICAST));
    assert_eq!(net.info().mac, UNICAST);
    net.open(&mut machine.controller, Rung::Polling).unwrap();
    assert_eq!(machine.device().control.mac, Some(UNICAST));
    // The receive filter needs not name it.
    net.set_rx_mode(RxMode::default()).unwrap();
    assert_eq!(filter(&machine).unicast, [] as [[u8; 6]; 0]);
    machine.device().control.behaviour = Behaviour::Refuses([1, 1]);
    assert!(net.set_mac_address([2; 6]).is_err());
    assert_eq!(net.info().mac, UNICAST);

    // By configuration: a legacy device without the command.
    let without = feature::CTRL_MAC_ADDR;
    let mut machine = Machine::new(feature::IMPLEMENTED & !without, 16);
    let mut net = machine.open();
    net.set_mac_address(UNICAST).unwrap();
    assert_eq!(machine.device().config[..6], UNICAST);
    machine.device().config[..6].copy_from_slice(&MAC); // as a reset would
    net.open(&mut machine.controller, Rung::Polling).unwrap();
    assert_eq!(machine.device().config[..6], UNICAST);
    assert_eq!(received(&machine), []);

    // Before it is open.
    let mut machine = Machine::new(feature::IMPLEMENTED, 16);
    let mut net = machine.probe().unwrap();
    net.set_mac_address(UNICAST).unwrap();
    net.open(&mut machine.controller, Rung::Polling).unwrap();
    assert_eq!(machine.device().control.mac, Some(UNICAST));
}

/// A mode that waits for the next open, or that the device has no commands for,
/// keeps nobody from another address.
#[test]
fn a_mode_that_was_not_applied_is_no_error_of_the_address() {
    let mut machine = machine();
    let mut net = machine.probe().unwrap();
    assert_eq!(
        net.set_rx_mode(RxMode::default()).err(),
        Some(NetError::NotOpen)
    );
    assert_eq!(net.set_mac_address(UNICAST), Ok(()));
    assert_eq!(net.info().mac, UNICAST);
    net.open(&mut machine.controller, Rung::Polling).unwrap();
    assert_eq!(machine.device().control.mac, Some(UNICAST));
    assert_eq!(filter(&machine).flags, [false; 6]);

    let without = feature::CTRL_RX | feature::CTRL_RX_EXTRA;
    let mut machine = Machine::new(feature::IMPLEMENTED & !without, 16);
    let mut net = machine.open();
    assert!(net.set_rx_mode(RxMode::default()).is_err());
    assert_eq!(net.set_mac_address(UNICAST), Ok(()));
    assert_eq!(machine.device().control.mac, Some(UNICAST));
}

/// Where the device has no address that could be set, its filter must let the
/// driver's through.
#[test]
fn an_address_of_the_drivers_own_is_in_the_table() {
    let without = feature::CTRL_MAC_ADDR | feature::MAC;
    let mut machine = Machine::new(feature::IMPLEMENTED & !without, 16);
    let mut net = machine.open();
    net.set_rx_mode(RxMode::default()).unwrap();
    assert_eq!(filter(&machine).unicast, [net.info().mac]);
    net.set_mac_address(UNICAST).unwrap();
    assert_eq!(filter(&machine).unicast, [UNICAST]);
    net.open(&mut machine.controller, Rung::Polling).unwrap();
    assert_eq!(filter(&machine).unicast, [UNICAST]);
}

#[test]
fn vlans_come_and_go() {
    let mut machine = machine();
    let mut net = machine.open();
    for id in [4096, 0xffff] {
        assert_eq!(net.vlan_add(id), Err(NetError::InvalidVlan { id }));
        assert_eq!(net.vlan_remove(id), Err(NetError::InvalidVlan { id }));
    }
    for id in [0, 5, 4095, 5] {
        net.vlan_add(id).unwrap();
    }
    net.vlan_remove(0).unwrap();
    net.open(&mut machine.controller, Rung::Intx).unwrap();
    assert_eq!(filter(&machine).vlans, [5, 4095]);
    assert_eq!(received(&machine).len(), 7);
}

#[test]
fn an_announcement_is_asked_for_and_acknowledged() {
    let mut machine = machine();
    let mut net = machine.open();
    machine.change_config(6, &[3]);
    machine.deliver();
    assert_eq!(net.poll(), Ok(Changes::ANNOUNCE));
    assert_eq!(machine.device().control.announcements, 0);
    net.announced().unwrap();
    assert_eq!(machine.device().control.announcements, 1);
    machine.change_config(6, &[2]);
    machine.deliver();
    assert_eq!(net.poll(), Ok(Changes::ANNOUNCE | Changes::LINK));
    // Nobody who has not agreed to is asked.
    net.stop(&mut machine.controller);
    drop(net);
    machine.device().config[6] = 1;
    let mut net = machine.probe_refusing(Features::GUEST_ANNOUNCE).unwrap();
    net.open(&mut machine.controller, Rung::Polling).unwrap();
    machine.device().config[6] = 2;
    assert_eq!(net.look_at_config(), Ok(Changes::LINK));
}

#[test]
fn offloads_are_those_that_were_negotiated() {
    let mut machine = machine();
    let mut net = machine.open();
    net.set_guest_offloads(Features::empty()).unwrap();
    assert_eq!(filter(&machine).offloads, Some(0));
    let negotiated = net.info().negotiated & Features::GUEST_OFFLOADS;
    // Large frames have partial checksums.
    let part = Features::GUEST_CSUM | Features::GUEST_TSO6;
    net.set_guest_offloads(part).unwrap();
    assert_eq!(filter(&machine).offloads, Some(part.bits()));
    net.set_guest_offloads(Features::GUEST_TSO6).unwrap();
    assert_eq!(filter(&machine).offloads, Some(0));
    net.set_guest_offloads(negotiated).unwrap();
    net.open(&mut machine.controller, Rung::Polling).unwrap();
    assert_eq!(filter(&machine).offloads, Some(negotiated.bits()));
    for wrong in [Features::GUEST_UFO, Features::CSUM, Features::MAC] {
        assert_eq!(
            net.set_guest_offloads(negotiated | wrong),
            Err(NetError::Control(ControlError::NotNegotiated {
                command: "GUEST_OFFLOADS_SET",
                feature: wrong
            }))
        );
    }
}

/// Pairs, control queue, vectors: each at its place (specification 5.1.2).
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

/// Nonsense in the configuration.
#[test]
fn an_impossible_number_of_pairs_is_one() {
    for pairs in [0u16, 0x8001, u16::MAX] {
        let machine = Machine::multiqueue(feature::IMPLEMENTED, 16);
        machine.device().config[8..10].copy_from_slice(&pairs.to_le_bytes());
        assert_eq!(machine.probe().unwrap().info().max_queue_pairs, 1);
    }
}

/// Speed and duplex are beyond a legacy device's features, so nothing is
/// said of them.
#[test]
fn a_legacy_device_has_no_speed() {
    let machine = Machine::new(!0, 16);
    let net = machine.probe().unwrap();
    assert_eq!((net.info().speed, net.info().duplex), (None, None));
}
