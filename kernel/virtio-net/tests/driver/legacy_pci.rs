//! `LegacyPciTransport` register by register.

use virtio_drivers::Error;
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};
use virtio_net::doorbell::Doorbell;
use virtio_net::interrupt::IsrRegister;
use virtio_net::transport::{BarProblem, BusName, ConfigOps, RingAddresses, TransportError};

use crate::msix::messages;
use crate::support::device::{IO_BASE, LegacyDevice, status};
use crate::support::net::{MAC, Machine, feature};
use crate::support::pci::command;
use crate::support::transport::Legacy;

/// A machine whose device was acknowledged, as it is when queues are set up.
fn ready() -> (Machine, Legacy) {
    let machine = Machine::new(feature::ALL, 256);
    let mut transport = machine.legacy().unwrap();
    transport.set_status(DeviceStatus::ACKNOWLEDGE);
    transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    (machine, transport)
}

fn rings(address: u64) -> RingAddresses {
    RingAddresses {
        size: 256,
        descriptors: address,
        driver: address + 4096,
        device: address + 8192,
    }
}

/// What `new` says about a device that was changed before.
fn refused(change: impl FnOnce(&mut LegacyDevice)) -> Option<TransportError> {
    let machine = Machine::new(feature::ALL, 256);
    change(&mut machine.device());
    let error = machine.legacy().err();
    if error.is_some() {
        assert_eq!(machine.device().accesses, 0, "a register was touched");
    }
    error
}

#[test]
fn it_takes_the_device_and_lets_it_decode() {
    let machine = Machine::new(feature::ALL, 256);
    machine.device().pci.set(0x04, 1 << 20 | 0x140); // parity, SERR
    let transport = machine.legacy().unwrap();
    assert_eq!(transport.device_type(), DeviceType::Network);
    assert_eq!(BusName(&transport).to_string(), "PCI 00:02.0");
    assert!(transport.requires_legacy_layout());
    assert!(matches!(
        transport.isr(),
        Some(IsrRegister::Port { 0: port, .. }) if port == IO_BASE + 0x13
    ));
    let enabled = command::IO_SPACE | command::MEMORY_SPACE | command::BUS_MASTER;
    assert!(machine.device().pci.command(enabled | 0x140));
    assert_eq!(machine.device().accesses, 0, "nothing needs a register yet");
}

#[test]
fn other_devices_are_not_taken() {
    for (id, revision) in [
        (0x1000_8086, 0), // another vendor
        (0x0fff_1af4, 0), // below the transitional ids
        (0x1040_1af4, 0), // above them: modern only
        (0x1041_1af4, 1),
        (0x1000_1af4, 1), // not transitional by its revision
        (0xffff_ffff, 0), // nobody there
    ] {
        assert_eq!(
            refused(|device| {
                device.pci.set(0x00, id);
                device.pci.set(0x08, 0x0200_0000 | revision);
            }),
            Some(TransportError::NotThisTransport {
                vendor: id as u16,
                device: (id >> 16) as u16
            })
        );
    }
    for id in [0x1001_1af4, 0x103f_1af4] {
        assert_eq!(refused(|device| device.pci.set(0x00, id)), None);
    }
}

#[test]
fn the_kind_of_device_is_its_subsystem() {
    for id in [0, 14, 15, 26, 0xffff] {
        assert_eq!(
            refused(|device| device.pci.set(0x2c, u32::from(id) << 16 | 0x1af4)),
            Some(TransportError::UnknownDeviceType { id })
        );
    }
    let machine = Machine::new(0, 1);
    machine.device().pci.set(0x2c, 0x0002_1af4);
    let transport = machine.legacy().unwrap();
    assert_eq!(transport.device_type(), DeviceType::Block);
}

