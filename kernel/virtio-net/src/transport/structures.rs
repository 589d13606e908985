//! Where a virtio-pci device keeps its registers: the structures that its
//! vendor-specific PCI capabilities point to (specification 4.1.4; Linux
//! `virtio_pci_find_capability`).
//!
//! ```text
//! virtio_pci_cap   31        24 23        16 15         8 7          0
//!  0x00           | cfg_type   | cap_len    | cap_next   | cap_vndr 9 |
//!  0x04           | padding                              | bar        |
//!  0x08           | offset in the BAR                                 |
//!  0x0c           | length                                            |
//!  0x10           | notify_off_multiplier (notification only)         |
//! ```
//!
//! Everything here was written by the device, so nothing is believed: a
//! structure must lie within a BAR that has an address, be long enough and
//! aligned. A capability that is wrong is passed over, as the specification
//! wants it, and only when no other one for the same structure is right it is
//! an error.

use core::fmt;

use virtio_drivers::transport::pci::bus::{
    BarInfo, CapabilityInfo, ConfigurationAccess, DeviceFunction, PCI_CAP_ID_VNDR, PciRoot,
};
use virtio_drivers::{PAGE_SIZE, PhysAddr};

use super::{BarProblem, PortAccess, Structure, StructureProblem, TransportError};

/// Length in bytes of `virtio_pci_cap`.
const CAPABILITY: u8 = 16;
/// Length in bytes of `virtio_pci_notify_cap`.
const NOTIFY_CAPABILITY: u8 = 20;
/// Offset of the first capability that a configuration space can have.
const FIRST_CAPABILITY: u8 = 0x40;
/// Bytes of the common configuration that every device has.
pub(super) const COMMON_LENGTH: u32 = 0x38;
/// Ports that there are.
const PORTS: u64 = 1 << 16;

/// The capabilities of a function (PCI Local Bus specification 3.0, section
/// 6.7). A list that leads in a circle or out of its place ends there.
pub fn capabilities<C: ConfigurationAccess>(
    root: &PciRoot<C>,
    function: DeviceFunction,
) -> impl Iterator<Item = CapabilityInfo> {
    // One bit for each of the 64 words.
    let mut seen = 0u64;
    root.capabilities(function).take_while(move |capability| {
        let bit = 1u64 << (capability.offset / 4);
        let fine = capability.offset >= FIRST_CAPABILITY && seen & bit == 0;
        if !fine {
            log::warn!(
                "{function}: the capability list leads back to {:#x}; the rest is ignored",
                capability.offset
            );
        }
        seen |= bit;
        fine
    })
}

/// The BARs of a function (PCI Local Bus specification 3.0, section 6.2.5);
/// those that cannot be read, and the upper halves of 64-bit ones, are none.
pub fn bars<C: ConfigurationAccess>(
    root: &mut PciRoot<C>,
    function: DeviceFunction,
) -> [Option<BarInfo>; 6] {
    let mut bars = [const { None }; 6];
    let mut upper_half = false;
    for (index, bar) in (0..).zip(&mut bars) {
        if core::mem::take(&mut upper_half) {
            continue;
        }
        match root.bar_info(function, index) {
            Ok(info) => {
                upper_half = info.as_ref().is_some_and(BarInfo::takes_two_entries);
                *bar = info;
            }
            Err(error) => log::warn!("{function}: BAR {index}: {error}"),
        }
    }
    bars
}

/// Where the first byte of a structure is: `bar` and `offset` of its capability,
/// looked up (specification 4.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// At this physical address.
    Memory(PhysAddr),
    /// At this port.
    Ports(u16),
}

/// A structure within a BAR (specification 4.1.4, `struct virtio_pci_cap`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Index of the BAR, 0 to 5.
    pub bar: u8,
    /// Where it is.
    pub location: Location,
    /// Its length in bytes, as far as a driver makes use of it, whatever more the
    /// device says: registers are mapped at this length.
    pub length: u32,
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.location {
            Location::Memory(address) => write!(f, "{address:#x} (BAR {})", self.bar),
            Location::Ports(port) => write!(f, "port {port:#x} (BAR {})", self.bar),
        }
    }
}

