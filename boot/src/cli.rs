//! The command line.

mod lab;

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kickpath::accel::AccelChoice;
use kickpath::bench::{BenchOptions, linux};
use kickpath::install::{Policy, QEMU_VARIABLE};
use kickpath::lang::Lang;
use kickpath::qemu::{Kind, Memory, Vmm};
use kickpath::serve::ServeOptions;
use kickpath::session::{Layout, Mismatch, NetChoice, Settings};
use kickpath::wire::Capture;
pub use lab::{LabArgs, LabCheckArgs, LabCommand, LabRingArgs, LabRunArgs};

use kickpath_abi::config::{self, Ipv4Config, Irq, LogLevel, Transport, UdpWay, parse_ipv4};

const EXAMPLES: &str = "\
Examples:
  cargo run                                 boot the guest, talk to it, tell the story
  cargo run -- serve                        keep it up: status page at http://127.0.0.1:8080/
  cargo run -- --machine q35 --irq intx     another machine, another interrupt rung
  cargo run -- --transport modern           another way to kick: a write to memory
  cargo run -- --machine microvm            no PCI at all: virtio-mmio
  cargo run -- --features=-event_idx        see what a feature is good for: refuse it
  cargo run -- --transport modern --layout packed --queue-size 64
                                            another form of the queues, and another size
  cargo run -- --vlan 5 --pcap run.pcap     guest and far end in a VLAN
  cargo run -- --net tap --mtu 9000         jumbo frames
  cargo run -- --netconsole 10.0.2.2:6666   the guest's log by UDP as well
  cargo run -- --pcap run.pcap              record every frame for Wireshark
  cargo run -- --net tap                    Linux itself at the far end (root)
  cargo run -- --net tap --smp 2            two CPUs, a pair of queues each
  cargo run -- --net tap --smp 2 --transport modern --rss
                                            the guest says which flow comes to which
  cargo run -- --vmm firecracker            another VMM (KVM and root)
  cargo run -- --dry-run                    print QEMU's command line, ready to paste
  cargo run -- --json | jq .status.counters numbers for a program
  cargo run -- trace                        one packet, step by step, through every layer
  cargo run -- trace --accel nested         the same with KVM's exits, on any x86-64 machine
  cargo run -- trace --guest linux          the same in Linux: its own virtio_net, function by function
  cargo run -- trace --gdb                  the guest stopped before its kick, in gdb
  cargo run -- trace --diff a.json b.json   two traces (of trace --json a.json) side by side
  cargo run -- trace --lang zh              the same in Chinese
  cargo run -- bench                        what a packet costs, in instructions and kicks
  cargo run -- compare                      the ways to kick, in one table
  cargo run -- soak --minutes 60            everything in turn for an hour, and a verdict
  cargo run -- lab run 1                    a driver with a mistake, and what comes of it
  cargo run -- gallery site                 a static site of all of these
  cargo run -- image --bios kickpath.img    a disk image (--image kickpath.img boots it)
  cargo run -- doctor                       what this machine has, and what it lacks";

/// See one packet leave a virtual machine.
///
/// Builds a small bare-metal guest around a virtio-net driver, boots it in QEMU or
/// another VMM and is the other end of its network cable. Without a command it runs `run`.
#[derive(Debug, Parser)]
#[command(
    name = "kickpath",
    version,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options of `run`, which is what happens without a command.
    #[command(flatten)]
    pub run: RunArgs,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot the guest, ping it, exchange UDP, fetch its page, tell the story (the default).
    Run(RunArgs),
    /// Keep the guest up with its services on ports of 127.0.0.1, until Ctrl-C.
    Serve(ServeArgs),
    /// Count what a packet costs, and compare with the limits.
    Bench(BenchArgs),
    /// Record one packet in and one out, through the guest, KVM, QEMU and the wire.
    Trace(TraceArgs),
    /// Measure the ways to kick beside each other, with and without ioeventfd and EVENT_IDX.
    Compare(CompareArgs),
    /// Do everything that a network and a host do, in turn and for long, and give a verdict.
    Soak(SoakArgs),
    /// Break the driver on purpose: predict, see what comes of it, put it right.
    Lab(LabArgs),
    /// Write a static site of all that this machine records: traces, comparisons, the laboratory.
    Gallery(GalleryArgs),
    /// Make images that boot by BIOS, by UEFI and by loaders of Linux (bzImage).
    Image(ImageArgs),
    /// Say what this machine has and lacks, and what each would give.
    Doctor(DoctorArgs),
}