#[test]
fn unusable_bars_are_refused_with_the_reason() {
    let bar = |value, writable| {
        let error = refused(|device| device.pci.bar(0, value, writable));
        error.map(|error| match error {
            TransportError::UnusableBar { bar: 0, problem } => problem,
            other => panic!("{other}"),
        })
    };
    // (BAR, its writable bits): the lowest writable bit is the size.
    assert_eq!(bar(0, 0), Some(BarProblem::Missing));
    assert_eq!(bar(1, !0x3f), Some(BarProblem::Unassigned));
    assert_eq!(bar(0xfeb0_0000, !0xfff), Some(BarProblem::WrongKind));
    assert_eq!(bar(0xfeb0_0004, !0xfff), Some(BarProblem::WrongKind));
    // Neither of 32 nor of 64 bits.
    assert_eq!(bar(0xfeb0_0006, !0xfff), Some(BarProblem::Missing));
    let small = |size| Some(BarProblem::TooSmall { size, needed: 24 });
    assert_eq!(bar(0xc001, !0x3), small(4));
    assert_eq!(bar(0xc001, !0xf), small(16));
    let outside = |address| Some(BarProblem::OutOfRange { address });
    assert_eq!(bar(0x1_0001, !0x1f), outside(0x1_0000));
    assert_eq!(bar(0xffff_ffe1, !0x1f), outside(0xffff_ffe0));
    // The last ports there are.
    assert_eq!(bar(0xffe1, !0x1f), None);
    // A device may decode only 16 bits (PCI 6.2.5.1).
    assert_eq!(bar(0xc041, 0xffc0), None);
    // It begins below 64 KiB and, so the device says, ends above.
    assert_eq!(
        refused(|device| device.pci.lying_bar(0, 0xfff1, !0x1e)),
        Some(TransportError::UnusableBar {
            bar: 0,
            problem: BarProblem::OutOfRange { address: 0xfff0 }
        })
    );
}

#[test]
fn registers_are_where_the_specification_says() {
    let (machine, mut transport) = ready();
    assert_eq!(transport.read_device_features(), u64::from(feature::ALL));
    transport.write_driver_features(0x20);
    assert_eq!(machine.device().features, 0x20);
    assert_eq!(
        transport.get_status(),
        DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER
    );
    assert_eq!(transport.max_queue_size(1), 256);
    assert_eq!(transport.max_queue_size(2), 0, "there is no such queue");
    machine.device().isr = 3;
    assert_eq!(transport.ack_interrupt().bits(), 3);
    assert_eq!(transport.ack_interrupt().bits(), 0);
    assert_eq!(transport.read_config_generation(), 0);
    transport.set_guest_page_size(4096);
    assert_eq!(
        machine.device().accesses,
        transport.register_accesses(),
        "an access was not counted"
    );
}

/// Specification 3.1.2: a legacy device has no FEATURES_OK.
#[test]
fn features_ok_is_never_written() {
    let (machine, mut transport) = ready();
    transport.set_status(DeviceStatus::all() - DeviceStatus::DEVICE_NEEDS_RESET);
    for written in &machine.device().status_writes {
        assert_eq!(written & 8, 0);
    }
}

#[test]
fn only_32_feature_bits_can_be_agreed() {
    let (machine, mut transport) = ready();
    transport
        .finalize_features(u64::from(feature::EVENT_IDX))
        .unwrap();
    assert_eq!(machine.device().features, feature::EVENT_IDX);
    for features in [1 << 32, u64::MAX] {
        assert_eq!(
            transport.finalize_features(features),
            Err(TransportError::FeaturesRefused { features })
        );
    }
    assert_eq!(machine.device().features, feature::EVENT_IDX);
}

