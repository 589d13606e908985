//! The forms that a virtqueue can have: packed rings, indirect descriptors,
//! sizes, and one queue reset alone.

use anyhow::{Result, ensure};
use kickpath::qemu::NicTransport;
use kickpath_abi::config::Transport;
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

/// A modern device with packed rings.
fn packed() -> Spec {
    Spec::pc()
        .nic(|nic| nic.transport = NicTransport::Modern)
        .property("packed", "on")
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
