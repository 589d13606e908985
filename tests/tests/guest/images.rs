//! Disk images for BIOS and UEFI firmware.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kickpath::install::{Host, OVMF};
use kickpath::qemu::{Boot, DiskImage, Firmware, Kind};
use kickpath_tests::program::run;
use kickpath_tests::setup::require;
use kickpath_tests::{Lab, Spec, Suite};

/// Environment variable that leaves these tests out when it is `0`: the boot
/// loader's first build takes minutes.
const VARIABLE: &str = "KICKPATH_TEST_IMAGES";

pub fn add(suite: &mut Suite) {
    let unwanted = std::env::var_os(VARIABLE).is_some_and(|value| value == "0");
    let reason = unwanted.then(|| format!("{VARIABLE}=0"));
    suite.needs(reason, |suite| {
        suite.test("images::bios_and_uefi_boot_to_the_same_network", || {
            let directory = tempfile::tempdir()?;
            let (bios, uefi) = (
                directory.path().join("bios.img"),
                directory.path().join("uefi.img"),
            );
            make(&bios, &uefi)?;
            require(&[OVMF])?;
            let code = Host::detect().find(&OVMF).context("no OVMF")?;
            start(Kind::Pc, &bios, Firmware::Bios, "BIOS")?;
            start(Kind::Q35, &uefi, Firmware::Uefi(code), "UEFI")
        });
    });
}

fn make(bios: &Path, uefi: &Path) -> Result<()> {
    let path = |path: &Path| path.to_str().context("a path of UTF-8").map(str::to_owned);
    let (bios, uefi) = (path(bios)?, path(uefi)?);
    let text = run(&["image", "--bios", &bios, "--uefi", &uefi])?;
    for file in [&bios, &uefi] {
        ensure!(text.contains(file.as_str()), "{file} is not named:\n{text}");
    }
    Ok(())
}

fn start(kind: Kind, image: &Path, firmware: Firmware, protocol: &str) -> Result<()> {
    let file: PathBuf = image.to_owned();
    let spec = Spec::new(kind)
        .edit(move |machine| machine.boot = Boot::Disk(DiskImage { file, firmware }))
        .bound(Duration::from_secs(120));
    let lab = Lab::launch(spec)?;
    let check = || {
        lab.wait_until_up()?;
        lab.check_services()?;
        lab.echo_flood(1000, 64)?;
        let status = lab.status()?;
        ensure!(status.boot.protocol == protocol, "{:?}", status.boot);
        // It came by fw_cfg.
        ensure!(
            status.network.ipv4_source == "static",
            "{:?}",
            status.network
        );
        ensure!(status.interrupts.rung == "msix", "{:?}", status.interrupts);
        lab.check_health()
    };
    check()
        .map_err(|error| lab.report(&error))
        .with_context(|| format!("by {protocol}"))
}
