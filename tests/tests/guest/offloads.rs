//! Checksums and TCP segments that the device takes care of, with Linux at the
//! far end of a tap. (QEMU's other networks have no offloads: there is nobody
//! who could do the work.) Needs root.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kickpath::install::{ETHTOOL, TCPDUMP};
use kickpath::qemu::{GUEST_MAC, Memory};
use kickpath::wire::FarEnd;
use kickpath_abi::config::GuestOffload;
use kickpath_abi::status::{Counters, Status};
use kickpath_abi::steps::Steps;
use kickpath_tests::frames::{self, Route};
use kickpath_tests::{Spec, Suite, setup};

use crate::evidence::{Capture, Count, LARGEST_FRAME, Seen, ethtool, large_among, no_errors};
use crate::packet_socket::PacketSocket;
use crate::receive_filter::next_step;
use crate::site::{BOUND, GUEST, LINK_LOCAL, Site, output, pull, push};

/// Every offload that the guest can agree to.
const ALL: [&str; 7] = [
    "csum",
    "host_tso4",
    "host_tso6",
    "guest_csum",
    "guest_tso4",
    "guest_tso6",
    "mrg_rxbuf",
];

const MIB: usize = 1 << 20;

pub fn add(suite: &mut Suite) {
    suite.needs(setup::lacks_tap(), |suite| {
        let mut add = |name: &str, spec: Spec, body: fn(&Site) -> Result<()>| {
            Site::test(suite, &format!("offloads::{name}"), spec, body);
        };
        add("large_frames_both_ways", Spec::pc(), large_frames_both_ways);
        add("small_guest", small(Spec::pc()), small_guest);
        add("smallest_guest", with_memory(Spec::pc(), 4), smallest_guest);
        let spec = Spec::pc().property("mrg_rxbuf", "off");
        add("large_buffers", small(spec), large_buffers);
        add("wrong_checksums", Spec::pc(), wrong_checksums);
        let spec = Spec::pc().config(|config| config.features_off = "guest_csum".into());
        add("wrong_checksums_without_offload", spec, wrong_checksums);

        let spec = Spec::pc().config(|config| {
            config.guest_offloads = Steps::parse::<GuestOffload>(OFFLOADS).unwrap_or_default();
        });
        add("turned_off_and_on_again", spec, turned_off_and_on);

        // Each offload switched off by the guest and by the device, and what
        // goes with it (specification 5.1.3.1).
        for (feature, dependent) in [
            ("csum", &["host_tso4", "host_tso6"][..]),
            ("host_tso4", &[]),
            ("host_tso6", &[]),
            ("guest_csum", &["guest_tso4", "guest_tso6"]),
            ("guest_tso4", &[]),
            ("guest_tso6", &[]),
            ("mrg_rxbuf", &[]),
        ] {
            let refused = Spec::pc().config(move |config| config.features_off = feature.into());
            let withheld = Spec::pc().property(feature, "off");
            for (how, spec) in [("refused", refused), ("withheld", withheld)] {
                let name = format!("offloads::{feature}_{how}");
                Site::test(suite, &name, spec, move |site| {
                    without(site, feature, dependent)
                });
            }
        }
        let spec = Spec::pc().config(|config| config.features_off = ALL.join(","));
        Site::test(suite, "offloads::none_at_all", spec, |site| {
            without(site, "csum", &ALL)
        });
    });
}

/// A figure, for a person: printed and not compared.
pub fn add_costs(suite: &mut Suite) {
    suite.needs(setup::lacks_tap(), |suite| {
        suite.test("offloads::what_a_mebibyte_costs", what_a_mebibyte_costs);
    });
}

fn small(spec: Spec) -> Spec {
    with_memory(spec, 16)
}

fn with_memory(spec: Spec, mebibytes: u32) -> Spec {
    spec.edit(move |machine| {
        if let Ok(memory) = Memory::mebibytes(mebibytes) {
            machine.memory = memory;
        }
    })
}

fn negotiated(status: &Status, feature: &str) -> bool {
    let names = &status.device.features_negotiated;
    names.iter().any(|name| name.eq_ignore_ascii_case(feature))
}

/// The way of the bytes: 16 MiB out of the guest, 32 into it and 8 there and
/// back, all compared.
fn exchange(site: &Site) -> Result<()> {
    let address = site.address();
    site.inside(|| pull(SocketAddr::new(address, 19), 16 * MIB))?;
    site.inside(|| push(SocketAddr::new(address, 9), 32 * MIB))?;
    site.sockets.tcp_echo(address, 8 * MIB, BOUND)?;
    Ok(())
}

