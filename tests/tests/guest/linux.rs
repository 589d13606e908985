//! Linux's own network stack at the far end: a tap device in a network
//! namespace of its own. Needs root.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kickpath::guest::{Cause, Guest};
use kickpath::install::{CURL, IPROUTE2, PING};
use kickpath::wire::{FarEnd, HostSockets, Plan, Tap};
use kickpath_abi::config::Ipv4Config;
use kickpath_abi::status::Status;
use kickpath_tests::{Spec, Suite, UP, setup};

const BOUND: Duration = Duration::from_secs(30);

pub fn add(suite: &mut Suite) {
    suite.needs(setup::lacks_tap(), |suite| {
        let mut add = |name: &str, body: fn(&Site) -> Result<()>| {
            suite.test(&format!("linux::{name}"), move || {
                let site = Site::new()?;
                let result = body(&site).and_then(|()| site.ping(&["-c", "1", GUEST]));
                result.map_err(|error| {
                    anyhow::anyhow!("{}", site.guest.failure(Cause::Other(format!("{error:#}"))))
                })
            });
        };
        add("ping_flood", |site| {
            site.ping(&["-f", "-c", "2000", GUEST])?;
            site.ping(&["-f", "-c", "2000", "-s", "1472", GUEST])
        });
        add("ping_of_every_kind_of_size", |site| {
            for size in ["0", "1", "56", "1472", "1473", "4000", "8000"] {
                site.ping(&["-c", "3", "-i", "0.002", "-s", size, GUEST])?;
            }
            Ok(())
        });
        add("ping_over_ipv6", |site| {
            site.ping(&["-6", "-f", "-c", "500", &format!("{LINK_LOCAL}%tap0")])?;
            site.ping(&[
                "-6",
                "-c",
                "3",
                "-i",
                "0.002",
                "-s",
                "1452",
                &format!("{LINK_LOCAL}%tap0"),
            ])
        });
        add("curl", |site| {
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
        add("tcp_echo_of_8_mib", |site| {
            site.sockets.tcp_echo(site.address(), 8 << 20, BOUND)?;
            Ok(())
        });
        add("tcp_sink_and_source", |site| {
            let sent = site.inside(|| push(SocketAddr::new(site.address(), 9), 32 << 20))?;
            let received = site.inside(|| pull(SocketAddr::new(site.address(), 19), 16 << 20))?;
            eprintln!("linux: {sent:.0} Mbit/s into the guest, {received:.0} out of it");
            Ok(())
        });
        add("udp_echo_of_many_sizes", |site| {
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
        add("200_idle_connections", |site| {
            let address = site.address();
            let held = site.inside(|| {
                let mut held = Vec::new();
                for number in 0..200 {
                    let port = [7, 80, 19, 9][number % 4];
                    let to = SocketAddr::new(address, port);
                    held.extend(TcpStream::connect_timeout(&to, Duration::from_secs(3)));
                }
                Ok(held)
            })?;
            // As many at a time as the guest has sockets; the others are
            // refused, for nobody has been idle for long.
            ensure!(
                held.len() >= 16,
                "only {} connections were made",
                held.len()
            );
            site.sockets.udp_echo(address, 1000, BOUND)?;
            site.patiently(|| Ok(site.sockets.tcp_echo(address, 100_000, BOUND)?))?;
            site.patiently(|| site.curl(&format!("http://{GUEST}/stats.json")))?;
            drop(held);
            site.patiently(|| Ok(site.sockets.tcp_echo(address, 100_000, BOUND)?))?;
            Ok(())
        });
    });
}

/// The guest's addresses.
const GUEST: &str = "10.0.2.15";
const LINK_LOCAL: &str = "fe80::5054:ff:fe4b:5001";

/// A guest at a tap device. The guest goes first, then the namespace.
struct Site {
    guest: Guest,
    sockets: HostSockets,
    tap: Tap,
}

impl Site {
    fn new() -> Result<Self> {
        setup::setup()?;
        setup::require(&[IPROUTE2, PING, CURL])?;
        let tap = Tap::new(&Plan::new(Ipv4Config::Static(Ipv4Config::FALLBACK))?, 1)?;
        let (guest, _) = Spec::pc().launch_on(tap.net())?;
        guest.wait_for_console(UP, BOUND)?;
        Ok(Self {
            guest,
            sockets: tap.sockets(),
            tap,
        })
    }

    fn address(&self) -> IpAddr {
        Ipv4Config::FALLBACK.address.into()
    }

    /// `ping`; a reply may take 10 s, and none may be missing.
    fn ping(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.tap.command("ping");
        command.args(["-q", "-W", "10"]).args(arguments);
        let text = output(&mut command)?;
        ensure!(
            text.contains(" 0% packet loss"),
            "ping {arguments:?}: {text}"
        );
        Ok(())
    }

    fn curl(&self, url: &str) -> Result<String> {
        let mut command = self.tap.command("curl");
        command.args([
            "--silent",
            "--show-error",
            "--fail",
            "--globoff",
            "--max-time",
            "20",
            url,
        ]);
        output(&mut command)
    }

    /// Runs `work` on a thread in the namespace.
    fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = std::fs::File::open(format!("/run/netns/{}", self.tap.namespace()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Tries until it works, as a client does that was refused by a full
    /// server.
    fn patiently<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + BOUND;
        loop {
            match attempt() {
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => {}
                done => return done,
            }
        }
    }
}

fn output(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output()?;
    let text = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        bail!(
            "{command:?}: {status}\n{text}{}",
            String::from_utf8_lossy(&stderr)
        );
    }
    Ok(text)
}

/// Sends `length` bytes, waits until all are acknowledged, and returns the
/// speed in Mbit/s.
fn push(to: SocketAddr, length: usize) -> Result<f64> {
    let mut stream = connect(to)?;
    let start = Instant::now();
    let data = vec![0x5a; 64 * 1024];
    for _ in 0..length / data.len() {
        stream.write_all(&data)?;
    }
    stream.shutdown(Shutdown::Write)?;
    // The guest closes its side when it has read ours.
    ensure!(stream.read(&mut [0; 1])? == 0, "discard says something");
    Ok(mbit(length, start))
}

/// Receives `length` bytes, and returns the speed in Mbit/s.
fn pull(from: SocketAddr, length: usize) -> Result<f64> {
    let mut stream = connect(from)?;
    let start = Instant::now();
    let mut buffer = vec![0; 64 * 1024];
    let mut received = 0;
    while received < length {
        let more = stream.read(&mut buffer)?;
        ensure!(more > 0, "the end after {received} bytes");
        received += more;
    }
    Ok(mbit(received, start))
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, BOUND)?;
    stream.set_read_timeout(Some(BOUND))?;
    stream.set_write_timeout(Some(BOUND))?;
    Ok(stream)
}

fn mbit(bytes: usize, start: Instant) -> f64 {
    bytes as f64 * 8e-6 / start.elapsed().as_secs_f64()
}
