//! The control queue: what the device is told, and what a device that does not
//! do as it should can do to its driver.

use std::cell::Cell;

use virtio_net::net::control::{Command, ControlError};
use virtio_net::net::{Changes, Features, NetError};
use virtio_net::queue::{BrokenReason, QueueError};
use virtio_net::vectors::Rung;

use crate::support::control::{
    Behaviour, MULTICAST, OTHER_MULTICAST, Received, UNICAST, filter, received,
};
use crate::support::device::status;
use crate::support::memory::pages_in_use;
use crate::support::net::{CONTROL_SIZE, Machine, Net, feature, high, pattern, receive_all, send};

fn machine() -> Machine {
    Machine::new(feature::IMPLEMENTED, 16)
}

/// Frames go and come.
pub fn assert_alive(machine: &Machine, net: &mut Net) {
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

thread_local! {
    static MICROS: Cell<u64> = const { Cell::new(0) };
}

/// A clock that goes on by 100 microseconds a look.
fn micros() -> u64 {
    let now = MICROS.get() + 100;
    MICROS.set(now);
    now
}

/// How long a command waits for a device that does not answer, in microseconds.
fn waited_in_vain(net: &mut Net) -> u64 {
    net.set_clock(micros);
    let start = MICROS.get();
    assert_eq!(
        net.vlan_add(7),
        Err(NetError::Control(ControlError::NoAnswer {
            command: "VLAN_ADD"
        }))
    );
    MICROS.get() - start
}

/// A device that never answers costs one error, in the time that it is given; what
/// it might still write is not used again until it was reset.
#[test]
fn a_device_that_never_answers_is_given_up_once() {
    for (late, without) in [(false, 0), (true, 0), (true, feature::EVENT_IDX)] {
        let mut machine = Machine::new(feature::IMPLEMENTED & !without, 16);
        let mut net = machine.open();
        let pages = pages_in_use();
        machine.device().control.behaviour = Behaviour::Silent;
        net.set_control_patience(10_000);
        let waited = waited_in_vain(&mut net);
        assert!((10_000..12_000).contains(&waited), "{waited} us");
        // Whoever waits once more does so for ever.
        net.set_control_patience(u64::MAX);
        for _ in 0..1000 {
            assert_eq!(
                net.command(&Command::AnnounceAck),
                Err(NetError::Control(ControlError::GivenUp {
                    command: "ANNOUNCE_ACK"
                }))
            );
        }
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

/// A device that breaks over a command is not waited for.
#[test]
fn a_device_that_asks_for_a_reset_needs_not_answer() {
    let mut machine = Machine::new(feature::IMPLEMENTED, 16);
    let mut net = machine.open();
    machine.device().control.behaviour = Behaviour::Silent;
    machine.device().status |= status::NEEDS_RESET;
    let waited = waited_in_vain(&mut net);
    assert!(waited < 200_000, "{waited} us");
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
    assert_eq!(filter(&machine).offloads, Some(part.bits() as u64));
    net.set_guest_offloads(Features::GUEST_TSO6).unwrap();
    assert_eq!(filter(&machine).offloads, Some(0));
    net.set_guest_offloads(negotiated).unwrap();
    net.open(&mut machine.controller, Rung::Polling).unwrap();
    assert_eq!(filter(&machine).offloads, Some(negotiated.bits() as u64));
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

/// A driver that agrees to `IN_ORDER` uses a split ring's descriptors in the
/// order of the ring (specification 2.7.9). Commands have two to four of them: a
/// device that goes on behind the last one must find the next command there.
#[test]
fn commands_follow_each_other_in_the_ring_where_order_was_agreed_on() {
    for without in [0, feature::INDIRECT_DESC] {
        let mut machine = Machine::new(feature::IMPLEMENTED & !without, 16);
        machine.device().offered_high = high::VERSION_1 | high::IN_ORDER;
        let mut net = machine.open();
        let agreed = net.info().negotiated;
        assert!(agreed.contains(Features::IN_ORDER));
        let mut next = 0;
        for round in 0..100 {
            let (command, length) = match round % 3 {
                0 => (Command::AnnounceAck, 2),
                1 => (Command::Promiscuous(true), 3),
                _ => {
                    let (unicast, multicast) = (&[][..], &[][..]);
                    (Command::MacTables { unicast, multicast }, 4)
                }
            };
            assert_eq!(net.command(&command), Ok(()));
            let head = machine.device().heads.pop().unwrap();
            assert_eq!(head, next, "{agreed}");
            let taken = if without == 0 { 1 } else { length };
            next = (head + taken) % CONTROL_SIZE;
        }
    }
}
