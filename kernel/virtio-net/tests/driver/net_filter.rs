//! What the device lets through: receive modes, addresses and VLANs.

use virtio_net::net::control::{Command, ControlError, MAC_TABLE_ENTRIES};
use virtio_net::net::{NetError, RxFlags, RxMode};
use virtio_net::vectors::Rung;

use crate::support::control::{
    Behaviour, Filter, MULTICAST, OTHER_MULTICAST, UNICAST, filter, numbers, received,
};
use crate::support::net::{MAC, Machine, feature};

fn machine() -> Machine {
    Machine::new(feature::IMPLEMENTED, 16)
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

/// What is refused when the device is opened again costs nothing else.
#[test]
fn all_but_what_is_refused_is_told_again() {
    let mut machine = machine();
    let mut net = machine.open();
    net.set_mac_address(UNICAST).unwrap();
    for id in [5, 6] {
        net.vlan_add(id).unwrap();
    }
    net.set_rx_mode(RxMode {
        flags: RxFlags::PROMISCUOUS,
        ..RxMode::default()
    })
    .unwrap();
    let before = filter(&machine);
    // MAC_ADDR_SET and VLAN_ADD.
    for (refused, vlans) in [([1, 1], vec![5, 6]), ([2, 0], vec![])] {
        machine.device().control.behaviour = Behaviour::Refuses(refused);
        net.open(&mut machine.controller, Rung::Polling).unwrap();
        let after = filter(&machine);
        assert_eq!(after.flags, before.flags, "{refused:?}");
        assert_eq!(after.vlans, vlans, "{refused:?}");
    }
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
