//! What runs a [`Machine`]: QEMU, whose command line is in [`crate::qemu`], or another VMM. For
//! those a back end each says what the program takes. They need KVM and a tap device, and have
//! no monitor: their console is their standard output, and their end is the machine's.

mod alioth;
mod cloud_hypervisor;
mod crosvm;
mod firecracker;
mod kvmtool;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command;
use crate::install::Host;
use crate::qemu::{Boot, Machine, Net, Vmm, shell_line};

/// What a VMM is started with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invocation {
    /// Its arguments, program name left out.
    pub arguments: Vec<OsString>,
    /// A file that they name, and its text.
    pub file: Option<(PathBuf, String)>,
}

/// What starts this machine. A file that it needs lies in `directory`; it is not written here.
pub fn invocation(machine: &Machine, directory: &Path) -> Invocation {
    match machine.vmm {
        Vmm::Qemu => Invocation {
            arguments: machine.arguments(),
            file: None,
        },
        Vmm::Firecracker => firecracker::invocation(machine, directory),
        Vmm::CloudHypervisor => cloud_hypervisor::invocation(machine),
        Vmm::Kvmtool => kvmtool::invocation(machine),
        Vmm::Alioth => alioth::invocation(machine),
        Vmm::Crosvm => crosvm::invocation(machine),
    }
}

/// What a person pastes into a shell to start this machine (see [`Machine::to_paste`]).
pub fn command_line(machine: &Machine) -> String {
    let machine = machine.to_paste();
    let invocation = invocation(&machine, Path::new(""));
    let command = shell_line(&machine.program, &invocation.arguments);
    match invocation.file {
        Some((file, text)) => format!("cat >{} <<'END'\n{text}\nEND\n{command}", file.display()),
        None => command,
    }
}

impl Vmm {
    /// The names of its program.
    pub const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Qemu => &["qemu-system-x86_64"],
            Self::Firecracker => &["firecracker"],
            Self::CloudHypervisor => &["cloud-hypervisor"],
            Self::Kvmtool => &["lkvm", "kvmtool"],
            Self::Alioth => &["alioth"],
            Self::Crosvm => &["crosvm"],
        }
    }

    /// The transports that it has, the first by default.
    pub const fn transports(self) -> &'static str {
        match self {
            Self::Qemu => "legacy and modern virtio-pci, virtio-mmio 1 and 2",
            Self::Firecracker => "virtio-mmio 2, or modern virtio-pci",
            Self::CloudHypervisor | Self::Alioth | Self::Crosvm => "modern virtio-pci",
            Self::Kvmtool => "modern or legacy virtio-pci",
        }
    }

    /// What its device does not offer, of what the driver has, or its machine lacks
    /// (`docs/recorded`).
    pub const fn lacks(self) -> &'static str {
        match self {
            Self::Qemu => "lacks nothing",
            Self::Firecracker => "no CTRL_VQ, INDIRECT_DESC, RING_PACKED, STATUS",
            Self::CloudHypervisor => "no INDIRECT_DESC, MRG_RXBUF, RING_PACKED",
            Self::Kvmtool => "no ACPI, GUEST_CSUM, RING_PACKED, STATUS",
            Self::Alioth => "no INDIRECT_DESC, MRG_RXBUF, STATUS",
            Self::Crosvm => "no INDIRECT_DESC, MRG_RXBUF, RING_PACKED, STATUS",
        }
    }

    /// Whether it loads what Linux's boot protocol describes (a bzImage), and no ELF file.
    pub const fn wants_bzimage(self) -> bool {
        matches!(self, Self::Kvmtool | Self::Crosvm)
    }

    /// Its program on the search path.
    pub fn find(self, host: &Host) -> Option<PathBuf> {
        let mut names = self.programs().iter();
        names.find_map(|name| host.find_program(name))
    }

    /// The version that a program of it tells.
    pub fn version(self, program: &Path) -> Option<String> {
        let argument = match self {
            Self::Kvmtool | Self::Crosvm => "version",
            Self::Qemu | Self::Firecracker | Self::CloudHypervisor | Self::Alioth => "--version",
        };
        version(program, argument)
    }
}

/// The version that a program tells when it is given this argument.
pub fn version(program: &Path, argument: &str) -> Option<String> {
    let mut command = Command::new(program);
    let said = command::output(command.arg(argument), Duration::from_secs(30)).ok()?;
    let mut words = said.split_whitespace();
    words.find(|word| is_version(word)).map(str::to_owned)
}

/// Whether a word such as `v1.17.0` is a version.
fn is_version(word: &str) -> bool {
    let word = word.strip_prefix('v').unwrap_or(word);
    word.contains('.') && word.starts_with(|first: char| first.is_ascii_digit())
}

