//! Whether the user's options go together.

use kickpath_abi::config::Transport;

use super::mismatch::Mismatch;
use super::others;
use super::settings::{Layout, NetChoice, Settings};
use crate::qemu::{Kind, Vmm};

impl Settings {
    /// Whether the options go together.
    ///
    /// # Errors
    /// Those that do not.
    pub fn check(&self) -> Result<(), Mismatch> {
        if self.vmm != Vmm::Qemu {
            return others::check(self);
        }
        let (machine, transport) = (self.kind, self.transport);
        let hint = match (machine, transport) {
            (Kind::Microvm, Transport::Legacy) => {
                Some("it has virtio-mmio only (--mmio-legacy for its legacy version)")
            }
            (Kind::Microvm, Transport::Modern) => Some("it has virtio-mmio only"),
            (Kind::Pc | Kind::Q35, Transport::Mmio) => Some("--machine microvm has them"),
            _ => None,
        };
        if let Some(hint) = hint {
            return Err(Mismatch::Transport {
                machine,
                transport,
                hint,
            });
        }
        let is_legacy_pci = machine != Kind::Microvm && transport != Transport::Modern;
        if self.layout == Layout::Packed && (is_legacy_pci || self.mmio_legacy) {
            let hint = match is_legacy_pci {
                true => "--transport modern",
                false => "without --mmio-legacy",
            };
            return Err(Mismatch::Packed { hint });
        }
        if self.queue_size.is_some() && is_legacy_pci {
            return Err(Mismatch::QueueSize);
        }
        if self.rss && (is_legacy_pci || self.mmio_legacy) {
            return Err(Mismatch::Rss);
        }
        match machine {
            Kind::Microvm if self.image.is_some() => Err(Mismatch::Image),
            Kind::Microvm if self.pio_notify => Err(Mismatch::PioNotify(machine)),
            Kind::Pc | Kind::Q35 if self.mmio_legacy => Err(Mismatch::MmioLegacy(machine)),
            _ => Ok(()),
        }
    }

    /// Whether the options go together, and with this far end.
    ///
    /// # Errors
    /// Those that do not.
    pub fn check_with(&self, net: NetChoice) -> Result<(), Mismatch> {
        if self.vmm != Vmm::Qemu && net != NetChoice::Tap {
            return Err(Mismatch::Vmm {
                vmm: self.vmm,
                option: "--net dgram or user",
                why: "it takes a tap device (--net tap)",
            });
        }
        if self.vlan.is_some() && net != NetChoice::Dgram {
            return Err(Mismatch::Vlan);
        }
        if self.rss && net != NetChoice::Tap {
            self.check()?;
            return Err(Mismatch::RssFarEnd);
        }
        self.check()
    }
}
