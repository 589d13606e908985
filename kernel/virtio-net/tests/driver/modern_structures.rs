//! Virtio capabilities: which are taken, which are passed over, which are an
//! error.

use virtio_drivers::transport::pci::bus::PciRoot;
use virtio_net::transport::structures::{self, Location, Structures};
use virtio_net::transport::{
    BarProblem, PortAccess, PortWindow, Ports, Structure, StructureProblem, TransportError,
};

use crate::support::memory::{GuestHal, add_mmio};
use crate::support::modern::{
    BAR, BAR_SIZE, COMMON, DEVICE, ISR, ModernMachine, NOTIFY, PORTS, capabilities, capability,
    notify_capability,
};
use crate::support::pci::{FUNCTION, FakeAccess, PciFunction};

type List = Vec<(u8, Vec<u32>)>;

/// What is found when the capabilities are these, and the function is changed.
fn find(list: List, change: impl FnOnce(&mut PciFunction)) -> Result<Structures, TransportError> {
    // SAFETY: nothing is kicked.
    find_with(list, change, unsafe { PortAccess::native() })
}

/// The same of a kernel that has these ports.
fn find_with(
    list: List,
    change: impl FnOnce(&mut PciFunction),
    ports: PortAccess,
) -> Result<Structures, TransportError> {
    let machine = ModernMachine::new();
    machine.device().pci.capabilities(&list);
    change(&mut machine.device().pci);
    let mut root = PciRoot::new(FakeAccess(machine.0.clone()));
    let bars = structures::bars(&mut root, FUNCTION);
    Structures::find(
        &root,
        &FakeAccess(machine.0.clone()),
        FUNCTION,
        &bars,
        ports,
    )
}

/// The capabilities with one replaced.
fn with(offset: u8, words: Vec<u32>) -> List {
    let mut list = capabilities();
    list.iter_mut().find(|(at, _)| *at == offset).unwrap().1 = words;
    list
}

fn without(offset: u8) -> List {
    let mut list = capabilities();
    list.retain(|(at, _)| *at != offset);
    list
}

/// The list with one more capability before or behind all others.
fn and(first: bool, words: Vec<u32>) -> List {
    let mut list = capabilities();
    list.insert(if first { 0 } else { list.len() }, (0xb0, words));
    list
}

fn unusable(structure: Structure, capability: u8, problem: StructureProblem) -> TransportError {
    TransportError::UnusableStructure {
        structure,
        capability,
        problem,
    }
}

fn memory(structures: &Structures) -> [Location; 3] {
    [
        structures.common.location,
        structures.notify.location,
        structures.isr.location,
    ]
}

#[test]
fn qemus_list_is_understood() {
    let found = find(capabilities(), |_| ()).unwrap();
    let at = |offset| Location::Memory(BAR + u64::from(offset));
    assert_eq!(memory(&found), [at(COMMON), at(NOTIFY), at(ISR)]);
    let device = found.device.unwrap();
    assert_eq!(
        (device.location, device.length, device.bar),
        (at(DEVICE), 0x1000, 4)
    );
    assert_eq!(found.notify_off_multiplier, 4);
}

#[test]
fn what_is_missing_is_named() {
    for (offset, structure) in [
        (0x40, Structure::Common),
        (0x50, Structure::Isr),
        (0x70, Structure::Notify),
    ] {
        let missing = TransportError::NoStructure { structure };
        assert_eq!(find(without(offset), |_| ()), Err(missing));
    }
    let missing = TransportError::NoStructure {
        structure: Structure::Common,
    };
    assert_eq!(find(vec![(0x98, vec![0x11])], |_| ()), Err(missing));
    assert_eq!(
        find(capabilities(), |pci| pci.set(0x04, 0)),
        Err(missing),
        "no list at all"
    );
    // A device without a configuration of its own is fine.
    assert_eq!(find(without(0x60), |_| ()).unwrap().device, None);
}

