//! The DSDTs of QEMU 7.2's machines, as `-machine pc` and `-machine q35` have
//! them in memory.

use std::cell::RefCell;

use kickpath_aml::{
    AmlError, Host, Interrupt, PciPath, Polarity, RouteError, Source, Trigger, route,
};

const PC: &[u8] = include_bytes!("tables/pc.dsdt");
const Q35: &[u8] = include_bytes!("tables/q35.dsdt");

/// The PIIX3 at 00:01.0, whose PIRQ registers 0x60 to 0x63 route the four
/// lines, and what was read.
struct Piix {
    pirq: [u8; 4],
    reads: RefCell<Vec<(u8, u8, u8, u8)>>,
}

impl Piix {
    fn new(pirq: [u8; 4]) -> Self {
        Self {
            pirq,
            reads: RefCell::new(Vec::new()),
        }
    }
}

impl Host for Piix {
    fn pci_config(&self, bus: u8, device: u8, function: u8, register: u8) -> u32 {
        self.reads
            .borrow_mut()
            .push((bus, device, function, register));
        match (bus, device, function, register) {
            (0, 1, 0, 0x60) => u32::from_le_bytes(self.pirq),
            _ => u32::MAX,
        }
    }
}

struct NoPci;

impl Host for NoPci {
    fn pci_config(&self, bus: u8, device: u8, function: u8, register: u8) -> u32 {
        panic!("{bus:02x}:{device:02x}.{function} register {register:#x} is read")
    }
}

fn on_root(device: u8, function: u8) -> [(u8, u8); 1] {
    [(device, function)]
}

fn level_high(gsi: u32) -> Interrupt {
    Interrupt {
        source: Source::Gsi(gsi),
        trigger: Trigger::Level,
        polarity: Polarity::High,
    }
}

/// Slots take turns: (slot + pin - 1 - 1) mod 4 names the PIRQ register.
#[test]
fn on_pc_the_chipsets_registers_route() {
    let host = Piix::new([10, 11, 5, 9]);
    for (device, pin, gsi) in [
        (3, 1, 5),
        (3, 2, 9),
        (3, 4, 11),
        (2, 1, 11),
        (5, 1, 10),
        (31, 1, 5),
    ] {
        let path = PciPath {
            root_bus: 0,
            hops: &on_root(device, 0),
        };
        assert_eq!(
            route(&[PC], &host, path, pin),
            Ok(level_high(gsi)),
            "{device} {pin}"
        );
    }
    assert_eq!(host.reads.borrow().first(), Some(&(0, 1, 0, 0x60)));
}

/// Pin A of slot 1 is the power management function's, which has a line of its
/// own.
#[test]
fn on_pc_power_management_is_fixed() {
    let path = PciPath {
        root_bus: 0,
        hops: &on_root(1, 3),
    };
    assert_eq!(route(&[PC], &NoPci, path, 1), Ok(level_high(9)));
}

#[test]
fn a_link_that_is_off_leads_nowhere() {
    let host = Piix::new([0x80; 4]);
    let path = PciPath {
        root_bus: 0,
        hops: &on_root(3, 0),
    };
    assert_eq!(route(&[PC], &host, path, 1), Err(RouteError::Unconnected));
}

/// Slots 0 to 24 take turns at GSI 20 to 23 (links E to H), the chipset's own
/// slots 25 to 31 at 16 to 19.
#[test]
fn on_q35_there_are_lines_of_their_own() {
    for (device, pin, gsi) in [
        (0, 1, 20),
        (1, 1, 21),
        (2, 1, 22),
        (3, 1, 23),
        (3, 2, 20),
        (4, 1, 20),
        (24, 4, 23),
        (31, 1, 16),
        (31, 4, 19),
    ] {
        let path = PciPath {
            root_bus: 0,
            hops: &on_root(device, 0),
        };
        assert_eq!(
            route(&[Q35], &NoPci, path, pin),
            Ok(level_high(gsi)),
            "{device} {pin}"
        );
    }
}

/// A root port has no `_PRT`: the pins take turns.
#[test]
fn behind_bridges_pins_take_turns() {
    for (hops, pin, gsi) in [
        (&[(3, 0), (0, 0)][..], 1, 23),
        (&[(3, 0), (1, 0)], 1, 20),
        (&[(3, 0), (0, 0), (5, 0)], 1, 20),
        (&[(3, 0), (2, 0), (5, 0)], 4, 21),
    ] {
        let path = PciPath { root_bus: 0, hops };
        assert_eq!(
            route(&[Q35], &NoPci, path, pin),
            Ok(level_high(gsi)),
            "{hops:?} {pin}"
        );
    }
}

#[test]
fn an_unknown_root_bus_is_said() {
    let path = PciPath {
        root_bus: 4,
        hops: &on_root(3, 0),
    };
    assert_eq!(
        route(&[Q35], &NoPci, path, 1),
        Err(RouteError::NoHostBridge { bus: 4 })
    );
}

/// Cut anywhere, a table is an error and nothing else.
#[test]
fn a_table_that_ends_too_early_is_an_error() {
    let path = PciPath {
        root_bus: 0,
        hops: &on_root(3, 0),
    };
    for end in 0..Q35.len() {
        match route(&[&Q35[..end]], &NoPci, path, 1) {
            Ok(_) | Err(RouteError::Aml(_) | RouteError::NoHostBridge { .. }) => {}
            Err(error) => assert!(end > 36, "{end}: {error}"),
        }
    }
    let cut = &Q35[..Q35.len() - 1];
    assert!(matches!(
        route(&[cut], &NoPci, path, 1),
        Err(RouteError::Aml(AmlError::Truncated { .. }))
    ));
}
