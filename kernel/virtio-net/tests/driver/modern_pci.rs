//! `ModernPciTransport` register by register.

use virtio_drivers::transport::{DeviceType, Transport};
use virtio_drivers::{Error, Hal};
use virtio_net::doorbell::{Doorbell, Notify};
use virtio_net::interrupt::IsrRegister;
use virtio_net::transport::{BusName, ConfigOps, MsiMessage, RingAddresses, TransportError};

use crate::msix::messages;
use crate::support::faults::{self, Step};
use crate::support::memory::GuestHal;
use crate::support::modern::{
    BAR, Modern, ModernDevice, ModernMachine, NO_VECTOR, NOTIFY, PORTS, TABLE, VERSION_1,
    capabilities, capability, notify_capability, status,
};
use crate::support::pci::command;
use crate::support::registers::take_mapped;
use crate::support::transport::acknowledge;

/// `VIRTIO_F_NOTIFICATION_DATA` (specification 6).
const NOTIFICATION_DATA: u64 = 1 << 38;

/// A machine whose device has agreed to features, as it is when queues are set
/// up.
fn ready() -> (ModernMachine, Modern) {
    ready_with(|_| ())
}

fn ready_with(change: impl FnOnce(&mut ModernDevice)) -> (ModernMachine, Modern) {
    let machine = ModernMachine::new();
    change(&mut machine.device());
    let mut transport = machine.transport().unwrap();
    transport.reset().unwrap();
    acknowledge(&mut transport);
    transport.finalize_features(VERSION_1).unwrap();
    (machine, transport)
}

fn rings(size: u16) -> RingAddresses {
    RingAddresses {
        size,
        descriptors: 0x12_3456_7000,
        driver: 0x12_3456_8000,
        device: 0x12_3456_9000,
    }
}

#[test]
fn it_takes_the_device_and_lets_it_decode() {
    let machine = ModernMachine::new();
    machine.device().pci.set(0x04, 1 << 20 | 0x140); // parity, SERR
    let transport = machine.transport().unwrap();
    assert_eq!(transport.device_type(), DeviceType::Network);
    assert_eq!(BusName(&transport).to_string(), "PCI 00:02.0");
    assert!(!transport.requires_legacy_layout());
    assert!(matches!(transport.isr(), Some(IsrRegister::Mmio { .. })));
    let enabled = command::IO_SPACE | command::MEMORY_SPACE | command::BUS_MASTER;
    assert!(machine.device().pci.command(enabled | 0x140));
    assert_eq!(machine.device().accesses, 0, "nothing needs a register yet");
}

#[test]
fn other_devices_are_not_taken() {
    let refused = |id: u32, subsystem: u32| {
        let machine = ModernMachine::new();
        machine.device().pci.set(0x00, id);
        machine.device().pci.set(0x2c, subsystem << 16 | 0x1af4);
        machine.transport().err()
    };
    for id in [0x1041_8086, 0x0fff_1af4, 0x1080_1af4, 0xffff_ffffu32] {
        let other = TransportError::NotThisTransport {
            vendor: id as u16,
            device: (id >> 16) as u16,
        };
        assert_eq!(refused(id, 0x1100), Some(other));
    }
    for (id, subsystem, kind) in [(0x1040_1af4, 0, 0), (0x1000_1af4, 0xffff, 0xffff)] {
        let unknown = TransportError::UnknownDeviceType { id: kind };
        assert_eq!(refused(id, subsystem), Some(unknown));
    }
    // A transitional device's kind is its subsystem (specification 4.1.2.1).
    assert_eq!(refused(0x1000_1af4, 1), None);
    assert_eq!(refused(0x1041_1af4, 0x1100), None);
}

#[test]
fn features_have_64_bits_and_must_be_kept() {
    let machine = ModernMachine::new();
    let offered = machine.device().offered;
    let mut transport = machine.transport().unwrap();
    acknowledge(&mut transport);
    assert_eq!(transport.read_device_features(), offered);
    let agreed = VERSION_1 | 1 << 29;
    transport.finalize_features(agreed).unwrap();
    assert_eq!(machine.device().features, agreed);
    assert_eq!(
        machine.device().status,
        status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK
    );
    assert_eq!(machine.device().violations, [] as [String; 0]);
}

