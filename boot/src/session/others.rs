//! What VMMs other than QEMU cannot do, or are not told: said before anything starts.

use kickpath_abi::config::Transport;

use super::mismatch::Mismatch;
use super::settings::{Layout, Settings};
use crate::accel::AccelChoice;
use crate::qemu::{Kind, Vmm};

/// Whether such a VMM can do what was asked for.
pub(super) fn check(settings: &Settings) -> Result<(), Mismatch> {
    let vmm = settings.vmm;
    let transport = match (vmm, settings.transport) {
        (_, Transport::Auto)
        | (Vmm::Firecracker, Transport::Mmio | Transport::Modern)
        | (Vmm::CloudHypervisor | Vmm::Alioth | Vmm::Crosvm, Transport::Modern)
        | (Vmm::Kvmtool, Transport::Modern | Transport::Legacy) => None,
        (Vmm::Firecracker, _) => Some("it has virtio-mmio and modern virtio-pci"),
        (Vmm::CloudHypervisor | Vmm::Alioth | Vmm::Crosvm, _) => {
            Some("it has modern virtio-pci only")
        }
        (_, _) => Some("it has modern and legacy virtio-pci"),
    };
    let of_qemu = "it is for QEMU's device";
    let asked = |is_asked: bool, why| is_asked.then_some(why);
    let options = [
        (
            "--accel tcg",
            asked(settings.accel == AccelChoice::Tcg, "it has KVM only"),
        ),
        (
            "--machine",
            asked(settings.kind != Kind::Pc, "its machine has one type"),
        ),
        ("--transport", transport),
        (
            "--image",
            asked(settings.image.is_some(), "it starts kernels (--kernel)"),
        ),
        (
            "--pcap",
            asked(
                settings.pcap.is_some(),
                "it records no frames (tcpdump in the tap's namespace does)",
            ),
        ),
        ("--mmio-legacy", asked(settings.mmio_legacy, of_qemu)),
        ("--pio-notify", asked(settings.pio_notify, of_qemu)),
        ("--ioeventfd", asked(settings.ioeventfd.is_some(), of_qemu)),
        (
            "--layout packed",
            asked(
                settings.layout == Layout::Packed && vmm != Vmm::Alioth,
                "its rings are split",
            ),
        ),
        (
            "--rx-queue-size",
            asked(settings.rx_queue_size.is_some(), of_qemu),
        ),
        ("--rss", asked(settings.rss, of_qemu)),
        ("--mtu", asked(settings.mtu.is_some(), of_qemu)),
        (
            "--vlan",
            asked(settings.vlan.is_some(), "a tap knows no VLANs"),
        ),
        (
            "--queue-size",
            asked(
                settings.queue_size.is_some() && settings.transport == Transport::Legacy,
                "the legacy interface dictates its queues' sizes",
            ),
        ),
    ];
    let refused = options
        .into_iter()
        .find_map(|(option, why)| Some((option, why?)));
    match refused {
        Some((option, why)) => Err(Mismatch::Vmm { vmm, option, why }),
        None => Ok(()),
    }
}
