//! The ways to the device: the transports that the tests run over.

use kickpath::qemu::{Kind, Machine, Nic};
use kickpath_abi::config::{Irq, Transport};

/// A way to the device. What the guest serves must not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// The guest's own choice: the legacy interface of virtio-pci, port I/O.
    #[default]
    Legacy,
    /// The modern interface of virtio-pci.
    Modern,
    /// The same, kicked by a port.
    ModernPortNotify,
    /// virtio-mmio version 1, on microvm.
    MmioV1,
    /// virtio-mmio version 2, on microvm.
    MmioV2,
}

impl Way {
    /// Every way.
    pub const ALL: [Self; 5] = [
        Self::Legacy,
        Self::Modern,
        Self::ModernPortNotify,
        Self::MmioV1,
        Self::MmioV2,
    ];

    /// The first part of the names of its tests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Modern => "modern",
            Self::ModernPortNotify => "modern_port_notify",
            Self::MmioV1 => "mmio_v1",
            Self::MmioV2 => "mmio_v2",
        }
    }

    /// What the guest calls it.
    pub const fn transport(self) -> Transport {
        match self {
            Self::Legacy => Transport::Legacy,
            Self::Modern | Self::ModernPortNotify => Transport::Modern,
            Self::MmioV1 | Self::MmioV2 => Transport::Mmio,
        }
    }

    /// Whether it is virtio-pci. Only that has vectors, places on a bus and
    /// more than one machine type.
    pub const fn is_pci(self) -> bool {
        !matches!(self, Self::MmioV1 | Self::MmioV2)
    }

    /// Whether the device has `VERSION_1`, with what goes with it.
    pub const fn is_version_1(self) -> bool {
        !matches!(self, Self::Legacy | Self::MmioV1)
    }

    /// The machine types that have it.
    pub const fn kinds(self) -> &'static [Kind] {
        match self.is_pci() {
            true => &[Kind::Pc, Kind::Q35],
            false => &[Kind::Microvm],
        }
    }

    /// The rungs of the interrupt ladder that it has, from the top.
    pub const fn rungs(self) -> &'static [Irq] {
        match self.is_pci() {
            true => &[Irq::Msix, Irq::MsixShared, Irq::Intx, Irq::Poll],
            false => &[Irq::Intx, Irq::Poll],
        }
    }

    /// The rung that the guest takes if nobody asks for another.
    pub const fn first_rung(self) -> Irq {
        self.rungs()[0]
    }

    /// Changes a machine that is about to be described further.
    pub fn apply(self, machine: &mut Machine, nic: &mut Nic) {
        match self {
            // Left to the guest: the default must be tested as what it is.
            Self::Legacy => {}
            Self::Modern | Self::ModernPortNotify => {
                machine.config.transport = Transport::Modern;
                nic.pio_notify = self == Self::ModernPortNotify;
            }
            Self::MmioV1 | Self::MmioV2 => {
                machine.kind = Kind::Microvm;
                nic.mmio_legacy = self == Self::MmioV1;
            }
        }
    }
}
