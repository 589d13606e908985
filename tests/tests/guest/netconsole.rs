//! The guest's log by UDP, and its last words.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etherparse::{SlicedPacket, TransportSlice};
use kickpath::qemu::{GUEST_MAC, NicTransport};
use kickpath::wire::peer::PEER_MAC;
use kickpath_abi::config::{SelfTest, SelfTestAt};
use kickpath_tests::{Lab, Spec, Suite};

use crate::faults::expect_failure;

const PORT: u16 = 6666;
/// What the driver takes when it may not ask the device.
const FALLBACK_MAC: [u8; 6] = [0x02, 0x00, 0x00, 0x6b, 0x69, 0x63];

pub fn add(suite: &mut Suite) {
    suite.launch("netconsole::the_whole_log", to_peer(Spec::pc()), whole_log);
    // By the gateway, which is at the far end as well.
    let far = Spec::pc().config(|config| {
        config.netconsole = Some(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 99), PORT));
    });
    suite.launch("netconsole::by_the_gateway", far, whole_log);

    let faults: [(&str, SelfTest, &[&str]); 5] = [
        ("a_panic", SelfTest::Panic, &["panicked at", "self-test"]),
        (
            "a_panic_in_a_full_transmit_queue",
            SelfTest::PanicInTransmit,
            &["panicked at", "self-test"],
        ),
        // An allocation on the way would wait for ever.
        (
            "a_panic_in_the_allocator",
            SelfTest::PanicInAllocator,
            &["panicked at", "self-test"],
        ),
        (
            "a_page_fault",
            SelfTest::PageFault,
            &["exception 14 #PF", "rip ", "cr2 "],
        ),
        (
            "a_stack_overflow",
            SelfTest::StackOverflow,
            &["exception 8 #DF", "guard page"],
        ),
    ];
    for (name, selftest, expected) in faults {
        let spec = fault(Spec::pc(), selftest);
        let name = format!("netconsole::last_words_of_{name}");
        suite.launch(&name, spec, move |lab| last_words(lab, expected));
    }
    let spec = fault(Spec::pc(), SelfTest::PanicOther).edit(|machine| machine.cpus = 2);
    suite.launch(
        "netconsole::last_words_of_a_panic_on_another_cpu",
        spec,
        |lab| last_words(lab, &["panicked at", "on CPU 1"]),
    );
    for &irq in suite.way().rungs() {
        let spec = fault(Spec::pc(), SelfTest::PanicInTransmit).config(move |c| c.irq = irq);
        let name = format!("netconsole::last_words_with_irq_{irq}");
        suite.launch(&name, spec, |lab| last_words(lab, &["panicked at"]));
    }
    let few = Spec::pc().config(|config| {
        config.features_off = "event_idx,any_layout,status,mac,mtu,ctrl_vq".into();
    });
    let few = fault(few, SelfTest::PanicInTransmit);
    suite.launch("netconsole::last_words_with_few_features", few, |lab| {
        last_words(lab, &["panicked at"])
    });
    if suite.way().is_version_1() {
        let packed = fault(
            Spec::pc().property("packed", "on"),
            SelfTest::PanicInTransmit,
        );
        suite.launch("netconsole::last_words_with_a_packed_ring", packed, |lab| {
            last_words(lab, &["panicked at"])
        });
        // QEMU does not go on without what it demands.
        let demanding = Spec::pc()
            .property("iommu_platform", "on")
            .nic(|nic| nic.transport = NicTransport::Modern);
        let demanding = fault(demanding, SelfTest::PanicInTransmit);
        suite.launch(
            "netconsole::last_words_with_access_platform",
            demanding,
            |lab| last_words(lab, &["panicked at"]),
        );
    }
    // A network that is not there takes nothing but the words.
    let dead = fault(Spec::pc(), SelfTest::Panic).config(|config| {
        config.netconsole = Some(SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 99), PORT));
    });
    suite.launch("netconsole::a_host_that_is_not_there", dead, |lab| {
        lab.wait_until_up()?;
        lab.check_services()?;
        lab.check_health()
    });
}