#[test]
fn features_that_are_not_kept_are_noticed() {
    let machine = ModernMachine::new();
    let mut transport = machine.transport().unwrap();
    acknowledge(&mut transport);
    let features = VERSION_1 | 1 << 45;
    assert_eq!(
        transport.finalize_features(features),
        Err(TransportError::FeaturesRefused { features })
    );
    // Without VERSION_1 nothing is even written.
    transport.reset().unwrap();
    acknowledge(&mut transport);
    let before = machine.device().writes.len();
    assert_eq!(
        transport.finalize_features(1 << 29),
        Err(TransportError::NoVersion1)
    );
    assert_eq!(machine.device().writes.len(), before);
}

#[test]
fn a_queue_is_set_up_in_order() {
    let (machine, mut transport) = ready();
    assert_eq!(transport.num_queues(), Some(2));
    let doorbell = transport.setup_queue(1, rings(128)).unwrap();
    assert!(matches!(doorbell, Doorbell::Mmio16 { queue: 1, .. }));
    assert!(!transport.queue_used(1), "not before its vector is set");
    transport.msix_enable(&messages(3)).unwrap();
    transport.set_queue_vector(1, 2).unwrap();
    transport.enable_queue(1).unwrap();
    assert!(transport.queue_used(1));
    assert!(!transport.queue_used(0));
    let queue = machine.device().queues[1].clone();
    let RingAddresses {
        descriptors,
        driver,
        device,
        ..
    } = rings(128);
    assert_eq!(queue.areas, [descriptors, driver, device]);
    assert_eq!((queue.size, queue.vector, queue.enabled), (128, 2, true));
    assert_eq!(
        transport.setup_queue(1, rings(128)).err(),
        Some(TransportError::QueueInUse { queue: 1 })
    );
    assert_eq!(machine.device().violations, [] as [String; 0]);
}

#[test]
fn a_queue_that_cannot_be_is_refused() {
    let (machine, mut transport) = ready();
    for queue in [2, 3, 0xffff] {
        assert_eq!(
            transport.setup_queue(queue, rings(64)).err(),
            Some(TransportError::NoSuchQueue { queue })
        );
    }
    for size in [0, 257, 0xffff] {
        let refused = TransportError::QueueSizeRefused {
            queue: 0,
            size,
            max: 256,
        };
        assert_eq!(transport.setup_queue(0, rings(size)).err(), Some(refused));
    }
    faults::plan_every(Step::QueueEnable(0));
    transport.setup_queue(0, rings(64)).unwrap();
    assert_eq!(
        transport.enable_queue(0),
        Err(TransportError::QueueNotEnabled { queue: 0 })
    );
    faults::take_strikes();
    assert_eq!(machine.device().violations, [] as [String; 0]);
}

/// `Transport::queue_set`, which other device drivers use, enables as well.
#[test]
fn queue_set_is_setup_and_enable() {
    let (machine, mut transport) = ready();
    transport.queue_set(0, 0x1_0100, 0x1000, 0x2000, 0x3000);
    assert!(!machine.device().queues[0].enabled);
    transport.queue_set(0, 16, 0x1000, 0x2000, 0x3000);
    assert!(machine.device().queues[0].enabled);
    assert_eq!(machine.device().queues[0].areas, [0x1000, 0x2000, 0x3000]);
}

