//! What belongs to one transport: what the guest says of it, where a device can
//! be, and what is refused. What must be the same over each is tested over each
//! by the other modules ([`Suite::over_every_transport`]).

use anyhow::{Result, ensure};
use kickpath::qemu::{Kind, Machine, NicTransport};
use kickpath::wire::FarEnd;
use kickpath_abi::config::{Irq, LogLevel, Transport};
use kickpath_tests::{Lab, Spec, Suite};

use crate::devices::behind;
use crate::faults::{expect_failure, expect_on_console};
use crate::interrupts::check_traffic;

/// A way to the device, and what the guest must say of it.
struct Way {
    name: &'static str,
    spec: fn() -> Spec,
    transport: Transport,
    /// How the line about a kick begins: port or memory, 16 or 32 bits.
    kick: &'static str,
    /// The other interface of a transitional device, and how its kick would
    /// begin.
    other: Option<(Transport, &'static str)>,
}

const WAYS: &[Way] = &[
    Way {
        name: "legacy",
        spec: Spec::pc,
        transport: Transport::Legacy,
        kick: "outw 1 -> port",
        other: Some((Transport::Modern, "movw to memory")),
    },
    Way {
        name: "modern",
        spec: modern,
        transport: Transport::Modern,
        kick: "movw 1 -> 0x",
        other: Some((Transport::Legacy, "outw to port")),
    },
    Way {
        name: "modern_port_notify",
        spec: modern_port,
        transport: Transport::Modern,
        kick: "outw 1 -> port",
        other: Some((Transport::Legacy, "outw to port")),
    },
    Way {
        name: "modern_only",
        spec: || Spec::new(Kind::Q35).nic(|nic| nic.transport = NicTransport::Modern),
        transport: Transport::Modern,
        kick: "movw 1 -> 0x",
        other: None,
    },
    Way {
        name: "mmio_v1",
        spec: || mmio().nic(|nic| nic.mmio_legacy = true),
        transport: Transport::Mmio,
        kick: "movl 1 -> 0x",
        other: None,
    },
    Way {
        name: "mmio_v2",
        spec: mmio,
        transport: Transport::Mmio,
        kick: "movl 1 -> 0x",
        other: None,
    },
];

/// A transitional device, driven by its modern interface.
fn modern() -> Spec {
    Spec::new(Kind::Q35).config(|config| config.transport = Transport::Modern)
}

fn modern_port() -> Spec {
    modern().nic(|nic| nic.pio_notify = true)
}

fn mmio() -> Spec {
    Spec::new(Kind::Microvm)
}

pub fn add(suite: &mut Suite) {
    for way in WAYS {
        let name = |what: &str| format!("transports::{}_{what}", way.name);
        suite.guest(&name("serves"), (way.spec)(), |lab| {
            check(lab, way)?;
            lab.echo_flood(10_000, 64)?;
            lab.peer.tcp_echo(lab.address(), 1 << 20, lab.soon())?;
            Ok(())
        });
        let off = "event_idx,any_layout,status,mtu,ctrl_vq,mrg_rxbuf,indirect_desc";
        let spec = (way.spec)().config(move |config| config.features_off = off.into());
        suite.guest(&name("with_features_refused"), spec, move |lab| {
            let negotiated = lab.status()?.device.features_negotiated;
            for feature in off.split(',') {
                let taken = negotiated.iter().any(|n| n.eq_ignore_ascii_case(feature));
                ensure!(!taken, "{feature} is negotiated: {negotiated:?}");
            }
            check(lab, way)?;
            lab.echo_flood(3000, 64)
        });
    }
    places(suite);
    refusals(suite);
}

/// Where devices can be: on a PCIe port, above 4 GiB, described by ACPI or on
/// the command line.
fn places(suite: &mut Suite) {
    let way = |name: &str| WAYS.iter().find(|way| way.name == name);
    let port = "pcie-root-port,id=bridge,chassis=1,slot=1";
    for (name, properties, irq) in [("msix", "", Irq::Msix), ("intx", ",vectors=0", Irq::Intx)] {
        let spec = Spec::new(Kind::Q35)
            .config(|config| config.transport = Transport::Modern)
            .edit(move |machine| behind(machine, port, 0, properties));
        let name = format!("transports::behind_a_pcie_root_port_{name}");
        suite.guest(&name, spec, move |lab| {
            let location = lab.status()?.device.location;
            ensure!(location.contains("01:00.0"), "{location}");
            check_interrupts(lab, irq)
        });
    }
    // A BAR of 4 GiB leaves no room below 4 GiB for the others, which can all
    // be above; 16 KiB of virtio's registers are among them.
    for (name, way) in [
        ("modern", way("modern")),
        ("modern_port_notify", way("modern_port_notify")),
    ] {
        let Some(way) = way else { continue };
        let spec = (way.spec)().edit(above_4_gib);
        let name = format!("transports::{name}_above_4_gib_with_8_gib_of_memory");
        suite.guest(&name, spec, |lab| {
            let place = lab.status()?.device.transport_place;
            let address = place
                .split_whitespace()
                .find_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
            ensure!(address.is_some_and(|at| at >= 8 << 30), "{place}");
            check(lab, way)?;
            lab.echo_flood(3000, 64)
        });
    }
    for (name, way) in [("v1", way("mmio_v1")), ("v2", way("mmio_v2"))] {
        let Some(way) = way else { continue };
        let spec = (way.spec)().extra(&["-machine", "acpi=off"]);
        let name = format!("transports::mmio_{name}_by_the_command_line");
        suite.guest(&name, spec, move |lab| {
            let unknown = lab.guest.console_since(0);
            let unknown = unknown.iter().find(|line| line.text.contains("unknown"));
            ensure!(
                unknown.is_none(),
                "QEMU's words are taken for ours: {unknown:?}"
            );
            check(lab, way)?;
            check_interrupts(lab, Irq::Intx)
        });
    }
    for (switch, source) in [
        ("pit=off", "APIC timer"),
        ("pic=off", "PIT"),
        ("rtc=off", "PIT"),
    ] {
        let spec = mmio().extra(&["-machine", switch]);
        let name = format!("transports::mmio_with_{}", switch.replace('=', "_"));
        suite.guest(&name, spec, move |lab| {
            let boot = lab.status()?.boot;
            ensure!(boot.tsc_source == source, "{}", boot.tsc_source);
            check_interrupts(lab, Irq::Intx)
        });
    }
    for (kind, ecam) in [(Kind::Q35, true), (Kind::Pc, false)] {
        let spec = Spec::new(kind).config(|config| config.log = LogLevel::Debug);
        let name = format!(
            "transports::{kind}_pci_by_{}",
            if ecam { "ecam" } else { "ports" }
        );
        suite.guest(&name, spec, move |lab| {
            let console = lab.guest.console_since(0);
            let by_ecam = console
                .iter()
                .any(|line| line.text.contains("bus 0x00 by ECAM at 0xb0000000"));
            ensure!(by_ecam == ecam, "by ECAM: {by_ecam}");
            lab.check_services()
        });
    }
    // Which of several devices: the one on the network, wherever it is.
    let others = mmio().extra(&[
        "-device",
        "virtio-rng-device",
        "-device",
        "virtio-balloon-device",
    ]);
    suite.guest("transports::mmio_among_other_devices", others, |lab| {
        lab.check_services()
    });
}

fn above_4_gib(machine: &mut Machine) {
    machine.memory = "8G".parse().expect("an amount of memory");
    let arguments = [
        "-object",
        "memory-backend-ram,id=big,size=4G,share=on",
        "-device",
        "ivshmem-plain,memdev=big",
    ];
    machine.extra.extend(arguments.map(Into::into));
}

fn refusals(suite: &mut Suite) {
    // Where nothing is translated the `Hal` says that its addresses are right,
    // where there is an IOMMU that it does not know; and the feature can be
    // refused.
    let demanding = |kind| {
        let spec = Spec::new(kind).property("iommu_platform", "on");
        spec.nic(|nic| nic.transport = NicTransport::Modern)
    };
    for (name, kind) in [("pci", Kind::Q35), ("mmio", Kind::Microvm)] {
        let name = format!("transports::access_platform_{name}");
        suite.guest(&name, demanding(kind), |lab| {
            let negotiated = lab.status()?.device.features_negotiated;
            let is_there = negotiated.iter().any(|name| name == "ACCESS_PLATFORM");
            ensure!(is_there, "{negotiated:?}");
            lab.check_services()
        });
        let spec = demanding(kind).config(|c| c.features_off = "access_platform".into());
        suite.launch(&format!("{name}_refused"), spec, |lab| {
            expect_failure(lab, &["ACCESS_PLATFORM", "iommu_platform=on"])
        });
    }
    let spec = demanding(Kind::Q35).extra(&["-device", "intel-iommu"]);
    suite.launch("transports::an_iommu_is_not_driven", spec, |lab| {
        expect_failure(lab, &["ACCESS_PLATFORM", "iommu_platform=on"])
    });
    let spec = Spec::new(Kind::Q35)
        .nic(|nic| nic.transport = NicTransport::Modern)
        .config(|config| config.features_off = "version_1".into());
    suite.launch("transports::version_1_cannot_be_refused", spec, |lab| {
        expect_failure(lab, &["VERSION_1 was not agreed on"])
    });
    let words = "virtio_mmio.device=512@0xfeb00e00 virtio_mmio.device=4K@0xfeb10000:5";
    let spec = mmio().edit(move |machine| {
        let words = format!("{} {words}", machine.config);
        machine.extra.extend(["-append".into(), words.into()]);
    });
    suite.launch("transports::mmio_words_that_are_wrong", spec, |lab| {
        expect_failure(
            lab,
            &[
                "virtio_mmio.device=512@0xfeb00e00 ignored",
                "virtio-mmio 0xfeb10000 ignored",
                "no virtio network device",
            ],
        )
    });
}

/// What the guest says of the way that it took, and a little of all services.
fn check(lab: &Lab, way: &Way) -> Result<()> {
    let device = lab.status()?.device;
    ensure!(device.transport == way.transport.word(), "{device:?}");
    ensure!(device.doorbell.starts_with(way.kick), "{device:?}");
    match way.other {
        Some((transport, kick)) => {
            let expected = format!("{transport}: {kick}");
            ensure!(
                device.transport_alternatives == [transport.word()],
                "{device:?}"
            );
            ensure!(
                device.alternative_kicks[0].starts_with(&expected),
                "{device:?}"
            );
            expect_on_console(lab, &[&format!("a kick would be {kick}")])?;
        }
        None => {
            ensure!(device.transport_alternatives.is_empty(), "{device:?}");
            ensure!(device.alternative_kicks.is_empty(), "{device:?}");
        }
    }
    lab.check_services()
}

/// The rung that was asked for was taken, and interrupts come when they must.
fn check_interrupts(lab: &Lab, irq: Irq) -> Result<()> {
    let before = lab.status()?;
    ensure!(
        before.interrupts.rung == irq.word(),
        "{:?}",
        before.interrupts
    );
    check_traffic(lab, irq)
}
