//! The interrupt ladder: every rung, forced from both sides.

use std::time::Duration;

use anyhow::{Result, ensure};
use kickpath::wire::FarEnd;
use kickpath_abi::config::Irq;
use kickpath_abi::status::Status;
use kickpath_tests::{Lab, Spec, Suite};

/// Outcome of an attempt: taken, or failed for a reason with this text.
type Attempts = &'static [(Irq, &'static str)];

const TAKEN: &str = "taken";

pub fn add(suite: &mut Suite) {
    let way = suite.way();
    for &kind in way.kinds() {
        for &irq in way.rungs() {
            let attempts: Attempts = match irq {
                Irq::Auto | Irq::Msix => &[(Irq::Msix, TAKEN)],
                Irq::MsixShared => &[(Irq::MsixShared, TAKEN)],
                Irq::Intx => &[(Irq::Intx, TAKEN)],
                Irq::Poll => &[(Irq::Poll, TAKEN)],
            };
            let spec = Spec::new(kind).config(move |config| config.irq = irq);
            let name = format!(
                "interrupts::{kind}_asked_for_{}",
                irq.word().replace('-', "_")
            );
            suite.guest(&name, spec, move |lab| check(lab, attempts));
        }
    }
    // The bottom half of the device runs in the vCPU thread.
    for &irq in way.rungs() {
        let spec = Spec::pc()
            .config(move |config| config.irq = irq)
            .nic(|nic| nic.ioeventfd = Some(false));
        let name = irq.word().replace('-', "_");
        let name = format!("interrupts::{name}_without_ioeventfd");
        suite.guest(&name, spec, move |lab| check_traffic(lab, irq));
    }
    if !way.is_pci() {
        // No vectors, and a line for each device.
        return;
    }
    for &kind in way.kinds() {
        // QEMU's default is two vectors a queue pair, and two more.
        let by_device: [(&str, Option<u16>, Attempts); 4] = [
            ("default", None, &[(Irq::Msix, TAKEN)]),
            ("3", Some(3), &[(Irq::Msix, TAKEN)]),
            (
                "2",
                Some(2),
                &[(Irq::Msix, "vectors"), (Irq::MsixShared, TAKEN)],
            ),
            (
                "0",
                Some(0),
                &[
                    (Irq::Msix, "vectors"),
                    (Irq::MsixShared, "vectors"),
                    (Irq::Intx, TAKEN),
                ],
            ),
        ];
        for (vectors, count, attempts) in by_device {
            let spec = Spec::new(kind).nic(move |nic| nic.vectors = count);
            let name = format!("interrupts::{kind}_device_with_{vectors}_vectors");
            suite.guest(&name, spec, move |lab| check(lab, attempts));
        }
    }
    // A shared INTx line: another device on it, and twice the interrupts.
    let shared = Spec::pc().config(|config| config.irq = Irq::Intx).extra(&[
        "-device",
        "virtio-rng-pci,addr=6",
        "-device",
        "virtio-rng-pci,addr=10",
    ]);
    suite.guest("interrupts::intx_on_a_shared_line", shared, |lab| {
        check(lab, &[(Irq::Intx, TAKEN)])
    });
}

/// The ladder was climbed down as it should, and the rung works.
fn check(lab: &Lab, expected: Attempts) -> Result<()> {
    let Status { interrupts, .. } = lab.status()?;
    let attempts = &interrupts.attempts;
    ensure!(attempts.len() == expected.len(), "{interrupts:?}");
    for (attempt, (irq, outcome)) in attempts.iter().zip(expected) {
        ensure!(
            attempt.rung == irq.word() && attempt.outcome.contains(outcome),
            "{} instead of {irq} '{outcome}': {interrupts:?}",
            attempt.rung
        );
    }
    let taken = expected.last().map(|(irq, _)| *irq).unwrap_or(Irq::Auto);
    ensure!(interrupts.rung == taken.word(), "{interrupts:?}");
    check_traffic(lab, taken)
}

fn check_traffic(lab: &Lab, irq: Irq) -> Result<()> {
    let before = lab.status()?.counters;
    lab.check_services()?;
    lab.echo_flood(2000, 64)?;
    lab.peer.tcp_echo(lab.address(), 512 * 1024, lab.soon())?;
    // One at a time: a lost interrupt is a ping that comes late or never.
    let report = lab.peer.ping(lab.address(), 200, 56, lab.soon())?;
    ensure!(report.lost() == 0, "{report:?}");
    ensure!(
        report.average() < Duration::from_millis(100),
        "an answer takes {:?}: an interrupt is missing",
        report.average()
    );
    let after = lab.status()?.counters;
    let interrupts = after.interrupts - before.interrupts;
    if irq == Irq::Poll {
        ensure!(interrupts == 0, "{interrupts} interrupts while polling");
    } else {
        // One for nearly each of the pings, whose guest sleeps in between.
        ensure!(interrupts >= 100, "{interrupts} interrupts only");
    }
    Ok(())
}