/// The file that is started.
fn kernel(machine: &Machine) -> &Path {
    match &machine.boot {
        Boot::Kernel(kernel) => kernel,
        Boot::Disk(image) => &image.file,
        Boot::Linux(linux) => &linux.kernel,
    }
}

/// The tap device and the guest's hardware address, if the machine has a network.
fn tap(machine: &Machine) -> Option<(&str, String)> {
    let nic = machine.nic.as_ref()?;
    match &nic.net {
        Net::TapName { name, .. } => Some((name, nic.mac_text())),
        Net::Dgram { .. } | Net::User { .. } | Net::TapFds(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use kickpath_abi::config::{Ipv4Config, Transport};

    use super::*;
    use crate::qemu::{Accel, Kind, Nic};

    fn machine(vmm: Vmm) -> Machine {
        let accel = Accel::Kvm { emulated: false };
        let boot = Boot::Kernel("kernel".into());
        let mut machine = Machine::new(vmm.programs()[0], Kind::Pc, accel, boot);
        machine.vmm = vmm;
        machine.cpus = 2;
        machine.config.ipv4 = Ipv4Config::Static(Ipv4Config::FALLBACK);
        machine.nic = Some(Nic::new(Net::TapName {
            name: "tap0".into(),
            queues: 1,
            namespace: None,
        }));
        machine
    }

    #[test]
    fn firecracker_takes_a_file() {
        let mut machine = machine(Vmm::Firecracker);
        let line = command_line(&machine);
        let (file, command) = line.split_once("\nEND\n").unwrap();
        assert_eq!(
            command,
            "firecracker \\\n  --no-api \\\n  --config-file kickpath.json"
        );
        let json = file.strip_prefix("cat >kickpath.json <<'END'\n").unwrap();
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        let expected = serde_json::json!({
            "boot-source": { "kernel_image_path": "kernel", "boot_args": "ip=10.0.2.15/24" },
            "drives": [],
            "machine-config": { "vcpu_count": 2, "mem_size_mib": 128 },
            "network-interfaces": [{
                "iface_id": "net0",
                "guest_mac": "52:54:00:4b:50:01",
                "host_dev_name": "tap0",
            }],
        });
        assert_eq!(json, expected);
        machine.config.transport = Transport::Modern;
        assert!(command_line(&machine).ends_with(" \\\n  --enable-pci"));
    }

    #[test]
    fn cloud_hypervisor_takes_arguments() {
        assert_eq!(
            command_line(&machine(Vmm::CloudHypervisor)),
            r"cloud-hypervisor \
  --serial tty \
  --console off \
  --cpus boot=2 \
  --memory size=128M \
  --kernel kernel \
  --cmdline ip=10.0.2.15/24 \
  --net tap=tap0,mac=52:54:00:4b:50:01"
        );
    }

    #[test]
    fn alioth_takes_arguments() {
        assert_eq!(
            command_line(&machine(Vmm::Alioth)),
            r"alioth boot \
  --console log,path=/dev/stdout \
  --cpu count=2 \
  --memory size=128M \
  --pvh kernel \
  --cmdline ip=10.0.2.15/24 \
  --net tap,if=tap0,mac=52:54:00:4b:50:01,mtu=1500"
        );
    }

    #[test]
    fn crosvm_takes_arguments() {
        assert_eq!(
            command_line(&machine(Vmm::Crosvm)),
            r"crosvm run \
  --disable-sandbox \
  --serial type=stdout,hardware=serial,num=1 \
  --cpus 2 \
  --mem 128 \
  --params ip=10.0.2.15/24 \
  --net tap-name=tap0,mac=52:54:00:4b:50:01 kernel"
        );
    }

    #[test]
    fn kvmtool_takes_arguments() {
        let mut machine = machine(Vmm::Kvmtool);
        assert_eq!(
            command_line(&machine),
            r"lkvm run \
  --console serial \
  --cpus 2 \
  --mem 128 \
  --kernel kernel \
  --params ip=10.0.2.15/24 \
  --network mode=tap,tapif=tap0,guest_mac=52:54:00:4b:50:01"
        );
        machine.config.transport = Transport::Legacy;
        let legacy = " \\\n  --virtio-transport pci-legacy";
        assert!(command_line(&machine).ends_with(legacy));
    }

    #[test]
    fn a_version_is_told_from_other_words() {
        for word in ["v1.17.0", "54.0.0", "3.18.0", "v1.17.0-dev"] {
            assert!(is_version(word), "{word}");
        }
        for word in ["Firecracker", "version", "v", "7", ".5"] {
            assert!(!is_version(word), "{word}");
        }
    }
}
