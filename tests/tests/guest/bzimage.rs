//! The guest as a bzImage: QEMU's firmware enters its 16-bit code, and a few bytes of
//! our own enter its 64-bit code, as VMMs without firmware do.

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use kickpath::qemu::{Boot, Kind, NicTransport};
use kickpath_tests::program::run;
use kickpath_tests::{Lab, Spec, Suite};
use tempfile::TempDir;

use crate::faults::expect_on_console;
use crate::loader::{self, Loader};

pub fn add(suite: &mut Suite) {
    let modern = |nic: &mut kickpath::qemu::Nic| nic.transport = NicTransport::Modern;
    let machines: [(&str, Spec); 4] = [
        ("pc", Spec::pc()),
        ("q35", Spec::new(Kind::Q35).nic(modern)),
        ("microvm", Spec::new(Kind::Microvm)),
        (
            "pc_with_8g_and_4_cpus",
            Spec::pc().edit(|machine| {
                machine.memory = "8G".parse().expect("an amount of memory");
                machine.cpus = 4;
            }),
        ),
    ];
    for (name, spec) in machines {
        let name = format!("bzimage::boots_on_{name}");
        suite.test(&name, move || boots(spec));
    }
    // Where the protocol wants the image, and where crosvm and others put it.
    for address in [0x10_0000, 0x20_0000, 0x0123_0000] {
        let name = format!("bzimage::boots_by_its_64_bit_entry_from_{address:#x}");
        suite.test(&name, move || {
            let loader = Loader::new(address, &[])?;
            boots(loader.spec())
        });
    }
    // What tells of the CPUs on a machine whose loader knows no ACPI.
    for (name, tables) in [
        ("an_mp_table", loader::mp_table as fn(u32) -> Vec<u8>),
        ("acpi_that_is_looked_for", loader::acpi),
    ] {
        let name = format!("bzimage::two_cpus_by_{name}");
        suite.test(&name, move || {
            let loader = Loader::new(0x10_0000, &tables(2))?;
            boots(loader.spec().edit(|machine| machine.cpus = 2))
        });
    }
}

/// The bzImage, made once by the command.
pub fn file() -> Result<PathBuf> {
    static FILE: OnceLock<std::result::Result<(TempDir, PathBuf), String>> = OnceLock::new();
    let made = FILE.get_or_init(|| make().map_err(|error| format!("{error:#}")));
    let (_, file) = made.as_ref().map_err(|error| anyhow!("{error}"))?;
    Ok(file.clone())
}

fn make() -> Result<(TempDir, PathBuf)> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("kickpath.bzimage");
    let path = file.to_str().context("a path of UTF-8")?;
    let text = run(&["image", "--bzimage", path])?;
    ensure!(text.contains(path), "{path} is not named:\n{text}");
    Ok((directory, file))
}

fn boots(spec: Spec) -> Result<()> {
    let kernel = file()?;
    let lab = Lab::launch(spec.edit(|machine| machine.boot = Boot::Kernel(kernel)))?;
    let check = || {
        lab.wait_until_up()?;
        lab.check_services()?;
        lab.echo_flood(1000, 64)?;
        let status = lab.status()?;
        ensure!(status.boot.protocol == "bzImage", "{:?}", status.boot);
        // It came by the command line.
        ensure!(
            status.network.ipv4_source == "static",
            "{:?}",
            status.network
        );
        let cpus = lab.machine().cpus;
        if cpus > 1 {
            expect_on_console(&lab, &[&format!("{cpus} CPUs")])?;
        }
        let megabytes = u64::from(lab.machine().memory.as_mebibytes());
        let usable = status.boot.memory_bytes >> 20;
        ensure!(
            (megabytes - 2..=megabytes).contains(&usable),
            "{usable} MiB of {megabytes} are usable"
        );
        lab.check_health()
    };
    check().map_err(|error| lab.report(&error))
}
