//! Options that do not go together.

use kickpath_abi::config::Transport;

use crate::qemu::{Kind, Vmm};

/// Options that do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The machine has no bus for this transport.
    #[error("--machine {machine} has no {transport} devices: {hint}")]
    Transport {
        /// The machine type.
        machine: Kind,
        /// What it has not.
        transport: Transport,
        /// What to say instead.
        hint: &'static str,
    },
    /// The machine cannot start disk images.
    #[error(
        "--image with --machine microvm: it has no disk that its firmware could start from \
         (--machine pc or q35)"
    )]
    Image,
    /// An option of virtio-mmio on a machine without.
    #[error("--mmio-legacy is for --machine microvm: {0} has no virtio-mmio")]
    MmioLegacy(Kind),
    /// An option of virtio-pci on a machine without.
    #[error("--pio-notify is for --machine pc and q35: {0} has no PCI")]
    PioNotify(Kind),
    /// Packed rings by a legacy interface.
    #[error("--layout packed: legacy interfaces have split rings only ({hint})")]
    Packed {
        /// What to say instead.
        hint: &'static str,
    },
    /// A choice that legacy virtio-pci does not leave.
    #[error(
        "--queue-size: the legacy interface of virtio-pci dictates its queues' sizes \
         (--transport modern, or --rx-queue-size for another device)"
    )]
    QueueSize,
    /// Receive-side scaling by a legacy interface.
    #[error("--rss: legacy interfaces do not have it (--transport modern, no --mmio-legacy)")]
    Rss,
    /// Receive-side scaling at a far end with one queue.
    #[error("--rss: this far end has one queue and no hashes (--net tap has both)")]
    RssFarEnd,
    /// An option for what a measurement decides by itself.
    #[error("{option}: {why}")]
    Decided {
        /// The option.
        option: &'static str,
        /// Why it is not the user's.
        why: &'static str,
    },
    /// What a VMM other than QEMU cannot do, or is not told.
    #[error("--vmm {}: {option} is not for {vmm}: {why}", vmm.word())]
    Vmm {
        /// The VMM.
        vmm: Vmm,
        /// The option.
        option: &'static str,
        /// Why.
        why: &'static str,
    },
    /// A VLAN at a far end that knows none.
    #[error("--vlan: this far end knows no VLANs (--net dgram of `run` does, `trace` too)")]
    Vlan,
}
