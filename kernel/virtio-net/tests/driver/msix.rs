//! MSI-X of a legacy device: the table, the capability, the vectors.

use std::cell::RefCell;
use std::rc::Rc;

use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_net::transport::{ConfigOps, MsiMessage, TransportError};
use virtio_net::vectors::Rung;

use crate::support::device::Interrupt::Msi;
use crate::support::device::{LegacyDevice, NO_VECTOR, TABLE_BASE};
use crate::support::memory;
use crate::support::modern::ModernMachine;
use crate::support::net::{MAC, Machine, feature};
use crate::support::pci::MSIX_CAPABILITY;
use crate::support::transport::Legacy;

/// A machine whose device was acknowledged, as it is when vectors are set.
fn ready() -> (Machine, Legacy) {
    let machine = Machine::new(feature::ALL, 256);
    let mut transport = machine.legacy().unwrap();
    transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    (machine, transport)
}

/// Messages that differ in address and data.
pub fn messages(count: u32) -> Vec<MsiMessage> {
    (0..count)
        .map(|index| MsiMessage {
            address: 0x1_fee0_0000 + u64::from(index),
            data: 0x40 + index,
        })
        .collect()
}

#[test]
fn vectors_are_read_back() {
    let (machine, mut transport) = ready();
    transport.msix_enable(&messages(3)).unwrap();
    transport.set_config_vector(0).unwrap();
    transport.set_queue_vector(0, 1).unwrap();
    transport.set_queue_vector(1, 2).unwrap();
    assert_eq!(machine.device().config_vector, 0);
    assert_eq!(machine.device().queues[0].vector, 1);
    assert_eq!(machine.device().queues[1].vector, 2);
    // The device has three entries and no queue 2.
    let not_taken = |queue, wrote| TransportError::VectorNotTaken {
        queue,
        wrote,
        read: NO_VECTOR,
    };
    assert_eq!(transport.set_config_vector(3), Err(not_taken(None, 3)));
    assert_eq!(transport.set_queue_vector(1, 3), Err(not_taken(Some(1), 3)));
    assert_eq!(transport.set_queue_vector(2, 1), Err(not_taken(Some(2), 1)));
    // Not even NO_VECTOR itself counts as taken.
    assert_eq!(
        transport.set_config_vector(NO_VECTOR),
        Err(not_taken(None, NO_VECTOR))
    );
}

/// The messages go to the table's first entries, the others are masked.
#[test]
fn messages_arrive_from_their_entries() {
    let (machine, mut transport) = ready();
    let connected = messages(3);
    assert_eq!(transport.msix_entries(), 3);
    for count in [3, 2, 3] {
        transport.msix_enable(&connected[..count]).unwrap();
        transport.set_config_vector(0).unwrap();
        transport.set_queue_vector(0, 1).unwrap();
        transport.set_queue_vector(1, 2).unwrap();
        let mut device = machine.device();
        device.interrupt_for_config();
        device.interrupt_for_queue(0);
        device.interrupt_for_queue(1);
        let sent: Vec<_> = connected[..count].iter().copied().map(Msi).collect();
        assert_eq!(std::mem::take(&mut device.interrupts), sent);
    }
    assert_eq!(
        transport.msix_enable(&messages(4)),
        Err(TransportError::TooFewVectors {
            needed: 4,
            available: 3
        })
    );
}

/// Some devices (crosvm's) take a vector into use when its own mask goes, and only
/// while MSI-X delivers: so that is last, as in Linux (`pci_msi_unmask_irq`).
#[test]
fn each_vectors_own_mask_goes_last() {
    let (machine, mut transport) = ready();
    let masks = machine.device().own_masks();
    let seen = Rc::new(RefCell::new(Vec::new()));
    machine.device().pci.on_msix = Some(Box::new({
        let (seen, masks) = (Rc::clone(&seen), machine.device().own_masks());
        move |word| seen.borrow_mut().push((word >> 30, masks()))
    }));
    for used in [3, 2] {
        transport.msix_enable(&messages(used)).unwrap();
        // On with all masked, while the table is written; then on.
        let seen = seen.take();
        let [(0b11, _), (0b10, during)] = &seen[..] else {
            panic!("{seen:?}")
        };
        assert_eq!(during, &[true; 3]);
        let used = |entry| entry < used;
        assert_eq!(masks(), [0, 1, 2].map(|entry| !used(entry)));
    }
    transport.msix_disable();
    assert_eq!(seen.take()[0].0, 0);
}

/// A queue's interrupts move to another CPU; the others stay where they are.
#[test]
fn an_entry_can_be_sent_to_another_cpu() {
    let (machine, mut transport) = ready();
    let [config, first, second, elsewhere] = messages(4)[..] else {
        unreachable!()
    };
    let off = TransportError::TooFewVectors {
        needed: 2,
        available: 0,
    };
    assert_eq!(transport.set_vq_affinity(1, elsewhere), Err(off));
    transport.msix_enable(&[config, first, second]).unwrap();
    transport.set_config_vector(0).unwrap();
    transport.set_queue_vector(0, 1).unwrap();
    transport.set_queue_vector(1, 2).unwrap();
    let sent = || {
        let mut device = machine.device();
        device.interrupt_for_config();
        device.interrupt_for_queue(0);
        device.interrupt_for_queue(1);
        std::mem::take(&mut device.interrupts)
    };
    transport.set_vq_affinity(1, elsewhere).unwrap();
    assert_eq!(sent(), [config, elsewhere, second].map(Msi));
    transport.set_vq_affinity(1, first).unwrap();
    assert_eq!(sent(), [config, first, second].map(Msi));
    let none = TransportError::TooFewVectors {
        needed: 4,
        available: 3,
    };
    assert_eq!(transport.set_vq_affinity(3, elsewhere), Err(none));
}