/// The machine and what the guest is told.
#[derive(Args, Debug)]
pub struct MachineArgs {
    /// What executes the guest: auto takes KVM only where the CPU offers vmx or svm. For `run` and
    /// `trace`, nested boots Debian's kernel (downloaded once) on an emulated CPU with SVM, and
    /// runs the command there, on a real KVM.
    #[arg(long, value_name = "auto|kvm|tcg|nested", default_value = "auto")]
    accel: AccelChoice,
    /// The machine type.
    #[arg(long, value_enum, default_value_t = KindArg::Pc)]
    machine: KindArg,
    /// How the driver reaches the device: auto is legacy port I/O where the device offers it.
    #[arg(long, value_name = "auto|legacy|modern|mmio", default_value = "auto",
          value_parser = word::<Transport>)]
    transport: Transport,
    /// On microvm: version 1 of virtio-mmio, the legacy one, instead of version 2.
    #[arg(long)]
    mmio_legacy: bool,
    /// On pc and q35: give the modern interface a port for its kicks, too.
    #[arg(long)]
    pio_notify: bool,
    /// Who handles a kick: QEMU's main loop, by an eventfd (on, QEMU's default), or the thread
    /// of the virtual CPU that made it (off).
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    ioeventfd: Option<bool>,
    /// The form of the queues; packed rings need VERSION_1 (--transport modern, or microvm).
    #[arg(long, value_enum, default_value_t = LayoutArg::Split)]
    layout: LayoutArg,
    /// Descriptors of a receive or transmit queue at most, where the driver has the choice: not
    /// with the legacy interface of virtio-pci.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1 << 15))]
    queue_size: Option<u16>,
    /// Descriptors of the device's receive queue: 256 (QEMU's default), 512 or 1024. (Its
    /// transmit queue has 256; QEMU gives more to vhost-user only.)
    #[arg(long, value_name = "COUNT", value_parser = rx_queue_size)]
    rx_queue_size: Option<u16>,
    /// Have the device offer receive-side scaling and hash reports; they need --net tap, and
    /// VERSION_1 (--transport modern, or microvm).
    #[arg(long)]
    rss: bool,
    /// Put the guest and the far end into this VLAN (802.1Q), 1 to 4094.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(1..=4094))]
    vlan: Option<u16>,
    /// The MTU that the device tells the guest, in bytes of an IP packet: 68 to 65535.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(68..))]
    mtu: Option<u16>,
    /// Send the guest's log there by UDP, its last words too, such as 10.0.2.2:6666.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = netconsole)]
    netconsole: Option<SocketAddrV4>,
    /// How datagrams reach the guest's UDP services: sockets, or in-place, without a network stack.
    #[arg(long, value_name = "sockets|in-place", default_value = "sockets",
          value_parser = word::<UdpWay>)]
    udp: UdpWay,
    /// The rung of the interrupt ladder: auto is the first that works, from the top.
    #[arg(long, value_name = "auto|msix|msix-shared|intx|poll", default_value = "auto",
          value_parser = word::<Irq>)]
    irq: Irq,
    /// Memory of the machine, such as 64M or 8G.
    #[arg(long, value_name = "SIZE", default_value_t = Memory::default())]
    memory: Memory,
    /// Virtual CPUs; with --net tap a pair of queues for each.
    #[arg(long, value_name = "COUNT", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=64))]
    smp: u8,
    /// The guest's IPv4 address: dhcp, or an address with its prefix length.
    #[arg(long, value_name = "dhcp|ADDR/PREFIX", default_value = "10.0.2.15/24",
          value_parser = ipv4)]
    ip: Ipv4,
    /// Features that the driver must not accept, such as -event_idx,-mrg_rxbuf.
    #[arg(long, value_name = "-NAME,...", allow_hyphen_values = true)]
    features: Option<String>,
    /// How much the guest prints: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = word::<LogLevel>)]
    log: LogLevel,
    /// Record every frame in this file, which Wireshark opens.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// The QEMU program; the one on the path if not given.
    #[arg(long, value_name = "PATH", env = QEMU_VARIABLE)]
    qemu: Option<PathBuf>,
    /// Boot this ELF file (by PVH) or bzImage instead of building the guest.
    #[arg(
        long,
        value_name = "FILE",
        env = "KICKPATH_KERNEL",
        conflicts_with = "image"
    )]
    kernel: Option<PathBuf>,
    /// Boot this disk image (BIOS or UEFI, whichever it is) instead of the ELF file.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Install nothing; say what is missing instead.
    #[arg(long)]
    no_install: bool,
    /// Print the VMM's command line, ready to paste, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// What runs the machine.
