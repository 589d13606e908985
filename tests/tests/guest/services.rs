//! What the guest serves, every answer checked.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kickpath::wire::FarEnd;
use kickpath_tests::{Lab, Spec, Suite};

const DISCARD: u16 = 9;
const CHARGEN: u16 = 19;

/// Largest content of a datagram that is not fragmented.
const MAX_UDP: usize = 1472;

pub fn add(suite: &mut Suite) {
    suite.guest("services::ping_over_ipv4", Spec::pc(), |lab| {
        for size in [0, 1, 56, 1471, 1472] {
            lab.ping(lab.address(), 20, size)?;
        }
        Ok(())
    });
    suite.guest("services::ping_over_ipv6", Spec::pc(), |lab| {
        for address in both_ipv6(lab)? {
            for size in [0, 1, 56, 1452] {
                lab.ping(address, 20, size)?;
            }
        }
        Ok(())
    });
    suite.guest("services::udp_echo_of_every_size", Spec::pc(), |lab| {
        for size in 0..=MAX_UDP {
            lab.peer.udp_echo(lab.address(), size, lab.soon())?;
        }
        Ok(())
    });
    suite.guest("services::udp_echo_over_ipv6", Spec::pc(), |lab| {
        for address in both_ipv6(lab)? {
            for size in [0, 1, 64, 512, 1452] {
                lab.peer.udp_echo(address, size, lab.soon())?;
            }
        }
        Ok(())
    });
    suite.guest("services::udp_echo_in_fragments", Spec::pc(), |lab| {
        for size in [MAX_UDP + 1, 2000, 2960, 2961, 4000, 8000] {
            for _ in 0..5 {
                lab.peer.udp_echo(lab.address(), size, lab.soon())?;
            }
        }
        Ok(())
    });
    suite.guest(
        "services::udp_100000_echoes_none_lost",
        Spec::pc().bound(Duration::from_secs(180)),
        |lab| lab.echo_flood(100_000, 64),
    );
    suite.guest("services::udp_discard_and_chargen", Spec::pc(), |lab| {
        // Discard has nothing to say: its silence ends when chargen answers.
        let discard = SocketAddr::new(lab.address(), DISCARD);
        let silence = lab
            .peer
            .udp_exchange(discard, b"nothing", Duration::from_millis(300));
        ensure!(silence.is_err(), "discard answers: {silence:?}");
        let chargen = SocketAddr::new(lab.address(), CHARGEN);
        let answer = lab.peer.udp_exchange(chargen, b"", lab.soon())?.payload;
        // RFC 864: 0 to 512 characters.
        ensure!(
            (1..=512).contains(&answer.len()),
            "{} characters",
            answer.len()
        );
        check_characters(&answer)
    });
    suite.guest(
        "services::tcp_echo_of_8_mib",
        Spec::pc().bound(Duration::from_secs(120)),
        |lab| {
            lab.peer.tcp_echo(lab.address(), 8 << 20, lab.left())?;
            Ok(())
        },
    );
    suite.guest("services::tcp_echo_over_ipv6", Spec::pc(), |lab| {
        for address in both_ipv6(lab)? {
            lab.peer.tcp_echo(address, 256 * 1024, lab.soon())?;
        }
        Ok(())
    });
    suite.guest("services::tcp_echo_of_small_sizes", Spec::pc(), |lab| {
        // One connection after the other: each must be given back.
        for size in (1..=64).chain([1459, 1460, 1461, 2920, 2921]) {
            lab.peer.tcp_echo(lab.address(), size, lab.soon())?;
        }
        Ok(())
    });
    suite.guest("services::tcp_discard", Spec::pc(), |lab| {
        let to = SocketAddr::new(lab.address(), DISCARD);
        let before = lab.status()?.counters.rx_bytes;
        let connection = lab.peer.tcp_connect(to, lab.soon())?;
        let data = vec![0x5a; 4 << 20];
        lab.peer.tcp_send(&connection, &data, lab.left())?;
        lab.peer.tcp_close(connection);
        // What is still in our buffers has left them when the guest has it.
        loop {
            let after = lab.status()?.counters.rx_bytes;
            if after - before >= data.len() as u64 {
                return Ok(());
            }
            ensure!(!lab.left().is_zero(), "{} bytes arrived", after - before);
        }
    });
    suite.guest("services::tcp_chargen", Spec::pc(), |lab| {
        let to = SocketAddr::new(lab.address(), CHARGEN);
        let connection = lab.peer.tcp_connect(to, lab.soon())?;
        let mut text = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        while text.len() < 1 << 20 {
            let more = lab.peer.tcp_recv(&connection, &mut buffer, lab.soon())?;
            ensure!(more > 0, "chargen ends after {} characters", text.len());
            text.extend_from_slice(&buffer[..more]);
        }
        lab.peer.tcp_abort(connection);
        check_characters(&text)
    });
    suite.guest(
        "services::tcp_refuses_ports_without_a_service",
        Spec::pc(),
        |lab| {
            for port in [1, 22, 8080, 65_535] {
                let to = SocketAddr::new(lab.address(), port);
                match lab.peer.tcp_connect(to, lab.soon()) {
                    Err(kickpath::wire::WireError::Closed { .. }) => {}
                    other => anyhow::bail!("port {port}: {other:?}"),
                }
            }
            Ok(())
        },
    );
}

/// The link-local and the unique local address; the second is there once the
/// guest has heard the router.
fn both_ipv6(lab: &Lab) -> Result<Vec<IpAddr>> {
    lab.eventually("an address by stateless autoconfiguration", || {
        let addresses = lab.ipv6()?;
        let is_local = |address: &&IpAddr| matches!(address, IpAddr::V6(a) if a.is_unique_local());
        let is_link = |a: &&IpAddr| matches!(a, IpAddr::V6(a) if a.is_unicast_link_local());
        let link = addresses
            .iter()
            .find(is_link)
            .context("no link-local address")?;
        let local = addresses
            .iter()
            .find(is_local)
            .context("no unique local address")?;
        Ok(vec![*link, *local])
    })
}

/// RFC 864's pattern, written down the way the RFC shows it: the 95 printable
/// characters in a ring, 72 a line, each line one further on.
fn check_characters(text: &[u8]) -> Result<()> {
    let ring: Vec<u8> = (b' '..=b'~').collect();
    let mut lines = (0..).map(|line| {
        let mut text: Vec<u8> = ring
            .iter()
            .cycle()
            .skip(line % 95)
            .take(72)
            .copied()
            .collect();
        text.extend(b"\r\n");
        text
    });
    // A datagram may begin with any line.
    let first = ring
        .iter()
        .position(|c| Some(c) == text.first())
        .context("an empty text")?;
    let mut rest = text;
    let mut lines = lines.by_ref().skip(first);
    while let Some(line) = lines.next().filter(|_| !rest.is_empty()) {
        let length = rest.len().min(line.len());
        ensure!(
            rest[..length] == line[..length],
            "after {} characters: {:?} instead of {:?}",
            text.len() - rest.len(),
            String::from_utf8_lossy(&rest[..length]),
            String::from_utf8_lossy(&line[..length])
        );
        rest = &rest[length..];
    }
    Ok(())
}