fn large_frames_both_ways(site: &Site) -> Result<()> {
    setup::require(&[TCPDUMP, ETHTOOL])?;
    let before = site.status()?;
    for feature in ALL {
        ensure!(
            negotiated(&before, feature),
            "{feature}: {:?}",
            before.device
        );
    }
    ensure!(
        ethtool(site, "tx-checksumming")?,
        "the tap computes checksums"
    );
    for feature in ["tx-tcp-segmentation", "tx-tcp6-segmentation"] {
        ensure!(ethtool(site, feature)?, "the tap segments: {feature}");
    }
    let address = site.address();

    let Seen { average, lengths } =
        Seen::during(site, &format!("tcp and src host {GUEST}"), "rx", || {
            pull(SocketAddr::new(address, 19), 16 * MIB)
        })?;
    let large = large_among(&lengths);
    eprintln!("offloads: out of the guest, {average} bytes a frame, {large} captured were large");
    ensure!(average > 2 * LARGEST_FRAME, "{average} bytes a frame");
    ensure!(large > 50, "{large} large frames: {lengths:?}");

    let Seen { average, lengths } =
        Seen::during(site, &format!("tcp and dst host {GUEST}"), "tx", || {
            push(SocketAddr::new(address, 9), 32 * MIB)
        })?;
    let large = large_among(&lengths);
    eprintln!("offloads: into the guest, {average} bytes a frame, {large} captured were large");
    ensure!(average > 2 * LARGEST_FRAME, "{average} bytes a frame");
    ensure!(large > 50, "{large} large frames");

    site.sockets.tcp_echo(address, 8 * MIB, BOUND)?;
    both_families(site)?;
    let Counters {
        rx_merged,
        rx_checksum_valid,
        tx_checksum_offloaded,
        tx_segmented,
        ..
    } = no_errors(site)?;
    ensure!(rx_merged > 50 && tx_segmented > 50, "{:?}", site.status()?);
    ensure!(
        rx_checksum_valid > 500 && tx_checksum_offloaded > 100,
        "{:?}",
        site.status()?
    );
    Ok(())
}

/// UDP and TCP of several sizes, over IPv4 and IPv6.
fn both_families(site: &Site) -> Result<()> {
    for size in [1, 63, 64, 1000, 1472, 4000] {
        site.sockets.udp_echo(site.address(), size, BOUND)?;
    }
    let to = |port| site.over_ipv6(port);
    let (chargen, discard, echo) = (to(19)?, to(9)?, to(7)?);
    site.inside(|| pull(chargen, MIB))?;
    site.inside(|| push(discard, 2 * MIB))?;
    site.inside(|| {
        let socket = std::net::UdpSocket::bind("[::]:0")?;
        socket.set_read_timeout(Some(BOUND))?;
        let mut answer = [0; 2000];
        for size in [0, 1, 2, 63, 64, 999, 1452] {
            let request: Vec<u8> = (0..size).map(|n| (n * 7 + size) as u8).collect();
            socket.send_to(&request, echo)?;
            let length = socket.recv(&mut answer)?;
            ensure!(
                answer[..length] == request,
                "{size} bytes came back changed"
            );
        }
        Ok(())
    })
}

/// The steps of [`turned_off_and_on`].
const OFFLOADS: &str =
    "guest_csum,guest_tso4,guest_tso6/guest_csum,guest_tso6/guest_csum,guest_tso4/none";