#[derive(Args, Debug)]
pub struct VmmArgs {
    /// What runs the guest: QEMU, or another VMM, which needs KVM, and root for a tap.
    #[arg(
        long,
        value_name = "qemu|firecracker|cloud-hypervisor|kvmtool|alioth|crosvm",
        default_value = "qemu"
    )]
    vmm: Vmm,
    /// Its program; the one on the path if not given.
    #[arg(long, value_name = "PATH")]
    vmm_path: Option<PathBuf>,
}

impl VmmArgs {
    /// The settings of this machine on this VMM.
    pub fn settings(&self, machine: &MachineArgs) -> Settings {
        Settings {
            vmm: self.vmm,
            vmm_path: self.vmm_path.clone(),
            ..machine.settings()
        }
    }

    /// The far end that was asked for, or the one that suits the VMM.
    fn net(&self, asked: Option<NetChoice>) -> NetChoice {
        asked.unwrap_or(match self.vmm {
            Vmm::Qemu => NetChoice::Dgram,
            _ => NetChoice::Tap,
        })
    }
}

/// Options of `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub vmm: VmmArgs,
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The far end of the cable: a host of our own (dgram, the default with QEMU), QEMU's user
    /// network, or Linux (tap, the default with other VMMs; root).
    #[arg(long, value_name = "dgram|user|tap")]
    net: Option<NetChoice>,
    /// Print one JSON object instead of the story.
    #[arg(long)]
    pub json: bool,
}

impl RunArgs {
    /// The far end.
    pub fn net(&self) -> NetChoice {
        self.vmm.net(self.net)
    }
}

/// Options of `serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    pub vmm: VmmArgs,
    #[command(flatten)]
    pub machine: MachineArgs,
    /// TCP port of 127.0.0.1 for the status page; the next free one if it is taken.
    #[arg(long, value_name = "PORT", default_value_t = 8080,
          value_parser = clap::value_parser!(u16).range(1..))]
    http_port: u16,
    /// Port of 127.0.0.1 for the UDP and TCP echo; the next free one if it is taken.
    #[arg(long, value_name = "PORT", default_value_t = 7007,
          value_parser = clap::value_parser!(u16).range(1..))]
    echo_port: u16,
}

/// Options of `compare`.
#[derive(Args, Debug)]
pub struct CompareArgs {
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Compare VMMs instead, at a tap (KVM and root): all that are on the path, or those that are
    /// named, such as qemu,firecracker; which thread of each takes a kick, and what an echo costs.
    #[arg(long, value_name = "all|NAME,...", conflicts_with_all = ["html", "dry_run", "echoes"])]
    pub vmm: Option<Vmms>,
    /// UDP echoes a row, for kicks and interrupts in traffic.
    #[arg(long, value_name = "COUNT", default_value_t = 2_000,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub echoes: u64,
    /// Write a page with a bar chart into this file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// The language of what explains; names, errors and this help are in English.
    #[arg(long, value_enum, default_value_t)]
    pub lang: Lang,
    /// Print one JSON object instead of the table.
    #[arg(long)]
    pub json: bool,
}

/// VMMs to compare.
#[derive(Clone, Debug)]
pub struct Vmms(pub Vec<Vmm>);

