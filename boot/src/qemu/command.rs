//! The command line of a [`Machine`].

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use kickpath_abi::config::FW_CFG_FILE;

use super::{
    Accel, Boot, DEBUG_EXIT_PORT, Firmware, Kind, Machine, Net, Nic, NicTransport, Protocol,
    loopback,
};

/// The words of a command line, with QEMU's rules for values.
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
    }
}

/// One `key=value,...` list.
struct Properties(OsString);

impl Properties {
    fn new(first: &str) -> Self {
        Self(first.into())
    }

    /// Adds `,key=value`. In a value QEMU reads two commas as one.
    fn set(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.push(",");
        self.0.push(key);
        self.0.push("=");
        let mut bytes = Vec::new();
        for &byte in value.as_ref().as_bytes() {
            bytes.push(byte);
            if byte == b',' {
                bytes.push(byte);
            }
        }
        self.0.push(OsString::from_vec(bytes));
        self
    }

    fn set_if<T: ToString>(self, key: &str, value: Option<T>) -> Self {
        match value {
            Some(value) => self.set(key, value.to_string()),
            None => self,
        }
    }

    fn switch(self, key: &str, value: Option<bool>) -> Self {
        self.set_if(key, value.map(|on| if on { "on" } else { "off" }))
    }
}

impl Machine {
    /// QEMU's arguments, program name left out.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut line = Arguments(Vec::new());
        line.flag("-nodefaults");
        line.flag("-no-user-config");
        line.option("-display", "none");
        // A reset that the guest did not ask for (a triple fault) must end
        // the run, not start it again.
        line.flag("-no-reboot");
        line.option("-machine", self.kind.word());
        line.option("-accel", self.accel.word());
        match (&self.cpu, self.accel) {
            (Some(cpu), _) => line.option("-cpu", cpu),
            (None, Accel::Kvm { emulated: false }) => line.option("-cpu", "host"),
            (None, Accel::Kvm { emulated: true }) => line.option("-cpu", "host,-arch-capabilities"),
            (None, Accel::Tcg) => {}
        }
        if let Some(shift) = self.icount {
            line.option("-icount", format!("shift={shift}"));
        }
        line.option("-m", format!("{}M", self.memory.as_mebibytes()));
        let cpus = match self.accel {
            Accel::Tcg => tcg_cpus(self.cpus),
            Accel::Kvm { .. } => self.cpus.to_string(),
        };
        line.option("-smp", cpus);
        line.option("-serial", "stdio");
        line.option(
            "-device",
            format!("isa-debug-exit,iobase={DEBUG_EXIT_PORT:#x},iosize=1"),
        );
        self.boot_arguments(&mut line);
        if let Some(nic) = &self.nic {
            nic.arguments(self.kind, &mut line);
        }
        if let Some(socket) = &self.qmp {
            // QEMU is the client: whoever listens is there first, so there is
            // neither a race nor a socket to poll for.
            let chardev = Properties::new("socket")
                .set("id", "qmp")
                .set("path", socket);
            line.option("-chardev", chardev.0);
            line.option("-qmp", "chardev:qmp");
        }
        if self.paused {
            line.flag("-S");
        }
        if let Some(trace) = &self.trace {
            for event in &trace.events {
                line.option("-trace", event);
            }
            // A file a thread: since 10.1 no line of the log names its thread.
            line.option("-D", trace.pattern());
            // Only then has an event its time.
            line.option("-msg", "timestamp=on");
        }
        line.0.extend(self.extra.iter().cloned());
        if self.trace.is_some() {
            // Of two `-d` QEMU takes the last.
            let asked = self.extra.iter().rposition(|word| word == "-d");
            let mut items = OsString::from("tid");
            if let Some(more) = asked.and_then(|place| self.extra.get(place + 1)) {
                items.push(",");
                items.push(more);
            }
            line.option("-d", items);
        }
        line.0
    }

    fn boot_arguments(&self, line: &mut Arguments) {
        let words = self.config.to_string();
        match &self.boot {
            Boot::Kernel(kernel) => {
                line.option("-kernel", kernel);
                if !words.is_empty() {
                    line.option("-append", words);
                }
            }
            Boot::Linux(linux) => {
                line.option("-kernel", &linux.kernel);
                line.option("-initrd", &linux.initramfs);
                line.option("-append", &linux.words);
            }
            Boot::Disk(image) => {
                if let Firmware::Uefi(code) = &image.firmware {
                    let flash = Properties::new("if=pflash")
                        .set("format", "raw")
                        .set("readonly", "on")
                        .set("file", code);
                    line.option("-drive", flash.0);
                }
                // The BIOS stages of the image write to VGA memory and wait
                // for ever on a machine that has none.
                line.option("-vga", "std");
                // `snapshot`: a run leaves the image as it was.
                let disk = Properties::new("if=ide")
                    .set("format", "raw")
                    .set("snapshot", "on")
                    .set("file", &image.file);
                line.option("-drive", disk.0);
                if !words.is_empty() {
                    let file = Properties::new(&format!("name={FW_CFG_FILE}"));
                    line.option("-fw_cfg", file.set("string", words).0);
                }
            }
        }
    }

    /// This machine as a person can start it: without the monitor, not waiting
    /// for it, and with sockets, devices and files that do not belong to a run
    /// of ours.
    pub fn to_paste(&self) -> Self {
        let mut machine = self.clone();
        machine.qmp = None;
        machine.paused = false;
        if let Some(trace) = &mut machine.trace {
            trace.directory = std::env::temp_dir();
        }
        if let Some(nic) = &mut machine.nic {
            let queues = nic.net.queue_pairs();
            match &mut nic.net {
                Net::Dgram { .. } => nic.net = Net::dgram_to_paste(),
                Net::TapFds(_) => {
                    nic.net = Net::TapName {
                        name: "tap0".to_owned(),
                        queues,
                        namespace: None,
                    };
                }
                Net::TapName { namespace, .. } => *namespace = None,
                Net::User { .. } => {}
            }
        }
        machine
    }

    /// Program and arguments, quoted for a POSIX shell, one option a line.
    pub fn command_line(&self) -> String {
        shell_line(&self.program, &self.arguments())
    }
}