#[test]
fn configuration_moves_when_msix_is_turned_on() {
    let (machine, mut transport) = ready();
    let mac = |transport: &Legacy| transport.read_config_space::<[u8; 6]>(0);
    assert_eq!(mac(&transport), Ok(MAC));
    transport.msix_enable(&messages(3)).unwrap();
    assert!(machine.device().pci.msix_enabled());
    assert_eq!(mac(&transport), Ok(MAC));
    assert_eq!(transport.read_config_space::<u16>(6), Ok(1));
    transport.write_config_space(10, 0x1234u16).unwrap();
    transport.msix_disable();
    assert!(!machine.device().pci.msix_enabled());
    assert_eq!(mac(&transport), Ok(MAC));
    assert_eq!(transport.read_config_space::<u16>(10), Ok(0x1234));
}

#[test]
fn configuration_is_read_and_written_at_every_width() {
    let (machine, mut transport) = ready();
    machine.device().config = (0..16).collect();
    assert_eq!(transport.read_config_space::<u8>(3), Ok(3));
    assert_eq!(transport.read_config_space::<u16>(2), Ok(0x0302));
    assert_eq!(transport.read_config_space::<u32>(4), Ok(0x0706_0504));
    assert_eq!(
        transport.read_config_space::<u64>(8),
        Ok(0x0f0e_0d0c_0b0a_0908)
    );
    transport.write_config_space(0, 0xa0u8).unwrap();
    transport.write_config_space(2, 0xb1b0u16).unwrap();
    transport.write_config_space(4, 0xc3c2_c1c0u32).unwrap();
    transport
        .write_config_space(8, [0xd0u8, 0xd1, 0xd2])
        .unwrap();
    assert_eq!(
        machine.device().config,
        [
            0xa0, 1, 0xb0, 0xb1, 0xc0, 0xc1, 0xc2, 0xc3, 0xd0, 0xd1, 0xd2, 11, 12, 13, 14, 15
        ]
    );
}

/// The BAR has 64 bytes, of which the configuration has the last 44 or, with
/// MSI-X, 40. Nothing beyond may be touched: it is another device's.
#[test]
fn configuration_ends_with_the_bar() {
    let (machine, mut transport) = ready();
    let too_small = Err(Error::ConfigSpaceTooSmall);
    let before = machine.device().accesses;
    for offset in [44, 45, 0xffec, 0x1_0000, usize::MAX - 1, usize::MAX] {
        assert_eq!(transport.read_config_space::<u8>(offset), too_small);
        assert_eq!(
            transport.write_config_space(offset, 0u8),
            Err(Error::ConfigSpaceTooSmall)
        );
    }
    assert_eq!(
        transport.read_config_space::<u16>(43),
        Err(Error::ConfigSpaceTooSmall)
    );
    assert_eq!(machine.device().accesses, before);
    assert_eq!(transport.read_config_space::<u16>(42), Ok(0));
    transport.msix_enable(&messages(1)).unwrap();
    assert_eq!(
        transport.read_config_space::<u16>(42),
        Err(Error::ConfigSpaceTooSmall)
    );
    assert_eq!(transport.read_config_space::<u16>(38), Ok(0));
}

#[test]
fn a_queue_is_set_up_and_taken_back() {
    let (machine, mut transport) = ready();
    let doorbell = transport.setup_queue(1, rings(0x1234_5000)).unwrap();
    assert!(matches!(
        doorbell,
        Doorbell::Port { port, queue: 1, .. } if port == IO_BASE + 0x10
    ));
    assert_eq!(machine.device().queues[0].pfn, 0);
    assert_eq!(machine.device().queues[1].pfn, 0x1_2345);
    assert!(transport.queue_used(1));
    assert!(!transport.queue_used(0));
    assert_eq!(
        transport.setup_queue(1, rings(0x20_0000)).err(),
        Some(TransportError::QueueInUse { queue: 1 })
    );
    assert_eq!(machine.device().queues[1].pfn, 0x1_2345);
    transport.queue_unset(1);
    assert!(!transport.queue_used(1));
}

