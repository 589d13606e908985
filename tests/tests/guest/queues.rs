//! The forms that a virtqueue can have: packed rings, indirect descriptors,
//! sizes, and one queue reset alone.

use std::time::Duration;

use anyhow::{Result, ensure};
use kickpath_abi::config::{Irq, SelfTest, SelfTestAt};
use kickpath_tests::{Lab, Spec, Suite, Way};

pub fn add(suite: &mut Suite) {
    let way = suite.way();
    if way.is_version_1() {
        packed_rings(suite);
        reset_is_not_possible(suite);
    } else {
        // Offered, but not to a driver of the legacy interfaces.
        suite.guest("queues::packed_is_for_version_1_only", packed(), |lab| {
            check_negotiated(lab, "RING_PACKED", false)?;
            check_traffic(lab)
        });
        chains_of_two(suite);
    }
    if way.is_version_1() && way.is_pci() {
        reset_alone(suite);
        reset_fails(suite);
    }
    if way == Way::MmioV2 {
        // QEMU 7.2 offers RING_RESET on virtio-mmio too, and has no register
        // for it. The driver finds out before it counts on it.
        suite.guest("queues::reset_alone_is_not_done", Spec::pc(), |lab| {
            let offered = lab.status()?.device.features_offered;
            ensure!(offered.iter().any(|name| name == "RING_RESET"));
            check_negotiated(lab, "RING_RESET", false)?;
            lab.guest
                .wait_for_console("RING_RESET is offered and not taken", lab.soon())?;
            check_traffic(lab)
        });
    }
    sizes(suite);
}

fn packed_rings(suite: &mut Suite) {
    for (name, off) in [
        ("by_event_index", ""),
        ("by_flags", "event_idx"),
        ("without_indirect_descriptors", "indirect_desc"),
    ] {
        let spec = packed().config(move |config| config.features_off = off.into());
        let name = format!("queues::packed_{name}");
        suite.guest(&name, spec, move |lab| {
            check_negotiated(lab, "RING_PACKED", true)?;
            check_negotiated(lab, "EVENT_IDX", off != "event_idx")?;
            check_negotiated(lab, "INDIRECT_DESC", off != "indirect_desc")?;
            check_traffic(lab)
        });
    }
    let spec = packed().config(|config| config.features_off = "ring_packed".into());
    suite.guest("queues::packed_refused_by_the_guest", spec, |lab| {
        check_negotiated(lab, "RING_PACKED", false)?;
        check_traffic(lab)
    });
}

/// One queue reset alone, receive and transmit in turn, while requests come.
fn reset_alone(suite: &mut Suite) {
    let irq = |spec: Spec, irq| spec.config(move |config| config.irq = irq);
    for (name, spec) in [
        ("split", Spec::pc()),
        ("split_intx", irq(Spec::pc(), Irq::Intx)),
        ("packed", packed()),
        ("packed_msix_shared", irq(packed(), Irq::MsixShared)),
    ] {
        let spec = spec
            .config(|config| config.reset_queues = 200)
            .bound(Duration::from_secs(120));
        let name = format!("queues::reset_alone_{name}");
        suite.guest(&name, spec, |lab| {
            check_negotiated(lab, "RING_RESET", true)?;
            crate::reopen::reopen(lab, 200)
        });
    }
}

/// A queue whose reset fails half-way is dead: the whole device is reset.
fn reset_fails(suite: &mut Suite) {
    let spec = Spec::pc().config(|config| {
        config.selftest = SelfTest::QueueReset;
        config.selftest_at = SelfTestAt::Up;
    });
    suite.guest("queues::a_reset_that_fails", spec, |lab| {
        let (failed, opened) = ("error: queue 0", "the device was reset and opened again");
        let failed = lab.guest.wait_for_console(failed, lab.soon())?.number;
        lab.guest.wait_for_line(failed, opened, lab.soon())?;
        check_traffic(lab)
    });
}