/// The value of `-smp` for TCG. For a machine that cannot have a second CPU it leaves out what
/// orders the guest's accesses: barriers (QEMU before 8.1), and that of `lock`ed operations. But
/// the device, a thread of QEMU's, runs beside the one CPU, too, and a kick that it has just
/// asked for may be left out for ever. With `-icount` nothing helps.
pub fn tcg_cpus(cpus: u8) -> String {
    match cpus {
        1 => "1,maxcpus=2".to_owned(),
        _ => cpus.to_string(),
    }
}

/// Program and arguments, quoted for a POSIX shell, one option a line.
pub fn shell_line(program: &Path, arguments: &[OsString]) -> String {
    let mut text = quote(program.as_os_str());
    for argument in arguments {
        let is_option = argument.as_bytes().first() == Some(&b'-');
        text.push_str(if is_option { " \\\n  " } else { " " });
        text.push_str(&quote(argument));
    }
    text
}

impl Nic {
    fn arguments(&self, kind: Kind, line: &mut Arguments) {
        line.option("-netdev", self.net.backend());
        if let Some(file) = &self.dump {
            let dump = Properties::new("filter-dump,id=dump0,netdev=net0").set("file", file);
            line.option("-object", dump.0);
        }
        let mut device = match kind {
            Kind::Microvm => Properties::new("virtio-net-device"),
            Kind::Pc | Kind::Q35 => Properties::new("virtio-net-pci"),
        }
        .set("netdev", "net0")
        .set("mac", self.mac_text());
        let pairs = self.net.queue_pairs();
        let mut vectors = self.vectors;
        if pairs > 1 {
            device = device.set("mq", "on");
            // A vector for each queue, the control queue too, and one for
            // configuration changes.
            vectors = vectors.or(pairs.checked_mul(2).map(|queues| queues + 2));
        }
        match kind {
            Kind::Microvm => {
                let legacy = if self.mmio_legacy { "on" } else { "off" };
                line.option("-global", format!("virtio-mmio.force-legacy={legacy}"));
                if let Some(on) = self.ioeventfd {
                    let on = if on { "on" } else { "off" };
                    line.option("-global", format!("virtio-mmio.ioeventfd={on}"));
                }
            }
            Kind::Pc | Kind::Q35 => {
                // No boot ROM: nothing but the guest touches the device.
                device = device.set("romfile", "");
                device = match self.transport {
                    NicTransport::Transitional => device,
                    NicTransport::Legacy => device.set("disable-modern", "on"),
                    NicTransport::Modern => device.set("disable-legacy", "on"),
                }
                .set_if("vectors", vectors)
                .switch("modern-pio-notify", self.pio_notify.then_some(true))
                .switch("ioeventfd", self.ioeventfd);
            }
        }
        device = device
            .set_if("rx_queue_size", self.rx_queue_size)
            .set_if("tx_queue_size", self.tx_queue_size)
            .set_if("host_mtu", self.mtu)
            .switch("packed", self.packed.then_some(true))
            .switch("rss", self.rss.then_some(true))
            .switch("hash", self.rss.then_some(true));
        for (name, value) in &self.properties {
            device = device.set(name, value);
        }
        line.option("-device", device.0);
    }
}

