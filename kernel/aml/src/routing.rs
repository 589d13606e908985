//! From a PCI function's pin to an interrupt: `_PRT` (ACPI 6.5, section 6.2.13;
//! Linux `acpi_pci_irq_lookup`).

use alloc::vec::Vec;

use crate::evaluate::Evaluator;
use crate::namespace::NodeId;
use crate::resource::{self, Interrupt, Polarity, Source, Trigger};
use crate::value::{Elements, Value};
use crate::{AmlError, Host, RouteError};

/// `PNP0A03`, a PCI host bridge, as an EISA id.
const PNP0A03: u64 = 0x030a_d041;
/// `PNP0A08`, a PCI Express host bridge.
const PNP0A08: u64 = 0x080a_d041;
/// `_PIC`'s argument: interrupts go to I/O APICs.
const MODE_APIC: u64 = 1;

/// A function's place, as seen from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciPath<'p> {
    /// The host bridge's bus.
    pub root_bus: u8,
    /// Device and function numbers on the way: those of the bridges from the
    /// host on, the function's own last.
    pub hops: &'p [(u8, u8)],
}

/// Where pin `pin` (1 to 4 for INTA to INTD) of a function leads, on a machine
/// with I/O APICs. `tables` are the DSDT and the SSDTs, whole.
///
/// # Errors
///
/// [`RouteError`].
#[doc(alias = "acpi_pci_irq_lookup")]
pub fn route<H: Host>(
    tables: &[&[u8]],
    host: &H,
    path: PciPath<'_>,
    pin: u8,
) -> Result<Interrupt, RouteError> {
    let mut evaluator = Evaluator::load(tables, host)?;
    if let Some(method) = evaluator.names.child(crate::namespace::ROOT, *b"_PIC") {
        let mode = Vec::from([Value::Integer(MODE_APIC)]);
        evaluator.value(method, mode, 0)?;
    }
    evaluator.route(path, pin)
}

impl<'a, H: Host> Evaluator<'a, H> {
    fn route(&mut self, path: PciPath<'_>, pin: u8) -> Result<Interrupt, RouteError> {
        let buses = self.buses(path)?;
        let mut pin = u64::from(pin.wrapping_sub(1) & 3);
        // From the function's own bus up, as long as nobody knows the way.
        for (&(device, _), bus) in path.hops.iter().zip(buses).rev() {
            let bus: Option<NodeId> = bus;
            if let Some(bus) = bus
                && let Some(interrupt) = self.route_on(bus, device, pin)?
            {
                return Ok(interrupt);
            }
            // A bridge passes pins on by turns (PCI-to-PCI Bridge 1.2, table
            // 9-1; Linux `pci_swizzle_interrupt_pin`).
            pin = (pin + u64::from(device)) % 4;
        }
        Err(RouteError::NoEntry)
    }

    /// What ACPI has of the buses on the way: the host bridge, then the
    /// bridges; `None` for those that it says nothing of.
    fn buses(&mut self, path: PciPath<'_>) -> Result<Vec<Option<NodeId>>, RouteError> {
        let host = self.host_bridge(path.root_bus)?;
        let mut buses = Vec::from([Some(host)]);
        let mut bus = Some(host);
        for &(device, function) in path.hops.iter().rev().skip(1).rev() {
            bus = match bus {
                Some(bus) => self.device_at(bus, device, function)?,
                None => None,
            };
            buses.push(bus);
        }
        Ok(buses)
    }

    fn host_bridge(&mut self, bus: u8) -> Result<NodeId, RouteError> {
        let devices: Vec<NodeId> = self.names.devices().collect();
        for device in devices {
            if self.is_host_bridge(device)? && self.root_bus(device)? == bus {
                return Ok(device);
            }
        }
        Err(RouteError::NoHostBridge { bus })
    }