#[test]
fn a_structure_must_lie_within_its_bar() {
    let size = BAR_SIZE;
    for (offset, length) in [
        (0x4000, 0x1000),
        (0x3fcc, 0x38),
        (0, 0x4001),
        (u32::MAX - 3, 0x38),
        (0x38, u32::MAX),
    ] {
        let list = with(0x40, capability(1, 4, offset, length));
        let problem = StructureProblem::OutsideBar {
            offset,
            length,
            size,
        };
        assert_eq!(
            find(list, |_| ()),
            Err(unusable(Structure::Common, 0x40, problem))
        );
    }
    let fits = with(0x40, capability(1, 4, 0x3fc8, 0x38));
    assert!(find(fits, |_| ()).is_ok());
}

#[test]
fn a_structure_must_be_long_enough_and_aligned() {
    for (at, words, structure, needed) in [
        (
            0x40,
            capability(1, 4, COMMON, 0x37),
            Structure::Common,
            0x38,
        ),
        (0x50, capability(3, 4, ISR, 0), Structure::Isr, 1),
        (0x60, capability(4, 4, DEVICE, 0), Structure::Device, 1),
        (
            0x70,
            notify_capability(4, NOTIFY, 1, 4),
            Structure::Notify,
            2,
        ),
    ] {
        let length = words[3];
        let problem = StructureProblem::TooShort { length, needed };
        assert_eq!(
            find(with(at, words), |_| ()),
            Err(unusable(structure, at, problem))
        );
    }
    for (at, words, structure, alignment) in [
        (0x40, capability(1, 4, 2, 0x100), Structure::Common, 4),
        (
            0x60,
            capability(4, 4, DEVICE + 1, 0x100),
            Structure::Device,
            4,
        ),
        (
            0x70,
            notify_capability(4, NOTIFY + 1, 0x100, 4),
            Structure::Notify,
            2,
        ),
    ] {
        let offset = words[2];
        let problem = StructureProblem::Misaligned { offset, alignment };
        assert_eq!(
            find(with(at, words), |_| ()),
            Err(unusable(structure, at, problem))
        );
    }
    // Bytes have no alignment.
    assert!(find(with(0x50, capability(3, 4, ISR + 3, 1)), |_| ()).is_ok());
}