impl FromStr for Vmms {
    type Err = String;
    fn from_str(words: &str) -> Result<Self, String> {
        let named = || words.split(',').map(str::parse).collect();
        let vmms = if words == "all" {
            Ok(Vmm::ALL.to_vec())
        } else {
            named()
        };
        vmms.map(Self)
    }
}

/// Options of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(flatten)]
    pub vmm: VmmArgs,
    #[command(flatten)]
    pub machine: MachineArgs,
    /// UDP echo requests; where KVM runs the guest, the hundredth part.
    #[arg(long, value_name = "COUNT", default_value_t = 100_000,
          value_parser = clap::value_parser!(u64).range(1..))]
    echoes: u64,
    /// What ours is measured beside: linux is Debian's kernel (downloaded once) at a tap (root), the
    /// same clients, counts and pairs of transfers in time; pc and q35, one CPU.
    #[arg(long, value_enum, default_value_t = GuestArg::Kickpath)]
    pub guest: GuestArg,
    /// With --guest linux: how often each cost is measured, and how many pairs of transfers are timed.
    #[arg(long, value_name = "COUNT", default_value_t = 9,
          value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Name the functions and layers in which the instructions of each measurement were executed.
    #[arg(long)]
    profile: bool,
    /// Measure virtio-drivers' driver in this ELF file, built with the feature `peer`, instead of building it.
    #[arg(long, value_name = "FILE")]
    peer_kernel: Option<PathBuf>,
    /// Write the counts of this build into this file.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Compare with the counts in this file, which --save wrote; fail where an exact one is higher.
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// By how much it may be higher, in per cent.
    #[arg(long, value_name = "PER-CENT", default_value_t = 3.0, value_parser = per_cent)]
    pub tolerance: f64,
    /// Print one JSON object instead of the tables.
    #[arg(long)]
    pub json: bool,
}

/// Options of a run, of which `trace --diff` makes none. (The environment may set `--qemu` and
/// `--kernel`.)
const NOT_WITH_DIFF: [&str; 29] = [
    "vmm",
    "vmm_path",
    "guest",
    "perfetto",
    "recording",
    "accel",
    "machine",
    "transport",
    "mmio_legacy",
    "pio_notify",
    "ioeventfd",
    "layout",
    "queue_size",
    "rx_queue_size",
    "rss",
    "vlan",
    "mtu",
    "netconsole",
    "udp",
    "irq",
    "memory",
    "smp",
    "ip",
    "features",
    "log",
    "pcap",
    "image",
    "dry_run",
    "net",
];

/// Options of `trace`.
#[derive(Args, Debug)]
pub struct TraceArgs {
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub vmm: VmmArgs,
    /// Whose packet: that of our guest, or of Debian's Linux (downloaded once), whose own
    /// virtio_net is recorded with ftrace; pc and q35, one CPU.
    #[arg(long, value_enum, default_value_t = GuestArg::Kickpath)]
    pub guest: GuestArg,
    /// The far end of the cable: a host of our own (dgram, QEMU's default), or Linux behind a tap
    /// device, whose frames a packet socket records (root); with --smp it has a pair of queues for
    /// each CPU of QEMU's.
    #[arg(long, value_name = "dgram|tap")]
    net: Option<NetChoice>,
    /// Trace nothing, but compare two traces that --json wrote: step beside step, with the numbers of
    /// each layer, as text, with --html as a page, with --json for a program.
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], conflicts_with_all = NOT_WITH_DIFF)]
    pub diff: Option<Vec<PathBuf>>,
    /// Stop the guest before its kick, and say what gdb shows there: the instruction, the registers,
    /// the ring. On a terminal gdb is started; else it carries the commands out and ends (--json
    /// writes what it said). TCG unless --accel kvm is given.
    #[arg(long, conflicts_with_all = ["diff", "html", "perfetto", "recording"])]
    pub gdb: bool,
    /// Write the timeline as JSON into this file; - is the standard output, without the text.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a page for a browser into this file: it needs nothing else, and no network.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write a trace for https://ui.perfetto.dev or chrome://tracing into this file.
    #[arg(long, value_name = "FILE")]
    pub perfetto: Option<PathBuf>,
    /// The language of what explains; names, errors and this help are in English.
    #[arg(long, value_enum, default_value_t)]
    pub lang: Lang,
    /// Write all that was recorded, as it was recorded, into this file: what tests are made of.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub recording: Option<PathBuf>,
}

