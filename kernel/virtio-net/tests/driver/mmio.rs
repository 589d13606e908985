//! `MmioTransport` register by register, both versions.

use std::ptr::NonNull;

use virtio_drivers::transport::{DeviceType, Transport};
use virtio_net::doorbell::Doorbell;
use virtio_net::interrupt::{InterruptState, IsrRegister, MmioInterrupt};
use virtio_net::net::{Features, NetError, Options, VirtioNet};
use virtio_net::transport::mmio::{MmioTransport, Version};
use virtio_net::transport::{BusName, ConfigOps, RingAddresses, TransportError};

use crate::msix::messages;
use crate::support::faults::{self, Step};
use crate::support::memory::{self, GuestHal, pages_in_use};
use crate::support::mmio::{BASE, Mmio, MmioDevice, MmioMachine, needed};
use crate::support::registers::FakeRegisters;
use crate::support::transport::acknowledge;

const EVENT_IDX: u64 = 1 << 29;

fn ready(version: u32) -> (MmioMachine, Mmio) {
    let machine = MmioMachine::new(version);
    let mut transport = machine.transport().unwrap();
    transport.reset().unwrap();
    acknowledge(&mut transport);
    transport.finalize_features(needed(version)).unwrap();
    (machine, transport)
}

fn rings(size: u16, descriptors: u64) -> RingAddresses {
    RingAddresses {
        size,
        descriptors,
        driver: descriptors + 0x1000,
        device: descriptors + 0x2000,
    }
}

#[test]
fn a_device_is_recognised_without_touching_it() {
    for (version, known) in [(1, Version::Legacy), (2, Version::Modern)] {
        let machine = MmioMachine::new(version);
        let transport = machine.transport().unwrap();
        assert_eq!(transport.version(), known);
        assert_eq!(transport.device_type(), DeviceType::Network);
        assert_eq!(BusName(&transport).to_string(), "virtio-mmio 0xfeb00e00");
        assert_eq!(transport.requires_legacy_layout(), version == 1);
        assert_eq!(machine.device().reads, [0, 4, 8]);
        assert_eq!(machine.device().writes, 0);
    }
}

/// Specification 4.2.3.1.1: magic, version and device id, in this order, and
/// nothing else of what is not known.
#[test]
fn what_is_no_device_is_left_alone() {
    let refused = |change: &dyn Fn(&mut MmioDevice), reads: usize| {
        let machine = MmioMachine::new(2);
        change(&mut machine.device());
        let error = machine.transport().err().unwrap();
        assert_eq!(machine.device().reads.len(), reads);
        assert_eq!(machine.device().writes, 0);
        error
    };
    for read in [0, !0, 0x7669_7274] {
        let error = refused(&|device| device.magic = read, 1);
        assert_eq!(error, TransportError::NoMagic { read });
    }
    for version in [0, 3, !0] {
        let error = refused(&|device| device.version = version, 2);
        assert_eq!(error, TransportError::UnknownVersion { version });
    }
    assert_eq!(
        refused(&|device| device.id = 0, 3),
        TransportError::NoDevice
    );
    for (device_id, id) in [(14, 14), (0xffff, 0xffff), (0x1_0001, 0xffff)] {
        let error = refused(&|device| device.id = device_id, 3);
        assert_eq!(error, TransportError::UnknownDeviceType { id });
    }
    let _machine = MmioMachine::new(2);
    for size in [0, 4, 0xff] {
        // SAFETY: the registers are the model's.
        let small = unsafe { MmioTransport::<GuestHal, FakeRegisters>::new(BASE, size) };
        let needed = 0x100;
        let expected = TransportError::RegionTooSmall { size, needed };
        assert_eq!(small.err(), Some(expected));
    }
}