/// The structures of a device (specification 4.1.4.3 to 4.1.4.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structures {
    /// The common configuration, in memory.
    pub common: Region,
    /// The notification structure: in ports where the device offers that, so
    /// that a kick is one `outw`, else in memory.
    pub notify: Region,
    /// Bytes between the notify registers of two neighbouring
    /// `queue_notify_off`s; 0 when all queues share one register.
    pub notify_off_multiplier: u32,
    /// The ISR status, in memory.
    pub isr: Region,
    /// The device's own configuration, in memory, if it has one.
    pub device: Option<Region>,
}

/// A capability for a structure, and what became of it.
struct Candidate {
    structure: Structure,
    capability: u8,
    region: Result<Region, StructureProblem>,
    multiplier: u32,
}

impl Structures {
    /// Finds the structures of the device at `function`, whose BARs are `bars`.
    ///
    /// Of several good capabilities for a structure the first counts
    /// (specification 4.1.4.1), except that a notification structure in ports
    /// is preferred to one in memory where ports are the CPU's own; where
    /// `ports` are a window, or none, memory is.
    ///
    /// # Errors
    ///
    /// [`TransportError::NoStructure`] and
    /// [`TransportError::UnusableStructure`].
    #[doc(alias = "virtio_pci_find_capability")]
    pub fn find<C: ConfigurationAccess>(
        root: &PciRoot<C>,
        access: &C,
        function: DeviceFunction,
        bars: &[Option<BarInfo>; 6],
        ports: PortAccess,
    ) -> Result<Self, TransportError> {
        let [mut common, mut isr, mut device] = <[Slot; 3]>::default();
        let [mut notify, mut notify_ports] = <[Slot; 2]>::default();
        for capability in capabilities(root, function) {
            if capability.id != PCI_CAP_ID_VNDR {
                continue;
            }
            let Some(candidate) = read(access, function, &capability, bars) else {
                continue;
            };
            if let Err(problem) = candidate.region {
                log::warn!(
                    "{function}: the {} (capability at {:#x}) {problem}",
                    candidate.structure,
                    candidate.capability
                );
            }
            let place = candidate.region.map(|region| region.location);
            match candidate.structure {
                Structure::Common => common.offer(candidate),
                Structure::Notify if matches!(place, Ok(Location::Ports(_))) => {
                    notify_ports.offer(candidate)
                }
                Structure::Notify => notify.offer(candidate),
                Structure::Isr => isr.offer(candidate),
                Structure::Device => device.offer(candidate),
            }
        }
        let common = common.take(Structure::Common)?;
        if notify_ports.0.is_some() && (ports.is_native() || !notify.is_good()) {
            notify = notify_ports;
        }
        let (notify_off_multiplier, capability) =
            (notify.0.as_ref()).map_or((0, 0), |found| (found.multiplier, found.capability));
        let notify = notify.take(Structure::Notify)?;
        if matches!(notify.location, Location::Ports(port) if ports.isr(port).is_none()) {
            return Err(TransportError::UnusableStructure {
                structure: Structure::Notify,
                capability,
                problem: StructureProblem::Bar {
                    bar: notify.bar,
                    problem: BarProblem::OutOfReach,
                },
            });
        }
        Ok(Self {
            common,
            notify,
            notify_off_multiplier,
            isr: isr.take(Structure::Isr)?,
            device: match device.0 {
                None => None,
                Some(_) => Some(device.take(Structure::Device)?),
            },
        })
    }
}

/// The best candidate for a structure so far.
#[derive(Default)]
struct Slot(Option<Candidate>);

impl Slot {
    fn is_good(&self) -> bool {
        matches!(self.0, Some(Candidate { region: Ok(_), .. }))
    }

    /// Takes the candidate, unless a good one is there already.
    fn offer(&mut self, candidate: Candidate) {
        if !self.is_good() {
            self.0 = Some(candidate);
        }
    }

