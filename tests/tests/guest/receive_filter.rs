//! What the device lets through (`ndo_set_rx_mode`, VLANs), changed while the
//! guest serves: by QEMU's own account (`query-rx-filter`), and by frames that
//! reach the guest or do not.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kickpath::qemu::GUEST_MAC;
use kickpath::wire::FarEnd;
use kickpath_abi::config::{RxMode, VlanId};
use kickpath_abi::steps::Steps;
use kickpath_tests::{Lab, Spec, Suite};
use serde_json::{Value, json};

use crate::control::{ALL_NODES, BROADCAST, MDNS, STRANGER, mac_text, received_of, rx_filter};

/// Frames for an address; many more than what else comes meanwhile.
const FRAMES: usize = 100;

pub fn add(suite: &mut Suite) {
    // One step a mode; all of it is let through, or not, after each.
    let modes = "none/promisc/allmulti/alluni/nomulti/nobcast/alluni,allmulti/nouni/none";
    let spec = Spec::pc()
        .no_router()
        .config(|config| config.rx_mode = Steps::parse::<RxMode>(modes).unwrap_or_default());
    suite.guest("receive_filter::every_mode_on_and_off", spec, every_mode);

    suite.guest(
        "receive_filter::a_frame_with_a_priority_and_no_vlan",
        Spec::pc(),
        priority,
    );

    let spec = Spec::pc().config(|config| {
        config.unicast = addresses(3);
        config.groups = 20;
    });
    suite.guest("receive_filter::tables_of_both_kinds", spec, |lab| {
        let filter = rx_filter(lab)?;
        let expected: Vec<_> = addresses(3).into_iter().map(mac_text).collect();
        ensure!(sorted(&filter["unicast-table"])? == expected, "{filter}");
        let table = sorted(&filter["multicast-table"])?;
        for number in 0..20 {
            ensure!(table.contains(&mac_text(group(number))), "{filter}");
        }
        // And the three that the network stack wants.
        ensure!(table.len() == 23, "{filter}");
        let [first, .., last] = [0, 1, 2].map(address);
        for address in [first, last, group(0), group(19), ALL_NODES, GUEST_MAC] {
            passes(lab, address, true)?;
        }
        for address in [STRANGER, MDNS, group(20)] {
            passes(lab, address, false)?;
        }
        Ok(())
    });
    // QEMU's tables have 64 entries, ours some hundreds.
    for (groups, by_qemu) in [(100, true), (1000, false)] {
        let spec = Spec::pc().config(move |config| {
            config.unicast = addresses(3);
            config.groups = groups;
        });
        let name = format!("receive_filter::{groups}_groups_become_all");
        suite.guest(&name, spec, move |lab| {
            let filter = rx_filter(lab)?;
            ensure!(filter["multicast-overflow"] == json!(by_qemu), "{filter}");
            let state = if by_qemu { "normal" } else { "all" };
            ensure!(filter["multicast"] == json!(state), "{filter}");
            ensure!(filter["unicast"] == json!("normal"), "{filter}");
            ensure!(filter["promiscuous"] == json!(false), "{filter}");
            ensure!(sorted(&filter["unicast-table"])?.len() == 3, "{filter}");
            for address in [address(2), group(groups - 1), MDNS, ALL_NODES] {
                passes(lab, address, true)?;
            }
            passes(lab, STRANGER, false)
        });
    }
    let spec = Spec::pc().config(|config| config.unicast = addresses(70));
    suite.guest("receive_filter::70_addresses_become_all", spec, |lab| {
        let filter = rx_filter(lab)?;
        ensure!(filter["unicast-overflow"] == json!(true), "{filter}");
        ensure!(filter["multicast-overflow"] == json!(false), "{filter}");
        for address in [address(69), STRANGER, ALL_NODES] {
            passes(lab, address, true)?;
        }
        passes(lab, MDNS, false)
    });

    let vlans = |config: &mut kickpath_abi::config::Config| {
        config.vlans = Steps::parse::<VlanId>("none/5,6,4095/6/7/none").unwrap_or_default();
    };
    let spec = Spec::pc().config(vlans);
    suite.guest("receive_filter::vlans_come_and_go", spec, |lab| {
        let steps: [&[u16]; 5] = [&[], &[5, 6, 4095], &[6], &[7], &[]];
        for (number, vlans) in steps.into_iter().enumerate() {
            step(
                lab,
                number,
                &format!("VLANs beside the host's own: {vlans:?}"),
            )?;
            let filter = rx_filter(lab)?;
            let mut table: Vec<u16> = serde_json::from_value(filter["vlan-table"].clone())?;
            table.sort_unstable();
            // And tags that name none, for their priority.
            let expected = [&[0], vlans].concat();
            ensure!(table == expected, "{vlans:?}: {filter}");
            for id in [4, 5, 6, 7, 4095] {
                let tag = [&[0x81, 0x00], &u16::to_be_bytes(id)[..]].concat();
                let received = received_of(lab, GUEST_MAC, &tag, FRAMES)?;
                let passed = vlans.contains(&id);
                ensure!(
                    (received >= FRAMES as u64) == passed && (received < 50) != passed,
                    "step {number}: {received} frames of VLAN {id} reached the guest"
                );
            }
        }
        lab.check_services()
    });
    let spec = Spec::pc().config(move |config| {
        vlans(config);
        config.features_off = "ctrl_vlan".into();
    });
    suite.guest("receive_filter::no_vlans_without_ctrl_vlan", spec, |lab| {
        step(lab, 0, "VLANs beside the host's own: []")?;
        step(lab, 1, "error: VLANs: command VLAN_ADD needs CTRL_VLAN")?;
        lab.check_services()
    });
}

