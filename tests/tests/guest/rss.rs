//! Receive-side scaling at a tap with several queues: QEMU computes the hashes,
//! the guest has given it the table, and Linux opens the flows.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kickpath::qemu::{Kind, NicTransport};
use kickpath::wire::FarEnd;
use kickpath_abi::status::Status;
use kickpath_tests::{Spec, Suite, setup};
use virtio_net::net::Features;
use virtio_net::net::flow::{Flow, KEY_LENGTH, Protocol};

use crate::site::{BOUND, GUEST, LINK_LOCAL, Site};

const ECHO_PORT: u16 = 7;
/// Messages there and back in each flow: more than a report takes packets.
const ROUNDS: u64 = 40;
/// Flows of each kind.
const FLOWS: u16 = 6;

pub fn add(suite: &mut Suite) {
    suite.needs(setup::lacks_tap(), |suite| {
        for (name, cpus, properties) in [
            ("2_pairs", 2, &["rss", "hash"][..]),
            ("4_pairs", 4, &["rss", "hash"]),
            ("3_pairs_without_reports", 3, &["rss"]),
            ("packed_pairs", 2, &["rss", "hash", "packed"]),
        ] {
            let name = format!("rss::flows_arrive_where_the_table_says_on_{name}");
            suite.test(&name, move || {
                let site = site(cpus, cpus.into(), properties, "")?;
                site.run(|site| {
                    let has_hash = properties.contains(&"hash");
                    check_negotiated(&site.status()?, true, has_hash)?;
                    flows_arrive(site, cpus)?;
                    traffic(site)?;
                    check_verified(&site.status()?, has_hash)
                })
            });
        }
        suite.test("rss::a_flood_cuts_no_flow_off", || {
            let site = site(2, 2, &["rss"], "")?;
            site.run(|site| {
                site.sockets.udp_echo(site.address(), 64, BOUND)?;
                site.inside(|| flood(site.address()))?;
                check_verified(&site.status()?, false)
            })
        });
        for (name, refused) in [
            ("one_pair", ""),
            ("one_pair_of_single_buffers", "mrg_rxbuf"),
            ("one_pair_without_offloads", "guest_csum,csum"),
            (
                "one_pair_with_nothing_else",
                "mrg_rxbuf,guest_csum,csum,indirect_desc,event_idx",
            ),
        ] {
            let name = format!("rss::hashes_are_reported_to_{name}");
            suite.test(&name, move || {
                let site = site(1, 1, &["rss", "hash"], refused)?;
                site.run(|site| {
                    traffic(site)?;
                    let status = site.status()?;
                    check_negotiated(&status, false, true)?;
                    let rss = status.rss.as_ref().context("no hashes")?;
                    ensure!(rss.table.is_empty(), "{rss:?}");
                    check_verified(&status, true)
                })
            });
        }
        for (refused, has_hash) in [("rss", true), ("rss,hash_report", false)] {
            let name = format!("rss::can_be_refused_with_{}", refused.replace(',', "_and_"));
            suite.test(&name, move || {
                let site = site(2, 2, &["rss", "hash"], refused)?;
                site.run(|site| {
                    traffic(site)?;
                    let status = site.status()?;
                    check_negotiated(&status, false, has_hash)?;
                    // The device follows what the guest sends.
                    ensure!(status.pairs.len() == 2, "{:?}", status.pairs);
                    ensure!(status.pairs.iter().all(|pair| pair.rss_entries == 0));
                    check_verified(&status, has_hash)
                })
            });
        }
    });
}

