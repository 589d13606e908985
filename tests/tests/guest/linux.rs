//! Linux's own network stack at the far end: a tap device in a network
//! namespace of its own. Needs root.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};
use kickpath::install::{AB, WRK};
use kickpath::wire::FarEnd;
use kickpath_abi::status::Status;
use kickpath_tests::{Spec, Suite, setup};

use crate::site::{BOUND, GUEST, LINK_LOCAL, Site, connect, output, pull, push};

/// As many connections at once, each served in the end.
fn thousand(site: &Site, count: usize) -> Result<()> {
    let address = site.address();
    site.inside(|| {
        let ports = [7, 80];
        let mut clients = (0..count)
            .map(|n| connect(SocketAddr::new(address, ports[n % 2])))
            .collect::<Result<Vec<_>>>()?;
        for (n, client) in clients.iter_mut().enumerate() {
            let (ask, expected) = match n % 2 {
                0 => (&b"is there room?"[..], &b"is there room?"[..]),
                _ => (&b"HEAD / HTTP/1.0\r\n\r\n"[..], &b"HTTP/1.1 200 O"[..]),
            };
            client.write_all(ask)?;
            let mut answer = [0; 14];
            client
                .read_exact(&mut answer)
                .with_context(|| format!("client {n}"))?;
            ensure!(answer == expected, "client {n}: {answer:?}");
        }
        Ok(())
    })
}