/// Specification 4.1.4.4: `queue_notify_off * notify_off_multiplier`, within
/// the structure.
#[test]
fn each_queue_has_its_notify_register() {
    // It alone is mapped.
    let place = |doorbell| match (doorbell, &take_mapped()[..]) {
        (Doorbell::Mmio16 { .. }, [(address, 2)]) => *address,
        (other, mapped) => panic!("{other}, {mapped:x?}"),
    };
    let (machine, mut transport) = ready();
    take_mapped();
    let base = place(transport.setup_queue(0, rings(64)).unwrap());
    assert_eq!(base, BAR + u64::from(NOTIFY));
    machine.device().queues[1].notify_off = 7;
    assert_eq!(
        place(transport.setup_queue(1, rings(64)).unwrap()),
        base + 28
    );
    // The last register that the 4096 bytes hold, and the one behind.
    machine.device().queues[1].notify_off = 1023;
    assert_eq!(
        place(transport.setup_queue(1, rings(64)).unwrap()),
        base + 4092
    );
    for notify_off in [1024, 0xffff] {
        machine.device().queues[1].notify_off = notify_off;
        let outside = TransportError::NotifyOutside {
            queue: 1,
            offset: u64::from(notify_off) * 4,
            length: 0x1000,
        };
        assert_eq!(transport.setup_queue(1, rings(64)).err(), Some(outside));
    }
    // The largest product does not wrap.
    let (machine, mut transport) = ready_with(|device| {
        let mut list = capabilities();
        list[2].1 = notify_capability(4, NOTIFY, 0x1000, 1 << 31);
        device.pci.capabilities(&list);
    });
    machine.device().queues[0].notify_off = 0xffff;
    let outside = TransportError::NotifyOutside {
        queue: 0,
        offset: 0xffff << 31,
        length: 0x1000,
    };
    assert_eq!(transport.setup_queue(0, rings(64)).err(), Some(outside));
}

#[test]
fn a_notify_register_in_ports_makes_a_port_doorbell() {
    let (machine, mut transport) = ready_with(|device| {
        device.pci.bar(2, u32::from(PORTS) | 1, !0x3f);
        let mut list = capabilities();
        list.push((0xb0, notify_capability(2, 16, 8, 4)));
        device.pci.capabilities(&list);
    });
    let doorbell = transport.setup_queue(1, rings(64)).unwrap();
    assert_eq!(
        doorbell.to_string(),
        format!("outw 1 -> port {:#x}", PORTS + 20)
    );
    machine.device().queues[1].notify_off = 2;
    let outside = TransportError::NotifyOutside {
        queue: 1,
        offset: 8,
        length: 8,
    };
    assert_eq!(transport.setup_queue(1, rings(64)).err(), Some(outside));
}

/// With `VIRTIO_F_NOTIFICATION_DATA` the register has 32 bits (specification
/// 4.1.4.4), in ports as in memory.
#[test]
fn a_notify_register_with_data_needs_32_bits() {
    let data = VERSION_1 | NOTIFICATION_DATA;
    for in_ports in [true, false] {
        let machine = ModernMachine::new();
        machine.device().offered |= NOTIFICATION_DATA;
        let mut list = capabilities();
        if in_ports {
            let mut device = machine.device();
            device.pci.bar(2, u32::from(PORTS) | 1, !0x3f);
            list.push((0xb0, notify_capability(2, 16, 6, 2)));
            device.pci.capabilities(&list);
        } else {
            list[2].1 = notify_capability(4, NOTIFY, 6, 2);
            machine.device().pci.capabilities(&list);
        }
        let mut transport = machine.transport().unwrap();
        for (features, last) in [(VERSION_1, 2), (data, 1)] {
            transport.reset().unwrap();
            acknowledge(&mut transport);
            transport.finalize_features(features).unwrap();
            for notify_off in 0..4u16 {
                machine.device().queues[1].notify_off = notify_off;
                let doorbell = transport.setup_queue(1, rings(64));
                assert_eq!(doorbell.is_ok(), notify_off <= last, "{notify_off}");
                if let Ok(doorbell) = doorbell {
                    // Of 32 bits, the first is aligned and the next is not.
                    assert_eq!(doorbell.takes_data(), notify_off % 2 == 0);
                }
            }
        }
    }
}

#[test]
fn vectors_are_read_back() {
    let (machine, mut transport) = ready();
    transport.msix_enable(&messages(3)).unwrap();
    transport.set_config_vector(0).unwrap();
    transport.set_queue_vector(0, 1).unwrap();
    assert_eq!(machine.device().config_vector, 0);
    assert_eq!(machine.device().queues[0].vector, 1);
    let not_taken = |queue, wrote| {
        Err(TransportError::VectorNotTaken {
            queue,
            wrote,
            read: NO_VECTOR,
        })
    };
    assert_eq!(transport.set_config_vector(3), not_taken(None, 3));
    assert_eq!(transport.set_queue_vector(1, 3), not_taken(Some(1), 3));
    assert_eq!(transport.set_queue_vector(2, 1), not_taken(Some(2), 1));
    assert_eq!(
        transport.set_queue_vector(0, NO_VECTOR),
        not_taken(Some(0), NO_VECTOR)
    );
}

