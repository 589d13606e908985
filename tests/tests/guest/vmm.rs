//! The guest on other VMMs than QEMU, at a tap: those that are on the path, or that a
//! variable names. Others are skipped.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kickpath::guest::Guest;
use kickpath::install::IPROUTE2;
use kickpath::qemu::{Accel, Boot, Kind, Machine, Nic, Vmm};
use kickpath::session::fetch_status;
use kickpath::trace::Timeline;
use kickpath::trace::timeline::{Comparison, Layer};
use kickpath::wire::{FarEnd, HostSockets, Plan, Tap};
use kickpath_abi::config::{Ipv4Config, Transport};
use kickpath_abi::status::Status;
use kickpath_tests::program::{Running, run};
use kickpath_tests::setup::{self, kvm, lacks_tap};
use kickpath_tests::vmms::{self, Programs};
use kickpath_tests::{Skip, Suite, UP};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::bzimage;

/// The bound for what takes seconds at most; a software KVM takes some for the boot.
const BOUND: Duration = Duration::from_secs(60);

/// In which a guest goes to sleep.
const PAUSE: Duration = Duration::from_millis(200);

/// What the guest says of how it was loaded, and of its device.
type Expected = (&'static str, &'static str);

pub fn add(suite: &mut Suite) {
    suite.needs(lacks_tap().or_else(|| kvm().err()), |suite| {
        use Transport::{Auto, Legacy, Modern};
        let elf: fn() -> Result<PathBuf> = || Ok(setup::setup()?.kernel.clone());
        let bzimage: fn() -> Result<PathBuf> = bzimage::file;
        type Kernel = fn() -> Result<PathBuf>;
        let machines: [(&str, Vmm, u8, Transport, Kernel, Expected); 8] = [
            (
                "kvmtool",
                Vmm::Kvmtool,
                1,
                Auto,
                bzimage,
                ("bzImage", "modern"),
            ),
            (
                "kvmtool_legacy",
                Vmm::Kvmtool,
                2,
                Legacy,
                bzimage,
                ("bzImage", "legacy"),
            ),
            (
                "firecracker",
                Vmm::Firecracker,
                1,
                Auto,
                elf,
                ("PVH", "mmio"),
            ),
            (
                "firecracker_pci",
                Vmm::Firecracker,
                1,
                Modern,
                elf,
                ("PVH", "modern"),
            ),
            (
                "cloud_hypervisor",
                Vmm::CloudHypervisor,
                2,
                Auto,
                elf,
                ("PVH", "modern"),
            ),
            (
                "cloud_hypervisor_bzimage",
                Vmm::CloudHypervisor,
                2,
                Auto,
                bzimage,
                ("bzImage", "modern"),
            ),
            (
                "crosvm",
                Vmm::Crosvm,
                2,
                Auto,
                bzimage,
                ("bzImage", "modern"),
            ),
            ("alioth", Vmm::Alioth, 2, Auto, elf, ("PVH", "modern")),
        ];
        for (name, vmm, cpus, transport, kernel, expected) in machines {
            suite.test(&format!("vmm::{name}"), move || {
                let mut machine = machine(vmm, kernel)?;
                machine.cpus = cpus;
                machine.config.transport = transport;
                let status = serves(machine)?;
                ensure!(status.boot.protocol == expected.0, "{:?}", status.boot);
                ensure!(status.device.transport == expected.1, "{:?}", status.device);
                Ok(())
            });
        }
        suite.test("vmm::compare", compared);
        for vmm in Vmm::ALL.into_iter().filter(|vmm| *vmm != Vmm::Qemu) {
            let name = vmm.word().replace('-', "_");
            suite.test(&format!("vmm::run_on_{name}"), move || runs(vmm));
            suite.test(&format!("vmm::serve_on_{name}"), move || served(vmm));
            suite.test(&format!("vmm::trace_on_{name}"), move || traced(vmm));
        }
        for vmm in Vmm::ALL {
            let name = vmm.word().replace('-', "_");
            suite.test(&format!("vmm::bench_on_{name}"), move || benched(vmm));
        }
    });
}

fn machine(vmm: Vmm, kernel: impl Fn() -> Result<PathBuf>) -> Result<Machine> {
    let (program, kernel) = (vmms::find(vmm)?, Boot::Kernel(kernel()?));
    let accel = Accel::Kvm { emulated: true };
    let mut machine = Machine::new(program, Kind::Pc, accel, kernel);
    machine.vmm = vmm;
    Ok(machine)
}