    fn take(self, structure: Structure) -> Result<Region, TransportError> {
        let candidate = self.0.ok_or(TransportError::NoStructure { structure })?;
        candidate
            .region
            .map_err(|problem| TransportError::UnusableStructure {
                structure,
                capability: candidate.capability,
                problem,
            })
    }
}

/// Reads a vendor-specific capability. `None` for those that the specification
/// says to ignore: reserved types and reserved BARs (4.1.4.1).
fn read<C: ConfigurationAccess>(
    access: &C,
    function: DeviceFunction,
    capability: &CapabilityInfo,
    bars: &[Option<BarInfo>; 6],
) -> Option<Candidate> {
    let [length, cfg_type] = capability.private_header.to_le_bytes();
    let structure = match cfg_type {
        1 => Structure::Common,
        2 => Structure::Notify,
        3 => Structure::Isr,
        4 => Structure::Device,
        _ => return None,
    };
    let mut candidate = Candidate {
        structure,
        capability: capability.offset,
        region: Err(StructureProblem::Truncated { length }),
        multiplier: 0,
    };
    let needed = match structure {
        Structure::Notify => NOTIFY_CAPABILITY,
        _ => CAPABILITY,
    };
    // The configuration space has 256 bytes.
    let fits = usize::from(capability.offset) + usize::from(length) <= 256;
    if length < needed || !fits {
        return Some(candidate);
    }
    let word = |at: u8| access.read_word(function, capability.offset + at);
    let bar = word(4) as u8;
    let info = bars.get(usize::from(bar))?;
    if structure == Structure::Notify {
        candidate.multiplier = word(16);
    }
    candidate.region = locate(structure, bar, info.as_ref(), word(8), word(12));
    // Specification 4.1.4.4.1: 0 or an even power of 2.
    let multiplier = candidate.multiplier;
    if candidate.region.is_ok()
        && multiplier != 0
        && (!multiplier.is_power_of_two() || multiplier == 1)
    {
        candidate.region = Err(StructureProblem::Multiplier { multiplier });
    }
    Some(candidate)
}

/// Checks a structure of `length` bytes at `offset` of a BAR.
fn locate(
    structure: Structure,
    bar: u8,
    info: Option<&BarInfo>,
    offset: u32,
    length: u32,
) -> Result<Region, StructureProblem> {
    let unusable = |problem| StructureProblem::Bar { bar, problem };
    // What the registers need at least and at most, and what the specification
    // says of their alignment (4.1.4.3.1, 4.1.4.4.1, 4.1.4.6). Of the notification
    // structure each queue's register is mapped alone.
    let (needed, used, alignment) = match structure {
        Structure::Common => (COMMON_LENGTH, 64, 4),
        Structure::Notify => (2, u32::MAX, 2),
        Structure::Isr => (1, 1, 1),
        Structure::Device => (1, PAGE_SIZE as u32, 4),
    };
    let (address, size, is_ports) = match *info.ok_or(unusable(BarProblem::Missing))? {
        // As for legacy devices: a BAR of 16 bits has no upper half.
        BarInfo::IO { address, size } => (u64::from(address), u64::from(size & 0xffff), true),
        BarInfo::Memory { address, size, .. } => (address, size, false),
    };
    if is_ports && structure != Structure::Notify {
        return Err(unusable(BarProblem::WrongKind));
    }
    if address == 0 {
        return Err(unusable(BarProblem::Unassigned));
    }
    let end = address.checked_add(size);
    if end.is_none_or(|end| is_ports && end > PORTS) {
        return Err(unusable(BarProblem::OutOfRange { address }));
    }
    if u64::from(offset) + u64::from(length) > size {
        return Err(StructureProblem::OutsideBar {
            offset,
            length,
            size,
        });
    }
    if length < needed {
        return Err(StructureProblem::TooShort { length, needed });
    }
    if !offset.is_multiple_of(alignment) {
        return Err(StructureProblem::Misaligned { offset, alignment });
    }
    let start = address + u64::from(offset);
    Ok(Region {
        bar,
        location: match u16::try_from(start) {
            Ok(port) if is_ports => Location::Ports(port),
            _ => Location::Memory(start),
        },
        length: length.min(used),
    })
}