/// An entry of the device's MSI-X table.
fn table_entry(entry: u64) -> [u32; 4] {
    // SAFETY: the model has such a table; nobody else uses it meanwhile.
    unsafe {
        let words = GuestHal::mmio_phys_to_virt(TABLE + 16 * entry, 16);
        words.cast::<[u32; 4]>().read_volatile()
    }
}

#[test]
fn an_entry_can_be_sent_to_another_cpu() {
    let (_machine, mut transport) = ready();
    let other = messages(4)[3];
    let off = TransportError::TooFewVectors {
        needed: 2,
        available: 0,
    };
    assert_eq!(transport.set_vq_affinity(1, other), Err(off));
    let connected = messages(2);
    transport.msix_enable(&connected).unwrap();
    transport.set_vq_affinity(1, other).unwrap();
    // Address, data and mask of each entry.
    let entry = |message: MsiMessage, masked| {
        let (low, high) = (message.address as u32, (message.address >> 32) as u32);
        [low, high, message.data, masked]
    };
    assert_eq!(table_entry(0), entry(connected[0], 0));
    assert_eq!(table_entry(1), entry(other, 0));
    assert_eq!(table_entry(2)[3], 1, "the last one stays masked");
    assert_eq!(
        transport.set_vq_affinity(3, other),
        Err(TransportError::TooFewVectors {
            needed: 4,
            available: 3
        })
    );
}

#[test]
fn configuration_is_read_at_every_width() {
    let (machine, mut transport) = ready();
    assert_eq!(transport.read_config_space::<u8>(3), Ok(3));
    assert_eq!(transport.read_config_space::<u16>(2), Ok(0x0302));
    assert_eq!(transport.read_config_space::<u32>(4), Ok(0x0706_0504));
    assert_eq!(
        transport.read_config_space::<u64>(8),
        Ok(0x0f0e_0d0c_0b0a_0908)
    );
    assert_eq!(
        transport.read_config_space::<[u8; 6]>(0),
        Ok([0, 1, 2, 3, 4, 5])
    );
    // Not aligned: by bytes.
    assert_eq!(transport.read_config_space::<u16>(5), Ok(0x0605));
    transport.write_config_space(0, 0xa0u8).unwrap();
    transport.write_config_space(2, 0xb1b0u16).unwrap();
    transport.write_config_space(4, 0xc3c2_c1c0u32).unwrap();
    transport
        .write_config_space(8, 0xd7d6_d5d4_d3d2_d1d0u64)
        .unwrap();
    transport
        .write_config_space(17, [0xe0u8, 0xe1, 0xe2])
        .unwrap();
    assert_eq!(
        machine.device().config[..20],
        [
            0xa0, 1, 0xb0, 0xb1, 0xc0, 0xc1, 0xc2, 0xc3, 0xd0, 0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6,
            0xd7, 16, 0xe0, 0xe1, 0xe2
        ]
    );
}

/// Specification 2.5.1: what takes several accesses is read again when the
/// generation has changed meanwhile.
#[test]
fn configuration_is_read_in_one_piece() {
    let (machine, transport) = ready();
    for restless in [1, 7, 20] {
        machine.device().restless = restless;
        let read = transport.read_config_space::<[u8; 6]>(0).unwrap();
        let config: [u8; 6] = machine.device().config[..6].try_into().unwrap();
        assert_eq!(read, config);
        assert_eq!(machine.device().restless, 0, "it was not still yet");
    }
    // One that never stands still is given up.
    machine.device().restless = u32::MAX;
    let before = machine.device().accesses;
    assert_eq!(
        transport.read_config_space::<[u8; 6]>(0),
        Err(Error::IoError)
    );
    assert!(machine.device().accesses - before < 1000);
    // What one access reads is whole by that.
    assert!(transport.read_config_space::<u32>(4).is_ok());
}

