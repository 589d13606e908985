//! The control queue, by QEMU's own account of it (`query-rx-filter`) and by
//! what does and does not reach the guest.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use etherparse::{Icmpv4Type, PacketBuilder, SlicedPacket, TransportSlice, VlanId};
use kickpath::qemu::GUEST_MAC;
use kickpath::wire::peer::PEER_MAC;
use kickpath_tests::{Lab, Spec, Suite};
use serde_json::{Value, json};

/// A unicast address that is not the guest's.
pub const STRANGER: [u8; 6] = [0x52, 0x54, 0x00, 0x4b, 0x50, 0x99];
/// A multicast address that nobody in the guest has asked for: mDNS.
pub const MDNS: [u8; 6] = [0x01, 0x00, 0x5e, 0x00, 0x00, 0xfb];
pub const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
pub const BROADCAST: [u8; 6] = [0xff; 6];
/// EtherType for local experiments (IEEE 802): nobody answers.
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

pub fn add(suite: &mut Suite) {
    suite.guest("control::the_receive_filter_is_exact", Spec::pc(), filter);
    let spec = Spec::pc().config(|config| config.features_off = "ctrl_rx".into());
    suite.guest(
        "control::without_ctrl_rx_everything_is_received",
        spec,
        |lab| {
            ensure!(rx_filter(lab)?["promiscuous"] == json!(true));
            let received = received_of(lab, STRANGER, &[], 50)?;
            ensure!(received >= 50, "{received} of 50 frames reached the guest");
            lab.check_services()
        },
    );
    suite.guest("control::an_announcement_on_demand", Spec::pc(), announce);
    let spec = Spec::pc().config(|config| config.features_off = "guest_announce".into());
    suite.guest(
        "control::without_guest_announce_qemu_speaks_for_the_guest",
        spec,
        |lab| {
            announce_self(lab)?;
            // QEMU's own: RARP.
            lab.peer_frame("an announcement by QEMU", |frame| {
                (frame[12..14] == [0x80, 0x35]).then_some(())
            })?;
            let lines = lab.guest.console_since(0);
            ensure!(!lines.iter().any(|line| line.text.contains(ANNOUNCED)));
            lab.check_services()
        },
    );
    for (name, off) in [
        ("by_command", ""),
        ("by_configuration_space", "ctrl_mac_addr"),
        ("without_a_control_queue", "ctrl_vq"),
    ] {
        let spec = Spec::pc().config(move |config| {
            config.mac = Some(OTHER_MAC);
            config.features_off = off.into();
        });
        suite.guest(&format!("control::another_address_{name}"), spec, |lab| {
            let filter = rx_filter(lab)?;
            let other = json!(mac_text(OTHER_MAC));
            let features = lab.status()?.device.features_negotiated;
            let has = |name: &str| features.iter().any(|feature| feature == name);
            if has("CTRL_MAC_ADDR") || !has("VERSION_1") {
                ensure!(filter["main-mac"] == other, "{filter}");
            } else {
                // The configuration of a modern device is not for writing
                // (specification 5.1.4): the filter lets the address through.
                let listed = filter["unicast-table"].as_array();
                let listed = listed.is_some_and(|table| table.contains(&other));
                ensure!(listed || filter["promiscuous"] == true, "{filter}");
            }
            let mac = lab.peer.resolve(lab.ipv4(), lab.soon())?;
            ensure!(mac == OTHER_MAC, "{mac:02x?} answers");
            ensure!(lab.status()?.device.mac == mac_text(OTHER_MAC));
            lab.check_services()
        });
    }
    for (name, off) in [
        ("filtered_by_the_device", ""),
        ("filtered_by_the_guest", "ctrl_vlan"),
        ("without_a_control_queue", "ctrl_vq"),
    ] {
        let spec = Spec::pc().config(move |config| {
            config.vlan = Some(VLAN);
            config.features_off = off.into();
        });
        let filters = off.is_empty();
        suite.launch(&format!("control::a_vlan_{name}"), spec, move |lab| {
            vlan(lab, filters)
        });
    }
    let spec = Spec::pc().config(|config| config.features_off = "ctrl_vq".into());
    suite.guest("control::without_a_control_queue", spec, |lab| {
        let queues = lab.status()?.queues;
        ensure!(queues.len() == 2, "{queues:?}");
        lab.check_services()
    });
}

/// An address for the guest that is not QEMU's.
const OTHER_MAC: [u8; 6] = [0x02, 0x4b, 0x50, 0x00, 0x00, 0x77];
const VLAN: u16 = 5;
/// A host in that VLAN, played by the test.
const HOST: [u8; 4] = [10, 0, 2, 77];
const HOST_MAC: [u8; 6] = [0x02, 0x4b, 0x50, 0x00, 0x00, 0x78];