#[test]
fn features_are_agreed_on_as_the_version_has_it() {
    for version in [1, 2] {
        let machine = MmioMachine::new(version);
        let offered = machine.device().offered;
        let mut transport = machine.transport().unwrap();
        acknowledge(&mut transport);
        assert_eq!(transport.read_device_features(), offered);
        let features = EVENT_IDX | needed(version);
        transport.finalize_features(features).unwrap();
        assert_eq!(machine.device().features, features);
        // Version 1 has no FEATURES_OK (specification 3.1.2).
        assert_eq!(machine.device().status, if version == 1 { 3 } else { 11 });
        assert_eq!(machine.device().violations, [] as [String; 0]);
    }
    let (_machine, mut transport) = ready(1);
    let features = 1 << 32;
    let refused = Err(TransportError::FeaturesRefused { features });
    assert_eq!(transport.finalize_features(features), refused);

    let machine = MmioMachine::new(2);
    let mut transport = machine.transport().unwrap();
    acknowledge(&mut transport);
    assert_eq!(
        transport.finalize_features(EVENT_IDX),
        Err(TransportError::NoVersion1)
    );
    let features = 1 << 32 | 1 << 50;
    let refused = Err(TransportError::FeaturesRefused { features });
    assert_eq!(transport.finalize_features(features), refused);
}

#[test]
fn a_queue_of_version_1_is_a_page_frame() {
    let (machine, mut transport) = ready(1);
    let doorbell = transport.setup_queue(1, rings(128, 0x1234_5000)).unwrap();
    assert!(matches!(doorbell, Doorbell::Mmio32 { queue: 1, .. }));
    transport.enable_queue(1).unwrap();
    let queue = machine.device().queues[1].clone();
    assert_eq!((queue.pfn, queue.size, queue.align), (0x1_2345, 128, 4096));
    assert_eq!(
        transport.setup_queue(1, rings(128, 0x2000)).err(),
        Some(TransportError::QueueInUse { queue: 1 })
    );
    for address in [1 << 44, 0x1001, 0x800] {
        let error = transport.setup_queue(0, rings(128, address)).err();
        assert_eq!(
            error,
            Some(TransportError::AddressTooHigh { queue: 0, address })
        );
    }
    faults::plan_every(Step::QueuePfn(0));
    let not_taken = TransportError::QueueNotTaken {
        queue: 0,
        wrote: 5,
        read: 0,
    };
    assert_eq!(
        transport.setup_queue(0, rings(128, 0x5000)).err(),
        Some(not_taken)
    );
    faults::take_strikes();
    assert_eq!(
        transport.queue_reset(0),
        Err(TransportError::NoQueueReset { queue: 0 })
    );
    assert_eq!(machine.device().violations, [] as [String; 0]);
}

/// The page size is forgotten at a reset (specification 4.2.4); the model
/// notes a violation when a queue comes before it.
#[test]
fn the_page_size_is_given_after_every_reset() {
    let (machine, mut transport) = ready(1);
    for _ in 0..2 {
        transport.reset().unwrap();
        assert_eq!(machine.device().page_size, 4096);
    }
}

#[test]
fn a_queue_of_version_2_has_addresses_and_is_made_ready() {
    let (machine, mut transport) = ready(2);
    let address = 0x12_3456_7000;
    transport.setup_queue(0, rings(64, address)).unwrap();
    assert!(!transport.queue_used(0));
    transport.enable_queue(0).unwrap();
    assert!(transport.queue_used(0));
    let queue = machine.device().queues[0].clone();
    assert_eq!(queue.areas, [address, address + 0x1000, address + 0x2000]);
    assert_eq!(
        transport.setup_queue(0, rings(64, address)).err(),
        Some(TransportError::QueueInUse { queue: 0 })
    );
    transport.queue_reset(0).unwrap();
    assert!(!transport.queue_used(0));
    transport.queue_set(0, 16, address, address, address);
    assert!(transport.queue_used(0));
    transport.queue_unset(0);
    assert!(!transport.queue_used(0));
    faults::plan_every(Step::QueueEnable(1));
    transport.setup_queue(1, rings(64, address)).unwrap();
    let error = Err(TransportError::QueueNotEnabled { queue: 1 });
    assert_eq!(transport.enable_queue(1), error);
    faults::take_strikes();
    assert_eq!(machine.device().violations, [] as [String; 0]);
}

/// QEMU 7.2 offers RING_RESET on virtio-mmio and has no register for it.
#[test]
fn a_queue_reset_that_has_no_effect_is_given_up() {
    let (machine, mut transport) = ready(2);
    transport.setup_queue(0, rings(64, 0x1000)).unwrap();
    transport.enable_queue(0).unwrap();
    machine.device().resets_queues = false;
    let error = Err(TransportError::QueueNotReset { queue: 0 });
    let before = machine.device().accesses;
    assert_eq!(transport.queue_reset(0), error);
    assert!(machine.device().accesses - before < 10);
}