/// A guest that verifies what the device does, with these properties of the
/// device on and these features refused. The legacy interface has no bits for
/// RSS.
fn site(cpus: u8, queues: u16, properties: &[&'static str], refused: &'static str) -> Result<Site> {
    let mut spec = Spec::new(Kind::Pc)
        .edit(move |machine| machine.cpus = cpus)
        .nic(|nic| nic.transport = NicTransport::Modern)
        .config(move |config| {
            config.hash_check = true;
            config.features_off = refused.into();
        });
    for property in properties {
        spec = spec.property(property, "on");
    }
    Site::with_queues(spec, queues)
}

fn check_negotiated(status: &Status, has_rss: bool, has_hash: bool) -> Result<()> {
    let device = &status.device;
    let negotiated: Features = { device.features_negotiated.iter() }
        .filter_map(|name| Features::by_name(name))
        .collect();
    ensure!(negotiated.contains(Features::RSS) == has_rss, "{device:?}");
    ensure!(
        negotiated.contains(Features::HASH_REPORT) == has_hash,
        "{device:?}"
    );
    ensure!(status.rss.is_some() == (has_rss || has_hash), "{device:?}");
    Ok(())
}

/// The guest has found nothing wrong, and had something to look at.
fn check_verified(status: &Status, has_hash: bool) -> Result<()> {
    let counters = &status.counters;
    ensure!(
        counters.rx_hash_wrong == 0 && counters.rx_missteered == 0,
        "{counters:?}"
    );
    if has_hash {
        // All but ARP and what came before the device was told.
        ensure!(
            counters.rx_hashed > 300 && counters.rx_hashed + 40 > counters.rx_packets,
            "{counters:?}"
        );
    } else {
        ensure!(counters.rx_hashed == 0, "{counters:?}");
    }
    ensure!(
        counters.rx_errors == 0 && counters.tx_errors == 0,
        "{counters:?}"
    );
    Ok(())
}

/// Datagrams, large segments both ways, fragments and pings.
fn traffic(site: &Site) -> Result<()> {
    let address = site.address();
    for size in (0..1472).step_by(50) {
        site.sockets.udp_echo(address, size, BOUND)?;
    }
    // Fragments have no ports.
    for size in [3000, 8000] {
        site.sockets.udp_echo(address, size, BOUND)?;
    }
    for _ in 0..4 {
        site.sockets.tcp_echo(address, 400_000, BOUND)?;
    }
    site.ping(&["-f", "-c", "200", GUEST])?;
    site.ping(&["-6", "-f", "-c", "200", &format!("{LINK_LOCAL}%tap0")])
}

/// Every flow from a port of its own arrives at the pair that its hash leads to,
/// and at no other.
fn flows_arrive(site: &Site, pairs: u8) -> Result<()> {
    let status = site.status()?;
    ensure!(status.pairs.len() == usize::from(pairs), "{status:?}");
    let rss = status.rss.context("no table")?;
    ensure!(rss.table.len() == 128, "{rss:?}");
    for (entry, pair) in rss.table.iter().enumerate() {
        ensure!(usize::from(*pair) == entry % usize::from(pairs), "{rss:?}");
    }
    for pair in &status.pairs {
        let entries = rss.table.iter().filter(|entry| **entry == pair.number);
        ensure!(usize::from(pair.rss_entries) == entries.count(), "{pair:?}");
    }
    let mut key = [0; KEY_LENGTH];
    ensure!(rss.key.len() == 2 * KEY_LENGTH, "{rss:?}");
    for (number, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&rss.key[2 * number..2 * number + 2], 16)?;
    }
    let to = addresses(site)?;
    let mut seen = vec![0; usize::from(pairs)];
    for number in 0..FLOWS {
        for (to, protocol) in [
            (to[0], Protocol::Udp),
            (to[0], Protocol::Tcp),
            (to[1], Protocol::Udp),
            (to[1], Protocol::Tcp),
        ] {
            let before = received(site)?;
            let (from, sent) = site.inside(|| match protocol {
                Protocol::Udp => echo_datagrams(to, 20_000 + number),
                Protocol::Tcp => echo_stream(to),
            })?;
            let flow = Flow {
                addresses: [from.ip(), to.ip()],
                ports: Some((protocol, [from.port(), to.port()])),
            };
            let entry = flow.hash(&key) as usize % rss.table.len();
            let expected = usize::from(rss.table[entry]);
            let after = received(site)?;
            for (pair, (before, after)) in before.iter().zip(&after).enumerate() {
                ensure!(
                    (after - before >= sent) == (pair == expected),
                    "{flow:?} belongs to pair {expected}; of {sent} packets and a report's, pair \
                     {pair} received {}",
                    after - before
                );
            }
            seen[expected] += 1;
        }
    }
    ensure!(
        seen.iter().all(|flows| *flows > 0),
        "a pair had no flow: {seen:?}"
    );
    Ok(())
}

