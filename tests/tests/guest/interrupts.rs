//! The interrupt ladder: every rung, forced from both sides.

use anyhow::{Result, ensure};
use kickpath::qemu::Kind;
use kickpath::wire::FarEnd;
use kickpath_abi::config::Irq;
use kickpath_abi::status::Status;
use kickpath_tests::{Lab, Spec, Suite};

use crate::devices::behind;
use crate::faults::expect_on_console;

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
    intx_lines(suite);
}

/// What is asked about where a pin leads.
struct Pin {
    name: &'static str,
    spec: fn() -> Spec,
    /// What the guest's log must say.
    expected: &'static str,
}

/// Devices without MSI-X, whose pin leads where the firmware says. Firmware and
/// QEMU's chipset wire the pins of slots by turns.
const PINS: &[Pin] = &[
    // PIRQ A to D lead to 10, 10, 11, 11 (SeaBIOS); slot 4 has D.
    Pin {
        name: "pc",
        spec: || Spec::pc().property("addr", "4"),
        expected: "INTx: line 11 of the 8259 controllers",
    },
    Pin {
        name: "pc_behind_a_bridge",
        spec: || {
            Spec::pc().edit(|machine| {
                behind(
                    machine,
                    "pci-bridge,id=bridge,chassis_nr=1,addr=6",
                    5,
                    ",vectors=0",
                )
            })
        },
        // Pin A of slot 5 is pin B of slot 6, which has PIRQ C.
        expected: "INTx: line 11 of the 8259 controllers",
    },
    Pin {
        name: "q35",
        spec: || Spec::new(Kind::Q35).property("addr", "4"),
        expected: BY_8259,
    },
    Pin {
        name: "q35_behind_a_root_port",
        spec: || {
            Spec::new(Kind::Q35)
                .edit(|machine| behind(machine, "pcie-root-port,id=bridge,addr=5", 0, ",vectors=0"))
        },
        expected: BY_8259,
    },
    Pin {
        name: "q35_behind_two_bridges",
        spec: || {
            Spec::new(Kind::Q35).edit(|machine| {
                machine
                    .extra
                    .extend(["-device", "pcie-root-port,id=port0,addr=6"].map(Into::into));
                behind(
                    machine,
                    "pcie-pci-bridge,id=bridge,bus=port0",
                    7,
                    ",vectors=0",
                );
            })
        },
        expected: BY_8259,
    },
    Pin {
        name: "pc_without_acpi",
        spec: || Spec::pc().extra(&["-machine", "acpi=off"]),
        expected: BY_8259,
    },
    Pin {
        name: "q35_with_the_acpi_of_another_machine",
        spec: || Spec::new(Kind::Q35).extra(&["-machine", "acpi=off"]),
        expected: BY_8259,
    },
];

/// Which line a machine's firmware takes differs from version to version.
const BY_8259: &str = "of the 8259 controllers, by the interrupt line register";

fn intx_lines(suite: &mut Suite) {
    for pin in PINS {
        let spec = (pin.spec)().nic(|nic| nic.vectors = Some(0));
        suite.guest(&format!("interrupts::intx_on_{}", pin.name), spec, |lab| {
            expect_on_console(lab, &[pin.expected])?;
            ensure!(lab.status()?.interrupts.rung == Irq::Intx.word());
            check_traffic(lab, Irq::Intx)
        });
    }
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

/// Traffic one way and the other; interrupts come when they must.
pub fn check_traffic(lab: &Lab, irq: Irq) -> Result<()> {
    let before = lab.status()?.counters;
    lab.check_services()?;
    lab.echo_flood(2000, 64)?;
    lab.peer.tcp_echo(lab.address(), 512 * 1024, lab.soon())?;
    // One at a time: the guest sleeps in between, and sees when nothing has woken it.
    let report = lab.peer.ping(lab.address(), 200, 56, lab.soon())?;
    ensure!(report.lost() == 0, "{report:?}");
    let after = lab.status()?.counters;
    let missed = after.interrupts_lost - before.interrupts_lost;
    ensure!(missed == 0, "{missed} interrupts are missing");
    let interrupts = after.interrupts - before.interrupts;
    ensure!(
        (interrupts > 0) == (irq != Irq::Poll),
        "{interrupts} interrupts with irq={irq:?}"
    );
    Ok(())
}