impl TraceArgs {
    /// The far end.
    pub fn net(&self) -> NetChoice {
        self.vmm.net(self.net)
    }
}

/// Options of `soak`.
#[derive(Args, Debug)]
pub struct SoakArgs {
    #[command(flatten)]
    pub machine: MachineArgs,
    /// How long.
    #[arg(long, value_name = "COUNT", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=60 * 24 * 7))]
    pub minutes: u32,
    /// Print one JSON object instead of the text.
    #[arg(long)]
    pub json: bool,
    /// Write a page with plots into this file: it needs nothing else, and no network.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// The language of what explains; names, errors and this help are in English.
    #[arg(long, value_enum, default_value_t)]
    pub lang: Lang,
}

/// Options of `gallery`.
#[derive(Args, Debug)]
pub struct GalleryArgs {
    /// Where: a new directory, or one that holds an earlier gallery. It appears when all is made,
    /// which takes some minutes.
    pub directory: PathBuf,
    /// Only these parts: ways to kick by their names (such as legacy-port,packed), compare, lab, ring.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub only: Vec<String>,
    /// The QEMU program; the one on the path if not given.
    #[arg(long, value_name = "PATH", env = QEMU_VARIABLE)]
    qemu: Option<PathBuf>,
    /// Install and download nothing; what would need it is said to be missing.
    #[arg(long)]
    no_install: bool,
    /// Print one JSON object instead of the list of what was made.
    #[arg(long)]
    pub json: bool,
}

impl GalleryArgs {
    /// Those of a command line without options, but for ours.
    pub fn settings(&self) -> Settings {
        Settings {
            qemu: self.qemu.clone(),
            policy: policy(self.no_install),
            ..Cli::parse_from(["kickpath"]).run.machine.settings()
        }
    }
}

/// Options of `image`.
#[derive(Args, Debug)]
pub struct ImageArgs {
    /// Where to put the image that a BIOS boots.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["uefi", "bzimage"])]
    pub bios: Option<PathBuf>,
    /// Where to put the image that UEFI firmware boots.
    #[arg(long, value_name = "FILE")]
    pub uefi: Option<PathBuf>,
    /// Where to put the bzImage, for VMMs that load Linux.
    #[arg(long, value_name = "FILE")]
    pub bzimage: Option<PathBuf>,
    /// Use this ELF file instead of building the guest.
    #[arg(long, value_name = "FILE", env = "KICKPATH_KERNEL")]
    pub kernel: Option<PathBuf>,
    /// Install nothing; say what is missing instead.
    #[arg(long)]
    no_install: bool,
}

/// Options of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// The QEMU program to look at; the one on the path if not given.
    #[arg(long, value_name = "PATH", env = QEMU_VARIABLE)]
    pub qemu: Option<PathBuf>,
    /// Print one JSON object instead of the list.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindArg {
    Pc,
    Q35,
    Microvm,
}

/// Whose packet is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GuestArg {
    Kickpath,
    Linux,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutArg {
    Split,
    Packed,
}

/// An IPv4 configuration that a command line can hold.
#[derive(Clone, Copy, Debug)]
struct Ipv4(Ipv4Config);

fn ipv4(text: &str) -> Result<Ipv4, String> {
    parse_ipv4(text).map(Ipv4).ok_or_else(|| {
        "expected dhcp or a host's address with its prefix, such as 10.0.2.15/24".into()
    })
}

fn per_cent(text: &str) -> Result<f64, String> {
    let number = text.parse().ok();
    let number = number.filter(|number| (0.0..=1000.0).contains(number));
    number.ok_or_else(|| "expected a number from 0 to 1000".into())
}

/// An enumeration of the guest's configuration, by its own words.
trait Words: Copy + 'static {
    const ALL: &'static [Self];
    fn word(self) -> &'static str;
}

macro_rules! words {
    ($($name:ident)+) => {
        $(impl Words for config::$name {
            const ALL: &'static [Self] = config::$name::ALL;
            fn word(self) -> &'static str {
                config::$name::word(self)
            }
        })+
    };
}