/// Receive offloads while the guest serves (`CTRL_GUEST_OFFLOADS`): what comes
/// to the guest changes at once, what arrives at its sockets does not.
fn turned_off_and_on(site: &Site) -> Result<()> {
    setup::require(&[TCPDUMP, ETHTOOL])?;
    let mut from = 0;
    let mut take_step = |number: usize| -> Result<String> {
        let list = OFFLOADS.split('/').nth(number % 4).context("a step")?;
        if number > 0 {
            next_step(&site.guest)?;
        }
        let said = match list {
            "none" => String::new(),
            list => list.to_uppercase().replace(',', " "),
        };
        let said = format!("receive offloads: '{said}'");
        from = site.guest.wait_for_line(from, &said, BOUND)?.number + 1;
        Ok(list.to_owned())
    };
    for number in 0..5 {
        let list = take_step(number)?;
        let is_on = |feature: &str| list.split(',').any(|name| name == feature);
        // QEMU tells the tap.
        for (feature, name) in [
            ("guest_csum", "tx-checksumming"),
            ("guest_tso4", "tx-tcp-segmentation"),
            ("guest_tso6", "tx-tcp6-segmentation"),
        ] {
            ensure!(
                ethtool(site, name)? == is_on(feature),
                "{name} after '{list}'"
            );
        }
        let before = site.status()?.counters;
        into_the_guest(site, is_on("guest_tso4"), is_on("guest_tso6"))
            .with_context(|| format!("after '{list}'"))?;
        site.sockets.tcp_echo(site.address(), MIB, BOUND)?;
        let after = site.status()?.counters;
        let valid = after.rx_checksum_valid - before.rx_checksum_valid;
        ensure!(
            (valid > 0) == is_on("guest_csum"),
            "{valid} valid after '{list}'"
        );
    }
    // Under way, too.
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| site.sockets.tcp_echo(site.address(), 8 * MIB, BOUND));
        let mut number = 5;
        while number < 9 || (!echo.is_finished() && number < 40) {
            take_step(number)?;
            number += 1;
            std::thread::sleep(Duration::from_millis(50));
        }
        echo.join()
            .map_err(|_| anyhow::anyhow!("the echo panicked"))??;
        anyhow::Ok(())
    })?;
    both_families(site)?;
    no_errors(site)?;
    Ok(())
}

/// Whether frames of TCP over IPv4 and over IPv6 that come to the guest are
/// larger than the MTU: as expected of each, in one capture.
fn into_the_guest(site: &Site, tso4: bool, tso6: bool) -> Result<()> {
    let discard = site.over_ipv6(9)?;
    for (family, expected) in [("ip", tso4), ("ip6", tso6)] {
        let to = match family {
            "ip" => SocketAddr::new(site.address(), 9),
            _ => discard,
        };
        let filter = format!("{family} and tcp dst port 9");
        let Seen { average, lengths } = Seen::during(site, &filter, "tx", || push(to, 4 * MIB))?;
        let large = large_among(&lengths);
        ensure!(
            if expected { large > 10 } else { large == 0 },
            "{family}: {large} of {} frames were larger than the MTU; that they are is {expected}",
            lengths.len()
        );
        // And by the kernel's count of what it gave to QEMU.
        ensure!(
            (average > LARGEST_FRAME) == expected,
            "{family}: {average} bytes a frame"
        );
    }
    Ok(())
}

fn small_guest(site: &Site) -> Result<()> {
    for feature in ALL {
        ensure!(negotiated(&site.status()?, feature), "{feature}");
    }
    exchange(site)
}

/// The least that QEMU takes has no room for buffers of 64 KiB: the guest cuts what it sends.
fn smallest_guest(site: &Site) -> Result<()> {
    let status = site.status()?;
    for feature in ALL {
        let expected = !feature.starts_with("host_tso");
        ensure!(negotiated(&status, feature) == expected, "{feature}");
    }
    site.ping(&["-c", "1", GUEST])?;
    site.sockets.udp_echo(site.address(), 1400, BOUND)?;
    site.sockets.tcp_echo(site.address(), MIB, BOUND)?;
    Ok(())
}

/// Without `MRG_RXBUF` every buffer holds the largest frame.
fn large_buffers(site: &Site) -> Result<()> {
    let status = site.status()?;
    for (feature, expected) in [("mrg_rxbuf", false), ("guest_tso4", true)] {
        ensure!(negotiated(&status, feature) == expected, "{feature}");
    }
    let count = Count::now(site, "tx")?;
    site.inside(|| push(SocketAddr::new(site.address(), 9), 32 * MIB))?;
    let average = count.average(site, "tx")?;
    ensure!(average > 2 * LARGEST_FRAME, "{average} bytes a frame");
    exchange(site)?;
    both_families(site)?;
    let counters = site.status()?.counters;
    ensure!(
        counters.rx_merged == 0 && counters.rx_dropped == 0,
        "{counters:?}"
    );
    Ok(())
}

