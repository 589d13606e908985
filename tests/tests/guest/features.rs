//! Features that are refused by the guest, or not offered by the device.

use anyhow::{Result, ensure};
use kickpath_tests::{Lab, Spec, Suite};

/// What QEMU can offer, and what the guest can be told to refuse.
const EVERY_FEATURE: &str = "csum,guest_csum,ctrl_guest_offloads,mtu,mac,gso,guest_tso4,guest_tso6,\
     guest_ecn,guest_ufo,host_tso4,host_tso6,host_ecn,host_ufo,mrg_rxbuf,status,ctrl_vq,ctrl_rx,\
     ctrl_vlan,ctrl_rx_extra,guest_announce,mq,ctrl_mac_addr,notify_on_empty,any_layout,\
     indirect_desc,event_idx,ring_packed,ring_reset,speed_duplex,rss,hash_report";

pub fn add(suite: &mut Suite) {
    for feature in [
        "event_idx",
        "any_layout",
        "status",
        "mac",
        "mtu",
        "ctrl_vq",
        "ctrl_rx_extra",
        "ctrl_mac_addr",
        "ctrl_guest_offloads",
        "mrg_rxbuf",
    ] {
        let spec = Spec::pc().config(move |config| config.features_off = feature.into());
        let name = format!("features::{feature}_refused_by_the_guest");
        suite.guest(&name, spec, move |lab| {
            check(lab, &[feature])?;
            if feature == "mac" {
                check_own_address(lab)?;
            }
            Ok(())
        });
    }
    let spec = Spec::pc().config(|config| config.features_off = EVERY_FEATURE.into());
    // Without that one there is no device to talk to.
    let new = suite.way().is_version_1();
    suite.guest("features::all_refused_by_the_guest", spec, move |lab| {
        check(lab, &EVERY_FEATURE.split(',').collect::<Vec<_>>())?;
        let negotiated = lab.status()?.device.features_negotiated;
        let expected: &[&str] = if new { &["VERSION_1"] } else { &[] };
        ensure!(negotiated == expected, "negotiated: {negotiated:?}");
        Ok(())
    });
    for (property, feature) in [
        ("event_idx", "event_idx"),
        ("any_layout", "any_layout"),
        ("status", "status"),
        ("indirect_desc", "indirect_desc"),
        ("mrg_rxbuf", "mrg_rxbuf"),
        ("ctrl_vq", "ctrl_vq"),
    ] {
        let spec = Spec::pc().property(property, "off");
        let name = format!("features::{feature}_not_offered_by_the_device");
        suite.guest(&name, spec, move |lab| {
            check(lab, &[feature])?;
            let offered = lab.status()?.device.features_offered;
            let offered = offered
                .iter()
                .any(|name| name.eq_ignore_ascii_case(feature));
            ensure!(!offered, "{feature} is offered");
            Ok(())
        });
    }
    let bare = [
        "csum",
        "guest_csum",
        "gso",
        "host_tso4",
        "host_tso6",
        "host_ecn",
        "host_ufo",
    ]
    .into_iter()
    .chain([
        "guest_tso4",
        "guest_tso6",
        "guest_ecn",
        "guest_ufo",
        "mrg_rxbuf",
        "ctrl_vq",
    ])
    .chain(["event_idx", "indirect_desc", "any_layout", "status"])
    .fold(Spec::pc(), |spec, name| spec.property(name, "off"));
    suite.guest("features::a_device_with_as_few_as_possible", bare, |lab| {
        check(lab, &["event_idx", "any_layout", "status"])
    });
    let mtu = Spec::pc().property("host_mtu", "1400");
    suite.guest("features::an_mtu_of_1400_from_the_device", mtu, |lab| {
        let device = lab.status()?.device;
        ensure!(device.mtu == 1400, "MTU {}", device.mtu);
        ensure!(
            device.features_negotiated.iter().any(|name| name == "MTU"),
            "{device:?}"
        );
        // An answer to a large datagram must come in fragments that fit.
        lab.peer.capture(64);
        kickpath::wire::FarEnd::udp_echo(&lab.peer, lab.address(), 4000, lab.soon())?;
        let mut largest = 0;
        while let Some(frame) = lab.peer.recv_frame(std::time::Duration::ZERO) {
            largest = largest.max(frame.bytes.len());
        }
        ensure!(
            (1300..=1414).contains(&largest),
            "the largest frame has {largest} bytes"
        );
        Ok(())
    });
    for size in [512, 1024] {
        let spec = Spec::pc().nic(move |nic| nic.rx_queue_size = Some(size));
        let name = format!("features::a_receive_queue_of_{size}");
        suite.guest(&name, spec, move |lab| {
            let queues = lab.status()?.queues;
            let offered = lab.queue_sizes(2)?;
            ensure!(
                offered[0] >= size && [queues[0].size, queues[1].size] == *offered,
                "QEMU offers {offered:?}; {queues:?}"
            );
            lab.check_services()?;
            lab.echo_flood(3000, 64)
        });
    }
    let unknown = Spec::pc().config(|config| config.features_off = "colour".into());
    suite.guest("features::an_unknown_name_is_reported", unknown, |lab| {
        lab.guest
            .wait_for_console("there is no feature 'colour'", lab.soon())?;
        lab.check_services()
    });
}

/// None of these is negotiated, and the guest works.
fn check(lab: &Lab, absent: &[&str]) -> Result<()> {
    let negotiated = lab.status()?.device.features_negotiated;
    for feature in absent {
        let taken = negotiated
            .iter()
            .any(|name| name.eq_ignore_ascii_case(feature));
        ensure!(!taken, "{feature} is negotiated: {negotiated:?}");
    }
    lab.check_services()?;
    lab.echo_flood(3000, 64)
}

/// Without an address from the device the guest makes one up: a locally
/// administered one of one host (IEEE 802, 8.2).
fn check_own_address(lab: &Lab) -> Result<()> {
    let mac = lab.peer.resolve(lab.ipv4(), lab.soon())?;
    ensure!(mac[0] & 3 == 2, "address {mac:02x?}");
    ensure!(
        mac != kickpath::qemu::GUEST_MAC,
        "the device's address was used"
    );
    Ok(())
}