/// A unicast address that the guest asks for.
fn address(number: u8) -> [u8; 6] {
    [0x02, 0x4b, 0x50, 0x01, 0x00, number]
}

fn addresses(count: u8) -> Vec<[u8; 6]> {
    (0..count).map(address).collect()
}

/// A multicast address that the guest asks for.
fn group(number: u16) -> [u8; 6] {
    let [high, low] = number.to_be_bytes();
    [0x01, 0x00, 0x5e, 0x7f, high, low]
}

fn sorted(table: &Value) -> Result<Vec<String>> {
    let mut table: Vec<String> = serde_json::from_value(table.clone())?;
    table.sort();
    Ok(table)
}

/// Has the guest take this step, the first of which it takes by itself, and
/// waits until it says so.
fn step(lab: &Lab, number: usize, said: &str) -> Result<()> {
    let mut from = 0;
    if number > 0 {
        from = lab
            .guest
            .console_since(0)
            .last()
            .map_or(0, |line| line.number + 1);
        next_step(&lab.guest)?;
    }
    lab.guest.wait_for_line(from, said, lab.soon())?;
    Ok(())
}

/// Has QEMU ask for one announcement, upon which the guest takes its next step.
pub fn next_step(guest: &kickpath::guest::Guest) -> Result<()> {
    let arguments = json!({ "initial": 1, "max": 1, "rounds": 1, "step": 1 });
    guest.qmp("announce-self", arguments)?;
    Ok(())
}

/// Frames for this address reach the guest, or do not.
fn passes(lab: &Lab, address: [u8; 6], expected: bool) -> Result<()> {
    let received = received_of(lab, address, &[], FRAMES)?;
    let (all, few) = (received >= FRAMES as u64, received < 50);
    ensure!(
        all == expected && few != expected,
        "{received} of {FRAMES} frames for {} reached the guest; that they do is {expected}",
        mac_text(address)
    );
    Ok(())
}

/// What QEMU says of a mode, and which of the frames reach the guest: to itself,
/// to a stranger, to a group of others, to its group, to all.
struct Expected {
    said: &'static str,
    promiscuous: bool,
    unicast: &'static str,
    multicast: &'static str,
    passed: [bool; 5],
}