#[test]
fn a_bar_must_be_usable() {
    let problem_of = |change: &dyn Fn(&mut PciFunction), bar| {
        let list = with(0x40, capability(1, bar, 0, 0x38));
        match find(list, |pci| change(pci)) {
            Err(TransportError::UnusableStructure {
                structure: Structure::Common,
                problem:
                    StructureProblem::Bar {
                        bar: named,
                        problem,
                    },
                ..
            }) => {
                assert_eq!(named, bar);
                problem
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(problem_of(&|_| (), 3), BarProblem::Missing);
    assert_eq!(problem_of(&|_| (), 5), BarProblem::Missing, "an upper half");
    assert_eq!(
        problem_of(&|pci| pci.bar(0, 0xc001, !0x3f), 0),
        BarProblem::WrongKind
    );
    assert_eq!(
        problem_of(&|pci| pci.bar(0, 0, !0xfff), 0),
        BarProblem::Unassigned
    );
    let end = BarProblem::OutOfRange {
        address: 0xffff_ffff_ffff_c000,
    };
    assert_eq!(
        problem_of(&|pci| pci.bar64(2, 0xffff_ffff_ffff_c000, 0x4000), 2),
        end
    );
    // A 64-bit BAR in the last place has no upper half.
    assert_eq!(
        problem_of(&|pci| pci.bar(5, 0xfeb0_0004, !0xfff), 5),
        BarProblem::Missing
    );
}

#[test]
fn a_capability_must_be_whole() {
    let short = |at, mut words: Vec<u32>, length: u32, structure| {
        words[0] = words[0] & !0x00ff_0000 | length << 16;
        let truncated = StructureProblem::Truncated {
            length: length as u8,
        };
        assert_eq!(
            find(with(at, words), |_| ()),
            Err(unusable(structure, at, truncated))
        );
    };
    short(
        0x40,
        capability(1, 4, COMMON, 0x1000),
        15,
        Structure::Common,
    );
    short(0x40, capability(1, 4, COMMON, 0x1000), 0, Structure::Common);
    short(
        0x70,
        notify_capability(4, NOTIFY, 0x1000, 4),
        16,
        Structure::Notify,
    );
    // Longer than known is fine (specification 4.1.4.1).
    let mut longer = capability(1, 4, COMMON, 0x1000);
    longer[0] += 4 << 16;
    assert!(find(with(0x40, longer), |_| ()).is_ok());
    // The configuration space ends at 0x100.
    let mut list = without(0x40);
    list.push((0xf4, capability(1, 4, COMMON, 0x1000)));
    let truncated = StructureProblem::Truncated { length: 16 };
    assert_eq!(
        find(list, |_| ()),
        Err(unusable(Structure::Common, 0xf4, truncated))
    );
}

#[test]
fn reserved_types_and_bars_are_ignored() {
    for words in [
        capability(0, 4, 0, 0x1000),
        capability(6, 4, 0, 0x1000),
        capability(255, 4, 0, 0x1000),
        capability(1, 6, 0, 0x1000),
        capability(1, 255, 0, 0x1000),
    ] {
        let found = find(and(true, words), |_| ()).unwrap();
        assert_eq!(found, find(capabilities(), |_| ()).unwrap());
    }
}

/// Specification 4.1.4.1: the first instance that the driver can support.
#[test]
fn of_several_the_first_good_one_counts() {
    let at = |offset| Location::Memory(BAR + offset);
    let common = |first, offset| {
        let words = capability(1, 4, offset, 0x38);
        find(and(first, words), |_| ()).unwrap().common.location
    };
    assert_eq!(common(true, 0x800), at(0x800));
    assert_eq!(common(false, 0x800), at(0));
    assert_eq!(common(true, 0x801), at(0), "a bad one before a good one");
    assert_eq!(common(false, 0x801), at(0), "a bad one behind a good one");
}

/// Off x86: a window is a way, but memory is the better one; without either
/// there is an error, never a device that is not kicked.
#[test]
fn ports_are_taken_only_where_they_can_be_reached() {
    let ports = |pci: &mut PciFunction| pci.bar(2, u32::from(PORTS) | 1, !0x3f);
    let both = and(true, notify_capability(2, 8, 4, 0));
    let only = with(0x70, notify_capability(2, 8, 4, 0));
    let base = BAR << 1;
    add_mmio(base, 0x1_0000 / 4);
    // SAFETY: nobody else uses the addresses, and nothing is kicked.
    let window = unsafe { PortWindow::map::<GuestHal>(base, 0x1_0000) }
        .unwrap()
        .access();
    // SAFETY: as above.
    let small = unsafe { PortWindow::map::<GuestHal>(base, PORTS.into()) }
        .unwrap()
        .access();
    for reach in [window, small, PortAccess::NONE] {
        let found = find_with(both.clone(), ports, reach).unwrap();
        assert_eq!(
            found.notify.location,
            Location::Memory(BAR + u64::from(NOTIFY))
        );
        assert_eq!(found.notify_off_multiplier, 4);
    }
    let found = find_with(only.clone(), ports, window).unwrap();
    assert_eq!(found.notify.location, Location::Ports(PORTS + 8));
    let problem = StructureProblem::Bar {
        bar: 2,
        problem: BarProblem::OutOfReach,
    };
    for reach in [small, PortAccess::NONE] {
        assert_eq!(
            find_with(only.clone(), ports, reach),
            Err(unusable(Structure::Notify, 0x70, problem))
        );
    }
}

#[test]
fn a_notification_structure_in_ports_is_preferred() {
    let ports = |pci: &mut PciFunction| pci.bar(2, u32::from(PORTS) | 1, !0x3f);
    for first in [true, false] {
        let found = find(and(first, notify_capability(2, 8, 4, 0)), ports).unwrap();
        assert_eq!(found.notify.location, Location::Ports(PORTS + 8));
        assert_eq!((found.notify.bar, found.notify.length), (2, 4));
        assert_eq!(found.notify_off_multiplier, 0);
        // One that is wrong is no better than none.
        for words in [
            notify_capability(2, 0x40, 4, 0),
            notify_capability(2, 0, 4, 3),
            notify_capability(2, 1, 4, 0),
            notify_capability(3, 0, 4, 0),
        ] {
            let found = find(and(first, words), ports).unwrap();
            assert_eq!(
                found.notify.location,
                Location::Memory(BAR + u64::from(NOTIFY))
            );
            assert_eq!(found.notify_off_multiplier, 4);
        }
    }
    // Ports only.
    let list = with(0x70, notify_capability(2, 0, 8, 4));
    assert_eq!(
        find(list.clone(), ports).unwrap().notify.location,
        Location::Ports(PORTS)
    );
    // Beyond the last port.
    let high = |pci: &mut PciFunction| pci.lying_bar(2, 0xffe1, !0x3e);
    let problem = StructureProblem::Bar {
        bar: 2,
        problem: BarProblem::OutOfRange { address: 0xffe0 },
    };
    assert_eq!(
        find(list, high),
        Err(unusable(Structure::Notify, 0x70, problem))
    );
}

#[test]
fn the_multiplier_is_zero_or_an_even_power_of_two() {
    for multiplier in [0, 2, 4, 0x1000, 1 << 31] {
        let list = with(0x70, notify_capability(4, NOTIFY, 0x1000, multiplier));
        assert_eq!(
            find(list, |_| ()).unwrap().notify_off_multiplier,
            multiplier
        );
    }
    for multiplier in [1, 3, 6, u32::MAX] {
        let list = with(0x70, notify_capability(4, NOTIFY, 0x1000, multiplier));
        let problem = StructureProblem::Multiplier { multiplier };
        assert_eq!(
            find(list, |_| ()),
            Err(unusable(Structure::Notify, 0x70, problem))
        );
    }
}

#[test]
fn a_list_that_leads_in_a_circle_ends() {
    let next = |offset: u8, next: u8| {
        move |pci: &mut PciFunction| {
            let word = pci.get(offset);
            pci.set(offset, word & !0xff00 | u32::from(next) << 8);
        }
    };
    // The last one leads back to the first: everything was seen by then.
    assert!(find(capabilities(), next(0x40, 0x98)).is_ok());
    // To itself, before the last two.
    let missing = |structure| Err(TransportError::NoStructure { structure });
    assert_eq!(
        find(capabilities(), next(0x60, 0x60)),
        missing(Structure::Common)
    );
    assert_eq!(
        find(capabilities(), next(0x70, 0x98)),
        missing(Structure::Common)
    );
    // Into the header, and to a place that is not aligned.
    assert_eq!(
        find(capabilities(), next(0x70, 0x10)),
        missing(Structure::Common)
    );
    assert_eq!(
        find(capabilities(), next(0x70, 0x61)),
        missing(Structure::Common)
    );
    assert_eq!(
        find(capabilities(), |pci| pci.set(0x34, 0x10)),
        missing(Structure::Common)
    );
    assert_eq!(
        find(capabilities(), |pci| pci.set(0x34, 0)),
        missing(Structure::Common)
    );
}

/// Whatever the configuration space holds: an answer, and no panic.
#[test]
fn random_configuration_spaces_are_survived() {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u32
    };
    for _ in 0..3000 {
        let (at, value) = ((random() as u8).max(0x34) & !3, random());
        let (bar, answer) = (random() as usize % 6, random());
        let mut list = capabilities();
        let words = list[random() as usize % 6].1.len();
        let (index, word) = (random() as usize % 6, random() as usize % words);
        if let Some(word) = list[index].1.get_mut(word) {
            *word ^= 1 << (random() % 32);
        }
        let found = find(list, |pci| {
            pci.set(at, value);
            pci.lying_bar(bar, random(), answer);
        });
        if let Ok(found) = found {
            for region in [found.common, found.notify, found.isr] {
                if let Location::Memory(start) = region.location {
                    assert!(start.checked_add(region.length.into()).is_some());
                }
            }
        }
    }
}
