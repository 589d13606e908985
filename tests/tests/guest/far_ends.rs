//! Far ends that are not ours: a stream of frames, passt, and DPDK's testpmd by
//! vhost-user. What this machine cannot have is skipped.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kickpath::guest::{Cause, Guest};
use kickpath::install::{IPROUTE2, PASST, Requirement, TESTPMD};
use kickpath::ports::Services;
use kickpath::qemu::{Forward, Machine, Net, Protocol};
use kickpath::session::fetch_status;
use kickpath::wire::peer::PeerOptions;
use kickpath::wire::{Dgram, ECHO_PORT, FarEnd, HostSockets, MAX_FRAME, Peer, Plan, Recorder, Tap};
use kickpath_abi::config::Ipv4Config;
use kickpath_tests::setup::{self, lacks_tap};
use kickpath_tests::{Skip, Spec, Suite, UP};
use nix::sched::{CloneFlags, setns};
use serde_json::json;
use tempfile::TempDir;

use crate::site::Site;

/// The bound for what takes seconds at most.
const BOUND: Duration = Duration::from_secs(30);

/// Bytes of a TCP stream that the guest echoes.
const STREAM: usize = 256 << 10;
/// The same by passt. That of March 2023, which Debian 12 has, now and then does not
/// acknowledge a whole window of the guest's, which is sent again and again in vain.
const PASST_STREAM: usize = 16 << 10;

/// The device of testpmd in the namespace.
const DEVICE: &str = "pmd0";

pub fn add(suite: &mut Suite) {
    suite.test("far_ends::a_stream_of_frames", stream);
    suite.test("far_ends::passt_by_a_stream", passt_by_a_stream);
    suite.test("far_ends::passt_started_by_qemu", passt_by_qemu);
    suite.needs(lacks_tap(), |suite| {
        for packed in [false, true] {
            let layout = if packed { "packed" } else { "split" };
            let name = format!("far_ends::testpmd_by_vhost_user_{layout}");
            suite.test(&name, move || testpmd(packed));
            let name = format!("far_ends::testpmd_returns_{layout}");
            suite.test(&name, move || testpmd_returns(packed));
        }
    });
    suite.needs(lacks_tap().or_else(lacks_vhost_net), |suite| {
        suite.test("far_ends::vhost_net", vhost_net);
    });
}

/// Why Linux cannot do the device's work itself, if so.
fn lacks_vhost_net() -> Option<String> {
    let mut options = File::options();
    let opened = options.read(true).write(true).open("/dev/vhost-net");
    opened
        .err()
        .map(|error| format!("cannot open /dev/vhost-net: {error}"))
}

/// The host's kernel takes the kick and moves the frames; QEMU sees none of it.
fn vhost_net() -> Result<()> {
    let spec = Spec::pc().extra(&["-set", "netdev.net0.vhost=on"]);
    Site::new(spec)?.run(|site| check(&site.guest, &site.sockets, site.address(), STREAM))
}

/// A program, which ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn require(requirement: Requirement) -> Result<()> {
    setup::require(&[requirement]).map_err(|error| Skip(format!("{error:#}")).into())
}