const NORMAL: Expected = Expected {
    said: "RxFlags(0x0)",
    promiscuous: false,
    unicast: "normal",
    multicast: "normal",
    passed: [true, false, false, true, true],
};

fn every_mode(lab: &mut Lab) -> Result<()> {
    let steps = [
        NORMAL,
        Expected {
            said: "RxFlags(PROMISCUOUS)",
            promiscuous: true,
            passed: [true; 5],
            ..NORMAL
        },
        Expected {
            said: "RxFlags(ALL_MULTICAST)",
            multicast: "all",
            passed: [true, false, true, true, true],
            ..NORMAL
        },
        Expected {
            said: "RxFlags(ALL_UNICAST)",
            unicast: "all",
            passed: [true, true, false, true, true],
            ..NORMAL
        },
        Expected {
            said: "RxFlags(NO_MULTICAST)",
            multicast: "none",
            passed: [true, false, false, false, true],
            ..NORMAL
        },
        Expected {
            said: "RxFlags(NO_BROADCAST)",
            passed: [true, false, false, true, false],
            ..NORMAL
        },
        Expected {
            said: "RxFlags(ALL_MULTICAST | ALL_UNICAST)",
            unicast: "all",
            multicast: "all",
            passed: [true; 5],
            ..NORMAL
        },
    ];
    let addresses = [GUEST_MAC, STRANGER, MDNS, ALL_NODES, BROADCAST];
    let check_state = |expected: &Expected| {
        let filter = rx_filter(lab)?;
        ensure!(
            filter["promiscuous"] == json!(expected.promiscuous),
            "{filter}"
        );
        ensure!(filter["unicast"] == json!(expected.unicast), "{filter}");
        ensure!(filter["multicast"] == json!(expected.multicast), "{filter}");
        anyhow::Ok(())
    };
    for (number, expected) in steps.iter().enumerate() {
        step(lab, number, &format!("receive mode: {}", expected.said))?;
        check_state(expected)?;
        for (address, passed) in addresses.into_iter().zip(expected.passed) {
            passes(lab, address, passed)
                .map_err(|error| error.context(format!("mode {}", expected.said)))?;
        }
    }
    // Nothing for the guest alone: it hears who asks all for its address, and
    // answers, but no ping.
    step(lab, steps.len(), "receive mode: RxFlags(NO_UNICAST)")?;
    check_state(&Expected {
        unicast: "none",
        ..NORMAL
    })?;
    ensure!(lab.peer.resolve(lab.ipv4(), lab.soon())? == GUEST_MAC);
    let bound = std::time::Duration::from_millis(300);
    let silence = lab.peer.ping(lab.address(), 1, 56, bound)?;
    ensure!(silence.lost() == 1, "an answer to what was filtered");
    step(lab, steps.len() + 1, "receive mode: RxFlags(0x0)")?;
    check_state(&NORMAL)?;
    lab.check_services()
}

/// A switch may send a tag that names no VLAN to anybody (IEEE 802.1Q, 9.6).
fn priority(lab: &mut Lab) -> Result<()> {
    const HOST: [u8; 4] = [10, 0, 2, 78];
    const MAC: [u8; 6] = [0x02, 0x4b, 0x50, 0x00, 0x00, 0x79];
    lab.peer.capture(256);
    let head = [0x81, 0x00, 0xa0, 0x00, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1];
    let guest = lab.ipv4().octets();
    let parts = [&[0xff; 6][..], &MAC, &head, &MAC, &HOST, &[0; 6], &guest];
    let mut question = parts.concat();
    question.resize(64, 0);
    lab.peer.send_frame(&question);
    lab.eventually("an answer", || {
        let frame = lab.peer.recv_frame(Duration::from_millis(100));
        let frame = frame.context("no frame")?.bytes;
        let is_answer = frame.starts_with(&MAC) && frame.get(12..14) == Some(&[0x08, 0x06]);
        ensure!(is_answer, "another frame: {frame:x?}");
        Ok(())
    })
}
