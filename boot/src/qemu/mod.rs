//! One typed description of a machine ([`Machine`]) becomes one QEMU command
//! line ([`Machine::arguments`]).
//!
//! Everything that the guest can see is in the description: no default
//! devices, no user configuration, no option ROM on the network device.

mod command;
mod firmware;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use kickpath_abi::config::{Config, Ipv4Cidr};

pub use command::{quote, shell_line, tcg_cpus};
pub use firmware::{DiskImage, Firmware, FirmwareError};
pub use values::{Kind, Memory, MemoryError, Vmm};

/// The I/O port of isa-debug-exit: a byte `v` written there ends QEMU with
/// exit status `(v << 1) | 1`.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;

/// The hardware address of the guest's network device: QEMU's own prefix.
pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x4b, 0x50, 0x01];

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// QEMU's translator. Works everywhere.
    Tcg,
    /// The kernel's KVM.
    Kvm {
        /// No `vmx` or `svm` under it: every guest instruction is emulated,
        /// and the guest must not see `arch-capabilities`.
        emulated: bool,
    },
}

impl Accel {
    /// The word of `--accel` and of QEMU's `-accel`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Kvm { .. } => "kvm",
        }
    }
}

/// Which register interfaces the network device offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NicTransport {
    /// Both: a transitional device (QEMU's default). The guest chooses.
    #[default]
    Transitional,
    /// Legacy only (`disable-modern=on`).
    Legacy,
    /// Modern only (`disable-legacy=on`).
    Modern,
}

/// A port of the host's loopback interface that QEMU forwards to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// What is forwarded.
    pub protocol: Protocol,
    /// Where the host listens; always on 127.0.0.1.
    pub host_port: u16,
    /// Where the guest listens.
    pub guest_port: u16,
}

/// A transport protocol that can be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The other end of the network device's cable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Net {
    /// `-netdev dgram`: one Ethernet frame a datagram, between two Unix sockets.
    Dgram {
        /// QEMU's socket; QEMU creates it.
        qemu: PathBuf,
        /// The socket of the program at the far end.
        host: PathBuf,
    },
    /// `-netdev user`: QEMU's own network, with forwards from 127.0.0.1.
    User {
        /// The guest's address and the network that it is in.
        guest: Ipv4Cidr,
        /// QEMU's own address in that network: gateway and DHCP server.
        gateway: Ipv4Addr,
        /// Ports forwarded to the guest.
        forwards: Vec<Forward>,
    },
    /// `-netdev tap` with open file descriptors, one a queue, which QEMU
    /// inherits.
    TapFds(Vec<RawFd>),
    /// `-netdev tap` by the name of an interface that exists.
    TapName {
        /// The interface.
        name: String,
        /// Its number of queues.
        queues: u16,
        /// The network namespace that it is in, if it is another one than ours.
        namespace: Option<PathBuf>,
    },
}

impl Net {
    /// How many pairs of queues it carries.
    pub fn queue_pairs(&self) -> u16 {
        match self {
            Self::Dgram { .. } | Self::User { .. } => 1,
            Self::TapFds(queues) => queues.len().try_into().unwrap_or(u16::MAX).max(1),
            Self::TapName { queues, .. } => (*queues).max(1),
        }
    }
}

/// The network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// The far end.
    pub net: Net,
    /// Which register interfaces it offers (not on microvm: that is virtio-mmio).
    pub transport: NicTransport,
    /// virtio-mmio version 1, the legacy interface, instead of 2 (microvm
    /// only).
    pub mmio_legacy: bool,
    /// Whether the modern interface has a port for kicks, too
    /// (`modern-pio-notify=on`; not on microvm).
    pub pio_notify: bool,
    /// Number of MSI-X vectors; 0 takes the capability away. When `None`
    /// QEMU's default, or with several pairs of queues one a queue and one for
    /// configuration changes.
    pub vectors: Option<u16>,
    /// Whether a kick is handled by QEMU's main loop (`on`, QEMU's default) or
    /// by the vCPU thread that made it (`off`).
    pub ioeventfd: Option<bool>,
    /// Descriptors of the receive queue: a power of two, 256 to 1024.
    pub rx_queue_size: Option<u16>,
    /// Descriptors of the transmit queue: a power of two, 256 to 1024 (QEMU
    /// accepts more than 256 for vhost-user and vDPA only).
    pub tx_queue_size: Option<u16>,
    /// The MTU that the device tells the guest (`host_mtu`), 68 to 65535 bytes
    /// of an IP packet; none is told when `None`.
    pub mtu: Option<u16>,
    /// Whether the device offers packed rings (`packed=on`).
    pub packed: bool,
    /// Whether the device offers receive-side scaling and hash reports
    /// (`rss=on,hash=on`).
    pub rss: bool,
    /// The hardware address.
    pub mac: [u8; 6],
    /// More properties of the device, `name` and `value`.
    pub properties: Vec<(String, String)>,
    /// A file in which QEMU records every frame (`filter-dump`). A datagram
    /// wire records its frames itself, see [`crate::wire`].
    pub dump: Option<PathBuf>,
}