/// Everything works without a feature and those that require it, and nothing is
/// done that was not agreed on.
fn without(site: &Site, feature: &str, dependent: &[&str]) -> Result<()> {
    setup::require(&[TCPDUMP])?;
    let status = site.status()?;
    for name in ALL {
        let absent = name == feature || dependent.contains(&name);
        ensure!(
            negotiated(&status, name) != absent,
            "{name}: {:?}",
            status.device
        );
    }
    let address = site.address();
    let into = |name| negotiated(&status, name);
    into_the_guest(site, into("guest_tso4"), into("guest_tso6"))?;
    let from = Capture::begin(site, &format!("tcp and src host {GUEST}"))?;
    site.inside(|| pull(SocketAddr::new(address, 19), 2 * MIB))?;
    site.inside(|| push(SocketAddr::new(address, 9), 2 * MIB))?;
    site.sockets.tcp_echo(address, MIB, BOUND)?;
    let over_ipv4 = from.end()?;
    ensure!(!over_ipv4.is_empty(), "nothing was captured");
    let from = Capture::begin(site, &format!("ip6 and tcp and src host {LINK_LOCAL}"))?;
    both_families(site)?;
    for (lengths, feature) in [(over_ipv4, "host_tso4"), (from.end()?, "host_tso6")] {
        ensure!(
            (large_among(&lengths) > 0) == negotiated(&status, feature),
            "{feature}: the largest of {} frames has {:?} bytes",
            lengths.len(),
            lengths.iter().max()
        );
    }
    let counters = no_errors(site)?;
    for (count, needed) in [
        (counters.tx_segmented - counters.tx_coalesced, "host_tso4"),
        (counters.tx_coalesced, "host_tso6"),
        (counters.tx_checksum_offloaded, "csum"),
        (counters.rx_checksum_valid, "guest_csum"),
    ] {
        ensure!(
            (count > 0) == negotiated(&status, needed),
            "{needed}: {counters:?}"
        );
    }
    let merges = ["mrg_rxbuf", "guest_tso4", "guest_tso6"];
    if !negotiated(&status, merges[0]) || merges[1..].iter().all(|name| !negotiated(&status, name))
    {
        ensure!(counters.rx_merged == 0, "{counters:?}");
    }
    Ok(())
}

/// The link-local address that Linux makes of a hardware address (RFC 4291,
/// appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = [a ^ 2, b, c, d, e, f].map(u16::from);
    let words = [a << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f];
    let [w, x, y, z] = words;
    Ipv6Addr::new(0xfe80, 0, 0, 0, w, x, y, z)
}

/// A frame with a wrong checksum is answered by nobody, whether the device
/// verifies some or none; right ones between them all are.
fn wrong_checksums(site: &Site) -> Result<()> {
    // The guest knows the host's hardware address after this.
    site.ping(&["-c", "1", GUEST])?;
    site.ping(&["-6", "-c", "1", &format!("{LINK_LOCAL}%tap0")])?;
    let tap = site.inside(|| Ok(PacketSocket::bind(c"tap0")?))?;
    let text = output(site.tap.command("cat").arg("/sys/class/net/tap0/address"))?;
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(text.trim().split(':')) {
        *byte = u8::from_str_radix(text, 16)?;
    }
    let route = Route {
        from: mac,
        from_ipv4: "10.0.2.2".parse()?,
        from_ipv6: link_local(mac),
        to: GUEST_MAC,
        to_ipv4: GUEST.parse()?,
        to_ipv6: LINK_LOCAL.parse()?,
    };
    let transport_at = |frame: &[u8]| if frame[12] == 8 { 34 } else { 54 };
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    let mut number = 20_000;
    for payload in [&b""[..], b"a", b"a few bytes", &[0xee; 1400]] {
        for make in [Route::udp4, Route::udp6] {
            // Wrong at the end, in the port and in the checksum itself.
            for place in 0..4 {
                number += 1;
                let mut frame = make(&route, number, payload);
                let at = match place {
                    0 => frame.len() - 1,
                    1 => transport_at(&frame),
                    2 => transport_at(&frame) + 6,
                    _ => transport_at(&frame) - 4,
                };
                frame[at] ^= 0x10;
                wrong.extend([number, number ^ 0x1000]);
                tap.send(&frame)?;
                number += 1;
                right.push(number);
                tap.send(&make(&route, number, payload))?;
            }
        }
        number += 1;
        let mut frame = route.syn(number);
        let sequence = transport_at(&frame) + 4;
        frame[sequence] ^= 1;
        wrong.push(number);
        tap.send(&frame)?;
        number += 1;
        right.push(number);
        tap.send(&route.syn(number))?;
    }
    let deadline = Instant::now() + BOUND;
    let mut answered = Vec::new();
    let mut look = |frame: &[u8]| {
        // Pings have numbers, too.
        let is_ping = frame.get(23) == Some(&1) || frame.get(20) == Some(&58);
        if frame.get(6..12) == Some(&GUEST_MAC[..])
            && !is_ping
            && let Some(number) = frames::answered(frame)
        {
            ensure!(
                !wrong.contains(&number),
                "{number} was wrong and is answered"
            );
            if right.contains(&number) && !answered.contains(&number) {
                answered.push(number);
            }
        }
        Ok(answered.len())
    };
    let mut count = 0;
    while count < right.len() && Instant::now() < deadline {
        if let Some(frame) = tap.receive(Duration::from_millis(500))? {
            count = look(&frame)?;
        }
    }
    ensure!(
        count == right.len(),
        "{count} of {} right frames were answered",
        right.len()
    );
    // Everything that was sent before this has been looked at.
    site.ping(&["-c", "1", GUEST])?;
    while let Some(frame) = tap.receive(Duration::from_millis(50))? {
        look(&frame)?;
    }
    let status = site.status()?;
    ensure!(status.counters.rx_errors == 0, "{:?}", status.counters);
    Ok(())
}