/// The log goes to the host at the far end.
pub fn to_peer(spec: Spec) -> Spec {
    spec.edit(|machine| {
        let peer = machine.config.gateway.unwrap_or(Ipv4Addr::new(10, 0, 2, 2));
        machine.config.netconsole = Some(SocketAddrV4::new(peer, PORT));
    })
}

fn fault(spec: Spec, selftest: SelfTest) -> Spec {
    to_peer(spec).config(move |config| {
        config.selftest = selftest;
        config.selftest_at = SelfTestAt::Up;
    })
}

/// The line in a frame, if it is one of netconsole's. Everything about such a
/// frame must be right.
fn line_of(frame: &[u8]) -> Result<Option<String>> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        return Ok(None);
    };
    if udp.destination_port() != PORT {
        return Ok(None);
    }
    ensure!(udp.source_port() == 6665, "from port {}", udp.source_port());
    ensure!(frame[..6] == PEER_MAC, "to {:02x?}", &frame[..6]);
    ensure!(
        frame[6..12] == GUEST_MAC || frame[6..12] == FALLBACK_MAC,
        "from {:02x?}",
        &frame[6..12]
    );
    let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net else {
        anyhow::bail!("not IPv4");
    };
    let header = ip.header().to_header();
    ensure!(
        header.calc_header_checksum() == header.header_checksum,
        "the header's checksum is wrong"
    );
    let checksum = udp.to_header().calc_checksum_ipv4(&header, udp.payload())?;
    ensure!(
        checksum == udp.checksum(),
        "the datagram's checksum is wrong"
    );
    let text = std::str::from_utf8(udp.payload())?;
    let line = text.strip_suffix('\n').context("no line feed")?;
    Ok(Some(line.to_owned()))
}

/// Takes lines until one contains `last`.
pub fn lines_until(lab: &Lab, last: &str) -> Result<Vec<String>> {
    let deadline = Instant::now() + lab.soon();
    let mut lines = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(left > Duration::ZERO, "'{last}' did not come: {lines:#?}");
        let Some(frame) = lab.peer.recv_frame(left) else {
            continue;
        };
        if let Some(line) = line_of(&frame.bytes)? {
            let found = line.contains(last);
            lines.push(line);
            if found {
                return Ok(lines);
            }
        }
    }
}

/// Every line of the console came, in order, once.
fn whole_log(lab: &mut Lab) -> Result<()> {
    lab.peer.capture(4096);
    lab.wait_until_up()?;
    let lines = lines_until(lab, "IPv6 address fd")?;
    let console = lab.guest.console_since(0);
    let first = console
        .iter()
        .position(|line| line.text.contains("Kickpath"))
        .context("the console's first line")?;
    for (line, printed) in lines.iter().zip(&console[first..]) {
        ensure!(
            *line == printed.text,
            "'{line}' was sent for '{}'",
            printed.text
        );
    }
    ensure!(lines.len() > 10, "{lines:?}");
    lab.check_services()?;
    lab.check_health()
}

/// The guest fails, and says why over the network too.
fn last_words(lab: &mut Lab, expected: &[&str]) -> Result<()> {
    lab.peer.capture(4096);
    expect_failure(lab, expected)?;
    let console = lab.guest.console_since(0);
    let fatal: Vec<_> = console
        .iter()
        .map(|line| line.text.as_str())
        .skip_while(|line| !line.contains("fatal: "))
        // It is for who has the console and not QEMU's exit status.
        .filter(|line| !line.contains("] verdict: "))
        .collect();
    let first = fatal.first().context("no last words on the console")?;
    let mut sent = lines_until(lab, first)?.join("\n");
    // All of them: of a message over several lines each is in a datagram, and
    // so is each message.
    while let Some(missing) = fatal.iter().find(|line| !sent.contains(**line)) {
        sent.push_str(&lines_until(lab, missing)?.join("\n"));
    }
    for text in expected {
        ensure!(sent.contains(text), "'{text}' was not sent: {sent}");
    }
    // What was logged before them came first.
    ensure!(sent.contains("self-test: "), "{sent}");
    Ok(())
}