/// kvmtool looks for vmx and svm, which a software KVM does without.
fn is_kvm_refused(text: &str) -> Result<()> {
    if text.contains("does not support hardware virtualization") {
        return Err(Skip("this kvmtool wants vmx or svm".into()).into());
    }
    Ok(())
}

/// The guest serves a Linux at the other end of its tap. Returns its report.
fn serves(mut machine: Machine) -> Result<Status> {
    setup::require(&[IPROUTE2])?;
    let plan = Plan::new(Ipv4Config::Static(Ipv4Config::FALLBACK))?;
    let mut tap = Tap::new(&plan, 1)?;
    tap.hand_over()?;
    plan.configure(&mut machine.config);
    machine.nic = Some(Nic::new(tap.net()));
    let guest = Guest::launch(&machine)?;
    if let Err(failure) = guest.wait_for_console(UP, BOUND) {
        is_kvm_refused(&failure.to_string())?;
        return Err(failure.into());
    }
    let (far, address) = (tap.sockets(), plan.guest.address.into());
    let check = || {
        let report = far.ping(address, 10, 56, BOUND)?;
        ensure!(report.lost() == 0, "10 pings: {report:?}");
        for size in [1, 64, 512, 1472] {
            far.udp_echo(address, size, BOUND)?;
        }
        far.tcp_echo(address, 64 << 10, BOUND)?;
        // As long as there is much to do it looks by itself; asleep it needs an interrupt.
        let begin = Instant::now();
        let status = loop {
            let status = fetch_status(&far, address, BOUND)?;
            if status.counters.interrupts > 0 {
                break status;
            }
            ensure!(
                begin.elapsed() < BOUND,
                "the device's interrupts do not come: {:?}",
                status.counters
            );
            thread::sleep(PAUSE);
        };
        let counters = &status.counters;
        ensure!(
            counters.rx_errors == 0 && counters.tx_errors == 0,
            "the guest has counted errors of the device: {counters:?}"
        );
        Ok(status)
    };
    let console = || {
        let lines = guest.console_since(0).into_iter();
        lines.map(|line| line.text + "\n").collect::<String>()
    };
    check().with_context(console)
}

/// The command runs the guest on it.
fn runs(vmm: Vmm) -> Result<()> {
    let program = vmms::find(vmm)?;
    let path = program.to_str().context("a path of UTF-8")?;
    let text = run(&["run", "--json", "--vmm", vmm.word(), "--vmm-path", path]);
    if let Err(error) = &text {
        is_kvm_refused(&format!("{error:#}"))?;
    }
    let report: Value = serde_json::from_str(&text?)?;
    ensure!(
        report["ok"] == true && report["vmm"] == vmm.to_string(),
        "{report}"
    );
    let version = report["vmm_version"].as_str().unwrap_or_default();
    ensure!(version.contains('.'), "{report}");
    Ok(())
}

/// The command traces a packet on it: the guest's records, KVM's, the VMM's calls and the wire
/// fit together.
fn traced(vmm: Vmm) -> Result<()> {
    let program = vmms::find(vmm)?;
    let path = program.to_str().context("a path of UTF-8")?;
    let words = [
        "trace",
        "--json",
        "-",
        "--vmm",
        vmm.word(),
        "--vmm-path",
        path,
    ];
    let text = run(&words);
    if let Err(error) = &text {
        is_kvm_refused(&format!("{error:#}"))?;
    }
    let timeline: Timeline = serde_json::from_str(&text?)?;
    ensure!(timeline.is_sound(), "{:?}", timeline.joins);
    ensure!(
        timeline.run.vmm_name() == vmm.to_string(),
        "{:?}",
        timeline.run
    );
    ensure!(timeline.joins.len() == 3, "{:?}", timeline.joins);
    let equal = timeline.frames.iter();
    let equal = equal
        .filter(|frame| frame.comparison == Comparison::Equal)
        .count();
    ensure!(equal == 2, "{:?}", timeline.frames);
    let place = |layers: &[Layer], events: &[&str]| {
        let own = timeline.steps.iter().filter(|step| !step.aside);
        let mut own = own.filter(|step| layers.contains(&step.layer));
        let found = own.find(|step| events.contains(&step.event.as_str()));
        found.with_context(|| format!("none of {events:?} in {:#?}", timeline.steps))
    };
    let of_vmm = [Layer::VmmVcpu, Layer::VmmOther];
    let taken = place(&of_vmm, &["read(tap)"])?;
    let woken = place(&[Layer::Guest], &["InterruptVector"])?;
    let rings = place(&[Layer::Guest], &["DoorbellRing"])?;
    let given = place(&of_vmm, &["write(tap)"])?;
    let received = place(&[Layer::Wire], &["frame received"])?;
    let order = [taken, woken, rings, given, received].map(|step| step.number);
    ensure!(order.is_sorted(), "{order:?}");
    ensure!(
        given.values.iter().any(|value| value.name == "thread"),
        "{given:?}"
    );
    Ok(())
}