impl Net {
    /// A datagram cable whose sockets anybody may make.
    pub fn dgram_to_paste() -> Self {
        let directory = std::env::temp_dir();
        Self::Dgram {
            qemu: directory.join("kickpath-qemu.sock"),
            host: directory.join("kickpath-host.sock"),
        }
    }

    fn backend(&self) -> OsString {
        match self {
            Self::Dgram { qemu, host } => {
                Properties::new("dgram,id=net0")
                    .set("local.type", "unix")
                    .set("local.path", qemu)
                    .set("remote.type", "unix")
                    .set("remote.path", host)
                    .0
            }
            Self::User {
                guest,
                gateway,
                forwards,
            } => {
                let mut user = Properties::new("user,id=net0")
                    .set("net", format!("{}/{}", guest.address, guest.prefix))
                    .set("host", gateway.to_string())
                    .set("dhcpstart", guest.address.to_string());
                for forward in forwards {
                    let protocol = match forward.protocol {
                        Protocol::Tcp => "tcp",
                        Protocol::Udp => "udp",
                    };
                    let rule = format!(
                        "{protocol}:{}-{}:{}",
                        loopback(forward.host_port),
                        guest.address,
                        forward.guest_port
                    );
                    user = user.set("hostfwd", rule);
                }
                user.0
            }
            Self::TapFds(queues) => {
                let fds: Vec<String> = queues.iter().map(ToString::to_string).collect();
                let key = if fds.len() > 1 { "fds" } else { "fd" };
                Properties::new("tap,id=net0").set(key, fds.join(":")).0
            }
            Self::TapName { name, queues, .. } => {
                Properties::new("tap,id=net0")
                    .set("ifname", name)
                    .set("script", "no")
                    .set("downscript", "no")
                    .set_if("queues", (*queues > 1).then_some(queues))
                    .0
            }
        }
    }
}

