//! Linux's own network stack at the far end of the guest's cable: a tap device in
//! a network namespace of its own. Needs root.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, SocketAddrV6, TcpStream};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use kickpath::guest::{Cause, Guest};
use kickpath::install::{CURL, IPROUTE2, PING};
use kickpath::wire::{HostSockets, Plan, Tap};
use kickpath_abi::config::Ipv4Config;
use kickpath_abi::status::Status;
use kickpath_tests::{Spec, Suite, UP, ping, setup};

/// The bound for what takes seconds at most.
pub const BOUND: Duration = Duration::from_secs(120);

/// The guest's addresses.
pub const GUEST: &str = "10.0.2.15";
pub const LINK_LOCAL: &str = "fe80::5054:ff:fe4b:5001";

/// A guest at a tap device. The guest goes first, then the namespace.
pub struct Site {
    /// The guest.
    pub guest: Guest,
    /// The far end's sockets.
    pub sockets: HostSockets,
    /// The device.
    pub tap: Tap,
}

impl Site {
    /// Adds a test with a guest that is up, as [`Suite::guest`] does.
    pub fn test(
        suite: &mut Suite,
        name: &str,
        spec: Spec,
        body: impl FnOnce(&Self) -> Result<()> + Send + 'static,
    ) {
        let spec = spec.over(suite.way());
        suite.test(name, move || Self::new(spec)?.run(body));
    }

    /// Starts the machine.
    pub fn new(spec: Spec) -> Result<Self> {
        Self::with_queues(spec, 1)
    }

    /// Starts the machine at a tap device with several queues.
    pub fn with_queues(spec: Spec, queues: u16) -> Result<Self> {
        Self::launch(spec, queues, BOUND)
    }

    /// As [`Self::with_queues`], with a bound for the boot.
    pub fn launch(spec: Spec, queues: u16, boot: Duration) -> Result<Self> {
        setup::setup()?;
        setup::require(&[IPROUTE2, PING, CURL])?;
        let plan = Plan::new(Ipv4Config::Static(Ipv4Config::FALLBACK))?;
        let tap = Tap::new(&plan, queues)?;
        let (guest, _) = spec.launch_on(tap.net())?;
        guest.wait_for_console(UP, boot)?;
        Ok(Self {
            guest,
            sockets: tap.sockets(),
            tap,
        })
    }

    /// Runs a test, after which the guest must still answer.
    pub fn run(&self, test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let result = test(self).and_then(|()| self.ping(&["-c", "1", GUEST]));
        result
            .map_err(|error| anyhow!("{}", self.guest.failure(Cause::Other(format!("{error:#}")))))
    }

    /// The guest's report on itself.
    pub fn status(&self) -> Result<Status> {
        let report = self.curl(&format!("http://{GUEST}/stats.json"))?;
        Ok(serde_json::from_str(&report)?)
    }

    /// The guest's IPv4 address.
    pub fn address(&self) -> IpAddr {
        Ipv4Config::FALLBACK.address.into()
    }

    /// A port of the guest at its link-local IPv6 address.
    pub fn over_ipv6(&self, port: u16) -> Result<SocketAddr> {
        let scope = output(self.tap.command("cat").arg("/sys/class/net/tap0/ifindex"))?;
        let address = LINK_LOCAL.parse()?;
        Ok(SocketAddrV6::new(address, port, 0, scope.trim().parse()?).into())
    }

    /// `ping`; a reply may take 10 s, and none may be missing.
    pub fn ping(&self, arguments: &[&str]) -> Result<()> {
        let before = self.echo_replies(arguments)?;
        let mut command = self.tap.command("ping");
        command.args(["-q", "-W", "10"]).args(arguments);
        let text = output(&mut command)?;
        let summary = ping::Summary::parse(&text)?;
        if summary.received == summary.sent {
            return Ok(());
        }
        // Too late for `ping`, or lost?
        let deadline = Instant::now() + BOUND;
        while self.echo_replies(arguments)? < before + summary.sent {
            ensure!(Instant::now() < deadline, "ping {arguments:?}: {text}");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Echo replies that the namespace's stack found intact, by the version of
    /// IP that a `ping` with these arguments speaks.
    fn echo_replies(&self, arguments: &[&str]) -> Result<u64> {
        let (file, group, name) = if arguments.contains(&"-6") {
            ("snmp6", "Icmp6", "InEchoReplies")
        } else {
            ("snmp", "Icmp", "InEchoReps")
        };
        let file = format!("/proc/thread-self/net/{file}");
        let text = self.inside(|| Ok(std::fs::read_to_string(file)?))?;
        ping::counter(&text, group, name)
    }

    /// Fetches a page from the guest.
    pub fn curl(&self, url: &str) -> Result<String> {
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
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
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
    pub fn patiently<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
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

/// A connection of this thread's network.
pub fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, BOUND)?;
    stream.set_read_timeout(Some(BOUND))?;
    stream.set_write_timeout(Some(BOUND))?;
    Ok(stream)
}

/// What a command prints; it must succeed.
pub fn output(command: &mut Command) -> Result<String> {
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
pub fn push(to: SocketAddr, length: usize) -> Result<f64> {
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

/// The character generator's byte at this place: lines of 72 characters, each
/// beginning one further on in the 95 printable ones (RFC 864).
fn character(at: usize) -> u8 {
    match (at / 74, at % 74) {
        (_, 72) => b'\r',
        (_, 73) => b'\n',
        (line, column) => b' ' + ((line + column) % 95) as u8,
    }
}

/// Receives `length` bytes from the character generator, and returns the speed in Mbit/s.
pub fn pull(from: SocketAddr, length: usize) -> Result<f64> {
    let mut stream = connect(from)?;
    let start = Instant::now();
    let mut buffer = vec![0; 64 * 1024];
    let mut received = 0;
    while received < length {
        let more = stream.read(&mut buffer)?;
        ensure!(more > 0, "the end after {received} bytes");
        for (at, byte) in (received..).zip(&buffer[..more]) {
            ensure!(*byte == character(at), "byte {at} is {byte:#x}");
        }
        received += more;
    }
    Ok(mbit(received, start))
}

fn mbit(bytes: usize, start: Instant) -> f64 {
    bytes as f64 * 8e-6 / start.elapsed().as_secs_f64()
}