/// The command counts what its device asks of the guest, and nothing that nobody counts.
fn benched(vmm: Vmm) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let counts = directory.path().join("counts.json");
    let counts = counts.to_str().context("a path of UTF-8")?;
    let mut words = vec!["bench", "--json", "--echoes", "3200", "--save", counts];
    let program;
    match vmm {
        Vmm::Qemu => words.extend(["--accel", "kvm"]),
        _ => {
            program = vmms::find(vmm)?;
            let path = program.to_str().context("a path of UTF-8")?;
            words.extend(["--vmm", vmm.word(), "--vmm-path", path]);
        }
    }
    let text = run(&words);
    if let Err(error) = &text {
        is_kvm_refused(&format!("{error:#}"))?;
    }
    let report: Value = serde_json::from_str(&text?)?;
    ensure!(
        report["ok"] == true && report["vmm"] == vmm.to_string(),
        "{report:#}"
    );
    let rows = report["rows"].as_array().context("rows")?;
    ensure!(rows.len() == 9, "{report:#}");
    let absent = report["absent"].to_string();
    ensure!(absent.contains("guest instructions"), "{absent}");
    for row in rows {
        let row = row.as_object().context("a row")?;
        ensure!(!row.contains_key("instructions"), "{row:?}");
        let is_boot = row["what"] == "boot";
        ensure!(
            is_boot || absent.contains("returns") || row["returns_to_vmm"].is_number(),
            "{row:?}"
        );
        // Who only receives has nothing to tell the device: it has buffers enough.
        let answers = row["what"].get("datagrams-in").is_none();
        ensure!(
            !answers || row["kicks"].as_f64() > Some(0.0) && row["frames_a_kick"].is_number(),
            "{row:?}"
        );
    }
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(counts)?)?;
    let kicks = &saved["varying"]["echo, sockets, 1 outstanding: kicks"];
    ensure!(
        kicks.as_f64() > Some(0.0) && saved["exact"] == serde_json::json!({}),
        "{saved:#}"
    );
    Ok(())
}

/// The command compares those that are here.
fn compared() -> Result<()> {
    let others = Vmm::ALL.into_iter().filter(|vmm| *vmm != Vmm::Qemu);
    // kvmtool wants vmx or svm.
    let mut others = others.filter(|vmm| *vmm != Vmm::Kvmtool);
    let found = others.find(|vmm| vmms::find(*vmm).is_ok());
    let vmm = found.ok_or_else(|| Skip("no VMM but QEMU is here".into()))?;
    let text = Programs::new()?.run(&["compare", "--json", "--vmm", vmm.word()])?;
    let report: Value = serde_json::from_str(&text)?;
    let rows = report["rows"].as_array().context("rows")?;
    ensure!(
        !rows.is_empty() && report["absent"] == serde_json::json!([]),
        "{report}"
    );
    for row in rows {
        ensure!(
            row["vmm"] == vmm.to_string() && row["taken"] == "eventfd",
            "{row}"
        );
        for name in ["heard_by", "sent_by"] {
            ensure!(row[name].is_string(), "{name} in {row}");
        }
        for name in ["kicks_per_echo", "accesses_per_echo"] {
            ensure!(row[name].as_f64() > Some(0.0), "{name} in {row}");
        }
    }
    Ok(())
}

/// The command keeps it up, and says where; it goes at Ctrl-C, and the namespace with it.
fn served(vmm: Vmm) -> Result<()> {
    let program = vmms::find(vmm)?;
    let path = program.to_str().context("a path of UTF-8")?;
    let mut serving = Running::start(&["serve", "--vmm", vmm.word(), "--vmm-path", path])?;
    let line = serving.line_with("Namespace")?;
    let namespace = line.split_whitespace().last().context("a namespace")?;
    let place = Path::new("/run/netns").join(namespace);
    let far = HostSockets::in_namespace(place.clone());
    fetch_status(&far, Ipv4Config::FALLBACK.address.into(), BOUND)?;
    serving.line_with("ip netns exec")?;
    kill(
        Pid::from_raw(serving.child.id().cast_signed()),
        Signal::SIGINT,
    )?;
    serving.line_with("nothing is left behind")?;
    let status = serving.child.wait()?;
    ensure!(status.success(), "{status}\n{}", serving.seen);
    ensure!(!place.exists(), "{} is left", place.display());
    Ok(())
}
