//! What the user asked for.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::str::FromStr;

use kickpath_abi::config::{Ipv4Config, Irq, LogLevel, Transport, UdpWay};

use super::error::SessionError;
use super::others;
use crate::accel::AccelChoice;
use crate::install::Policy;
use crate::qemu::{Kind, Memory, Vmm};
use crate::wire::Capture;

/// Which end of the cable is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetChoice {
    /// A host of our own behind a pair of datagram sockets.
    #[default]
    Dgram,
    /// QEMU's user network with forwarded ports.
    User,
    /// A tap device in a network namespace.
    Tap,
}

impl FromStr for NetChoice {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "dgram" => Ok(Self::Dgram),
            "user" => Ok(Self::User),
            "tap" => Ok(Self::Tap),
            _ => Err("expected dgram, user or tap".into()),
        }
    }
}

/// The form of a virtqueue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Three areas (specification 2.7).
    #[default]
    Split,
    /// One ring (specification 2.8).
    Packed,
}

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What runs the machine.
    pub vmm: Vmm,
    /// Its program, if not the one on the path.
    pub vmm_path: Option<PathBuf>,
    /// The accelerator.
    pub accel: AccelChoice,
    /// The machine type.
    pub kind: Kind,
    /// How the guest reaches the device's registers.
    pub transport: Transport,
    /// virtio-mmio version 1 instead of 2, on microvm.
    pub mmio_legacy: bool,
    /// A port for the kicks of a modern PCI device.
    pub pio_notify: bool,
    /// Whether a kick is handled by QEMU's main loop (`true`, QEMU's default)
    /// or where it is made.
    pub ioeventfd: Option<bool>,
    /// The form of the queues.
    pub layout: Layout,
    /// Descriptors of a receive or transmit queue at most, 1 to 32768, where
    /// the interface leaves the driver a choice.
    pub queue_size: Option<u16>,
    /// Descriptors of the device's receive queue: 256, 512 or 1024.
    pub rx_queue_size: Option<u16>,
    /// Whether the device offers receive-side scaling and hash reports.
    pub rss: bool,
    /// The VLAN that the guest and the far end are in, 1 to 4094.
    pub vlan: Option<u16>,
    /// The MTU that the device tells, 68 to 65535 bytes.
    pub mtu: Option<u16>,
    /// How datagrams reach the guest's UDP services.
    pub udp: UdpWay,
    /// Where the guest sends its log.
    pub netconsole: Option<SocketAddrV4>,
    /// The rung of the interrupt ladder.
    pub irq: Irq,
    /// Memory.
    pub memory: Memory,
    /// Virtual CPUs, 1 to 64.
    pub cpus: u8,
    /// The QEMU program, if not the one on the path.
    pub qemu: Option<PathBuf>,
    /// The guest's address.
    pub ipv4: Ipv4Config,
    /// A file for all frames.
    pub pcap: Option<Capture>,
    /// How much the guest prints.
    pub log: LogLevel,
    /// Features not to accept: the value of the guest's `features=`.
    pub features: Option<String>,
    /// An ELF file to boot instead of a fresh build.
    pub kernel: Option<PathBuf>,
    /// A disk image to boot instead.
    pub image: Option<PathBuf>,
    /// Whether anything may be installed.
    pub policy: Policy,
}

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

    /// Ends the record of frames, when all that was started has ended.
    ///
    /// # Errors
    /// That of `result`, or the record misses frames.
    pub fn keep_pcap<T>(&self, result: Result<T, SessionError>) -> Result<T, SessionError> {
        let kept = self.pcap.as_ref().map_or(Ok(()), Capture::keep);
        match (&result, kept) {
            (Ok(_), Err(error)) => Err(error.into()),
            (Err(_), Err(error)) => {
                log::warn!("{error}");
                result
            }
            (_, Ok(())) => result,
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
