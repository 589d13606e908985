//! What both interfaces of virtio-pci have below their registers: the PCI
//! function itself, with its ids, INTx and MSI-X (Linux `virtio_pci_common.c`).

use core::ops::RangeInclusive;

use virtio_drivers::Hal;
use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, PciRoot,
};

use super::msix::Msix;
use super::{MsiMessage, TransportError, structures};

/// PCI vendor id of virtio devices.
pub(super) const VENDOR_VIRTIO: u16 = 0x1af4;
/// PCI device ids of legacy and transitional devices, whose kind is their
/// subsystem id (specification 4.1.2.3).
pub(super) const TRANSITIONAL: RangeInclusive<u16> = 0x1000..=0x103f;

/// A PCI function that is driven by a transport.
pub(super) struct PciFunction<H: Hal, C: ConfigurationAccess> {
    pub(super) place: DeviceFunction,
    pub(super) root: PciRoot<C>,
    pub(super) access: C,
    /// Sized once: what is mapped is what was checked.
    pub(super) bars: [Option<BarInfo>; 6],
    msix: Option<Msix<H>>,
    msix_on: bool,
}

impl<H: Hal, C: ConfigurationAccess> PciFunction<H, C> {
    /// The function at `place`; nothing was accessed yet.
    pub(super) fn new(access: &C, place: DeviceFunction) -> Self {
        // SAFETY: the transport is the only user of the device; the clones size
        // its BARs, read its capabilities and set its command register and MSI-X.
        let clone = || unsafe { access.unsafe_clone() };
        Self {
            place,
            root: PciRoot::new(clone()),
            access: clone(),
            bars: [const { None }; 6],
            msix: None,
            msix_on: false,
        }
    }

    /// Vendor and device id.
    pub(super) fn id(&self) -> (u16, u16) {
        let id = self.access.read_word(self.place, 0x00);
        (id as u16, (id >> 16) as u16)
    }

    pub(super) fn revision(&self) -> u8 {
        self.access.read_word(self.place, 0x08) as u8
    }

    pub(super) fn subsystem(&self) -> u16 {
        (self.access.read_word(self.place, 0x2c) >> 16) as u16
    }

    /// Finds the BARs, of a function that is known to be the driver's.
    pub(super) fn size_bars(&mut self) {
        self.bars = structures::bars(&mut self.root, self.place);
    }

    /// Looks for MSI-X, which is off then, and turns on decoding and bus
    /// mastering (Linux `pci_enable_device` and `pci_set_master`).
    ///
    /// A broken MSI-X capability is reported to the log and treated as none.
    pub(super) fn enable(&mut self) {
        self.msix = Msix::find(&mut self.root, &mut self.access, self.place, &self.bars)
            .unwrap_or_else(|problem| {
                log::warn!("{}: {problem}; going on without MSI-X", self.place);
                None
            });
        let (_, command) = self.root.get_status_command(self.place);
        self.root.set_command(
            self.place,
            command | Command::IO_SPACE | Command::MEMORY_SPACE | Command::BUS_MASTER,
        );
    }

    /// As `ConfigOps::intx_enable` (Linux `pci_intx`).
    pub(super) fn intx_enable(&mut self, enable: bool) {
        let (_, mut command) = self.root.get_status_command(self.place);
        command.set(Command::INTERRUPT_DISABLE, !enable);
        self.root.set_command(self.place, command);
    }

    /// As `ConfigOps::msix_entries`.
    pub(super) fn msix_entries(&self) -> u16 {
        self.msix.as_ref().map_or(0, Msix::entries)
    }

    /// As `ConfigOps::msix_enable`; returns the number of accesses to the
    /// table.
    pub(super) fn msix_enable(&mut self, messages: &[MsiMessage]) -> Result<u64, TransportError> {
        let Some(msix) = &mut self.msix else {
            return Err(TransportError::no_msix(messages.len()));
        };
        let accesses = msix.enable(&mut self.access, messages)?;
        self.msix_on = true;
        Ok(accesses)
    }

    /// Whether MSI-X is on.
    pub(super) fn msix_on(&self) -> bool {
        self.msix_on
    }

    /// As `ConfigOps::msix_disable`.
    pub(super) fn msix_disable(&mut self) {
        if let (true, Some(msix)) = (self.msix_on, &mut self.msix) {
            msix.disable(&mut self.access);
        }
        self.msix_on = false;
    }

    /// As `ConfigOps::set_vq_affinity`; returns the number of accesses to the
    /// table.
    pub(super) fn set_vq_affinity(
        &mut self,
        entry: u16,
        message: MsiMessage,
    ) -> Result<u64, TransportError> {
        match &mut self.msix {
            Some(msix) if self.msix_on => msix.set_message(entry, message),
            _ => Err(TransportError::no_msix(usize::from(entry) + 1)),
        }
    }
}

/// What a transport has of [`ConfigOps`](super::ConfigOps) by its [`PciFunction`].
macro_rules! pci_methods {
    () => {
        type Notify = Doorbell;

        fn register_accesses(&self) -> u64 {
            self.accesses.total()
        }

        fn bus_name(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "PCI {}", self.pci.place)
        }

        fn msix_entries(&self) -> u16 {
            self.pci.msix_entries()
        }

        fn msix_enable(&mut self, messages: &[MsiMessage]) -> Result<(), TransportError> {
            self.accesses.count(self.pci.msix_enable(messages)?);
            Ok(())
        }

        fn msix_disable(&mut self) {
            self.pci.msix_disable();
        }

        fn set_vq_affinity(
            &mut self,
            entry: u16,
            message: MsiMessage,
        ) -> Result<(), TransportError> {
            self.accesses
                .count(self.pci.set_vq_affinity(entry, message)?);
            Ok(())
        }

        fn intx_enable(&mut self, enable: bool) {
            self.pci.intx_enable(enable);
        }
    };
}
pub(super) use pci_methods;
