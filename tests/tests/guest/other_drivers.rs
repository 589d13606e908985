//! Drivers of the crate `virtio-drivers` for other devices, over the transports
//! of this project.

use std::io::Write;

use anyhow::{Result, ensure};
use kickpath::guest::Exit;
use kickpath::qemu::Kind;
use kickpath_abi::config::{SelfTest, Transport};
use kickpath_tests::{Lab, Spec, Suite, setup};

use crate::faults::{expect_failure, expect_on_console};

/// What the guest writes to isa-debug-exit when all is well.
const SUCCESS: u8 = 0x10;

const SECTOR: usize = 512;
const SECTORS: usize = 64;
/// The sector that the self-test inverts.
const INVERTED: usize = 3;

pub fn add(suite: &mut Suite) {
    let entropy = pc()
        .config(|config| config.selftest = SelfTest::Entropy)
        .extra(&["-device", "virtio-rng-pci,disable-modern=on"]);
    suite.launch("other_drivers::entropy", entropy, |lab| {
        works_or_is_refused(lab, "selftest entropy: ").map(drop)
    });
    let modern = with_peer(Kind::Q35)
        .config(|config| config.selftest = SelfTest::Entropy)
        .extra(&["-device", "virtio-rng-pci,disable-legacy=on"]);
    suite.launch("other_drivers::entropy_modern", modern, |lab| {
        expect_success(lab, &["modern PCI", "selftest entropy: "])
    });
    for (name, version, legacy) in [("v1", "version 1", true), ("v2", "version 2", false)] {
        let mmio = with_peer(Kind::Microvm)
            .config(|config| config.selftest = SelfTest::Entropy)
            .nic(move |nic| nic.mmio_legacy = legacy)
            .extra(&["-device", "virtio-rng-device"]);
        let name = format!("other_drivers::entropy_mmio_{name}");
        suite.launch(&name, mmio, move |lab| {
            expect_success(lab, &[version, "selftest entropy: "])
        });
    }
    block(
        suite,
        "block",
        pc(),
        "virtio-blk-pci,disable-modern=on,queue-size=16",
    );
    let modern = pc().config(|config| config.transport = Transport::Modern);
    block(suite, "block_modern", modern, "virtio-blk-pci");
    let mmio = with_peer(Kind::Microvm);
    block(suite, "block_mmio", mmio, "virtio-blk-device");
    // The other way round: our driver, their transports.
    for (name, spec, expected) in [
        ("pc", pc(), "1000 answers by PciTransport"),
        ("q35", with_peer(Kind::Q35), "1000 answers by PciTransport"),
        (
            "mmio_v1",
            with_peer(Kind::Microvm).nic(|nic| nic.mmio_legacy = true),
            "1000 answers by MmioTransport",
        ),
        (
            "mmio_v2",
            with_peer(Kind::Microvm),
            "1000 answers by MmioTransport",
        ),
    ] {
        let spec = spec.config(|config| config.selftest = SelfTest::Adapter);
        let name = format!("other_drivers::their_transport_on_{name}");
        suite.launch(&name, spec, move |lab| expect_success(lab, &[expected]));
    }
    suite.launch(
        "other_drivers::are_in_no_other_kernel",
        Spec::pc().config(|config| config.selftest = SelfTest::Adapter),
        |lab| expect_failure(lab, &["built without the feature `peer`"]),
    );
    for (name, selftest) in [("entropy", SelfTest::Entropy), ("block", SelfTest::Block)] {
        let spec = pc().config(move |config| config.selftest = selftest);
        let name = format!("other_drivers::{name}_without_its_device_fails");
        suite.launch(&name, spec, |lab| expect_failure(lab, &["there is no"]));
    }
}

/// A machine whose kernel has those drivers.
fn with_peer(kind: Kind) -> Spec {
    Spec::new(kind).with_peer()
}

fn pc() -> Spec {
    with_peer(Kind::Pc)
}

/// The driver inverts a sector of a disk that is this device.
fn block(suite: &mut Suite, name: &str, spec: Spec, device: &'static str) {
    suite.test(&format!("other_drivers::{name}"), move || {
        setup::setup()?;
        let mut disk: Vec<u8> = (0..SECTORS * SECTOR).map(|n| (n / 7) as u8).collect();
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(&disk)?;
        let drive = format!("if=none,id=disk,format=raw,file={}", file.path().display());
        let device = format!("{device},drive=disk");
        let spec = spec
            .config(|config| config.selftest = SelfTest::Block)
            .extra(&["-drive", &drive, "-device", &device]);
        let lab = Lab::launch(spec)?;
        let works = works_or_is_refused(&lab, "selftest block: 64 sectors");
        if !works.map_err(|error| lab.report(&error))? {
            return Ok(());
        }
        for byte in &mut disk[INVERTED * SECTOR..][..SECTOR] {
            *byte = !*byte;
        }
        let after = std::fs::read(file.path())?;
        ensure!(
            after.len() == disk.len(),
            "the disk has {} bytes now",
            after.len()
        );
        let wrong = after.iter().zip(&disk).position(|(a, b)| a != b);
        ensure!(
            wrong.is_none(),
            "byte {wrong:?} of the disk is not as it should be (sector {INVERTED} inverted)"
        );
        Ok(())
    });
}

/// Whether it works. Debian's QEMU 10.0.13 has 1024 descriptors in every queue, whatever
/// was asked for: a legacy device then is of no use to drivers that have fewer, and the
/// guest must say so.
fn works_or_is_refused(lab: &Lab, text: &str) -> Result<bool> {
    const REFUSED: &str = "the device dictates a queue of 1024";
    lab.guest.wait_for_exit(lab.left())?;
    let version = setup::setup()?.version;
    let lines = lab.guest.console_since(0);
    let is_refused = lines.iter().any(|line| line.text.contains(REFUSED));
    if is_refused && (version.major, version.minor) == (10, 0) {
        expect_failure(lab, &[REFUSED])?;
        return Ok(false);
    }
    expect_success(lab, &[text]).map(|()| true)
}

fn expect_success(lab: &Lab, texts: &[&str]) -> Result<()> {
    let exit = lab.guest.wait_for_exit(lab.left())?;
    ensure!(exit == Exit::Guest(SUCCESS), "{exit}");
    expect_on_console(lab, texts)
}
