//! Memory, configuration, and how the guest comes up.

use anyhow::{Result, ensure};
use kickpath::qemu::Kind;
use kickpath_abi::config::{FW_CFG_FILE, Ipv4Config};
use kickpath_tests::{Lab, Spec, Suite};

use crate::faults::{FAILURE, expect_on_console};

pub fn add(suite: &mut Suite) {
    let way = suite.way();
    for &kind in way.kinds() {
        for memory in ["16M", "64M", "3G", "8G"] {
            let spec = memory_of(kind, memory);
            let name = format!("boot::{kind}_with_{memory}_of_memory");
            suite.guest(&name, spec, |lab| {
                lab.check_services()?;
                lab.echo_flood(3000, 1472)
            });
        }
    }
    // QEMU takes no less. Where a queue may have 1,024 descriptors, it gets fewer.
    for &kind in way.kinds() {
        let name = format!("boot::{kind}_with_4M_of_memory");
        suite.guest(&name, memory_of(kind, "4M"), |lab| {
            lab.check_services()?;
            lab.echo_flood(3000, 1472)
        });
    }
    // From an amount on, the guest works; below it, it says why it does not.
    for memory in ["5M", "6M", "8M", "10M", "12M"] {
        let name = format!("boot::with_{memory}_works_or_says_why_not");
        suite.launch(&name, memory_of(Kind::Pc, memory), works_or_says_why);
    }
    // Buffers for 1,024 frames are 2 MiB.
    let floor = memory_of(Kind::Pc, "4M")
        .nic(|nic| nic.rx_queue_size = Some(1024))
        .config(|config| config.queue_size = Some(1024));
    suite.launch(
        "boot::too_little_memory_ends_with_a_message",
        floor,
        |lab| {
            let exit = lab.guest.wait_for_exit(lab.left())?;
            ensure!(exit == kickpath::guest::Exit::Guest(FAILURE), "{exit}");
            expect_on_console(lab, &["memory"])
        },
    );

    for cpus in [2, 4] {
        let spec = Spec::pc().edit(move |machine| machine.cpus = cpus);
        suite.guest(&format!("boot::with_{cpus}_cpus"), spec, |lab| {
            lab.check_services()
        });
    }
    for cpu in ["qemu64", "max", "Nehalem"] {
        let spec = Spec::pc().edit(move |machine| machine.cpu = Some(cpu.into()));
        let name = format!("boot::on_the_cpu_{}", cpu.to_lowercase());
        suite.guest(&name, spec, |lab| lab.check_services());
    }
    let quiet = Spec::pc().config(|config| config.log = kickpath_abi::config::LogLevel::Trace);
    suite.guest("boot::with_the_log_at_trace", quiet, |lab| {
        lab.check_services()
    });
}

/// Where the configuration comes from, the choice of a transport included.
/// What tells how fast the time stamp counter counts. Nothing tells a guest on
/// TCG, and its CPU has no deadline timer.
pub fn add_clocks(suite: &mut Suite) {
    let acpi: &[&str] = &[];
    for (kind, arguments, source) in [
        (Kind::Pc, acpi, "PM timer"),
        (Kind::Q35, acpi, "PM timer"),
        (Kind::Pc, &["-machine", "acpi=off"], "PIT"),
    ] {
        let spec = Spec::new(kind).extra(arguments);
        let name = source.to_lowercase().replace(' ', "_");
        let name = format!("boot::{kind}_measures_the_tsc_by_the_{name}");
        suite.guest(&name, spec, move |lab| {
            let boot = lab.status()?.boot;
            ensure!(boot.tsc_source == source, "{boot:?}");
            expect_on_console(lab, &["timer: local APIC, one-shot"])
        });
    }
}

pub fn add_words(suite: &mut Suite) {
    let bad = Spec::pc().ipv4(Ipv4Config::Dhcp).edit(|machine| {
        let words = "colour=red log=loud irq=none ip=10.0.0.1/33 gateway=x transport features=mac";
        machine.extra.extend(["-append".into(), words.into()]);
    });
    suite.guest(
        "boot::bad_words_are_reported_and_the_defaults_used",
        bad,
        |lab| {
            expect_on_console(
                lab,
                &[
                    "unknown configuration keys in: colour=red transport",
                    "log='loud'",
                    "irq='none'",
                    "ip='10.0.0.1/33'",
                    "gateway='x'",
                    "features='mac'",
                ],
            )?;
            let status = lab.status()?;
            ensure!(status.network.ipv4_source == "dhcp", "{:?}", status.network);
            ensure!(status.interrupts.rung == "msix", "{:?}", status.interrupts);
            lab.check_services()
        },
    );
    let long = Spec::pc().edit(|machine| {
        let words = format!("{}ip=10.0.2.15/24", "x=y ".repeat(300));
        machine.extra.extend(["-append".into(), words.into()]);
    });
    suite.guest(
        "boot::a_long_command_line_is_read_to_its_end",
        long,
        |lab| {
            ensure!(
                lab.status()?.network.ipv4_source == "static",
                "{:?}",
                lab.status()?.network
            );
            Ok(())
        },
    );
    let fw_cfg = Spec::pc().ipv4(Ipv4Config::Dhcp).edit(|machine| {
        let file = format!("name={FW_CFG_FILE},string=ip=10.0.2.15/24 irq=intx");
        machine.extra.extend(["-fw_cfg".into(), file.into()]);
    });
    suite.guest(
        "boot::the_configuration_can_come_by_fw_cfg",
        fw_cfg,
        |lab| {
            let status = lab.status()?;
            ensure!(
                status.network.ipv4_source == "static",
                "{:?}",
                status.network
            );
            ensure!(status.interrupts.rung == "intx", "{:?}", status.interrupts);
            ensure!(
                status.boot.configuration.contains("irq=intx"),
                "{:?}",
                status.boot
            );
            lab.check_services()
        },
    );
    let both = Spec::pc().edit(|machine| {
        let file = format!("name={FW_CFG_FILE},string=irq=intx");
        machine.extra.extend(["-fw_cfg".into(), file.into()]);
    });
    suite.guest("boot::the_command_line_comes_before_fw_cfg", both, |lab| {
        ensure!(
            lab.status()?.interrupts.rung == "msix",
            "{:?}",
            lab.status()?.interrupts
        );
        Ok(())
    });
}

fn memory_of(kind: Kind, memory: &'static str) -> Spec {
    Spec::new(kind).edit(move |machine| {
        machine.memory = memory.parse().expect("an amount of memory");
    })
}

fn works_or_says_why(lab: &mut Lab) -> Result<()> {
    match lab.wait_until_up() {
        Ok(()) => lab.check_services(),
        Err(_) => {
            let exit = lab.guest.wait_for_exit(lab.left())?;
            // Below a few MiB QEMU cannot even load the kernel.
            let refused = matches!(exit, kickpath::guest::Exit::Failed(_));
            ensure!(
                refused || exit == kickpath::guest::Exit::Guest(FAILURE),
                "{exit}"
            );
            if !refused {
                expect_on_console(lab, &["memory"])?;
            }
            Ok(())
        }
    }
}
