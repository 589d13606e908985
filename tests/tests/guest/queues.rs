//! The forms that a virtqueue can have: packed rings, indirect descriptors,
//! sizes, and one queue reset alone.

use std::time::Duration;

use anyhow::{Result, ensure};
use kickpath::qemu::NicTransport;
use kickpath_abi::config::{Irq, Transport};
use kickpath_tests::{Lab, Spec, Suite};

pub fn add(suite: &mut Suite) {
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
    // The legacy interface has no packed rings: offered, but not to it.
    let spec = Spec::pc()
        .property("packed", "on")
        .config(|config| config.transport = Transport::Legacy);
    suite.guest(
        "queues::packed_is_not_for_the_legacy_interface",
        spec,
        |lab| {
            check_negotiated(lab, "RING_PACKED", false)?;
            check_traffic(lab)
        },
    );
    // One queue reset alone, receive and transmit in turn, while requests come.
    for (name, spec) in [
        ("split", modern()),
        (
            "split_intx",
            modern().config(|config| config.irq = Irq::Intx),
        ),
        ("packed", packed()),
        (
            "packed_msix_shared",
            packed().config(|config| config.irq = Irq::MsixShared),
        ),
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
    for (name, property, off) in [("offered", "off", ""), ("accepted", "on", "ring_reset")] {
        let spec = modern()
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
    // What the driver asks for, what QEMU has by default or at most, and what
    // comes of it for the receive and the transmit queue. In the legacy
    // interface the device dictates.
    for (name, spec, wanted, rx, sizes) in [
        ("legacy_64", Spec::pc(), 64, 256, [256, 256]),
        ("legacy_1024", Spec::pc(), 1 << 15, 1024, [1024, 256]),
        ("split_1", modern(), 1, 256, [1, 1]),
        ("split_2", modern(), 2, 256, [2, 2]),
        ("split_64", modern(), 64, 256, [64, 64]),
        ("split_100", modern(), 100, 256, [64, 64]),
        ("split_1024", modern(), 1 << 15, 1024, [1024, 256]),
        ("packed_2", packed(), 2, 256, [2, 2]),
        ("packed_64", packed(), 64, 256, [64, 64]),
        ("packed_100", packed(), 100, 256, [100, 100]),
        ("packed_1024", packed(), 1 << 15, 1024, [1024, 256]),
    ] {
        let spec = spec
            .nic(move |nic| {
                let property = ("rx_queue_size".into(), rx.to_string());
                nic.properties.push(property);
            })
            .config(move |config| config.queue_size = Some(wanted));
        let name = format!("queues::size_{name}");
        suite.guest(&name, spec, move |lab| {
            let queues = lab.status()?.queues;
            let found: Vec<_> = queues.iter().take(2).map(|queue| queue.size).collect();
            ensure!(found == sizes, "sizes {found:?} instead of {sizes:?}");
            if sizes[0] < 64 {
                // Bursts do not fit, so that frames are lost at the device.
                lab.ping(lab.address(), 20, 56)?;
                lab.ping(lab.address(), 5, 1400)?;
                return lab.check_health();
            }
            check_traffic(lab)
        });
    }
    // Without ANY_LAYOUT a frame is a chain of two buffers.
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

/// A modern device.
fn modern() -> Spec {
    Spec::pc().nic(|nic| nic.transport = NicTransport::Modern)
}

/// A modern device with packed rings.
fn packed() -> Spec {
    modern().property("packed", "on")
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