pub fn add(suite: &mut Suite) {
    suite.needs(setup::lacks_tap(), |suite| {
        Site::test(suite, "linux::ping_flood", Spec::pc(), |site| {
            site.ping(&["-f", "-c", "2000", GUEST])?;
            site.ping(&["-f", "-c", "2000", "-s", "1472", GUEST])
        });
        Site::test(
            suite,
            "linux::ping_of_every_kind_of_size",
            Spec::pc(),
            |site| {
                for size in ["0", "1", "56", "1472", "1473", "4000", "8000"] {
                    site.ping(&["-c", "3", "-i", "0.002", "-s", size, GUEST])?;
                }
                Ok(())
            },
        );
        Site::test(suite, "linux::ping_over_ipv6", Spec::pc(), |site| {
            let target = format!("{LINK_LOCAL}%tap0");
            let largest = ["-6", "-c", "3", "-i", "0.002", "-s", "1452", &target];
            site.ping(&["-6", "-f", "-c", "500", &target])?;
            site.ping(&largest)?;
            // In fragments there, in one packet back.
            let route = format!("-6 route add {LINK_LOCAL} dev tap0 mtu 1280");
            output(site.tap.command("ip").args(route.split(' ')))?;
            site.ping(&largest)?;
            // More than smoltcp 0.14 could send back, to a port that nobody serves:
            // who says so has put the fragments together.
            let closed = site.over_ipv6(4)?;
            site.inside(|| {
                let socket = UdpSocket::bind("[::]:0")?;
                socket.set_read_timeout(Some(BOUND))?;
                socket.connect(closed)?;
                socket.send(&[0x42; 4000])?;
                let answer = socket.recv(&mut [0]).map_err(|error| error.kind());
                ensure!(answer == Err(ErrorKind::ConnectionRefused), "{answer:?}");
                Ok(())
            })
        });
        Site::test(suite, "linux::curl", Spec::pc(), |site| {
            let page = site.curl(&format!("http://{GUEST}/"))?;
            ensure!(page.contains("</html>"), "{page}");
            let report = site.curl(&format!("http://{GUEST}/stats.json"))?;
            let status: Status = serde_json::from_str(&report)?;
            ensure!(status.network.ipv4 == ["10.0.2.15/24"], "{status:?}");
            let metrics = site.curl(&format!("http://{GUEST}/metrics"))?;
            ensure!(metrics.contains("kickpath_packets_total"), "{metrics}");
            let report = site.curl(&format!("http://[{LINK_LOCAL}%25tap0]/stats.json"))?;
            serde_json::from_str::<Status>(&report)?;
            Ok(())
        });
        Site::test(suite, "linux::ab_and_wrk", Spec::pc(), |site| {
            setup::require(&[AB, WRK])?;
            for keep_alive in [&["-k"][..], &[]] {
                let mut ab = site.tap.command("ab");
                ab.args(["-q", "-c", "64", "-n", "10000", "-s", "30"]);
                let report = output(ab.args(keep_alive).arg(format!("http://{GUEST}/")))?;
                let says = |line: &str| {
                    report
                        .lines()
                        .any(|l| l.split_whitespace().eq(line.split(' ')))
                };
                ensure!(
                    says("Complete requests: 10000") && says("Failed requests: 0"),
                    "{report}"
                );
            }
            let mut wrk = site.tap.command("wrk");
            wrk.args(["-c", "64", "-t", "1", "-d", "5s", "--timeout", "30s"]);
            let report = output(wrk.arg(format!("http://{GUEST}/stats.json")))?;
            ensure!(
                report.contains("requests in")
                    && !report.contains("errors")
                    && !report.contains("Non-2xx"),
                "{report}"
            );
            Ok(())
        });
        let mut spec = Spec::pc();
        spec = spec.edit(|machine| machine.memory = "128M".parse().expect("an amount"));
        Site::test(suite, "linux::a_thousand_connections", spec, |site| {
            thousand(site, 1000)
        });
        let mut spec = Spec::pc();
        spec = spec.edit(|machine| machine.memory = "16M".parse().expect("an amount"));
        Site::test(suite, "linux::50_connections_with_16M", spec, |site| {
            thousand(site, 50)
        });
        Site::test(suite, "linux::tcp_echo_of_8_mib", Spec::pc(), |site| {
            site.sockets.tcp_echo(site.address(), 8 << 20, BOUND)?;
            Ok(())
        });
        Site::test(suite, "linux::tcp_sink_and_source", Spec::pc(), |site| {
            let sent = site.inside(|| push(SocketAddr::new(site.address(), 9), 32 << 20))?;
            let received = site.inside(|| pull(SocketAddr::new(site.address(), 19), 16 << 20))?;
            eprintln!("linux: {sent:.0} Mbit/s into the guest, {received:.0} out of it");
            Ok(())
        });
        Site::test(suite, "linux::udp_echo_of_many_sizes", Spec::pc(), |site| {
            let address = site.address();
            site.inside(|| {
                let socket = UdpSocket::bind(("0.0.0.0", 0))?;
                socket.set_read_timeout(Some(BOUND))?;
                socket.connect(SocketAddr::new(address, 7))?;
                let mut answer = [0; 9000];
                for size in (0..=1472).step_by(13).chain([1473, 4000, 8000]) {
                    let request: Vec<u8> = (0..size).map(|n| (n * 7 + size) as u8).collect();
                    socket.send(&request)?;
                    let length = socket
                        .recv(&mut answer)
                        .with_context(|| format!("{size} bytes"))?;
                    ensure!(
                        answer[..length] == request,
                        "{size} bytes came back changed"
                    );
                }
                Ok(())
            })
        });
        Site::test(suite, "linux::200_idle_connections", Spec::pc(), |site| {
            let address = site.address();
            let held = site.inside(|| {
                let mut held = Vec::new();
                for number in 0..200 {
                    let port = [7, 80, 19, 9][number % 4];
                    let to = SocketAddr::new(address, port);
                    // Refused until another has been idle for a while.
                    held.push(site.patiently(|| Ok(TcpStream::connect_timeout(&to, BOUND)?))?);
                }
                Ok(held)
            })?;
            site.sockets.udp_echo(address, 1000, BOUND)?;
            site.patiently(|| Ok(site.sockets.tcp_echo(address, 100_000, BOUND)?))?;
            site.patiently(|| site.curl(&format!("http://{GUEST}/stats.json")))?;
            drop(held);
            site.patiently(|| Ok(site.sockets.tcp_echo(address, 100_000, BOUND)?))?;
            Ok(())
        });
    });
}