/// A guest in a VLAN answers ARP, pings and UDP there, with the tag, and nobody
/// else.
fn vlan(lab: &mut Lab, filters: bool) -> Result<()> {
    lab.guest.wait_for_console(kickpath_tests::UP, lab.soon())?;
    if filters {
        let filter = rx_filter(lab)?;
        ensure!(filter["vlan"] == json!("normal"), "{filter}");
        ensure!(filter["vlan-table"] == json!([VLAN]), "{filter}");
    }
    lab.peer.capture(256);
    let tag = |id: u16| [&[0x81, 0x00], &id.to_be_bytes()[..]].concat();
    // ARP from which the guest learns where the host is.
    let guest = lab.ipv4().octets();
    let mut arp = vec![0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend([&HOST_MAC[..], &HOST, &[0; 6], &guest].concat());
    for id in [VLAN + 1, VLAN] {
        let mut frame = [&BROADCAST[..], &HOST_MAC, &tag(id), &arp].concat();
        frame.resize(64, 0);
        lab.peer.send_frame(&frame);
    }
    lab.peer_frame("a tagged ARP reply", |frame| {
        let head = [&HOST_MAC[..], &GUEST_MAC, &tag(VLAN), &[0x08, 0x06]].concat();
        (frame.starts_with(&head) && frame[18 + 7] == 2).then_some(())
    })?;

    // Echo requests without a tag, with another, and with the right one; only
    // those are answered. The largest fills the MTU.
    for (sequence, size) in [(1, 56), (2, 1), (3, 1472)] {
        let payload: Vec<u8> = (0..size).map(|at| at as u8).collect();
        for id in [None, Some(VLAN + 1), Some(VLAN)] {
            let mut frame = Vec::new();
            let ethernet = PacketBuilder::ethernet2(HOST_MAC, GUEST_MAC);
            // The others would be seen by their number.
            let number = if id == Some(VLAN) { sequence } else { 99 };
            match id {
                Some(id) => ethernet
                    .single_vlan(VlanId::try_new(id)?)
                    .ipv4(HOST, guest, 64)
                    .icmpv4_echo_request(7, number)
                    .write(&mut frame, &payload)?,
                None => ethernet
                    .ipv4(HOST, guest, 64)
                    .icmpv4_echo_request(7, number)
                    .write(&mut frame, &payload)?,
            }
            lab.peer.send_frame(&frame);
        }
        lab.peer_frame("a tagged echo reply", |frame| {
            let packet = SlicedPacket::from_ethernet(frame).ok()?;
            let Some(TransportSlice::Icmpv4(icmp)) = &packet.transport else {
                return None;
            };
            let ids: Vec<_> = packet.vlan_ids().into_iter().map(u16::from).collect();
            let Icmpv4Type::EchoReply(header) = icmp.icmp_type() else {
                return None;
            };
            assert_ne!(header.seq, 99, "a frame of nobody's was answered");
            let whole = icmp.payload().get(..size) == Some(&payload);
            (ids == [VLAN] && header.seq == sequence && whole).then_some(())
        })?;
    }

    let mut frame = Vec::new();
    PacketBuilder::ethernet2(HOST_MAC, GUEST_MAC)
        .single_vlan(VlanId::try_new(VLAN)?)
        .ipv4(HOST, guest, 64)
        .udp(4321, 7)
        .write(&mut frame, b"an echo in a VLAN")?;
    lab.peer.send_frame(&frame);
    lab.peer_frame("a tagged UDP echo", |frame| {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(TransportSlice::Udp(udp)) = &packet.transport else {
            return None;
        };
        let ids: Vec<_> = packet.vlan_ids().into_iter().map(u16::from).collect();
        (ids == [VLAN] && udp.payload() == b"an echo in a VLAN").then_some(())
    })
}

pub const ANNOUNCED: &str = "announced to the network";

/// What QEMU lets through to the guest.
pub fn rx_filter(lab: &Lab) -> Result<Value> {
    let filters = lab.guest.qmp("query-rx-filter", Value::Null)?;
    filters
        .get(0)
        .cloned()
        .with_context(|| format!("query-rx-filter: {filters}"))
}

pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Puts `count` frames for `destination` on the cable, with this VLAN tag if any,
/// and returns how many frames the guest has received since.
pub fn received_of(lab: &Lab, destination: [u8; 6], tag: &[u8], count: usize) -> Result<u64> {
    let mut frame = [destination, PEER_MAC].concat();
    frame.extend(tag);
    frame.extend(EXPERIMENTAL);
    frame.resize(64, 0x5a);
    let before = lab.status()?.counters.rx_packets;
    for _ in 0..count {
        lab.peer.send_frame(&frame);
    }
    // What comes after them on the cable is answered after them.
    lab.ping(lab.address(), 1, 56)?;
    Ok(lab.status()?.counters.rx_packets - before)
}

fn filter(lab: &mut Lab) -> Result<()> {
    let filter = rx_filter(lab)?;
    ensure!(filter["promiscuous"] == json!(false), "{filter}");
    ensure!(filter["multicast"] == json!("normal"), "{filter}");
    ensure!(filter["multicast-overflow"] == json!(false), "{filter}");
    ensure!(filter["unicast"] == json!("normal"), "{filter}");
    ensure!(filter["unicast-overflow"] == json!(false), "{filter}");
    // QEMU's `broadcast-allowed` says the opposite; frames tell, below.
    ensure!(filter["main-mac"] == json!(mac_text(GUEST_MAC)), "{filter}");
    ensure!(filter["unicast-table"] == json!([]), "{filter}");
    // All systems, all nodes, and the solicited-node group that the addresses
    // from one hardware address share (RFC 4291, 2.7.1).
    let [.., a, b, c] = GUEST_MAC;
    let solicited = [0x33, 0x33, 0xff, a, b, c];
    let mut expected = [[0x01, 0x00, 0x5e, 0, 0, 1], ALL_NODES, solicited].map(mac_text);
    expected.sort();
    let mut table: Vec<String> = serde_json::from_value(filter["multicast-table"].clone())?;
    table.sort();
    ensure!(table == expected, "{filter}");
    // No VLAN, but tags that name none and have a priority.
    ensure!(filter["vlan"] == json!("normal"), "{filter}");
    ensure!(filter["vlan-table"] == json!([0]), "{filter}");

    // A fetch of the report and a ping are a few frames; none of the 100.
    for stranger in [STRANGER, MDNS] {
        let received = received_of(lab, stranger, &[], 100)?;
        ensure!(
            received < 50,
            "{received} frames for {stranger:02x?} reached the guest"
        );
    }
    for ours in [GUEST_MAC, ALL_NODES, solicited, BROADCAST] {
        let received = received_of(lab, ours, &[], 100)?;
        ensure!(
            received >= 100,
            "{received} of 100 frames for {ours:02x?} reached the guest"
        );
    }
    // IPv6 works by these groups.
    for address in lab.ipv6()? {
        lab.ping(address, 1, 56)?;
    }
    lab.check_services()
}

pub fn announce_self(lab: &Lab) -> Result<()> {
    lab.peer.capture(256);
    let arguments = json!({ "initial": 20, "max": 100, "rounds": 3, "step": 20 });
    lab.guest.qmp("announce-self", arguments)?;
    Ok(())
}

fn announce(lab: &mut Lab) -> Result<()> {
    announce_self(lab)?;
    let address = lab.ipv4().octets();
    // Gratuitous ARP (RFC 5227): a request for the sender's own address.
    lab.peer_frame("a gratuitous ARP", |frame| {
        let arp = frame.get(14..42)?;
        let is_it = frame[..6] == BROADCAST
            && frame[6..14] == [&GUEST_MAC[..], &[0x08, 0x06]].concat()
            && arp[..8] == [0, 1, 8, 0, 6, 4, 0, 1]
            && arp[8..14] == GUEST_MAC
            && arp[14..18] == address
            && arp[24..28] == address;
        is_it.then_some(())
    })?;
    // QEMU has the guest do two of the three rounds, and asks for the second
    // only when the first was acknowledged.
    let mut from = 0;
    for _ in 0..2 {
        from = lab.guest.wait_for_line(from, ANNOUNCED, lab.soon())?.number + 1;
    }
    lab.peer.capture(0);

    announce_self(lab)?;
    // Unsolicited neighbour advertisements (RFC 4861, 7.2.6), one an address.
    let mut missing: Vec<_> = lab.ipv6()?;
    ensure!(missing.len() == 2, "{missing:?}");
    lab.peer_frame("the neighbour advertisements", |frame| {
        let ip = frame.get(14..)?;
        let is_one = frame[..6] == ALL_NODES
            && frame[12..14] == [0x86, 0xdd]
            && ip.get(6..8)? == [58, 255]
            && ip.get(40..42)? == [136, 0]
            // Override, not solicited.
            && ip.get(44)? & 0xe0 == 0x20
            && ip.get(64..72)? == [&[2, 1], &GUEST_MAC[..]].concat();
        if is_one {
            let target: [u8; 16] = ip.get(48..64)?.try_into().ok()?;
            missing.retain(|address| *address != std::net::IpAddr::from(target));
        }
        missing.is_empty().then_some(())
    })?;
    lab.check_services()
}

/// What waits for frames from the guest.
trait Frames {
    /// Takes captured frames until `look` finds what it wants.
    fn peer_frame<T>(&self, what: &str, look: impl FnMut(&[u8]) -> Option<T>) -> Result<T>;
}

impl Frames for Lab {
    fn peer_frame<T>(&self, what: &str, mut look: impl FnMut(&[u8]) -> Option<T>) -> Result<T> {
        let deadline = std::time::Instant::now() + self.soon();
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            ensure!(left > Duration::ZERO, "{what} did not come");
            if let Some(frame) = self.peer.recv_frame(left)
                && let Some(found) = look(&frame.bytes)
            {
                return Ok(found);
            }
        }
    }
}
