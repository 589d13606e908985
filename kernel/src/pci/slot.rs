//! A slot of PCI Express into which devices are plugged while the machine runs, by
//! the port's own registers (PCI Express Base specification 5.0, section 6.7; Linux
//! `pciehp`), and what a function's configuration must be given back afterwards.

use core::fmt;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use virtio_net::transport::structures::capabilities;

use super::access::COMMAND;
use super::{BARS, Function, PciAccess, root};

/// PCI capability id of PCI Express.
const EXPRESS: u8 = 0x10;
/// In the capability's flags: the port has a slot.
const SLOT_IMPLEMENTED: u16 = 1 << 8;
/// In the capability, offsets of slot capabilities, slot control and status.
const CAPABILITIES: u8 = 0x14;
const CONTROL_STATUS: u8 = 0x18;
/// In the slot's capabilities: power control; hot-plug.
const POWER_CONTROLLER: u32 = 1 << 1;
const HOT_PLUG: u32 = 1 << 6;
/// In the control: the power indicator (on, off) and the power, which 1 turns off.
const INDICATOR: u32 = 3 << 8;
const INDICATOR_ON: u32 = 1 << 8;
const INDICATOR_OFF: u32 = 3 << 8;
const POWER_OFF: u32 = 1 << 10;
/// In the status, the upper half: the attention button was pressed; a device came or
/// went; all events, which 1 clears; a device is present.
const BUTTON: u32 = 1 << 16;
const CHANGED: u32 = 1 << 19;
const EVENTS: u32 = 0x1f << 16;
const PRESENT: u32 = 1 << 22;

/// A port with a slot of which the power can be controlled.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    port: DeviceFunction,
    capability: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotState {
    pub is_present: bool,
    /// One came or went since the last look.
    pub has_changed: bool,
    /// It was asked for since the last look: the attention button, by which QEMU's
    /// `device_del` asks.
    pub is_asked_for: bool,
}

impl Slot {
    /// The slot in which `function` is, if it can be plugged.
    pub fn of(function: &Function) -> Option<Self> {
        // What is on the first bus is part of the machine.
        let bus = Some(function.location.bus).filter(|bus| *bus != 0)?;
        let mut ports = super::scan().into_iter();
        let port = ports.find(|port| port.secondary_bus == Some(bus))?.location;
        let capability = capabilities(&root(), port).find(|capability| {
            capability.id == EXPRESS && capability.private_header & SLOT_IMPLEMENTED != 0
        })?;
        let slot = Self {
            port,
            capability: capability.offset,
        };
        let needed = POWER_CONTROLLER | HOT_PLUG;
        (slot.read(CAPABILITIES) & needed == needed).then_some(slot)
    }

    fn read(&self, offset: u8) -> u32 {
        PciAccess.read_word(self.port, self.capability.wrapping_add(offset))
    }

    fn write_control(&self, control: u32) {
        // Events are cleared by the same write.
        let at = self.capability.wrapping_add(CONTROL_STATUS);
        PciAccess.write_word(self.port, at, control & 0xffff | EVENTS);
    }

    pub fn look(&self) -> SlotState {
        let word = self.read(CONTROL_STATUS);
        if word & EVENTS != 0 {
            self.write_control(word);
        }
        SlotState {
            is_present: word & PRESENT != 0,
            has_changed: word & CHANGED != 0,
            is_asked_for: word & BUTTON != 0,
        }
    }

    /// Turns its power on or off. A device that is in a slot without power may be
    /// taken out.
    pub fn set_power(&self, on: bool) {
        let word = self.read(CONTROL_STATUS) & !(INDICATOR | POWER_OFF);
        self.write_control(match on {
            true => word | INDICATOR_ON,
            false => word | INDICATOR_OFF | POWER_OFF,
        });
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the slot of PCI {}", self.port)
    }
}

/// The configuration of a function, for another one of the kind in its place.
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    place: DeviceFunction,
    /// Vendor and device.
    id: u32,
    command: u32,
    bars: [u32; 6],
}

impl Saved {
    /// That of the function at `place`.
    pub fn of(place: DeviceFunction) -> Self {
        Self {
            place,
            id: PciAccess.read_word(place, 0),
            command: PciAccess.read_word(place, COMMAND),
            bars: BARS.map(|at| PciAccess.read_word(place, at)),
        }
    }

    /// Gives it to what is there now. Returns whether that is of the same kind.
    pub fn restore(&self) -> bool {
        if PciAccess.read_word(self.place, 0) != self.id {
            return false;
        }
        let mut access = PciAccess;
        for (bar, at) in self.bars.into_iter().zip(BARS) {
            access.write_word(self.place, at, bar);
        }
        access.write_word(self.place, COMMAND, self.command);
        true
    }
}
