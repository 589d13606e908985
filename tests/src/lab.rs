//! A guest in QEMU, and a host of our own at the far end of its cable.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use kickpath::guest::{Cause, Failure, Guest};
use kickpath::qemu::{Accel, Boot, Kind, Machine, Nic};
use kickpath::wire::http::Response;
use kickpath::wire::peer::PeerOptions;
use kickpath::wire::{Dgram, FarEnd, Peer, Plan, Recorder, WireCounters};
use kickpath_abi::config::{Config, Ipv4Config};
use kickpath_abi::status::Status;
use serde_json::json;

use crate::Way;
use crate::setup::{kernel_with_peer, qemu_is_at_least, setup};

/// The line that the guest prints when it serves.
pub const UP: &str = "kickpath: up";

/// How much longer a test may take on a machine that is busy with other things: a bound is for
/// guests that hang.
const BUSY: u32 = 10;

/// How long one answer may take, with other guests and whatever else on the same CPUs: a bound
/// for what hangs.
const ANSWER: Duration = Duration::from_secs(30);

type Edit = Box<dyn FnOnce(&mut Machine) + Send>;

/// The machine of a test: QEMU's default PC with one network device at the end
/// of a datagram cable, a static address, TCG; and how it differs from that.
pub struct Spec {
    way: Way,
    kind: Kind,
    accel: Accel,
    ipv4: Ipv4Config,
    dhcp_server: bool,
    router: bool,
    bound: Duration,
    peer: bool,
    edits: Vec<Edit>,
}

impl Spec {
    /// A machine of this type.
    pub fn new(kind: Kind) -> Self {
        Self {
            way: Way::default(),
            kind,
            accel: Accel::Tcg,
            ipv4: Ipv4Config::Static(Ipv4Config::FALLBACK),
            dhcp_server: true,
            router: true,
            bound: Duration::from_secs(60),
            peer: false,
            edits: Vec::new(),
        }
    }

    /// QEMU's classic PC.
    pub fn pc() -> Self {
        Self::new(Kind::Pc)
    }

    /// The way to the device. Virtio-mmio takes microvm for the machine type.
    pub fn over(mut self, way: Way) -> Self {
        self.way = way;
        self
    }

    /// What executes the guest.
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = accel;
        self
    }

    /// The guest asks for its address by DHCP, and is answered or not.
    pub fn dhcp(mut self, answered: bool) -> Self {
        self.ipv4 = Ipv4Config::Dhcp;
        self.dhcp_server = answered;
        self
    }

    /// Where the guest's IPv4 address comes from.
    pub fn ipv4(mut self, ipv4: Ipv4Config) -> Self {
        self.ipv4 = ipv4;
        self
    }

    /// No router at the far end: the guest has no IPv6 address but its
    /// link-local one.
    pub fn no_router(mut self) -> Self {
        self.router = false;
        self
    }

    /// Time for the whole test, boot included, on a machine that has nothing else to do;
    /// one minute if not said. A busy one has [`BUSY`] times as long.
    pub fn bound(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Changes the machine before it starts.
    pub fn edit(mut self, edit: impl FnOnce(&mut Machine) + Send + 'static) -> Self {
        self.edits.push(Box::new(edit));
        self
    }

    /// Takes the kernel that has `virtio-drivers`' own drivers as well.
    pub fn with_peer(mut self) -> Self {
        self.peer = true;
        self
    }

    /// Changes the network device.
    pub fn nic(self, edit: impl FnOnce(&mut Nic) + Send + 'static) -> Self {
        self.edit(|machine| {
            if let Some(nic) = &mut machine.nic {
                edit(nic);
            }
        })
    }

    /// Sets a property of the network device.
    pub fn property(self, name: &'static str, value: &'static str) -> Self {
        self.nic(move |nic| nic.properties.push((name.into(), value.into())))
    }

    /// Changes the guest's configuration.
    pub fn config(self, edit: impl FnOnce(&mut Config) + Send + 'static) -> Self {
        self.edit(|machine| edit(&mut machine.config))
    }

    /// Adds arguments to QEMU's command line.
    pub fn extra(self, arguments: &[&str]) -> Self {
        let arguments: Vec<_> = arguments.iter().map(Into::into).collect();
        self.edit(|machine| machine.extra.extend(arguments))
    }

    /// The machine on this cable.
    fn machine(self, net: kickpath::qemu::Net, plan: &Plan) -> Result<Machine> {
        let setup = setup()?;
        let kernel = match self.peer {
            true => kernel_with_peer()?.0,
            false => setup.kernel.clone(),
        };
        let mut machine = Machine::new(&setup.qemu, self.kind, self.accel, Boot::Kernel(kernel));
        let mut nic = Nic::new(net);
        plan.configure(&mut machine.config);
        self.way.apply(&mut machine, &mut nic);
        machine.nic = Some(nic);
        for edit in self.edits {
            edit(&mut machine);
        }
        Ok(machine)
    }

    /// Starts the machine on a cable of the caller's making, and returns the
    /// guest and the addresses that it was given.
    ///
    /// # Errors
    /// The set-up fails, or QEMU does not start.
    pub fn launch_on(self, net: kickpath::qemu::Net) -> Result<(Guest, Plan)> {
        let plan = Plan::new(self.ipv4)?;
        let guest = Guest::launch(&self.machine(net, &plan)?)?;
        Ok((guest, plan))
    }
}

