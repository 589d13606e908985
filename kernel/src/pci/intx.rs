//! Where a function's INTx pin leads: by ACPI's `_PRT` on a machine with I/O
//! APICs, else by the interrupt line register.

use alloc::vec::Vec;

use kickpath_aml::{Host, Interrupt, PciPath, Source};
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use super::{PciAccess, VirtioFunction};
use crate::arch::acpi;
use crate::arch::interrupts::{self, Gsi, Line};

/// What AML sees of PCI.
struct Configuration;

impl Host for Configuration {
    fn pci_config(&self, bus: u8, device: u8, function: u8, register: u8) -> u32 {
        let place = DeviceFunction {
            bus,
            device,
            function,
        };
        PciAccess.read_word(place, register)
    }
}

/// Where the function's pin leads, if that is known; how it was found is logged.
///
/// The tables are some thousand bytes of programs, so this is left until the
/// line is needed.
#[doc(alias = "acpi_pci_irq_enable")]
pub fn intx_line(device: &VirtioFunction) -> Option<Line> {
    let function = &device.function;
    let pin = function.interrupt_pin;
    if !(1..=4).contains(&pin) {
        log::info!("INTx: the device has no interrupt pin");
        return None;
    }
    let line = interrupts::isa_line(function.interrupt_line);
    let register = function.interrupt_line;
    if !interrupts::has_io_apics() {
        log::info!("INTx: line {register} of the 8259 controllers, by the interrupt line register");
        return line;
    }
    let by_prt = by_prt(device, pin).and_then(|by_prt| agreed(by_prt, line));
    match by_prt {
        Ok(line) => {
            let Line {
                gsi: Gsi(gsi),
                trigger,
                polarity,
            } = line;
            log::info!("INTx: GSI {gsi} ({trigger:?}, {polarity:?}), by ACPI's _PRT");
            Some(line)
        }
        Err(error) => {
            log::info!("INTx: line {register}, by the interrupt line register: {error}");
            line
        }
    }
}

/// The inputs below 16 are the lines of the 8259 controllers, too, so firmware
/// wrote the same into the interrupt line register. It did so on this machine;
/// the tables may be another's (SeaBIOS has its own for QEMU's `-no-acpi`, those
/// of an i440FX even on a Q35).
fn agreed(by_prt: Line, by_register: Option<Line>) -> Result<Line, NoPrt> {
    match by_register {
        Some(other) if by_prt.gsi.0 < 16 && by_prt.gsi != other.gsi => {
            Err(NoPrt::Disagrees(by_prt.gsi))
        }
        _ => Ok(by_prt),
    }
}

fn by_prt(device: &VirtioFunction, pin: u8) -> Result<Line, NoPrt> {
    let tables = acpi::tables().map(acpi::Tables::aml).unwrap_or_default();
    if tables.is_empty() {
        return Err(NoPrt::NoDsdt);
    }
    let location = device.function.location;
    let way = device.bridges.iter().copied().chain([location]);
    let hops: Vec<(u8, u8)> = way.map(|place| (place.device, place.function)).collect();
    let path = PciPath {
        root_bus: device.bridges.first().unwrap_or(&location).bus,
        hops: &hops,
    };
    let interrupt = kickpath_aml::route(&tables, &Configuration, path, pin);
    let Interrupt {
        source,
        trigger,
        polarity,
    } = interrupt.map_err(NoPrt::Route)?;
    let gsi = match source {
        Source::Gsi(gsi) => Gsi(gsi),
        Source::Isa(line) => interrupts::isa_line(line).ok_or(NoPrt::NoLine(line))?.gsi,
    };
    Ok(Line {
        gsi,
        trigger,
        polarity,
    })
}

/// Why ACPI's `_PRT` does not tell where a pin leads.
enum NoPrt {
    NoDsdt,
    Route(kickpath_aml::RouteError),
    NoLine(u8),
    Disagrees(Gsi),
}

impl core::fmt::Display for NoPrt {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoDsdt => f.write_str("ACPI has no DSDT"),
            Self::Route(error) => error.fmt(f),
            Self::Disagrees(Gsi(gsi)) => {
                write!(f, "ACPI's _PRT is another machine's, it says GSI {gsi}")
            }
            Self::NoLine(line) => write!(f, "ACPI names ISA line {line}"),
        }
    }
}
