//! How much of a device's memory is mapped, and what becomes of a device whose
//! memory cannot be.

use virtio_drivers::PAGE_SIZE;
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_net::transport::mmio::MmioTransport;
use virtio_net::transport::{ConfigOps, RingAddresses, TransportError};

use crate::support::memory::GuestHal;
use crate::support::mmio::{BASE, MmioMachine};
use crate::support::modern::{
    BAR, COMMON, DEVICE, ISR, Modern, ModernMachine, NOTIFY, VERSION_1, capability,
    notify_capability,
};
use crate::support::registers::{FakeRegisters, refuse_to_map, take_mapped};

/// What a device may say at most: structures of this length in a BAR of 4 GiB.
const CLAIMED: u32 = 0x8000_0000;

/// A device whose every structure is "of 2 GiB".
fn claiming() -> ModernMachine {
    let machine = ModernMachine::new();
    {
        let mut device = machine.device();
        device.pci.bar64(4, BAR, 1 << 32);
        device.pci.capabilities(&[
            (0x70, notify_capability(4, NOTIFY, CLAIMED, 4)),
            (0x60, capability(4, 4, DEVICE, CLAIMED)),
            (0x50, capability(3, 4, ISR, CLAIMED)),
            (0x40, capability(1, 4, COMMON, CLAIMED)),
        ]);
    }
    take_mapped();
    machine
}

fn set_up_queue(transport: &mut Modern, queue: u16) -> Result<(), TransportError> {
    transport.reset()?;
    transport.set_status(DeviceStatus::ACKNOWLEDGE);
    transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    transport.finalize_features(VERSION_1)?;
    let rings = RingAddresses {
        size: 256,
        descriptors: 0x1000,
        driver: 0x2000,
        device: 0x3000,
    };
    transport.setup_queue(queue, rings).map(|_| ())
}

#[test]
fn what_is_mapped_is_what_is_used() {
    let machine = claiming();
    let mut transport = machine.transport().unwrap();
    let at = |offset: u32| BAR + u64::from(offset);
    assert_eq!(
        take_mapped(),
        [(at(COMMON), 64), (at(ISR), 1), (at(DEVICE), PAGE_SIZE)]
    );
    // Of the notification structure each queue's register.
    set_up_queue(&mut transport, 1).unwrap();
    let notify_off = u64::from(machine.device().queues[1].notify_off);
    assert_eq!(take_mapped(), [(at(NOTIFY) + 4 * notify_off, 2)]);
    assert!(machine.device().violations.is_empty());
}

#[test]
fn what_cannot_be_mapped_is_an_error() {
    let machine = claiming();
    for (offset, size) in [(COMMON, 64), (ISR, 1), (DEVICE, PAGE_SIZE)] {
        let address = BAR + u64::from(offset);
        refuse_to_map(&[address]);
        let error = machine.transport().err();
        assert_eq!(error, Some(TransportError::Unmappable { address, size }));
    }
    refuse_to_map(&[]);
    let mut transport = machine.transport().unwrap();
    take_mapped();
    set_up_queue(&mut transport, 0).unwrap();
    let [(address, size)] = take_mapped()[..] else {
        panic!("more than one register");
    };
    refuse_to_map(&[address]);
    let error = set_up_queue(&mut transport, 0);
    assert_eq!(error, Err(TransportError::Unmappable { address, size }));
    // A later try.
    refuse_to_map(&[]);
    set_up_queue(&mut transport, 0).unwrap();
}

#[test]
fn mmio_registers_are_mapped_a_page_at_most() {
    let _machine = MmioMachine::new(2);
    let open = |size| {
        // SAFETY: the model's registers.
        unsafe { MmioTransport::<GuestHal, FakeRegisters>::new(BASE, size) }.map(|_| ())
    };
    take_mapped();
    assert_eq!(open(1 << 31), Ok(()));
    assert_eq!(take_mapped(), [(BASE, PAGE_SIZE)]);
    assert_eq!(open(0x200), Ok(()));
    assert_eq!(take_mapped(), [(BASE, 0x200)]);
    refuse_to_map(&[BASE]);
    let error = TransportError::Unmappable {
        address: BASE,
        size: 0x200,
    };
    assert_eq!(open(0x200), Err(error));
}