/// `Transport::queue_set`, which other device drivers use, cannot say what
/// went wrong but does nothing then.
#[test]
fn queue_set_is_setup_queue() {
    let (machine, mut transport) = ready();
    let [a, b, c] = [0x40_0000, 0x40_1000, 0x40_2000];
    transport.queue_set(0, 0x1_0100, a, b, c);
    transport.queue_set(0, 128, a, b, c);
    assert_eq!(machine.device().queues[0].pfn, 0);
    transport.queue_set(0, 256, a, b, c);
    assert_eq!(machine.device().queues[0].pfn, 0x400);
}

#[test]
fn a_queue_that_is_not_there_or_of_another_size_is_refused() {
    let (machine, mut transport) = ready();
    for (queue, size) in [
        (2, 256),
        (0xffff, 256),
        (0, 255),
        (0, 128),
        (0, 512),
        (0, 0),
    ] {
        let wanted = RingAddresses {
            size,
            ..rings(0x20_0000)
        };
        assert_eq!(
            transport.setup_queue(queue, wanted).err(),
            Some(TransportError::NoSuchQueue { queue })
        );
    }
    assert!(machine.device().queues.iter().all(|queue| queue.pfn == 0));
}

/// 32 bits of page frame number: 44 bits of address.
#[test]
fn a_ring_beyond_44_bits_is_refused() {
    let (machine, mut transport) = ready();
    for address in [1 << 44, (1 << 44) + 0x1000, !0xfff, 0x20_0800, 0x20_0001] {
        assert_eq!(
            transport
                .setup_queue(
                    0,
                    RingAddresses {
                        descriptors: address,
                        ..rings(0)
                    }
                )
                .err(),
            Some(TransportError::AddressTooHigh { queue: 0, address })
        );
        assert_eq!(machine.device().queues[0].pfn, 0);
    }
    transport
        .setup_queue(0, rings((1 << 44) - 0x1_0000))
        .unwrap();
    assert_eq!(machine.device().queues[0].pfn, 0xffff_fff0);
}

#[test]
fn an_address_that_is_not_kept_is_noticed() {
    for (mask, read) in [(0, 0), (0xfff, 0x345)] {
        let (machine, mut transport) = ready();
        machine.device().pfn_mask = mask;
        assert_eq!(
            transport.setup_queue(0, rings(0x1234_5000)).err(),
            Some(TransportError::QueueNotTaken {
                queue: 0,
                wrote: 0x1_2345,
                read
            })
        );
    }
}

#[test]
fn a_reset_is_waited_for() {
    for reads in [0, 1, 2, 500] {
        let (machine, mut transport) = ready();
        machine.device().reset_reads = reads;
        assert_eq!(transport.reset(), Ok(()));
        assert_eq!(machine.device().status, 0);
    }
}

#[test]
fn a_reset_that_does_not_end_is_given_up() {
    let (machine, mut transport) = ready();
    machine.device().reset_reads = u32::MAX;
    let before = machine.device().accesses;
    let shown = u32::from(status::ACKNOWLEDGE | status::DRIVER);
    assert_eq!(
        transport.reset(),
        Err(TransportError::ResetTimeout { status: shown })
    );
    assert!(machine.device().accesses - before < 10_000);
    // It is tried again when the transport goes, and given up again.
    drop(transport);
    assert!(machine.device().accesses - before < 20_000);
}

#[test]
fn dropping_it_resets_the_device() {
    let (machine, mut transport) = ready();
    transport.msix_enable(&messages(2)).unwrap();
    transport.setup_queue(0, rings(0x20_0000)).unwrap();
    drop(transport);
    machine.assert_nothing_left();
}

#[test]
fn intx_is_turned_off_and_on() {
    let (machine, mut transport) = ready();
    for enable in [false, true, false] {
        transport.intx_enable(enable);
        let device = machine.device();
        assert_eq!(device.pci.command(command::INTERRUPT_DISABLE), !enable);
        assert!(device.pci.command(command::IO_SPACE | command::BUS_MASTER));
    }
}