words!(Transport Irq LogLevel UdpWay);

fn word<T: Words>(text: &str) -> Result<T, String> {
    let found = T::ALL.iter().find(|value| value.word() == text);
    found.copied().ok_or_else(|| {
        let all: Vec<_> = T::ALL.iter().map(|value| value.word()).collect();
        format!("expected one of: {}", all.join(", "))
    })
}

fn rx_queue_size(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(size @ (256 | 512 | 1024)) => Ok(size),
        _ => Err("expected 256, 512 or 1024".into()),
    }
}

fn netconsole(text: &str) -> Result<SocketAddrV4, String> {
    let address = text.parse().ok();
    // As the guest takes it: one host, and a port.
    let is_host = |address: &SocketAddrV4| {
        let ip = address.ip();
        let is_one = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast();
        is_one && address.port() != 0
    };
    address
        .filter(is_host)
        .ok_or_else(|| "expected a host's address and a port, such as 10.0.2.2:6666".into())
}

fn on_off(word: &str) -> Result<bool, String> {
    match word {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".into()),
    }
}

fn policy(no_install: bool) -> Policy {
    if no_install {
        Policy::Forbid
    } else {
        Policy::Install
    }
}

impl MachineArgs {
    /// As the library takes them.
    pub fn settings(&self) -> Settings {
        Settings {
            vmm: Vmm::Qemu,
            vmm_path: None,
            accel: self.accel,
            kind: match self.machine {
                KindArg::Pc => Kind::Pc,
                KindArg::Q35 => Kind::Q35,
                KindArg::Microvm => Kind::Microvm,
            },
            transport: self.transport,
            mmio_legacy: self.mmio_legacy,
            pio_notify: self.pio_notify,
            ioeventfd: self.ioeventfd,
            layout: match self.layout {
                LayoutArg::Split => Layout::Split,
                LayoutArg::Packed => Layout::Packed,
            },
            queue_size: self.queue_size,
            rx_queue_size: self.rx_queue_size,
            rss: self.rss,
            vlan: self.vlan,
            mtu: self.mtu,
            netconsole: self.netconsole,
            udp: self.udp,
            irq: self.irq,
            memory: self.memory,
            cpus: self.smp,
            qemu: self.qemu.clone(),
            ipv4: self.ip.0,
            pcap: self.pcap.as_deref().map(Capture::at),
            log: self.log,
            features: self.features.clone(),
            kernel: self.kernel.clone(),
            image: self.image.clone(),
            policy: policy(self.no_install),
        }
    }
}

impl ServeArgs {
    pub fn options(&self) -> ServeOptions {
        ServeOptions {
            http: self.http_port,
            echo: self.echo_port,
        }
    }
}

impl BenchArgs {
    pub fn options(&self) -> BenchOptions {
        BenchOptions {
            profile: self.profile,
            peer_kernel: self.peer_kernel.clone(),
            echoes: self.echoes,
            ..BenchOptions::default()
        }
    }

    /// The options of `--guest linux`.
    ///
    /// # Errors
    /// One that is for our guest alone.
    pub fn linux_options(&self) -> Result<linux::Options, Mismatch> {
        let named = [
            ("--save", self.save.is_some()),
            ("--baseline", self.baseline.is_some()),
            ("--profile", self.profile),
            ("--peer-kernel", self.peer_kernel.is_some()),
            ("--dry-run", self.machine.dry_run),
            ("--vmm", self.vmm.vmm != Vmm::Qemu),
        ];
        if let Some((option, _)) = named.into_iter().find(|(_, is_given)| *is_given) {
            let why = "it is for our guest alone, not for one beside Linux (--guest linux)";
            return Err(Mismatch::Decided { option, why });
        }
        Ok(linux::Options {
            // Each is sent three times a round, with 1 and with 32 outstanding.
            echoes: (self.echoes / 200).max(100),
            rounds: self.rounds.into(),
            ..linux::Options::default()
        })
    }
}

impl ImageArgs {
    pub fn policy(&self) -> Policy {
        policy(self.no_install)
    }
}

#[cfg(test)]
mod tests;