/// Waits for something that a program makes.
fn wait_for(program: &mut Running, path: &Path, log: &Path) -> Result<()> {
    let deadline = Instant::now() + BOUND;
    while !path.exists() {
        let ended = program.0.try_wait()?;
        if ended.is_some() || Instant::now() > deadline {
            let said = fs::read_to_string(log).unwrap_or_default();
            bail!("{} does not come up ({ended:?}):\n{said}", path.display());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts a guest whose network device is at this `-netdev`, which is called `far`.
fn launch(
    ipv4: Ipv4Config,
    netdev: String,
    properties: &str,
    edit: impl FnOnce(&mut Machine) + Send + 'static,
) -> Result<(Guest, Plan)> {
    let device = format!("virtio-net-pci,netdev=far,romfile={properties}");
    let spec = Spec::pc().ipv4(ipv4).edit(move |machine| {
        machine.nic = None;
        let arguments = ["-netdev", &netdev, "-device", &device];
        machine.extra.extend(arguments.map(Into::into));
        edit(machine);
    });
    // Replaced by what is above.
    spec.launch_on(Net::TapFds(Vec::new()))
}

/// All that the guest serves over IPv4 but pings, which not every far end can send;
/// `stream` are the bytes of a TCP stream.
fn check(guest: &Guest, far: &dyn FarEnd, address: IpAddr, stream: usize) -> Result<()> {
    let check = || {
        for size in [1, 64, 512, 1472] {
            far.udp_echo(address, size, BOUND)?;
        }
        far.tcp_echo(address, stream, BOUND)?;
        let status = fetch_status(far, address, BOUND)?;
        let counters = &status.counters;
        ensure!(
            counters.rx_errors == 0 && counters.tx_errors == 0,
            "the guest has counted errors of the device: {counters:?}"
        );
        Ok(())
    };
    check().map_err(|error| {
        let cause = Cause::Other(format!("{error:#}"));
        anyhow!("{error:#}\n{}", guest.failure(cause))
    })
}

fn pings(far: &dyn FarEnd, address: IpAddr) -> Result<()> {
    let report = far.ping(address, 10, 56, BOUND)?;
    ensure!(
        report.lost() == 0 && report.corrupted == 0,
        "10 pings: {report:?}"
    );
    Ok(())
}

/// `-netdev stream`: each frame behind its length, over a stream socket.
fn stream() -> Result<()> {
    setup::setup()?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("stream");
    let listener = UnixListener::bind(&socket)?;
    let wire = Dgram::new(Recorder::new(None)?)?;
    let Net::Dgram { qemu, host } = wire.net() else {
        bail!("the cable is none");
    };
    let plan = Plan::new(Ipv4Config::Static(Ipv4Config::FALLBACK))?;
    let options = PeerOptions {
        dhcp: false,
        router: false,
    };
    let peer = Peer::new(wire, plan, options)?;
    let netdev = format!(
        "stream,id=far,server=off,addr.type=unix,addr.path={}",
        socket.display()
    );
    let ipv4 = Ipv4Config::Static(Ipv4Config::FALLBACK);
    let (guest, plan) = launch(ipv4, netdev, "", |_| {})?;
    let (stream, _) = listener.accept()?;
    splice(stream, &qemu, host)?;
    guest.wait_for_console(UP, BOUND)?;
    let address = plan.guest.address.into();
    pings(&peer, address)?;
    check(&guest, &peer, address, STREAM)
}

/// Carries frames between a stream and a datagram cable until QEMU or the cable ends.
fn splice(stream: UnixStream, own: &Path, host: PathBuf) -> Result<()> {
    let datagrams = UnixDatagram::bind(own)?;
    let (mut from_qemu, mut to_qemu) = (stream.try_clone()?, stream);
    let to_host = datagrams.try_clone()?;
    thread::spawn(move || {
        let mut frame = vec![0; MAX_FRAME];
        let mut carry = || {
            let mut length = [0; 4];
            from_qemu.read_exact(&mut length).ok()?;
            let frame = frame.get_mut(..u32::from_be_bytes(length) as usize)?;
            from_qemu.read_exact(frame).ok()?;
            to_host.send_to(frame, &host).ok()
        };
        while carry().is_some() {}
    });
    thread::spawn(move || {
        let mut frame = vec![0; MAX_FRAME];
        let mut carry = || {
            let length = datagrams.recv(&mut frame).ok()?;
            to_qemu.write_all(&(length as u32).to_be_bytes()).ok()?;
            to_qemu.write_all(frame.get(..length)?).ok()
        };
        while carry().is_some() {}
    });
    Ok(())
}

/// passt's words for the ports of the guest's services.
fn forwards(services: Services) -> Vec<String> {
    let forwards = services.forwards().into_iter();
    let words = forwards.flat_map(|forward| {
        let option = match forward.protocol {
            Protocol::Tcp => "-t",
            Protocol::Udp => "-u",
        };
        let (host, guest) = (forward.host_port, forward.guest_port);
        [option.to_owned(), format!("127.0.0.1/{host}:{guest}")]
    });
    words.collect()
}

fn passt_by_a_stream() -> Result<()> {
    setup::setup()?;
    require(PASST)?;
    let services = Services::find(18_080, 17_007)?;
    let directory = open_directory()?;
    let (socket, log) = (
        directory.path().join("socket"),
        directory.path().join("log"),
    );
    let passt = Command::new("passt")
        .args(["--foreground", "--stderr", "--socket"])
        .arg(&socket)
        .args(forwards(services))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?)
        .spawn()
        .context("passt")?;
    let mut passt = Running(passt);
    wait_for(&mut passt, &socket, &log)?;
    let netdev = format!(
        "stream,id=far,server=off,addr.type=unix,addr.path={}",
        socket.display()
    );
    let (guest, plan) = launch(Ipv4Config::Dhcp, netdev, "", |_| {})?;
    guest.wait_for_console("(dhcp)", BOUND)?;
    guest.wait_for_console(UP, BOUND)?;
    let far = HostSockets::forwarded(services.forwards());
    check(&guest, &far, plan.guest.address.into(), PASST_STREAM)
}

/// A directory for the user that passt becomes.
fn open_directory() -> Result<TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
    Ok(directory)
}

/// `-netdev passt`: QEMU starts it, and talks to it by a stream.
fn passt_by_qemu() -> Result<()> {
    if !setup::qemu_is_at_least(10, 1)? {
        return Err(Skip("this QEMU has no -netdev passt".into()).into());
    }
    require(PASST)?;
    let services = Services::find(18_280, 17_207)?;
    // One word, as QEMU puts several together with commas.
    let rules = |wanted| {
        let forwards = services.forwards().into_iter();
        let wanted = forwards.filter(|forward| forward.protocol == wanted);
        let rule = |forward: Forward| format!("{}:{}", forward.host_port, forward.guest_port);
        let rules: Vec<_> = wanted.map(rule).collect();
        json!([{ "str": format!("127.0.0.1/{}", rules.join(",")) }])
    };
    let mut netdev = json!({
        "type": "passt",
        "id": "far",
        "quiet": true,
        "tcp-ports": rules(Protocol::Tcp),
        "udp-ports": rules(Protocol::Udp),
    });
    if nix::unistd::geteuid().is_root() {
        // As somebody else it could not write the file with its number that QEMU makes.
        netdev["param"] = json!([{ "str": "--runas" }, { "str": "0" }]);
    }
    // Once in some dozens of starts QEMU 11.1, having started passt, cannot read its kernel.
    let launch = || launch(Ipv4Config::Dhcp, netdev.to_string(), "", |_| {});
    let (guest, plan) = launch().or_else(|error| {
        ensure!(format!("{error:#}").contains("fread() failed"), error);
        launch()
    })?;
    guest.wait_for_console("(dhcp)", BOUND)?;
    guest.wait_for_console(UP, BOUND)?;
    let far = HostSockets::forwarded(services.forwards());
    check(&guest, &far, plan.guest.address.into(), PASST_STREAM)
}

/// Makes another device of the namespace the far end, instead of its own.
fn use_device(tap: &Tap, plan: &Plan, device: &str) -> Result<()> {
    let address = format!("{}/{}", plan.host, plan.guest.prefix);
    for words in [
        &["addr", "flush", "dev", "tap0"][..],
        &["addr", "add", &address, "dev", device],
        &["link", "set", device, "up"],
    ] {
        let status = tap.command("ip").args(words).status()?;
        ensure!(status.success(), "ip {words:?}: {status}");
    }
    Ok(())
}

/// testpmd carries frames between a vhost-user port, where the guest is, and a device of
/// Linux in a namespace.
struct VhostUser {
    testpmd: Running,
    tap: Tap,
    plan: Plan,
    directory: TempDir,
}

impl VhostUser {
    fn new() -> Result<Self> {
        setup::setup()?;
        require(TESTPMD)?;
        setup::require(&[IPROUTE2])?;
        let plan = Plan::new(Ipv4Config::Static(Ipv4Config::FALLBACK))?;
        let tap = Tap::new(&plan, 1)?;
        let directory = tempfile::tempdir()?;
        let testpmd = start_testpmd(&tap, &plan, directory.path())?;
        Ok(Self {
            testpmd,
            tap,
            plan,
            directory,
        })
    }

    /// A guest with that device; `chardev` are more options of QEMU's end of the socket.
    fn launch(&self, packed: bool, chardev: &str) -> Result<Guest> {
        // QEMU 7.2 with vhost-user, MSI-X and TCG crashes in itself.
        let vectors = match setup::qemu_is_at_least(10, 0)? {
            true => "",
            false => ",vectors=0",
        };
        let layout = if packed { ",packed=on" } else { "" };
        let socket = self.directory.path().join("vhost");
        let chardev = format!("socket,id=vhost,path={}{chardev}", socket.display());
        let ipv4 = Ipv4Config::Static(Ipv4Config::FALLBACK);
        let (guest, _) = launch(
            ipv4,
            "vhost-user,id=far,chardev=vhost".into(),
            &format!("{vectors}{layout}"),
            move |machine| {
                // The device reads the guest's memory itself.
                let memory = format!(
                    "memory-backend-memfd,id=memory,size={}M,share=on",
                    machine.memory.as_mebibytes()
                );
                let words = [
                    "-object",
                    &memory,
                    "-machine",
                    "memory-backend=memory",
                    "-chardev",
                    &chardev,
                ];
                // QEMU makes things in this order.
                machine.extra.splice(0..0, words.map(Into::into));
                if packed {
                    machine.config.transport = kickpath_abi::config::Transport::Modern;
                }
            },
        )?;
        guest.wait_for_console(UP, BOUND)?;
        Ok(guest)
    }

    fn address(&self) -> IpAddr {
        self.plan.guest.address.into()
    }
}

/// Starts testpmd, with its device in the namespace.
fn start_testpmd(tap: &Tap, plan: &Plan, directory: &Path) -> Result<Running> {
    let (socket, log) = (directory.join("vhost"), directory.join("log"));
    let testpmd = tap
        .command("dpdk-testpmd")
        .args(["--no-huge", "--no-shconf", "--no-telemetry", "-m", "128"])
        .args(["--no-pci", "--lcores", "0@0,1@0"])
        .arg(format!(
            "--vdev=net_vhost0,iface={},queues=1",
            socket.display()
        ))
        .arg(format!("--vdev=net_tap0,iface={DEVICE}"))
        .args(["--", "--auto-start", "--no-mlockall"])
        .args(["--total-num-mbufs=8192", "--forward-mode=io"])
        // Not interactive, it runs until its input ends.
        .stdin(Stdio::piped())
        .stdout(File::create(&log)?)
        .stderr(File::options().append(true).open(&log)?)
        .spawn()
        .context("dpdk-testpmd")?;
    let mut testpmd = Running(testpmd);
    wait_for(&mut testpmd, &socket, &log)?;
    use_device(tap, plan, DEVICE)?;
    Ok(testpmd)
}

fn testpmd(packed: bool) -> Result<()> {
    let far_end = VhostUser::new()?;
    let guest = far_end.launch(packed, "")?;
    let (far, address) = (far_end.tap.sockets(), far_end.address());
    pings(&far, address)?;
    check(&guest, &far, address, STREAM)?;
    let status = fetch_status(&far, address, BOUND)?;
    let is_packed = status
        .device
        .features_negotiated
        .iter()
        .any(|name| name == "RING_PACKED");
    ensure!(is_packed == packed, "{:?}", status.device);
    Ok(())
}

/// testpmd is killed, comes up anew, and QEMU connects to it again: all is served, and a
/// connection from before goes on.
fn testpmd_returns(packed: bool) -> Result<()> {
    let mut far_end = VhostUser::new()?;
    let again = match setup::qemu_is_at_least(9, 2)? {
        true => ",reconnect-ms=100",
        false => ",reconnect=1",
    };
    let guest = far_end.launch(packed, again)?;
    returns(&mut far_end, &guest, packed).map_err(|error| {
        let cause = Cause::Other(format!("{error:#}"));
        anyhow!("{error:#}\n{}", guest.failure(cause))
    })
}

fn returns(far_end: &mut VhostUser, guest: &Guest, packed: bool) -> Result<()> {
    let (far, address) = (far_end.tap.sockets(), far_end.address());
    pings(&far, address)?;
    let mut connection = connect(&far_end.tap, SocketAddr::new(address, ECHO_PORT))?;
    exchange(&mut connection, 1)?;
    let from = guest.console_since(0).last().map_or(0, |line| line.number);
    far_end.testpmd.0.kill()?;
    far_end.testpmd.0.wait()?;
    guest.wait_for_line(from, "the link is down", BOUND)?;
    // These wait for a far end.
    connection.write_all(&[2; 4])?;
    let directory = far_end.directory.path();
    fs::remove_file(directory.join("vhost"))?;
    far_end.testpmd = start_testpmd(&far_end.tap, &far_end.plan, directory)?;
    guest.wait_for_line(from, "the link is up", BOUND)?;
    let mut late = [0; 4];
    connection
        .read_exact(&mut late)
        .context("what was sent meanwhile")?;
    ensure!(late == [2; 4], "{late:?}");
    exchange(&mut connection, 3)?;
    for size in [1, 64, 512, 1472] {
        far.udp_echo(address, size, BOUND)?;
    }
    far.tcp_echo(address, STREAM, BOUND)?;
    pings(&far, address)?;
    let outages = fetch_status(&far, address, BOUND)?.outages;
    // QEMU gives the new end the place in a split ring that the used index says, and has none
    // to give for a packed one ("ring restore failed"): the watchdog finds that nothing moves.
    ensure!(outages.recovered <= u64::from(packed), "{outages:?}");
    Ok(())
}

/// A TCP connection from a namespace.
fn connect(tap: &Tap, to: SocketAddr) -> Result<TcpStream> {
    let namespace = File::open(Path::new("/run/netns").join(tap.namespace()))?;
    let work = || -> Result<TcpStream> {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let stream = TcpStream::connect_timeout(&to, BOUND)?;
        stream.set_read_timeout(Some(BOUND))?;
        stream.set_write_timeout(Some(BOUND))?;
        Ok(stream)
    };
    thread::scope(|scope| scope.spawn(work).join()).map_err(|_| anyhow!("a thread panicked"))?
}

/// Bytes that are echoed.
fn exchange(connection: &mut TcpStream, byte: u8) -> Result<()> {
    let sent = [byte; 1000];
    connection.write_all(&sent)?;
    let mut echoed = [0; 1000];
    connection.read_exact(&mut echoed)?;
    ensure!(echoed == sent, "other bytes came back");
    Ok(())
}
