//! Reports of machines that are made up in a temporary directory.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use super::probe::{effective_capabilities, offers_virtualization};
use super::*;
use crate::install::tests::write_script;

struct Machine {
    directory: TempDir,
    host: Host,
}

impl Machine {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        fs::create_dir(directory.path().join("bin")).unwrap();
        let host = Host {
            search_path: vec![directory.path().join("bin")],
            prefix: directory.path().to_owned(),
            root: false,
            patience: Duration::ZERO,
        };
        Self { directory, host }
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn program(&self, name: &str, script: &str) {
        write_script(&self.directory.path().join("bin").join(name), script);
    }

    fn report(&self) -> Report {
        examine_host(&self.host, None, None)
    }

    fn finding(&self, name: &str) -> Finding {
        let report = self.report();
        let found = report.findings.iter().find(|finding| finding.name == name);
        found.unwrap().clone()
    }
}

#[test]
fn an_empty_machine_lacks_everything_and_says_how_to_get_it() {
    let machine = Machine::new();
    machine.program("apt-get", "exit 1");
    let report = machine.report();
    assert!(!report.ready);
    assert!(
        report
            .findings
            .iter()
            .all(|finding| finding.state == State::Missing)
    );
    assert_eq!(report.kvm, KvmState::Absent);
    let text = report.to_string();
    assert!(text.contains("sudo apt-get install --no-install-recommends qemu-system-x86"));
    assert!(text.contains("--no-install-recommends curl"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["ready"], false);
    assert_eq!(json["kvm"]["state"], "absent");
    assert_eq!(json["findings"][0]["name"], "QEMU");
}

#[test]
fn qemu_is_judged_by_its_version() {
    let machine = Machine::new();
    for (version, state) in [
        ("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", State::Good),
        ("10.0.2", State::Good),
        ("6.2.0", State::Limited),
        ("unknown", State::Missing),
    ] {
        let script = format!("echo 'QEMU emulator version {version}'");
        machine.program("qemu-system-x86_64", &script);
        assert_eq!(machine.finding("QEMU").state, state, "{version}");
    }
    machine.program("qemu-system-x86_64", "exit 1");
    assert_eq!(machine.finding("QEMU").state, State::Missing);
}

#[test]
fn other_vmms_are_named_with_their_versions() {
    let machine = Machine::new();
    let vmm = |report: &Report, word: &str| {
        let found = report.vmms.iter().find(|vmm| vmm.word == word);
        found.unwrap().clone()
    };
    let report = machine.report();
    assert_eq!(report.vmms.len(), 6);
    assert!(
        report
            .vmms
            .iter()
            .all(|vmm| vmm.program.is_none() && vmm.gives.is_empty())
    );
    assert!(
        report
            .to_string()
            .contains("--  Cloud Hypervisor not found "),
        "{report}"
    );
    machine.program("firecracker", "echo 'Firecracker v1.17.0'");
    machine.program("lkvm", "echo 'kvm tool 3.18.0'");
    machine.program("crosvm", "exit 1");
    machine.program("qemu-system-x86_64", "echo 'QEMU emulator version 7.2.22'");
    let report = machine.report();
    // QEMU translates; the others want a KVM and a tap, of which there are none.
    let qemu = vmm(&report, "qemu");
    assert_eq!(qemu.version.as_deref(), Some("7.2.22"));
    assert_eq!(qemu.gives, ["run", "serve", "bench", "trace", "compare"]);
    let text = report.to_string();
    for line in [
        "ok  QEMU             7.2.22         run serve bench trace compare",
        " ~  Firecracker      v1.17.0        nothing yet: it needs KVM, and root for a tap",
        " ~  kvmtool          3.18.0         nothing yet",
        " ~  crosvm           of no version  nothing yet",
        "--  Alioth           not found ",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    for line in text.lines().filter(|line| !line.contains("how:")) {
        assert!(line.len() <= crate::terminal::WIDTH, "{line}");
    }
    let given = vmms::vmms(&machine.host, None, &[]);
    let firecracker = given.iter().find(|vmm| vmm.word == "firecracker").unwrap();
    assert_eq!(firecracker.gives, qemu.gives);
    assert_eq!(firecracker.version.as_deref(), Some("v1.17.0"));
}

#[test]
fn a_qemu_that_was_named_is_found_as_run_finds_it() {
    let machine = Machine::new();
    machine.program("apt-get", "exit 1");
    machine.program("my-qemu", "echo 'QEMU emulator version 7.2.22'");
    let report = examine_host(&machine.host, Some(Path::new("my-qemu")), None);
    let finding = &report.findings[0];
    assert_eq!(finding.state, State::Good, "{report}");
    assert!(finding.detail.ends_with("/bin/my-qemu"), "{report}");

    let missing = Path::new("/no/qemu");
    let report = examine_host(&machine.host, Some(missing), None);
    let text = report.to_string();
    assert!(text.contains("--qemu /no/qemu: there is no such file"));
    assert!(text.contains("that it does not install"), "{text}");
}

#[test]
fn a_kvm_that_is_no_kvm_is_unusable() {
    let machine = Machine::new();
    // A plain file opens, but knows no KVM_GET_API_VERSION.
    machine.file("dev/kvm", "");
    let kvm = machine.report().kvm;
    assert!(matches!(kvm, KvmState::Unusable { .. }), "{kvm:?}");
    assert!(!kvm.opens() && !kvm.is_hardware());
}

#[test]
fn tap_needs_the_capability() {
    let machine = Machine::new();
    machine.file("dev/net/tun", "");
    machine.file("proc/self/status", "CapEff:\t0000000000000000\n");
    let finding = machine.finding("tap");
    assert_eq!(finding.state, State::Missing);
    assert_eq!(finding.remedy.as_deref(), Some("run as root"));
    machine.file("proc/self/status", "Name:\tx\nCapEff:\t0000000000001000\n");
    assert_eq!(machine.finding("tap").state, State::Good);
}

#[test]
fn tracefs_is_mounted_mountable_or_neither() {
    let machine = Machine::new();
    assert_eq!(machine.finding("tracefs").state, State::Missing);
    machine.file("proc/filesystems", "nodev\ttracefs\n\text4\n");
    machine.file("proc/self/status", "CapEff:\t000001ffffffffff\n");
    let finding = machine.finding("tracefs");
    assert_eq!(finding.state, State::Limited);
    assert!(finding.remedy.unwrap().starts_with("mount -t tracefs"));
    machine.file("sys/kernel/tracing/trace_clock", "");
    assert!(
        machine
            .finding("tracefs")
            .detail
            .contains("without KVM's events")
    );
    machine.file("sys/kernel/tracing/events/kvm/enable", "");
    assert_eq!(machine.finding("tracefs").state, State::Good);
}

#[test]
fn this_machine_can_be_examined() {
    let report = examine(None);
    assert!(!report.to_string().is_empty());
    assert_eq!((report.findings.len(), report.vmms.len()), (8, 6));
}

#[test]
fn cpu_flags_are_whole_words_of_the_flags_line() {
    assert!(offers_virtualization(
        "processor : 0\nflags\t\t: fpu vmx sse\n"
    ));
    assert!(offers_virtualization("flags\t\t: fpu svm\n"));
    for text in [
        "flags\t\t: fpu svm_lock vmxoff\n",
        "vmx flags\t: vnmi vmx\n",
        "model name : svm\nbugs : vmx\n",
        "flags\n",
        "",
    ] {
        assert!(!offers_virtualization(text), "{text}");
    }
}

#[test]
fn capabilities_are_parsed() {
    assert_eq!(
        effective_capabilities("CapPrm:\t1\nCapEff:\t0000000000003000\n"),
        Some(0x3000)
    );
    assert_eq!(effective_capabilities("CapEff:\tzz\n"), None);
    assert_eq!(effective_capabilities(""), None);
}

#[test]
fn qemu_versions_are_parsed() {
    let version = |text| QemuVersion::parse(text).map(|version| version.to_string());
    let full = "warning: x\nQEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright";
    assert_eq!(version(full).as_deref(), Some("7.2.22"));
    assert_eq!(
        version("QEMU emulator version 10.0.2-rc1").as_deref(),
        Some("10.0.2")
    );
    assert_eq!(version("QEMU emulator version 7"), None);
    assert_eq!(version("QEMU emulator version "), None);
    assert_eq!(version("qemu-img version 7.2.0"), None);
    assert!(QemuVersion::parse("QEMU emulator version 10.0.0") > Some(OLDEST_QEMU));
}