impl Nic {
    /// The hardware address as text.
    pub fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }

    /// A transitional device with QEMU's defaults at the end of this cable.
    pub fn new(net: Net) -> Self {
        Self {
            net,
            transport: NicTransport::default(),
            mmio_legacy: false,
            pio_notify: false,
            vectors: None,
            ioeventfd: None,
            rx_queue_size: None,
            tx_queue_size: None,
            mtu: None,
            packed: false,
            rss: false,
            mac: GUEST_MAC,
            properties: Vec::new(),
            dump: None,
        }
    }
}

/// What the machine starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// An ELF file with a PVH entry (`-kernel`). Its configuration travels on
    /// the command line.
    Kernel(PathBuf),
    /// A disk image. Its configuration travels by fw_cfg.
    Disk(DiskImage),
    /// A Linux, which does not know the guest's configuration (`-kernel`, `-initrd`).
    Linux(LinuxBoot),
}

/// A Linux to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinuxBoot {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its first root directory.
    pub initramfs: PathBuf,
    /// Its command line.
    pub words: String,
}

/// Events that QEMU records (`-trace`), and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Names or patterns of events, such as `virtio_queue_notify`. Only of a name QEMU
    /// complains when it has no such event.
    pub events: Vec<String>,
    /// The directory of the logs (`-D`), a file a thread. It must exist.
    pub directory: PathBuf,
}

impl Trace {
    const PREFIX: &str = "qemu-thread-";
    const SUFFIX: &str = ".log";

    /// The file names as QEMU takes them: `%d` is the number of a thread.
    pub fn pattern(&self) -> PathBuf {
        let name = format!("{}%d{}", Self::PREFIX, Self::SUFFIX);
        self.directory.join(name)
    }

    /// The logs that are in `directory`, by the number of the thread that wrote each. A thread
    /// that never wrote has none.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn files(directory: &Path) -> io::Result<BTreeMap<u32, PathBuf>> {
        let mut files = BTreeMap::new();
        for entry in directory.read_dir()? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix(Self::PREFIX)?.strip_suffix(Self::SUFFIX));
            if let Some(thread) = number.and_then(|number| number.parse().ok()) {
                files.insert(thread, entry.path());
            }
        }
        Ok(files)
    }
}

/// A whole machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What runs it; what the description says below of QEMU is for QEMU only.
    pub vmm: Vmm,
    /// Its program.
    pub program: PathBuf,
    /// The machine type.
    pub kind: Kind,
    /// What executes the guest.
    pub accel: Accel,
    /// The CPU model; `host` on KVM and QEMU's default on TCG when `None`.
    pub cpu: Option<String>,
    /// Memory.
    pub memory: Memory,
    /// Number of virtual CPUs, at least 1.
    pub cpus: u8,
    /// The network device, if any.
    pub nic: Option<Nic>,
    /// What is started.
    pub boot: Boot,
    /// The guest's configuration.
    pub config: Config,
    /// `-icount shift=N`: every guest instruction takes `2^N` ns of virtual
    /// time, so that counts repeat exactly. TCG only.
    pub icount: Option<u8>,
    /// A Unix socket on which someone listens for QEMU's monitor (QMP).
    pub qmp: Option<PathBuf>,
    /// Start with the virtual CPUs stopped (`-S`).
    pub paused: bool,
    /// Events to record.
    pub trace: Option<Trace>,
    /// More arguments, at the end.
    pub extra: Vec<OsString>,
}

impl Machine {
    /// A small machine of this kind with no network, which QEMU runs.
    pub fn new(program: impl Into<PathBuf>, kind: Kind, accel: Accel, boot: Boot) -> Self {
        Self {
            vmm: Vmm::Qemu,
            program: program.into(),
            kind,
            accel,
            cpu: None,
            memory: Memory::default(),
            cpus: 1,
            nic: None,
            boot,
            config: Config::default(),
            icount: None,
            qmp: None,
            paused: false,
            trace: None,
            extra: Vec::new(),
        }
    }
}

/// `ADDRESS:PORT` on the loopback interface.
pub(crate) fn loopback(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}