/// A running guest and the host at the far end of its cable.
pub struct Lab {
    /// The guest.
    pub guest: Guest,
    /// The host.
    pub peer: Peer,
    machine: Machine,
    router: bool,
    deadline: Instant,
}

impl Lab {
    /// Starts the machine.
    ///
    /// # Errors
    /// The set-up fails, or QEMU does not start.
    pub fn launch(spec: Spec) -> Result<Self> {
        // Before the clock of the test starts: it may take minutes.
        setup()?;
        let deadline = Instant::now() + BUSY * spec.bound;
        let plan = Plan::new(spec.ipv4)?;
        let options = PeerOptions {
            dhcp: spec.dhcp_server,
            router: spec.router,
        };
        let wire = Dgram::new(Recorder::new(None)?)?;
        let machine = spec.machine(wire.net(), &plan)?;
        let frames = wire.frame_log();
        let peer = Peer::new(wire, plan, options)?;
        let mut guest = Guest::launch(&machine)?;
        guest.attach_frames(frames);
        Ok(Self {
            guest,
            peer,
            machine,
            router: options.router,
            deadline,
        })
    }

    /// Waits until the guest has an address and serves, and has heard the
    /// router, if there is one.
    ///
    /// # Errors
    /// It does not in time, or comes to an end before.
    pub fn wait_until_up(&self) -> Result<()> {
        self.guest.wait_for_console(UP, self.left())?;
        if self.router {
            self.guest
                .wait_for_console("IPv6 address fd", self.left())?;
        }
        Ok(())
    }

    /// The machine that the guest was started with.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Time left for this test.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The bound for one answer of the guest.
    pub fn soon(&self) -> Duration {
        self.left().min(ANSWER)
    }