/// RING_RESET is taken from a device that does it, and from no other.
#[test]
fn the_driver_tries_the_queue_reset_before_it_counts_on_it() {
    for (resets, refused) in [(true, false), (false, false), (true, true), (false, true)] {
        let machine = MmioMachine::new(2);
        machine.device().resets_queues = resets;
        let state = Box::leak(Box::new(InterruptState::new()));
        let pages = pages_in_use();
        let mut refuse = Features::empty();
        refuse.set(Features::RING_RESET, refused);
        let options = Options::default().refusing(refuse);
        let net = VirtioNet::<GuestHal, _>::probe(machine.transport().unwrap(), options, state);
        let net = net.unwrap();
        let info = net.info();
        assert!(info.offered.contains(Features::RING_RESET));
        let expected = resets && !refused;
        assert_eq!(info.negotiated.contains(Features::RING_RESET), expected);
        let device = machine.device();
        assert_eq!(device.features >> 40 & 1 != 0, expected);
        assert_eq!(device.queue_resets, u64::from(!refused));
        // Nothing is left of it.
        assert!(device.queues.iter().all(|queue| !queue.ready));
        assert_eq!(pages_in_use(), pages);
        assert!(device.notified.is_empty());
        assert_eq!(device.violations, [] as [String; 0]);
        drop(device);
    }
}

/// ACCESS_PLATFORM is agreed on where the `Hal` says that it can, and refuses
/// the device otherwise: without the feature it does not work.
#[test]
fn access_platform_is_up_to_the_hal() {
    let error = Some(NetError::Transport(TransportError::AccessPlatform));
    let state: &InterruptState = Box::leak(Box::new(InterruptState::new()));
    for (can, asked, refused) in [
        (false, true, false),
        (true, false, false),
        (true, true, false),
        (true, true, true),
    ] {
        let machine = MmioMachine::new(2);
        machine.device().offered |= Features::ACCESS_PLATFORM.bits() as u64;
        memory::set_access_platform(can);
        let mut transport = machine.transport().unwrap();
        if asked {
            transport = transport.with_access_platform();
        }
        let mut refuse = Features::empty();
        refuse.set(Features::ACCESS_PLATFORM, refused);
        let options = Options::default().refusing(refuse);
        let net = VirtioNet::<GuestHal, _>::probe(transport, options, state);
        if can && asked && !refused {
            let negotiated = net.unwrap().info().negotiated;
            assert!(negotiated.contains(Features::ACCESS_PLATFORM));
        } else {
            assert_eq!(net.err(), error);
        }
    }
}

/// The last words need a split ring, whatever size the device has at most: in
/// the packed layout that need not be a power of two (specification 2.8.10.1).
#[test]
fn a_reserve_fits_a_queue_of_any_size() {
    for max in [2, 3, 100, 256, 1000] {
        let machine = MmioMachine::new(2);
        machine.device().max_size = max;
        machine.device().offered |= Features::RING_PACKED.bits() as u64;
        let state = Box::leak(Box::new(InterruptState::new()));
        let transport = machine.transport().unwrap();
        let mut net =
            VirtioNet::<GuestHal, _>::probe(transport, Options::default(), state).unwrap();
        let reserve = net.netpoll();
        assert_eq!(reserve.as_ref().err(), None, "{max}");
        // It is what the device is told of.
        net.poll_controller(reserve.unwrap()).unwrap();
        let device = machine.device();
        assert_eq!(device.queues[1].size, 1 << max.ilog2());
        assert!(device.queues[1].ready);
        assert_eq!(device.violations, [] as [String; 0]);
    }
}

/// What the device does not work without is agreed on for the last words too
/// (specification 6.1): `iommu_platform=on` in QEMU.
#[test]
fn last_words_leave_a_device_that_demands_access_platform() {
    let machine = MmioMachine::new(2);
    let demanded = Features::VERSION_1 | Features::ACCESS_PLATFORM;
    machine.device().offered |= demanded.bits() as u64;
    machine.device().demanded = demanded.bits() as u64;
    memory::set_access_platform(true);
    let state = Box::leak(Box::new(InterruptState::new()));
    let transport = machine.transport().unwrap().with_access_platform();
    let mut net = VirtioNet::<GuestHal, _>::probe(transport, Options::default(), state).unwrap();
    let reserve = net.netpoll().unwrap();
    assert_eq!(net.poll_controller(reserve).err(), None);
    // Nothing else is: the reserve is a ring of the simplest form.
    assert_eq!(machine.device().features, demanded.bits() as u64);
}

