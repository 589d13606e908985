//! What the user asked for.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::str::FromStr;

use kickpath_abi::config::{Ipv4Config, Irq, LogLevel, Transport, UdpWay};

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

impl Settings {
    /// Whether KVM is asked for by name, or by a VMM that has nothing else.
    pub fn asks_for_kvm(&self) -> bool {
        self.vmm != Vmm::Qemu || self.accel == AccelChoice::Kvm
    }
}