/// Sends by many flows more than the guest can take, so that each pair runs out
/// of buffers again and again. Then every flow must be answered.
fn flood(address: IpAddr) -> Result<()> {
    const FLOWS: u16 = 48;
    const TIME: Duration = Duration::from_secs(4);
    let sockets = { 0..FLOWS }
        .map(|flow| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 21_000 + flow))?;
            socket.connect((address, ECHO_PORT))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<Result<Vec<_>>>()?;
    let end = Instant::now() + TIME;
    while Instant::now() < end {
        for socket in &sockets {
            // What does not fit into the tap's queue is lost.
            let _ = socket.send(&[0x5a; 400]);
        }
    }
    let mut buffer = [0; 500];
    for socket in &sockets {
        while socket.recv(&mut buffer).is_ok() {}
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let deadline = Instant::now() + BOUND;
        loop {
            socket.send(b"after the flood")?;
            let length = socket.recv(&mut buffer).unwrap_or(0);
            if &buffer[..length] == b"after the flood" {
                break;
            }
            let from = socket.local_addr()?;
            ensure!(Instant::now() < deadline, "{from} gets no answer any more");
        }
    }
    Ok(())
}

/// The guest's echo service over IPv4 and IPv6.
fn addresses(site: &Site) -> Result<[SocketAddr; 2]> {
    let scope = site.inside(|| Ok(nix::net::if_::if_nametoindex("tap0")?))?;
    let local: Ipv6Addr = LINK_LOCAL.parse()?;
    Ok([
        SocketAddr::new(site.address(), ECHO_PORT),
        SocketAddrV6::new(local, ECHO_PORT, 0, scope).into(),
    ])
}

/// Packets that each pair has received.
fn received(site: &Site) -> Result<Vec<u64>> {
    let status = site.status()?;
    let pairs = status.pairs.iter();
    Ok(pairs.map(|pair| pair.counters.rx_packets).collect())
}

/// One datagram at a time from this port; the address that they come from, and
/// their number.
fn echo_datagrams(to: SocketAddr, port: u16) -> Result<(SocketAddr, u64)> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, port))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let deadline = Instant::now() + BOUND;
    let mut sent = 0;
    for round in 0..ROUNDS {
        let payload = round.to_be_bytes();
        loop {
            socket.send(&payload)?;
            sent += 1;
            let mut answer = [0; 16];
            match socket.recv(&mut answer) {
                // One that was sent again may be answered twice.
                Ok(length) if answer[..length] == payload => break,
                Ok(_) => {}
                // The guest may have to ask for the host's hardware address.
                Err(_) if Instant::now() < deadline => {}
                Err(error) => bail!("no answer to {to} from port {port}: {error}"),
            }
        }
    }
    Ok((socket.local_addr()?, sent))
}

/// The same over TCP, from any port.
fn echo_stream(to: SocketAddr) -> Result<(SocketAddr, u64)> {
    let mut stream = TcpStream::connect_timeout(&to, BOUND)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(BOUND))?;
    for round in 0..ROUNDS {
        stream.write_all(&round.to_be_bytes())?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer)?;
        ensure!(answer == round.to_be_bytes(), "another answer");
    }
    Ok((stream.local_addr()?, ROUNDS))
}