    /// The guest's IPv4 address.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.peer.plan().guest.address
    }

    /// The guest's IPv4 address.
    pub fn address(&self) -> IpAddr {
        self.ipv4().into()
    }

    /// The guest's IPv6 addresses: the link-local one, and the unique local
    /// one if it has one already.
    ///
    /// # Errors
    /// The guest's report cannot be read.
    pub fn ipv6(&self) -> Result<Vec<IpAddr>> {
        let addresses = self.status()?.network.ipv6;
        addresses.iter().map(|cidr| parse_address(cidr)).collect()
    }

    /// Fetches a path from the guest's web server.
    ///
    /// # Errors
    /// No complete answer in time.
    pub fn get(&self, path: &str) -> Result<Response> {
        Ok(self.peer.http_get(self.address(), path, self.soon())?)
    }

    /// The guest's report on itself.
    ///
    /// # Errors
    /// There is none, or it is not what [`Status`] describes.
    pub fn status(&self) -> Result<Status> {
        let response = self.get("/stats.json")?;
        ensure!(
            response.status == 200,
            "/stats.json: status {}",
            response.status
        );
        serde_json::from_slice(&response.body)
            .with_context(|| format!("/stats.json: {}", String::from_utf8_lossy(&response.body)))
    }

    /// Has the guest answer `count` pings of `size` bytes; none may be lost.
    ///
    /// # Errors
    /// One is.
    pub fn ping(&self, address: IpAddr, count: u32, size: usize) -> Result<()> {
        let report = self.peer.ping(address, count, size, self.soon())?;
        ensure!(
            report.lost() == 0 && report.corrupted == 0,
            "ping {address} with {size} bytes: {report:?}"
        );
        Ok(())
    }

    /// Sends UDP echoes with 32 outstanding; none may be lost, damaged or come
    /// twice.
    ///
    /// # Errors
    /// One is.
    pub fn echo_flood(&self, count: u64, size: usize) -> Result<()> {
        let flood = kickpath::wire::peer::Flood {
            count,
            size,
            outstanding: 32,
            patience: ANSWER,
            bound: self.left(),
        };
        let report = self.peer.udp_echo_flood(self.ipv4(), flood)?;
        ensure!(
            report.received == count && report.corrupted == 0 && report.unexpected == 0,
            "{count} UDP echoes of {size} bytes: {report:?}"
        );
        Ok(())
    }

    /// Repeats `attempt` until it succeeds, or the time for one answer is
    /// over.
    ///
    /// # Errors
    /// That of the last attempt.
    pub fn eventually<T>(&self, what: &str, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + self.soon();
        loop {
            match attempt() {
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context(what.to_owned()));
                }
                Err(_) => {}
                done => return done,
            }
        }
    }

    /// Waits until nothing has come or gone on the cable for so long, and
    /// returns what did before.
    ///
    /// # Errors
    /// The time of the test is over.
    pub fn wait_until_quiet(&self, quiet: Duration) -> Result<WireCounters> {
        let (mut last, mut since) = (self.peer.counters(), Instant::now());
        while since.elapsed() < quiet {
            ensure!(!self.left().is_zero(), "the cable is never quiet");
            std::thread::sleep(Duration::from_millis(20));
            let now = self.peer.counters();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(last)
    }

    /// How many descriptors the device lets each of this many queues have, as QEMU
    /// says. That depends on its version, not only on what was asked for.
    ///
    /// # Errors
    /// QEMU does not say.
    pub fn queue_sizes(&self, queues: u16) -> Result<Vec<u16>> {
        if self.machine.kind == Kind::Microvm && !qemu_is_at_least(11, 1)? {
            // Its virtio-mmio said this of every queue, whatever the device had.
            return Ok(vec![1024; queues.into()]);
        }
        let devices = self.guest.qmp("x-query-virtio", json!({}))?;
        let path = &devices[0]["path"];
        let sizes = (0..queues).map(|queue| {
            let arguments = json!({ "path": path, "queue": queue });
            let status = self.guest.qmp("x-query-virtio-queue-status", arguments)?;
            let size = status["vring-num-default"].as_u64();
            let size = size.and_then(|size| u16::try_from(size).ok());
            size.with_context(|| format!("no size in {status}"))
        });
        sizes.collect()
    }

    /// A little of everything that the guest serves.
    ///
    /// # Errors
    /// One of it does not work.
    pub fn check_services(&self) -> Result<()> {
        self.ping(self.address(), 3, 56)?;
        for size in [1, 64, 512, 1472] {
            self.peer.udp_echo(self.address(), size, self.soon())?;
        }
        self.peer.tcp_echo(self.address(), 64 * 1024, self.soon())?;
        Ok(())
    }

    /// Whether the guest still runs, answers, and has not found the device at
    /// fault.
    ///
    /// # Errors
    /// It does not, or it has.
    pub fn check_health(&self) -> Result<()> {
        self.ping(self.address(), 1, 56)?;
        let counters = self.status()?.counters;
        ensure!(
            counters.rx_errors == 0 && counters.tx_errors == 0,
            "the guest has counted errors of the device: {counters:?}"
        );
        ensure!(self.guest.exit().is_none(), "QEMU has ended");
        Ok(())
    }

    /// The error with all that is known about the guest.
    pub fn report(&self, error: &anyhow::Error) -> anyhow::Error {
        if error.chain().any(|cause| cause.is::<Box<Failure>>()) {
            // It says all that already.
            return anyhow!("{error:#}");
        }
        let end = self.guest.exit().map(|exit| format!(" ({exit})"));
        let text = format!("{error:#}{}", end.unwrap_or_default());
        anyhow!("{}", self.guest.failure(Cause::Other(text)))
    }
}

/// The address of `ADDRESS/PREFIX`.
///
/// # Errors
/// It is not one.
pub fn parse_address(cidr: &str) -> Result<IpAddr> {
    let address = cidr.split('/').next().unwrap_or_default();
    address
        .parse()
        .with_context(|| format!("'{cidr}' is no address"))
}
