//! Debian's kernel as the guest, with a root directory of a few files: what its driver is
//! traced ([`crate::trace::linux`]) and measured by ([`crate::bench::linux`]).

mod program;

use std::path::Path;

use kickpath_abi::config::{Ipv4Cidr, Irq, Transport, UdpWay};

use crate::linux::initramfs::{self, Entry};
use crate::linux::{Linux, LinuxError};
use crate::qemu::{Boot, Kind, LinuxBoot, Machine, NicTransport};
use crate::session::{Mismatch, Settings};
use crate::wire::Plan;

pub use program::Service;

/// What the guest prints when it serves, before the one line of every guest; its kernel's
/// release follows.
pub const RELEASE: &str = "kickpath: Linux ";

/// Words of the kernel. What keeps a CPU from guessing is left out, as an emulated CPU
/// pays for it; addresses are as the symbols say; IPv6 would send frames of its own.
const WORDS: &str = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable \
                     no_timer_check ipv6.disable=1";

/// Refuses what a Linux guest is not told.
///
/// # Errors
/// The option.
pub fn check(settings: &Settings) -> Result<(), Mismatch> {
    let refuse = |option, why| Err(Mismatch::Decided { option, why });
    if !cfg!(target_arch = "x86_64") {
        return refuse(
            "--guest linux",
            "it needs a host whose programs are for x86-64",
        );
    }
    const OURS: &str = "it is for our guest, not for Linux (--guest linux)";
    match settings {
        Settings {
            kind: Kind::Microvm,
            ..
        } => refuse(
            "--machine microvm",
            "the drivers that --guest linux loads are those of virtio-pci (--machine pc or q35)",
        ),
        Settings { image: Some(_), .. } => refuse("--image", OURS),
        Settings {
            netconsole: Some(_),
            ..
        } => refuse("--netconsole", OURS),
        Settings { vlan: Some(_), .. } => refuse("--vlan", OURS),
        Settings {
            queue_size: Some(_),
            ..
        } => refuse("--queue-size", OURS),
        Settings {
            udp: UdpWay::InPlace,
            ..
        } => refuse("--udp in-place", OURS),
        Settings { irq: Irq::Poll, .. } => refuse("--irq poll", "Linux's driver has no such rung"),
        Settings { cpus: 2.., .. } => refuse(
            "--smp",
            "--guest linux has one CPU: what several do is not told apart",
        ),
        _ => Ok(()),
    }
}

/// Has a machine boot Linux, by an archive in `directory`, with these services and more files.
///
/// # Errors
/// The archive cannot be written.
pub fn boot(
    machine: &mut Machine,
    directory: &Path,
    linux: &Linux,
    plan: &Plan,
    services: &[Service],
    more: impl IntoIterator<Item = Entry>,
) -> Result<(), LinuxError> {
    let initramfs = directory.join("initramfs");
    let Ipv4Cidr { address, prefix } = plan.guest;
    let ports = services
        .iter()
        .map(|service| format!("{:04X}", service.port()));
    let settings = format!(
        "ADDRESS={address}/{prefix}\nGATEWAY={}\nPORTS='{}'\n",
        plan.host,
        ports.collect::<Vec<_>>().join(" ")
    );
    let mut files = vec![
        Entry::program("init", include_str!("init.sh")),
        Entry::text("settings", settings),
        Entry::directory("services"),
        Entry::directory("www"),
    ];
    files.extend(services.iter().map(|&service| {
        let program = program::program(service, service.port());
        Entry::program(&format!("services/{}", service.word()), program)
    }));
    initramfs::write(&initramfs, linux, files.into_iter().chain(more))?;
    machine.boot = Boot::Linux(LinuxBoot {
        kernel: linux.kernel(),
        initramfs,
        words: WORDS.to_owned(),
    });
    Ok(())
}

/// What a Linux cannot be told on its command line, its device offers or not.
pub fn tell_device(machine: &mut Machine, settings: &Settings) {
    let off = machine.config.features_off.clone();
    let Some(nic) = &mut machine.nic else {
        return;
    };
    nic.transport = match settings.transport {
        Transport::Legacy => NicTransport::Legacy,
        Transport::Modern => NicTransport::Modern,
        Transport::Auto | Transport::Mmio => NicTransport::Transitional,
    };
    nic.vectors = match settings.irq {
        // One for the configuration, one for all queues.
        Irq::MsixShared => Some(2),
        Irq::Intx => Some(0),
        Irq::Auto | Irq::Msix | Irq::Poll => None,
    };
    let names = off.split(',').filter(|name| !name.is_empty());
    nic.properties
        .extend(names.map(|name| (name.replace('-', "_"), "off".to_owned())));
}
