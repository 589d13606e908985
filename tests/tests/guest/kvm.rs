//! The guest on KVM, real or software.

use std::time::Duration;

use anyhow::ensure;
use kickpath::qemu::Accel;
use kickpath::wire::FarEnd;
use kickpath_tests::{Spec, Suite, setup};

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
            Ok(())
        });
    });
}
