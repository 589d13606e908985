//! The guest on KVM, real or software.

use std::time::Duration;

use anyhow::ensure;
use kickpath::qemu::Accel;
use kickpath::wire::FarEnd;
use kickpath_abi::config::Irq;
use kickpath_tests::{Spec, Suite, setup};

use crate::faults::{expect_failure, expect_on_console};

pub fn add(suite: &mut Suite) {
    let kvm = setup::kvm();
    suite.needs(kvm.as_ref().err().cloned(), |suite| {
        // A software KVM executes 0.7 million instructions a second, firmware
        // included.
        let spec = Spec::pc()
            .accel(kvm.unwrap_or(Accel::Tcg))
            .bound(Duration::from_secs(300));
        let rung = suite.way().first_rung();
        suite.guest("kvm::the_guest_answers", spec, move |lab| {
            for size in [56, 1400] {
                let report = lab.peer.ping(lab.address(), 3, size, lab.left())?;
                ensure!(report.lost() == 0, "{report:?}");
            }
            for size in [1, 64, 512, 1472] {
                lab.peer.udp_echo(lab.address(), size, lab.left())?;
            }
            lab.peer.tcp_echo(lab.address(), 16 * 1024, lab.left())?;
            let status = lab.status()?;
            ensure!(status.boot.hypervisor == "KVMKVMKVM", "{:?}", status.boot);
            ensure!(
                status.interrupts.rung == rung.word(),
                "{:?}",
                status.interrupts
            );
            ensure!(status.counters.interrupts > 0, "{:?}", status.counters);
            // KVM always tells, by a leaf or by its clock.
            let told = ["hypervisor leaf", "CPU leaf", "KVM clock"];
            ensure!(
                told.contains(&status.boot.tsc_source.as_str()),
                "{:?}",
                status.boot
            );
            expect_on_console(lab, &["timer: local APIC, TSC deadline"])
        });
    });
}

/// What does not depend on the transport.
pub fn add_clock_and_line(suite: &mut Suite) {
    let kvm = setup::kvm();
    let accel = kvm.clone().unwrap_or(Accel::Tcg);
    let machine = move || Spec::pc().accel(accel).bound(Duration::from_secs(300));
    suite.needs(kvm.err(), |suite| {
        suite.guest(
            "kvm::interrupts_come_by_the_line",
            machine().config(|config| config.irq = Irq::Intx),
            move |lab| {
                let report = lab.peer.ping(lab.address(), 20, 56, lab.left())?;
                ensure!(report.lost() == 0, "{report:?}");
                let counters = lab.status()?.counters;
                ensure!(counters.interrupts > 0, "{counters:?}");
                Ok(())
            },
        );
        suite.needs(lacks_nonstop_tsc(), |suite| {
            let spec = machine().edit(|machine| {
                machine.nic = None;
                machine.cpu = Some("host,-arch-capabilities,+invtsc,migratable=off".into());
            });
            suite.launch("kvm::a_leaf_tells_how_fast_the_tsc_counts", spec, |lab| {
                let texts = ["kHz (hypervisor leaf)", "timer: local APIC, TSC deadline"];
                expect_failure(lab, &texts)
            });
        });
    });
}

/// Why QEMU cannot promise a guest that its time stamp counter never changes
/// its pace, if so.
fn lacks_nonstop_tsc() -> Option<String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = cpus.split_whitespace().any(|flag| flag == "nonstop_tsc");
    (!has).then(|| "this CPU's time stamp counter may change its pace (no nonstop_tsc)".into())
}