#[test]
fn a_queue_that_cannot_be_is_refused() {
    for version in [1, 2] {
        let (_machine, mut transport) = ready(version);
        for queue in [2, 0xffff] {
            let error = transport.setup_queue(queue, rings(64, 0x1000)).err();
            assert_eq!(error, Some(TransportError::NoSuchQueue { queue }));
        }
        for size in [0, 257] {
            let error = transport.setup_queue(0, rings(size, 0x1000)).err();
            let max = 256;
            assert_eq!(
                error,
                Some(TransportError::QueueSizeRefused {
                    queue: 0,
                    size,
                    max
                })
            );
        }
    }
}

#[test]
fn a_reset_is_waited_for_and_given_up() {
    for version in [1, 2] {
        for reads in [0, 1, 500] {
            let (machine, mut transport) = ready(version);
            machine.device().reset.reads = reads;
            assert_eq!(transport.reset(), Ok(()));
            assert_eq!(machine.device().status, 0);
        }
        let (machine, mut transport) = ready(version);
        machine.device().reset.reads = u32::MAX;
        let status = machine.device().status;
        assert_eq!(
            transport.reset(),
            Err(TransportError::ResetTimeout { status })
        );
        drop(transport);
        assert!(machine.device().accesses < 1_000_000);
    }
}

#[test]
fn an_interrupt_is_acknowledged_with_what_was_seen() {
    let (machine, mut transport) = ready(2);
    machine.device().interrupt = 3;
    assert_eq!(transport.ack_interrupt().bits(), 3);
    assert_eq!(machine.device().interrupt, 0);
    let writes = machine.device().writes;
    assert_eq!(transport.ack_interrupt().bits(), 0);
    assert_eq!(machine.device().writes, writes, "nothing to acknowledge");

    // The handler's own way, with mere memory as the registers.
    let (mut status, mut acknowledge) = (0u32, 0u32);
    let registers = MmioInterrupt {
        status: NonNull::from(&mut status),
        acknowledge: NonNull::from(&mut acknowledge),
    };
    let state = InterruptState::new();
    // SAFETY: both are alive for as long as the handler is called.
    let isr = unsafe { IsrRegister::virtio_mmio(registers) };
    let interrupt = |seen: u32| {
        // SAFETY: both are alive, and nobody else uses them.
        unsafe {
            registers.status.write_volatile(seen);
            registers.acknowledge.write_volatile(0xdead);
            state.vp_interrupt(isr);
            registers.acknowledge.read_volatile()
        }
    };
    assert_eq!(interrupt(1), 1);
    assert_eq!(interrupt(2), 2);
    assert_eq!(interrupt(0), 0xdead, "a spurious one is not acknowledged");
    assert_eq!((state.interrupts(), state.not_ours()), (2, 1));
    assert!(state.take_config_changed());
}

#[test]
fn there_are_no_vectors() {
    let (_machine, mut transport) = ready(2);
    assert_eq!(transport.msix_entries(), 0);
    for needed in [1, 3] {
        let none = TransportError::TooFewVectors {
            needed,
            available: 0,
        };
        assert_eq!(transport.msix_enable(&messages(needed.into())), Err(none));
        assert_eq!(transport.set_queue_vector(0, needed - 1), Err(none));
    }
}

#[test]
fn configuration_is_read_where_it_is() {
    for version in [1, 2] {
        let (machine, mut transport) = ready(version);
        assert_eq!(
            transport.read_config_space::<[u8; 6]>(0),
            Ok([0, 1, 2, 3, 4, 5])
        );
        assert_eq!(transport.read_config_space::<u16>(6), Ok(0x0706));
        transport.write_config_space(8, 0xa3a2_a1a0u32).unwrap();
        assert_eq!(machine.device().config[8..12], [0xa0, 0xa1, 0xa2, 0xa3]);
        assert!(transport.read_config_space::<u16>(0x100).is_err());
        assert!(transport.read_config_space::<u8>(usize::MAX).is_err());
        assert_eq!(machine.device().accesses, transport.register_accesses());
    }
}