/// One word, quoted for a POSIX shell where it needs to be. Bytes that are not
/// UTF-8 are shown as the replacement character.
pub fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use kickpath_abi::config::{Config, Ipv4Config};

    use super::super::*;

    fn machine(kind: Kind, accel: Accel) -> Machine {
        Machine::new(
            "qemu-system-x86_64",
            kind,
            accel,
            Boot::Kernel("kernel".into()),
        )
    }

    fn dgram() -> Net {
        Net::Dgram {
            qemu: "/t/qemu.sock".into(),
            host: "/t/host.sock".into(),
        }
    }

    #[test]
    fn the_default_machine() {
        let mut machine = machine(Kind::Pc, Accel::Tcg);
        machine.nic = Some(Nic::new(dgram()));
        machine.config.ipv4 = Ipv4Config::Static(Ipv4Config::FALLBACK);
        machine.config.gateway = Some(Ipv4Addr::new(10, 0, 2, 2));
        machine.qmp = Some("/t/qmp.sock".into());
        assert_eq!(
            machine.command_line(),
            r"qemu-system-x86_64 \
  -nodefaults \
  -no-user-config \
  -display none \
  -no-reboot \
  -machine pc \
  -accel tcg \
  -m 128M \
  -smp 1,maxcpus=2 \
  -serial stdio \
  -device isa-debug-exit,iobase=0xf4,iosize=1 \
  -kernel kernel \
  -append 'ip=10.0.2.15/24 gateway=10.0.2.2' \
  -netdev dgram,id=net0,local.type=unix,local.path=/t/qemu.sock,remote.type=unix,remote.path=/t/host.sock \
  -device virtio-net-pci,netdev=net0,mac=52:54:00:4b:50:01,romfile= \
  -chardev socket,id=qmp,path=/t/qmp.sock \
  -qmp chardev:qmp"
        );
    }

    #[test]
    fn every_option_of_the_device() {
        let mut machine = machine(Kind::Q35, Accel::Kvm { emulated: true });
        let mut nic = Nic::new(Net::User {
            guest: Ipv4Config::FALLBACK,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            forwards: vec![
                Forward {
                    protocol: Protocol::Tcp,
                    host_port: 8080,
                    guest_port: 80,
                },
                Forward {
                    protocol: Protocol::Udp,
                    host_port: 7007,
                    guest_port: 7,
                },
            ],
        });
        nic.transport = NicTransport::Legacy;
        nic.vectors = Some(0);
        nic.ioeventfd = Some(false);
        nic.rx_queue_size = Some(1024);
        nic.tx_queue_size = Some(256);
        nic.mtu = Some(9000);
        nic.packed = true;
        nic.rss = true;
        nic.properties = vec![("mrg_rxbuf".into(), "off".into())];
        nic.dump = Some("a,b.pcap".into());
        machine.nic = Some(nic);
        machine.icount = Some(0);
        machine.memory = "8G".parse().unwrap();
        machine.paused = true;
        machine.trace = Some(Trace {
            events: vec!["virtio_*".into()],
            directory: "logs".into(),
        });
        machine.extra = vec!["-vga".into(), "std".into()];
        assert_eq!(
            machine.command_line(),
            r"qemu-system-x86_64 \
  -nodefaults \
  -no-user-config \
  -display none \
  -no-reboot \
  -machine q35 \
  -accel kvm \
  -cpu host,-arch-capabilities \
  -icount shift=0 \
  -m 8192M \
  -smp 1 \
  -serial stdio \
  -device isa-debug-exit,iobase=0xf4,iosize=1 \
  -kernel kernel \
  -netdev user,id=net0,net=10.0.2.15/24,host=10.0.2.2,dhcpstart=10.0.2.15,hostfwd=tcp:127.0.0.1:8080-10.0.2.15:80,hostfwd=udp:127.0.0.1:7007-10.0.2.15:7 \
  -object filter-dump,id=dump0,netdev=net0,file=a,,b.pcap \
  -device virtio-net-pci,netdev=net0,mac=52:54:00:4b:50:01,romfile=,disable-modern=on,vectors=0,ioeventfd=off,rx_queue_size=1024,tx_queue_size=256,host_mtu=9000,packed=on,rss=on,hash=on,mrg_rxbuf=off \
  -S \
  -trace 'virtio_*' \
  -D logs/qemu-thread-%d.log \
  -msg timestamp=on \
  -vga std \
  -d tid"
        );
    }

    #[test]
    fn a_modern_device_can_be_kicked_by_a_port() {
        let mut machine = machine(Kind::Q35, Accel::Tcg);
        let mut nic = Nic::new(dgram());
        nic.transport = NicTransport::Modern;
        nic.pio_notify = true;
        machine.nic = Some(nic);
        let line = machine.command_line();
        assert!(line.contains("romfile=,disable-legacy=on,modern-pio-notify=on"));
    }

    #[test]
    fn microvm_has_virtio_mmio_version_2() {
        let mut machine = machine(Kind::Microvm, Accel::Kvm { emulated: false });
        machine.nic = Some(Nic::new(Net::TapFds(vec![7])));
        let line = machine.command_line();
        assert!(line.contains("-global virtio-mmio.force-legacy=off"));
        assert!(line.contains("-device virtio-net-device,netdev=net0,"));
        assert!(line.contains("-netdev tap,id=net0,fd=7"));
        assert!(line.contains("-cpu host \\\n"));
        assert!(!line.contains("romfile"));
        let nic = machine.nic.as_mut().unwrap();
        nic.mmio_legacy = true;
        nic.ioeventfd = Some(false);
        let line = machine.command_line();
        assert!(line.contains("-global virtio-mmio.force-legacy=on"));
        assert!(line.contains("-global virtio-mmio.ioeventfd=off"));
        assert!(!line.contains(",ioeventfd=off"));
    }

    #[test]
    fn a_disk_image_is_configured_by_fw_cfg() {
        let mut machine = machine(Kind::Q35, Accel::Tcg);
        machine.boot = Boot::Disk(DiskImage {
            file: "my disk,1.img".into(),
            firmware: Firmware::Uefi("CODE.fd".into()),
        });
        machine.config = Config {
            features_off: "event_idx,mac".into(),
            ..Config::default()
        };
        let line = machine.command_line();
        assert!(line.contains("-drive if=pflash,format=raw,readonly=on,file=CODE.fd"));
        assert!(line.contains("-drive 'if=ide,format=raw,snapshot=on,file=my disk,,1.img'"));
        assert!(line.contains("-fw_cfg name=opt/kickpath/config,string=features=-event_idx,,-mac"));
        assert!(line.contains("-vga std"));
        assert!(!line.contains("-kernel"));
    }

    #[test]
    fn other_items_of_qemus_log_stay() {
        let mut machine = machine(Kind::Pc, Accel::Tcg);
        machine.extra = ["-d", "int", "-d", "guest_errors"].map(Into::into).into();
        assert!(machine.command_line().ends_with("-d guest_errors"));
        machine.trace = Some(Trace {
            events: Vec::new(),
            directory: "/t".into(),
        });
        assert!(machine.command_line().ends_with("-d tid,guest_errors"));
    }

    #[test]
    fn what_is_pasted_needs_nothing_of_a_run() {
        let mut machine = machine(Kind::Pc, Accel::Tcg);
        machine.qmp = Some("/t/qmp.sock".into());
        machine.paused = true;
        machine.trace = Some(Trace {
            events: vec!["virtio_*".into()],
            directory: "/t".into(),
        });
        machine.nic = Some(Nic::new(dgram()));
        assert!(!machine.to_paste().command_line().contains("-S"));
        assert!(!machine.to_paste().command_line().contains("/t/"));
        machine.nic = Some(Nic::new(Net::TapFds(vec![9])));
        let line = machine.to_paste().command_line();
        assert!(line.contains("tap,id=net0,ifname=tap0,script=no"), "{line}");
    }

    #[test]
    fn a_tap_with_several_queues_makes_a_device_with_several_pairs() {
        let mut machine = machine(Kind::Q35, Accel::Tcg);
        machine.cpus = 3;
        machine.nic = Some(Nic::new(Net::TapFds(vec![7, 8, 12])));
        let line = machine.command_line();
        assert!(line.contains("-smp 3"), "{line}");
        assert!(line.contains("-netdev tap,id=net0,fds=7:8:12"), "{line}");
        assert!(line.contains(",mq=on,romfile=,vectors=8"), "{line}");
        let line = machine.to_paste().command_line();
        assert!(line.contains("downscript=no,queues=3"), "{line}");
        if let Some(nic) = &mut machine.nic {
            nic.vectors = Some(2);
        }
        assert!(machine.command_line().contains("vectors=2"));
    }

    #[test]
    fn a_pasted_line_is_the_same_words() {
        let mut machine = machine(Kind::Pc, Accel::Tcg);
        machine.boot = Boot::Kernel("it's a \"kernel\" $HOME".into());
        machine.config.trace = true;
        let text = machine.command_line().replace("\\\n", " ");
        let mut words = shlex::split(&text).unwrap();
        assert_eq!(words.remove(0), "qemu-system-x86_64");
        let arguments: Vec<String> = machine
            .arguments()
            .into_iter()
            .map(|a| a.into_string().unwrap())
            .collect();
        assert_eq!(words, arguments);
    }
}