fn reset_is_not_possible(suite: &mut Suite) {
    for (name, property, off) in [("offered", "off", ""), ("accepted", "on", "ring_reset")] {
        let spec = Spec::pc()
            .property("queue_reset", property)
            .config(move |config| {
                config.reset_queues = 1;
                config.features_off = off.into();
            });
        let name = format!("queues::reset_alone_is_not_{name}");
        suite.guest(&name, spec, |lab| {
            check_negotiated(lab, "RING_RESET", false)?;
            lab.check_services()?;
            lab.guest
                .wait_for_console("queue 0 cannot be reset alone", lab.soon())?;
            check_traffic(lab)
        });
    }
}

/// What the driver asks for, and what QEMU is asked for: the receive and the transmit
/// queue are as long as the driver asks for and the device allows, by a power of
/// two; those of legacy virtio-pci as long as the device says.
fn sizes(suite: &mut Suite) {
    type Case = (&'static str, fn() -> Spec, u16, u16);
    let way = suite.way();
    let split: &[Case] = &[
        ("split_1", Spec::pc, 1, 256),
        ("split_2", Spec::pc, 2, 256),
        ("split_64", Spec::pc, 64, 256),
        ("split_100", Spec::pc, 100, 256),
        ("split_1024", Spec::pc, 1 << 15, 1024),
    ];
    let packed: &[Case] = &[
        ("packed_2", packed, 2, 256),
        ("packed_64", packed, 64, 256),
        ("packed_100", packed, 100, 256),
        ("packed_1024", packed, 1 << 15, 1024),
    ];
    let dictated: &[Case] = &[
        ("asked_for_64", Spec::pc, 64, 256),
        ("of_1024", Spec::pc, 1 << 15, 1024),
    ];
    let cases = match way {
        Way::Legacy => dictated.to_vec(),
        Way::MmioV1 => split.to_vec(),
        _ => [split, packed].concat(),
    };
    for (name, spec, wanted, rx) in cases {
        let spec = spec()
            .nic(move |nic| {
                let property = ("rx_queue_size".into(), rx.to_string());
                nic.properties.push(property);
            })
            .config(move |config| config.queue_size = Some(wanted));
        let name = format!("queues::size_{name}");
        suite.guest(&name, spec, move |lab| {
            let offered = lab.queue_sizes(2)?;
            ensure!(offered[0] >= rx, "QEMU offers {offered:?}");
            let size = |offered: u16| match way {
                Way::Legacy => offered,
                _ => 1 << offered.min(wanted).ilog2(),
            };
            let expected: Vec<_> = offered.into_iter().map(size).collect();
            let queues = lab.status()?.queues;
            let found: Vec<_> = queues.iter().take(2).map(|queue| queue.size).collect();
            ensure!(found == expected, "sizes {found:?} instead of {expected:?}");
            if found[0] < 64 {
                // Bursts do not fit, so that frames are lost at the device.
                lab.ping(lab.address(), 20, 56)?;
                lab.ping(lab.address(), 5, 1400)?;
                return lab.check_health();
            }
            check_traffic(lab)
        });
    }
}

/// Without `ANY_LAYOUT`, which `VERSION_1` implies, a frame is a chain of two
/// buffers.
fn chains_of_two(suite: &mut Suite) {
    for (name, off) in [
        ("indirect", "any_layout"),
        ("direct", "any_layout,indirect_desc"),
    ] {
        let spec = Spec::pc().config(move |config| config.features_off = off.into());
        let name = format!("queues::split_chains_of_two_{name}");
        suite.guest(&name, spec, move |lab| {
            check_negotiated(lab, "INDIRECT_DESC", name_is_on(off))?;
            check_traffic(lab)
        });
    }
}

fn name_is_on(off: &str) -> bool {
    !off.contains("indirect_desc")
}

/// A device that offers packed rings.
fn packed() -> Spec {
    Spec::pc().property("packed", "on")
}

fn check_negotiated(lab: &Lab, feature: &str, expected: bool) -> Result<()> {
    let negotiated = lab.status()?.device.features_negotiated;
    let is_there = negotiated.iter().any(|name| name == feature);
    ensure!(
        is_there == expected,
        "{feature} is negotiated: {is_there}; {negotiated:?}"
    );
    Ok(())
}

/// Both queues go around several times, with bursts and with pauses.
fn check_traffic(lab: &Lab) -> Result<()> {
    lab.check_services()?;
    lab.echo_flood(3000, 64)?;
    lab.echo_flood(500, 1472)?;
    lab.check_health()
}