    /// Whether a device is a PCI host bridge.
    pub(crate) fn is_host_bridge(&mut self, device: NodeId) -> Result<bool, AmlError> {
        fn is_id(id: &Value<'_>) -> bool {
            match id {
                Value::Integer(id) => matches!(*id, PNP0A03 | PNP0A08),
                Value::String(id) => matches!(id.borrow().as_slice(), b"PNP0A03" | b"PNP0A08"),
                _ => false,
            }
        }
        for name in [*b"_HID", *b"_CID"] {
            let found = match self.child_value(device, name)? {
                Some(Value::Package(ids)) => ids.borrow().iter().any(is_id),
                Some(id) => is_id(&id),
                None => false,
            };
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The bus behind a host bridge; 0 where nothing is said.
    pub(crate) fn root_bus(&mut self, bridge: NodeId) -> Result<u8, AmlError> {
        let bus = match self.child_value(bridge, *b"_BBN")? {
            Some(bus) => bus.integer(0)?,
            None => 0,
        };
        Ok(bus as u8)
    }

    /// The device at this place of a bus.
    fn device_at(
        &mut self,
        bus: NodeId,
        device: u8,
        function: u8,
    ) -> Result<Option<NodeId>, AmlError> {
        let wanted = u64::from(device) << 16 | u64::from(function);
        let children: Vec<NodeId> = self.names.children(bus).collect();
        for child in children {
            if let Some(address) = self.child_value(child, *b"_ADR")?
                && address.integer(0)? == wanted
            {
                return Ok(Some(child));
            }
        }
        Ok(None)
    }

    /// Where a bus's own `_PRT` leads a pin, 0 to 3; `None` when it has none,
    /// or no entry for it.
    fn route_on(
        &mut self,
        bus: NodeId,
        device: u8,
        pin: u64,
    ) -> Result<Option<Interrupt>, RouteError> {
        let entries = match self.child_value(bus, *b"_PRT")? {
            None => return Ok(None),
            Some(Value::Package(entries)) => entries,
            Some(_) => return Err(RouteError::BadEntry),
        };
        let count = entries.borrow().len();
        for index in 0..count {
            let entry = entries.borrow().get(index).cloned();
            // What is no entry is nobody's.
            if let Some(Value::Package(entry)) = entry
                && is_for(&entry, device, pin)
            {
                return self.follow(bus, &entry).map(Some);
            }
        }
        Ok(None)
    }

    /// The interrupt of an entry: a number, or what a link device has.
    fn follow(&mut self, bus: NodeId, entry: &Elements<'a>) -> Result<Interrupt, RouteError> {
        let (source, index) = match entry.borrow().as_slice() {
            [_, _, source, index, ..] => (source.clone(), index.integer(0)?),
            _ => return Err(RouteError::BadEntry),
        };
        let link = match source {
            Value::Integer(0) => {
                // PCI's own way (ACPI 6.5, section 6.2.13).
                return Ok(Interrupt {
                    source: Source::Gsi(u32::try_from(index).or(Err(RouteError::BadEntry))?),
                    trigger: Trigger::Level,
                    polarity: Polarity::Low,
                });
            }
            Value::Name(scope, path) => self.names.find(scope, &path),
            Value::Object(node) => Some(node),
            // A name as text.
            Value::String(text) => text
                .borrow()
                .first_chunk()
                .and_then(|name| self.names.child(self.names.parent(bus), *name)),
            _ => None,
        };
        let link = link.ok_or(RouteError::BadEntry)?;
        let link = self.names.target(link).ok_or(RouteError::BadEntry)?;
        match self.child_value(link, *b"_CRS")? {
            Some(Value::Buffer(template)) => {
                let index = usize::try_from(index).unwrap_or(usize::MAX);
                // 0 is the timer's, and what a link says that is off (Linux
                // `acpi_pci_link_get_current`).
                resource::interrupt(&template.borrow(), index)
                    .filter(|interrupt| interrupt.source != Source::Gsi(0))
                    .ok_or(RouteError::Unconnected)
            }
            _ => Err(RouteError::BadEntry),
        }
    }
}

/// Whether an entry is for this pin, 0 to 3, of any function of a device.
fn is_for(entry: &Elements<'_>, device: u8, pin: u64) -> bool {
    let entry = entry.borrow();
    let [address, its_pin, ..] = entry.as_slice() else {
        return false;
    };
    let integer = |value: &Value<'_>| value.integer(0).ok();
    integer(address).map(|address| address >> 16) == Some(u64::from(device))
        && integer(its_pin) == Some(pin)
}
