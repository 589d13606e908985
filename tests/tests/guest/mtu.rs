//! The MTU, the device's and the configuration's, and what else the device says
//! of its link: speed and duplex.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use etherparse::{Icmpv4Type, PacketBuilder, SlicedPacket, TransportSlice};
use kickpath::qemu::GUEST_MAC;
use kickpath_tests::{Lab, Spec, Suite};

/// A host on the cable, played by the test, because the peer has an MTU of
/// 1500.
const HOST: [u8; 4] = [10, 0, 2, 77];
const HOST_MAC: [u8; 6] = [0x02, 0x4b, 0x50, 0x00, 0x00, 0x78];

pub fn add(suite: &mut Suite) {
    for (name, off) in [
        ("", ""),
        ("_without_mrg_rxbuf", "mrg_rxbuf"),
        ("_without_offloads_or_layouts", "mrg_rxbuf,csum,any_layout"),
    ] {
        let spec = Spec::pc()
            .property("host_mtu", "9000")
            .config(move |config| config.features_off = off.into());
        suite.guest(&format!("mtu::jumbo_frames{name}"), spec, |lab| {
            jumbo(lab, 9000)
        });
    }
    // Without the feature the configuration alone decides.
    let own = Spec::pc().config(|config| config.mtu = Some(4000));
    suite.guest("mtu::of_the_configuration", own, |lab| jumbo(lab, 4000));
    let less = Spec::pc()
        .property("host_mtu", "9000")
        .config(|config| config.mtu = Some(1280));
    suite.guest("mtu::less_than_the_devices", less, |lab| {
        ensure!(lab.status()?.device.mtu == 1280, "the MTU is another");
        lab.check_services()
    });
    let more = Spec::pc()
        .property("host_mtu", "1400")
        .config(|config| config.mtu = Some(1500));
    suite.guest("mtu::more_than_the_devices_is_refused", more, |lab| {
        let expected = "mtu: an MTU of 1500 bytes; 68 to 1400 are possible";
        lab.guest.wait_for_console(expected, lab.soon())?;
        ensure!(lab.status()?.device.mtu == 1400, "the MTU is another");
        lab.check_services()
    });

    // A feature bit above 31, which the legacy interfaces have not.
    if !suite.way().is_version_1() {
        return;
    }
    let speed = |spec: Spec| spec.property("speed", "25000").property("duplex", "full");
    suite.guest("mtu::speed_and_duplex", speed(Spec::pc()), |lab| {
        let device = lab.status()?.device;
        ensure!(device.speed_mbps == Some(25_000), "{device:?}");
        ensure!(device.duplex == "full", "{device:?}");
        let metrics = String::from_utf8(lab.get("/metrics")?.body)?;
        let expected = "kickpath_link_speed_bits_per_second 25000000000\n";
        ensure!(metrics.contains(expected), "{metrics}");
        Ok(())
    });
    let refused = speed(Spec::pc()).config(|config| config.features_off = "speed_duplex".into());
    suite.guest("mtu::speed_and_duplex_refused", refused, |lab| {
        let device = lab.status()?.device;
        ensure!(device.speed_mbps.is_none(), "{device:?}");
        ensure!(device.duplex.is_empty(), "{device:?}");
        Ok(())
    });
}

/// A ping that fills the MTU is answered in one frame.
fn jumbo(lab: &mut Lab, mtu: usize) -> Result<()> {
    ensure!(
        usize::try_from(lab.status()?.device.mtu)? == mtu,
        "the MTU is another"
    );
    lab.peer.capture(256);
    let guest = lab.ipv4().octets();
    let mut arp = [&[0xff; 6][..], &HOST_MAC, &[0x08, 0x06]].concat();
    arp.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend([&HOST_MAC[..], &HOST, &[0; 6], &guest].concat());
    arp.resize(60, 0);
    lab.peer.send_frame(&arp);
    for (sequence, size) in [
        (1, mtu - 28),
        (2, 2100),
        (3, mtu - 29),
        (4, 56),
        (5, mtu - 28),
    ] {
        let payload: Vec<u8> = (0..size).map(|at| (at ^ at >> 8) as u8).collect();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(HOST_MAC, GUEST_MAC)
            .ipv4(HOST, guest, 64)
            .icmpv4_echo_request(7, sequence)
            .write(&mut frame, &payload)?;
        lab.peer.send_frame(&frame);
        wait_for_reply(lab, sequence, &payload)?;
    }
    lab.check_services()?;
    lab.echo_flood(500, 64)?;
    lab.check_health()
}

fn wait_for_reply(lab: &Lab, sequence: u16, payload: &[u8]) -> Result<()> {
    let deadline = Instant::now() + lab.soon();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(
            left > Duration::ZERO,
            "no reply to {} bytes in one frame",
            payload.len()
        );
        let Some(frame) = lab.peer.recv_frame(left) else {
            continue;
        };
        let packet = SlicedPacket::from_ethernet(&frame.bytes)?;
        if let Some(TransportSlice::Icmpv4(icmp)) = &packet.transport
            && let Icmpv4Type::EchoReply(header) = icmp.icmp_type()
            && header.seq == sequence
            && icmp.payload().get(..payload.len()) == Some(payload)
        {
            return Ok(());
        }
    }
}