/// MSI-X that a boot loader or another kernel left on would move a legacy
/// device's configuration and keep its line down (specification 4.1.4.10; PCI
/// Local Bus 3.0, 6.8.2; Linux `pci_msix_init`).
#[test]
fn what_another_driver_left_on_is_turned_off() {
    let mut machine = Machine::with_vectors(feature::ALL, 16, 1);
    let left_on = machine.device().pci.get(MSIX_CAPABILITY) | 1 << 31;
    machine.device().pci.set(MSIX_CAPABILITY, left_on);
    let mut net = machine.probe().unwrap();
    assert_eq!(net.info().mac, MAC);
    // One vector is too few, so that the line is taken, which is dead under
    // MSI-X.
    net.open(&mut machine.controller, Rung::MsixPerQueue)
        .unwrap();
    assert_eq!(net.rung(), Some(Rung::Intx));
    assert!(!machine.device().pci.msix_enabled());
    drop(net);
    machine.assert_no_violation();

    let machine = ModernMachine::new();
    let left_on = machine.device().pci.get(MSIX_CAPABILITY) | 1 << 31;
    machine.device().pci.set(MSIX_CAPABILITY, left_on);
    let transport = machine.transport().unwrap();
    assert!(!machine.device().pci.msix_enabled());
    drop(transport);
}

#[test]
fn without_msix_there_are_no_vectors() {
    let machine = Machine::with_vectors(feature::ALL, 256, 0);
    let mut transport = machine.legacy().unwrap();
    assert_eq!(transport.msix_entries(), 0);
    assert_eq!(
        transport.msix_enable(&messages(1)),
        Err(TransportError::TooFewVectors {
            needed: 1,
            available: 0
        })
    );
    transport.msix_disable();
    assert_eq!(transport.read_config_space::<[u8; 6]>(0), Ok(MAC));
}

#[test]
fn a_table_of_2048_entries_is_the_largest() {
    let machine = Machine::with_vectors(feature::ALL, 256, 2048);
    // The BAR must hold 32 KiB.
    machine
        .device()
        .pci
        .bar(1, TABLE_BASE as u32 & !0x7fff, !0x7fff);
    memory::add_mmio(TABLE_BASE & !0x7fff, 0x2000);
    assert_eq!(machine.legacy().unwrap().msix_entries(), 2048);
}

/// An MSI-X capability that cannot be true costs MSI-X, not the device.
#[test]
fn a_broken_msix_capability_is_as_none() {
    let without = |change: &dyn Fn(&mut LegacyDevice)| {
        let machine = Machine::new(feature::ALL, 256);
        change(&mut machine.device());
        let transport = machine.legacy().unwrap();
        assert_eq!(transport.msix_entries(), 0);
        drop(transport);
        let device = machine.device();
        assert!(!device.pci.msix_enabled());
    };
    let location = MSIX_CAPABILITY + 4;
    // The BAR it names: ports, none, beyond the last, no address.
    for bar in [0, 2, 3, 4, 5, 6, 7] {
        without(&move |device| device.pci.set(location, bar));
    }
    without(&|device| device.pci.bar(1, 0, !0xfff));
    without(&|device| device.pci.bar(1, 0, 0));
    // The last BAR cannot have 64 bits.
    without(&|device| {
        device.pci.set(location, 5);
        device.pci.bar(5, 0xfeb0_0004, !0xfff);
    });
    // The table begins or ends outside of its BAR of 4096 bytes.
    for offset in [0xfd8, 0x1000, 0xffff_fff8] {
        without(&move |device| device.pci.set(location, offset | 1));
    }
    without(&|device| device.pci.msix(MSIX_CAPABILITY, 2048, 1));
    // The BAR, so the device says, ends beyond the last address.
    without(&|device| {
        device.pci.lying_bar(1, 0xffff_fff4, 0xffff_0004);
        device.pci.lying_bar(2, !0, !0);
        device.pci.set(location, 0x20 | 1);
    });
    // The capability's own end lies beyond the configuration space.
    without(&|device| {
        device.pci.set(0x84, 0xfc09);
        device.pci.msix(0xfc, 3, 1);
    });
    // The list has no end.
    without(&|device| {
        device.pci.set(0x84, 0x8809);
        device.pci.set(0x88, 0x8409);
    });
    without(&|device| device.pci.set(0x84, 0x8409));
    // The list goes astray.
    for next in [0x10, 0x3c, 0x85, 0xff] {
        without(&move |device| device.pci.set(0x84, next << 8 | 9));
    }
    // There is no list.
    without(&|device| device.pci.set(0x04, 0));
}

/// What the last entry needs to fit is enough.
#[test]
fn a_table_may_end_with_its_bar() {
    let machine = Machine::new(feature::ALL, 256);
    machine.device().pci.set(MSIX_CAPABILITY + 4, 0xfd0 | 1);
    assert_eq!(machine.legacy().unwrap().msix_entries(), 3);
}