/// What a MiB takes.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// Guest instructions.
    instructions: f64,
    /// Frames that the guest gave to the device.
    frames: f64,
}

/// For a MiB out of the guest, into it, and out of it over IPv6.
fn cost(spec: Spec) -> Result<[Cost; 3]> {
    let spec = spec.edit(|machine| machine.icount = Some(0));
    let site = Site::new(spec)?;
    let mut costs = [Cost::default(); 3];
    site.run(|site| {
        let address = site.address();
        let (chargen, discard) = (SocketAddr::new(address, 19), SocketAddr::new(address, 9));
        let chargen6 = site.over_ipv6(19)?;
        // Fills caches of addresses.
        site.inside(|| pull(chargen, MIB))?;
        site.inside(|| pull(chargen6, MIB))?;
        for (way, cost) in costs.iter_mut().enumerate() {
            let before = site.status()?;
            site.inside(|| match way {
                0 => pull(chargen, 8 * MIB),
                1 => push(discard, 8 * MIB),
                _ => pull(chargen6, 8 * MIB),
            })?;
            let after = site.status()?;
            let work = |status: &Status| status.cpu.cycles - status.cpu.idle_cycles;
            let frames = after.counters.tx_packets - before.counters.tx_packets;
            // Not what was read: the guest sends on until it hears that nobody reads more.
            let bytes = |status: &Status| status.counters.tx_bytes + status.counters.rx_bytes;
            let moved = (bytes(&after) - bytes(&before)) as f64 / MIB as f64;
            *cost = Cost {
                instructions: (work(&after) - work(&before)) as f64 / moved,
                frames: frames as f64 / moved,
            };
        }
        Ok(())
    })?;
    Ok(costs)
}

/// What the offloads are good for, in guest instructions, all in one run.
fn what_a_mebibyte_costs() -> Result<()> {
    let none = Spec::pc().config(|config| config.features_off = ALL.join(","));
    let with = cost(Spec::pc())?;
    let without = cost(none)?;
    // Over IPv6 smoltcp makes small segments, which are put together at a copy more, about
    // a quarter of the work; what that saves is the host's and the wire's.
    let ways = [("out of", 2.5), ("into", 2.5), ("over IPv6 out of", 0.8)];
    for (((way, least), with), without) in ways.iter().zip(&with).zip(&without) {
        let ratio = without.instructions / with.instructions;
        eprintln!(
            "offloads: a MiB {way} the guest takes {:.0} instructions and {:.0} frames sent with \
             offloads, {:.0} and {:.0} without: {ratio:.1} times as many instructions",
            with.instructions, with.frames, without.instructions, without.frames
        );
        ensure!(
            ratio > *least,
            "{ratio:.2} times as many {way} the guest, at least {least:.2}"
        );
    }
    // smoltcp makes each segment over IPv6, with all that costs, and it is copied
    // behind the others; it is the device and the host that get fewer frames.
    let spec = Spec::pc().config(|config| config.features_off = "host_tso6".into());
    let [.., segments] = cost(spec)?;
    let [.., super_frames] = with;
    eprintln!(
        "offloads: a KiB over IPv6 out of the guest takes {:.0} instructions and {:.3} frames \
         with HOST_TSO6, {:.0} and {:.3} without",
        super_frames.instructions / 1024.0,
        super_frames.frames / 1024.0,
        segments.instructions / 1024.0,
        segments.frames / 1024.0
    );
    ensure!(
        super_frames.frames * 10.0 < segments.frames
            && super_frames.instructions < segments.instructions * 1.35,
        "that is too much"
    );
    Ok(())
}