#[test]
fn configuration_ends_with_its_structure() {
    let (machine, mut transport) = ready_with(|device| {
        let mut list = capabilities();
        list[3].1 = capability(4, 4, 0x2000, 12);
        device.pci.capabilities(&list);
    });
    let before = machine.device().accesses;
    let too_small = Err(Error::ConfigSpaceTooSmall);
    for offset in [11, 12, 0x1000, usize::MAX - 1, usize::MAX] {
        assert_eq!(transport.read_config_space::<u16>(offset), too_small);
        assert_eq!(
            transport.write_config_space(offset, 0u16),
            Err(Error::ConfigSpaceTooSmall)
        );
    }
    assert_eq!(machine.device().accesses, before);
    assert_eq!(transport.read_config_space::<u16>(10), Ok(0x0b0a));

    let (_machine, transport) = ready_with(|device| {
        let mut list = capabilities();
        list.remove(3);
        device.pci.capabilities(&list);
    });
    assert_eq!(
        transport.read_config_space::<u8>(0),
        Err(Error::ConfigSpaceMissing)
    );
}

#[test]
fn a_reset_is_waited_for_and_given_up() {
    for reads in [0, 1, 2, 500] {
        let (machine, mut transport) = ready();
        machine.device().reset.reads = reads;
        assert_eq!(transport.reset(), Ok(()));
        assert_eq!(machine.device().status, 0);
    }
    let (machine, mut transport) = ready();
    machine.device().reset.reads = u32::MAX;
    let shown = u32::from(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    let timeout = TransportError::ResetTimeout { status: shown };
    assert_eq!(transport.reset(), Err(timeout));
    // It is tried again when the transport goes, and given up again.
    drop(transport);
    assert!(machine.device().accesses < 1_000_000);
}

#[test]
fn one_queue_can_be_reset() {
    for reads in [0, 1, 50] {
        let (machine, mut transport) = ready();
        transport.setup_queue(0, rings(64)).unwrap();
        transport.enable_queue(0).unwrap();
        machine.device().queues[0].reset_reads = reads;
        assert_eq!(transport.queue_reset(0), Ok(()));
        assert!(!transport.queue_used(0));
        // And set up anew, with another size.
        transport.setup_queue(0, rings(32)).unwrap();
        transport.enable_queue(0).unwrap();
        assert_eq!(machine.device().queues[0].size, 32);
        assert_eq!(machine.device().violations, [] as [String; 0]);
    }
    let (machine, mut transport) = ready();
    machine.device().queues[1].reset_reads = u32::MAX;
    assert_eq!(
        transport.queue_reset(1),
        Err(TransportError::QueueResetTimeout { queue: 1 })
    );
    assert!(machine.device().accesses < 1_000_000);
    // A device of version 1.0 has no register there.
    let (_machine, mut transport) = ready_with(|device| {
        let mut list = capabilities();
        list[5].1 = capability(1, 4, 0, 0x38);
        device.pci.capabilities(&list);
    });
    assert_eq!(
        transport.queue_reset(0),
        Err(TransportError::NoQueueReset { queue: 0 })
    );
}

#[test]
fn dropping_it_resets_the_device() {
    let (machine, mut transport) = ready();
    transport.msix_enable(&messages(2)).unwrap();
    drop(transport);
    assert_eq!(machine.device().status, 0);
    assert!(!machine.device().pci.msix_enabled());
}

#[test]
fn every_access_is_counted() {
    let (machine, mut transport) = ready();
    transport.setup_queue(0, rings(64)).unwrap();
    transport.enable_queue(0).unwrap();
    let _ = transport.read_config_space::<[u8; 6]>(0);
    transport.ack_interrupt();
    assert_eq!(machine.device().accesses, transport.register_accesses());
}

#[test]
fn features_beyond_64_are_read() {
    let machine = ModernMachine::new();
    machine.device().offered_beyond = 1 << 63 | 1 << 3;
    let mut transport = machine.transport().unwrap();
    let low = transport.read_device_features();
    assert_eq!(transport.read_device_features_beyond(), 1 << 63 | 1 << 3);
    assert_eq!(transport.read_device_features(), low);
}
